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
        .execute("UPDATE life SET last_started_at = ?1", [year_2100])
        .unwrap();
    drop(snapshot);
    for statement in [
        "DELETE FROM members; INSERT INTO members VALUES ('b')",
        "INSERT INTO members VALUES ('a')",
    ] {
        project.shop(statement);
        let ran = project.succeed(&["sync"]);
        assert!(
            ran.stderr.contains("WARN the clock says 20")
                && ran
                    .stderr
                    .contains(", and the last run began at 2100-01-01T00:00:00."),
            "{ran:?}"
        );
    }
    let times: Vec<_> = project
        .delivered()
        .iter()
        .map(|record| record["timestamp"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(times.len(), 2 + 4 + 2);
    // Users leave at a run's time, and others enter a millisecond later: two runs, then two more in which nobody leaves.
    let after = [2, 3, 4, 5, 7, 9].map(|millis| format!("2100-01-01T00:00:00.00{millis}Z"));
    assert_eq!(times[2..], after);
    let last = project.delivered().pop().unwrap();
    for field in ["timestamp", "originalTimestamp", "receivedAt"] {
        assert_eq!(last[field], after[5]);
    }
}

/// One person by an anonymous id, and later by a user id beside it: what is true of the anonymous id in the end is what
/// the latest record says.
#[test]
fn a_user_who_is_known_by_another_id_from_now_on_ends_as_a_member() {
    let project = Project::new(
        r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, anonymous_id FROM members"
guard = false
"#,
    );
    project.shop(
        "CREATE TABLE members (user_id TEXT, anonymous_id TEXT); INSERT INTO members VALUES (NULL, 'browser')",
    );
    project.sync();
    project.shop("UPDATE members SET user_id = 'u'");
    let line = project.sync();
    assert_eq!((&line["added"], &line["removed"]), (&1.into(), &1.into()));
    let delivered = project.delivered();
    let told: Vec<_> = delivered[1..]
        .iter()
        .map(|record| ["userId", "anonymousId", "timestamp"].map(|field| record[field].as_str()))
        .collect();
    let values: Vec<_> = delivered[1..]
        .iter()
        .map(|record| record["traits"]["members"].as_bool())
        .collect();
    assert_eq!(values, [Some(false), Some(true)]);
    assert_eq!(told[0][..2], [None, Some("browser")]);
    assert_eq!(told[1][..2], [Some("u"), Some("browser")]);
    assert!(told[0][2] < told[1][2], "{told:?}");
}
