//! `snapshot rebuild`: what was delivered is the backup of what was sent.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rusqlite::params;
use serde_json::{Value, json};

use crate::support::{CONFIG, Project, Ran, assert_fields, eventually, files, records, truth};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, email FROM members"
traits = ["email"]
guard = false

[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, spend AS value FROM members"
guard = false

[[audience]]
name = "Visitors"
id = "aud_1"
source = "shop"
query = "SELECT anonymous_id FROM visitors"
guard = false

[[audience]]
name = "Both"
source = "shop"
query = "SELECT user_id, anonymous_id FROM both_ids"
guard = false
"#;

const AUDIENCES: [&str; 4] = ["members", "spend", "visitors", "both"];

const HOSTILE: [&str; 6] = [
    "\"quoted\\\"",
    "two\nlines\r\u{1}",
    "grüße \u{1f600}\u{2028}",
    "'; DROP TABLE member; --",
    " ",
    "null",
];

/// A shop that has seen a bit of everything, and a snapshot of it.
fn with_a_past(config: &str) -> Project {
    let project = Project::new(SCHEDULE);
    project.write("audience-sync.toml", config);
    let shop = project.shop_connection();
    shop.execute_batch(
        "CREATE TABLE members (user_id TEXT, email, spend);
         CREATE TABLE visitors (anonymous_id TEXT);
         CREATE TABLE both_ids (user_id TEXT, anonymous_id TEXT);
         INSERT INTO members VALUES ('a', 'a@x', 1), ('b', NULL, 'one \"two\"'), ('c', 'c@x', 0.1), ('d', 'd@x', 450.0),
                                    ('leaves', 'l@x', 7), ('returns', 'r@x', -0.0);
         INSERT INTO visitors VALUES ('a'), ('z'), ('leaves');
         INSERT INTO both_ids VALUES ('u', 'first'), (NULL, 'alone')",
    )
    .unwrap();
    for id in HOSTILE {
        shop.execute("INSERT INTO members VALUES (?1, ?1, ?1)", [id])
            .unwrap();
        shop.execute("INSERT INTO visitors VALUES (?1)", [id])
            .unwrap();
    }
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM members WHERE user_id IN ('leaves', 'returns'); DELETE FROM visitors WHERE anonymous_id = 'leaves';
         INSERT INTO members VALUES ('new', 'n@x', 9223372036854775807), ('e', 'e@x', 1e300);
         UPDATE members SET spend = spend + 1 WHERE user_id IN ('a', 'd')",
    );
    project.succeed(&["sync"]);
    project.shop(
        "INSERT INTO members VALUES ('returns', 'again@x', 5e-324);
         UPDATE both_ids SET anonymous_id = 'second' WHERE user_id = 'u'",
    );
    project.succeed(&["sync"]);
    project.succeed(&["resync", "Spend"]);
    project
}

/// What the snapshot knows, down to the run that each member came with.
fn known(project: &Project) -> Vec<Value> {
    let show = |audience: &&str| {
        project
            .succeed(&["snapshot", "show", audience, "--json"])
            .lines()
    };
    AUDIENCES.iter().flat_map(show).collect()
}

/// Removes the snapshot and what SQLite keeps beside it. The lock file stays, which knows the last run.
pub(crate) fn lose(project: &Project) {
    for file in files(&project.path("")) {
        let name = file.to_string_lossy();
        if name.contains("snapshot.sqlite") && !name.ends_with(".lock") {
            fs::remove_file(file).unwrap();
        }
    }
}

#[track_caller]
fn rebuild(project: &Project, from: &str) -> Vec<Value> {
    let ran = project.succeed(&["snapshot", "rebuild", "--from", from, "--json"]);
    ran.lines()
}

/// Everything must go on as if nothing had happened.
#[track_caller]
fn check_goes_on(project: &Project, before: &[Value]) {
    assert_eq!(known(project), before);
    let lines = project.succeed(&["sync", "--json"]).lines();
    for line in &lines {
        assert_eq!(
            (&line["kind"], &line["outcome"]),
            (&json!("delta"), &json!("unchanged")),
            "{line}"
        );
    }
    assert_eq!(lines.len() % AUDIENCES.len(), 0);
}

