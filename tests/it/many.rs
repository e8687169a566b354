//! Many audiences at once: they share calls, commits and waiting, and each still has what is its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::firehose::{mapped, numbers, sorted, user};
use crate::support::endpoint::{Answer, Api, Call, Endpoint};
use crate::support::web::{Reply, Web};
use crate::support::{Project, ended, truth};

/// A project with audiences `a000` and so on, which have these users.
fn project(endpoint: &Endpoint, settings: &str, mapping: &str, members: &[&[&str]]) -> Project {
    let project = mapped(endpoint, settings, mapping);
    let schedule = (0..members.len()).map(|audience| {
        format!(
            "[[audience]]\nname = \"a{audience:03}\"\nsource = \"shop\"\nguard = false\n\
             query = \"SELECT user_id FROM memberships WHERE audience = {audience}\"\n"
        )
    });
    project.write("schedules/main.toml", &schedule.collect::<String>());
    project.shop("CREATE TABLE memberships (audience INTEGER, user_id TEXT)");
    for (audience, users) in members.iter().enumerate() {
        enter(&project, audience, users);
    }
    project
}

fn enter(project: &Project, audience: usize, users: &[&str]) {
    let rows: Vec<_> = users
        .iter()
        .map(|user| format!("({audience}, '{user}')"))
        .collect();
    if !rows.is_empty() {
        project.shop(&format!(
            "INSERT INTO memberships VALUES {}",
            rows.join(",")
        ));
    }
}

const TO_MEMBERS: &str = r#"identify = "members""#;

fn sums<const N: usize>(reports: &[Value], fields: [&str; N]) -> [u64; N] {
    let mut sums = [0; N];
    for report in reports {
        for (sum, number) in sums.iter_mut().zip(numbers(report, fields)) {
            *sum += number;
        }
    }
    sums
}

/// The users of each audience that a call carries something of.
fn audiences(call: &Call) -> BTreeSet<String> {
    let keys = call.records.iter().flat_map(|record| keys(record));
    keys.collect()
}

fn keys(record: &[u8]) -> BTreeSet<String> {
    let lines = record.split_inclusive(|byte| *byte == b'\n');
    lines
        .flat_map(|line| {
            let line: Value = serde_json::from_slice(line).unwrap();
            let traits = line["traits"].as_object().unwrap().clone();
            traits.into_iter().map(|(key, _)| key)
        })
        .collect()
}

