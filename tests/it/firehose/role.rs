//! As whom records are sent.

use std::time::Duration;

use chrono::TimeDelta;

use super::{ROLE, SECRET, enter, numbers, project, project_with_role, sync, undelivered};
use crate::support::endpoint::{Answer, Api, Endpoint};

const EACH_SECOND: &str = r#"
cron = "* * * * * *"

[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

#[test]
fn a_role_is_assumed_once_and_signs_every_call() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint);
    enter(&project, 0..1201);
    project.sync();

    let ledger = endpoint.ledger();
    let assumed = ledger.of(Api::AssumeRole);
    assert_eq!(assumed.len(), 1);
    let parameters = &assumed[0].parameters;
    assert_eq!(parameters["RoleArn"], ROLE);
    assert_eq!(parameters["ExternalId"], SECRET);
    assert_eq!(parameters["RoleSessionName"], "audience-sync");
    // A role that was assumed by a role may not have more.
    let seconds: u32 = parameters["DurationSeconds"].parse().unwrap();
    assert!((900..=3600).contains(&seconds), "{seconds}");
    assert_eq!(
        (assumed[0].access_key.as_str(), assumed[0].scope.as_str()),
        ("AKIAPROJECT", "us-west-2/sts")
    );

    let puts = ledger.of(Api::PutRecordBatch);
    assert_eq!(puts.len(), 3);
    for put in puts {
        assert_eq!(put.access_key, "ASIA1");
        assert_eq!(put.session_token.as_deref(), Some("token1"));
    }
}

#[test]
fn without_a_role_nothing_is_asked_of_sts() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "region = \"eu-central-1\"");
    enter(&project, 0..3);
    project.sync();
    let ledger = endpoint.ledger();
    assert_eq!(ledger.calls.len(), 1);
    let put = &ledger.calls[0];
    assert_eq!(put.access_key, "AKIAPROJECT");
    assert_eq!(put.session_token, None);
    assert_eq!(put.scope, "eu-central-1/firehose");
}

#[test]
fn credentials_that_expire_are_renewed_and_the_same_records_sent_again() {
    for code in ["ExpiredTokenException", "UnrecognizedClientException"] {
        let endpoint = Endpoint::start();
        let project = project_with_role(&endpoint);
        enter(&project, 0..2600);
        let mut puts = 0;
        endpoint.script(move |call| {
            puts += usize::from(call.api != Api::AssumeRole);
            match call.access_key.as_str() {
                "ASIA1" if puts > 2 => Answer::error(400, code),
                _ => Answer::Accept,
            }
        });
        let report = project.sync();

        let ledger = endpoint.ledger();
        assert_eq!(ledger.of(Api::AssumeRole).len(), 2);
        let (before, after): (Vec<_>, Vec<_>) = ledger
            .of(Api::PutRecordBatch)
            .into_iter()
            .partition(|put| put.access_key == "ASIA1");
        let refused = &before[2..];
        assert!(!refused.is_empty());
        for put in refused {
            assert!(after.iter().any(|again| again.records == put.records));
        }
        assert!(after.iter().all(|put| put.access_key == "ASIA2"));
        // An error accepts nothing, so nothing may arrive twice.
        assert_eq!(ledger.accepted.len(), 2600);
        let expected = [2600, 6 + refused.len() as u64, refused.len() as u64];
        assert_eq!(
            numbers(&report, ["delivered", "requests", "retries"]),
            expected
        );
    }
}

#[test]
fn sts_that_is_out_of_order_is_asked_again() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint);
    enter(&project, 0..3);
    let mut answers = [
        Answer::error(503, "ServiceUnavailable"),
        Answer::error(400, "Throttling"),
        Answer::error(500, "InternalFailure"),
    ]
    .into_iter();
    endpoint.script(move |call| match call.api {
        Api::AssumeRole => answers.next().unwrap_or(Answer::Accept),
        _ => Answer::Accept,
    });
    let report = project.sync();
    // Each try asks, and none is counted that did not.
    assert_eq!(
        numbers(&report, ["delivered", "requests", "retries"]),
        [3, 1, 3]
    );
    assert_eq!(endpoint.ledger().of(Api::AssumeRole).len(), 4);
}

