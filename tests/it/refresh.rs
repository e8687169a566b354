//! `refresh`: a member is sent again when an extra trait has changed since the stream accepted it.

use std::fs;

use serde_json::{Value, json};

use crate::firehose::{mapped, numbers};
use crate::support::endpoint::{Answer, Endpoint};
use crate::support::{CONFIG, Project, Ran};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, email, age FROM members"
traits = ["email", "age"]
"#;

fn refreshed() -> String {
    format!("{SCHEDULE}refresh = true\n")
}

const MEMBERS: &str = "
    CREATE TABLE members (user_id TEXT PRIMARY KEY, email TEXT, age);
    INSERT INTO members VALUES ('a', 'a@x', 1), ('b', NULL, 2), ('c', 'c@x', 3)";

/// A project with three members, none of them delivered.
fn project(schedule: &str) -> Project {
    let project = Project::new(schedule);
    project.shop(MEMBERS);
    project
}

/// What arrived, as `user traits`. It is taken away.
fn arrived(project: &Project) -> Vec<String> {
    let line = |record: &Value| {
        format!(
            "{} {}",
            record["userId"].as_str().unwrap(),
            record["traits"]
        )
    };
    let mut arrived: Vec<String> = project.delivered().iter().map(line).collect();
    arrived.sort();
    // Where nothing arrived there is no folder.
    drop(fs::remove_dir_all(project.path("delivered")));
    arrived
}

/// Runs `sync` and compares what it counted as added, removed and changed, and what arrived.
#[track_caller]
fn check(project: &Project, counted: [u64; 3], expected: &[&str]) {
    let line = project.sync();
    let found = numbers(&line, ["added", "removed", "changed"]);
    assert_eq!(
        (found, arrived(project)),
        (
            counted,
            expected.iter().map(|line| (*line).to_owned()).collect()
        )
    );
}

