//! An audience that says what has changed: a sync costs that, and reading everyone now and then repairs what it forgot.

use serde_json::json;

use crate::firehose;
use crate::support::endpoint::{Answer, Endpoint};
use crate::support::{Project, Ran, truth};

const CHANGES: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members WHERE is_member"
changes = "SELECT user_id, is_member FROM members WHERE changed_at > :since"
"#;

const MEMBERS: &str = "
    CREATE TABLE members (user_id TEXT PRIMARY KEY, is_member INTEGER, changed_at TEXT DEFAULT current_timestamp);
    CREATE INDEX by_change ON members (changed_at);
    WITH RECURSIVE n (i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 499)
    INSERT INTO members (user_id, is_member) SELECT 'user ' || i, 1 FROM n;";

fn project(schedule: &str) -> Project {
    let project = Project::new(schedule);
    project.shop(MEMBERS);
    project
}

fn counts(ran: &Ran) -> serde_json::Value {
    let line = &ran.lines()[0];
    json!([
        line["kind"],
        line["members"],
        line["added"],
        line["removed"],
        line["missed"]
    ])
}

#[track_caller]
fn truth_is_downstream(project: &Project) {
    let downstream: Vec<_> = truth(&project.delivered())
        .into_iter()
        .filter(|(_, value)| *value == json!(true))
        .map(|((user, _), _)| user)
        .collect();
    let shop = project.shop_connection();
    let mut members = shop
        .prepare("SELECT user_id FROM members WHERE is_member ORDER BY 1")
        .unwrap();
    let members: Vec<String> = members
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(downstream, members);
}

#[test]
fn what_changes_is_followed_and_what_was_not_told_is_found_when_everyone_is_read() {
    let project = project(&format!("{CHANGES}reconcile = \"6h\"\n"));
    let json = ["sync", "--json"];
    assert_eq!(
        counts(&project.succeed(&json)),
        json!(["first", 400, 400, 0, null])
    );
    project.shop(
        "INSERT INTO members (user_id, is_member) VALUES ('new', 1);
         UPDATE members SET is_member = 0, changed_at = current_timestamp WHERE user_id = 'user 200'",
    );
    assert_eq!(
        counts(&project.succeed(&json)),
        json!(["delta", 400, 1, 1, null])
    );
    truth_is_downstream(&project);

    // No trace is left of a row that is gone.
    project.shop("DELETE FROM members WHERE user_id = 'user 300'");
    assert_eq!(
        counts(&project.succeed(&json)),
        json!(["delta", 400, 0, 0, null])
    );
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE feed SET reconciled_at = reconciled_at - 6 * 3600000")
        .unwrap();
    let ran = project.succeed(&json);
    assert_eq!(counts(&ran), json!(["delta", 399, 0, 1, 1]));
    assert!(
        ran.stderr.contains(
            "\"Members\": the change query did not report 1 changes; reading everyone found them. hint: "
        ),
        "{ran:?}"
    );
    truth_is_downstream(&project);
    assert_eq!(
        counts(&project.succeed(&json)),
        json!(["delta", 399, 0, 0, null])
    );
}

#[test]
fn the_guard_holds_what_a_change_query_removes() {
    let project = project(CHANGES);
    project.succeed(&["sync"]);
    project.shop("UPDATE members SET is_member = 0, changed_at = current_timestamp WHERE user_id < 'user 300'");
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(
        (ran.code, &ran.lines()[0]["held_percent"]),
        (4, &json!(50.0)),
        "{ran:?}"
    );
    project.succeed(&["sync", "--approve"]);
    truth_is_downstream(&project);
}

#[test]
fn a_change_query_that_cannot_run_is_a_mistake_in_the_configuration() {
    let check = |from: &str, to: &str, expected: &str| {
        let project = project(&CHANGES.replace(from, to)).without_snapshot();
        for command in [&["check"][..], &["sync"]] {
            let ran = project.run(command);
            assert_eq!(ran.code, 2, "{ran:?}");
            assert!(ran.stderr.contains(expected), "{ran:?}");
            assert!(ran.stderr.contains("schedules/main.toml:6:1"), "{ran:?}");
            assert!(!project.path("snapshot.sqlite").exists());
        }
    };
    check(
        "user_id, is_member",
        "user_id, is_membr",
        "the change query of \"Members\" cannot run on source `shop`: no such column: is_membr",
    );
    check(
        "changed_at > :since",
        "changed_at > ?1 -- :since",
        "it has no parameter `:since`, the time that it is asked about",
    );
    check(
        "SELECT user_id, is_member",
        "SELCT user_id, is_member",
        "the change query of \"Members\" is not one that SQLite understands: near \"SELCT\": syntax error",
    );
    check(
        "SELECT user_id, is_member",
        "SELECT user_id AS anonymous_id, is_member",
        "it gives `anonymous_id`, and the query gives `user_id`",
    );
    check(
        "user_id, is_member",
        "user_id",
        "hint: write `... AS is_member`, 1 for a member and 0 for who is none",
    );
}

#[test]
fn a_change_query_that_fails_decides_nothing() {
    let project = project(CHANGES);
    project.succeed(&["sync"]);
    project.shop("UPDATE members SET is_member = 'yes', changed_at = current_timestamp WHERE user_id = 'user 200'");
    project.shop("UPDATE members SET is_member = 0, changed_at = current_timestamp WHERE user_id = 'user 201'");
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(
        (ran.code, &ran.lines()[0]["outcome"]),
        (1, &json!("failed"))
    );
    assert!(
        ran.stderr
            .contains("gives a text in column `is_member`, which takes 1 or 0"),
        "{ran:?}"
    );
    assert_eq!(project.delivered().len(), 400);
    // `yes` is no number either, and the query takes it for no.
    assert_eq!(
        counts(&project.succeed(&["sync", "--json"])),
        json!(["delta", 398, 0, 2, null])
    );
}