#[test]
fn calls_that_wait_for_sts_together_share_its_answer() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint);
    enter(&project, 0..8_000);
    let mut failures = 3;
    endpoint.script(move |call| match call.api {
        Api::AssumeRole if failures > 0 => {
            failures -= 1;
            let answer = Answer::error(503, "ServiceUnavailable");
            Answer::Late(Duration::from_millis(300), Box::new(answer))
        }
        _ => Answer::Accept,
    });
    let report = project.sync();
    let [delivered, requests, retries] = numbers(&report, ["delivered", "requests", "retries"]);
    assert_eq!((delivered, requests), (8_000, 16));
    assert!(retries > 3, "nothing waited together");
    assert_eq!(endpoint.ledger().of(Api::AssumeRole).len(), 4);
}

#[test]
fn a_service_asks_again_in_each_run_after_new_credentials_were_refused() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint);
    project.write("schedules/main.toml", EACH_SECOND);
    enter(&project, 0..3);
    endpoint.script(move |call| match call.access_key.as_str() {
        "ASIA1" | "ASIA2" | "ASIA3" => Answer::error(400, "UnrecognizedClientException"),
        _ => Answer::Accept,
    });
    let staying = project.start(&["run"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 3);
    staying.signal("TERM");
    let ran = staying.end();
    assert!(ran.stderr.contains("nor are new ones"), "{ran:?}");
    // Two in the first run, and one in each after it.
    let ledger = endpoint.ledger();
    assert_eq!(ledger.of(Api::AssumeRole).len(), 4);
    assert_eq!(ledger.of(Api::PutRecordBatch).len(), 4);
}

#[test]
fn credentials_may_expire_more_than_once_in_a_run() {
    let endpoint = Endpoint::start();
    let project = project_with_role(&endpoint);
    enter(&project, 0..22_000);
    let mut puts = std::collections::BTreeMap::new();
    endpoint.script(move |call| {
        if call.api == Api::AssumeRole {
            return Answer::Accept;
        }
        let put = puts.entry(call.access_key.clone()).or_insert(0);
        *put += 1;
        // More than are in flight together: some were accepted by then.
        match call.access_key.as_str() {
            "ASIA1" | "ASIA2" if *put > 20 => Answer::error(400, "ExpiredTokenException"),
            _ => Answer::Accept,
        }
    });
    assert_eq!(numbers(&project.sync(), ["delivered"]), [22_000]);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.of(Api::AssumeRole).len(), 3);
    assert_eq!(ledger.accepted.len(), 22_000);
}

#[test]
fn a_clock_that_is_off_is_corrected() {
    for minutes in [-20, 20] {
        let endpoint = Endpoint::start();
        endpoint.be_ahead(TimeDelta::minutes(minutes));
        let project = project_with_role(&endpoint);
        enter(&project, 0..3);
        let report = project.sync();
        assert_eq!(numbers(&report, ["delivered", "retries"]), [3, 1]);
    }
}

/// By a clock that is ahead, credentials seem to be good for minutes, or to have expired when they come.
#[test]
fn credentials_that_do_not_last_are_not_asked_for_with_every_call() {
    for minutes in [-56, -58, -120] {
        let endpoint = Endpoint::start();
        endpoint.be_ahead(TimeDelta::minutes(minutes));
        let project = project_with_role(&endpoint);
        enter(&project, 0..2_600);
        assert_eq!(numbers(&project.sync(), ["delivered"]), [2_600]);
        // Twice until its clock is known, and once for the calls that were signed by the wrong one.
        assert_eq!(endpoint.ledger().of(Api::AssumeRole).len(), 3);
    }
}

#[test]
fn credentials_that_do_not_last_and_are_refused_end_the_run() {
    let endpoint = Endpoint::start();
    endpoint.be_ahead(TimeDelta::minutes(-58));
    let project = project_with_role(&endpoint);
    enter(&project, 0..2_600);
    let mut puts = 0;
    endpoint.script(move |call| {
        puts += usize::from(call.api != Api::AssumeRole);
        match call.api {
            Api::AssumeRole => Answer::Accept,
            _ if puts < 500 => Answer::error(400, "ExpiredTokenException"),
            _ => Answer::Accept,
        }
    });
    let report = undelivered(&sync(&project));
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("nor are new ones"), "{error}");
    let assumed = endpoint.ledger().of(Api::AssumeRole).len();
    assert!(assumed <= 4, "{assumed}");
}