#[test]
fn a_lost_snapshot_is_what_it_was_before() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    let runs = project.succeed(&["snapshot", "runs", "--json"]).lines();
    let names = |project: &Project| -> Vec<Value> {
        let list = project.succeed(&["snapshot", "list", "--json"]).lines();
        list.iter().map(|line| line["name"].clone()).collect()
    };
    let named = names(&project);
    lose(&project);
    let lines = rebuild(&project, "delivered");
    assert_eq!(names(&project), named);
    check_goes_on(&project, &before);

    assert_fields(
        &lines[0],
        &[
            "audience",
            "id",
            "destination",
            "kind",
            "members",
            "runs",
            "records",
            "left",
            "stream",
        ],
    );
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            ["audience", "id", "kind", "members", "runs", "left"].map(|field| line[field].clone())
        })
        .collect();
    let row = |key: &str, id: &str, kind: &str, counts: [u64; 3]| {
        [
            json!(key),
            json!(id),
            json!(kind),
            json!(counts[0]),
            json!(counts[1]),
            json!(counts[2]),
        ]
    };
    assert_eq!(
        found,
        [
            row("both", "both", "audience", [2, 1, 0]),
            row("members", "members", "audience", [13, 3, 1]),
            row("spend", "spend", "trait", [13, 4, 1]),
            row("visitors", "aud_1", "audience", [8, 2, 1]),
        ]
    );
    let records: u64 = lines
        .iter()
        .map(|line| line["records"].as_u64().unwrap())
        .sum();
    assert_eq!(records, project.delivered().len() as u64);

    // The history of runs too, as far as something was delivered.
    let again = project.succeed(&["snapshot", "runs", "--json"]).lines();
    let told = |runs: &[Value]| -> Vec<Vec<Value>> {
        let fields = [
            "run",
            "audience",
            "id",
            "destination",
            "kind",
            "outcome",
            "started_at",
            "members",
            "added",
            "removed",
            "changed",
            "delivered",
            "pending",
            "dead",
        ];
        runs.iter()
            .filter(|run| run["delivered"] != 0)
            .map(|run| fields.iter().map(|field| run[field].clone()).collect())
            .collect()
    };
    assert_eq!(told(&again), told(&runs));

    // And those who leave are told so, by the ids that they were last told with, later than everything before.
    let latest = project.delivered().last().unwrap()["timestamp"].clone();
    let count = project.delivered().len();
    project.shop("DELETE FROM members; DELETE FROM both_ids; DELETE FROM visitors");
    project.run(&["sync", "--approve"]);
    let delivered = project.delivered();
    let left = &delivered[count..];
    assert_eq!(left.len(), before.len());
    for record in left {
        assert!(record["timestamp"].as_str() > latest.as_str(), "{record}");
    }
    let both = left.iter().find(|record| record["userId"] == "u").unwrap();
    assert_eq!(both["anonymousId"], "first");
    assert_eq!(both["traits"], json!({"both": false}));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Copies what was delivered, each file to where `name` says by its number and its path.
fn copy(project: &Project, zipped: bool, name: impl Fn(usize, &Path) -> PathBuf) {
    let mut delivered = files(&project.path("delivered"));
    delivered.sort();
    for (number, file) in delivered.iter().enumerate() {
        let relative = file.strip_prefix(project.path("delivered")).unwrap();
        let to = project.path("copy").join(name(number, relative));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let bytes = fs::read(file).unwrap();
        fs::write(to, if zipped { gzip(&bytes) } else { bytes }).unwrap();
    }
}

#[test]
fn copies_of_s3_objects_serve_whatever_they_are_called_and_in_whatever_order() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    type Name = fn(usize, &Path) -> PathBuf;
    let as_in_s3: Name = |_, path| Path::new("some/prefix").join(path.with_extension("gz"));
    let backwards: Name = |number, _| format!("part-{:05}.jsonl", 9_999 - number).into();
    let scattered: Name = |number, _| format!("{}/{number}/object", number * 7919 % 13).into();
    for (zipped, name) in [(true, as_in_s3), (false, backwards), (true, scattered)] {
        copy(&project, zipped, name);
        // Half-written files do not count, and blank lines are a second delimiter.
        project.write("copy/.incoming/half", "{\"type\":\"iden");
        project.write("copy/.DS_Store", "\0\0");
        project.write("copy/blank", "\n{}\n\n");
        lose(&project);
        rebuild(&project, "copy");
        check_goes_on(&project, &before);
        fs::remove_dir_all(project.path("copy")).unwrap();
    }
}

#[test]
fn files_that_are_there_twice_and_other_peoples_records_change_nothing() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    copy(&project, false, |number, path| {
        format!("{number}/{}", path.file_name().unwrap().display()).into()
    });
    let page = r#"{"type":"page","userId":"a"}"#;
    project.pipe(&["send", "--destination", "main"], page);
    project.write("copy/foreign", "{\"any\":[\"thing\"]}\n");
    lose(&project);
    let ran = project.succeed(&[
        "snapshot",
        "rebuild",
        "--from",
        "delivered",
        "--from",
        "copy",
        "--json",
    ]);
    assert!(
        ran.stderr
            .contains("passed over 1 records that are not of audience-sync"),
        "{ran:?}"
    );
    check_goes_on(&project, &before);
}

#[test]
fn a_past_before_an_earlier_loss_counts_too() {
    let project = with_a_past(CONFIG);
    lose(&project);
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    // Nobody is told that `a` has left, and everybody else is sent again.
    project.succeed(&["snapshot", "create", "--anew"]);
    project.succeed(&["sync"]);
    lose(&project);
    rebuild(&project, "delivered");
    let line = &project.succeed(&["sync", "members", "--json"]).lines()[0];
    assert_eq!((&line["added"], &line["removed"]), (&json!(0), &json!(1)));
    let last = project.delivered().pop().unwrap();
    assert_eq!(
        (&last["userId"], &last["traits"]),
        (&json!("a"), &json!({"members": false}))
    );
}

#[test]
fn an_audience_goes_by_its_latest_key() {
    let project = with_a_past(CONFIG);
    lose(&project);
    project.write(
        "schedules/main.toml",
        &SCHEDULE.replace(
            "name = \"Members\"",
            "name = \"Members\"\nid = \"members\"\nkey = \"people\"",
        ),
    );
    project.succeed(&["snapshot", "create", "--anew"]);
    project.succeed(&["sync"]);
    let show = ["snapshot", "show", "people", "--json"];
    let before = project.succeed(&show).lines();
    lose(&project);
    let ran = project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    assert!(
        ran.stderr
            .contains("people: it went by the key `members` once"),
        "{ran:?}"
    );
    assert_eq!(project.succeed(&show).lines(), before);
    let line = &project.succeed(&["sync", "people", "--json"]).lines()[0];
    assert_eq!(line["outcome"], "unchanged");
}

