//! One run at a time for a snapshot, across processes.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::support::{Project, ended};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

fn project() -> Project {
    let project = Project::new(SCHEDULE);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    project
}

/// Holds the lock as another process would.
fn hold(project: &Project) -> File {
    let mut file = File::create(project.path("snapshot.sqlite.lock")).unwrap();
    file.lock().unwrap();
    file.write_all(b"`audience-sync run`, process 7, since yesterday\n")
        .unwrap();
    file
}

#[test]
fn the_second_run_is_told_who_the_first_is() {
    let project = project();
    let held = hold(&project);
    for arguments in [
        &["sync", "--json"] as &[&str],
        &["resync", "members", "--json"],
    ] {
        let started = Instant::now();
        let ran = project.run(arguments);
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(ran.code, 5, "{ran:?}");
        assert!(
            ran.stderr.contains(
                "another run holds the snapshot: `audience-sync run`, process 7, since yesterday"
            ),
            "{ran:?}"
        );
        let lines = ran.lines();
        assert_eq!(
            (
                &lines[0]["audience"],
                &lines[0]["kind"],
                &lines[0]["outcome"]
            ),
            (&"members".into(), &"first".into(), &"busy".into())
        );
    }
    assert!(!project.path("snapshot.sqlite").exists());
    // A dry run writes nothing, and so waits for nobody.
    project.succeed(&["sync", "--dry-run"]);
    drop(held);
    project.sync();
}

#[test]
fn a_run_that_may_wait_waits() {
    let project = project();
    let held = hold(&project);
    let mut waiting = project
        .command(&["sync", "--wait", "--json"])
        .spawn()
        .unwrap();
    // It has come to the lock when it has read the source for its check.
    let deadline = Instant::now() + Duration::from_millis(700);
    while Instant::now() < deadline {
        assert!(waiting.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    drop(held);
    let ran = ended(waiting);
    assert_eq!(
        (ran.code, &ran.lines()[0]["outcome"]),
        (0, &"delivered".into()),
        "{ran:?}"
    );
}

#[test]
fn a_snapshot_may_lie_in_a_folder_that_is_yet_to_be_made() {
    let project = project();
    let config = fs::read_to_string(project.path("audience-sync.toml")).unwrap();
    project.write(
        "audience-sync.toml",
        &format!("snapshot = \"state/here/snapshot.sqlite\"\n{config}"),
    );
    project.succeed(&["sync", "--dry-run"]);
    assert!(!project.path("state").exists());
    project.sync();
    assert!(project.path("state/here/snapshot.sqlite").exists());
    assert_eq!(project.sync()["outcome"], "unchanged");
}
