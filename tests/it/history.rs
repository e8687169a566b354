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
