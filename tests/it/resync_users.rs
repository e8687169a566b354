//! A resync of single users: what is true of them now, and nothing about anyone else.

use std::fs;

use serde_json::{Value, json};

use crate::firehose::{enter, mapped, numbers, user};
use crate::support::endpoint::{Answer, Call, Endpoint};
use crate::support::{CONFIG, Project, Ran};

const SCHEDULE: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id, anonymous_id, email FROM members"
traits = ["email"]

[[computed_trait]]
name = "Total"
source = "shop"
query = "SELECT user_id, anonymous_id, total AS value FROM members"
"#;

/// Delivered: `a` to `f`, and `~x`, who is known by an anonymous id. Since then `a`, `f` and `~x` have left, `d` and `e`
/// have entered, and `b` has another total.
fn moved(schedule: &str) -> Project {
    let project = Project::new(schedule);
    project.shop(
        "CREATE TABLE members (user_id TEXT, anonymous_id TEXT, email TEXT, total);
         INSERT INTO members VALUES ('a', 'of a', 'a@x', 1), ('b', NULL, 'b@x', 2), ('c', NULL, NULL, 3),
             ('f', NULL, NULL, 6), (NULL, 'x', NULL, 7)",
    );
    project.succeed(&["sync"]);
    project.shop(
        "DELETE FROM members WHERE user_id IN ('a', 'f') OR anonymous_id = 'x'; UPDATE members SET total = 9 WHERE user_id = 'b';
         INSERT INTO members VALUES ('d', NULL, 'd@x', 4), ('e', NULL, NULL, 5)",
    );
    fs::remove_dir_all(project.path("delivered")).unwrap();
    project
}

/// What arrived, as `user traits`, in the order of ids. It is taken away.
fn arrived(project: &Project) -> Vec<String> {
    let line = |record: &Value| {
        let anonymous = record["anonymousId"].as_str().map(|id| format!("~{id}"));
        let ids = [record["userId"].as_str().map(str::to_owned), anonymous];
        let ids: Vec<String> = ids.into_iter().flatten().collect();
        format!("{} {}", ids.join(" "), record["traits"])
    };
    let mut arrived: Vec<String> = project.delivered().iter().map(line).collect();
    arrived.sort();
    // Where nothing arrived there is no folder.
    drop(fs::remove_dir_all(project.path("delivered")));
    arrived
}

#[track_caller]
fn resync(project: &Project, arguments: &[&str]) -> (Value, Ran) {
    let ran = project.succeed(&[&["resync", "--json"], arguments].concat());
    (ran.lines().remove(0), ran)
}

