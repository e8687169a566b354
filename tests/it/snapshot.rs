//! `snapshot`: what was accepted, and why. Nothing here writes, needs a secret, or shows one.

use audience_sync::run::Timestamp;
use serde_json::{Value, json};

use crate::support::{CONFIG, Project, Ran, assert_fields};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"

[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, spend AS value FROM members"

[[audience]]
name = "Visitors"
source = "shop"
query = "SELECT anonymous_id FROM visitors"
"#;

fn project() -> Project {
    let project = Project::new(SCHEDULE);
    project.shop(
        "CREATE TABLE members (user_id TEXT, spend);
         CREATE TABLE visitors (anonymous_id TEXT);
         INSERT INTO members VALUES ('a', 1), ('b', 'x\"y'), ('c', 1.5);
         INSERT INTO visitors VALUES ('a'), ('z')",
    );
    project
}

/// After a first sync, and a second one by which `a` has left.
fn synced() -> Project {
    let project = project();
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM members WHERE user_id = 'a'; UPDATE members SET spend = 2 WHERE user_id = 'c'",
    );
    project.succeed(&["sync"]);
    project
}

/// Runs a command that must end well and leave every file as it was.
#[track_caller]
fn look(project: &Project, arguments: &[&str]) -> Ran {
    let before = project.contents();
    let ran = project.succeed(arguments);
    assert!(project.contents() == before, "{arguments:?} changed a file");
    ran
}

#[track_caller]
fn lines(project: &Project, arguments: &[&str]) -> Vec<Value> {
    look(project, &[arguments, &["--json"]].concat()).lines()
}

#[test]
fn where_there_is_no_snapshot_there_is_nothing_to_see_and_nothing_is_made() {
    let project = project();
    let commands: [&[&str]; 5] = [
        &["snapshot", "list"],
        &["snapshot", "show", "members"],
        &["snapshot", "user", "a"],
        &["snapshot", "runs"],
        &["snapshot", "runs", "Members"],
    ];
    for command in commands {
        for json in [false, true] {
            let flags: &[&str] = if json { &["--json"] } else { &[] };
            let ran = look(&project, &[command, flags].concat());
            assert_eq!(ran.stdout, "", "{command:?}");
            assert_eq!(
                ran.stderr,
                "there is no snapshot at snapshot.sqlite\n\nhint: make it anew from what was delivered: \
                 `audience-sync snapshot rebuild --from delivered`; if nothing was ever delivered, begin with \
                 `audience-sync snapshot create`\n"
            );
        }
    }
}

#[test]
fn list_has_a_line_for_each_audience_and_stream() {
    let project = synced();
    let lines = lines(&project, &["snapshot", "list"]);
    let found: Vec<_> = lines
        .iter()
        .map(|line| (&line["audience"], &line["kind"], &line["members"]))
        .collect();
    assert_eq!(
        found,
        [
            (&json!("members"), &json!("audience"), &json!(2)),
            (&json!("spend"), &json!("trait"), &json!(2)),
            (&json!("visitors"), &json!("audience"), &json!(2)),
        ]
    );
    assert_fields(
        &lines[0],
        &[
            "audience",
            "id",
            "name",
            "destination",
            "stream",
            "kind",
            "members",
            "last_run",
            "last_outcome",
            "last_synced_at",
            "pending",
            "retired",
            "held",
            "held_added",
            "held_changed",
            "dead",
        ],
    );
    let last = ["stream", "last_outcome", "pending", "held", "dead"].map(|field| &lines[0][field]);
    assert_eq!(
        last,
        [
            &json!("members"),
            &json!("delivered"),
            &json!(0),
            &json!(0),
            &json!(0)
        ]
    );
    let table = look(&project, &["snapshot", "list"]);
    let header = table.stdout.lines().next().unwrap();
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        [
            "AUDIENCE",
            "KIND",
            "DESTINATION",
            "STREAM",
            "MEMBERS",
            "LAST",
            "SYNC",
            "PENDING",
            "DEAD",
            "HELD"
        ]
    );
    assert_eq!(
        (table.stdout.lines().count(), table.stderr.as_str()),
        (4, "")
    );
}

