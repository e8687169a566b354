//! The end of an audience, or of one of its streams: every user who was told something is told otherwise, once.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::firehose::{enter, mapped, sorted, user};
use crate::support::endpoint::{Answer, Api, Call, Endpoint};
use crate::support::{CONFIG, Project, Ran, records, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

const OTHERS: &str = r#"
[[audience]]
name = "Others"
source = "shop"
query = "SELECT user_id FROM members"
"#;

const SPENT: &str = r#"
[[computed_trait]]
name = "Spent"
source = "shop"
query = "SELECT user_id, 7 AS value FROM members"
"#;

/// A project with these users, which delivers to a directory.
fn project(schedule: &str, users: &[&str]) -> Project {
    let project = Project::new(schedule);
    project.shop("CREATE TABLE members (user_id TEXT PRIMARY KEY)");
    for user in users {
        project.shop(&format!("INSERT INTO members VALUES ('{user}')"));
    }
    project
}

fn schedule(project: &Project, text: &str) {
    project.write("schedules/main.toml", text);
}

/// Replaces a part of the configuration, which must be there.
#[track_caller]
fn configure(project: &Project, from: &str, to: &str) {
    let path = project.path("audience-sync.toml");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{from}: {config}");
    fs::write(path, config.replace(from, to)).unwrap();
}

/// Compares, of each line, the stream, the kind, the outcome, and what was removed and delivered.
#[track_caller]
fn check(ran: &Ran, code: i32, expected: &[Value]) {
    let fields = ["stream", "kind", "outcome", "removed", "delivered"];
    let of_line = |line: &Value| Value::Array(fields.map(|field| line[field].clone()).to_vec());
    let found: Vec<Value> = ran.lines().iter().map(of_line).collect();
    assert_eq!((ran.code, &found[..]), (code, expected), "{ran:?}");
}

#[track_caller]
fn retire(project: &Project, words: &[&str], code: i32, expected: &[Value]) -> Ran {
    let ran = project.run(&[&["retire", "--json"], words].concat());
    check(&ran, code, expected);
    ran
}

/// A command that must end with 2, with these words, and leave every file as it was.
#[track_caller]
fn check_refused(project: &Project, arguments: &[&str], words: &[&str]) {
    let before = project.contents();
    let ran = project.run(arguments);
    assert_eq!((ran.code, &*ran.stdout), (2, ""), "{ran:?}");
    for words in words {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert!(before == project.contents(), "{arguments:?} changed a file");
}

/// What a consumer of a folder knows, by user.
fn told(project: &Project, folder: &str, key: &str) -> BTreeMap<String, Value> {
    let truth = truth(&records(&project.path(folder))).into_iter();
    let of_key = truth.filter(|((_, of), _)| of == key);
    of_key.map(|((user, _), value)| (user, value)).collect()
}

#[track_caller]
fn check_told<const N: usize>(project: &Project, folder: &str, expected: [(&str, Value); N]) {
    let expected = expected.map(|(user, value)| (user.to_owned(), value));
    assert_eq!(told(project, folder, "members"), BTreeMap::from(expected));
}

#[test]
fn an_audience_is_retired_and_its_key_is_refused_until_that_is_undone() {
    let both = format!("{MEMBERS}{OTHERS}");
    let project = project(&both, &["a", "b"]);
    project.succeed(&["sync"]);
    project.shop("DELETE FROM members WHERE user_id = 'b'; INSERT INTO members VALUES ('c')");
    // The source is not read: `a` is still in it.
    let ran = retire(
        &project,
        &["Members"],
        0,
        &[json!(["members", "retire", "delivered", 2, 2])],
    );
    assert!(
        ran.stderr
            .contains("the schedule still has \"Members\" at schedules/main.toml:3:1"),
        "{ran:?}"
    );
    check_told(
        &project,
        "delivered",
        [("a", json!(false)), ("b", json!(false))],
    );
    let refused = [
        "the key `members` of \"Members\" was retired, so it is refused for good",
        "remove it from its schedule",
        "`audience-sync retire --undo members`",
    ];
    for command in [
        &["sync"] as &[&str],
        &["sync", "others"],
        &["resync", "members"],
        &["check"],
    ] {
        check_refused(&project, command, &refused);
    }
    // Under another name and id, too.
    let anew = "\n[[audience]]\nname = \"Anew\"\nkey = \"members\"\nid = \"aud_2\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\n";
    schedule(&project, anew);
    check_refused(
        &project,
        &["sync"],
        &["the key `members` of \"Anew\" was retired"],
    );

    // Without it in the schedule all is well, and nothing is said.
    schedule(&project, OTHERS);
    let ran = project.succeed(&["sync"]);
    assert!(!ran.stderr.contains("Members"), "{ran:?}");
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    let retired: Vec<_> = list
        .iter()
        .map(|line| json!([line["audience"], line["retired"], line["members"]]))
        .collect();
    assert_eq!(
        retired,
        [json!(["members", true, 0]), json!(["others", false, 2])]
    );
    let list = project.succeed(&["snapshot", "list"]);
    assert!(list.stdout.contains("audience (retired)"), "{list:?}");
    let runs = project.succeed(&["snapshot", "runs", "members", "--json"]);
    assert_eq!(runs.lines()[0]["kind"], "retire");
    let verified = project.succeed(&["snapshot", "verify", "--from", "delivered"]);
    assert!(verified.stderr.is_empty(), "{verified:?}");

    let ran = retire(
        &project,
        &["members"],
        0,
        &[json!(["members", "retire", "unchanged", 0, 0])],
    );
    assert!(ran.stderr.contains("nothing more is to do"), "{ran:?}");

    let ran = project.succeed(&["retire", "members", "--undo"]);
    assert!(
        ran.stderr.contains("`members` is not retired any more"),
        "{ran:?}"
    );
    check_refused(
        &project,
        &["retire", "members", "--undo"],
        &["`members` was not retired"],
    );
    schedule(&project, &both);
    let lines = project.succeed(&["sync", "--json"]).lines();
    let members = &lines[0];
    assert_eq!(
        json!([members["audience"], members["added"], members["delivered"]]),
        json!(["members", 2, 2])
    );
    check_told(
        &project,
        "delivered",
        [("a", json!(true)), ("b", json!(false)), ("c", json!(true))],
    );
}

#[test]
fn of_a_computed_trait_everyone_is_told_null() {
    let project = project(SPENT, &["a", "b"]);
    project.succeed(&["sync"]);
    schedule(&project, OTHERS);
    let ran = project.succeed(&["check"]);
    let words = "no schedule names \"Spent\" (id `spent`) any more, and 2 users have a value at stream members in delivered/. \
                 hint: `audience-sync retire spent` tells them `null`";
    assert!(ran.stderr.contains(words), "{ran:?}");
    retire(
        &project,
        &["spent"],
        0,
        &[json!(["members", "retire", "delivered", 2, 2])],
    );
    let found = told(&project, "delivered", "spent");
    let expected = ["a", "b"].map(|user| (user.to_owned(), Value::Null));
    assert_eq!(found, BTreeMap::from(expected));
    let ran = project.succeed(&["check"]);
    assert!(!ran.stderr.contains("Spent"), "{ran:?}");
}

#[test]
fn an_audience_that_no_schedule_names_is_warned_of_until_it_is_retired() {
    let project = project(&format!("{MEMBERS}{OTHERS}"), &["a"]);
    project.succeed(&["sync"]);
    schedule(&project, OTHERS);
    let words = "no schedule names \"Members\" (id `members`) any more, and 1 user has `true` at stream members in delivered/. \
                 hint: `audience-sync retire members` tells them `false`; if it was renamed, set `id = \"members\"`";
    for command in ["check", "sync"] {
        let ran = project.succeed(&[command]);
        assert_eq!(ran.stderr.matches(words).count(), 1, "{ran:?}");
    }
    // Its name is known, though no schedule has it.
    project.succeed(&["retire", "Members"]);
    for command in ["check", "sync"] {
        let ran = project.succeed(&[command]);
        assert!(!ran.stderr.contains("Members"), "{ran:?}");
    }
}

#[test]
fn a_stream_that_is_not_mapped_any_more_is_retired_and_the_audience_goes_on_elsewhere() {
    let project = project(MEMBERS, &["a", "b"]);
    configure(&project, "\"members\"", "[\"members\", \"copies\"]");
    project.succeed(&["sync"]);
    let still = [
        "`members` still maps to stream copies in delivered/",
        "first remove `copies` from the mapping of [destination.main]",
        "the destinations of the audience at schedules/main.toml:3:1",
    ];
    let only_there = ["retire", "members", "--stream", "copies"];
    check_refused(&project, &only_there, &still);

    configure(&project, "[\"members\", \"copies\"]", "\"members\"");
    let words = "\"Members\" does not map to stream copies in delivered/ any more, and 2 users have `true` there. \
                 hint: `audience-sync retire members --stream copies` tells them `false`";
    for command in ["check", "sync"] {
        let ran = project.succeed(&[command]);
        assert_eq!(ran.stderr.matches(words).count(), 1, "{ran:?}");
    }
    retire(
        &project,
        &only_there[1..],
        0,
        &[json!(["copies", "retire", "delivered", 2, 2])],
    );
    let left = [("a", json!(false)), ("b", json!(false))];
    check_told(&project, "delivered/copies", left);
    let stay = [("a", json!(true)), ("b", json!(true))];
    check_told(&project, "delivered/members", stay);
    for command in ["check", "sync"] {
        let ran = project.succeed(&[command]);
        assert!(!ran.stderr.contains("copies"), "{ran:?}");
    }
    let ran = retire(
        &project,
        &only_there[1..],
        0,
        &[json!(["copies", "retire", "unchanged", 0, 0])],
    );
    assert!(ran.stderr.contains("nothing more is to do"), "{ran:?}");

    // The key goes on, and so does the stream if it comes back.
    project.shop("DELETE FROM members WHERE user_id = 'a'");
    assert_eq!(project.sync()["removed"], 1);
    configure(&project, "\"members\"", "[\"members\", \"copies\"]");
    project.succeed(&["sync"]);
    let back = [("a", json!(false)), ("b", json!(true))];
    check_told(&project, "delivered/copies", back);
}

/// As after `init`: a directory for a first try, then another place with a stream of the same name.
#[test]
fn of_two_streams_of_one_name_the_one_that_is_not_mapped_any_more_is_retired() {
    let project = project(MEMBERS, &["a"]);
    project.succeed(&["sync"]);
    configure(&project, "\"delivered\"", "\"elsewhere\"");
    let ran = project.succeed(&["sync"]);
    assert!(
        ran.stderr
            .contains("stream members in delivered/ any more, and 1 user has `true` there"),
        "{ran:?}"
    );
    let only_there = ["retire", "members", "--stream", "members"];
    let words = [
        "no destination leads to stream members in delivered/, where 1 user has `true`; nothing was changed",
        "hint: put back a destination with directory = \"delivered\"; its mapping need not name the stream",
    ];
    check_refused(&project, &only_there, &words);
    check_refused(&project, &["retire", "members"], &words);

    let back = "[destination.old]\ndirectory = \"./delivered\"\nmapping = { page = \"pages\" }\n";
    let config = CONFIG.replace("delivered", "elsewhere");
    project.write("audience-sync.toml", &format!("{config}{back}"));
    schedule(&project, &format!("{MEMBERS}destinations = [\"main\"]\n"));
    retire(
        &project,
        &only_there[1..],
        0,
        &[json!(["members", "retire", "delivered", 1, 1])],
    );
    check_told(&project, "delivered", [("a", json!(false))]);
    check_told(&project, "elsewhere", [("a", json!(true))]);
    // It has no members any more, so no destination needs to lead there.
    project.write("audience-sync.toml", &config);
    retire(
        &project,
        &["members"],
        0,
        &[
            json!(["members", "retire", "unchanged", 0, 0]),
            json!(["members", "retire", "delivered", 1, 1]),
        ],
    );
    check_told(&project, "elsewhere", [("a", json!(false))]);
}

#[test]
fn a_region_to_which_nothing_leads_is_named() {
    let endpoint = Endpoint::start();
    let project = mapped(
        &endpoint,
        "region = \"us-west-2\"",
        "identify = \"members\"",
    );
    enter(&project, 0..2);
    project.succeed(&["sync"]);
    configure(&project, "us-west-2", "eu-west-1");
    let url = endpoint.url();
    let place = format!("region = \"us-west-2\", endpoint_url = \"{url}\"");
    check_refused(
        &project,
        &["retire", "members", "--stream", "members"],
        &[
            "no destination leads to stream members (us-west-2 at http://127.0.0.1",
            &place,
        ],
    );
}

#[test]
fn what_is_not_known_cannot_be_retired() {
    let project = project(MEMBERS, &["a"]).without_snapshot();
    let absent = ["there is no snapshot at snapshot.sqlite"];
    check_refused(&project, &["retire", "members"], &absent);
    check_refused(&project, &["retire", "members", "--undo"], &absent);
    project.succeed(&["snapshot", "create"]);
    let none = [
        "no audience is called \"members\"",
        "the snapshot knows none",
    ];
    check_refused(&project, &["retire", "members"], &none);
    project.succeed(&["sync"]);
    let known = [
        "no audience that was ever synced is called \"membrs\"",
        "hint: the snapshot knows members",
    ];
    check_refused(&project, &["retire", "membrs"], &known);
    check_refused(&project, &["retire", "membrs", "--undo"], &known);
    let stream = [
        "`members` was never synced to a stream \"copies\"",
        "hint: it was synced to members",
    ];
    check_refused(
        &project,
        &["retire", "members", "--stream", "copies"],
        &stream,
    );
    // An old name that another audience has now may mean either.
    let swapped = format!(
        "{}id = \"members\"\n{}",
        MEMBERS.replace("\"Members\"", "\"Persons\""),
        OTHERS.replace("\"Others\"", "\"Members\"\nkey = \"others\"")
    );
    schedule(&project, &format!("{MEMBERS}{OTHERS}"));
    project.succeed(&["sync"]);
    schedule(&project, &swapped);
    let several = [
        "several audiences are called \"Members\"",
        "members, others",
    ];
    check_refused(&project, &["retire", "Members"], &several);
}

/// Refuses everything but what `accepts` says.
fn only(accepts: impl Fn(&Call) -> bool + Send + 'static) -> impl FnMut(&Call) -> Answer + Send {
    move |call| match call.api == Api::AssumeRole || accepts(call) {
        true => Answer::Accept,
        false => Answer::error(400, "ResourceNotFoundException"),
    }
}

#[test]
fn what_waited_and_was_never_sent_is_dropped_and_never_arrives() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..3);
    project.succeed(&["sync"]);
    enter(&project, 3..600);
    project.shop("DELETE FROM members WHERE user_id = 'u00000'");
    endpoint.script(only(|_| false));
    assert_eq!(project.run(&["sync"]).code, 3);
    endpoint.take_ledger();
    endpoint.accept_everything();
    retire(
        &project,
        &["members"],
        0,
        &[json!(["members", "retire", "delivered", 3, 3])],
    );
    let ledger = endpoint.ledger();
    let records = ledger.accepted_by("members");
    let mut users: Vec<_> = records.iter().map(|record| user(record)).collect();
    users.sort();
    assert_eq!(users, ["u00000", "u00001", "u00002"]);
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    let left = ["members", "pending", "dead"].map(|field| list[0][field].clone());
    assert_eq!(left, [json!(0), json!(0), json!(0)]);
}