const STREAMS: &str = r#"
[source.shop]
sqlite = "shop.sqlite"

[destination.main]
directory = "delivered"
match = "all"
mapping = { identify = ["one", "two"], "*" = "three" }
"#;

/// The lines of an audience by their streams.
fn at_streams<'l>(lines: &'l [Value], audience: &str) -> Vec<(&'l str, &'l Value)> {
    let of_audience = lines.iter().filter(|line| line["audience"] == audience);
    of_audience
        .map(|line| (line["stream"].as_str().unwrap(), line))
        .collect()
}

#[test]
fn every_stream_is_what_it_was_before() {
    let project = with_a_past(STREAMS);
    let before = known(&project);
    lose(&project);
    let lines = rebuild(&project, "delivered");
    assert_eq!(lines.len(), 3 * AUDIENCES.len());
    for (stream, line) in at_streams(&lines, "members") {
        let counts = ["members", "runs", "left"].map(|field| line[field].as_u64());
        assert_eq!(counts, [Some(13), Some(3), Some(1)], "{stream}");
    }
    check_goes_on(&project, &before);
}

/// Nothing is known of the others then. Each is added, or begins with a first sync.
#[test]
fn one_stream_alone_is_made_anew() {
    let project = with_a_past(STREAMS);
    let before = known(&project);
    let of_two = |members: &[Value]| -> Vec<Value> {
        let mut members = members.to_vec();
        members.retain(|member| member["stream"] == "two");
        members
    };
    for more in [
        &["--from", "delivered/two"] as &[&str],
        &["--from", "delivered", "--stream", "two"],
    ] {
        lose(&project);
        let ran = project.succeed(&[&["snapshot", "rebuild", "--json"], more].concat());
        assert_eq!(ran.lines().len(), AUDIENCES.len(), "{ran:?}");
        assert!(
            ran.stderr.ends_with(
                "\nthe snapshot does not know what one, three of `main` was told: the next sync there is a first one, \
                 and users who have left are not told so\n\n\
                 hint: if anything was delivered there, add it before that sync:\n  \
                 audience-sync snapshot rebuild --from delivered --stream one\n  \
                 audience-sync snapshot rebuild --from delivered --stream three\n"
            ),
            "{ran:?}"
        );
        assert_eq!(known(&project), of_two(&before));
    }
    let command = ["snapshot", "rebuild", "--from", "delivered"];
    let ran = project.run(&command);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: the snapshot snapshot.sqlite already knows what was told to two in delivered/\n\n\
             hint: `--stream one` or `--stream three` adds only what was told there; to make all of it anew, move the \
             snapshot away\n"
        )
    );
    let ran = project.succeed(&[&command[..], &["--stream", "three"]].concat());
    assert!(
        ran.stderr.contains("what one of `main` was told"),
        "{ran:?}"
    );
    let lines = project.succeed(&["sync", "--json"]).lines();
    for (stream, line) in at_streams(&lines, "members") {
        let (kind, outcome, added) = match stream {
            "two" | "three" => ("delta", "unchanged", 0),
            _ => ("first", "delivered", 13),
        };
        assert_eq!(
            (&line["kind"], &line["outcome"], &line["added"]),
            (&json!(kind), &json!(outcome), &json!(added)),
            "{stream}"
        );
    }
}

/// Part of what one stream got is lost. It is told that again, and nobody else is told anything.
#[test]
fn a_stream_that_lacks_its_last_records_is_told_them_again() {
    let project = with_a_past(STREAMS);
    project
        .shop("DELETE FROM members WHERE user_id = 'b'; INSERT INTO members VALUES ('f', NULL, 1)");
    let lines = project.succeed(&["sync", "members", "--json"]).lines();
    let (_, line) = at_streams(&lines, "members")
        .into_iter()
        .find(|(stream, _)| *stream == "two")
        .unwrap();
    let run = line["run"].as_str().unwrap();
    let mut of_run = files(&project.path("delivered/two"));
    of_run.retain(|file| fs::read_to_string(file).unwrap().contains(run));
    assert!(!of_run.is_empty());
    of_run
        .iter()
        .for_each(|file| fs::remove_file(file).unwrap());
    lose(&project);
    rebuild(&project, "delivered");
    // The one who came in that run leaves meanwhile, so that `two` has never heard of them.
    project.shop("DELETE FROM members WHERE user_id = 'f'");
    let lines = project.succeed(&["sync", "members", "--json"]).lines();
    let changes: Vec<_> = at_streams(&lines, "members")
        .into_iter()
        .map(|(stream, line)| {
            (
                stream,
                ["added", "removed"].map(|field| line[field].as_u64().unwrap()),
            )
        })
        .collect();
    assert_eq!(
        changes,
        [("one", [0, 1]), ("two", [0, 1]), ("three", [0, 1])]
    );
    for stream in ["one", "two", "three"] {
        let truth = truth(&records(&project.path(&format!("delivered/{stream}"))));
        let of = |user: &str| truth.get(&(user.to_owned(), "members".to_owned()));
        assert_eq!(of("b"), Some(&json!(false)), "{stream}");
        let f = (stream != "two").then_some(json!(false));
        assert_eq!(of("f"), f.as_ref(), "{stream}");
        assert_eq!(of("a"), Some(&json!(true)), "{stream}");
    }
}