#[test]
fn list_says_what_is_held_and_what_is_pending() {
    let project = project();
    project.succeed(&["sync"]);
    project.shop("DELETE FROM members");
    assert_eq!(project.run(&["sync", "members"]).code, 4);
    let held = &lines(&project, &["snapshot", "list"])[0];
    assert_eq!((&held["held"], &held["members"]), (&json!(3), &json!(3)));

    project.shop("INSERT INTO visitors VALUES ('y')");
    break_destination(&project);
    assert_eq!(project.run(&["sync", "visitors"]).code, 3);
    let pending = &lines(&project, &["snapshot", "list"])[2];
    assert_eq!(
        (&pending["pending"], &pending["members"]),
        (&json!(1), &json!(2))
    );
}

/// A file stands where the directory should be, so that nothing can be delivered.
fn break_destination(project: &Project) {
    std::fs::rename(project.path("delivered"), project.path("aside")).unwrap();
    project.write("delivered", "");
}

#[test]
fn show_prints_each_member_since_when_and_by_which_run() {
    let project = synced();
    let members = lines(&project, &["snapshot", "show", "members"]);
    assert_eq!(members.len(), 2);
    assert_fields(
        &members[0],
        &["user_id", "value", "destination", "stream", "since", "run"],
    );
    assert_eq!(
        (&members[0]["user_id"], &members[0]["value"]),
        (&json!("b"), &json!(true))
    );
    let runs = lines(&project, &["snapshot", "runs", "members"]);
    assert_eq!(runs[1]["run"], members[0]["run"]);
    // Since the time of the record.
    let delivered = project.delivered();
    let is_entry = |record: &&Value| record["userId"] == "b" && record["traits"]["members"] == true;
    let entry = delivered.iter().find(is_entry).unwrap();
    assert_eq!(entry["timestamp"], members[0]["since"]);

    let visitors = lines(&project, &["snapshot", "show", "visitors"]);
    assert_fields(
        &visitors[0],
        &[
            "anonymous_id",
            "value",
            "destination",
            "stream",
            "since",
            "run",
        ],
    );

    let table = look(&project, &["snapshot", "show", "members"]).stdout;
    let table: Vec<_> = table.lines().collect();
    assert!(
        table[0].starts_with("SINCE ") && table[0].ends_with("USER"),
        "{table:?}"
    );
    assert!(table[1].ends_with("user_id       b"), "{table:?}");
    assert_eq!(table.len(), 3);
}