/// The stream was mistyped at the first sync. It has accepted nothing.
#[test]
fn what_waits_for_a_stream_that_accepted_nothing_is_withdrawn_without_a_destination() {
    let endpoint = Endpoint::start();
    let project = mapped(
        &endpoint,
        "region = \"us-west-2\"",
        "identify = \"memberz\"",
    );
    enter(&project, 0..3);
    endpoint.script(only(|call| call.stream == "members"));
    assert_eq!(project.run(&["sync"]).code, 3);
    configure(&project, "\"memberz\"", "\"members\"");
    configure(&project, "us-west-2", "eu-west-1");
    let ran = project.succeed(&["sync"]);
    assert!(!ran.stderr.contains("retire"), "{ran:?}");
    retire(
        &project,
        &["members", "--stream", "memberz"],
        0,
        &[json!(["memberz", "retire", "unchanged", 0, 0])],
    );
    let list = project.succeed(&["snapshot", "list", "--json"]).lines();
    let pending: Vec<_> = list.iter().map(|line| line["pending"].clone()).collect();
    assert_eq!(pending, [json!(0), json!(0)]);
}

#[test]
fn a_user_who_may_have_been_told_is_told_otherwise() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..2);
    project.succeed(&["sync"]);
    // A line that was answered with an internal error may have been accepted.
    enter(&project, 2..3);
    let mut calls = 0;
    endpoint.script(move |_| {
        calls += 1;
        match calls {
            1 => Answer::error(500, "InternalFailure"),
            _ => Answer::error(400, "ResourceNotFoundException"),
        }
    });
    assert_eq!(project.run(&["sync"]).code, 3);
    endpoint.take_ledger();
    endpoint.accept_everything();
    schedule(&project, OTHERS);
    let ran = project.succeed(&["check"]);
    assert!(
        ran.stderr
            .contains("2 users have `true` and others may at stream members"),
        "{ran:?}"
    );
    retire(
        &project,
        &["members"],
        0,
        &[json!(["members", "retire", "delivered", 3, 3])],
    );
    let ledger = endpoint.ledger();
    let records = ledger.accepted_by("members");
    let records: Vec<Value> = records
        .iter()
        .map(|record| serde_json::from_slice(record).unwrap())
        .collect();
    let left = |user: &str| json!(["members", user, false]);
    let mut found: Vec<_> = records
        .iter()
        .map(|it| json!(["members", it["userId"], it["traits"]["members"]]))
        .collect();
    found.sort_by_key(Value::to_string);
    assert_eq!(found, [left("u00000"), left("u00001"), left("u00002")]);
    let ran = project.succeed(&["check"]);
    assert!(!ran.stderr.contains("retire"), "{ran:?}");
}

