//! How long what was sent can be explained.

use std::fs;

use serde_json::json;

use crate::support::{CONFIG, Project};

fn project(history: &str) -> Project {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#,
    );
    project.write(
        "audience-sync.toml",
        &format!("history = \"{history}\"\n{CONFIG}"),
    );
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b')");
    project
}

#[test]
fn delivered_changes_are_kept_as_long_as_the_history() {
    for (history, explained) in [("90d", 1), ("0s", 0)] {
        let project = project(history);
        project.succeed(&["sync"]);
        project.succeed(&["sync"]);
        let changes = project
            .succeed(&["snapshot", "user", "a", "--json"])
            .lines();
        assert_eq!(changes.len(), explained, "{history}");
        // Who is a member, and since when, does not depend on it.
        assert_eq!(
            project
                .succeed(&["snapshot", "show", "members", "--json"])
                .lines()
                .len(),
            2
        );
        assert_eq!(project.sync()["outcome"], "unchanged");
    }
}

/// However often it runs: without this, two million rows of runs that changed nothing come together in a month.
#[test]
fn runs_that_changed_nothing_are_kept_as_long_as_the_history() {
    for (history, kept) in [("90d", 8), ("0s", 3)] {
        let project = project(history);
        project.succeed(&["sync"]);
        for _ in 0..3 {
            project.succeed(&["sync"]);
        }
        project.shop("INSERT INTO members VALUES ('c')");
        for _ in 0..3 {
            project.succeed(&["sync"]);
        }
        project.succeed(&["sync"]);
        let runs = project.succeed(&["snapshot", "runs", "--json"]).lines();
        // Those that told somebody something stay, with their counts, and so does the last one.
        assert_eq!(runs.len(), kept, "{history}: {runs:?}");
        let mut told: Vec<_> = runs
            .iter()
            .filter(|run| run["delivered"] != 0)
            .map(|run| ["kind", "added", "delivered"].map(|field| run[field].clone()))
            .collect();
        told.reverse();
        assert_eq!(
            told,
            [
                [json!("first"), json!(2), json!(2)],
                [json!("delta"), json!(1), json!(1)]
            ]
        );
        assert_eq!(runs[0]["outcome"], "unchanged");
        let list = project.succeed(&["snapshot", "list", "--json"]).lines();
        assert_eq!(list[0]["last_run"], runs[0]["run"]);
        assert_eq!(list[0]["last_synced_at"], runs[0]["finished_at"]);
    }
}

#[test]
fn runs_are_listed_up_to_a_limit() {
    let project = project("90d");
    for user in 0..4 {
        project.shop(&format!("INSERT INTO members VALUES ('u{user}')"));
        project.succeed(&["sync"]);
    }
    let all = project.succeed(&["snapshot", "runs", "--json"]);
    assert_eq!((all.lines().len(), all.stderr.as_str()), (4, ""));
    for audience in [None, Some("members")] {
        let arguments = ["snapshot", "runs", "--limit", "3", "--json"];
        let ran = project.succeed(&[&arguments[..], audience.as_slice()].concat());
        assert_eq!(ran.lines(), all.lines()[..3]);
        assert_eq!(
            ran.stderr,
            "\nhint: these are the newest 3; `--limit N` shows more\n"
        );
    }
}

/// What was erased is gone from every file beside the snapshot too.
#[test]
fn what_was_dropped_is_in_no_file_any_more() {
    let project = project("0s");
    project.shop("INSERT INTO members VALUES ('somebody-who-leaves')");
    project.succeed(&["sync"]);
    project.shop("DELETE FROM members WHERE user_id = 'somebody-who-leaves'");
    project.succeed(&["sync"]);
    project.succeed(&["sync"]);
    for (path, bytes) in project.contents() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_there = bytes.windows(19).any(|text| text == b"somebody-who-leaves");
        assert!(!name.starts_with("snapshot.sqlite") || !is_there, "{name}");
    }
}

#[test]
fn what_waits_is_kept_however_old() {
    let project = project("0s");
    fs::write(project.path("delivered"), "in the way").unwrap();
    for _ in 0..2 {
        assert_eq!(project.run(&["sync"]).code, 3);
    }
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    assert_eq!(list[0]["pending"], json!(2));
    fs::remove_file(project.path("delivered")).unwrap();
    project.succeed(&["sync"]);
    assert_eq!(project.delivered().len(), 2);
}
