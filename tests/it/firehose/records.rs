//! What arrives, and in which calls.

use serde_json::Value;

use super::{enter, mapped, numbers, project, sync, undelivered, user};
use crate::support::endpoint::{Answer, Api, Endpoint};

#[test]
fn a_first_sync_goes_in_calls_of_500_records_and_its_report_counts_them() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..1201);
    let report = project.sync();

    let ledger = endpoint.ledger();
    let mut calls: Vec<_> = ledger.calls.iter().map(|call| call.records.len()).collect();
    calls.sort_unstable();
    assert_eq!(calls, [201, 500, 500]);
    assert_eq!(ledger.of(Api::PutRecordBatch).len(), 3);

    let records = ledger.accepted_by("members");
    let bytes: u64 = records.iter().map(|record| record.len() as u64).sum();
    let fields = [
        "members",
        "delivered",
        "records",
        "requests",
        "retries",
        "bytes",
        "billed_bytes",
    ];
    let counted = numbers(&report, fields);
    assert_eq!(counted, [1201, 1201, 1201, 3, 0, bytes, 1201 * 5120]);
    let mut users: Vec<_> = records.iter().map(|record| user(record)).collect();
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 1201);

    assert_eq!(project.sync()["outcome"], "unchanged");
    assert_eq!(endpoint.ledger().calls.len(), 3);
}

/// Consumers parse these bytes: see the contract, section 3.
#[test]
fn a_record_is_one_frozen_line_and_a_newline() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 7..8);
    let report = project.sync();
    let ledger = endpoint.ledger();
    let record = String::from_utf8(ledger.accepted[0].1.clone()).unwrap();
    let value: Value = serde_json::from_str(&record).unwrap();
    let (run, id, time) = (&report["run"], &value["messageId"], &value["timestamp"]);
    assert_eq!(
        record,
        format!(
            "{{\"type\":\"identify\",\"userId\":\"u00007\",\"traits\":{{\"members\":true}},\
             \"context\":{{\"library\":{{\"name\":\"audience-sync\"}},\"personas\":{{\"computation_class\":\"audience\",\
             \"computation_id\":\"members\",\"computation_key\":\"members\",\"computation_run_id\":{run}}}}},\
             \"integrations\":{{\"All\":false,\"Amazon Kinesis Firehose\":true}},\"messageId\":{id},\
             \"timestamp\":{time},\"originalTimestamp\":{time},\"receivedAt\":{time},\"sentAt\":null}}\n"
        )
    );
    assert_eq!(ledger.calls[0].scope, "us-west-2/firehose");
}

#[test]
fn packed_records_hold_whole_lines_and_at_most_500() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "pack = true");
    enter(&project, 0..1201);
    let report = project.sync();

    let ledger = endpoint.ledger();
    let records = ledger.accepted_by("members");
    let [delivered, counted] = numbers(&report, ["delivered", "records"]);
    assert_eq!((delivered, counted), (1201, records.len() as u64));
    assert!(counted < delivered, "{counted}");
    let mut users = Vec::new();
    for record in records {
        assert_eq!(record.last(), Some(&b'\n'));
        let lines: Vec<_> = record[..record.len() - 1].split(|b| *b == b'\n').collect();
        assert!(lines.len() <= 500, "{}", lines.len());
        users.extend(lines.into_iter().map(user));
    }
    users.sort();
    users.dedup();
    assert_eq!(users.len(), 1201);
}

const NOTED: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, note FROM members"
traits = ["note"]
"#;

#[test]
fn of_packed_records_the_refused_one_is_sent_again_as_it_was() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "pack = true");
    project.write("schedules/main.toml", NOTED);
    enter(&project, 0..500);
    project
        .shop("ALTER TABLE members ADD note TEXT; UPDATE members SET note = hex(zeroblob(2500))");
    endpoint.answer([Answer::Refuse(vec![1], "InternalFailure")]);
    let report = project.sync();

    let ledger = endpoint.ledger();
    let first = &ledger.calls[0].records;
    assert!(first.len() > 2, "{}", first.len());
    assert_eq!(ledger.calls[1].records, [first[1].clone()]);
    assert_eq!(ledger.calls.len(), 2);
    let counted = numbers(&report, ["delivered", "records", "retries"]);
    assert_eq!(counted, [500, first.len() as u64, 1]);
}

#[test]
fn calls_of_large_records_stay_within_4_mib() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    project.write("schedules/main.toml", NOTED);
    enter(&project, 0..50);
    project
        .shop("ALTER TABLE members ADD note TEXT; UPDATE members SET note = hex(zeroblob(250000))");
    let report = project.sync();
    assert_eq!(numbers(&report, ["delivered", "retries"]), [50, 0]);
    assert_eq!(endpoint.ledger().accepted.len(), 50);
}

#[test]
fn a_record_over_the_limit_is_dead_and_in_the_way_of_nothing() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    project.write("schedules/main.toml", NOTED);
    enter(&project, 0..3);
    project.shop(
        "ALTER TABLE members ADD note TEXT; UPDATE members SET note = hex(zeroblob(512000)) WHERE user_id = 'u00001'",
    );
    let ran = sync(&project);
    let report = undelivered(&ran);
    assert_eq!(numbers(&report, ["delivered", "undelivered"]), [2, 1]);
    // A dead one is not in the journal, so nobody is told that it comes next.
    assert!(
        !ran.stderr.contains("stay in the journal"),
        "{}",
        ran.stderr
    );
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("over 1024000 bytes"), "{error}");
    let ledger = endpoint.take_ledger();
    let users: Vec<_> = ledger.accepted.iter().map(|(_, data)| user(data)).collect();
    assert_eq!(users, ["u00000", "u00002"]);

    // It is decided anew, and still too large.
    let report = undelivered(&sync(&project));
    assert_eq!(report["kind"], "delta");
    assert_eq!(
        numbers(&report, ["added", "delivered", "undelivered"]),
        [1, 0, 1]
    );
    assert!(endpoint.ledger().calls.is_empty());

    project.shop("UPDATE members SET note = 'short'");
    let report = project.sync();
    assert_eq!(numbers(&report, ["added", "delivered"]), [1, 1]);
    assert_eq!(user(&endpoint.ledger().accepted[0].1), "u00001");
}

#[test]
fn with_match_all_every_stream_is_told_of_every_user() {
    let endpoint = Endpoint::start();
    let project = mapped(
        &endpoint,
        "match = \"all\"",
        "identify = [\"members\", \"copies\"]\n\"*\" = [\"everything\", \"members\"]",
    );
    enter(&project, 0..600);
    let reports = project.succeed(&["sync", "--json"]).lines();
    let ledger = endpoint.ledger();
    let told = |stream: &str| -> Vec<String> {
        let mut users: Vec<_> = ledger
            .accepted_by(stream)
            .iter()
            .map(|record| user(record))
            .collect();
        users.sort();
        users
    };
    let everyone: Vec<String> = (0..600).map(|user| format!("u{user:05}")).collect();
    // `members` stands in two rows, and is one stream.
    let streams = ["members", "copies", "everything"];
    assert_eq!(reports.len(), streams.len());
    for (report, stream) in reports.iter().zip(streams) {
        assert_eq!(report["stream"], stream);
        let counted = numbers(report, ["delivered", "records", "requests"]);
        assert_eq!(counted, [600, 600, 2]);
        assert_eq!(told(stream), everyone);
    }
}