#[test]
fn what_cannot_be_delivered_stays_in_the_journal_and_goes_on() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = [\"members\", \"copies\"]");
    enter(&project, 0..3);
    project.succeed(&["sync"]);
    endpoint.take_ledger();
    endpoint.script(only(|call| call.stream == "members"));
    let run = retire(
        &project,
        &["members"],
        3,
        &[
            json!(["members", "retire", "delivered", 3, 3]),
            json!(["copies", "retire", "undelivered", 3, 0]),
        ],
    );
    assert!(
        run.stderr
            .contains("`audience-sync retire members` or the next sync goes on with them"),
        "{run:?}"
    );
    // The audience is retired already, and warned of while users have `true`.
    check_refused(&project, &["sync"], &["was retired"]);
    schedule(&project, OTHERS);
    let ran = project.succeed(&["check"]);
    assert!(
        ran.stderr
            .contains("\"Members\" was retired, and 3 users have `true` at stream copies"),
        "{ran:?}"
    );
    let offered = endpoint.take_ledger().calls;
    let offered = offered.iter().find(|call| call.stream == "copies").unwrap();
    let expected = sorted(offered.records.iter().map(Vec::as_slice));
    endpoint.accept_everything();
    let ran = retire(
        &project,
        &["members"],
        0,
        &[
            json!(["members", "retire", "unchanged", 0, 0]),
            json!(["copies", "resume", "delivered", 0, 3]),
        ],
    );
    assert_eq!(ran.lines()[1]["run"], run.lines()[1]["run"]);
    let ledger = endpoint.ledger();
    assert!(sorted(ledger.accepted_by("copies")) == expected);
}

