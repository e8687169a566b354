//! `snapshot verify`: whether what landed is what the snapshot says was delivered.

use std::fs;
use std::path::PathBuf;

use audience_sync::audience::{
    Action, AudienceId, Change, Class, Key, Member, User, UserKind, Value as Said,
};
use audience_sync::event::{Computation, Identify, Landed};
use audience_sync::landed;
use audience_sync::mapping::StreamName;
use audience_sync::run::{RunId, Timestamp};
use audience_sync::snapshot::{Scope, Snapshot};
use serde_json::{Value, json};

use crate::firehose::{enter, mapped};
use crate::support::endpoint::{Answer, Endpoint};
use crate::support::{CONFIG, Project, Ran, assert_fields, files};

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
source = "shop"
query = "SELECT anonymous_id FROM visitors"
guard = false
"#;

fn project(config: &str) -> Project {
    let project = Project::new(SCHEDULE);
    project.write("audience-sync.toml", config);
    project.shop(
        "CREATE TABLE members (user_id TEXT, email, spend);
         CREATE TABLE visitors (anonymous_id TEXT);
         INSERT INTO members VALUES ('a', 'a@x', 1), ('b', 'b@x', 'x\"y'), ('c', NULL, 0.1), ('leaves', 'l@x', 7);
         INSERT INTO visitors VALUES ('a'), ('z' || char(10))",
    );
    project
}

/// After a first sync, and a second one by which one has left and one has come.
fn synced(config: &str) -> Project {
    let project = project(config);
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM members WHERE user_id = 'leaves'; INSERT INTO members VALUES ('d', 'd@x', 450.0);
         UPDATE members SET spend = 2 WHERE user_id = 'a'",
    );
    project.succeed(&["sync"]);
    project
}

/// Verifies, and changes nothing.
#[track_caller]
fn verify(project: &Project, more: &[&str]) -> Ran {
    let before = project.contents();
    let all = [&["snapshot", "verify", "--json"], more].concat();
    let ran = project.run(&all);
    assert!(
        project.contents() == before,
        "something was written: {ran:?}"
    );
    ran
}

/// The counts by audience, where they are not all zero but the records: missing, extra, wrong, duplicated.
fn differences(ran: &Ran) -> Vec<(String, [u64; 4])> {
    let fields = ["missing", "extra", "wrong", "duplicated"];
    let counts = |line: &Value| fields.map(|field| line[field].as_u64().unwrap());
    let lines = ran.lines();
    let differing = lines.iter().filter(|line| counts(line) != [0; 4]);
    differing
        .map(|line| {
            (
                line["audience"].as_str().unwrap_or("send").to_owned(),
                counts(line),
            )
        })
        .collect()
}

#[track_caller]
fn check(project: &Project, code: i32, expected: &[(&str, [u64; 4])]) -> Vec<Value> {
    let ran = verify(project, &["--from", "delivered"]);
    let expected: Vec<_> = expected
        .iter()
        .map(|(audience, counts)| ((*audience).to_owned(), *counts))
        .collect();
    assert_eq!(differences(&ran), expected, "{ran:?}");
    assert_eq!(ran.code, code, "{ran:?}");
    ran.lines()
}

#[track_caller]
fn check_clean(project: &Project) {
    check(project, 0, &[]);
}

#[test]
fn what_was_delivered_has_landed() {
    let project = synced(CONFIG);
    let lines = check(&project, 0, &[]);
    let fields = [
        "audience",
        "id",
        "destination",
        "stream",
        "records",
        "missing",
        "extra",
        "wrong",
        "duplicated",
    ];
    assert_fields(&lines[0], &fields);
    let records: Vec<_> = lines
        .iter()
        .map(|line| json!([line["audience"], line["records"]]))
        .collect();
    assert_eq!(
        records,
        [
            json!(["members", 6]),
            json!(["spend", 7]),
            json!(["visitors", 2])
        ]
    );
    let table = project.succeed(&["snapshot", "verify", "--from", "delivered"]);
    assert!(table.stdout.starts_with("AUDIENCE "), "{table:?}");
    assert_eq!(
        (table.stdout.lines().count(), table.stderr.as_str()),
        (4, "")
    );

    project.succeed(&["resync", "Members", "Spend"]);
    project.shop("DELETE FROM members; DELETE FROM visitors");
    project.run(&["sync", "--approve"]);
    check_clean(&project);
}

