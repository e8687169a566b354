//! A dry run decides, prints, and leaves everything as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::support::{Project, files};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

fn project() -> Project {
    let project = Project::new(SCHEDULE);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b')");
    project
}

/// Every file with its bytes.
fn everything(project: &Project) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    files(&project.path(".")).into_iter().map(read).collect()
}

#[track_caller]
fn check(project: &Project, expected: &[serde_json::Value]) {
    let before = everything(project);
    let ran = project.run(&["sync", "--dry-run", "--json"]);
    let after = everything(project);
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    assert!(before == after, "bytes have changed");
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| {
            json!([
                line["kind"],
                line["outcome"],
                line["members"],
                line["added"],
                line["removed"],
                line["delivered"],
                line["undelivered"],
                line["records"]
            ])
        })
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn nothing_is_written_and_no_snapshot_is_made() {
    let project = project();
    check(&project, &[json!(["first", "planned", 2, 2, 0, 0, 2, 2])]);
    assert!(!project.path("snapshot.sqlite").exists());
    project.sync();
    check(&project, &[json!(["delta", "planned", 2, 0, 0, 0, 0, 0])]);
    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    check(&project, &[json!(["delta", "planned", 2, 1, 1, 0, 2, 2])]);
    let line = project.sync();
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)));
}

#[test]
fn a_plan_follows_what_waits_in_the_journal() {
    let project = project();
    project.sync();
    let (delivered, aside) = (project.path("delivered"), project.path("aside"));
    fs::rename(&delivered, &aside).unwrap();
    project.write("delivered", "in the way");
    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    assert_eq!(project.run(&["sync"]).code, 3);
    project.shop("INSERT INTO members VALUES ('d')");
    check(
        &project,
        &[
            json!(["resume", "planned", 2, 0, 0, 0, 2, 0]),
            json!(["delta", "planned", 3, 1, 0, 0, 1, 1]),
        ],
    );
    fs::remove_file(&delivered).unwrap();
    fs::rename(&aside, &delivered).unwrap();
    let lines = project.succeed(&["sync", "--json"]).lines();
    let delivered: Vec<_> = lines.iter().map(|line| line["delivered"].clone()).collect();
    assert_eq!(delivered, [2, 1]);
}

/// Somebody else may be delivering for hours: looking on must not get in their way, nor wait for them.
#[test]
fn a_dry_run_neither_needs_nor_takes_the_right_to_write() {
    let project = project();
    project.sync();
    let writer = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let started = std::time::Instant::now();
    project.succeed(&["sync", "--dry-run"]);
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn what_a_crash_left_beside_the_file_that_a_link_leads_to_is_not_touched_either() {
    let project = project();
    project.succeed(&["sync"]);
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE audience SET name = 'Other'")
        .unwrap();
    // By another name, as if nobody had it open.
    fs::create_dir(project.path("crashed")).unwrap();
    for file in ["snapshot.sqlite", "snapshot.sqlite-wal"] {
        fs::copy(project.path(file), project.path("crashed").join(file)).unwrap();
    }
    drop(snapshot);
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    std::os::unix::fs::symlink("crashed/snapshot.sqlite", project.path("snapshot.sqlite")).unwrap();
    let contents = || {
        files(&project.path("crashed"))
            .into_iter()
            .map(|file| fs::read(file).unwrap())
            .collect::<Vec<_>>()
    };
    let before = contents();
    project.succeed(&["snapshot", "list"]);
    // SQLite may have made its index of the log, which is no part of it.
    drop(fs::remove_file(project.path("crashed/snapshot.sqlite-shm")));
    assert!(contents() == before);
}

/// What a crash left in SQLite's log is for the next run to take over, and not for somebody who looks.
#[test]
fn a_snapshot_that_a_crash_left_is_not_touched() {
    let project = project();
    let list = ["snapshot.sqlite", "snapshot.sqlite-wal"];
    // A connection that never closes leaves its log as a crash does.
    project.succeed(&["sync"]);
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE audience SET name = 'Other'")
        .unwrap();
    std::mem::forget(snapshot);
    let contents = || list.map(|name| std::fs::read(project.path(name)).unwrap());
    let before = contents();
    assert!(!before[1].is_empty());
    for command in [
        &["check"][..],
        &["snapshot", "list"],
        &["sync", "--dry-run"],
    ] {
        assert_eq!(project.run(command).code, 0, "{command:?}");
        assert!(contents() == before, "{command:?}");
    }
}