#[test]
fn what_a_retire_has_left_is_delivered_by_the_next_sync_of_all() {
    for ends in [true, false] {
        let endpoint = Endpoint::start();
        let project = mapped(&endpoint, "", "identify = [\"members\", \"copies\"]");
        enter(&project, 0..3);
        project.succeed(&["sync"]);
        endpoint.script(only(|call| call.stream == "members"));
        // Of an audience that ends, and of one that goes on elsewhere.
        let retired: &[&str] = match ends {
            true => {
                fs::remove_file(project.path("schedules/main.toml")).unwrap();
                &["retire", "members"]
            }
            false => {
                configure(&project, "[\"members\", \"copies\"]", "\"members\"");
                &["retire", "members", "--stream", "copies"]
            }
        };
        assert_eq!(project.run(retired).code, 3);
        endpoint.accept_everything();
        let lines = project.succeed(&["sync", "--json"]).lines();
        let resumed = json!([lines[0]["stream"], lines[0]["kind"], lines[0]["delivered"]]);
        assert_eq!(resumed, json!(["copies", "resume", 3]));
        assert_eq!(lines.len(), if ends { 1 } else { 2 });
        let ran = project.succeed(&["check"]);
        assert!(!ran.stderr.contains("retire"), "{ran:?}");
    }
}

