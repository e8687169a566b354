//! What needs an action: it is named, the secret is not, and the journal keeps everything until it is mended.

use serde_json::{Value, json};

use super::{
    ROLE, SECRET, enter, mapped, numbers, project, project_with_role, resumed, sync, undelivered,
    user,
};
use crate::support::endpoint::{Answer, Api, Call, Endpoint};
use crate::support::{Project, Ran};

/// A run that cannot deliver says all of `words`, keeps everything, and the run after the endpoint is healed delivers
/// what was decided then before it decides anything new.
#[track_caller]
fn check(
    endpoint: &Endpoint,
    mut project: Project,
    script: impl FnMut(&Call) -> Answer + Send + 'static,
    words: &[&str],
) {
    enter(&project, 0..600);
    endpoint.script(script);
    project
        .variables
        .insert("RUST_LOG".to_owned(), "trace".to_owned());
    let ran = project.run(&["sync", "--json", "-vv"]);
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains(SECRET), "{text}");
    }
    let report = undelivered(&ran);
    assert_eq!(numbers(&report, ["delivered", "undelivered"]), [0, 600]);
    let error = report["error"].as_str().unwrap();
    for word in words.iter().chain(&["hint: "]) {
        assert!(error.contains(word), "{word}: {error}");
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    }

    // While that cannot be delivered, nothing new is decided.
    project.shop("INSERT INTO members VALUES ('z')");
    let again = undelivered(&sync(&project));
    assert_eq!(
        (&again["kind"], &again["run"]),
        (&"resume".into(), &report["run"])
    );

    let attempted = endpoint.take_ledger();
    assert!(attempted.accepted.is_empty());
    endpoint.accept_everything();
    // Credentials that were missing.
    let key = ("AWS_ACCESS_KEY_ID".to_owned(), "AKIAPROJECT".to_owned());
    project.variables.extend([key]);
    let (resume, plan) = resumed(&project);
    assert_eq!(resume["run"], report["run"]);
    assert_eq!(numbers(&resume, ["delivered", "undelivered"]), [600, 0]);
    assert_eq!(numbers(&plan, ["added", "delivered"]), [1, 1]);

    let ledger = endpoint.ledger();
    let (last, first) = ledger.accepted.split_last().unwrap();
    assert_eq!((first.len(), user(&last.1)), (600, "z".to_owned()));
    let run = report["run"].as_str().unwrap();
    for (_, record) in first {
        assert!(String::from_utf8_lossy(record).contains(run));
    }
    // What was refused is what is delivered now.
    for call in attempted.of(Api::PutRecordBatch) {
        let is_delivered = |record| first.iter().any(|(_, accepted)| accepted == record);
        assert!(call.records.iter().all(is_delivered));
    }
}

/// An error that repeats the secret.
fn telling(status: u16, code: &'static str) -> Answer {
    let message = format!("someone with the external ID {SECRET} is not welcome");
    Answer::Error(status, code, message)
}

#[test]
fn neither_call_of_firehose_is_allowed() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => telling(400, "AccessDeniedException"),
    };
    let words = ["firehose:PutRecordBatch", "`members`", "audience-sync iam"];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

#[test]
fn the_batch_call_is_not_allowed_and_no_other_may_be_used() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "api = \"put_record_batch\"");
    let script = |call: &Call| match call.api {
        Api::PutRecordBatch => Answer::denied(),
        _ => Answer::Accept,
    };
    let words = ["firehose:PutRecordBatch", "`members`", "audience-sync iam"];
    check(&endpoint, project, script, &words);
}

#[test]
fn the_single_call_is_not_allowed_and_no_other_may_be_used() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "api = \"put_record\"");
    enter(&project, 0..40);
    endpoint.script(|call| match call.api {
        Api::PutRecord => Answer::denied(),
        _ => Answer::Accept,
    });
    let report = undelivered(&sync(&project));
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("firehose:PutRecord on"), "{error}");
    let ledger = endpoint.ledger();
    assert!(ledger.calls.iter().all(|call| call.api == Api::PutRecord));
}

#[test]
fn the_stream_is_missing() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => telling(400, "ResourceNotFoundException"),
    };
    let words = [
        "no stream `members`",
        "us-west-2",
        "ResourceNotFound",
        "the stream of its plan",
    ];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

#[test]
fn the_role_may_not_be_assumed() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => telling(403, "AccessDenied"),
        _ => Answer::Accept,
    };
    let words = [ROLE, "AccessDenied", "trust policy", "audience-sync iam"];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

