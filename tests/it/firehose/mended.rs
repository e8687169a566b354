//! What is mended while the program runs is used: credentials that were rotated, permissions that were added.

use std::fs;
use std::path::{Path, PathBuf};

use super::{enter, numbers, project, project_with_role};
use crate::support::Project;
use crate::support::endpoint::{Answer, Api, Endpoint};

const EACH_SECOND: &str = r#"
cron = "* * * * * *"

[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

/// As a tool that rotates keys does it: another file takes the place of the first.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

fn rotate(credentials: &Path, key: &str) {
    let text = format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n");
    replace(credentials, &text);
}

/// Makes a project use the key `AKIAOLD` of a credentials file, whose path is returned.
fn with_profile(project: &mut Project) -> PathBuf {
    let credentials = project.path("credentials");
    rotate(&credentials, "AKIAOLD");
    project.variables.remove("AWS_ACCESS_KEY_ID");
    project.variables.remove("AWS_SECRET_ACCESS_KEY");
    let path = credentials.to_str().unwrap().to_owned();
    let name = "AWS_SHARED_CREDENTIALS_FILE".to_owned();
    project.variables.insert(name, path);
    credentials
}

#[test]
fn a_key_that_was_rotated_in_the_profile_is_used_by_the_program_that_runs() {
    for code in ["ExpiredTokenException", "UnrecognizedClientException"] {
        let endpoint = Endpoint::start();
        let mut project = project(&endpoint, "");
        let credentials = with_profile(&mut project);
        project.write("schedules/main.toml", EACH_SECOND);
        enter(&project, 0..3);
        let staying = project.start(&["run"]);
        endpoint.wait_until(|ledger| ledger.accepted.len() == 3);

        endpoint.script(move |call| match call.access_key.as_str() {
            "AKIAOLD" => Answer::error(400, code),
            _ => Answer::Accept,
        });
        let refused = endpoint.ledger().calls.len();
        enter(&project, 3..5);
        endpoint.wait_until(|ledger| ledger.calls.len() > refused);
        rotate(&credentials, "AKIANEW");
        endpoint.wait_until(|ledger| ledger.accepted.len() == 5);
        staying.signal("TERM");
        assert_eq!(staying.end().code, 0);
        let ledger = endpoint.ledger();
        assert_eq!(ledger.calls.last().unwrap().access_key, "AKIANEW");
    }
}

#[test]
fn a_key_that_was_rotated_in_the_profile_is_used_within_the_run() {
    let endpoint = Endpoint::start();
    let mut project = project(&endpoint, "");
    let credentials = with_profile(&mut project);
    enter(&project, 0..2600);
    let mut puts = 0;
    endpoint.script(move |call| {
        puts += 1;
        if puts > 2 && call.access_key == "AKIAOLD" {
            rotate(&credentials, "AKIANEW");
            return Answer::error(400, "ExpiredTokenException");
        }
        Answer::Accept
    });
    assert_eq!(numbers(&project.sync(), ["delivered"]), [2600]);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.accepted.len(), 2600);
    let keys = |key: &str| {
        ledger
            .calls
            .iter()
            .filter(|call| call.access_key == key)
            .count()
    };
    assert!(keys("AKIAOLD") > 2 && keys("AKIANEW") > 0);
}

#[test]
fn a_role_is_assumed_with_the_key_that_was_rotated() {
    let endpoint = Endpoint::start();
    let mut project = project_with_role(&endpoint);
    let credentials = with_profile(&mut project);
    enter(&project, 0..2600);
    let mut puts = 0;
    endpoint.script(move |call| {
        puts += usize::from(call.api != Api::AssumeRole);
        match call.access_key.as_str() {
            "AKIAOLD" if puts > 0 => {
                rotate(&credentials, "AKIANEW");
                Answer::error(403, "InvalidClientTokenId")
            }
            "ASIA1" if puts > 2 => Answer::error(400, "ExpiredTokenException"),
            _ => Answer::Accept,
        }
    });
    assert_eq!(numbers(&project.sync(), ["delivered"]), [2600]);
    let ledger = endpoint.ledger();
    let assumed = ledger.of(Api::AssumeRole);
    let keys: Vec<_> = assumed
        .iter()
        .map(|call| call.access_key.as_str())
        .collect();
    assert_eq!(keys, ["AKIAOLD", "AKIAOLD", "AKIANEW"]);
}

#[test]
fn a_web_identity_token_that_was_renewed_is_used_within_the_run() {
    let endpoint = Endpoint::start();
    let mut project = project(&endpoint, "");
    project.variables.remove("AWS_ACCESS_KEY_ID");
    project.variables.remove("AWS_SECRET_ACCESS_KEY");
    let token = project.path("token");
    replace(&token, "first");
    let variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", super::ROLE),
        ("AWS_ENDPOINT_URL_STS", &endpoint.url()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    project.variables.extend(variables);
    enter(&project, 0..2600);
    let mut puts = 0;
    endpoint.script(move |call| {
        puts += usize::from(call.api != Api::AssumeRole);
        if puts > 2 && call.access_key == "ASIA1" {
            replace(&token, "second");
            return Answer::error(400, "ExpiredTokenException");
        }
        Answer::Accept
    });
    assert_eq!(numbers(&project.sync(), ["delivered"]), [2600]);
    let ledger = endpoint.ledger();
    let assumed = ledger.of(Api::AssumeRole);
    let tokens: Vec<_> = assumed
        .iter()
        .map(|call| &call.parameters["WebIdentityToken"])
        .collect();
    assert_eq!(tokens, ["first", "second"]);
}

#[test]
fn a_permission_that_was_added_is_used_from_the_next_tick() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "");
    project.write("schedules/main.toml", EACH_SECOND);
    enter(&project, 0..3);
    endpoint.script(|call| match call.api {
        Api::PutRecordBatch => Answer::denied(),
        _ => Answer::Accept,
    });
    let staying = project.start(&["run"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 3);
    // Tried again by each tick, and said once.
    enter(&project, 3..6);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 6);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.of(Api::PutRecordBatch).len(), 2);
    assert_eq!(ledger.of(Api::PutRecord).len(), 6);

    endpoint.accept_everything();
    enter(&project, 6..9);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 9);
    staying.signal("TERM");
    let ran = staying.end();
    assert_eq!(ran.code, 0, "{ran:?}");
    let warnings = ran
        .stderr
        .matches("may not firehose:PutRecordBatch")
        .count();
    assert_eq!(warnings, 1, "{ran:?}");
    assert_eq!(endpoint.ledger().of(Api::PutRecord).len(), 6);
    assert_eq!(endpoint.ledger().calls.last().unwrap().records.len(), 3);
}
