//! What Firehose will not have stands alone, is kept with its reason, and is in the way of nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::firehose::{enter, mapped, numbers, project, user};
use crate::support::endpoint::{Answer, Api, Call, Endpoint};
use crate::support::{Project, Ran, assert_fields};

const REASON: &str = "1 validation error detected";

/// Refuses calls with a record that holds a word, and tells so as Firehose does.
fn will_not_have(word: &'static str, code: &'static str) -> impl FnMut(&Call) -> Answer + Send {
    move |call| match call.records.iter().any(|record| holds(record, word)) {
        true => Answer::Error(400, code, REASON.to_owned()),
        false => Answer::Accept,
    }
}

fn holds(record: &[u8], word: &str) -> bool {
    String::from_utf8_lossy(record).contains(word)
}

fn letters(project: &Project) -> Vec<Value> {
    project.succeed(&["snapshot", "dead", "--json"]).lines()
}

/// A run in which so many are delivered and so many are dead, with nothing left in the journal.
#[track_caller]
fn check(ran: &Ran, delivered: u64, dead: u64) -> Value {
    assert_eq!(ran.code, 3, "{ran:?}");
    let lines = ran.lines();
    let mut failed = lines
        .into_iter()
        .filter(|line| line["outcome"] == "undelivered");
    let report = failed.next().unwrap();
    assert_eq!(failed.next(), None, "{ran:?}");
    let counted = numbers(&report, ["delivered", "undelivered"]);
    assert_eq!(counted, [delivered, dead], "{ran:?}");
    assert!(
        ran.stderr.contains("audience-sync snapshot dead"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("stay in the journal"), "{ran:?}");
    assert!(!ran.stderr.contains(REASON), "{ran:?}");
    report
}

#[test]
fn one_bad_record_is_found_by_halves_and_the_others_are_delivered_once() {
    for settings in ["", "pack = true", "api = \"put_record\""] {
        let endpoint = Endpoint::start();
        let project = project(&endpoint, settings);
        enter(&project, 0..700);
        project.shop("INSERT INTO members VALUES ('u00300-poison')");
        endpoint.script(will_not_have("poison", "ValidationException"));
        let report = check(&project.run(&["sync", "--json"]), 700, 1);
        let error = report["error"].as_str().unwrap();
        let words = "stream `members` will not accept 1 (ValidationException)";
        assert!(error.contains(words), "{error}");

        let ledger = endpoint.take_ledger();
        let lines = ledger.accepted_by("members").concat();
        let users: Vec<String> = lines
            .split_inclusive(|byte| *byte == b'\n')
            .map(user)
            .collect();
        let distinct: BTreeSet<&String> = users.iter().collect();
        assert_eq!((users.len(), distinct.len()), (700, 700), "{settings}");
        // A search by halves, and no search one by one;
        let refused = ledger
            .calls
            .iter()
            .filter(|call| call.records.iter().any(|record| holds(record, "poison")));
        // and four more tries of the one.
        assert!(refused.count() <= 16, "{settings}");
        assert_eq!(letters(&project).len(), 1);
    }
}

#[test]
fn a_dead_letter_says_what_it_is_and_why() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..3);
    project.shop("INSERT INTO members VALUES ('poison')");
    endpoint.script(will_not_have("poison", "InvalidArgumentException"));
    let report = check(&project.run(&["sync", "--json"]), 3, 1);
    let letters = letters(&project);
    let [letter] = letters.as_slice() else {
        panic!("{letters:?}");
    };
    assert_fields(
        letter,
        &[
            "audience",
            "id",
            "destination",
            "stream",
            "kind",
            "user_id",
            "value",
            "run",
            "decided_at",
            "messageId",
            "died_at",
            "reason",
            "retryable",
        ],
    );
    for (field, expected) in [
        ("audience", "members".into()),
        ("stream", "members".into()),
        ("kind", "audience".into()),
        ("user_id", "poison".into()),
        ("value", true.into()),
        ("run", report["run"].clone()),
        (
            "reason",
            format!("InvalidArgumentException: {REASON}").into(),
        ),
        ("retryable", true.into()),
    ] {
        assert_eq!(letter[field], expected, "{field}");
    }
    let text = project.succeed(&["snapshot", "dead"]);
    assert!(
        text.stdout.contains("poison") && text.stdout.contains(REASON),
        "{text:?}"
    );
    assert!(text.stderr.contains("snapshot dead --retry"), "{text:?}");
    let history = project
        .succeed(&["snapshot", "user", "poison", "--json"])
        .lines();
    assert_eq!(history[0]["state"], "dead");
}