#[test]
fn sts_is_not_enabled_in_the_region() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => telling(403, "RegionDisabledException"),
        _ => Answer::Accept,
    };
    let words = ["RegionDisabled", "enable the region", "`sts_endpoint_url`"];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

#[test]
fn sts_does_not_accept_the_credentials_that_would_assume_the_role() {
    for code in ["ExpiredToken", "InvalidClientTokenId"] {
        let endpoint = Endpoint::start();
        let script = move |call: &Call| match call.api {
            Api::AssumeRole => telling(403, code),
            _ => Answer::Accept,
        };
        let words = [
            "STS does not accept the AWS credentials",
            code,
            "access key",
        ];
        check(&endpoint, project_with_role(&endpoint), script, &words);
    }
}

#[test]
fn there_are_no_aws_credentials() {
    for with_role in [true, false] {
        let endpoint = Endpoint::start();
        let mut project = match with_role {
            true => project_with_role(&endpoint),
            false => project(&endpoint, ""),
        };
        project.variables.remove("AWS_ACCESS_KEY_ID");
        let script = |_: &Call| Answer::Accept;
        let words = ["no AWS credentials", "AWS_ACCESS_KEY_ID"];
        check(&endpoint, project, script, &words);
    }
}

#[test]
fn credentials_that_are_refused_again_and_again_end_the_run() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => telling(400, "UnrecognizedClientException"),
    };
    let words = ["the credentials are not accepted", "UnrecognizedClient"];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

#[test]
fn the_endpoint_cannot_use_the_key_of_the_stream() {
    let endpoint = Endpoint::start();
    let script = |call: &Call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => telling(400, "InvalidKMSResourceException"),
    };
    let words = ["encryption key of stream `members`", "KMS"];
    check(&endpoint, project_with_role(&endpoint), script, &words);
}

/// Not at the first run, and not ever after.
#[test]
fn a_missing_stream_keeps_no_entry_and_no_exit_from_the_others() {
    for missing in ["members", "everything"] {
        let endpoint = Endpoint::start();
        let project = mapped(
            &endpoint,
            "match = \"all\"",
            "identify = \"members\"\n\"*\" = \"everything\"",
        );
        let other = match missing {
            "members" => "everything",
            _ => "members",
        };
        let not_found = Answer::error(400, "ResourceNotFoundException");
        endpoint.script(move |call| match call.stream == missing {
            true => not_found.clone(),
            false => Answer::Accept,
        });
        // The kind, what was delivered and what was not, of a stream.
        let told = |ran: &Ran, stream: &str| -> Vec<Value> {
            let lines = ran.lines().into_iter();
            let lines = lines.filter(|line| line["stream"] == stream);
            lines
                .map(|line| json!([line["kind"], line["delivered"], line["undelivered"]]))
                .collect()
        };
        enter(&project, 0..1201);
        let first = sync(&project);
        assert_eq!(first.code, 3, "{first:?}");
        assert_eq!(told(&first, other), [json!(["first", 1201, 0])]);
        assert_eq!(told(&first, missing), [json!(["first", 0, 1201])]);
        let of_missing = first.lines();
        let of_missing = of_missing.iter().find(|line| line["stream"] == missing);
        let error = of_missing.unwrap()["error"].as_str().unwrap();
        assert!(error.contains(&format!("no stream `{missing}`")), "{error}");

        for round in 0..3 {
            project.shop(&format!(
                "INSERT INTO members VALUES ('new {round}'); DELETE FROM members WHERE user_id = 'u0000{round}'"
            ));
            let later = sync(&project);
            assert_eq!(later.code, 3, "{later:?}");
            assert_eq!(told(&later, other), [json!(["delta", 2, 0])]);
            assert_eq!(told(&later, missing), [json!(["resume", 0, 1201])]);
        }
        assert_eq!(endpoint.take_ledger().accepted_by(other).len(), 1201 + 6);

        endpoint.accept_everything();
        let mended = project.succeed(&["sync", "--json"]);
        assert_eq!(told(&mended, other), [json!(["delta", 0, 0])]);
        assert_eq!(
            told(&mended, missing),
            [json!(["resume", 1201, 0]), json!(["delta", 6, 0])]
        );
        let ledger = endpoint.ledger();
        assert!(ledger.accepted_by(other).is_empty());
        assert_eq!(ledger.accepted_by(missing).len(), 1201 + 6);
    }
}
