//! Lines that people give to `send`: a call as one line of JSON that stays as it is, or a reason without their words.

#![no_main]

use std::collections::BTreeMap;

use audience_sync::event::Call;
use audience_sync::run::Timestamp;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|data: &str| {
    for line in data.split('\n') {
        check(line);
    }
});

fn check(line: &str) {
    let now = Timestamp::from_millis(1_795_428_000_000);
    let Ok(call) = Call::parse(line, now, || "new-id".to_owned()) else {
        return;
    };
    let text = std::str::from_utf8(&call.line).expect("what was UTF-8 is UTF-8");
    let text = text.strip_suffix('\n').expect("a line has an end");
    assert!(!text.contains('\n'));
    // Numbers stay as they are written, also such as no machine can hold.
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).expect("JSON");
    for field in [
        "type",
        "messageId",
        "timestamp",
        "originalTimestamp",
        "receivedAt",
        "sentAt",
    ] {
        assert!(fields[field].get().starts_with('"'), "{field}: {text}");
    }
    // What is complete is passed on as it is.
    let later = Timestamp::from_millis(1_900_000_000_000);
    let again = Call::parse(text, later, || "another-id".to_owned()).expect("it was a call");
    assert_eq!(again.line, call.line);
    assert_eq!((again.call, again.event), (call.call, call.event));
}
