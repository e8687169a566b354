//! An empty or broken source removes nobody.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Project, eventually, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

/// A project with this number of delivered members, `user_000` and so on.
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
fn additions_go_and_removals_wait_for_an_approval() {
    let project = project("", 300);
    project.shop(
        "DELETE FROM members WHERE user_id >= 'user_200'; INSERT INTO members VALUES ('new')",
    );
    let held = json!({"kind": "delta", "outcome": "held", "members": 201, "added": 1, "removed": 100, "held": 100,
        "delivered": 1, "undelivered": 0, "records": 1});
    let stderr = check(&project, &[], 4, held);
    assert!(
        stderr
            .contains("the guard holds 100 removals (33.3 %) of 300 delivered members at members"),
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

/// The only line of `snapshot list`.
fn listed(project: &Project) -> Value {
    project
        .succeed(&["snapshot", "list", "--json"])
        .lines()
        .remove(0)
}

fn sample(users: std::ops::Range<u32>) -> Value {
    let user = |n| json!({ "user_id": format!("user_{n:03}") });
    users.map(user).collect()
}

#[test]
fn a_hold_is_shown_with_its_number_its_share_and_a_sample() {
    let project = project("", 300);
    project.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    let held = json!({"held": 120, "held_percent": 40.0, "held_sample": sample(180..185)});
    let planned = |outcome: &str| {
        let mut fields = held.clone();
        fields["outcome"] = outcome.into();
        fields
    };
    check(&project, &["--dry-run"], 4, planned("planned"));
    // A dry run leaves nothing behind.
    assert_eq!(listed(&project)["held"], 0);
    check(&project, &[], 4, planned("held"));
    for (field, value) in held.as_object().unwrap() {
        assert_eq!(listed(&project)[field], *value);
    }

    let block = "\n\nheld of members at members: 120 removals (40.0 %) of 300 members, among them:\n  user_id user_180\n  \
         user_id user_181\n  user_id user_182\n  user_id user_183\n  user_id user_184\n";
    for arguments in [
        &["sync"] as &[&str],
        &["sync", "--dry-run"],
        &["snapshot", "list"],
    ] {
        let ran = project.run(arguments);
        assert!(ran.stdout.ends_with(block), "{ran:?}");
        assert!(!ran.stderr.contains("user_180"), "{ran:?}");
    }
    let list = project.succeed(&["snapshot", "list"]).stdout;
    assert!(
        list.lines()
            .nth(1)
            .unwrap()
            .ends_with("  120 removals (40.0 %)"),
        "{list}"
    );

    // Where nobody is held, nothing is said about it.
    fill(&project, 300);
    project.succeed(&["sync"]);
    for line in [project.sync(), listed(&project)] {
        assert_eq!(line["held"], 0);
        assert!(line.get("held_percent").is_none() && line.get("held_sample").is_none());
    }
    assert!(
        !project
            .succeed(&["snapshot", "list"])
            .stdout
            .contains("held of")
    );
}

#[test]
fn a_sample_tells_anonymous_ids_and_steers_no_terminal() {
    let project = Project::new(&MEMBERS.replace("user_id FROM", "anonymous_id FROM"));
    project.shop(
        "CREATE TABLE members (anonymous_id TEXT); INSERT INTO members VALUES (char(27) || '[31m')",
    );
    project.sync();
    project.shop("DELETE FROM members");
    let ran = project.run(&["sync"]);
    assert!(
        ran.stdout
            .ends_with("1 removals (100.0 %) of 1 members:\n  anonymous_id \\u{1b}[31m\n"),
        "{ran:?}"
    );
    let sample = json!([{"anonymous_id": "\u{1b}[31m"}]);
    check(&project, &[], 4, json!({"held_sample": sample}));
}

/// 300 members were delivered, and the removal of 120 of them is held.
fn held() -> Project {
    let project = project("", 300);
    project.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    check(&project, &[], 4, json!({"held": 120}));
    project
}

const APPROVE: [&str; 1] = ["--approve"];

#[test]
fn an_approval_delivers_what_was_shown_and_less() {
    let same = held();
    check(
        &same,
        &["--approve", "--dry-run"],
        0,
        json!({"removed": 120, "held": 0, "outcome": "planned"}),
    );
    check(&same, &APPROVE, 0, json!({"delivered": 120, "held": 0}));
    check(&same, &APPROVE, 0, json!({"outcome": "unchanged"}));

    let less = held();
    fill(&less, 190);
    check(&less, &APPROVE, 0, json!({"delivered": 110, "held": 0}));

    // As many, and others.
    let others = held();
    others.shop(
        "DELETE FROM members WHERE user_id = 'user_000'; INSERT INTO members VALUES ('user_180')",
    );
    check(&others, &APPROVE, 0, json!({"delivered": 120, "held": 0}));

    // A run that decided nothing shows nothing either.
    let failed = held();
    let shop = fs::read(failed.path("shop.sqlite")).unwrap();
    fs::write(failed.path("shop.sqlite"), "").unwrap();
    assert_eq!(failed.run(&["sync"]).code, 1);
    fs::write(failed.path("shop.sqlite"), shop).unwrap();
    assert_eq!(listed(&failed)["held"], 120);
    let ran = failed.run(&["resync", "members", "--approve", "--json"]);
    let line = &ran.lines()[0];
    assert_eq!((ran.code, &line["held"]), (0, &json!(0)), "{ran:?}");
    assert_eq!(line["delivered"], 300, "180 again, and 120 removals");
}

/// What was never shown is held, also where it is approved.
#[test]
fn an_approval_covers_nothing_that_was_not_shown() {
    let more = held();
    more.shop("DELETE FROM members WHERE user_id >= 'user_169'");
    let again = json!({"outcome": "held", "removed": 131, "held": 131, "delivered": 0});
    let stderr = check(&more, &APPROVE, 4, again);
    assert!(stderr.contains("holds 131 removals (43.7 %)"), "{stderr}");
    assert_eq!(members(&more), 300);
    assert_eq!(listed(&more)["held"], 131);
    // The new number was shown.
    check(&more, &APPROVE, 0, json!({"delivered": 131, "held": 0}));

    // A hold does not outlive its reason, and neither does what it showed.
    let recovered = held();
    fill(&recovered, 300);
    project_unchanged(&recovered);
    recovered.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    check(&recovered, &APPROVE, 4, json!({"held": 120}));
    check(&recovered, &APPROVE, 0, json!({"delivered": 120}));

    // A dry run remembers nothing: its numbers are for `--approve=N`.
    let dry = project("", 300);
    dry.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    check(&dry, &["--dry-run"], 4, json!({"held": 120}));
    check(&dry, &APPROVE, 4, json!({"held": 120}));

    let numbered = project("", 300);
    numbered.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    check(&numbered, &["--approve=119"], 4, json!({"held": 120}));
    check(
        &numbered,
        &["--approve=120"],
        0,
        json!({"delivered": 120, "held": 0}),
    );
}

#[test]
fn an_approval_after_the_source_was_emptied_removes_nobody() {
    let project = project("", 1_000);
    project.shop("DELETE FROM members WHERE user_id >= 'user_600'");
    check(&project, &[], 4, json!({"held": 400}));
    project.shop("DELETE FROM members");
    let emptied = json!({"outcome": "held", "members": 0, "held": 1_000, "delivered": 0});
    check(&project, &APPROVE, 4, emptied);
    assert_eq!(members(&project), 1_000);
    fill(&project, 600);
    check(&project, &["--approve=400"], 0, json!({"delivered": 400}));
    assert_eq!(members(&project), 600);
}

#[test]
fn additions_and_changes_wait_for_an_approval_where_the_guard_bounds_them() {
    let added = project("guard = { max_added_percent = 50 }", 100);
    fill(&added, 150);
    check(&added, &[], 0, json!({"added": 50, "held_added": 0}));
    fill(&added, 250);
    added.shop("DELETE FROM members WHERE user_id = 'user_000'");
    let held = json!({"outcome": "held", "added": 100, "removed": 1, "held": 0, "held_added": 100, "delivered": 1});
    let stderr = check(&added, &[], 4, held);
    assert!(stderr.contains("the guard holds 100 additions"), "{stderr}");
    assert_eq!(members(&added), 149);
    check(
        &added,
        &APPROVE,
        0,
        json!({"delivered": 100, "held_added": 0}),
    );
    assert_eq!(members(&added), 249);

    let schedule = MEMBERS
        .replace("[[audience]]", "[[computed_trait]]")
        .replace("user_id FROM", "user_id, total AS value FROM");
    let changed = Project::new(&format!("{schedule}guard = {{ max_changed_percent = 10 }}"));
    changed.shop(
        "CREATE TABLE members (user_id TEXT, total);
         WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 200)
         INSERT INTO members SELECT 'user ' || n, n FROM n",
    );
    changed.sync();
    changed.shop("UPDATE members SET total = 0; INSERT INTO members VALUES ('new', 1)");
    let held = json!({"outcome": "held", "added": 1, "changed": 200, "held": 0, "held_changed": 200, "delivered": 1});
    check(&changed, &[], 4, held);
    check(
        &changed,
        &["--approve=199"],
        4,
        json!({"held_changed": 200}),
    );
    check(
        &changed,
        &APPROVE,
        0,
        json!({"delivered": 200, "held_changed": 0}),
    );
}

#[track_caller]
fn project_unchanged(project: &Project) {
    check(project, &[], 0, json!({"outcome": "unchanged", "held": 0}));
    assert_eq!(listed(project)["held"], 0);
}

/// An export that broke off, a table that was emptied, all but one gone: each waits for an approval or fails, and a source
/// that recovers needs none.
#[test]
fn a_source_that_lost_almost_everyone_removes_nobody() {
    let project = project("", 1);
    project.shop(
        "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 99999)
         INSERT INTO members SELECT printf('user_%03d', n) FROM n",
    );
    check(
        &project,
        &[],
        0,
        json!({"added": 99_999, "members": 100_000}),
    );
    let shop = project.path("shop.sqlite");
    let whole = fs::read(&shop).unwrap();
    let recover = || {
        fs::write(&shop, &whole).unwrap();
        project_unchanged(&project);
        assert_eq!(project.delivered().len(), 100_000);
    };

    for length in [
        0,
        1,
        100,
        4096,
        whole.len() / 2,
        whole.len() - 4096,
        whole.len() - 1,
    ] {
        fs::write(&shop, &whole[..length]).unwrap();
        let ran = project.run(&["sync", "--json"]);
        assert_eq!(
            (ran.code, &ran.lines()[0]["outcome"]),
            (1, &json!("failed")),
            "{length}: {ran:?}"
        );
        let approved = project.run(&["sync", "--approve"]);
        assert_eq!(approved.code, 1, "{length}: {approved:?}");
    }
    recover();

    project.shop("DELETE FROM members");
    let emptied = json!({"members": 0, "held": 100_000, "held_percent": 100.0, "delivered": 0});
    check(&project, &[], 4, emptied);
    assert_eq!(listed(&project)["held"], 100_000);
    recover();

    project.shop("DELETE FROM members WHERE user_id <> 'user_500'");
    check(
        &project,
        &[],
        4,
        json!({"members": 1, "held": 99_999, "delivered": 0}),
    );
    let list = project.succeed(&["snapshot", "list"]).stdout;
    assert!(list.contains("99,999 removals (100.0 %)"), "{list}");
    recover();
}

/// Logs are collected and kept: they have the number and the share, and no user.
#[test]
fn the_log_of_a_run_counts_what_is_held_and_names_no_user() {
    let project = project("", 300);
    let schedule = format!("cron = \"* * * * * *\"\n{MEMBERS}");
    project.write("schedules/main.toml", &schedule);
    project.shop("DELETE FROM members WHERE user_id >= 'user_180'");
    let running = project.start(&["run"]);
    let words = "members: delivered 0; the guard holds 120 removals (40.0 %). hint: ";
    eventually("it is held", || running.stderr().contains(words));
    running.signal("TERM");
    let ran = running.end();
    assert!(!ran.stderr.contains("user_"), "{ran:?}");
}
