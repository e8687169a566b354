//! A full send: true for every member, false once for those who have gone.

use serde_json::{Value, json};

use crate::support::Project;

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, email FROM members"
traits = ["email"]

[[computed_trait]]
name = "Total"
source = "shop"
query = "SELECT user_id, total AS value FROM members"
"#;

fn resync(project: &Project, audience: &str) -> Value {
    project
        .succeed(&["resync", audience, "--json"])
        .lines()
        .remove(0)
}

/// What arrived since `before`, as `user=value`.
fn arrived(project: &Project, before: usize, key: &str) -> Vec<String> {
    let mut arrived: Vec<_> = project.delivered()[before..]
        .iter()
        .map(|record| {
            format!(
                "{}={}",
                record["userId"].as_str().unwrap(),
                record["traits"][key]
            )
        })
        .collect();
    arrived.sort();
    arrived
}

#[test]
fn everyone_is_sent_again_and_those_gone_once() {
    let project = Project::new(SCHEDULE);
    project.shop(
        "CREATE TABLE members (user_id TEXT, email TEXT, total);
         INSERT INTO members VALUES ('a', 'a@x', 1), ('b', 'b@x', 2), ('c', NULL, 3)",
    );
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('d', 'd@x', 4)",
    );

    let line = resync(&project, "Members");
    let seen: Vec<_> = [
        "kind",
        "outcome",
        "members",
        "added",
        "removed",
        "changed",
        "delivered",
        "records",
    ]
    .map(|field| line[field].clone())
    .into();
    assert_eq!(
        seen,
        [
            json!("resync"),
            json!("delivered"),
            json!(3),
            json!(1),
            json!(1),
            json!(0),
            json!(4),
            json!(4)
        ]
    );
    assert_eq!(
        arrived(&project, 6, "members"),
        ["a=false", "b=true", "c=true", "d=true"]
    );
    // Those who stay are members with what is sent beside it.
    let again = &project.delivered()[6..];
    assert!(
        again
            .iter()
            .any(|record| record["traits"] == json!({"members": true, "email": "b@x"}))
    );
    assert!(
        again
            .iter()
            .any(|record| record["traits"] == json!({"members": false}))
    );

    resync(&project, "members");
    assert_eq!(
        arrived(&project, 10, "members"),
        ["b=true", "c=true", "d=true"]
    );

    let line = resync(&project, "total");
    assert_eq!(
        (&line["changed"], &line["delivered"]),
        (&json!(0), &json!(4))
    );
    assert_eq!(
        arrived(&project, 13, "total"),
        ["a=null", "b=2", "c=3", "d=4"]
    );
    assert_eq!(project.delivered().len(), 17);
}

#[test]
fn the_first_resync_of_an_audience_is_its_first_sync() {
    let project = Project::new(SCHEDULE);
    project.shop("CREATE TABLE members (user_id TEXT, email TEXT, total); INSERT INTO members VALUES ('a', 'a@x', 1)");
    assert_eq!(resync(&project, "members")["kind"], "first");
    assert_eq!(resync(&project, "members")["kind"], "resync");
    // The other one was not asked for.
    assert_eq!(project.delivered().len(), 2);
}
