//! What Firehose refuses for now is sent again until it is accepted: the same bytes, and nothing else. `faults.rs` has
//! every fault by itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{enter, numbers, project, sorted};
use crate::support::endpoint::{Answer, Api, Endpoint, Ledger};

/// How many records of a stream were accepted more than once; each must be the same bytes as the first time.
fn repeats(ledger: &Ledger, expected: usize) -> usize {
    let records = ledger.accepted_by("members");
    let distinct: BTreeSet<_> = records.iter().collect();
    let users: BTreeSet<_> = records.iter().map(|record| super::user(record)).collect();
    assert_eq!((distinct.len(), users.len()), (expected, expected));
    records.len() - distinct.len()
}

#[test]
fn refused_records_are_sent_again_by_index_and_only_those() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..500);
    let slow_down = "ServiceUnavailableException";
    endpoint.answer([
        Answer::Refuse(vec![0, 250, 251, 499], slow_down),
        Answer::Refuse(vec![1, 2], "InternalFailure"),
        Answer::Refuse(vec![0, 1], slow_down),
        // Not one that AWS documents.
        Answer::Refuse(vec![1], "SomethingNew"),
    ]);
    let report = project.sync();

    let ledger = endpoint.ledger();
    let calls: Vec<_> = ledger.calls.iter().map(|call| &call.records).collect();
    let pick = |from: usize, indices: &[usize]| -> Vec<Vec<u8>> {
        indices
            .iter()
            .map(|index| calls[from][*index].clone())
            .collect()
    };
    assert_eq!(calls.len(), 5);
    assert_eq!(*calls[1], pick(0, &[0, 250, 251, 499]));
    assert_eq!(*calls[2], pick(1, &[1, 2]));
    assert_eq!(*calls[3], *calls[2]);
    assert_eq!(*calls[4], pick(3, &[1]));
    assert_eq!(repeats(&ledger, 500), 0);
    let counted = numbers(&report, ["delivered", "records", "requests", "retries"]);
    assert_eq!(counted, [500, 500, 5, 4]);
    assert_eq!(project.sync()["outcome"], "unchanged");
}

#[test]
fn a_call_whose_answer_is_lost_is_repeated_byte_for_byte() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..1201);
    endpoint.answer([
        Answer::AcceptAndClose,
        Answer::Entries(0),
        Answer::Entries(200),
        Answer::Entries(501),
        Answer::AcceptAndClose,
    ]);
    let report = project.sync();
    let ledger = endpoint.ledger();
    let unanswered: usize = ledger.calls[..5]
        .iter()
        .map(|call| call.records.len())
        .sum();
    assert_eq!(repeats(&ledger, 1201), unanswered);
    let counted = numbers(&report, ["delivered", "records", "requests", "retries"]);
    assert_eq!(counted, [1201, 1201, 8, 5]);
    assert_eq!(project.sync()["outcome"], "unchanged");
}

#[test]
fn a_role_that_may_only_put_single_records_is_served_and_told_so_once() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..1201);
    endpoint.script(|call| match call.api {
        Api::PutRecordBatch => Answer::denied(),
        _ => Answer::Accept,
    });
    let ran = project.succeed(&["sync", "--json"]);
    let warnings = ran.stderr.matches("firehose:PutRecordBatch").count();
    assert_eq!(warnings, 1, "{}", ran.stderr);
    let ledger = endpoint.ledger();
    assert_eq!(repeats(&ledger, 1201), 0);
    assert_eq!(ledger.of(Api::PutRecord).len(), 1201);
    let batches = ledger.of(Api::PutRecordBatch).len();
    assert!((1..=3).contains(&batches), "{batches}");
    let report = &ran.lines()[0];
    let counted = numbers(report, ["delivered", "records", "requests", "retries"]);
    // What the denied calls were about is sent again, but for the one record that shows that it can be.
    let requests = 1201 + batches as u64;
    assert_eq!(counted[..3], [1201, 1201, requests]);
    assert!((1..=batches as u64).contains(&counted[3]), "{counted:?}");
}

#[test]
fn a_role_that_may_only_put_single_records_keeps_the_quota_of_requests() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "quota = { requests_per_second = 20 }");
    enter(&project, 0..50);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&calls);
    endpoint.script(move |call| {
        seen.lock().unwrap().push(Instant::now());
        match call.api {
            Api::PutRecordBatch => Answer::denied(),
            _ => Answer::Accept,
        }
    });
    project.sync();
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 51);
    for first in &*calls {
        let second = calls.iter().filter(|at| {
            let after = at.checked_duration_since(*first);
            after.is_some_and(|after| after < Duration::from_secs(1))
        });
        // The one that was denied showed what may be done; and a machine that is busy bunches some.
        let count = second.count();
        assert!(count <= 25, "{count}");
    }
}

#[test]
fn single_records_that_are_refused_are_sent_again_and_only_those() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "api = \"put_record\"");
    enter(&project, 0..300);
    let mut count = 0;
    endpoint.script(move |_| {
        count += 1;
        match count % 50 {
            0 => Answer::error(503, "ServiceUnavailableException"),
            _ => Answer::Accept,
        }
    });
    let report = project.sync();
    let ledger = endpoint.ledger();
    assert!(ledger.calls.iter().all(|call| call.api == Api::PutRecord));
    assert_eq!(repeats(&ledger, 300), 0);
    let sent: Vec<_> = ledger.calls.iter().map(|call| &*call.records[0]).collect();
    let refused = sorted(sent.iter().copied()).len() - 300;
    assert_eq!(refused, 6);
    assert_eq!(numbers(&report, ["delivered", "requests"]), [300, 306]);
}