/// What a stream was told while the mapping named it is known by the folder that it lies in.
#[test]
fn a_stream_that_is_not_mapped_any_more_is_made_anew_too() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    let moved = CONFIG.replace("identify = \"members\"", "identify = \"moved\"");
    project.write("audience-sync.toml", &moved);
    lose(&project);
    let ran = project.succeed(&["snapshot", "rebuild", "--from", "delivered", "--json"]);
    assert_eq!(ran.lines().len(), AUDIENCES.len());
    assert!(
        ran.stderr.contains(
            "the snapshot does not know what `main` was told: the next sync there is a first one"
        ),
        "{ran:?}"
    );
    for line in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(
            (&line["kind"], &line["stream"]),
            (&json!("first"), &json!("moved"))
        );
    }
    // It comes back, and goes on where it was.
    project.write("audience-sync.toml", CONFIG);
    for line in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(
            (&line["kind"], &line["outcome"]),
            (&json!("delta"), &json!("unchanged"))
        );
    }
    let at_members: Vec<_> = known(&project)
        .into_iter()
        .filter(|member| member["stream"] == "members")
        .collect();
    assert_eq!(at_members, before);
}

const TWO: &str = r#"
[source.shop]
sqlite = "shop.sqlite"
[destination.main]
directory = "delivered"
mapping = { identify = "members" }
[destination.other]
directory = "elsewhere"
mapping = { identify = "members" }
"#;

/// What one destination was told from the beginning, and another one later.
fn at_two() -> Project {
    let project = with_a_past(CONFIG);
    project.write("audience-sync.toml", TWO);
    let everywhere = SCHEDULE.replace("source =", "destinations = [\"main\", \"other\"]\nsource =");
    project.write("schedules/main.toml", &everywhere);
    project.succeed(&["sync"]);
    project
}