/// Those of the later ones are asked before it is their turn.
#[test]
fn several_audiences_follow_their_changes_together() {
    let names = ["First", "Second", "Third", "Fourth"];
    let schedule: String = names.map(|name| CHANGES.replace("Members", name)).concat();
    let project = project(&schedule);
    let json = ["sync", "--json"];
    project.succeed(&json);
    let missed = |missed: Option<u64>| {
        let ran = project.succeed(&json);
        let found: Vec<_> = ran
            .lines()
            .iter()
            .map(|line| {
                (
                    line["removed"].clone(),
                    line.get("missed").and_then(|missed| missed.as_u64()),
                )
            })
            .collect();
        assert_eq!(found, vec![(json!(1), missed); 4]);
    };
    project.shop("UPDATE members SET is_member = 0, changed_at = current_timestamp WHERE user_id = 'user 200'");
    missed(None);
    project.shop("DELETE FROM members WHERE user_id = 'user 300'");
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE feed SET reconciled_at = 0")
        .unwrap();
    missed(Some(1));
}

/// An integer is less than any text: such a query never tells of anybody, and would be taken for a quiet one.
#[test]
fn a_change_query_that_tells_of_nobody_is_said_to_when_everyone_is_read() {
    let silent = "\"Members\": the change query reports no user, not even since 1970. hint: compare a column of seconds with unixepoch(:since)";
    let in_seconds = MEMBERS.replace(
        "TEXT DEFAULT current_timestamp",
        "INTEGER DEFAULT (unixepoch())",
    );
    let check = |changes: &str, expected: bool| {
        let project = Project::new(changes);
        project.shop(&in_seconds);
        for command in [&["sync", "--dry-run"][..], &["sync"]] {
            let ran = project.succeed(command);
            assert_eq!(ran.stderr.contains(silent), expected, "{ran:?}");
        }
        project.shop("INSERT INTO members (user_id, is_member) VALUES ('new', 1)");
        assert!(!project.succeed(&["sync"]).stderr.contains("1970"));
        let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
        snapshot
            .execute_batch("UPDATE feed SET reconciled_at = 0")
            .unwrap();
        let ran = project.succeed(&["sync"]);
        assert_eq!(ran.stderr.contains(silent), expected, "{ran:?}");
        assert_eq!(
            ran.stderr.contains("did not report 1 changes"),
            expected,
            "{ran:?}"
        );
        truth_is_downstream(&project);
    };
    check(CHANGES, true);
    check(&CHANGES.replace(":since", "unixepoch(:since)"), false);
    // Of nobody there is nothing to tell.
    let empty = Project::new(CHANGES);
    empty.shop(&in_seconds);
    empty.shop("DELETE FROM members");
    assert!(!empty.succeed(&["sync"]).stderr.contains("1970"));
}

/// Nothing rests on it yet.
#[test]
fn a_change_query_that_fails_when_nothing_rests_on_it_is_warned_of() {
    let fails = "SELECT user_id, abs(-9223372036854775808) AS is_member";
    let project = project(&CHANGES.replace("SELECT user_id, is_member", fails));
    let ran = project.succeed(&["sync"]);
    assert!(
        ran.stderr.contains("WARN") && ran.stderr.contains("integer overflow"),
        "{ran:?}"
    );
    assert_eq!(project.delivered().len(), 400);
}

/// What was told is in the journal: the change query need not tell it again, and tells what has changed since.
#[test]
fn a_crash_after_a_change_query_was_followed_loses_nothing_of_what_it_told() {
    let endpoint = Endpoint::start();
    let project = firehose::project(&endpoint, "");
    project.write("schedules/main.toml", CHANGES);
    project.shop("DROP TABLE members");
    project.shop(MEMBERS);
    project.succeed(&["sync"]);
    let mut arrived = endpoint.take_ledger().accepted;
    let turn = |enters: &str, leaves: &str| {
        let set = |user: &str, is_member: u8| {
            project.shop(&format!(
                "INSERT INTO members (user_id, is_member) VALUES ('{user}', {is_member})
                 ON CONFLICT DO UPDATE SET is_member = excluded.is_member, changed_at = current_timestamp"
            ));
        };
        set(enters, 1);
        set(leaves, 0);
    };
    turn("new", "user 200");
    endpoint.script(|_| Answer::AcceptAndHang);
    let mut running = project.start(&["sync"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 2);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    arrived.extend(endpoint.take_ledger().accepted);

    turn("user 200", "new");
    // The change query does not report this one: only reading everyone would find it.
    project.shop(
        "UPDATE members SET is_member = 0, changed_at = '1997-01-01' WHERE user_id = 'user 300'",
    );
    endpoint.accept_everything();
    let lines = project.succeed(&["sync", "--json"]).lines();
    let counts = lines.iter().map(|line| {
        json!([
            line["kind"],
            line["delivered"],
            line["added"],
            line["removed"]
        ])
    });
    assert_eq!(
        counts.collect::<Vec<_>>(),
        [json!(["resume", 2, 0, 0]), json!(["delta", 2, 1, 1])]
    );
    arrived.extend(endpoint.take_ledger().accepted);
    let mut records: Vec<serde_json::Value> = arrived
        .iter()
        .map(|(_, record)| serde_json::from_slice(record).unwrap())
        .collect();
    records.sort_by_key(|record| record["timestamp"].as_str().unwrap().to_owned());
    let truth = truth(&records);
    let said = |user: &str| truth[&(user.to_owned(), "members".to_owned())].clone();
    assert_eq!((said("new"), said("user 200")), (json!(false), json!(true)));
    assert_eq!(truth.len(), 401);
}