#[test]
fn two_hundred_small_audiences_cost_as_many_calls_as_their_records_fill() {
    let endpoint = Endpoint::start();
    let users: Vec<String> = (0..23).map(|user| format!("u{user:02}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let members: Vec<&[&str]> = (0..200)
        .map(|audience| &users[..audience % 23 + 1])
        .collect();
    let project = project(&endpoint, "", TO_MEMBERS, &members);
    let total: u64 = members.iter().map(|users| users.len() as u64).sum();

    let check = |lines: &[Value], outcome: &str, records: u64| {
        assert_eq!(lines.len(), 200);
        for (position, line) in lines.iter().enumerate() {
            assert_eq!(line["audience"], format!("a{position:03}"));
            assert_eq!(
                (&line["outcome"], &line["requests"]),
                (&outcome.into(), &1.into())
            );
        }
        let fields = ["delivered", "records", "retries", "undelivered"];
        assert_eq!(sums(lines, fields), [records, records, 0, 0]);
        let ledger = endpoint.take_ledger();
        assert_eq!(ledger.accepted.len() as u64, records);
        let bytes = ledger
            .accepted
            .iter()
            .map(|(_, record)| record.len() as u64);
        assert_eq!(sums(lines, ["bytes"]), [bytes.sum::<u64>()]);
        // One more than they fill, since each chunk goes whole.
        let calls = ledger.calls.len() as u64;
        assert!(calls <= records.div_ceil(500) + 1, "{calls} of {records}");
        ledger
    };
    let ledger = check(
        &project.succeed(&["sync", "--json"]).lines(),
        "delivered",
        total,
    );
    let mut records: Vec<Value> = ledger
        .accepted
        .iter()
        .map(|(_, record)| serde_json::from_slice(record).unwrap())
        .collect();
    let expected: BTreeMap<_, _> = members
        .iter()
        .enumerate()
        .flat_map(|(audience, users)| {
            users
                .iter()
                .map(move |user| (((*user).to_owned(), format!("a{audience:03}")), json!(true)))
        })
        .collect();
    assert_eq!(truth(&records), expected);

    // Each run began later than the ones before it.
    records.sort_by_key(|record| record["traits"].to_string());
    let times: Vec<_> = records
        .iter()
        .map(|record| record["timestamp"].to_string())
        .collect();
    assert!(times.is_sorted());
    assert_eq!(times.iter().collect::<BTreeSet<_>>().len(), 200);

    project.shop("INSERT INTO memberships SELECT DISTINCT audience, 'new' FROM memberships");
    check(
        &project.succeed(&["sync", "--json"]).lines(),
        "delivered",
        200,
    );
    let again = project.succeed(&["sync", "--json"]).lines();
    assert!(again.iter().all(|line| line["outcome"] == "unchanged"));
    assert!(endpoint.ledger().calls.is_empty());
}

#[test]
fn a_small_audience_does_not_wait_for_the_end_of_a_large_one() {
    let endpoint = Endpoint::start();
    let project = project(&endpoint, "", TO_MEMBERS, &[&[], &["x", "y"], &["z"]]);
    project.shop(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
         INSERT INTO memberships SELECT 0, 'u' || i FROM n",
    );
    let reports = project.succeed(&["sync", "--json"]).lines();
    assert_eq!(numbers(&reports[0], ["records", "requests"]), [30_000, 60]);
    let ledger = endpoint.ledger();
    assert_eq!(ledger.calls.len(), 61);
    let small = ledger
        .calls
        .iter()
        .position(|call| audiences(call).len() == 2);
    // As many calls as are under way together.
    assert!(small.unwrap() < 16, "{small:?}");
}

#[test]
fn a_packed_record_holds_lines_of_one_run_only() {
    let endpoint = Endpoint::start();
    let members: [&[&str]; 3] = [&["a", "b", "c"], &["a", "b"], &["b"]];
    let project = project(&endpoint, "pack = true", TO_MEMBERS, &members);
    let reports = project.succeed(&["sync", "--json"]).lines();
    let ledger = endpoint.ledger();
    assert_eq!(ledger.calls.len(), 1);
    for (position, (_, record)) in ledger.accepted.iter().enumerate() {
        assert_eq!(keys(record), [format!("a{position:03}")].into());
        let counted = numbers(&reports[position], ["records", "bytes", "billed_bytes"]);
        assert_eq!(counted, [1, record.len() as u64, 5_120]);
    }
}

#[test]
fn one_bad_record_among_several_audiences_is_dead_for_its_own_only() {
    let endpoint = Endpoint::start();
    let members: [&[&str]; 3] = [&["a", "b"], &["a", "poison"], &["c"]];
    let project = project(&endpoint, "", TO_MEMBERS, &members);
    endpoint.script(|call| {
        let poison = |record: &Vec<u8>| user(record) == "poison";
        match call.records.iter().any(poison) {
            true => Answer::error(400, "ValidationException"),
            false => Answer::Accept,
        }
    });
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let reports = ran.lines();
    let outcomes: Vec<_> = reports.iter().map(|report| &report["outcome"]).collect();
    assert_eq!(outcomes, ["delivered", "undelivered", "delivered"]);
    let counted = reports
        .iter()
        .map(|report| numbers(report, ["delivered", "undelivered"]));
    assert_eq!(counted.collect::<Vec<_>>(), [[2, 0], [1, 1], [1, 0]]);
    let has_error = reports.iter().map(|report| report.get("error").is_some());
    assert_eq!(has_error.collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(endpoint.ledger().accepted.len(), 4);
    let letters = project.succeed(&["snapshot", "dead", "--json"]).lines();
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0]["audience"], &letters[0]["user_id"]),
        (&json!("a001"), &json!("poison"))
    );

    endpoint.accept_everything();
    endpoint.take_ledger();
    project.succeed(&["sync"]);
    let again = endpoint.ledger().accepted;
    assert_eq!(again.len(), 1);
    assert_eq!(keys(&again[0].1), ["a001".to_owned()].into());
}