#[test]
fn one_destination_is_made_anew_from_what_landed_in_its_place() {
    let project = at_two();
    let before = known(&project);
    lose(&project);
    // A record tells its stream, and not where that is.
    let run = |arguments: &[&str]| project.run(&[&["snapshot", "rebuild"], arguments].concat());
    let ran = run(&["--from", "elsewhere", "--from", "delivered"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: there are several destinations, and the records do not tell which one they were delivered to\n\n\
             hint: add --destination with one of main, other\n"
        )
    );
    let ran = run(&["--from", "delivered", "--destination", "third"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: no destination is called \"third\"\n\nhint: there are main, other\n"
        )
    );
    assert!(!project.path("snapshot.sqlite").exists());

    let ran = run(&["--from", "elsewhere", "--destination", "other", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines = ran.lines();
    assert_eq!(lines.len(), AUDIENCES.len());
    assert!(lines.iter().all(|line| line["destination"] == "other"));
    assert_eq!(
        ran.stderr,
        "\nthe snapshot does not know what `main` was told: the next sync there is a first one, and users who have left \
         are not told so\n\n\
         hint: if anything was delivered there, add it before that sync:\n  \
         audience-sync snapshot rebuild --destination main --from delivered\n"
    );
    let at_other: Vec<_> = before
        .into_iter()
        .filter(|member| member["destination"] == "other")
        .collect();
    assert_eq!(known(&project), at_other);
    for line in project.succeed(&["sync", "--json"]).lines() {
        let expected = match line["destination"].as_str() {
            Some("other") => ("delta", "unchanged"),
            _ => ("first", "delivered"),
        };
        assert_eq!(
            (
                line["kind"].as_str().unwrap(),
                line["outcome"].as_str().unwrap()
            ),
            expected,
            "{line}"
        );
    }
}

#[track_caller]
fn rebuild_at(project: &Project, destination: &str, from: &str) -> Ran {
    let arguments = ["--destination", destination, "--from", from];
    project.run(&[&["snapshot", "rebuild"], &arguments[..]].concat())
}

fn query<T: rusqlite::types::FromSql>(project: &Project, sql: &str) -> T {
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    snapshot.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn each_destination_is_added_to_what_the_snapshot_knows() {
    let places = [("main", "delivered"), ("other", "elsewhere")];
    for order in [[0, 1], [1, 0]] {
        let project = at_two();
        let before = known(&project);
        lose(&project);
        let [first, second] = order.map(|place| places[place]);
        let ran = rebuild_at(&project, first.0, first.1);
        assert_eq!(ran.code, 0, "{ran:?}");
        let last: i64 = query(&project, "SELECT last_run FROM life");
        let ran = rebuild_at(&project, second.0, second.1);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        let numbers = format!(
            "SELECT min(number) FROM run WHERE destination = '{}'",
            second.0
        );
        assert_eq!(query::<i64>(&project, &numbers), last + 1);
        check_goes_on(&project, &before);
        let runs = project.succeed(&["snapshot", "runs", "--json"]).lines();
        let times: Vec<_> = runs.iter().map(|run| run["started_at"].as_str()).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
        // Who leaves is told so by both, later than everything that landed in either.
        let landed = || places.map(|(_, place)| records(&project.path(place)));
        let [main, other] = landed();
        let time = |record: &Value| record["timestamp"].as_str().unwrap().to_owned();
        let latest = main.iter().chain(&other).map(time).max().unwrap();
        project.shop("DELETE FROM members WHERE user_id = 'b'");
        project.succeed(&["sync"]);
        let left = landed();
        for (left, known) in left.iter().zip([main.len(), other.len()]) {
            let mut left: Vec<_> = left.iter().filter(|record| time(record) > latest).collect();
            assert_eq!((left.len(), known), (2, known));
            left.sort_by_key(|record| record["traits"].to_string());
            assert_eq!(left[0]["traits"], json!({"members": false}));
            assert_eq!(left[1]["traits"], json!({"spend": null}));
        }
    }
}

/// An empty one knows nothing of any stream. `init` makes one on a new machine.
#[test]
fn an_empty_snapshot_is_filled() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    lose(&project);
    fs::remove_file(project.path("snapshot.sqlite.lock")).unwrap();
    project.succeed(&["snapshot", "create"]);
    rebuild(&project, "delivered");
    check_goes_on(&project, &before);
}

/// The commands of a hint, as they stand: in quotes, or each on a line of its own.
fn rebuilds(stderr: &str) -> Vec<Vec<String>> {
    let commands = stderr.split(['`', '\n']).map(str::trim);
    let rebuilds = commands.filter_map(|it| it.strip_prefix("audience-sync snapshot rebuild "));
    let words = rebuilds.map(|rest| rest.split(' ').map(str::to_owned).collect());
    words.collect()
}

#[test]
fn the_commands_of_the_hints_work_as_they_stand() {
    for (make, count) in [
        ((|| with_a_past(CONFIG)) as fn() -> Project, 1),
        (at_two, 2),
    ] {
        let project = make();
        let before = known(&project);
        fs::copy(project.path("snapshot.sqlite"), project.path("copy")).unwrap();
        lose(&project);
        let mut hints = vec![
            project.run(&["snapshot", "list"]).stderr,
            project.run(&["snapshot", "create"]).stderr,
            project.run(&["sync"]).stderr,
        ];
        // An older copy of a snapshot that has told somebody something since.
        fs::rename(project.path("copy"), project.path("snapshot.sqlite")).unwrap();
        fs::write(
            project.path("snapshot.sqlite.lock"),
            "last run 0000000000000000999\n",
        )
        .unwrap();
        hints.push(project.run(&["sync"]).stderr);
        hints.push(rebuild_at(&project, "main", "delivered").stderr);
        for hint in &hints {
            let place = hint.find("audience-sync snapshot rebuild ");
            let other = hint.find("audience-sync s").unwrap();
            assert_eq!(place, Some(other), "another way out comes first: {hint}");
            lose(&project);
            let commands = rebuilds(hint);
            assert_eq!(commands.len(), count, "{hint}");
            for command in commands {
                let words: Vec<_> = command.iter().map(String::as_str).collect();
                project.succeed(&[&["snapshot", "rebuild"], &words[..]].concat());
            }
            check_goes_on(&project, &before);
        }
    }
}

#[test]
fn what_landed_at_another_destination_is_not_added() {
    let project = at_two();
    let run = project.succeed(&["snapshot", "runs", "--json"]).lines();
    let of_main = run.iter().filter(|run| run["destination"] == "main");
    let of_main: Vec<_> = of_main.map(|run| run["run"].as_str().unwrap()).collect();
    lose(&project);
    rebuild_at(&project, "main", "delivered");
    let before = known(&project);
    let ran = rebuild_at(&project, "other", "delivered");
    assert_eq!(ran.code, 2, "{ran:?}");
    let run = ran.stderr.split(' ').nth(5).unwrap();
    assert!(of_main.contains(&run), "{ran:?}");
    assert_eq!(
        ran.stderr,
        format!(
            "error: the snapshot knows run {run} already, as one that told members in delivered/\n\n\
             hint: a record does not tell its destination; name only folders of the destination that is asked for\n"
        )
    );
    assert_eq!(known(&project), before);
    assert_eq!(rebuild_at(&project, "other", "elsewhere").code, 0);
}

#[test]
fn nothing_is_added_to_an_older_copy() {
    let project = at_two();
    lose(&project);
    rebuild_at(&project, "main", "delivered");
    let before = fs::read(project.path("snapshot.sqlite")).unwrap();
    fs::write(
        project.path("snapshot.sqlite.lock"),
        "last run 0000000000000000999\n",
    )
    .unwrap();
    let ran = rebuild_at(&project, "other", "elsewhere");
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr
            .contains("and run 999 has told people something: it is an older copy\n\nhint: "),
        "{ran:?}"
    );
    assert!(before == fs::read(project.path("snapshot.sqlite")).unwrap());
}

/// Two destinations, of which one was told nothing since an audience was begun anew under another key.
fn with_another_key() -> Project {
    let project = at_two();
    lose(&project);
    let renamed =
        "name = \"Members\"\nid = \"members\"\nkey = \"people\"\ndestinations = [\"main\"]";
    let schedule = SCHEDULE
        .replace("source =", "destinations = [\"main\", \"other\"]\nsource =")
        .replace(
            "name = \"Members\"\ndestinations = [\"main\", \"other\"]",
            renamed,
        );
    project.write("schedules/main.toml", &schedule);
    project.succeed(&["snapshot", "create", "--anew"]);
    project.succeed(&["sync"]);
    lose(&project);
    project
}

#[test]
fn the_keys_of_two_destinations_agree() {
    let keys = |project: &Project| -> Vec<Value> {
        let list = project.succeed(&["snapshot", "list", "--json"]).lines();
        let of_members = list.iter().filter(|line| line["id"] == "members");
        of_members
            .map(|line| json!([line["audience"], line["destination"]]))
            .collect()
    };
    // What landed later has the key that the audience goes by.
    let project = with_another_key();
    assert_eq!(rebuild_at(&project, "main", "delivered").code, 0);
    let ran = rebuild_at(&project, "other", "elsewhere");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr
            .contains("people: it went by the key `members` once"),
        "{ran:?}"
    );
    assert_eq!(keys(&project), [json!(["people", "main"])]);
    for line in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(line["outcome"], "unchanged", "{line}");
    }
    // The other way round, the snapshot would know the audience by a key that it does not have any more.
    let project = with_another_key();
    assert_eq!(rebuild_at(&project, "other", "elsewhere").code, 0);
    let before = keys(&project);
    let ran = rebuild_at(&project, "main", "delivered");
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: the snapshot knows the audience `members` by the key `members`, and what landed later is of the \
             audience `members` with the key `people`\n\n\
             hint: move the snapshot away, make one from these records first, and add the others to it\n"
        )
    );
    assert_eq!(keys(&project), before);
}