#[test]
fn show_prints_the_values_of_a_computed_trait_as_json() {
    let project = synced();
    let values = lines(&project, &["snapshot", "show", "spend"]);
    let values: Vec<_> = values.iter().map(|line| &line["value"]).collect();
    assert_eq!(values, [&json!("x\"y"), &json!(2)]);
    let table = look(&project, &["snapshot", "show", "spend"]).stdout;
    assert!(table.contains(r#""x\"y""#), "{table}");
}

#[test]
fn an_audience_is_found_by_key_id_or_name_of_the_snapshot_or_the_schedules() {
    let project = synced();
    let renamed = SCHEDULE.replace(
        "name = \"Members\"",
        "name = \"Regulars\"\nid = \"members\"",
    );
    project.write("schedules/main.toml", &renamed);
    for word in ["members", "Members", "Regulars"] {
        assert_eq!(
            lines(&project, &["snapshot", "show", word]).len(),
            2,
            "{word}"
        );
        assert_eq!(
            lines(&project, &["snapshot", "runs", word]).len(),
            2,
            "{word}"
        );
    }
    // One that no schedule names any more is still in the snapshot.
    let without = SCHEDULE.split("[[audience]]").nth(1).unwrap();
    project.write("schedules/main.toml", &format!("[[audience]]{without}"));
    assert_eq!(lines(&project, &["snapshot", "show", "Visitors"]).len(), 2);
}

#[test]
fn an_unknown_audience_is_a_usage_error_that_lists_the_known_ones() {
    let project = synced();
    project.write(
        "schedules/new.toml",
        "[[audience]]\nname = \"New\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"",
    );
    for command in ["show", "runs"] {
        let ran = project.run(&["snapshot", command, "nope"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
        assert_eq!(
            ran.stderr,
            "error: no audience is called \"nope\"\n\nhint: known: members, new, spend, visitors\n"
        );
        let ran = look(&project, &["snapshot", command, "New"]);
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            (
                "",
                "`new` has not been synced yet\n\nhint: `audience-sync sync new` does it\n"
            )
        );
    }
}

#[test]
fn an_audience_that_goes_to_several_streams_is_shown_at_each() {
    let project = project();
    let two = CONFIG
        .replace("[destination.main]", "[destination.other]")
        .replace("destination.main", "destination.other")
        .replace("delivered", "elsewhere");
    let two = two.split("[destination.other]").nth(1).unwrap();
    project.write(
        "audience-sync.toml",
        &format!("{CONFIG}\n[destination.other]{two}"),
    );
    let everywhere = SCHEDULE.replace("source =", "destinations = [\"main\", \"other\"]\nsource =");
    project.write("schedules/main.toml", &everywhere);
    project.succeed(&["sync"]);
    let members = lines(&project, &["snapshot", "show", "members"]);
    let found: Vec<_> = members
        .iter()
        .map(|line| line["destination"].as_str().unwrap())
        .collect();
    assert_eq!(found, ["main", "main", "main", "other", "other", "other"]);
    let table = look(&project, &["snapshot", "show", "members"]).stdout;
    let header = table.lines().next().unwrap();
    assert!(
        header.contains("DESTINATION  STREAM") && table.contains("  other        members  "),
        "{table}"
    );
    assert_eq!(lines(&project, &["snapshot", "list"]).len(), 6);
    assert_eq!(lines(&project, &["snapshot", "user", "b"]).len(), 4);

    // Streams of one destination, each with members of its own.
    let project = self::project();
    let one = CONFIG.replace("\"members\"", "[\"one\", \"two\"]");
    project.write("audience-sync.toml", &one);
    std::fs::create_dir(project.path("delivered")).unwrap();
    project.write("delivered/two", "in the way");
    assert_eq!(project.run(&["sync", "members"]).code, 3);
    let members = lines(&project, &["snapshot", "show", "members"]);
    let found: Vec<_> = members.iter().map(|line| &line["stream"]).collect();
    assert_eq!(found, ["one", "one", "one"]);
    let table = look(&project, &["snapshot", "show", "members"]).stdout;
    let header = table.lines().next().unwrap();
    assert!(
        header.contains("STREAM") && !header.contains("DESTINATION"),
        "{table}"
    );
    let list = lines(&project, &["snapshot", "list"]);
    let found: Vec<_> = list
        .iter()
        .map(|line| ["stream", "members", "pending"].map(|field| line[field].clone()))
        .collect();
    assert_eq!(
        found,
        [
            [json!("one"), json!(3), json!(0)],
            [json!("two"), json!(0), json!(3)]
        ]
    );
    let story = lines(&project, &["snapshot", "user", "b"]);
    let found: Vec<_> = story
        .iter()
        .map(|line| ["stream", "state", "current"].map(|field| line[field].clone()))
        .collect();
    assert_eq!(
        found,
        [
            [json!("one"), json!("delivered"), json!(true)],
            [json!("two"), json!("waiting"), json!(false)]
        ]
    );
}

#[test]
fn hostile_ids_neither_break_a_line_nor_steer_a_terminal() {
    let project = project();
    project.shop("INSERT INTO visitors VALUES ('n' || char(10) || char(27) || '[31m')");
    project.succeed(&["sync"]);
    let ids = lines(&project, &["snapshot", "show", "visitors"]);
    assert!(
        ids.iter()
            .any(|line| line["anonymous_id"] == "n\n\u{1b}[31m"),
        "{ids:?}"
    );
    let table = look(&project, &["snapshot", "show", "visitors"]).stdout;
    assert!(
        table.contains("n\\n\\u{1b}[31m\n") && !table.contains('\u{1b}'),
        "{table:?}"
    );
    let story = look(&project, &["snapshot", "user", "n\n\u{1b}[31m"]);
    assert!(story.stdout.contains("visitors"), "{story:?}");
}

#[test]
fn user_tells_every_change_with_its_run_stream_and_message_id() {
    let project = synced();
    let story = lines(&project, &["snapshot", "user", "a"]);
    assert_fields(
        &story[0],
        &[
            "audience",
            "id",
            "destination",
            "kind",
            "user_id",
            "value",
            "run",
            "run_kind",
            "decided_at",
            "stream",
            "messageId",
            "state",
            "delivered_at",
            "current",
        ],
    );
    let found: Vec<_> = story
        .iter()
        .map(|line| {
            json!([
                line["audience"],
                line["value"],
                line["run_kind"],
                line["current"]
            ])
        })
        .collect();
    assert_eq!(
        found,
        [
            json!(["members", true, "first", false]),
            json!(["spend", 1, "first", false]),
            json!(["visitors", true, "first", true]),
            json!(["members", false, "delta", false]),
            json!(["spend", null, "delta", false]),
        ]
    );
    // What it says is what arrived.
    let delivered = project.delivered();
    for line in &story {
        let record = delivered
            .iter()
            .find(|record| record["messageId"] == line["messageId"])
            .unwrap();
        let key = line["audience"].as_str().unwrap();
        assert_eq!(record["traits"][key], line["value"]);
        // Whoever stays or enters is told a millisecond after the run's time.
        let decided_at = Timestamp::parse(line["decided_at"].as_str().unwrap()).unwrap();
        let time = match line["value"] {
            Value::Null | Value::Bool(false) => decided_at,
            _ => decided_at.of_entering(),
        };
        assert_eq!(record["timestamp"], time.to_string());
        assert_eq!(
            record["context"]["personas"]["computation_run_id"],
            line["run"]
        );
        assert_eq!(line["stream"], "members");
        assert_eq!(line["state"], "delivered");
        assert!(line["delivered_at"].is_string());
    }
    assert_eq!(story[2]["anonymous_id"], "a");

    let text = look(&project, &["snapshot", "user", "a"]).stdout;
    let (now, history) = text.split_once("\nHistory\n").unwrap();
    assert!(
        now.starts_with("Accepted now\n") && now.contains("visitors"),
        "{text}"
    );
    assert!(!now.contains("spend"), "{text}");
    assert!(
        history.contains(story[0]["messageId"].as_str().unwrap()),
        "{text}"
    );
    assert!(
        history.contains("MESSAGEID") && history.lines().count() == 7,
        "{text}"
    );
}

#[test]
fn the_current_change_of_a_value_is_the_last_one() {
    let project = synced();
    let story = lines(&project, &["snapshot", "user", "c"]);
    let spend: Vec<_> = story
        .iter()
        .filter(|line| line["audience"] == "spend")
        .map(|line| json!([line["value"], line["current"]]))
        .collect();
    assert_eq!(spend, [json!([1.5, false]), json!([2, true])]);

    project.succeed(&["resync", "spend"]);
    let story = lines(&project, &["snapshot", "user", "c"]);
    let repeated = story.last().unwrap();
    assert_eq!(
        (
            &repeated["run_kind"],
            &repeated["value"],
            &repeated["current"]
        ),
        (&json!("resync"), &json!(2), &json!(false))
    );
}

#[test]
fn a_user_whom_nobody_knows_is_a_note() {
    let project = synced();
    for flags in [&[][..], &["--json"]] {
        let ran = look(&project, &[&["snapshot", "user", "nobody"], flags].concat());
        assert_eq!(ran.stdout, "");
        assert!(
            ran.stderr
                .starts_with("nothing was ever decided about a user \"nobody\"\n")
        );
    }
}

#[test]
fn a_change_waits_until_it_is_accepted() {
    let project = synced();
    project.shop("INSERT INTO members VALUES ('n', 9)");
    break_destination(&project);
    assert_eq!(project.run(&["sync", "members"]).code, 3);
    let waiting = &lines(&project, &["snapshot", "user", "n"])[0];
    assert_eq!(
        (
            &waiting["state"],
            &waiting["delivered_at"],
            &waiting["current"]
        ),
        (&json!("waiting"), &Value::Null, &json!(false))
    );
    let text = look(&project, &["snapshot", "user", "n"]).stdout;
    assert!(
        text.starts_with("Accepted now: nothing\n") && text.contains("waiting"),
        "{text}"
    );
    let run = &lines(&project, &["snapshot", "runs", "members"])[0];
    assert_eq!(
        (&run["outcome"], &run["pending"]),
        (&json!("undelivered"), &json!(1))
    );

    std::fs::remove_file(project.path("delivered")).unwrap();
    project.succeed(&["sync", "members"]);
    let delivered = &lines(&project, &["snapshot", "user", "n"])[0];
    assert_eq!(
        (&delivered["state"], &delivered["messageId"]),
        (&json!("delivered"), &waiting["messageId"])
    );
}

#[test]
fn a_change_that_can_never_be_delivered_says_why() {
    let project = project();
    let with_trait = SCHEDULE.replacen(
        "query = \"SELECT user_id FROM members\"",
        "query = \"SELECT user_id, printf('%1100000d', 1) AS big FROM members WHERE user_id = 'a'\"\ntraits = [\"big\"]",
        1,
    );
    project.write("schedules/main.toml", &with_trait);
    assert_eq!(project.run(&["sync", "members"]).code, 3);
    let dead = &lines(&project, &["snapshot", "user", "a"])[0];
    assert_eq!(
        (&dead["state"], &dead["current"]),
        (&json!("dead"), &json!(false))
    );
    assert!(dead["reason"].as_str().unwrap().contains("bytes"), "{dead}");
    let run = &lines(&project, &["snapshot", "runs"])[0];
    assert_eq!(
        (&run["outcome"], &run["dead"]),
        (&json!("undelivered"), &json!(1))
    );
    let text = look(&project, &["snapshot", "user", "a"]).stdout;
    assert!(text.contains("dead: "), "{text}");
}

#[test]
fn runs_are_listed_newest_first_with_what_came_of_them() {
    let project = synced();
    let runs = lines(&project, &["snapshot", "runs"]);
    assert_eq!(runs.len(), 6);
    assert_fields(
        &runs[0],
        &[
            "run",
            "audience",
            "id",
            "destination",
            "stream",
            "kind",
            "outcome",
            "started_at",
            "finished_at",
            "members",
            "added",
            "removed",
            "changed",
            "held",
            "held_added",
            "held_changed",
            "skipped_rows",
            "delivered",
            "pending",
            "dead",
        ],
    );
    let times: Vec<_> = runs
        .iter()
        .map(|run| run["started_at"].as_str().unwrap())
        .collect();
    assert!(
        times.is_sorted_by(|later, earlier| later > earlier),
        "{times:?}"
    );
    let of_spend = lines(&project, &["snapshot", "runs", "spend"]);
    let found: Vec<_> = of_spend
        .iter()
        .map(|run| {
            json!([
                run["kind"],
                run["outcome"],
                run["removed"],
                run["changed"],
                run["delivered"]
            ])
        })
        .collect();
    assert_eq!(
        found,
        [
            json!(["delta", "delivered", 1, 1, 2]),
            json!(["first", "delivered", 0, 0, 3])
        ]
    );
    let table = look(&project, &["snapshot", "runs"]).stdout;
    assert!(
        table.starts_with("RUN ") && table.lines().count() == 7,
        "{table}"
    );
}

#[test]
fn a_failed_run_is_listed_with_its_error_and_the_key_of_the_schedule() {
    let project = Project::new(SCHEDULE);
    assert_eq!(project.run(&["sync", "members"]).code, 1);
    let runs = lines(&project, &["snapshot", "runs", "members"]);
    assert_eq!(
        (&runs[0]["audience"], &runs[0]["outcome"]),
        (&json!("members"), &json!("failed"))
    );
    assert!(
        runs[0]["error"]
            .as_str()
            .unwrap()
            .contains("no database at shop.sqlite")
    );
    let table = look(&project, &["snapshot", "runs"]).stdout;
    assert!(table.contains("no database at shop.sqlite"), "{table}");
    let list = look(&project, &["snapshot", "list"]);
    assert_eq!(list.stdout, "");
    assert!(
        list.stderr
            .starts_with("the snapshot knows no audience yet\n")
    );
}

#[test]
fn an_interrupted_run_is_unfinished_while_its_changes_wait() {
    let project = synced();
    project.shop("INSERT INTO members VALUES ('n', 9)");
    break_destination(&project);
    assert_eq!(project.run(&["sync", "members"]).code, 3);
    // As a kill -9 leaves it: planned, and without an outcome.
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    let forget = "UPDATE run SET outcome = NULL, finished_at = NULL WHERE number = ?1";
    let last: i64 = snapshot
        .query_row("SELECT max(number) FROM run", [], |row| row.get(0))
        .unwrap();
    snapshot.execute(forget, [last]).unwrap();
    // As one leaves it between the last record ID and the outcome.
    snapshot.execute(forget, [1]).unwrap();
    drop(snapshot);
    let runs = lines(&project, &["snapshot", "runs", "members"]);
    let found: Vec<_> = runs
        .iter()
        .map(|run| json!([run["outcome"], run["finished_at"]]))
        .collect();
    assert_eq!(found[0], json!(["unfinished", null]));
    assert_eq!(found[2], json!(["delivered", null]));
}

#[test]
fn what_a_crash_left_in_the_log_is_seen_and_stays_there() {
    let project = synced();
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot
        .execute_batch("UPDATE audience SET name = 'Renamed' WHERE key = 'members'")
        .unwrap();
    // By another name, as if nobody had it open.
    let aside = Project::new(SCHEDULE);
    for file in ["snapshot.sqlite", "snapshot.sqlite-wal"] {
        std::fs::copy(project.path(file), aside.path(file)).unwrap();
    }
    drop(snapshot);
    let before = std::fs::read(aside.path("snapshot.sqlite-wal")).unwrap();
    assert!(!before.is_empty());
    let shown = aside.succeed(&["snapshot", "list", "--json"]).stdout;
    assert!(shown.contains("Renamed"), "{shown}");
    assert!(std::fs::read(aside.path("snapshot.sqlite-wal")).unwrap() == before);
}

#[test]
fn neither_a_secret_nor_a_working_query_is_needed() {
    let project = synced();
    let secret = r#"
[destination.aws]
role_address = "arn:aws:iam::874699288871:role/example-role"
secret_id = { env = "NOT_SET" }
[destination.aws.mapping]
identify = "members"
"#;
    project.write("audience-sync.toml", &format!("{CONFIG}{secret}"));
    let schedule = SCHEDULE.replace("source =", "destinations = [\"main\"]\nsource =");
    project.write(
        "schedules/main.toml",
        &schedule.replacen("SELECT", "SELEKT", 1),
    );
    assert_eq!(lines(&project, &["snapshot", "list"]).len(), 3);
    assert_eq!(lines(&project, &["snapshot", "show", "members"]).len(), 2);
    let landed = ["--from", "delivered", "--destination", "main", "--json"];
    look(&project, &[&["snapshot", "verify"], &landed[..]].concat());
    std::fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    project.succeed(&[&["snapshot", "rebuild"], &landed[..]].concat());
}

#[test]
fn a_file_that_is_no_snapshot_is_left_alone() {
    let project = project();
    for (bytes, reason) in [
        (
            "x".repeat(4096),
            "the file is damaged, or was never a snapshot: file is not a database",
        ),
        (
            String::from_utf8_lossy(b"SQLite format 3\0").into_owned(),
            "the file is cut off after 16 bytes",
        ),
    ] {
        project.write("snapshot.sqlite", &bytes);
        let before = project.contents();
        let ran = project.run(&["snapshot", "list"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert_eq!(
            ran.stderr,
            format!(
                "error: the snapshot snapshot.sqlite cannot be used: {reason}\n\n\
                 hint: move it away and make it anew from what was delivered: `audience-sync snapshot rebuild --from DIR`, with `--destination NAME` for each destination if there are several; \
                 a backup does not know what was told since\n"
            )
        );
        assert!(project.contents() == before);
    }
    std::fs::copy(project.path("shop.sqlite"), project.path("snapshot.sqlite")).unwrap();
    let ran = project.run(&["snapshot", "list"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("not a snapshot of audience-sync"),
        "{ran:?}"
    );
}
