//! A dry run decides, prints, and leaves everything as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{CONFIG, Project, files};

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
            json!(["resume", "planned", 2, 0, 0, 0, 2, 2]),
            json!(["delta", "planned", 3, 1, 0, 0, 1, 1]),
        ],
    );
    fs::remove_file(&delivered).unwrap();
    fs::rename(&aside, &delivered).unwrap();
    let lines = project.succeed(&["sync", "--json"]).lines();
    let delivered: Vec<_> = lines.iter().map(|line| line["delivered"].clone()).collect();
    assert_eq!(delivered, [2, 1]);
}

/// Each user with a note, of which some are long, and one is too long for any record.
const NOTED: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, note FROM members"
traits = ["note"]
guard = false
"#;

fn noted(pack: bool) -> Project {
    let project = Project::new(NOTED);
    let mapping = "identify = [\"members\", \"others\"]";
    let config = CONFIG
        .replace("identify = \"members\"", mapping)
        .replace("directory", &format!("pack = {pack}\ndirectory"));
    project.write("audience-sync.toml", &config);
    project.shop("CREATE TABLE members (user_id TEXT PRIMARY KEY, note TEXT)");
    let mut shop = project.shop_connection();
    let shop = shop.transaction().unwrap();
    for user in 0..2_000 {
        let bytes = match user {
            17 => 1_100_000,
            _ if user < 600 => user % 7 * 2_000,
            _ => user % 10,
        };
        let values = (format!("u{user:04}"), "x".repeat(bytes));
        let insert = "INSERT INTO members VALUES (?1, ?2)";
        shop.execute(insert, values).unwrap();
    }
    shop.commit().unwrap();
    project
}

/// What is counted of each line that a command prints.
fn counted(line: &Value) -> [&Value; 5] {
    ["kind", "records", "requests", "bytes", "billed_bytes"].map(|field| &line[field])
}

fn lines(project: &Project, arguments: &[&str]) -> Vec<Value> {
    project.run(&[arguments, &["--json"]].concat()).lines()
}

/// Foresees a sync, makes it, and returns both ways to bill it.
#[track_caller]
fn foresee(project: &Project, expected: usize) -> Vec<Value> {
    let foreseen = lines(project, &["sync", "--dry-run"]);
    let found = lines(project, &["sync"]);
    assert_eq!(found.len(), expected, "{found:?}");
    let both = |lines: &[Value]| {
        lines
            .iter()
            .map(counted)
            .map(|line| json!(line))
            .collect::<Vec<_>>()
    };
    assert_eq!(both(&foreseen), both(&found));
    assert!(found.iter().all(|line| line.get("bill").is_none()));
    let bill = |line: &Value| {
        let bill = &line["bill"];
        let way = if bill["pack"] == true {
            "packed"
        } else {
            "unpacked"
        };
        for field in ["records", "bytes", "billed_bytes"] {
            assert_eq!(bill[way][field], line[field]);
        }
        json!([bill["packed"], bill["unpacked"]])
    };
    foreseen.iter().map(bill).collect()
}

#[test]
fn what_a_dry_run_counts_is_what_the_sync_then_sends() {
    let bills = [false, true].map(|pack| {
        let project = noted(pack);
        let mut bills = foresee(&project, 2);
        // Some enter and more leave.
        project.shop(
            "DELETE FROM members WHERE user_id < 'u0700';
             INSERT INTO members SELECT 'v' || user_id, note FROM members",
        );
        bills.extend(foresee(&project, 2));
        // Both streams are told the same.
        assert_eq!((&bills[0], &bills[2]), (&bills[1], &bills[3]));
        bills
    });
    // Whichever way is configured, the bill says both.
    assert_eq!(bills[0], bills[1]);
    let first = &bills[0][0];
    assert_eq!(first[1]["records"], 1_999);
    let dollars = first[1]["billed_bytes"].as_f64().unwrap() / 1_073_741_824.0 * 0.029;
    assert!((first[1]["dollars"].as_f64().unwrap() - dollars).abs() < 1e-9);
    assert!(first[0]["billed_bytes"].as_u64() < first[1]["billed_bytes"].as_u64());
}

#[test]
fn a_bill_has_what_waits_for_the_stream_that_lacks_it() {
    let project = noted(true);
    project.write("delivered/others", "in the way");
    assert_eq!(project.run(&["sync"]).code, 3);
    let foreseen = lines(&project, &["sync", "--dry-run"]);
    fs::remove_file(project.path("delivered/others")).unwrap();
    let found = lines(&project, &["sync"]);
    // One is told of the user again who fits into no record; the other one has yet to be told of everyone.
    let kinds: Vec<_> = found
        .iter()
        .map(|line| json!([line["stream"], line["kind"], line["records"]]))
        .collect();
    assert_eq!(kinds[0], json!(["members", "delta", 0]));
    assert_eq!(kinds[1][0], "others");
    assert_eq!(kinds[1][1], "resume");
    assert_eq!(counted(&foreseen[1]), counted(&found[1]));
    assert_eq!(foreseen[1]["bill"]["unpacked"]["records"], 1_999);
}

#[test]
fn a_bill_is_shown_with_the_way_that_is_configured_and_for_nothing_there_is_none() {
    let project = project();
    let shown = project.succeed(&["sync", "--dry-run"]).stdout;
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .skip_while(|line| !line.contains("AT THE QUOTA"))
        .skip(1)
        .take(2)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let billed = ["$0.029", "$0.00000028", "0.0s"];
    assert_eq!(rows[0][..5], ["main", "false", "(as", "set)", "2"]);
    assert_eq!(rows[0][rows[0].len() - 3..], billed);
    assert_eq!(rows[1][..3], ["main", "true", "1"]);
    assert!(shown.contains("A directory costs nothing"), "{shown}");
    project.sync();
    let shown = project.succeed(&["sync", "--dry-run"]).stdout;
    assert!(!shown.contains("AT THE QUOTA"), "{shown}");
}

/// Another process may be delivering for hours: a dry run neither delays it nor waits for it.
#[test]
fn a_dry_run_neither_needs_nor_takes_the_right_to_write() {
    let project = project();
    project.sync();
    let writer = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Nobody gives that back meanwhile.
    project.succeed(&["sync", "--dry-run"]);
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

/// What a crash left in SQLite's log is taken over by the next run, and not by a command that only reads.
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