#[test]
fn the_next_run_decides_the_dead_anew_and_their_letters_are_gone() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..3);
    project.shop("INSERT INTO members VALUES ('poison')");
    endpoint.script(will_not_have("poison", "SerializationException"));
    check(&project.run(&["sync", "--json"]), 3, 1);
    // Not repeated while it is still refused: one letter, of the latest run.
    let report = check(&project.run(&["sync", "--json"]), 0, 1);
    let found = letters(&project);
    assert_eq!((found.len(), &found[0]["run"]), (1, &report["run"]));
    endpoint.accept_everything();
    let report = project.sync();
    assert_eq!(numbers(&report, ["added", "delivered"]), [1, 1]);
    assert_eq!(letters(&project).len(), 0);
    assert_eq!(project.sync()["outcome"], "unchanged");
}

#[test]
fn a_dead_letter_is_sent_again_byte_by_byte_when_asked_to() {
    let endpoint = Endpoint::start();
    let project = mapped(
        &endpoint,
        "match = \"all\"",
        "identify = \"members\"\n\"*\" = \"everything\"",
    );
    endpoint.script(|call| {
        let refused = will_not_have("poison", "ValidationException")(call);
        if call.stream == "everything" {
            Answer::Accept
        } else {
            refused
        }
    });
    enter(&project, 0..3);
    project.shop("INSERT INTO members VALUES ('poison')");
    check(&project.run(&["sync", "--json"]), 3, 1);
    let letter = letters(&project).remove(0);
    // It is still refused.
    let ran = project.run(&["snapshot", "dead", "--retry", "--json"]);
    check(&ran, 0, 1);
    let first = endpoint.take_ledger();
    endpoint.accept_everything();
    let ran = project.succeed(&["snapshot", "dead", "--retry", "--json"]);
    let report = ran.lines().remove(0);
    assert_eq!(
        (&report["kind"], &report["run"]),
        (&"resume".into(), &letter["run"])
    );
    assert_eq!(
        numbers(&report, ["delivered", "undelivered", "records"]),
        [1, 0, 1]
    );
    // Only the stream that refused it, and the bytes that it refused.
    let ledger = endpoint.ledger();
    assert_eq!(ledger.accepted_by("everything").len(), 0);
    let accepted = ledger.accepted_by("members");
    assert!(first.calls.iter().any(|call| call.records == accepted));
    assert_eq!(letters(&project).len(), 0);
    for report in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(report["outcome"], "unchanged");
    }
    assert_eq!(project.succeed(&["snapshot", "dead", "--retry"]).stdout, "");
}

#[test]
fn a_call_of_send_stays_a_dead_letter_until_it_is_sent_again() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "\"*\" = \"calls\"\nidentify = \"members\"");
    let line =
        |id: &str| format!(r#"{{"type":"track","event":"E","userId":"u","messageId":"{id}"}}"#);
    endpoint.script(will_not_have("poison", "ValidationException"));
    let input = ["one", "poison", "two"].map(line).join("\n");
    let ran = project.pipe(&["send", "--json"], input);
    check(&ran, 2, 1);
    let letter = letters(&project).remove(0);
    assert_eq!(
        (&letter["kind"], &letter["messageId"]),
        (&"call".into(), &"poison".into())
    );
    // A later line is delivered, and a sync decides nothing about it.
    let ran = project.pipe(&["send", "--json"], line("three"));
    assert_eq!(
        (ran.code, &ran.lines()[0]["delivered"]),
        (0, &1.into()),
        "{ran:?}"
    );
    project.succeed(&["sync"]);
    assert_eq!(letters(&project).len(), 1);
    endpoint.accept_everything();
    endpoint.take_ledger();
    project.succeed(&["snapshot", "dead", "--retry"]);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.accepted.len(), 1);
    assert!(holds(&ledger.accepted[0].1, "poison"));
    assert_eq!(letters(&project).len(), 0);
}

#[test]
fn a_stream_that_refuses_everything_is_to_blame_itself() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..2_000);
    endpoint.script(will_not_have("userId", "InvalidArgumentException"));
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let words = "stream `members` refuses every record that it is given (InvalidArgumentException)";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    let (ledger, letters) = (endpoint.take_ledger(), letters(&project).len());
    assert_eq!(letters, 0);
    // Halves down to each line that was under way, and few tries of lines alone.
    assert!(ledger.calls.len() < 4_500, "{}", ledger.calls.len());
    endpoint.accept_everything();
    project.succeed(&["sync"]);
    let accepted = endpoint.ledger().accepted_by("members").len();
    assert_eq!(accepted, 2_000);
}

#[test]
fn what_is_too_long_is_listed_and_not_sent_again() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    project.write(
        "schedules/main.toml",
        "[[audience]]\nname = \"Members\"\nsource = \"shop\"\nquery = \"SELECT user_id, printf('%.*c', 1100000, 'x') AS t FROM members\"\ntraits = [\"t\"]\n",
    );
    enter(&project, 0..1);
    assert_eq!(project.run(&["sync"]).code, 3);
    let letter = letters(&project).remove(0);
    assert_eq!(
        (&letter["stream"], &letter["retryable"]),
        (&"members".into(), &false.into())
    );
    let ran = project.succeed(&["snapshot", "dead", "--retry"]);
    assert!(
        ran.stderr
            .contains("no dead letters that can be sent again"),
        "{ran:?}"
    );
    assert!(endpoint.ledger().of(Api::PutRecordBatch).is_empty());
}

