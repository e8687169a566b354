//! One run at a time for a snapshot, across processes.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::{Duration, Instant};

use crate::firehose::{enter, project as at_firehose, user};
use crate::support::endpoint::{Answer, Api, Endpoint};
use crate::support::{Project, ended, eventually};

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

/// With an empty snapshot, and its lock held as another process would.
fn held() -> (Project, File) {
    let project = project().without_snapshot();
    project.succeed(&["snapshot", "create"]);
    let mut file = File::create(project.path("snapshot.sqlite.lock")).unwrap();
    file.lock().unwrap();
    file.write_all(
        b"last run 0000000000000000000\n`audience-sync run`, process 7, since yesterday\n",
    )
    .unwrap();
    (project, file)
}

#[test]
fn the_second_run_is_told_who_the_first_is() {
    let (project, held) = held();
    let before = project.contents();
    for arguments in [
        &["sync", "--json"] as &[&str],
        &["resync", "members", "--json"],
    ] {
        // Nobody gives the lock back, so it does not wait for that.
        let ran = project.run(arguments);
        assert_eq!(ran.code, 5, "{ran:?}");
        assert!(
            ran.stderr.contains(
                "another run holds the snapshot: `audience-sync run`, process 7, since yesterday"
            ),
            "{ran:?}"
        );
        let lines = ran.lines();
        assert_eq!(lines.len(), 1, "{ran:?}");
        let told = ["audience", "stream", "kind", "outcome"].map(|field| &lines[0][field]);
        assert_eq!(told, ["members", "members", "first", "busy"]);
    }
    assert_eq!(project.contents(), before);
    // A dry run writes nothing, and so waits for nobody.
    project.succeed(&["sync", "--dry-run"]);
    drop(held);
    project.sync();
}

#[test]
fn a_run_that_may_wait_waits() {
    let (project, held) = held();
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

/// Which users arrived, in order, each as often as it did.
fn arrived(endpoint: &Endpoint) -> Vec<String> {
    let ledger = endpoint.ledger();
    let mut users: Vec<_> = ledger
        .accepted_by("members")
        .into_iter()
        .map(user)
        .collect();
    users.sort();
    users
}

/// Two programs: the first waits for an answer that does not come, and is killed.
#[test]
fn a_run_that_was_killed_is_in_nobodys_way_and_nothing_of_it_is_lost() {
    let endpoint = Endpoint::start();
    let project = at_firehose(&endpoint, "");
    enter(&project, 0..1_000);
    let mut calls = 0;
    endpoint.script(move |call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => {
            calls += 1;
            [Answer::AcceptAndHang, Answer::Accept][usize::from(calls > 1)].clone()
        }
    });
    let first = project.start(&["sync"]);
    endpoint.wait_until(|ledger| ledger.calls.len() == 2);

    for arguments in [
        &["sync", "--json"] as &[&str],
        &["resync", "members", "--json"],
    ] {
        let ran = project.run(arguments);
        let holder = format!(
            "error: another run holds the snapshot: `audience-sync sync`, process {}, since ",
            first.child.id()
        );
        assert!(ran.code == 5 && ran.stderr.contains(&holder), "{ran:?}");
        assert_eq!(ran.lines()[0]["outcome"], "busy");
    }
    let call = r#"{"type":"identify","userId":"z"}"#;
    assert_eq!(project.pipe(&["send"], call).code, 5);
    // Looking is allowed meanwhile.
    project.succeed(&["snapshot", "list"]);
    project.succeed(&["sync", "--dry-run"]);

    first.signal("KILL");
    let killed = first.end();
    assert_eq!(killed.code, -1, "{killed:?}");
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(ran.lines()[0]["kind"], "resume", "{ran:?}");
    assert_eq!(project.sync()["outcome"], "unchanged");
    // All arrived, and only what was in flight did so twice, as the same bytes.
    let mut users = arrived(&endpoint);
    assert!(users.len() <= 2_000, "{}", users.len());
    users.dedup();
    assert_eq!(users.len(), 1_000);
    let mut records = endpoint.ledger().accepted;
    records.sort();
    records.dedup();
    assert_eq!(records.len(), 1_000);
}

#[test]
fn a_resync_beside_a_program_that_stays_takes_its_turn() {
    let endpoint = Endpoint::start();
    let project = at_firehose(&endpoint, "");
    enter(&project, 0..10);
    let schedule = fs::read_to_string(project.path("schedules/main.toml")).unwrap();
    project.write(
        "schedules/main.toml",
        &format!("cron = \"0 0 1 1 *\"\n{schedule}"),
    );
    let slow = Answer::Late(Duration::from_secs(2), Box::new(Answer::Accept));
    endpoint.answer([slow]);
    let staying = project.start(&["run"]);
    endpoint.wait_until(|ledger| ledger.calls.len() == 1);

    let refused = project.run(&["resync", "members"]);
    let holder = format!(
        "`audience-sync run`, process {}, since ",
        staying.child.id()
    );
    assert!(
        refused.code == 5 && refused.stderr.contains(&holder),
        "{refused:?}"
    );
    assert!(
        refused
            .stderr
            .contains("hint: wait for it to end, or use --wait")
    );
    let waited = project
        .succeed(&["resync", "members", "--wait", "--json"])
        .lines();
    assert_eq!(
        (&waited[0]["kind"], &waited[0]["delivered"]),
        (&"resync".into(), &10.into())
    );
    assert_eq!(arrived(&endpoint).len(), 20);
    eventually("the first run is logged", || {
        staying.stderr().contains("members: delivered, 10 members")
    });
    staying.signal("TERM");
    assert_eq!(staying.end().code, 0);
}

#[test]
fn a_lock_that_cannot_be_made_is_named() {
    let project = project();
    fs::create_dir(project.path("snapshot.sqlite.lock")).unwrap();
    for arguments in [&["sync"] as &[&str], &["resync", "members"]] {
        let ran = project.run(arguments);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert_eq!(
            ran.stderr,
            "error: cannot lock snapshot.sqlite.lock: Is a directory (os error 21)\n\n\
             hint: a run makes this file beside the snapshot, and must be able to write to it\n"
        );
    }
    assert!(!project.path("snapshot.sqlite").exists() && project.delivered().is_empty());
}
