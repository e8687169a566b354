//! Staying, and syncing by the clock.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::firehose;
use crate::support::endpoint::{Answer, Endpoint};
use crate::support::web::{Reply, Web};
use crate::support::{CONFIG, Project, Running, eventually, truth, within};

const EVERY_SECOND: &str = r#"
cron = "*/1 * * * * *"

[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

fn project(schedule: &str) -> Project {
    let project = Project::new(schedule);
    project.shop(
        "CREATE TABLE members (user_id TEXT PRIMARY KEY); INSERT INTO members VALUES ('a'), ('b')",
    );
    project
}

fn members(project: &Project) -> Vec<String> {
    let truth = truth(&project.delivered());
    let members = truth.into_iter().filter(|(_, value)| *value == true);
    members.map(|((user, _), _)| user).collect()
}

/// Nothing lies beside the snapshot but its lock: it is closed.
#[track_caller]
fn assert_closed(project: &Project) {
    let beside: Vec<_> = fs::read_dir(project.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("snapshot.sqlite") && !name.ends_with(".lock"))
        .collect();
    assert_eq!(beside, ["snapshot.sqlite"]);
}

#[track_caller]
fn assert_stops(running: Running, signal: &str, project: &Project) -> String {
    running.signal(signal);
    let ran = running.end();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_closed(project);
    ran.stderr
}

#[test]
fn a_change_of_the_source_is_sent_at_the_next_tick() {
    let project = project(EVERY_SECOND);
    let running = project.start(&["run"]);
    eventually("the first sync", || members(&project) == ["a", "b"]);
    project.shop("DELETE FROM members WHERE user_id = 'a'; INSERT INTO members VALUES ('c')");
    eventually("the delta", || members(&project) == ["b", "c"]);
    let log = assert_stops(running, "TERM", &project);
    for words in [
        "main: overdue",
        "main: next at ",
        "members: delivered, 2 members, 1 added, 1 removed",
        "stopped",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    // Everything is remembered.
    assert_eq!(project.sync()["outcome"], "unchanged");
    assert_eq!(project.delivered().len(), 4);
}

/// Yearly, so that only what is overdue runs.
#[test]
fn what_is_overdue_runs_at_the_start_and_the_rest_when_it_is_due() {
    let project = project(&EVERY_SECOND.replace("*/1 * * * * *", "0 0 1 1 *"));
    let running = project.start(&["run", "--json"]);
    eventually("the first sync", || running.stdout().ends_with('\n'));
    assert_stops(running, "INT", &project);
    assert_eq!(members(&project), ["a", "b"]);

    project.shop("INSERT INTO members VALUES ('c')");
    let running = project.start(&["run", "--json"]);
    eventually("it waits", || running.stderr().contains("main: next at "));
    let log = assert_stops(running, "INT", &project);
    assert!(!log.contains("overdue"), "{log}");
    assert_eq!(members(&project), ["a", "b"]);
}

#[test]
fn it_prints_the_lines_of_sync() {
    let project = project(EVERY_SECOND);
    let running = project.start(&["run", "--json"]);
    eventually("two runs", || running.stdout().lines().count() >= 2);
    let lines: Vec<Value> = running
        .stdout()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_stops(running, "TERM", &project);
    assert_eq!(
        [&lines[0]["outcome"], &lines[1]["outcome"]],
        [&json!("delivered"), &json!("unchanged")]
    );
    let expected = project.sync();
    let names: Vec<&str> = expected
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    crate::support::assert_fields(&lines[0], &names);
}

/// The read waits for its five seconds, in which ticks pass.
#[test]
fn a_tick_is_skipped_while_its_schedule_runs() {
    let project = project(EVERY_SECOND);
    let running = project.start(&["run"]);
    eventually("the first sync", || members(&project) == ["a", "b"]);
    let writer = project.shop_connection();
    eventually("the source is ours", || {
        writer.execute_batch("BEGIN EXCLUSIVE").is_ok()
    });
    eventually("a tick is skipped", || {
        running
            .stderr()
            .contains("main: skipped, since its last run is still going on")
    });
    writer
        .execute_batch("INSERT INTO members VALUES ('c'); COMMIT")
        .unwrap();
    eventually("the delta", || members(&project) == ["a", "b", "c"]);
    assert_stops(running, "TERM", &project);
}

/// A server that answers when the test says so.
#[test]
fn a_schedule_whose_source_is_slow_keeps_no_other_from_running() {
    let project = project(EVERY_SECOND);
    let [is_asked, may_answer] = [false; 2].map(|no| Arc::new(AtomicBool::new(no)));
    let crm = Web::start({
        let (is_asked, may_answer) = (Arc::clone(&is_asked), Arc::clone(&may_answer));
        move |_| {
            is_asked.store(true, Ordering::Relaxed);
            let may_answer = || may_answer.load(Ordering::Relaxed);
            within(Duration::from_secs(100), "the answer", may_answer);
            Reply::json(&json!(["slow"]))
        }
    });
    let source = format!(
        "[source.crm]\nurl = \"{}\"\ntimeout = \"200s\"\n",
        crm.url("/")
    );
    project.write("audience-sync.toml", &(source + CONFIG));
    let slow = "cron = \"0 0 1 1 *\"\n[[audience]]\nname = \"Slow\"\nsource = \"crm\"\n";
    project.write("schedules/slow.toml", slow);
    let running = project.start(&["run"]);
    eventually("the server is asked", || is_asked.load(Ordering::Relaxed));
    eventually("the first sync", || members(&project) == ["a", "b"]);
    project.shop("INSERT INTO members VALUES ('c')");
    eventually("the delta", || members(&project) == ["a", "b", "c"]);
    may_answer.store(true, Ordering::Relaxed);
    eventually("the slow one", || {
        members(&project).contains(&"slow".to_owned())
    });
    assert_stops(running, "TERM", &project);
}

#[test]
fn a_manual_sync_finds_its_turn_between_two_ticks() {
    let project = project(EVERY_SECOND);
    let running = project.start(&["run"]);
    eventually("the first sync", || members(&project) == ["a", "b"]);
    for _ in 0..3 {
        project.succeed(&["sync", "--wait"]);
    }
    project.shop("INSERT INTO members VALUES ('c')");
    project.succeed(&["sync", "--wait"]);
    assert_eq!(members(&project), ["a", "b", "c"]);
    assert_stops(running, "TERM", &project);
    assert_eq!(project.delivered().len(), 3);
}

#[test]
fn an_audience_that_fails_ends_neither_the_others_nor_the_program() {
    let project = project(&format!(
        "{EVERY_SECOND}\n[[audience]]\nname = \"Broken\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM nowhere\"\n"
    ));
    // Another schedule whose source is not there yet.
    let config = fs::read_to_string(project.path("audience-sync.toml")).unwrap();
    project.write(
        "audience-sync.toml",
        &format!("{config}\n[source.late]\nsqlite = \"late.sqlite\"\n"),
    );
    project.write(
        "schedules/late.toml",
        &EVERY_SECOND
            .replace("shop", "late")
            .replace("Members", "Late"),
    );
    project.shop("CREATE TABLE nowhere (user_id TEXT)");
    let running = project.start(&["run"]);
    eventually("a missing source is logged", || {
        running.stderr().contains("late: failed: ")
    });
    project.shop("DROP TABLE nowhere");
    eventually("a query that went wrong is logged", || {
        running.stderr().contains("broken: failed: ")
    });
    project.shop("INSERT INTO members VALUES ('c')");
    eventually("the delta", || members(&project) == ["a", "b", "c"]);
    let late = rusqlite::Connection::open(project.path("late.sqlite")).unwrap();
    late.execute_batch("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('z')")
        .unwrap();
    eventually("the late one", || members(&project) == ["a", "b", "c", "z"]);
    assert_stops(running, "TERM", &project);
}

/// The outcomes and errors of an audience's runs.
fn runs(project: &Project, audience: &str) -> Vec<(Value, String)> {
    let lines = project.succeed(&["snapshot", "runs", "--json"]).lines();
    let of_it = lines.into_iter().filter(|run| run["audience"] == audience);
    of_it
        .map(|run| {
            let error = run["error"].as_str().unwrap_or_default().to_owned();
            (run["outcome"].clone(), error)
        })
        .collect()
}

#[test]
fn queries_that_cannot_run_are_reported_at_the_start_and_fail_by_themselves() {
    let audience = |name: &str, query: &str| {
        format!("\n[[audience]]\nname = \"{name}\"\nsource = \"shop\"\nquery = \"{query}\"\n")
    };
    let project = project(
        &(EVERY_SECOND.to_owned()
            + &audience("Missing", "SELECT user_id FROM nowhere")
            + &audience("Wrong", "SELEC user_id FROM members")),
    );
    let running = project.start(&["run"]);
    eventually("the healthy one", || members(&project) == ["a", "b"]);
    for reported in [
        "cannot run on source `shop`: no such table: nowhere\n  --> schedules/main.toml:",
        "wrong: ",
        "hint: correct the query; `audience-sync check` compiles it without running it",
        "missing: failed: ",
        "wrong: failed: ",
    ] {
        eventually(reported, || running.stderr().contains(reported));
    }
    project.shop("INSERT INTO members VALUES ('c')");
    eventually("the delta", || members(&project) == ["a", "b", "c"]);
    project.shop("CREATE TABLE nowhere (user_id TEXT); INSERT INTO nowhere VALUES ('z')");
    eventually("the missing one", || {
        members(&project) == ["a", "b", "c", "z"]
    });
    let log = assert_stops(running, "TERM", &project);
    assert!(log.contains("missing: tried again in 60 s"), "{log}");
    for (audience, error) in [("missing", "no such table: nowhere"), ("wrong", "syntax")] {
        let runs = runs(&project, audience);
        let has_failed =
            |(outcome, why): &&(Value, String)| outcome == "failed" && why.contains(error);
        assert!(runs.iter().any(|run| has_failed(&run)), "{runs:?}");
    }
}

#[test]
fn two_audiences_of_one_key_end_the_start() {
    let project = project(&format!(
        "{EVERY_SECOND}\n[[audience]]\nid = \"other\"\nname = \"Members\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\n"
    ));
    let before = project.contents();
    let ran = project.run(&["run"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert_eq!(project.contents(), before);
}

#[test]
fn without_a_cron_there_is_nothing_to_run() {
    let project = project(&EVERY_SECOND.replace("cron = \"*/1 * * * * *\"", ""));
    project.sync();
    let before = project.contents();
    let ran = project.run(&["run"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("no schedule has a `cron`"), "{ran:?}");
    assert_eq!(project.contents(), before);
}

/// A query that gives nothing for minutes must not keep the machine from shutting down, nor one that tells how old its
/// source is.
#[test]
fn a_signal_ends_a_query_that_takes_for_ever() {
    let count =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000000)";
    let members = "SELECT user_id FROM members";
    let late = EVERY_SECOND.replace(
        members,
        &format!("{count} {members} WHERE (SELECT max(i) FROM n) > 0"),
    );
    let expect =
        format!("expect = {{ max_age = \"1h\", updated_at = \"{count} SELECT max(i) FROM n\" }}\n");
    for schedule in [late, EVERY_SECOND.to_owned() + &expect] {
        let project = project(&schedule);
        let running = project.start(&["run"]);
        eventually("a tick finds it running", || {
            running.stderr().contains("skipped")
        });
        running.signal("TERM");
        crate::support::within(Duration::from_secs(5), "it stops", || {
            running.stderr().contains(" stopped")
        });
        assert_eq!(running.end().code, 0);
        assert_closed(&project);
        assert_eq!(project.delivered().len(), 0);
    }
}

/// A call without an answer keeps it from ending.
#[test]
fn a_second_signal_ends_it_at_once() {
    let endpoint = Endpoint::start();
    let project = firehose::project(&endpoint, "");
    project.write("schedules/main.toml", EVERY_SECOND);
    firehose::enter(&project, 0..2);
    endpoint.answer([Answer::AcceptAndHang]);
    let running = project.start(&["run"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 2);
    running.signal("TERM");
    eventually("it has heard", || running.stderr().contains("stopping"));
    running.signal("TERM");
    assert_eq!(running.end().code, 130);
    let lines = project.succeed(&["sync", "--json"]).lines();
    assert_eq!(
        [&lines[0]["delivered"], &lines[1]["outcome"]],
        [&json!(2), &json!("unchanged")]
    );
}
