//! The life of the snapshot itself: it is made by a command of its own, and the lock file beside it knows whether it is
//! the one that knows everything.

use std::fs;

use serde_json::{Value, json};

use crate::firehose::{enter, project as at_firehose};
use crate::support::endpoint::{Answer, Api, Endpoint};
use crate::support::{CONFIG, Project, Ran, eventually, truth};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
guard = false
"#;

/// Everybody who writes to a snapshot.
const WRITERS: [&[&str]; 5] = [
    &["sync"],
    &["sync", "members"],
    &["resync", "members"],
    &["send", "call.json"],
    &["run"],
];

fn project() -> Project {
    let project = Project::new(SCHEDULE).without_snapshot();
    project.write(
        "schedules/main.toml",
        &format!("cron = \"0 0 1 1 *\"\n{SCHEDULE}"),
    );
    project.write("call.json", "{\"type\":\"identify\",\"userId\":\"z\"}\n");
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b')");
    project
}

/// After a first sync of two users.
fn synced() -> Project {
    let project = project();
    project.succeed(&["snapshot", "create"]);
    project.sync();
    project
}

/// The first line of the lock file.
fn last_run(project: &Project) -> String {
    let text = fs::read_to_string(project.path("snapshot.sqlite.lock")).unwrap();
    text.lines().next().unwrap().to_owned()
}

/// Runs commands that must end with 2, send nothing and change nothing but who took the lock last.
#[track_caller]
fn check_refused(project: &Project, commands: &[&[&str]], words: &[&str]) {
    let lock = project.path("snapshot.sqlite.lock");
    let mut before = project.contents();
    before.remove(&lock);
    for arguments in commands {
        let ran = project.run(arguments);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{arguments:?}: {ran:?}"
        );
        for words in words {
            assert!(
                ran.stderr.contains(words),
                "{arguments:?}: {words}: {ran:?}"
            );
        }
        let mut after = project.contents();
        after.remove(&lock);
        assert!(after == before, "{arguments:?} changed a file");
    }
}

#[track_caller]
fn told(ran: &Ran) -> Vec<[Value; 4]> {
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines = ran.lines();
    let fields =
        |line: &Value| ["kind", "outcome", "added", "removed"].map(|field| line[field].clone());
    lines.iter().map(fields).collect()
}

fn line(kind: &str, outcome: &str, added: u64, removed: u64) -> [Value; 4] {
    [json!(kind), json!(outcome), json!(added), json!(removed)]
}

const BOTH_WAYS_OUT: [&str; 2] = [
    "there is no snapshot at snapshot.sqlite\n\n",
    "hint: make it anew from what was delivered: `audience-sync snapshot rebuild --from delivered`; if nothing was ever \
     delivered, begin with `audience-sync snapshot create`",
];

#[test]
fn no_command_that_sends_makes_a_snapshot() {
    let project = project();
    check_refused(&project, &WRITERS, &BOTH_WAYS_OUT);
    assert!(!project.path("snapshot.sqlite").exists());
    // A dry run plans as if nobody had been told anything.
    let ran = project.succeed(&["sync", "--dry-run", "--json"]);
    assert_eq!(told(&ran), [line("first", "planned", 2, 0)]);
    assert!(
        ran.stderr
            .contains("there is no snapshot at snapshot.sqlite: this is the plan of a first sync"),
        "{ran:?}"
    );
    assert!(!project.path("snapshot.sqlite").exists());

    let created = project.succeed(&["snapshot", "create"]);
    assert_eq!(created.stdout, "created snapshot.sqlite\n");
    assert_eq!(
        told(&project.run(&["sync", "--json"])),
        [line("first", "delivered", 2, 0)]
    );
}

#[test]
fn create_makes_an_empty_snapshot_and_replaces_none() {
    let project = project();
    let lines = project.succeed(&["snapshot", "create", "--json"]).lines();
    assert_eq!(lines, [json!({"created": "snapshot.sqlite"})]);
    let list = project.succeed(&["snapshot", "list"]);
    assert!(
        list.stderr
            .starts_with("the snapshot knows no audience yet\n"),
        "{list:?}"
    );
    project.sync();
    let create: [&[&str]; 2] = [&["snapshot", "create"], &["snapshot", "create", "--anew"]];
    check_refused(
        &project,
        &create,
        &["there is something at snapshot.sqlite already\n\nhint: nothing was changed"],
    );
    assert_eq!(project.sync()["outcome"], "unchanged");
}