/// A stream that was told nothing under the key of today has nothing of that audience.
#[test]
fn a_key_is_the_same_in_every_stream() {
    let project = with_a_past(STREAMS);
    lose(&project);
    project.write(
        "audience-sync.toml",
        &STREAMS.replace(r#"["one", "two"]"#, r#"["one"]"#),
    );
    let renamed = "name = \"Members\"\nid = \"members\"\nkey = \"people\"";
    project.write(
        "schedules/main.toml",
        &SCHEDULE.replace("name = \"Members\"", renamed),
    );
    project.succeed(&["snapshot", "create", "--anew"]);
    project.succeed(&["sync"]);
    lose(&project);
    rebuild(&project, "delivered");
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    let of_members = list.iter().filter(|line| line["id"] == "members");
    let found: Vec<_> = of_members
        .map(|line| json!([line["audience"], line["stream"]]))
        .collect();
    assert_eq!(
        found,
        [json!(["people", "one"]), json!(["people", "three"])]
    );
}

/// The name of a destination is a label.
#[test]
fn records_are_known_whatever_their_destination_was_called() {
    let project = with_a_past(CONFIG);
    let mut before = known(&project);
    before
        .iter_mut()
        .for_each(|member| member["destination"] = json!("renamed"));
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("destination.main", "destination.renamed"),
    );
    lose(&project);
    rebuild(&project, "delivered");
    check_goes_on(&project, &before);
    // Of another project's stream nothing is known.
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("\"members\"", "\"others\""),
    );
    copy(&project, false, |number, _| format!("{number}").into());
    lose(&project);
    let ran = project.run(&["snapshot", "rebuild", "--from", "copy"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("were delivered to no stream of main\n\nhint: a record is known by the name that its stream had"),
        "{ran:?}"
    );
    assert!(!project.path("snapshot.sqlite").exists());
}

/// Runs a rebuild that must fail and leave every file as it was.
#[track_caller]
fn refused(project: &Project, code: i32) -> Ran {
    // A lock that was once taken stays, empty or not.
    drop(File::create(project.path("snapshot.sqlite.lock")).unwrap());
    let mut before = project.contents();
    let ran = project.run(&["snapshot", "rebuild", "--from", "delivered"]);
    let mut after = project.contents();
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{ran:?}");
    let lock = project.path("snapshot.sqlite.lock");
    before.remove(&lock);
    after.remove(&lock);
    assert!(before == after, "something was written: {ran:?}");
    ran
}

#[test]
fn what_is_there_is_never_replaced() {
    let project = with_a_past(CONFIG);
    let ran = refused(&project, 2);
    assert_eq!(
        ran.stderr,
        "error: the snapshot snapshot.sqlite already knows what was told to members in delivered/\n\n\
         hint: if it is lost or wrong, move the snapshot away, and make all of it anew\n"
    );
    // What a crash left beside a file that is gone would be read into another one.
    fs::rename(
        project.path("snapshot.sqlite"),
        project.path("snapshot.sqlite-wal"),
    )
    .unwrap();
    assert!(
        refused(&project, 2)
            .stderr
            .contains("something at snapshot.sqlite-wal already")
    );
    // An empty file is nothing, and a link stays one.
    lose(&project);
    project.write("state/real", "");
    std::os::unix::fs::symlink("state/real", project.path("snapshot.sqlite")).unwrap();
    rebuild(&project, "delivered");
    assert!(project.path("snapshot.sqlite").is_symlink());
    let again = project.run(&["snapshot", "rebuild", "--from", "delivered"]);
    assert_eq!(again.code, 2, "{again:?}");
    // So does one that leads to a file which is yet to be made.
    fs::remove_dir_all(project.path("state")).unwrap();
    rebuild(&project, "delivered");
    assert!(project.path("snapshot.sqlite").is_symlink());
    assert!(fs::metadata(project.path("state/real")).unwrap().len() > 0);
}

