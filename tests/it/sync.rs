//! First syncs, deltas, and what is delivered.

use serde_json::json;

use crate::support::{Project, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

#[test]
fn a_first_sync_is_full_and_later_ones_are_deltas() {
    let project = Project::new(MEMBERS);
    project.shop(
        "CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b'), ('b')",
    );
    let first = project.sync();
    assert_eq!(
        (
            &first["kind"],
            &first["outcome"],
            &first["members"],
            &first["added"],
            &first["delivered"]
        ),
        (
            &json!("first"),
            &json!("delivered"),
            &json!(2),
            &json!(2),
            &json!(2)
        )
    );
    assert_eq!(project.sync()["outcome"], "unchanged");

    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    let delta = project.sync();
    assert_eq!(
        (
            &delta["kind"],
            &delta["added"],
            &delta["removed"],
            &delta["records"]
        ),
        (&json!("delta"), &json!(1), &json!(1), &json!(2))
    );
    let records = project.delivered();
    assert_eq!(records.len(), 4);
    let values: Vec<_> = truth(&records)
        .into_iter()
        .map(|((user, _), value)| (user, value))
        .collect();
    assert_eq!(
        values,
        [
            ("a".into(), json!(false)),
            ("b".into(), json!(true)),
            ("c".into(), json!(true))
        ]
    );
}