#[test]
fn a_snapshot_that_was_deleted_is_not_taken_for_one_that_knows_nobody() {
    let project = synced();
    assert_eq!(last_run(&project), "last run 0000000000000000001");
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    check_refused(&project, &WRITERS, &BOTH_WAYS_OUT);
    check_refused(
        &project,
        &[&["snapshot", "create"]],
        &[
            "the snapshot at snapshot.sqlite is gone, and run 1 of it has told people something\n\n",
            "hint: make it anew from what was delivered: `audience-sync snapshot rebuild --from delivered`; \
             `audience-sync snapshot create --anew` begins with nothing",
        ],
    );
    // Made anew of what was delivered, it knows who is to be told that they have left.
    project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    assert_eq!(
        told(&project.run(&["sync", "--json"])),
        [line("delta", "delivered", 0, 1)]
    );
    let truth = truth(&project.delivered());
    let of = |user: &str| &truth[&(user.to_owned(), "members".to_owned())];
    assert_eq!((of("a"), of("b")), (&json!(false), &json!(true)));
}

#[test]
fn a_snapshot_that_is_begun_anew_goes_on_from_the_number_of_the_last_run() {
    let project = synced();
    project.shop("INSERT INTO members VALUES ('c')");
    project.sync();
    assert_eq!(last_run(&project), "last run 0000000000000000002");
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    project.succeed(&["snapshot", "create", "--anew"]);
    assert_eq!(
        told(&project.run(&["sync", "--json"])),
        [line("first", "delivered", 3, 0)]
    );
    assert_eq!(last_run(&project), "last run 0000000000000000003");
}

#[test]
fn a_backup_is_refused_and_may_be_accepted() {
    let project = synced();
    let (snapshot, backup) = (project.path("snapshot.sqlite"), project.path("backup"));
    fs::copy(&snapshot, &backup).unwrap();
    // A run that tells nobody anything makes no backup of the snapshot.
    assert_eq!(project.sync()["outcome"], "unchanged");
    fs::copy(&backup, &snapshot).unwrap();
    assert_eq!(project.sync()["outcome"], "unchanged");

    project.shop("INSERT INTO members VALUES ('c')");
    project.sync();
    let known = last_run(&project);
    fs::copy(&backup, &snapshot).unwrap();
    let words = [
        "the snapshot snapshot.sqlite knows runs up to 1, and run ",
        " has told people something: it is an older copy\n\n",
        "hint: move it away and make it anew from what was delivered: `audience-sync snapshot rebuild --from delivered`; \
         `audience-sync sync --accept-old-snapshot` goes on from the copy",
    ];
    check_refused(&project, &WRITERS, &words);
    // Looking is allowed.
    project.succeed(&["snapshot", "list"]);
    project.succeed(&["sync", "--dry-run"]);

    // Whoever accepts it tells the last ones again, and is asked no more.
    let ran = project.run(&["sync", "--accept-old-snapshot", "--json"]);
    assert_eq!(told(&ran), [line("delta", "delivered", 1, 0)]);
    assert!(last_run(&project) > known);
    assert_eq!(project.sync()["outcome"], "unchanged");
    project.succeed(&["resync", "members"]);
    project.succeed(&["send", "call.json"]);
}

#[test]
fn an_old_snapshot_is_accepted_by_each_command_that_sends() {
    for arguments in [
        &["sync", "--json"] as &[&str],
        &["resync", "members"],
        &["send", "call.json"],
    ] {
        let project = synced();
        fs::copy(project.path("snapshot.sqlite"), project.path("backup")).unwrap();
        project.shop("INSERT INTO members VALUES ('c')");
        project.sync();
        fs::copy(project.path("backup"), project.path("snapshot.sqlite")).unwrap();
        assert_eq!(project.run(arguments).code, 2, "{arguments:?}");
        project.succeed(&[arguments, &["--accept-old-snapshot"]].concat());
        project.succeed(&["sync"]);
    }
    let project = synced();
    fs::copy(project.path("snapshot.sqlite"), project.path("backup")).unwrap();
    project.shop("INSERT INTO members VALUES ('c')");
    project.sync();
    fs::copy(project.path("backup"), project.path("snapshot.sqlite")).unwrap();
    let staying = project.start(&["run", "--accept-old-snapshot"]);
    eventually("it stays", || staying.stderr().contains("next at"));
    staying.signal("TERM");
    assert_eq!(staying.end().code, 0);
    assert_eq!(project.sync()["added"], 1);
}

#[test]
fn a_rebuilt_snapshot_goes_on_where_a_backup_is_refused() {
    let project = synced();
    fs::copy(project.path("snapshot.sqlite"), project.path("backup")).unwrap();
    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    project.sync();
    // The exit of `b` and the entry of `c` are in the records, and not in the backup.
    fs::copy(project.path("backup"), project.path("snapshot.sqlite")).unwrap();
    project.shop("DELETE FROM members WHERE user_id = 'c'");
    assert_eq!(project.run(&["sync"]).code, 2);
    fs::rename(project.path("snapshot.sqlite"), project.path("aside")).unwrap();
    project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    assert_eq!(
        told(&project.run(&["sync", "--json"])),
        [line("delta", "delivered", 0, 1)]
    );
    let truth = truth(&project.delivered());
    let of = |user: &str| &truth[&(user.to_owned(), "members".to_owned())];
    assert_eq!(
        [of("a"), of("b"), of("c")],
        [&json!(false), &json!(true), &json!(false)]
    );
}