#[test]
fn a_stream_that_is_missing_is_asked_once_and_told_to_everyone() {
    let endpoint = Endpoint::start();
    let users: Vec<String> = (0..400).map(|user| format!("u{user:03}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let members = [users.as_slice(); 60];
    let mapping = r#"identify = ["members", "missing"]"#;
    let project = project(&endpoint, "", mapping, &members);
    endpoint.script(|call| match &*call.stream {
        "missing" => Answer::error(400, "ResourceNotFoundException"),
        _ => Answer::Accept,
    });
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let reports = ran.lines();
    assert_eq!(reports.len(), 120);
    for report in reports.chunks(2) {
        let counted = |report| numbers(report, ["delivered", "undelivered", "records"]);
        assert_eq!(report[0]["stream"], "members");
        assert_eq!(counted(&report[0]), [400, 0, 400]);
        assert_eq!(report[1]["stream"], "missing");
        assert_eq!(counted(&report[1]), [0, 400, 0]);
        let error = report[1]["error"].as_str().unwrap();
        assert!(error.contains("`missing`"), "{error}");
    }
    let ledger = endpoint.take_ledger();
    let asked = ledger.calls.iter().filter(|call| call.stream == "missing");
    // As many as were under way when the first answer came.
    assert!(asked.count() <= 20);

    endpoint.accept_everything();
    let lines = project.succeed(&["sync", "--json"]).lines();
    let kinds: Vec<_> = lines.iter().map(|line| &line["kind"]).collect();
    assert_eq!(kinds, ["delta", "resume", "delta"].repeat(60));
    let calls = endpoint.ledger().calls;
    assert!(calls.iter().all(|call| call.stream == "missing"));
    assert_eq!(
        calls.iter().map(|call| call.records.len()).sum::<usize>(),
        24_000
    );
}

#[test]
fn a_crash_repeats_what_was_in_flight_of_each_audience_and_loses_nothing() {
    let endpoint = Endpoint::start();
    let members: [&[&str]; 4] = [&["a", "b"], &["a"], &["b", "c"], &["d"]];
    let project = project(&endpoint, "", TO_MEMBERS, &members);
    endpoint.answer([Answer::AcceptAndHang]);
    let mut child = project.command(&["sync", "--json"]).spawn().unwrap();
    endpoint.wait_until(|ledger| ledger.accepted.len() == 6);
    child.kill().unwrap();
    drop(ended(child));
    let before = endpoint.take_ledger();
    assert_eq!(before.calls.len(), 1);
    assert_eq!(audiences(&before.calls[0]).len(), 4);

    let lines = project.succeed(&["sync", "--json"]).lines();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["kind"].as_str().unwrap(),
                numbers(line, ["delivered"])[0],
            )
        })
        .collect();
    let resumed = |delivered| [("resume", delivered), ("delta", 0)];
    assert_eq!(
        told,
        [resumed(2), resumed(1), resumed(2), resumed(1)].concat()
    );
    let after = endpoint.ledger();
    assert_eq!(after.calls.len(), 1);
    let again = |records: &[(String, Vec<u8>)]| sorted(records.iter().map(|(_, line)| &**line));
    assert_eq!(again(&before.accepted), again(&after.accepted));
}

#[test]
fn after_a_signal_what_is_planned_stays_in_the_journal_and_nothing_is_sent() {
    let endpoint = Endpoint::start();
    let members: [&[&str]; 3] = [&["a"], &["b"], &[]];
    let project = project(&endpoint, "", TO_MEMBERS, &members);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000000) \
                   SELECT DISTINCT 'u' || (i % 7) AS user_id FROM n";
    let schedule = std::fs::read_to_string(project.path("schedules/main.toml")).unwrap();
    let last = "SELECT user_id FROM memberships WHERE audience = 2";
    project.write("schedules/main.toml", &schedule.replace(last, endless));
    let running = project.start(&["-vv", "sync", "--json"]);
    crate::support::eventually("two are planned", || {
        running.stderr().matches("planned").count() >= 2
    });
    running.signal("TERM");
    let ran = running.end();
    assert_eq!(ran.code, 3, "{ran:?}");
    let told: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| (line["outcome"].clone(), line["undelivered"].clone()))
        .collect();
    assert_eq!(told, vec![(json!("undelivered"), json!(1)); 2]);
    assert!(endpoint.ledger().of(Api::PutRecordBatch).is_empty());

    project.write("schedules/main.toml", &schedule);
    project.succeed(&["sync"]);
    assert_eq!(endpoint.ledger().accepted.len(), 2);
}

