//! The latest timestamp for a user and key is the truth, whatever the clock does.

use crate::support::Project;

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"

[[audience]]
name = "Others"
source = "shop"
query = "SELECT user_id FROM members"
"#;

#[test]
fn timestamps_ascend_even_when_the_clock_steps_back() {
    let project = Project::new(SCHEDULE);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    project.succeed(&["sync"]);
    // The clock was ahead by decades, and has been put right.
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    let year_2100 = 4_102_444_800_000_i64;
    snapshot
        .execute(
            "UPDATE run SET started_at = ?1 WHERE number = 2",
            [year_2100],
        )
        .unwrap();
    drop(snapshot);
    for statement in [
        "DELETE FROM members; INSERT INTO members VALUES ('b')",
        "INSERT INTO members VALUES ('a')",
    ] {
        project.shop(statement);
        project.succeed(&["sync", "--approve"]);
    }
    let times: Vec<_> = project
        .delivered()
        .iter()
        .map(|record| record["timestamp"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(times.len(), 2 + 4 + 2);
    let mut after = times[2..].to_vec();
    after.dedup();
    assert_eq!(
        after,
        [
            "2100-01-01T00:00:00.001Z",
            "2100-01-01T00:00:00.002Z",
            "2100-01-01T00:00:00.003Z",
            "2100-01-01T00:00:00.004Z"
        ]
    );
    let last = project.delivered().pop().unwrap();
    for field in ["timestamp", "originalTimestamp", "receivedAt"] {
        assert_eq!(last[field], "2100-01-01T00:00:00.004Z");
    }
}
