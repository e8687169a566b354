//! What one stream has taken and another will not have: in the end both have heard the truth.

use serde_json::Value;

use crate::firehose::mapped;
use crate::support::Project;
use crate::support::endpoint::{Endpoint, Faults};

const SCORE: &str = r#"
[[computed_trait]]
name = "Score"
source = "shop"
query = "SELECT user_id, value FROM members"
guard = false
"#;

fn set(project: &Project, value: Option<i64>) {
    project.shop("DELETE FROM members WHERE user_id = 'poison'");
    if let Some(value) = value {
        project.shop(&format!("INSERT INTO members VALUES ('poison', {value})"));
    }
}

/// The user's value changes, of which only one stream hears; before anything is decided anew, it changes back.
#[track_caller]
fn check(before: Option<i64>, meanwhile: Option<i64>) {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = [\"members\", \"copies\"]");
    project.write("schedules/main.toml", SCORE);
    project.shop("ALTER TABLE members ADD value INTEGER");
    // A stream that never accepted anything may be to blame itself.
    project.shop("INSERT INTO members VALUES ('steady', 0)");
    set(&project, before);
    project.succeed(&["sync"]);

    let poison = Faults::seeded(1).poison("poison", &["ValidationException"]);
    endpoint.play(poison.poison_at("copies"));
    set(&project, meanwhile);
    assert_eq!(project.run(&["sync"]).code, 3);

    endpoint.accept_everything();
    set(&project, before);
    project.succeed(&["sync"]);
    let ledger = endpoint.ledger();
    for stream in ["members", "copies"] {
        let records = ledger.accepted_by(stream);
        let last = records.iter().filter_map(|record| said(record)).max();
        let last = last.map_or(Value::Null, |(_, value)| value.parse().unwrap());
        assert_eq!(
            last,
            Value::from(before),
            "{stream}: {before:?}, {meanwhile:?}"
        );
    }
}

/// When, and what, of the user.
fn said(record: &[u8]) -> Option<(String, String)> {
    let record: Value = serde_json::from_slice(record).unwrap();
    let time = record["timestamp"].as_str().unwrap().to_owned();
    (record["userId"] == "poison").then(|| (time, record["traits"]["score"].to_string()))
}

#[test]
fn who_entered_for_one_stream_only_and_left_is_told_so() {
    check(None, Some(1));
}

#[test]
fn who_left_for_one_stream_only_and_came_back_is_told_so() {
    check(Some(1), None);
}

#[test]
fn a_value_that_changed_for_one_stream_only_and_changed_back_is_told_so() {
    check(Some(1), Some(2));
}
