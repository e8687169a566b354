//! Runs that are cut short: by a signal, by a crash, and by the time that they may take.

use std::collections::BTreeSet;
use std::process::{Child, Command};

use super::{MEMBERS, enter, numbers, project, resumed, sorted, undelivered, user};
use crate::support::ended;
use crate::support::endpoint::{Answer, Endpoint};

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn what_was_accepted_before_a_signal_is_remembered_and_the_rest_comes_next() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..700);
    let stubborn = ["u00003", "u00499", "u00650"];
    endpoint.script(move |call| {
        let users = call.records.iter().map(|record| user(record));
        let refused = users
            .enumerate()
            .filter(|(_, user)| stubborn.contains(&user.as_str()));
        let refused = refused.map(|(index, _)| index).collect();
        Answer::Refuse(refused, "ServiceUnavailableException")
    });
    let child = project.command(&["sync", "--json"]).spawn().unwrap();
    // Two calls, and each again at least once: so the first answers have been seen.
    endpoint.wait_until(|ledger| {
        let again = ledger.calls.iter().filter(|call| call.records.len() < 10);
        let again: BTreeSet<_> = again.map(|call| call.records.len()).collect();
        again.contains(&1) && again.contains(&2)
    });
    signal(&child, "-TERM");
    let report = undelivered(&ended(child));
    assert_eq!(numbers(&report, ["delivered", "undelivered"]), [697, 3]);
    let first = endpoint.take_ledger();
    assert_eq!(first.accepted.len(), 697);

    endpoint.accept_everything();
    let (resume, plan) = resumed(&project);
    assert_eq!(numbers(&resume, ["delivered", "records"]), [3, 3]);
    // The snapshot has all of them, or they would enter again.
    assert_eq!(plan["outcome"], "unchanged");
    let ledger = endpoint.ledger();
    let records = ledger.accepted_by("members");
    let users: BTreeSet<_> = records.iter().map(|record| user(record)).collect();
    assert_eq!(users, stubborn.map(str::to_owned).into());
    for record in records {
        let refused = first.calls.iter().flat_map(|call| &call.records);
        assert!(refused.into_iter().any(|before| before == record));
    }
}

#[test]
fn a_crash_before_the_answer_repeats_exactly_what_was_in_flight() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..600);
    project.sync();
    enter(&project, 600..900);
    endpoint.take_ledger();
    endpoint.answer([Answer::AcceptAndHang]);
    let child = project.command(&["sync", "--json"]).spawn().unwrap();
    endpoint.wait_until(|ledger| ledger.accepted.len() == 300);
    signal(&child, "-KILL");
    assert_eq!(ended(child).code, -1);
    let before = endpoint.take_ledger();

    let (resume, plan) = resumed(&project);
    assert_eq!(numbers(&resume, ["delivered", "requests"]), [300, 1]);
    assert_eq!(plan["outcome"], "unchanged");
    assert_eq!(endpoint.ledger().accepted, before.accepted);
}

#[test]
fn a_crash_in_a_large_run_loses_nothing_and_changes_nothing() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..12_000);
    let mut calls = 0;
    endpoint.script(move |_| {
        calls += 1;
        match calls {
            ..=10 => Answer::Accept,
            _ => Answer::AcceptAndHang,
        }
    });
    let child = project.command(&["sync", "--json"]).spawn().unwrap();
    endpoint.wait_until(|ledger| ledger.calls.len() > 20);
    signal(&child, "-KILL");
    drop(ended(child));
    let before = endpoint.take_ledger();
    endpoint.accept_everything();
    resumed(&project);

    let after = endpoint.ledger();
    let both = before.accepted.iter().chain(&after.accepted);
    let all: BTreeSet<_> = both.map(|(_, record)| record).collect();
    let users: BTreeSet<_> = all.iter().map(|record| user(record)).collect();
    assert_eq!((all.len(), users.len()), (12_000, 12_000));
    // What was never answered was never remembered.
    let again = sorted(after.accepted_by("members"));
    for call in &before.calls[10..] {
        let is_repeated = |record: &Vec<u8>| again.binary_search(record).is_ok();
        assert!(call.records.iter().all(is_repeated));
    }
}

#[test]
fn deliveries_end_when_their_time_is_over_and_the_next_run_goes_on() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    let config = std::fs::read_to_string(project.path("audience-sync.toml")).unwrap();
    project.write(
        "audience-sync.toml",
        &format!("deliver_for = \"1s\"\n{config}"),
    );
    let another = MEMBERS.replace("\"Members\"", "\"Others\"");
    project.write("schedules/main.toml", &format!("{MEMBERS}{another}"));
    enter(&project, 0..600);
    // One record goes, so that there is always progress.
    endpoint.script(|call| {
        let refused = (1..call.records.len()).collect();
        Answer::Refuse(refused, "InternalFailure")
    });
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr
            .contains("the time for deliveries is over (`deliver_for`)"),
        "{ran:?}"
    );
    let reports = ran.lines();
    let [first, second] = reports.as_slice() else {
        panic!("{reports:?}");
    };
    let mut delivered = 0;
    for report in [first, second] {
        let [more, undelivered] = numbers(report, ["delivered", "undelivered"]);
        // The second is over for both.
        assert!(more > 0 && undelivered > 0);
        assert_eq!(more + undelivered, 600);
        delivered += more;
    }

    let accepted = endpoint.take_ledger().accepted.len() as u64;
    assert_eq!(accepted, delivered);
    endpoint.accept_everything();
    project.succeed(&["sync"]);
    assert_eq!(endpoint.ledger().accepted.len() as u64, 1200 - delivered);
}