#[test]
fn a_retire_that_is_killed_is_repeated_with_the_same_bytes() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..600);
    project.succeed(&["sync"]);
    endpoint.take_ledger();
    endpoint.script(|call| match call.api {
        Api::AssumeRole => Answer::Accept,
        _ => Answer::AcceptAndHang,
    });
    let running = project.start(&["retire", "members"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 600);
    running.signal("KILL");
    assert_eq!(running.end().code, -1);
    let first = endpoint.take_ledger();
    endpoint.accept_everything();
    retire(
        &project,
        &["members"],
        0,
        &[json!(["members", "resume", "delivered", 0, 600])],
    );
    let second = endpoint.ledger();
    let [first, second] = [&first, &second].map(|it| sorted(it.accepted_by("members")));
    assert!(first == second);
    check_refused(&project, &["sync"], &["was retired"]);
}

/// Such a line is decided anew by the next `retire`.
#[test]
fn a_user_whom_the_stream_refuses_to_let_go_is_told_again_by_the_next_retire() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..3);
    project.succeed(&["sync"]);
    endpoint.script(
        |call| match call.records.iter().any(|record| user(record) == "u00001") {
            true => Answer::error(400, "ValidationException"),
            false => Answer::Accept,
        },
    );
    let undelivered = json!(["members", "retire", "undelivered", 3, 2]);
    retire(&project, &["members"], 3, &[undelivered]);
    endpoint.accept_everything();
    let delivered = json!(["members", "retire", "delivered", 1, 1]);
    retire(&project, &["members"], 0, &[delivered]);
}

