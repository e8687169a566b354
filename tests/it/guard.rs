//! An empty or broken source removes nobody.

use serde_json::{Value, json};

use crate::support::{Project, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

/// A project with so many delivered members, `user_000` and on.
fn project(options: &str, members: u32) -> Project {
    let project = Project::new(&format!("{MEMBERS}{options}"));
    project.shop("CREATE TABLE members (user_id TEXT PRIMARY KEY)");
    fill(&project, members);
    project.sync();
    project
}

fn fill(project: &Project, members: u32) {
    let mut values: Vec<String> = (0..members).map(|n| format!("('user_{n:03}')")).collect();
    values.push("('user_000')".to_owned());
    project.shop(&format!(
        "INSERT OR IGNORE INTO members VALUES {}",
        values.join(", ")
    ));
}

#[track_caller]
fn check(project: &Project, arguments: &[&str], code: i32, expected: Value) -> String {
    let ran = project.run(&[&["sync", "--json"], arguments].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    let line = ran.lines().remove(0);
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(line[field], *value, "{field}: {line}");
    }
    ran.stderr
}

fn members(project: &Project) -> usize {
    let records = project.delivered();
    truth(&records)
        .values()
        .filter(|value| **value == true)
        .count()
}

#[test]
fn additions_go_and_removals_wait_for_a_yes() {
    let project = project("", 300);
    project.shop(
        "DELETE FROM members WHERE user_id >= 'user_200'; INSERT INTO members VALUES ('new')",
    );
    let held = json!({"kind": "delta", "outcome": "held", "members": 201, "added": 1, "removed": 100, "held": 100,
        "delivered": 1, "undelivered": 0, "records": 1});
    let stderr = check(&project, &[], 4, held);
    assert!(
        stderr.contains("the guard holds 100 removals, 33.3 % of the 300 delivered members"),
        "{stderr}"
    );
    assert!(
        stderr.contains("audience-sync sync members --approve"),
        "{stderr}"
    );
    assert_eq!(members(&project), 301);
    // Each run plans anew, and comes to the same.
    let again = json!({"outcome": "held", "added": 0, "removed": 100, "held": 100, "delivered": 0, "records": 0});
    check(&project, &[], 4, again);
    check(
        &project,
        &["--dry-run"],
        4,
        json!({"outcome": "planned", "removed": 100, "held": 100, "records": 0}),
    );
    check(
        &project,
        &["--dry-run", "--approve"],
        0,
        json!({"outcome": "planned", "removed": 100, "held": 0, "records": 100}),
    );
    check(
        &project,
        &["--approve"],
        0,
        json!({"outcome": "delivered", "removed": 100, "held": 0, "delivered": 100}),
    );
    assert_eq!(members(&project), 201);
    check(&project, &[], 0, json!({"outcome": "unchanged"}));
}

#[test]
fn a_hold_ends_when_the_source_recovers() {
    let project = project("", 300);
    project.shop("DELETE FROM members WHERE user_id >= 'user_100'");
    check(&project, &[], 4, json!({"removed": 200, "held": 200}));
    fill(&project, 290);
    check(
        &project,
        &[],
        0,
        json!({"outcome": "delivered", "added": 0, "removed": 10, "held": 0, "delivered": 10}),
    );
    assert_eq!(members(&project), 290);
}

/// The percentage is of those delivered, not of those in the source; both bounds must be passed.
#[test]
fn the_bounds_are_those_of_the_contract() {
    let few = project("", 120);
    few.shop("DELETE FROM members WHERE user_id >= 'user_021'");
    check(&few, &[], 0, json!({"removed": 99, "held": 0}));

    let part = project("", 400);
    part.shop("DELETE FROM members WHERE user_id >= 'user_280'");
    check(&part, &[], 0, json!({"removed": 120, "held": 0}));
    part.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    check(&part, &[], 4, json!({"removed": 100, "held": 100}));

    let own = project("guard = { max_removed_percent = 50, min_removed = 2 }", 4);
    own.shop("DELETE FROM members WHERE user_id >= 'user_002'");
    check(&own, &[], 0, json!({"removed": 2, "held": 0}));
    fill(&own, 5);
    own.sync();
    own.shop("DELETE FROM members WHERE user_id >= 'user_002'");
    check(&own, &[], 4, json!({"removed": 3, "held": 3}));
}

#[test]
fn an_empty_source_removes_nobody_unless_it_may() {
    let project_ = project("", 2);
    project_.shop("DELETE FROM members");
    check(
        &project_,
        &[],
        4,
        json!({"members": 0, "removed": 2, "held": 2, "delivered": 0}),
    );
    // Rows that are all skipped are no members either.
    project_.shop("INSERT INTO members VALUES ('')");
    check(&project_, &[], 4, json!({"held": 2, "skipped_rows": 1}));
    let ran = project_.run(&["resync", "members", "--json"]);
    assert_eq!((ran.code, &ran.lines()[0]["held"]), (4, &json!(2)));

    let allowed = project("guard = { allow_empty = true }", 2);
    allowed.shop("DELETE FROM members");
    check(&allowed, &[], 0, json!({"removed": 2, "held": 0}));
    // Nobody is left to remove: an empty source is no news.
    check(&allowed, &[], 0, json!({"outcome": "unchanged"}));

    let off = project("guard = false", 300);
    off.shop("DELETE FROM members");
    check(&off, &[], 0, json!({"removed": 300, "held": 0}));
    assert_eq!(members(&off), 0);
}

/// What an earlier run held says nothing about today: only what it left in the journal is still to be done.
#[test]
fn a_hold_does_not_outlive_its_reason_in_the_journal() {
    let project = project("", 300);
    let delivered = project.path("delivered");
    let aside = project.path("aside");
    std::fs::rename(&delivered, &aside).unwrap();
    project.write("delivered", "in the way");
    project.shop(
        "DELETE FROM members WHERE user_id >= 'user_100'; INSERT INTO members VALUES ('new')",
    );
    check(
        &project,
        &[],
        3,
        json!({"outcome": "undelivered", "held": 200, "undelivered": 1}),
    );
    std::fs::remove_file(&delivered).unwrap();
    std::fs::rename(&aside, &delivered).unwrap();
    fill(&project, 300);
    let ran = project.run(&["sync", "--json"]);
    let lines = ran.lines();
    let outcomes: Vec<_> = lines
        .iter()
        .map(|line| (&line["kind"], &line["outcome"], &line["delivered"]))
        .collect();
    assert_eq!(
        outcomes,
        [
            (&json!("resume"), &json!("delivered"), &json!(1)),
            (&json!("delta"), &json!("unchanged"), &json!(0))
        ]
    );
    assert_eq!(ran.code, 0, "{ran:?}");
}