#[test]
fn a_rebuild_and_a_run_never_meet() {
    let project = with_a_past(CONFIG);
    lose(&project);
    let mut held = File::create(project.path("snapshot.sqlite.lock")).unwrap();
    held.lock().unwrap();
    held.write_all(b"`audience-sync run`, process 7, since yesterday\n")
        .unwrap();
    let ran = project.run(&["snapshot", "rebuild", "--from", "delivered"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.stderr
            .contains("another run holds the snapshot: `audience-sync run`"),
        "{ran:?}"
    );
    assert!(!project.path("snapshot.sqlite").exists());
}

/// What was delivered, spoilt in one way; the error and its hint.
#[track_caller]
fn check_refused(name: &str, bytes: &[u8], expected: &str) {
    let project = Project::new(SCHEDULE);
    project.shop("CREATE TABLE members (user_id TEXT, email, spend)");
    fs::create_dir(project.path("delivered")).unwrap();
    fs::write(project.path("delivered").join(name), bytes).unwrap();
    let ran = refused(&project, 1);
    let expected = expected.replace("FILE", &format!("delivered/{name}"));
    assert!(
        ran.stderr.starts_with(&format!("error: {expected}")),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("\n\nhint: "), "{ran:?}");
}

#[test]
fn broken_input_is_named_and_nothing_is_made_of_half() {
    let project = with_a_past(CONFIG);
    let good: Vec<u8> = files(&project.path("delivered"))
        .iter()
        .flat_map(|file| fs::read(file).unwrap())
        .collect();
    let lines = good.iter().filter(|byte| **byte == b'\n').count();
    let after = |bytes: &[u8]| [&good, bytes].concat();
    let zipped = gzip(&good);
    let next = lines + 1;
    let line = |what: &str| format!("line {next} of FILE: {what}");
    for (bytes, expected) in [
        (
            after(b"nonsense\n"),
            line("not a JSON object: it is not JSON (column 2)\n"),
        ),
        (after(b"[]\n"), line("not a JSON object: ")),
        (after(b"{}"), line("the file ends inside it\n")),
        (after(b"{\"a\":\"\xff\"}\n"), line("not UTF-8\n")),
        (
            after(&[b'x'; 1_100_000]),
            line("longer than a record may be (1024000 bytes)\n"),
        ),
        (
            good[..good.len() - 1].to_vec(),
            format!("line {lines} of FILE: the file ends inside it\n"),
        ),
        (
            zipped[..zipped.len() - 1].to_vec(),
            format!("line {next} of FILE: cannot be read: "),
        ),
        (Vec::new(), "FILE holds no record\n".to_owned()),
        (b"\n \n".to_vec(), "FILE holds no record\n".to_owned()),
        (
            b"{}\n".to_vec(),
            "delivered holds no record of audience-sync\n".to_owned(),
        ),
    ] {
        check_refused("part", &bytes, &expected);
    }
    // One record that is not as it was sent.
    let text = String::from_utf8(good.clone()).unwrap();
    let record = text.lines().next().unwrap();
    let value: Value = serde_json::from_str(record).unwrap();
    let timestamp = value["timestamp"].as_str().unwrap();
    let run = value["context"]["personas"]["computation_run_id"]
        .as_str()
        .unwrap();
    for (from, to, expected) in [
        (
            timestamp,
            "yesterday",
            line("its `timestamp` is not a time\n"),
        ),
        (run, "7", line("its `computation_run_id` is not a UUID\n")),
        (
            "\"messageId\"",
            "\"id\"",
            line("its `messageId` is missing or not a text\n"),
        ),
        (
            "\"traits\":{",
            "\"traits\":{\"x\":",
            line("not a JSON object: "),
        ),
        (
            "\"traits\"",
            "\"trait\"",
            line("the trait that its `computation_key` names has no value that is ever sent\n"),
        ),
        (
            "Id\":\"",
            "Id\":7,\"x\":\"",
            line("neither `userId` nor `anonymousId` names a user\n"),
        ),
    ] {
        let spoilt = record.replacen(from, to, 2);
        assert_ne!(spoilt, record);
        check_refused("part", &after(format!("{spoilt}\n").as_bytes()), &expected);
    }
}

#[test]
fn records_that_were_changed_are_not_believed() {
    let project = with_a_past(CONFIG);
    let before = known(&project);
    let delivered = project.delivered();
    let record = delivered
        .iter()
        .find(|record| record["userId"] == "a" && record["traits"]["members"] == true)
        .unwrap();
    let text = record.to_string();
    let changed = text.replace("true", "false");
    project.write("delivered/changed", &format!("{changed}\n"));
    lose(&project);
    let ran = project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    assert!(
        ran.stderr.contains("passed over 1 records of audience-sync that were delivered to no stream of main, or changed since"),
        "{ran:?}"
    );
    check_goes_on(&project, &before);
    // Its message id holds the second; the run holds the rest.
    let timestamp = record["timestamp"].as_str().unwrap();
    let (seconds, millis) = timestamp.split_once('.').unwrap();
    let other = if millis == "500Z" { "501Z" } else { "500Z" };
    project.write(
        "delivered/changed",
        &format!(
            "{}\n",
            text.replace(timestamp, &format!("{seconds}.{other}"))
        ),
    );
    lose(&project);
    let ran = refused(&project, 1);
    assert!(
        ran.stderr
            .contains("do not agree on their audience and their time\n\nhint: "),
        "{ran:?}"
    );
}

#[test]
fn what_is_no_folder_of_files_is_refused() {
    let project = Project::new(SCHEDULE);
    let ran = project.run(&["snapshot", "rebuild", "--from", "nowhere"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("error: cannot read nowhere: No such file"),
        "{ran:?}"
    );
    assert_eq!(project.run(&["snapshot", "rebuild"]).code, 2);
    fs::create_dir(project.path("delivered")).unwrap();
    assert!(
        refused(&project, 1)
            .stderr
            .contains("delivered holds no record of audience-sync")
    );
    std::os::unix::fs::symlink("..", project.path("delivered/up")).unwrap();
    let ran = project.run(&["snapshot", "rebuild", "--from", "delivered"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("error: delivered/up is neither a file nor a folder\n\nhint: "),
        "{ran:?}"
    );
}

/// Many members, so that a rebuild takes its time.
fn large(members: u64) -> Project {
    let project = Project::new(
        "[[audience]]\nname = \"Members\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\nguard = false\n",
    );
    project
        .shop_connection()
        .execute_batch(&format!(
            "CREATE TABLE members (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {members})
             INSERT INTO members SELECT printf('user_%08d', i) FROM n"
        ))
        .unwrap();
    project.succeed(&["sync"]);
    project
}

#[test]
fn a_rebuild_that_is_killed_leaves_nothing_or_the_whole() {
    let project = large(10_000);
    lose(&project);
    let temporary = project.path(".snapshot.sqlite.rebuild");
    let is_there = |bytes: u64| fs::metadata(&temporary).is_ok_and(|file| file.len() >= bytes);
    let mut interrupted = 0;
    for bytes in [0, 4_096, 150_000, 300_000] {
        let running = project.start(&["snapshot", "rebuild", "--from", "delivered"]);
        eventually("it writes", || {
            is_there(bytes) || project.path("snapshot.sqlite").exists()
        });
        running.signal("KILL");
        drop(running);
        if !project.path("snapshot.sqlite").exists() {
            interrupted += 1;
            assert!(
                project
                    .run(&["snapshot", "list"])
                    .stderr
                    .contains("there is no snapshot")
            );
            continue;
        }
        check_whole(&project);
        lose(&project);
    }
    assert!(
        interrupted > 0,
        "every rebuild was over before it was killed"
    );
    // What they left is in nobody's way.
    rebuild(&project, "delivered");
    check_whole(&project);
    assert!(!temporary.exists());
    let beside: Vec<_> = files(&project.path(""))
        .into_iter()
        .filter(|file| file.to_string_lossy().contains("sqlite-"))
        .collect();
    assert!(beside.is_empty(), "{beside:?}");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(project.path("snapshot.sqlite"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_addition_that_is_killed_leaves_nothing_or_the_whole() {
    let project = large(10_000);
    project.write("audience-sync.toml", TWO);
    let schedule = fs::read_to_string(project.path("schedules/main.toml")).unwrap();
    let everywhere = schedule.replace("source =", "destinations = [\"main\", \"other\"]\nsource =");
    project.write("schedules/main.toml", &everywhere);
    project.succeed(&["sync"]);
    lose(&project);
    assert_eq!(rebuild_at(&project, "main", "delivered").code, 0);
    let log = project.path("snapshot.sqlite-wal");
    let arguments = ["snapshot", "rebuild", "--destination", "other", "--from"];
    let arguments = [&arguments[..], &["elsewhere"]].concat();
    let is_whole = || {
        check_whole(&project);
        let list = project.succeed(&["snapshot", "list", "--json"]).lines();
        let members = list.get(1).map(|line| line["members"].clone());
        assert!(
            members.is_none() || members == Some(json!(10_000)),
            "{list:?}"
        );
        members.is_some()
    };
    // It may be over before it is killed.
    for _ in 0..3 {
        let running = project.start(&arguments);
        eventually("it writes", || {
            fs::metadata(&log).is_ok_and(|log| log.len() > 0)
                || query::<i64>(&project, "SELECT count(*) FROM feed") == 2
        });
        running.signal("KILL");
        drop(running);
        if is_whole() {
            break;
        }
    }
    if !is_whole() {
        project.succeed(&arguments);
    }
    assert!(is_whole());
    for line in project.succeed(&["sync", "--json"]).lines() {
        assert_eq!(line["outcome"], "unchanged", "{line}");
    }
}

fn check_whole(project: &Project) {
    let snapshot = rusqlite::Connection::open(project.path("snapshot.sqlite")).unwrap();
    let intact: String = snapshot
        .query_row("PRAGMA integrity_check", params![], |row| row.get(0))
        .unwrap();
    assert_eq!(intact, "ok");
    drop(snapshot);
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    assert_eq!(list[0]["members"], 10_000);
}

/// Real orders, by the binary alone.
#[test]
fn the_demo_survives_the_loss_of_its_snapshot() {
    let project = Project::empty();
    for _ in 0..3 {
        project.succeed(&["demo", "shop"]);
    }
    let config = ["--config", "shop/audience-sync.toml"];
    let run = |arguments: &[&str]| project.succeed(&[&config[..], arguments].concat());
    let list = || run(&["snapshot", "list", "--json"]).lines();
    let before = list();
    assert_eq!(before.len(), 3);
    let members = |lines: &[Value]| -> Vec<Value> {
        lines.iter().map(|line| line["members"].clone()).collect()
    };
    fs::remove_file(project.path("shop/snapshot.sqlite")).unwrap();
    let lines = run(&["snapshot", "rebuild", "--from", "shop/delivered", "--json"]).lines();
    assert_eq!(members(&lines), members(&before));
    assert_eq!(members(&list()), members(&before));
    for line in run(&["sync", "--json"]).lines() {
        assert_eq!(line["outcome"], "unchanged", "{line}");
    }
}