#[test]
fn a_member_whose_trait_has_changed_is_sent_once_more_as_a_member() {
    let project = project(&refreshed());
    project.sync();
    arrived(&project);
    check(&project, [0, 0, 0], &[]);
    project.shop(
        "UPDATE members SET email = 'new@x' WHERE user_id = 'a'; UPDATE members SET email = '' WHERE user_id = 'b';
         DELETE FROM members WHERE user_id = 'c'; INSERT INTO members VALUES ('d', 'd@x', 4)",
    );
    let all = [
        r#"a {"age":1,"email":"new@x","members":true}"#,
        r#"b {"age":2,"email":"","members":true}"#,
        r#"c {"members":false}"#,
        r#"d {"age":4,"email":"d@x","members":true}"#,
    ];
    check(&project, [1, 1, 2], &all);
    check(&project, [0, 0, 0], &[]);
    // One that entered later, and one that was changed before.
    project.shop("UPDATE members SET age = age + 1 WHERE user_id IN ('a', 'd')");
    check(
        &project,
        [0, 0, 2],
        &[
            r#"a {"age":2,"email":"new@x","members":true}"#,
            r#"d {"age":5,"email":"d@x","members":true}"#,
        ],
    );
    // What was told of a user who has left since does not count.
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    check(&project, [0, 1, 0], &[r#"a {"members":false}"#]);
    project.shop("INSERT INTO members VALUES ('a', 'new@x', 2)");
    check(
        &project,
        [1, 0, 0],
        &[r#"a {"age":2,"email":"new@x","members":true}"#],
    );
    check(&project, [0, 0, 0], &[]);
}

#[test]
fn a_trait_that_changes_is_not_sent_without_refresh() {
    let project = project(SCHEDULE);
    project.sync();
    project.shop("UPDATE members SET email = 'new@x'");
    arrived(&project);
    check(&project, [0, 0, 0], &[]);
}

#[test]
fn a_member_is_one_since_it_entered() {
    let project = project(&refreshed());
    project.sync();
    let since = || {
        let ran = project.succeed(&["snapshot", "show", "members", "--json"]);
        let since = |line: &Value| (line["since"].clone(), line["run"].clone());
        ran.lines().iter().map(since).collect::<Vec<_>>()
    };
    let before = since();
    project.shop("UPDATE members SET email = 'new@x'");
    assert_eq!(project.sync()["changed"], 3);
    assert_eq!(since(), before);
    let history = project
        .succeed(&["snapshot", "user", "a", "--json"])
        .lines();
    let changes = history.iter().filter(|line| line["messageId"].is_string());
    assert_eq!(changes.count(), 2, "{history:?}");
}

/// What was told before is not known, so it is told once.
#[test]
fn switching_it_on_sends_every_member_once_and_the_guard_may_hold_that() {
    let project = project(SCHEDULE);
    project.sync();
    arrived(&project);
    let guard = "guard = { max_changed_percent = 50 }\n";
    project.write("schedules/main.toml", &(refreshed() + guard));
    for arguments in [&["--dry-run"][..], &[], &[]] {
        let ran = project.run(&[&["sync", "--json"], arguments].concat());
        assert_eq!(ran.code, 4, "{ran:?}");
        let line = ran.lines().remove(0);
        assert_eq!(
            numbers(&line, ["changed", "held_changed", "records"]),
            [3, 3, 0]
        );
    }
    assert_eq!(arrived(&project), [""; 0]);
    project.shop("INSERT INTO members VALUES ('d', NULL, NULL)");
    let ran = project.succeed(&["sync", "--approve", "--json"]);
    assert_eq!(numbers(&ran.lines()[0], ["added", "changed"]), [1, 3]);
    assert_eq!(arrived(&project).len(), 4);
    check(&project, [0, 0, 0], &[]);
}

#[test]
fn another_order_of_columns_changes_nothing_and_another_trait_everything() {
    let project = project(&refreshed());
    project.sync();
    arrived(&project);
    let schedule = refreshed();
    project.write(
        "schedules/main.toml",
        &schedule.replace("email, age FROM", "age, email FROM"),
    );
    check(&project, [0, 0, 0], &[]);
    let fewer = schedule.replace(r#"["email", "age"]"#, r#"["email"]"#);
    project.write("schedules/main.toml", &fewer);
    assert_eq!(project.sync()["changed"], 3);
    arrived(&project);
    check(&project, [0, 0, 0], &[]);
}

/// While it is switched off, a resync still tells the traits of the day.
#[test]
fn what_was_told_while_it_was_off_is_known_when_it_is_on_again() {
    let project = project(&refreshed());
    project.sync();
    project.write("schedules/main.toml", SCHEDULE);
    project.shop("UPDATE members SET email = 'other' WHERE user_id <> 'c'");
    project.succeed(&["resync", "members", "--user", "a"]);
    project.shop("UPDATE members SET email = 'a@x' WHERE user_id = 'a'");
    project.sync();
    project.write("schedules/main.toml", &refreshed());
    arrived(&project);
    check(
        &project,
        [0, 0, 2],
        &[
            r#"a {"age":1,"email":"a@x","members":true}"#,
            r#"b {"age":2,"email":"other","members":true}"#,
        ],
    );
}

#[test]
fn a_resync_counts_who_has_changed_and_tells_everyone() {
    let project = project(&refreshed());
    project.sync();
    project.shop("UPDATE members SET email = 'new@x' WHERE user_id = 'a'");
    arrived(&project);
    let ran = project.succeed(&["resync", "members", "--json"]);
    assert_eq!(numbers(&ran.lines()[0], ["changed", "delivered"]), [1, 3]);
    arrived(&project);
    check(&project, [0, 0, 0], &[]);
}

#[test]
fn a_change_query_reports_changed_traits() {
    let changes = "changes = \"SELECT user_id, email, age, 1 AS is_member FROM members WHERE age > unixepoch(:since)\"\n";
    let project = project(&(refreshed() + changes));
    project.sync();
    arrived(&project);
    // Everyone is reported, and one has changed.
    project.shop("UPDATE members SET age = 90000000000");
    assert_eq!(project.sync()["changed"], 3);
    arrived(&project);
    project.shop("UPDATE members SET email = 'new@x' WHERE user_id = 'a'");
    let line = project.sync();
    assert_eq!(line["missed"], Value::Null, "the change query was asked");
    assert_eq!(
        (&line["changed"], arrived(&project)),
        (
            &json!(1),
            vec![r#"a {"age":90000000000,"email":"new@x","members":true}"#.to_owned()]
        )
    );
    check(&project, [0, 0, 0], &[]);
}

#[test]
fn what_one_stream_refuses_is_told_to_it_later_and_to_no_other() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = [\"members\", \"copies\"]");
    project.write("schedules/main.toml", &refreshed());
    project.shop("DROP TABLE members");
    project.shop(MEMBERS);
    project.succeed(&["sync"]);
    project.shop("UPDATE members SET email = 'new@x' WHERE user_id <> 'c'");
    endpoint.take_ledger();
    endpoint.script(|call| {
        let holds = |record: &Vec<u8>| String::from_utf8_lossy(record).contains("\"a\"");
        match call.stream == "copies" && call.records.iter().any(holds) {
            true => Answer::Error(400, "ValidationException", "no".to_owned()),
            false => Answer::Accept,
        }
    });
    assert_eq!(project.run(&["sync"]).code, 3);
    endpoint.accept_everything();
    let accepted = || {
        let ledger = endpoint.take_ledger();
        ["members", "copies"].map(|stream| ledger.accepted_by(stream).len())
    };
    assert_eq!(accepted(), [2, 1]);
    project.succeed(&["sync"]);
    assert_eq!(accepted(), [0, 1]);
    project.succeed(&["sync"]);
    assert_eq!(accepted(), [0, 0]);
}

/// A stream that may have been told something else about one user is told nothing about the others.
#[test]
fn a_user_in_doubt_is_sent_again_and_the_others_are_compared() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    project.write("schedules/main.toml", &refreshed());
    project.shop("DROP TABLE members");
    project.shop(MEMBERS);
    project.succeed(&["sync"]);
    endpoint.script(|call| {
        let holds = |record: &Vec<u8>| String::from_utf8_lossy(record).contains("\"a\"");
        match call.records.iter().any(holds) {
            true => Answer::Error(400, "ValidationException", "no".to_owned()),
            false => Answer::Accept,
        }
    });
    assert_eq!(project.run(&["resync", "members"]).code, 3);
    endpoint.accept_everything();
    project.shop("UPDATE members SET email = 'new@x' WHERE user_id = 'b'");
    let line = project.sync();
    assert_eq!(numbers(&line, ["changed", "delivered"]), [1, 2]);
    assert_eq!(project.sync()["outcome"], "unchanged");
}

/// Few changes lie beside the members, many are made in their place.
#[test]
fn traits_are_known_wherever_members_are_written() {
    let project = project(&refreshed());
    project.shop(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO members SELECT 'user ' || i, 'x', i FROM n",
    );
    assert_eq!(project.sync()["added"], 3_003);
    for changed in [1, 300, 2, 1_500, 3_000, 7] {
        project.shop(&format!("UPDATE members SET email = email || 'x' WHERE user_id LIKE 'user %' AND age <= {changed}"));
        assert_eq!(project.sync()["changed"], changed);
        assert_eq!(project.sync()["changed"], 0);
    }
}

#[test]
fn a_rebuilt_snapshot_knows_the_traits_that_landed() {
    let project = project(&refreshed());
    project.shop("UPDATE members SET email = 'ä \"quoted\", \\ and \u{1}' WHERE user_id = 'b'");
    project.sync();
    project.shop("UPDATE members SET age = 1.50 WHERE user_id = 'a'");
    project.sync();
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    fs::remove_dir_all(project.path("delivered")).unwrap();
    check(&project, [0, 0, 0], &[]);
    project.shop("UPDATE members SET age = 7 WHERE user_id = 'c'");
    check(
        &project,
        [0, 0, 1],
        &[r#"c {"age":7,"email":"c@x","members":true}"#],
    );
}

/// A dry run plans as if what waits had been delivered.
#[test]
fn a_dry_run_knows_the_traits_that_wait() {
    let project = project(&refreshed());
    project.sync();
    let endpoint = "[destination.main]\ndirectory = \"delivered\"";
    assert!(CONFIG.contains(endpoint));
    project.shop("UPDATE members SET email = 'new@x' WHERE user_id = 'a'");
    // A file stands where the folder should be.
    fs::remove_dir_all(project.path("delivered")).unwrap();
    project.write("delivered", "");
    let ran: Ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let lines = project.run(&["sync", "--dry-run", "--json"]).lines();
    let planned = lines.iter().find(|line| line["kind"] == "delta").unwrap();
    assert_eq!(planned["changed"], 0, "{lines:?}");
    project.shop("UPDATE members SET email = 'newer@x' WHERE user_id = 'a'");
    let lines = project.run(&["sync", "--dry-run", "--json"]).lines();
    let planned = lines.iter().find(|line| line["kind"] == "delta").unwrap();
    assert_eq!(planned["changed"], 1, "{lines:?}");
}
