//! Segment calls of other programs, through the same mapping and journal.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Project, Ran, assert_fields, eventually, files, raw_lines, within};

const CONFIG: &str = r#"
[source.shop]
sqlite = "shop.sqlite"

[destination.main]
directory = "delivered"

[destination.main.mapping]
"Order Completed" = "orders"
"track:Page"      = "named_page"
identify          = "identifies"
track             = "tracks"
PAGE              = "pages"
group             = "groups"
"*"               = "rest"
"#;

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

fn project() -> Project {
    let project = Project::empty();
    fs::create_dir(project.path("schedules")).unwrap();
    project.write("audience-sync.toml", CONFIG);
    project
}

/// A call that is complete already, with an id that says where it is expected.
fn complete(call: &str, id: &str, more: &str) -> String {
    format!(
        r#"{{"type":"{call}","userId":"u","messageId":"{id}","timestamp":"t","originalTimestamp":"o","receivedAt":"r","sentAt":"s"{more}}}"#
    )
}

/// Of a send whose lines go to one stream.
#[track_caller]
fn report(ran: &Ran, code: i32, expected: Value) {
    assert_eq!((ran.code, ran.lines().len()), (code, 1), "{ran:?}");
    let line = &ran.lines()[0];
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(line[field], *value, "{field}: {line}");
    }
}

/// These fields of each line.
fn fields<const N: usize>(ran: &Ran, fields: [&str; N]) -> Vec<Value> {
    let of_line = |line: &Value| Value::Array(fields.map(|field| line[field].clone()).to_vec());
    ran.lines().iter().map(of_line).collect()
}