/// Edits the first line below `delivered` that holds all of these words.
#[track_caller]
fn edit(project: &Project, words: &[&str], edit: impl Fn(&str) -> String) {
    for file in files(&project.path("delivered")) {
        let text = fs::read_to_string(&file).unwrap();
        let fits = |line: &&str| words.iter().all(|word| line.contains(word));
        if let Some(line) = text.lines().find(fits) {
            let edited = edit(line);
            assert_ne!(edited, line);
            match text.replacen(&format!("{line}\n"), &edited, 1) {
                rest if rest.is_empty() => fs::remove_file(file).unwrap(),
                rest => fs::write(file, rest).unwrap(),
            }
            return;
        }
    }
    panic!("no line holds {words:?}");
}

#[test]
fn what_is_missing_is_named() {
    let project = synced(CONFIG);
    let lost = project
        .delivered()
        .into_iter()
        .find(|record| record["traits"].get("visitors").is_some() && record["anonymousId"] == "a")
        .unwrap();
    edit(&project, &["\"anonymousId\":\"a\""], |_| String::new());
    edit(&project, &["\"members\":false"], |_| String::new());
    let lines = check(
        &project,
        1,
        &[("members", [1, 0, 0, 0]), ("visitors", [1, 0, 0, 0])],
    );
    assert_eq!(
        lines[2]["missing_sample"],
        json!([{
            "anonymous_id": "a",
            "messageId": lost["messageId"],
            "run": lost["context"]["personas"]["computation_run_id"],
        }])
    );
    assert_eq!(lines[2]["stream"], "members");
    let ran = project.run(&["snapshot", "verify", "--from", "delivered"]);
    assert!(
        ran.stdout.contains("\nFor example\n")
            && ran.stdout.contains(lost["messageId"].as_str().unwrap()),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains(
            "visitors: 1 records were accepted by members and have not landed here\n\nhint: "
        ) && ran
            .stderr
            .contains("`audience-sync resync visitors` sends everyone again"),
        "{ran:?}"
    );
    // All of it, and a sample stays small.
    fs::remove_dir_all(project.path("delivered")).unwrap();
    fs::create_dir(project.path("delivered")).unwrap();
    let lines = check(
        &project,
        1,
        &[
            ("members", [6, 0, 0, 0]),
            ("spend", [7, 0, 0, 0]),
            ("visitors", [2, 0, 0, 0]),
        ],
    );
    assert_eq!(lines[0]["missing_sample"].as_array().unwrap().len(), 5);
}

#[test]
fn what_was_changed_on_its_way_is_wrong() {
    let from_to = [
        // The value, an extra trait, the user, the time, and nothing but its form.
        ("\"members\":true", "\"members\":false"),
        ("a@x", "z@x"),
        ("\"userId\":\"a\"", "\"userId\":\"somebody\""),
        ("\"sentAt\":null", "\"sentAt\":1"),
        ("\"traits\":{", "\"traits\":{ "),
        ("audience-sync", "another library"),
    ];
    for (from, to) in from_to {
        let project = synced(CONFIG);
        edit(
            &project,
            &["\"userId\":\"a\"", "\"members\":true"],
            |line| format!("{}\n", line.replacen(from, to, 1)),
        );
        // One that claims to be somebody else's is none of ours any more.
        let expected = if from == "audience-sync" {
            [1, 0, 0, 0]
        } else {
            [0, 0, 1, 0]
        };
        let lines = check(&project, 1, &[("members", expected)]);
        if expected[2] == 1 {
            let sample = &lines[0]["wrong_sample"];
            assert!(sample[0]["messageId"].is_string(), "{from}: {sample}");
        }
    }
}