/// What the resumed run could not deliver for good is decided anew by the same command.
#[test]
fn a_retire_that_goes_on_tells_those_again_whose_lines_are_dead() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..3);
    project.succeed(&["sync"]);
    let refuse = |poison: &'static [&'static str]| {
        move |call: &Call| {
            let has_it = |record: &Vec<u8>| poison.contains(&&*user(record));
            match call.records.iter().any(has_it) {
                true => Answer::error(400, "ValidationException"),
                false => Answer::Accept,
            }
        }
    };
    endpoint.script(refuse(&["u00001", "u00002"]));
    let undelivered = json!(["members", "retire", "undelivered", 3, 1]);
    retire(&project, &["members"], 3, &[undelivered]);
    // Both lines are in the journal again.
    endpoint.script(only(|_| false));
    assert_eq!(project.run(&["snapshot", "dead", "--retry"]).code, 3);
    endpoint.script(refuse(&["u00002"]));
    retire(
        &project,
        &["members"],
        3,
        &[
            json!(["members", "resume", "undelivered", 0, 1]),
            json!(["members", "retire", "undelivered", 1, 0]),
        ],
    );
}

#[test]
fn one_run_at_a_time() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"members\"");
    enter(&project, 0..1);
    project.succeed(&["sync"]);
    enter(&project, 1..2);
    endpoint.script(|_| Answer::AcceptAndHang);
    let running = project.start(&["sync"]);
    endpoint.wait_until(|ledger| ledger.accepted.len() == 2);
    let ran = project.run(&["retire", "members", "--json"]);
    assert_eq!((ran.code, &ran.lines()[0]["outcome"]), (5, &json!("busy")));
    assert_eq!(project.run(&["retire", "members", "--undo"]).code, 2);
    let waiting = project.start(&["retire", "members", "--wait"]);
    endpoint.accept_everything();
    running.signal("KILL");
    running.end();
    assert_eq!(waiting.end().code, 0);
    // Nobody knows what the sync had sent when it was killed.
    let ledger = endpoint.ledger();
    let records = ledger.accepted_by("members");
    let left = records
        .iter()
        .filter(|it| String::from_utf8_lossy(it).contains("\"members\":false"));
    assert_eq!(left.count(), 2);
}