#[test]
fn each_call_goes_to_the_stream_of_its_row() {
    let project = project();
    let calls = [
        ("orders", "track", r#","event":"order COMPLETED""#),
        ("tracks", "track", r#","event":"Order Refunded""#),
        ("named_page", "track", r#","event":"page""#),
        // An event's name is no type.
        ("tracks", "track", r#","event":"Identify""#),
        ("tracks", "track", r#","event":"*""#),
        ("identifies", "identify", r#","traits":{"a":1}"#),
        ("pages", "page", r#","name":"Order Completed""#),
        ("rest", "screen", ""),
        ("groups", "group", r#","groupId":"g""#),
        ("rest", "alias", r#","previousId":"p""#),
    ];
    let lines: Vec<String> = calls
        .iter()
        .map(|(stream, call, more)| complete(call, stream, more))
        .collect();
    let ran = project.pipe(&["send", "--json"], lines.join("\n"));
    assert_eq!(ran.code, 0, "{ran:?}");
    // A line of each stream, with what was read in each of them.
    let told = |stream: &str, delivered: u64| json!([stream, "delivered", 10, 0, delivered]);
    assert_eq!(
        fields(
            &ran,
            ["stream", "outcome", "lines", "unmapped", "delivered"]
        ),
        [
            told("groups", 1),
            told("identifies", 1),
            told("named_page", 1),
            told("orders", 1),
            told("pages", 1),
            told("rest", 2),
            told("tracks", 3),
        ]
    );
    for stream in [
        "orders",
        "tracks",
        "named_page",
        "identifies",
        "pages",
        "groups",
        "rest",
    ] {
        let mut expected: Vec<_> = lines
            .iter()
            .filter(|line| line.contains(&format!("\"messageId\":\"{stream}\"")))
            .cloned()
            .collect();
        expected.sort();
        // Not a byte of a complete call is changed.
        assert_eq!(
            raw_lines(&project.path("delivered").join(stream)),
            expected,
            "{stream}"
        );
    }
}

#[test]
fn lines_come_from_a_file_or_from_standard_input() {
    let project = project();
    let call = |id: &str| complete("page", id, "");
    project.write("calls.jsonl", &call("of the file"));
    project.succeed(&["send", "calls.jsonl"]);
    for (arguments, id) in [
        (&["send"] as &[&str], "of the pipe"),
        (&["send", "-"], "of the dash"),
    ] {
        // An end of the line as Windows writes it is none of the call's.
        let ran = project.pipe(arguments, call(id) + "\r\n");
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    assert_eq!(
        raw_lines(&project.path("delivered/pages")),
        ["of the dash", "of the file", "of the pipe"].map(call)
    );
    // Nothing at all is nothing to do.
    report(
        &project.pipe(&["send", "--json"], "\n\n"),
        0,
        json!({"outcome": "unchanged", "lines": 0, "refused": 0}),
    );
}

#[test]
fn what_is_missing_is_filled_in_and_what_is_there_is_kept() {
    let project = project();
    let given = r#"{"zulu":12345678901234567890.10,"type":"page","userId":"u","nested":{"b":[1, {"a":1e400}],"a":"\u00e9\/"},"timestamp":"2020\/01\/02","messageId":"\u0061"#;
    let ran = project.pipe(
        &["send"],
        format!("{given}\"}}\n{{\"type\":\"page\",\"anonymousId\":\"a\"}}"),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines = raw_lines(&project.path("delivered/pages"));
    let kept = lines.iter().find(|line| line.contains("zulu")).unwrap();
    assert!(kept.starts_with(given), "{kept}");
    let filled: Value =
        serde_json::from_str(lines.iter().find(|line| !line.contains("zulu")).unwrap()).unwrap();
    assert_fields(
        &filled,
        &[
            "type",
            "anonymousId",
            "messageId",
            "timestamp",
            "originalTimestamp",
            "receivedAt",
            "sentAt",
        ],
    );
    assert_eq!(filled["messageId"].as_str().unwrap().len(), 36);
    for field in ["timestamp", "originalTimestamp", "receivedAt", "sentAt"] {
        let time = filled[field].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{field}: {time}");
    }
}

#[test]
fn a_line_that_is_no_call_is_named_and_the_others_go_on() {
    let project = project();
    let mut input = Vec::new();
    let secret = "do-not-repeat-me";
    let mut push = |line: &[u8]| {
        input.extend(line);
        input.push(b'\n');
    };
    push(complete("page", "first", "").as_bytes());
    push(secret.as_bytes());
    push(b"");
    push(format!("[\"{secret}\"]").as_bytes());
    push(format!("{{\"userId\":\"{secret}\"}}").as_bytes());
    push(format!("{{\"type\":\"page\",\"name\":\"{secret}\"}}").as_bytes());
    push(format!("{{\"type\":\"{secret}\",\"userId\":\"u\"}}").as_bytes());
    push(b"   ");
    push(&[b"{\"type\":\"page\",\"userId\":\"".as_slice(), b"\xff\"}"].concat());
    push(
        complete(
            "page",
            "long",
            &format!(",\"name\":\"{}\"", "x".repeat(2 << 20)),
        )
        .as_bytes(),
    );
    push(complete("page", "last", "").as_bytes());
    let ran = project.pipe(&["send", "--json"], input);
    report(
        &ran,
        3,
        json!({"outcome": "delivered", "lines": 2, "refused": 7, "delivered": 2, "undelivered": 0}),
    );
    for line in [
        "line 2: not a JSON object: it is not JSON (column 1)",
        "line 4: not a JSON object: it is another kind of value",
        "line 5: `type` is missing",
        "line 6: neither `userId` nor `anonymousId` names a user",
        "line 7: `type` is not one of identify, track, page, screen, group, alias",
        "line 9: not UTF-8",
        "line 10: longer than a record may be (1024000 bytes)",
    ] {
        assert!(ran.stderr.contains(line), "{line}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains(secret), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("line ").count(), 7, "{}", ran.stderr);
    assert_eq!(raw_lines(&project.path("delivered")).len(), 2);
}

#[test]
fn a_call_that_fits_no_row_is_counted_and_no_error() {
    let project = Project::new(SCHEDULE);
    let calls = [complete("page", "a", ""), complete("identify", "b", "")].join("\n");
    let ran = project.pipe(&["send", "--json"], calls.as_str());
    report(
        &ran,
        0,
        json!({"outcome": "delivered", "lines": 2, "unmapped": 1, "delivered": 1, "records": 1}),
    );
    assert!(
        ran.stderr
            .contains("main: 1 lines fit no row of the mapping and were not sent"),
        "{ran:?}"
    );
}

#[test]
fn a_call_goes_to_every_destination_or_to_the_one_that_is_named() {
    let project = Project::empty();
    fs::create_dir(project.path("schedules")).unwrap();
    project.write(
        "audience-sync.toml",
        r#"
destination.one = { directory = "one", mapping = { "*" = ["first", "second"] } }
destination.two = { directory = "two", mapping = { page = "pages" } }
"#,
    );
    let calls = [complete("page", "a", ""), complete("screen", "b", "")].join("\n");
    let ran = project.pipe(&["send", "--json"], calls.as_str());
    assert_eq!(ran.code, 0, "{ran:?}");
    let of = ["destination", "stream", "delivered", "records", "unmapped"];
    assert_eq!(
        fields(&ran, of),
        [
            json!(["one", "first", 2, 2, 0]),
            json!(["one", "second", 2, 2, 0]),
            json!(["two", "pages", 1, 1, 1]),
        ]
    );
    let arrived =
        || ["one/first", "one/second", "two"].map(|folder| raw_lines(&project.path(folder)).len());
    assert_eq!(arrived(), [2, 2, 1]);

    let ran = project.pipe(
        &["send", "--destination", "two", "--json"],
        complete("page", "c", ""),
    );
    assert_eq!((ran.code, ran.lines().len()), (0, 1), "{ran:?}");
    assert_eq!(arrived(), [2, 2, 2]);

    // Where no line fits a row of a destination, its line has no stream.
    let ran = project.pipe(&["send", "--json"], complete("screen", "d", ""));
    assert_eq!(
        fields(&ran, of),
        [
            json!(["one", "first", 1, 1, 0]),
            json!(["one", "second", 1, 1, 0]),
            json!(["two", null, 0, 0, 1]),
        ]
    );
    assert_eq!(arrived(), [3, 3, 2]);
}

/// Several streams of a destination have several lines, and the destination has one mapping.
#[test]
fn unmapped_calls_are_told_of_once_for_each_destination() {
    let project = project();
    let config = CONFIG.replace("\"*\"               = \"rest\"\n", "");
    project.write("audience-sync.toml", &config);
    let calls = ["identify", "page", "screen", "screen"].map(|call| complete(call, call, ""));
    let ran = project.pipe(&["send"], calls.join("\n"));
    let said = "main: 2 lines fit no row of the mapping and were not sent";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{ran:?}");
    assert_eq!(ran.stderr.matches("fit no row").count(), 1, "{ran:?}");
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_written() {
    let project = project().without_snapshot();
    project.write("calls.jsonl", &complete("page", "a", ""));
    for (arguments, message) in [
        (
            &["send", "calls.jsonl", "--destination", "other"] as &[&str],
            "no destination is called \"other\"\n\nhint: there are main",
        ),
        (&["send", "nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (&["send", "."], "cannot read ."),
    ] {
        let ran = project.run(arguments);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(message), "{ran:?}");
    }
    assert_eq!(project.contents().len(), 2);
}

#[test]
fn many_lines_all_arrive_in_their_order() {
    let project = project();
    let lines: Vec<String> = (0..20_000)
        .map(|n| complete("page", &format!("{n:05}"), ""))
        .collect();
    project.write("calls.jsonl", &lines.join("\n"));
    report(
        &project.run(&["send", "calls.jsonl", "--json"]),
        0,
        json!({"lines": 20_000, "delivered": 20_000, "records": 20_000}),
    );
    // Sorted by the number in them.
    assert_eq!(raw_lines(&project.path("delivered/pages")), lines);
}

/// Programs read these fields in this order; they are only ever added to.
#[test]
fn the_fields_of_a_report_are_frozen() {
    let project = project();
    let call = complete("page", "a", "");
    let ran = project.pipe(&["send", "--json"], call.as_str());
    let seconds = &ran.lines()[0]["seconds"];
    assert!(seconds.is_f64());
    assert_eq!(
        ran.stdout,
        format!(
            r#"{{"destination":"main","stream":"pages","outcome":"delivered","lines":1,"refused":0,"unmapped":0,"delivered":1,"undelivered":0,"records":1,"requests":1,"retries":0,"bytes":{},"billed_bytes":5120,"seconds":{seconds}}}"#,
            call.len() + 1
        ) + "\n"
    );
}

/// A project whose destination cannot be written to, with two calls in its journal.
fn blocked() -> (Project, Vec<String>) {
    let project = Project::new(SCHEDULE);
    project.write("audience-sync.toml", CONFIG);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    project.write("delivered", "in the way");
    let calls = vec![complete("page", "a", ""), complete("screen", "b", "")];
    let ran = project.pipe(&["send", "--json"], calls.join("\n"));
    assert_eq!(ran.code, 3, "{ran:?}");
    let of = ["stream", "outcome", "delivered", "undelivered", "records"];
    assert_eq!(
        fields(&ran, of),
        [
            json!(["pages", "undelivered", 0, 1, 0]),
            json!(["rest", "undelivered", 0, 1, 0]),
        ]
    );
    for (line, stream) in ran.lines().iter().zip(["pages", "rest"]) {
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("cannot write below"), "{error}");
        let said = format!("{stream}: 1 lines are not delivered; they stay in the journal");
        assert!(ran.stderr.contains(&said), "{ran:?}");
    }
    (project, calls)
}

#[test]
fn what_is_left_in_the_journal_is_delivered_by_the_next_send() {
    let (project, calls) = blocked();
    // It stays there as long as it has to.
    assert_eq!(project.pipe(&["send"], "").code, 3);
    fs::remove_file(project.path("delivered")).unwrap();
    let ran = project.pipe(&["send", "--json"], "");
    report(&ran, 0, json!({"outcome": "unchanged", "lines": 0}));
    for stream in ["pages", "rest"] {
        let said =
            format!("delivered 1 of 1 lines that an earlier send left in the journal of {stream}");
        assert!(ran.stderr.contains(&said), "{ran:?}");
    }
    assert_eq!(raw_lines(&project.path("delivered")), calls);
    let again = project.pipe(&["send"], "");
    assert!(!again.stderr.contains("earlier send"), "{again:?}");
    assert_eq!(raw_lines(&project.path("delivered")).len(), 2);
}

#[test]
fn what_is_left_in_the_journal_is_delivered_by_a_sync_of_all() {
    let (project, calls) = blocked();
    fs::remove_file(project.path("delivered")).unwrap();
    let lines = project.succeed(&["sync", "--json"]).lines();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (&line["audience"], &line["kind"], &line["delivered"]))
        .collect();
    assert_eq!(
        seen,
        [
            (&json!(null), &json!("resume"), &json!(1)),
            (&json!(null), &json!("resume"), &json!(1)),
            (&json!("members"), &json!("first"), &json!(1)),
        ]
    );
    let arrived = |stream: &str| raw_lines(&project.path("delivered").join(stream));
    assert_eq!([arrived("pages"), arrived("rest")].concat(), calls);
}

/// A stream that is missing or forbidden is no reason to keep the others waiting.
#[test]
fn a_stream_that_takes_nothing_is_in_the_way_of_no_other() {
    let project = project();
    project.write("delivered/pages", "in the way");
    let calls = ["identify", "page", "screen", "track"].map(|call| {
        let event = if call == "track" {
            r#","event":"E""#
        } else {
            ""
        };
        complete(call, call, event)
    });
    let ran = project.pipe(&["send", "--json"], calls.join("\n"));
    assert_eq!(ran.code, 3, "{ran:?}");
    let mut told = [
        json!(["identifies", "delivered", 1, 0]),
        json!(["pages", "undelivered", 0, 1]),
        json!(["rest", "delivered", 1, 0]),
        json!(["tracks", "delivered", 1, 0]),
    ];
    let of = ["stream", "outcome", "delivered", "undelivered"];
    assert_eq!(fields(&ran, of), told);
    let runs = project.succeed(&["snapshot", "runs", "--json"]);
    told.reverse();
    let told = told.map(|line| json!([line[0], line[1]]));
    assert_eq!(
        fields(&runs, ["stream", "outcome"]),
        told,
        "the newest first"
    );
    fs::remove_file(project.path("delivered/pages")).unwrap();
    assert_eq!(project.pipe(&["send"], "").code, 0);
    assert_eq!(raw_lines(&project.path("delivered")), calls);
}

#[test]
fn a_send_beside_a_run_is_refused_or_waits() {
    let project = project();
    project.pipe(&["send"], "");
    let lock = project.path("snapshot.sqlite.lock");
    let held = File::options().write(true).open(lock).unwrap();
    held.lock().unwrap();
    let call = complete("page", "a", "");
    project.write("calls.jsonl", &call);
    let ran = project.run(&["send", "calls.jsonl"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.stderr.contains("another run holds the snapshot"),
        "{ran:?}"
    );
    let mut waiting = project.start(&["send", "calls.jsonl", "--wait"]);
    // Nothing shows from outside that it waits; this is about as long as a whole `send` takes.
    let until = std::time::Instant::now() + Duration::from_millis(500);
    within(Duration::from_secs(20), "it waits", || {
        assert!(waiting.child.try_wait().unwrap().is_none());
        std::time::Instant::now() > until
    });
    drop(held);
    assert_eq!(waiting.end().code, 0);
    assert_eq!(raw_lines(&project.path("delivered")), [call]);
}

#[test]
fn a_slow_pipe_is_delivered_as_it_comes() {
    let project = project();
    let mut sending = project.start(&["send", "--json"]);
    let mut pipe = sending.child.stdin.take().unwrap();
    for count in 1..=2 {
        writeln!(pipe, "{}", complete("page", &count.to_string(), "")).unwrap();
        // It takes about a second; the rest is for a machine that is busy.
        within(Duration::from_secs(3), "the line arrives", || {
            files(&project.path("delivered/pages")).len() == count
        });
    }
    drop(pipe);
    report(
        &sending.end(),
        0,
        json!({"lines": 2, "delivered": 2, "requests": 2}),
    );
}

/// What was read when the signal came is sent; the exit code says that there was more.
#[test]
fn a_signal_ends_a_pipe_with_nothing_lost() {
    let project = project();
    let mut sending = project.start(&["send", "--json"]);
    let mut pipe = sending.child.stdin.take().unwrap();
    writeln!(pipe, "{}", complete("page", "a", "")).unwrap();
    eventually("the line arrives", || {
        files(&project.path("delivered/pages")).len() == 1
    });
    sending.signal("TERM");
    let ran = sending.end();
    report(&ran, 3, json!({"lines": 1, "delivered": 1}));
    assert!(ran.stderr.contains("stopped after line 1"), "{ran:?}");
}