#[test]
fn repeats_are_counted_and_are_no_difference() {
    let project = synced(CONFIG);
    let file = files(&project.path("delivered")).remove(0);
    let text = fs::read_to_string(&file).unwrap();
    let again = file.with_file_name("copied-by-hand");
    fs::write(&again, text.repeat(2)).unwrap();
    let ran = verify(&project, &["--from", "delivered"]);
    let counted: u64 = differences(&ran).iter().map(|(_, counts)| counts[3]).sum();
    assert_eq!(
        (ran.code, counted),
        (0, 2 * text.lines().count() as u64),
        "{ran:?}"
    );
    let line = ran
        .lines()
        .into_iter()
        .find(|line| line["duplicated"] != 0)
        .unwrap();
    let sample = &line["duplicated_sample"][0];
    assert!(
        sample["messageId"].is_string() && sample.get("stream").is_none(),
        "{sample}"
    );
}

/// A record that audience-sync would have rendered for this run, with its newline.
fn rendered(
    run: &str,
    started_at: &str,
    audience: &str,
    user: &str,
    value: Option<Said<'_>>,
) -> String {
    let class = if audience == "spend" {
        Class::Trait
    } else {
        Class::Audience
    };
    let identify = Identify::new(&Computation {
        audience: AudienceId::new(audience),
        key: Key::new(audience),
        class,
        stream: StreamName::parse("members").unwrap(),
        run: RunId::parse(run).unwrap(),
        started_at: Timestamp::parse(started_at).unwrap(),
        space_id: None,
    });
    let mut line = Vec::new();
    identify.render(
        &Change {
            action: value.map_or(Action::Leave, |_| Action::Enter),
            member: Member {
                user: User {
                    kind: UserKind::UserId,
                    id: user,
                },
                anonymous_id: None,
                value: value.unwrap_or(Said::True),
                traits: "",
            },
        },
        &mut line,
    );
    String::from_utf8(line).unwrap()
}

/// The runs of an audience, oldest first, as their ids and times.
fn runs(project: &Project, audience: &str) -> Vec<(String, String)> {
    let mut runs = project
        .succeed(&["snapshot", "runs", audience, "--json"])
        .lines();
    runs.reverse();
    let text = |run: &Value, field: &str| run[field].as_str().unwrap().to_owned();
    runs.iter()
        .map(|run| (text(run, "run"), text(run, "started_at")))
        .collect()
}