#[test]
fn only_those_who_are_named_are_sent_what_is_true_of_them() {
    let project = moved(SCHEDULE);
    let named = ["members", "--user", "d", "--user", "a", "--user", "b"];
    let (line, ran) = resync(&project, &named);
    assert_eq!(
        arrived(&project),
        [
            r#"a ~of a {"members":false}"#,
            r#"b {"email":"b@x","members":true}"#,
            r#"d {"email":"d@x","members":true}"#
        ]
    );
    assert_eq!(
        (&line["kind"], &line["outcome"]),
        (&json!("resync"), &json!("delivered"))
    );
    let counted = [
        "members",
        "added",
        "removed",
        "changed",
        "delivered",
        "unknown_users",
    ];
    assert_eq!(numbers(&line, counted), [4, 1, 1, 0, 3, 0]);
    assert!(!ran.stderr.contains("neither"), "{ran:?}");

    // It is not said twice that somebody left.
    resync(&project, &["members", "--user", "a", "--user", "b"]);
    assert_eq!(arrived(&project), [r#"b {"email":"b@x","members":true}"#]);

    // The others get their due by the next sync, and those who were named no more.
    let lines = project.succeed(&["sync", "members", "--json"]).lines();
    assert_eq!(
        numbers(&lines[0], ["members", "added", "removed"]),
        [4, 1, 2]
    );
    assert_eq!(
        arrived(&project),
        [
            r#"e {"email":null,"members":true}"#,
            r#"f {"members":false}"#,
            r#"~x {"members":false}"#
        ]
    );
}

#[test]
fn a_computed_trait_has_a_value_or_null() {
    let project = moved(SCHEDULE);
    let (line, _) = resync(
        &project,
        &["total", "--user", "a", "--user", "b", "--user", "c"],
    );
    assert_eq!(
        arrived(&project),
        [
            r#"a ~of a {"total":null}"#,
            r#"b {"total":9}"#,
            r#"c {"total":3}"#
        ]
    );
    assert_eq!(numbers(&line, ["added", "removed", "changed"]), [0, 1, 1]);
}

#[test]
fn a_user_who_is_in_neither_is_counted_and_sent_nothing() {
    let project = moved(SCHEDULE);
    // An anonymous id that stands beside a user id names nobody.
    let named = [
        "members", "--user", "x", "--user", "nobody", "--user", "of a",
    ];
    let (line, ran) = resync(&project, &named);
    assert_eq!(arrived(&project), [r#"~x {"members":false}"#]);
    assert_eq!(line["unknown_users"], 2);
    let words = "members: 2 of the users who were named are neither in the source nor known as members at members";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    assert!(!ran.stderr.contains("nobody"), "{}", ran.stderr);

    let (line, _) = resync(&project, &["members", "--user", "nobody"]);
    assert_eq!(
        (&line["outcome"], &line["unknown_users"]),
        (&json!("unchanged"), &json!(1))
    );
    assert_eq!(arrived(&project), [""; 0]);
}

#[test]
fn an_id_that_is_a_user_id_and_an_anonymous_id_names_both() {
    let project = moved(SCHEDULE);
    project.shop("INSERT INTO members VALUES ('x', NULL, NULL, 8)");
    let (line, _) = resync(&project, &["members", "--user", "x"]);
    assert_eq!(
        arrived(&project),
        [
            r#"x {"email":null,"members":true}"#,
            r#"~x {"members":false}"#
        ]
    );
    assert_eq!(line["unknown_users"], 0);
}

#[test]
fn users_are_read_from_a_file_or_from_standard_input() {
    let project = moved(SCHEDULE);
    project.write("ids.txt", "\u{feff}d\r\n\r\n  \nf\nd\nb");
    resync(
        &project,
        &["members", "--users-from", "ids.txt", "--user", "e"],
    );
    let all = [
        r#"b {"email":"b@x","members":true}"#,
        r#"d {"email":"d@x","members":true}"#,
        r#"e {"email":null,"members":true}"#,
        r#"f {"members":false}"#,
    ];
    assert_eq!(arrived(&project), all);
    let ran = project.pipe(&["resync", "members", "--users-from", "-"], "e\nb\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(arrived(&project), [all[0], all[2]]);
}

#[test]
fn what_names_no_users_is_refused_before_anything_is_done() {
    let project = moved(SCHEDULE);
    let long = "x".repeat(1_025);
    project.write("long.txt", &format!("ok\n{long}\n"));
    project.write("endless.txt", &"x".repeat(2_000_000));
    project.write("nul.txt", "\n\0\n");
    project.write("blank.txt", "\n \n\r\n");
    project.write("many.txt", &"x\n".repeat(1_000_001));
    fs::write(project.path("bytes.txt"), b"ok\n\xff\n").unwrap();
    let before = project.contents();
    let check = |option: &str, argument: &str, message: &str| {
        let ran = project.run(&["resync", "members", option, argument]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(
            ran.stderr.starts_with(&format!("error: {message}")),
            "{ran:?}"
        );
    };
    check("--user", "", "`--user` needs an id, and this one is empty");
    check(
        "--user",
        &long,
        "`--user` is longer than an id may be (1024 bytes)",
    );
    for (file, message) in [
        (
            "missing.txt",
            "cannot read the users in missing.txt: No such file",
        ),
        (
            "schedules",
            "cannot read the users in schedules: Is a directory",
        ),
        (
            "long.txt",
            "line 2 of long.txt is longer than an id may be (1024 bytes)",
        ),
        (
            "endless.txt",
            "line 1 of endless.txt is longer than an id may be",
        ),
        ("nul.txt", "line 2 of nul.txt holds a NUL"),
        ("bytes.txt", "line 2 of bytes.txt is not UTF-8"),
        ("blank.txt", "blank.txt names no users"),
        ("many.txt", "these are more than 1000000 users"),
    ] {
        check("--users-from", file, message);
    }
    assert!(project.contents() == before);
}

#[test]
fn a_feed_that_was_never_synced_refuses_single_users_and_still_gets_everyone() {
    let project = moved(SCHEDULE);
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("\"members\"", "[\"members\", \"copies\"]"),
    );
    let ran = project.run(&["resync", "members", "--user", "b", "--json"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let lines = ran.lines();
    let seen = |line: &Value| {
        (
            line["stream"].clone(),
            line["kind"].clone(),
            line["outcome"].clone(),
        )
    };
    assert_eq!(
        lines.iter().map(seen).collect::<Vec<_>>(),
        [
            (json!("members"), json!("resync"), json!("delivered")),
            (json!("copies"), json!("resync"), json!("failed"))
        ]
    );
    let words = "members: stream copies has not had its first sync, and single users are only sent again after that";
    assert!(ran.stderr.contains(words), "{ran:?}");
    assert_eq!(arrived(&project), [r#"b {"email":"b@x","members":true}"#]);
    // A refusal is no run.
    let runs = project.succeed(&["snapshot", "runs", "members", "--json"]);
    assert_eq!(runs.lines().len(), 2);

    let lines = project.succeed(&["sync", "members", "--json"]).lines();
    let kinds = lines.iter().map(|line| (&line["kind"], &line["delivered"]));
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [(&json!("delta"), &json!(5)), (&json!("first"), &json!(4))]
    );
}

#[test]
fn one_stream_of_several_is_sent_single_users() {
    let project = moved(SCHEDULE);
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("\"members\"", "[\"members\", \"copies\"]"),
    );
    project.succeed(&["sync"]);
    arrived(&project);
    let (line, ran) = resync(&project, &["members", "--user", "c", "--stream", "copies"]);
    assert_eq!((ran.lines().len(), &line["stream"]), (1, &json!("copies")));
    assert_eq!(arrived(&project), [r#"c {"email":null,"members":true}"#]);
}

#[test]
fn the_guard_holds_and_an_approval_covers_only_those_who_are_named() {
    let project = moved(SCHEDULE);
    project.shop("DELETE FROM members");
    let run = |arguments: &[&str]| {
        let named = ["--json", "--user", "a", "--user", "b"];
        project.run(&[&["resync", "members"], &named[..], arguments].concat())
    };
    // What was never shown is held.
    for arguments in [&[][..], &["--dry-run"], &["--approve=1"]] {
        let ran = run(arguments);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert_eq!(numbers(&ran.lines()[0], ["removed", "held"]), [2, 2]);
        let words = "if it is right, type the same command with `--approve`";
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
    assert_eq!(arrived(&project), [""; 0]);
    let ran = run(&["--approve"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        arrived(&project),
        [r#"a ~of a {"members":false}"#, r#"b {"members":false}"#]
    );
    // The two who were shown are no approval for everyone.
    let ran = project.run(&["sync", "members", "--approve", "--json"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert_eq!(ran.lines()[0]["held"], 3);
    assert_eq!(arrived(&project), [""; 0]);
}

#[test]
fn what_a_sync_holds_is_held_after_single_users_were_sent_and_an_approval_covers_it() {
    let project = moved(SCHEDULE);
    let schedule = SCHEDULE.replacen(
        "traits",
        "guard = { min_removed = 1, max_removed_percent = 0 }\ntraits",
        1,
    );
    project.write("schedules/main.toml", &schedule);
    let sync = |arguments: &[&str]| project.run(&[&["sync", "members"], arguments].concat());
    assert_eq!(sync(&[]).code, 4);
    arrived(&project);
    resync(&project, &["members", "--user", "b"]);
    assert_eq!(arrived(&project), [r#"b {"email":"b@x","members":true}"#]);
    let list = || {
        let lines = project.succeed(&["snapshot", "list", "--json"]).lines();
        let members = lines.into_iter().find(|line| line["audience"] == "members");
        members.unwrap()
    };
    assert_eq!(
        (&list()["held"], &list()["last_outcome"]),
        (&json!(3), &json!("held"))
    );
    assert_eq!(sync(&[]).code, 4);
    resync(&project, &["members", "--user", "b"]);
    arrived(&project);
    assert_eq!(sync(&["--approve"]).code, 0);
    assert_eq!(arrived(&project).len(), 3);
}

#[test]
fn a_dry_run_shows_single_users_and_sends_nobody() {
    let project = moved(SCHEDULE);
    let (line, _) = resync(
        &project,
        &["members", "--user", "a", "--user", "d", "--dry-run"],
    );
    assert_eq!(
        (&line["outcome"], &line["unknown_users"]),
        (&json!("planned"), &json!(0))
    );
    assert_eq!(numbers(&line, ["added", "removed", "records"]), [1, 1, 2]);
    assert_eq!(arrived(&project), [""; 0]);
}

fn refused(words: &'static [&'static str]) -> impl FnMut(&Call) -> Answer + Send {
    move |call| {
        let holds = |record: &Vec<u8>| {
            let text = String::from_utf8_lossy(record);
            words.iter().any(|word| text.contains(word))
        };
        match call.records.iter().any(holds) {
            true => Answer::Error(400, "ValidationException", "no".to_owned()),
            false => Answer::Accept,
        }
    }
}

#[test]
fn dead_letters_about_others_stay() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    project.write(
        "schedules/main.toml",
        "[[audience]]\nname = \"Members\"\nsource = \"shop\"\ntraits = [\"t\"]\n\
         query = \"SELECT user_id, iif(user_id LIKE 'long%', printf('%.*c', 1100000, 'x'), '') AS t FROM members\"\n",
    );
    enter(&project, 0..10);
    project.shop("INSERT INTO members VALUES ('poison 1'), ('poison 2'), ('long 1'), ('long 2')");
    endpoint.script(refused(&["poison 1", "poison 2"]));
    assert_eq!(project.run(&["sync"]).code, 3);
    let letters = || {
        let lines = project.succeed(&["snapshot", "dead", "--json"]).lines();
        let mut users: Vec<String> = lines
            .iter()
            .map(|line| line["user_id"].as_str().unwrap().to_owned())
            .collect();
        users.sort();
        users
    };
    assert_eq!(letters(), ["long 1", "long 2", "poison 1", "poison 2"]);
    endpoint.take_ledger();
    endpoint.accept_everything();
    project.shop("UPDATE members SET user_id = 'short' WHERE user_id = 'long 1'");
    let named = ["poison 1", "long 1", "u00003"].map(|id| ["--user", id]);
    let (line, _) = resync(&project, &[&["members"], &named.concat()[..]].concat());
    assert_eq!(
        numbers(&line, ["added", "delivered", "unknown_users"]),
        [1, 2, 1]
    );
    let lines = endpoint.take_ledger().accepted_by("members").concat();
    let mut sent: Vec<String> = lines
        .split_inclusive(|byte| *byte == b'\n')
        .map(user)
        .collect();
    sent.sort();
    assert_eq!(sent, ["poison 1", "u00003"]);
    assert_eq!(letters(), ["long 2", "poison 2"]);
    // The next sync decides about everyone again.
    assert_eq!(project.run(&["sync"]).code, 3);
    assert_eq!(letters(), ["long 2"]);
}