#[test]
fn one_that_fails_takes_only_its_own_plan_back() {
    let endpoint = Endpoint::start();
    let members: [&[&str]; 3] = [&["a"], &["b"], &["c"]];
    let project = project(&endpoint, "", TO_MEMBERS, &members);
    // Fails after its first member.
    project.shop("INSERT INTO memberships VALUES (1, x'00')");
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let outcomes: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| line["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["delivered", "failed", "delivered"]);
    let users = endpoint.ledger().accepted;
    let users: BTreeSet<_> = users.iter().map(|(_, record)| user(record)).collect();
    assert_eq!(users, ["a".to_owned(), "c".to_owned()].into());
    let runs = project
        .succeed(&["snapshot", "runs", "a001", "--json"])
        .lines();
    assert_eq!(runs.len(), 1);
    assert_eq!(
        (&runs[0]["outcome"], &runs[0]["added"]),
        (&json!("failed"), &json!(0))
    );
}

#[test]
fn destinations_do_not_wait_for_each_other() {
    let slow = Endpoint::start();
    let project = project(&slow, "", TO_MEMBERS, &[&["a", "b"], &["c"]]);
    let config = std::fs::read_to_string(project.path("audience-sync.toml")).unwrap();
    let other =
        "[destination.other]\ndirectory = \"delivered\"\nmapping = { identify = \"members\" }\n";
    project.write("audience-sync.toml", &format!("{config}{other}"));
    let schedule = std::fs::read_to_string(project.path("schedules/main.toml")).unwrap();
    let both = "destinations = [\"main\", \"other\"]\nquery";
    project.write("schedules/main.toml", &schedule.replace("query", both));
    slow.answer([Answer::AcceptAndHang]);
    let running = project.start(&["sync", "--json"]);
    crate::support::eventually("the files are there", || {
        !crate::support::files(&project.path("delivered/members")).is_empty()
    });
    slow.wait_until(|ledger| ledger.calls.len() == 1);
    assert_eq!(running.stdout(), "");
    assert_eq!(project.delivered().len(), 3);
    running.signal("KILL");
    drop(running.end());

    // Nor later, when something waits for the slow one and nothing for the other.
    slow.take_ledger();
    slow.answer([Answer::AcceptAndHang]);
    enter(&project, 1, &["d"]);
    let running = project.start(&["sync", "--json"]);
    crate::support::eventually("the delta is there", || project.delivered().len() == 4);
    slow.wait_until(|ledger| ledger.calls.len() == 1);
    assert_eq!(running.stdout(), "");
    running.signal("KILL");
    drop(running.end());
}

/// Two servers that do not answer before the audience after theirs is delivered, which is more than are read ahead.
#[test]
fn a_source_that_is_slow_holds_up_no_other_audience() {
    let project = Project::empty();
    let delivered = project.path("delivered/members");
    let seen = Arc::new(AtomicBool::new(true));
    let all_seen = Arc::clone(&seen);
    let crm = Web::start(move |_| {
        let deadline = Instant::now() + Duration::from_secs(100);
        while !delivered.exists() && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(20));
        }
        all_seen.fetch_and(delivered.exists(), Ordering::Relaxed);
        Reply::json(&json!(["c"]))
    });
    project.write(
        "audience-sync.toml",
        &format!(
            "[source.crm]\nurl = \"{}\"\ntimeout = \"120s\"\n{}",
            crm.url("/{key}"),
            crate::support::CONFIG
        ),
    );
    project.write(
        "schedules/main.toml",
        "[[audience]]\nname = \"one\"\nsource = \"crm\"\n[[audience]]\nname = \"two\"\nsource = \"crm\"\n\
         [[audience]]\nname = \"quick\"\nsource = \"shop\"\nquery = \"SELECT 'a' AS user_id\"\n",
    );
    project.shop("CREATE TABLE memberships (audience INTEGER, user_id TEXT)");
    let reports = project.succeed(&["sync", "--json"]).lines();
    assert!(seen.load(Ordering::Relaxed), "{reports:?}");
    let names: Vec<_> = reports.iter().map(|report| &report["audience"]).collect();
    assert_eq!(names, ["one", "two", "quick"]);
    assert_eq!(truth(&project.delivered()).len(), 3);
}