#[test]
fn what_the_snapshot_knows_nothing_of_is_extra() {
    let project = synced(CONFIG);
    let (run, at) = runs(&project, "members").remove(0);
    let stranger = "0195f3c2-0000-7000-8000-000000000000";
    let forged = [
        // A user whom the run never sent, with a message id as it would have been.
        rendered(&run, &at, "members", "somebody", Some(Said::True)),
        // One with any message id, which repeats none.
        rendered(&run, &at, "members", "other", Some(Said::True)).replace("personas_", "personas-"),
        // A run of another snapshot.
        rendered(stranger, "2020-01-01T00:00:00.000Z", "members", "a", None),
    ];
    project.write("delivered/forged", &forged.concat());
    let lines = check(&project, 1, &[("members", [0, 3, 0, 0])]);
    let mut users: Vec<_> = lines[0]["extra_sample"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sample| sample["user_id"].as_str().unwrap())
        .collect();
    users.sort_unstable();
    assert_eq!(users, ["a", "other", "somebody"]);
    // An audience that the snapshot has never heard of.
    project.write(
        "delivered/forged",
        &rendered(
            stranger,
            "2020-01-01T00:00:00.000Z",
            "retired",
            "a",
            Some(Said::True),
        ),
    );
    check(&project, 1, &[("retired", [0, 1, 0, 0])]);
    // And those of other people are theirs, whoever they say they are.
    let theirs = rendered(stranger, "2020-01-01T00:00:00.000Z", "members", "a", None);
    let theirs = theirs.replace("\"userId\":\"a\"", "\"userId\":\"b\"");
    project.write(
        "delivered/forged",
        &format!("{theirs}{{\"type\":\"page\"}}\n"),
    );
    check_clean(&project);
    let ran = verify(&project, &["--from", "delivered"]);
    assert!(
        ran.stderr
            .contains("passed over 1 records that are not of audience-sync"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains(
            "passed over 1 records of audience-sync that were delivered to no stream of main, or changed since"
        ),
        "{ran:?}"
    );
}

const STREAMS: &str = r#"
[source.shop]
sqlite = "shop.sqlite"

[destination.main]
directory = "delivered"
mapping = { identify = ["one", "two"], "*" = "rest" }
"#;

/// The streams in the order of their lines, with the records that they must have.
fn by_stream(lines: &[Value]) -> Vec<(&str, u64)> {
    let lines = lines.iter();
    lines
        .map(|line| {
            (
                line["stream"].as_str().unwrap(),
                line["records"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[test]
fn a_stream_that_waits_lacks_nothing_and_what_it_has_already_is_not_extra() {
    let project = project(STREAMS);
    fs::create_dir(project.path("delivered")).unwrap();
    project.write("delivered/two", "in the way");
    assert_eq!(project.run(&["sync", "members"]).code, 3);
    fs::rename(project.path("delivered/two"), project.path("aside")).unwrap();
    let of_streams = |records: [u64; 2]| [("one", records[0]), ("two", records[1])];
    assert_eq!(by_stream(&check(&project, 0, &[])), of_streams([4, 0]));
    // As a crash leaves it between the record ID and the note of it.
    fs::copy(project.path("snapshot.sqlite"), project.path("before")).unwrap();
    project.succeed(&["sync", "members"]);
    assert_eq!(by_stream(&check(&project, 0, &[])), of_streams([4, 4]));
    fs::copy(project.path("before"), project.path("snapshot.sqlite")).unwrap();
    assert_eq!(by_stream(&check(&project, 0, &[])), of_streams([4, 0]));
    // It sends them again, which is what at least once means, and to that stream only.
    project.succeed(&["sync", "members"]);
    let lines = check(&project, 0, &[("members", [0, 0, 0, 4])]);
    assert_eq!(by_stream(&lines), of_streams([4, 4]));
    assert_eq!(lines[1]["duplicated"], 4);
}

#[test]
fn each_stream_is_compared_for_itself() {
    let project = synced(STREAMS);
    check_clean(&project);
    for file in files(&project.path("delivered/two")) {
        // A file holds lines of several audiences.
        let text = fs::read_to_string(&file).unwrap();
        let others = text.split_inclusive('\n');
        let others = others.filter(|line| !line.contains("\"visitors\""));
        fs::write(file, others.collect::<String>()).unwrap();
    }
    let lines = check(&project, 1, &[("visitors", [2, 0, 0, 0])]);
    let differs = lines.iter().find(|line| line["missing"] != 0).unwrap();
    assert_eq!(differs["stream"], "two");
    let only = |stream: &str, from: &str| {
        let ran = verify(&project, &["--from", from, "--stream", stream]);
        (ran.code, differences(&ran))
    };
    let missing = vec![("visitors".to_owned(), [2, 0, 0, 0])];
    assert_eq!(only("one", "delivered"), (0, vec![]));
    assert_eq!(only("one", "delivered/one"), (0, vec![]));
    assert_eq!(only("two", "delivered"), (1, missing));
    let ran = verify(&project, &["--from", "delivered", "--stream", "three"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: no stream is called \"three\"\n\nhint: there are one, rest, two\n"
        )
    );
    // Copies whose names do not tell are taken to be of the stream that is named.
    fs::create_dir(project.path("copy")).unwrap();
    for (number, file) in files(&project.path("delivered/one")).iter().enumerate() {
        fs::copy(file, project.path(&format!("copy/{number}"))).unwrap();
    }
    assert_eq!(only("one", "copy"), (0, vec![]));
    assert_eq!(verify(&project, &["--from", "copy"]).code, 1);
}

/// A stream that the mapping does not name any more keeps what it was told, and one that is new was told everything.
#[test]
fn a_stream_that_was_renamed_is_compared_under_both_names() {
    let project = synced(&format!("history = \"0s\"\n{CONFIG}"));
    let moved = CONFIG.replace("identify = \"members\"", "identify = \"moved\"");
    project.write("audience-sync.toml", &format!("history = \"0s\"\n{moved}"));
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    project.succeed(&["sync"]);
    project.succeed(&["sync"]);
    check_clean(&project);
    let ran = verify(&project, &["--from", "delivered", "--stream", "members"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    fs::remove_dir_all(project.path("delivered/moved")).unwrap();
    let lines = check(
        &project,
        1,
        &[
            ("members", [3, 0, 0, 0]),
            ("spend", [3, 0, 0, 0]),
            ("visitors", [2, 0, 0, 0]),
        ],
    );
    for line in &lines {
        assert_eq!(line["missing"] != 0, line["stream"] == "moved", "{line}");
    }
    let ran = verify(&project, &["--from", "delivered", "--stream", "members"]);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Where the history is gone, the members say what must have landed.
#[test]
fn without_a_history_the_members_tell() {
    let config = format!("history = \"0s\"\n{CONFIG}");
    let project = synced(&config);
    let lines = check(&project, 0, &[]);
    let records: Vec<_> = lines
        .iter()
        .map(|line| line["records"].as_u64().unwrap())
        .collect();
    assert_eq!(records, [4, 4, 2]);

    let undo = project.contents();
    let restore = || {
        for (path, bytes) in &undo {
            fs::write(path, bytes).unwrap();
        }
    };
    // The record by which somebody is a member.
    edit(&project, &["\"userId\":\"b\"", "\"members\":true"], |_| {
        String::new()
    });
    check(&project, 1, &[("members", [1, 0, 0, 0])]);
    restore();
    edit(&project, &["\"userId\":\"b\"", "\"spend\":"], |line| {
        format!("{}\n", line.replace("x\\\"y", "other"))
    });
    check(&project, 1, &[("spend", [0, 0, 1, 0])]);
    restore();
    // The one by which somebody has left: downstream they are a member for ever.
    edit(
        &project,
        &["\"userId\":\"leaves\"", "\"members\":false"],
        |_| String::new(),
    );
    let lines = check(&project, 1, &[("members", [0, 1, 0, 0])]);
    assert_eq!(lines[0]["extra_sample"][0]["user_id"], "leaves");
    restore();
    // One that is older than what is known now is of no account.
    edit(&project, &["\"userId\":\"a\"", "\"spend\":1"], |_| {
        String::new()
    });
    check_clean(&project);
    restore();
    // Records that the runs may have sent, and that say otherwise than the members.
    let (run, at) = runs(&project, "members").pop().unwrap();
    let (first, first_at) = runs(&project, "members").remove(0);
    let spend = runs(&project, "spend").pop().unwrap();
    for (line, differs) in [
        (rendered(&run, &at, "members", "a", None), true),
        (
            rendered(&run, &at, "members", "nobody", Some(Said::True)),
            true,
        ),
        (rendered(&run, &at, "members", "nobody", None), false),
        (rendered(&first, &first_at, "members", "d", None), false),
        (
            rendered(&spend.0, &spend.1, "spend", "b", Some(Said::Integer(9))),
            true,
        ),
        (
            rendered(&spend.0, &spend.1, "spend", "b", Some(Said::Text("x\"y"))),
            false,
        ),
        (
            rendered(&run, &at, "members", "a", None).replace("personas_", "personas-"),
            true,
        ),
    ] {
        project.write("delivered/more", &line);
        let ran = verify(&project, &["--from", "delivered"]);
        let extra: u64 = ran
            .lines()
            .iter()
            .map(|line| line["extra"].as_u64().unwrap())
            .sum();
        assert_eq!(
            (ran.code, extra),
            (i32::from(differs), u64::from(differs)),
            "{line}: {ran:?}"
        );
    }
    fs::remove_file(project.path("delivered/more")).unwrap();
    // Repeats are known without the chunks too.
    let all: String = files(&project.path("delivered"))
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    for file in files(&project.path("delivered")) {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.repeat(2)).unwrap();
    }
    let ran = verify(&project, &["--from", "delivered"]);
    let duplicated: u64 = ran
        .lines()
        .iter()
        .map(|line| line["duplicated"].as_u64().unwrap())
        .sum();
    assert_eq!(
        (ran.code, duplicated),
        (0, all.lines().count() as u64),
        "{ran:?}"
    );
}

/// The record that is missing supersedes the one that is there, so only it is reported.
#[test]
fn what_is_older_than_what_is_missing_is_not_held_against_it() {
    let project = synced(&format!("history = \"0s\"\n{CONFIG}"));
    project.write("audience-sync.toml", CONFIG);
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    project.succeed(&["sync"]);
    check_clean(&project);
    edit(&project, &["\"userId\":\"a\"", "\"members\":false"], |_| {
        String::new()
    });
    check(&project, 1, &[("members", [1, 0, 0, 0])]);
}

#[test]
fn a_snapshot_that_was_made_anew_is_compared_by_its_members() {
    let project = synced(STREAMS);
    fs::remove_file(project.path("snapshot.sqlite")).unwrap();
    project.succeed(&["snapshot", "rebuild", "--from", "delivered"]);
    check_clean(&project);
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    project.succeed(&["sync"]);
    check_clean(&project);
    edit(&project, &["\"userId\":\"b\"", "\"members\":true"], |_| {
        String::new()
    });
    check(&project, 1, &[("members", [1, 0, 0, 0])]);
}

#[test]
fn calls_of_send_are_compared_line_by_line() {
    let project = synced(STREAMS);
    let call = |id: &str, more: &str| {
        format!(
            r#"{{"type":"page","userId":"u","messageId":"{id}","timestamp":"t","originalTimestamp":"o","receivedAt":"r","sentAt":"s"{more}}}"#
        )
    };
    let lines = [
        call("1", ""),
        call("2", ""),
        call("2", ""),
        call("2", r#","n":1"#),
    ];
    let ran = project.pipe(
        &["send"],
        lines.join("\n") + "\n" + r#"{"type":"page","userId":"v"}"#,
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    // A record of ours that somebody sends once more.
    let ours = fs::read_to_string(files(&project.path("delivered/one")).remove(0)).unwrap();
    assert_eq!(
        project.pipe(&["send"], ours.lines().next().unwrap()).code,
        0
    );
    let foreign = r#"{"type":"page","messageId":"of somebody else"}"#;
    project.write("delivered/foreign", &format!("{foreign}\n"));
    let found = check(&project, 0, &[]);
    let of_send = |lines: &[Value]| -> Vec<Value> {
        let of_send = |line: &&Value| line["audience"].is_null() && line["id"].is_null();
        lines.iter().filter(of_send).cloned().collect()
    };
    // Five to one stream, and one to two.
    assert_eq!(
        by_stream(&of_send(&found)),
        [("one", 1), ("rest", 5), ("two", 1)]
    );
    edit(&project, &[&call("1", "")], |_| String::new());
    edit(&project, &[&call("2", r#","n":1"#)], |line| {
        format!("{}\n", line.replace("\"n\":1", "\"n\":2"))
    });
    let found = check(&project, 1, &[("send", [1, 0, 1, 0])]);
    let send = &of_send(&found)[1];
    assert_eq!(send["missing_sample"][0]["messageId"], "1");
    assert!(send["missing_sample"][0].get("user_id").is_none(), "{send}");
    let ran = project.run(&["snapshot", "verify", "--from", "delivered"]);
    assert!(ran.stdout.contains("(send)"), "{ran:?}");
    assert!(
        ran.stderr
            .contains("passed over 1 records that are not of audience-sync"),
        "{ran:?}"
    );
}

#[test]
fn each_destination_is_compared_with_what_landed_from_it() {
    let two = format!(
        "{CONFIG}\n[destination.other]\ndirectory = \"elsewhere\"\nmapping = {{ identify = \"members\" }}\n"
    );
    let project = project(&two);
    let everywhere = SCHEDULE.replace("source =", "destinations = [\"main\", \"other\"]\nsource =");
    project.write("schedules/main.toml", &everywhere);
    project.succeed(&["sync"]);
    // A record tells the stream, and not where that is.
    let ran = verify(&project, &["--from", "delivered", "--from", "elsewhere"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            2,
            "",
            "error: there are several destinations, and the records do not tell which one they were delivered to\n\n\
             hint: add --destination with one of main, other\n"
        )
    );
    let of = |from: &str, destination: &str| {
        let ran = verify(&project, &["--from", from, "--destination", destination]);
        let lines = ran.lines();
        assert!(lines.iter().all(|line| line["destination"] == destination));
        (ran.code, lines.len(), differences(&ran).len())
    };
    assert_eq!(of("delivered", "main"), (0, 3, 0));
    assert_eq!(of("elsewhere", "other"), (0, 3, 0));
    // What the other one was told is of other runs.
    assert_eq!(of("elsewhere", "main"), (1, 3, 3));
    let ran = verify(&project, &["--from", "delivered", "--destination", "third"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            2,
            "error: no destination is called \"third\"\n\nhint: there are main, other\n"
        )
    );
    // The name is a label.
    let renamed = two.replace("destination.main", "destination.renamed");
    project.write("audience-sync.toml", &renamed);
    let schedule = everywhere.replace("\"main\"", "\"renamed\"");
    project.write("schedules/main.toml", &schedule);
    assert_eq!(of("delivered", "renamed"), (0, 3, 0));
    project.succeed(&["sync"]);
    assert_eq!(of("delivered", "renamed"), (0, 3, 0));
}

#[test]
fn what_cannot_be_compared_is_not_in_order() {
    let project = project(CONFIG);
    fs::create_dir(project.path("delivered")).unwrap();
    let ran = verify(&project, &["--from", "delivered"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            1,
            "",
            "there is no snapshot at snapshot.sqlite\n\nhint: make it anew from what was delivered: \
             `audience-sync snapshot rebuild --from delivered`; if nothing was ever delivered, begin with \
             `audience-sync snapshot create`\n"
        )
    );
    project.succeed(&["sync"]);
    project.write("delivered/half", "{\"type\":\"page\"");
    let ran = verify(&project, &["--from", "delivered"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr
            .starts_with("error: line 1 of delivered/half: the file ends inside it\n\nhint: "),
        "{ran:?}"
    );
    assert_eq!(verify(&project, &["--from", "nowhere"]).code, 2);
}

/// Nothing is locked while it reads, for it may take an hour.
#[test]
fn a_run_that_begins_meanwhile_is_no_difference() {
    let project = synced(CONFIG);
    let inspect = || {
        Snapshot::inspect(&project.path("snapshot.sqlite"))
            .unwrap()
            .unwrap()
    };
    let snapshot = inspect();
    let streams = snapshot.streams().unwrap();
    let stream = streams[0].clone();
    let mut verify = snapshot.verify(Scope { streams }).unwrap();
    project.shop("INSERT INTO members VALUES ('meanwhile', NULL, 1); DELETE FROM members WHERE user_id = 'a'");
    project.succeed(&["sync"]);
    let folders: [PathBuf; 1] = [project.path("delivered")];
    landed::read(&folders, None, |found| {
        let Landed::Ours(statement) = &found.landed else {
            panic!()
        };
        verify.land(&stream, statement, found.line).unwrap();
        Ok::<_, landed::LandedError>(())
    })
    .unwrap();
    let now = inspect();
    let comparison = verify.finish(|run| now.knows(run)).unwrap();
    assert!(
        comparison.verified.iter().all(|it| it.is_clean()),
        "{comparison:?}"
    );
    // It was really there to be met.
    let lines = project
        .succeed(&["snapshot", "verify", "--from", "delivered", "--json"])
        .lines();
    assert_eq!(lines[0]["records"], comparison.verified[0].records + 2);
}

/// Puts what the endpoint has accepted so far where S3 would have it.
fn deliver(endpoint: &Endpoint, project: &Project) {
    for (number, (stream, record)) in endpoint.ledger().accepted.iter().enumerate() {
        let name = format!("delivered/{stream}-1-2026-11-23-10-00-00-{number}");
        fs::create_dir_all(project.path("delivered")).unwrap();
        fs::write(project.path(&name), record).unwrap();
    }
}

#[test]
fn what_firehose_took_and_forgot_to_say_is_no_difference() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "pack = true", "identify = [\"one\", \"two\"]");
    enter(&project, 0..700);
    let refused = vec![0];
    endpoint.answer([
        Answer::AcceptAndClose,
        Answer::Refuse(refused, "ServiceUnavailableException"),
    ]);
    project.succeed(&["sync"]);
    deliver(&endpoint, &project);
    let ran = verify(&project, &["--from", "delivered"]);
    let lines = ran.lines();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(by_stream(&lines), [("one", 700), ("two", 700)]);
    let sum = |field: &str| -> u64 { lines.iter().map(|line| line[field].as_u64().unwrap()).sum() };
    assert_eq!((sum("missing"), sum("extra"), sum("wrong")), (0, 0, 0));
    let landed = crate::support::raw_lines(&project.path("delivered")).len() as u64;
    assert!(landed > 1_400, "nothing was repeated");
    assert_eq!(sum("duplicated"), landed - 1_400);
}

/// A stream that refuses a record lacks nothing, and the others have it.
#[test]
fn a_dead_letter_is_expected_where_it_was_accepted() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = [\"one\", \"two\"]");
    enter(&project, 0..3);
    endpoint.script(|call| {
        let is_bad = |record: &Vec<u8>| String::from_utf8_lossy(record).contains("u00001");
        match call.stream == "two" && call.records.iter().any(is_bad) {
            true => Answer::error(400, "ValidationException"),
            false => Answer::Accept,
        }
    });
    assert_eq!(project.run(&["sync"]).code, 3);
    deliver(&endpoint, &project);
    let lines = check(&project, 0, &[]);
    assert_eq!(by_stream(&lines), [("one", 3), ("two", 2)]);
    edit(&project, &["u00001"], |_| String::new());
    let lines = check(&project, 1, &[("members", [1, 0, 0, 0])]);
    assert_eq!(
        (&lines[0]["stream"], &lines[0]["missing"]),
        (&json!("one"), &json!(1))
    );
}

/// Real orders, by the binary alone.
#[test]
fn the_demo_is_verified() {
    let project = Project::empty();
    for _ in 0..3 {
        project.succeed(&["demo", "shop"]);
    }
    let arguments = [
        "--config",
        "shop/audience-sync.toml",
        "snapshot",
        "verify",
        "--from",
        "shop/delivered",
        "--json",
    ];
    let lines = project.succeed(&arguments).lines();
    let records: u64 = lines
        .iter()
        .map(|line| line["records"].as_u64().unwrap())
        .sum();
    let landed = crate::support::records(&project.path("shop/delivered")).len();
    assert_eq!((lines.len(), records), (3, landed as u64));
    let file = files(&project.path("shop/delivered")).remove(0);
    fs::remove_file(file).unwrap();
    assert_eq!(project.run(&arguments).code, 1);
}