#[test]
fn a_lock_file_that_is_empty_or_gone_proves_nothing() {
    for text in [None, Some(""), Some("last run 12"), Some("\u{fffd}\n")] {
        let project = synced();
        let lock = project.path("snapshot.sqlite.lock");
        match text {
            None => fs::remove_file(&lock).unwrap(),
            Some(text) => fs::write(&lock, text).unwrap(),
        }
        assert_eq!(project.sync()["outcome"], "unchanged", "{text:?}");
        // From now on it knows again.
        project.shop("INSERT INTO members VALUES ('c')");
        project.sync();
        assert_ne!(last_run(&project), "last run 0000000000000000000");
    }
}

/// The number is on disk before the first record is sent: whatever is killed after that leaves a snapshot and a lock file
/// that agree, and a snapshot that is lost then is known to be.
#[test]
fn the_number_of_a_run_is_written_down_before_its_first_record_is_sent() {
    let endpoint = Endpoint::start();
    let project = at_firehose(&endpoint, "");
    enter(&project, 0..3);
    endpoint.script(|call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => Answer::AcceptAndHang,
    });
    let running = project.start(&["sync"]);
    endpoint.wait_until(|ledger| !ledger.calls.is_empty());
    assert_eq!(last_run(&project), "last run 0000000000000000001");
    running.signal("KILL");
    assert_eq!(running.end().code, -1);
    crate::rebuild::lose(&project);
    let ran = project.run(&["snapshot", "create"]);
    assert!(
        ran.code == 2
            && ran
                .stderr
                .contains("is gone, and run 1 of it has told people something"),
        "{ran:?}"
    );
}

/// It may be on a mount that is not there, or be made by hand: a folder, an empty file.
#[test]
fn a_snapshot_that_is_not_mounted_is_no_new_one() {
    let project = project();
    project.write(
        "audience-sync.toml",
        &format!("snapshot = \"state/snapshot.sqlite\"\n{CONFIG}"),
    );
    project.succeed(&["snapshot", "create"]);
    project.sync();
    fs::rename(project.path("state"), project.path("unmounted")).unwrap();
    for make in [
        (|_| ()) as fn(&Project),
        |project| fs::create_dir_all(project.path("state")).unwrap(),
        |project| project.write("state/snapshot.sqlite", ""),
    ] {
        make(&project);
        let ran = project.run(&["sync"]);
        assert!(
            ran.code == 2
                && ran
                    .stderr
                    .contains("there is no snapshot at state/snapshot.sqlite\n\nhint: "),
            "{ran:?}"
        );
    }
    assert_eq!(project.delivered().len(), 2);
    fs::remove_dir_all(project.path("state")).unwrap();
    fs::rename(project.path("unmounted"), project.path("state")).unwrap();
    assert_eq!(project.sync()["outcome"], "unchanged");
}

/// Somebody removes the lock file of a run that goes on, and begins another. The first one writes nothing from then on.
#[cfg(unix)]
#[test]
fn of_two_runs_the_one_whose_lock_file_was_removed_gives_up() {
    let endpoint = Endpoint::start();
    let project = at_firehose(&endpoint, "");
    enter(&project, 0..3);
    let mut calls = 0;
    let held = std::time::Duration::from_secs(1);
    endpoint.script(move |call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => {
            calls += 1;
            match calls {
                1 => Answer::Late(held, Box::new(Answer::Accept)),
                _ => Answer::Accept,
            }
        }
    });
    let first = project.start(&["sync", "--json"]);
    endpoint.wait_until(|ledger| ledger.calls.len() == 1);
    // Before it has its answer: it reads that when the second one is over, however long that takes.
    first.signal("STOP");
    fs::remove_file(project.path("snapshot.sqlite.lock")).unwrap();
    let second = project.succeed(&["sync", "--json"]).lines();
    assert_eq!(second[0]["kind"], "resume");
    first.signal("CONT");
    let first = first.end();
    assert_eq!(first.code, 1, "{first:?}");
    assert!(
        first
            .stderr
            .contains("another run has taken over the snapshot"),
        "{first:?}"
    );
    assert_eq!(project.sync()["outcome"], "unchanged");
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    assert_eq!(
        (&list[0]["members"], &list[0]["pending"]),
        (&json!(3), &json!(0))
    );
}