/// Whoever asked for a resync has not got it yet.
#[test]
fn a_resync_that_was_refused_is_made_up_for_by_the_next_run() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..2);
    project.shop("INSERT INTO members VALUES ('poison')");
    project.sync();
    endpoint.script(will_not_have("poison", "ValidationException"));
    let ran = project.run(&["resync", "members", "--json"]);
    check(&ran, 2, 1);
    endpoint.accept_everything();
    endpoint.take_ledger();
    let report = project.sync();
    assert_eq!(
        numbers(&report, ["added", "changed", "delivered"]),
        [0, 0, 1]
    );
    assert!(holds(&endpoint.ledger().accepted[0].1, "poison"));
    assert_eq!(project.sync()["outcome"], "unchanged");
}

const BOTH: &str = "\"*\" = [\"calls\", \"copies\"]\nidentify = [\"members\", \"copies\"]";

#[test]
fn a_line_that_one_stream_refuses_is_dead_there_whatever_another_one_does() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", BOTH);
    endpoint.script(|call| match call.stream == "copies" {
        true => Answer::error(400, "ResourceNotFoundException"),
        false => will_not_have("poison", "ValidationException")(call),
    });
    // A stream that has accepted nothing at all may be to blame itself.
    let line =
        |user: &str| format!("{{\"type\":\"track\",\"event\":\"E\",\"userId\":\"{user}\"}}\n");
    let lines = line("poison") + &line("u");
    assert_eq!(project.pipe(&["send"], lines).code, 3);
    let found = letters(&project);
    assert_eq!((found.len(), &found[0]["stream"]), (1, &"calls".into()));
    endpoint.script(will_not_have_at("calls"));
    project.succeed(&["sync"]);
    assert_eq!(endpoint.take_ledger().accepted_by("copies").len(), 2);
    endpoint.accept_everything();
    project.succeed(&["snapshot", "dead", "--retry"]);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.accepted_by("calls").len(), 1);
    assert_eq!(ledger.accepted_by("copies").len(), 0);
}

fn will_not_have_at(stream: &'static str) -> impl FnMut(&Call) -> Answer + Send {
    move |call| match call.stream == stream {
        true => Answer::Error(400, "ValidationException", REASON.to_owned()),
        false => Answer::Accept,
    }
}

#[test]
fn a_stream_that_refuses_every_call_of_send_makes_no_dead_letters() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "\"*\" = \"calls\"\nidentify = \"members\"");
    endpoint.script(will_not_have_at("calls"));
    let line = |n: usize| format!("{{\"type\":\"page\",\"userId\":\"u{n}\"}}\n");
    let input: String = (0..2_000).map(line).collect();
    let ran = project.pipe(&["send"], input);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(letters(&project).len(), 0);
    endpoint.accept_everything();
    project.succeed(&["sync"]);
    assert_eq!(endpoint.ledger().accepted_by("calls").len(), 2_000);
}

#[test]
fn a_stream_that_is_missing_keeps_no_call_from_the_others() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", BOTH);
    endpoint.script(|call| match call.stream == "copies" {
        true => Answer::error(400, "ResourceNotFoundException"),
        false => Answer::Accept,
    });
    let line = |n: usize| format!("{{\"type\":\"page\",\"userId\":\"u{n}\"}}\n");
    let input: String = (0..20_000).map(line).collect();
    assert_eq!(project.pipe(&["send"], input).code, 3);
    assert_eq!(endpoint.take_ledger().accepted_by("calls").len(), 20_000);
    endpoint.accept_everything();
    project.succeed(&["sync"]);
    assert_eq!(endpoint.ledger().accepted_by("copies").len(), 20_000);
}

/// AWS documents two codes of a refused record. Another one may be for ever.
#[test]
fn a_record_that_is_refused_for_no_known_reason_is_in_nobodys_way() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    enter(&project, 0..600);
    project.shop("INSERT INTO members VALUES ('poison')");
    endpoint.script(|call| {
        let records = call.records.iter().enumerate();
        let refused = records.filter(|(_, record)| holds(record, "poison"));
        Answer::Refuse(refused.map(|(index, _)| index).collect(), "InvalidRecord")
    });
    let started = std::time::Instant::now();
    check(&project.run(&["sync", "--json"]), 600, 1);
    assert!(started.elapsed().as_secs() < 60);
    let letter = letters(&project).remove(0);
    assert_eq!(letter["reason"], "InvalidRecord: Slow down.");
}
