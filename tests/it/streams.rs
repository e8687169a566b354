//! What each stream was told: a stream is a place, and each stands alone.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::firehose::{enter, mapped, user};
use crate::support::endpoint::{Answer, Call, Endpoint};
use crate::support::web::{Reply, Web};
use crate::support::{CONFIG, Project, Ran, records, truth};

const MEMBERS: &str = r#"
[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"
"#;

/// A project with these users, which delivers to directories.
fn project(users: &[&str]) -> Project {
    let project = Project::new(MEMBERS);
    project.shop("CREATE TABLE members (user_id TEXT PRIMARY KEY)");
    users.iter().for_each(|user| add(&project, user));
    project
}

fn add(project: &Project, user: &str) {
    project.shop(&format!("INSERT INTO members VALUES ('{user}')"));
}

fn remove(project: &Project, user: &str) {
    project.shop(&format!("DELETE FROM members WHERE user_id = '{user}'"));
}

/// Replaces a part of the configuration, which must be there.
#[track_caller]
fn configure(project: &Project, from: &str, to: &str) {
    let path = project.path("audience-sync.toml");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{from}: {config}");
    fs::write(path, config.replace(from, to)).unwrap();
}

/// Runs `sync` and compares, of each line, the stream, the kind, and what was added, removed and delivered.
#[track_caller]
fn sync(project: &Project, code: i32, expected: &[Value]) -> Ran {
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, code, "{ran:?}");
    check(&ran, expected);
    ran
}

#[track_caller]
fn check(ran: &Ran, expected: &[Value]) {
    let fields = ["stream", "kind", "added", "removed", "delivered"];
    let of_line = |line: &Value| Value::Array(fields.map(|field| line[field].clone()).to_vec());
    let found: Vec<Value> = ran.lines().iter().map(of_line).collect();
    assert_eq!(found, expected, "{ran:?}");
}

/// Who is a member, and who was one, for a consumer of what a folder holds.
fn told(project: &Project, folder: &str) -> BTreeMap<String, bool> {
    let truth = truth(&records(&project.path(folder))).into_iter();
    truth
        .map(|((user, _), value)| (user, value.as_bool().unwrap()))
        .collect()
}

fn known<const N: usize>(users: [(&str, bool); N]) -> BTreeMap<String, bool> {
    let users = users.into_iter();
    users
        .map(|(user, is_member)| (user.to_owned(), is_member))
        .collect()
}

#[test]
fn aws_settings_in_place_of_the_directory_of_init_send_everyone_to_aws() {
    let endpoint = Endpoint::start();
    let mut project = Project::empty();
    project.succeed(&["init"]);
    project.shop(
        "CREATE TABLE orders (user_id TEXT, completed_at TEXT);
         INSERT INTO orders VALUES ('a', date('now')), ('b', date('now'))",
    );
    let stream = "audience_memberships";
    sync(&project, 0, &[json!([stream, "first", 2, 0, 2])]);
    sync(&project, 0, &[json!([stream, "delta", 0, 0, 0])]);

    let aws = format!("endpoint_url = \"{}\"", endpoint.url());
    configure(&project, "directory = \"delivered\"", &aws);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "AKIAPROJECT"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let credentials = credentials.map(|(name, value)| (name.to_owned(), value.to_owned()));
    project.variables.extend(credentials);
    let ran = sync(&project, 0, &[json!([stream, "first", 2, 0, 2])]);
    assert!(
        ran.stderr.contains("is new to it and gets a first sync"),
        "{ran:?}"
    );
    let ledger = endpoint.ledger();
    let mut users: Vec<_> = ledger
        .accepted_by(stream)
        .iter()
        .map(|record| user(record))
        .collect();
    users.sort();
    assert_eq!(users, ["a", "b"]);
    let ran = sync(&project, 0, &[json!([stream, "delta", 0, 0, 0])]);
    assert!(!ran.stderr.contains("first sync"), "{ran:?}");
}

/// And one that comes back is told what has changed meanwhile.
#[test]
fn a_stream_that_is_renamed_gets_a_first_sync() {
    let project = project(&["a", "b"]);
    sync(&project, 0, &[json!(["members", "first", 2, 0, 2])]);
    configure(&project, "\"members\"", "\"people\"");
    remove(&project, "a");
    add(&project, "c");
    sync(&project, 0, &[json!(["people", "first", 2, 0, 2])]);
    assert_eq!(
        told(&project, "delivered/people"),
        known([("b", true), ("c", true)])
    );
    assert_eq!(
        told(&project, "delivered/members"),
        known([("a", true), ("b", true)])
    );

    configure(&project, "\"people\"", "\"members\"");
    sync(&project, 0, &[json!(["members", "delta", 1, 1, 2])]);
    assert_eq!(
        told(&project, "delivered/members"),
        known([("a", false), ("b", true), ("c", true)])
    );
}

#[test]
fn a_stream_that_is_added_to_a_list_gets_a_first_sync_beside_the_deltas_of_the_others() {
    let project = project(&["a", "b"]);
    sync(&project, 0, &[json!(["members", "first", 2, 0, 2])]);
    configure(&project, "\"members\"", "[\"members\", \"copies\"]");
    remove(&project, "a");
    add(&project, "c");
    // A dry run decides alike.
    check(
        &project.succeed(&["sync", "--dry-run", "--json"]),
        &[
            json!(["members", "delta", 1, 1, 0]),
            json!(["copies", "first", 2, 0, 0]),
        ],
    );
    let ran = sync(
        &project,
        0,
        &[
            json!(["members", "delta", 1, 1, 2]),
            json!(["copies", "first", 2, 0, 2]),
        ],
    );
    let said = "members: stream copies in ";
    assert_eq!(ran.stderr.matches(said).count(), 1, "{ran:?}");
    assert_eq!(
        told(&project, "delivered/copies"),
        known([("b", true), ("c", true)])
    );
    remove(&project, "b");
    let delta = |stream: &str| json!([stream, "delta", 0, 1, 1]);
    sync(&project, 0, &[delta("members"), delta("copies")]);

    // What is compared with what landed is what each stream was told.
    let verified = project.succeed(&["snapshot", "verify", "--from", "delivered", "--json"]);
    assert_eq!(verified.lines().len(), 2, "{verified:?}");
}

#[test]
fn another_directory_region_or_endpoint_is_another_stream() {
    let directories = project(&["a"]);
    let first = json!(["members", "first", 1, 0, 1]);
    let unchanged = json!(["members", "delta", 0, 0, 0]);
    sync(&directories, 0, std::slice::from_ref(&first));
    configure(&directories, "\"delivered\"", "\"elsewhere\"");
    sync(&directories, 0, std::slice::from_ref(&first));
    configure(&directories, "\"elsewhere\"", "\"delivered\"");
    sync(&directories, 0, std::slice::from_ref(&unchanged));
    // The name of the destination is a label.
    configure(&directories, "destination.main", "destination.other");
    sync(&directories, 0, std::slice::from_ref(&unchanged));

    let (one, other) = (Endpoint::start(), Endpoint::start());
    let aws = mapped(&one, "region = \"us-west-2\"", "identify = \"members\"");
    enter(&aws, 0..1);
    sync(&aws, 0, std::slice::from_ref(&first));
    configure(&aws, "us-west-2", "eu-west-1");
    sync(&aws, 0, std::slice::from_ref(&first));
    let calls = one.take_ledger().calls;
    let scopes: Vec<&str> = calls.iter().map(|call| &*call.scope).collect();
    assert_eq!(scopes, ["us-west-2/firehose", "eu-west-1/firehose"]);
    configure(&aws, &one.url(), &other.url());
    sync(&aws, 0, &[first]);
    assert_eq!(other.ledger().accepted.len(), 1);
    configure(&aws, &other.url(), &one.url());
    configure(&aws, "eu-west-1", "us-west-2");
    sync(&aws, 0, &[unchanged]);
    assert!(one.ledger().calls.is_empty());
}

/// A stream of this name is missing, until it is created.
fn missing(name: &'static str) -> impl FnMut(&Call) -> Answer + Send + 'static {
    move |call| match call.stream == name {
        true => Answer::error(400, "ResourceNotFoundException"),
        false => Answer::Accept,
    }
}

#[test]
fn a_stream_that_was_mistyped_at_the_first_sync_is_corrected_in_the_mapping() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = \"memberz\"");
    enter(&project, 0..3);
    endpoint.script(missing("memberz"));
    sync(&project, 3, &[json!(["memberz", "first", 3, 0, 0])]);

    configure(&project, "\"memberz\"", "\"members\"");
    sync(&project, 0, &[json!(["members", "first", 3, 0, 3])]);
    enter(&project, 3..4);
    remove(&project, "u00000");
    sync(&project, 0, &[json!(["members", "delta", 1, 1, 2])]);
    let calls = endpoint.take_ledger().calls;
    let asked = calls.iter().filter(|call| call.stream == "memberz");
    assert_eq!(asked.count(), 1, "nobody waits for it any more");

    // What waits there waits on, and goes first if it comes back.
    configure(&project, "\"members\"", "[\"members\", \"memberz\"]");
    endpoint.accept_everything();
    sync(
        &project,
        0,
        &[
            json!(["members", "delta", 0, 0, 0]),
            json!(["memberz", "resume", 0, 0, 3]),
            json!(["memberz", "delta", 1, 1, 2]),
        ],
    );
    let ledger = endpoint.ledger();
    let landed = ledger.accepted_by("memberz").into_iter();
    let mut landed: Vec<Value> = landed
        .map(|record| serde_json::from_slice(record).unwrap())
        .collect();
    landed.sort_by_key(|record| record["timestamp"].to_string());
    let members: Vec<String> = truth(&landed)
        .into_iter()
        .filter(|(_, value)| *value == true)
        .map(|((user, _), _)| user)
        .collect();
    assert_eq!(members, ["u00001", "u00002", "u00003"]);
}

#[test]
fn of_two_destinations_the_mistyped_one_is_corrected_and_the_other_never_waited() {
    let project = project(&["a", "b"]);
    let schedule = format!("{MEMBERS}destinations = [\"main\", \"second\"]\n");
    project.write("schedules/main.toml", &schedule);
    project.write("nowhere", "a file, and no directory");
    let second =
        "[destination.second]\ndirectory = \"nowhere\"\nmapping = { identify = \"people\" }\n";
    project.write("audience-sync.toml", &format!("{CONFIG}{second}"));
    sync(
        &project,
        3,
        &[
            json!(["members", "first", 2, 0, 2]),
            json!(["people", "first", 2, 0, 0]),
        ],
    );
    remove(&project, "a");
    sync(
        &project,
        3,
        &[
            json!(["members", "delta", 0, 1, 1]),
            json!(["people", "resume", 0, 0, 0]),
        ],
    );
    configure(&project, "\"nowhere\"", "\"somewhere\"");
    add(&project, "c");
    sync(
        &project,
        0,
        &[
            json!(["members", "delta", 1, 0, 1]),
            json!(["people", "first", 2, 0, 2]),
        ],
    );
    let expected = known([("b", true), ("c", true)]);
    assert_eq!(told(&project, "somewhere"), expected);
}

/// What one stream refuses is never a reason to tell another one again.
#[test]
fn a_user_whom_one_stream_refuses_is_told_to_the_other_once() {
    let endpoint = Endpoint::start();
    let project = mapped(&endpoint, "", "identify = [\"good\", \"picky\"]");
    enter(&project, 0..5);
    endpoint.script(|call| {
        let has_it = call.records.iter().any(|record| user(record) == "u00003");
        match call.stream == "picky" && has_it {
            true => Answer::error(400, "ValidationException"),
            false => Answer::Accept,
        }
    });
    sync(
        &project,
        3,
        &[
            json!(["good", "first", 5, 0, 5]),
            json!(["picky", "first", 5, 0, 4]),
        ],
    );
    for _ in 0..2 {
        sync(
            &project,
            3,
            &[
                json!(["good", "delta", 0, 0, 0]),
                json!(["picky", "delta", 1, 0, 0]),
            ],
        );
    }
    let letters = project.succeed(&["snapshot", "dead", "--json"]).lines();
    let letters: Vec<_> = letters
        .iter()
        .map(|letter| json!([letter["stream"], letter["user_id"]]))
        .collect();
    assert_eq!(letters, [json!(["picky", "u00003"])]);
    assert_eq!(endpoint.ledger().accepted_by("good").len(), 5);
    endpoint.accept_everything();
    sync(
        &project,
        0,
        &[
            json!(["good", "delta", 0, 0, 0]),
            json!(["picky", "delta", 1, 0, 1]),
        ],
    );
    assert_eq!(endpoint.ledger().accepted_by("good").len(), 5);
    assert_eq!(endpoint.ledger().accepted_by("picky").len(), 5);
}

#[test]
fn the_guard_holds_and_an_approval_covers_each_stream_by_itself() {
    let project = project(&[]);
    let schedule = format!("{MEMBERS}destinations = [\"main\", \"second\"]\n");
    project.write("schedules/main.toml", &schedule);
    let second =
        "[destination.second]\ndirectory = \"second\"\nmapping = { identify = \"people\" }\n";
    project.write("audience-sync.toml", &format!("{CONFIG}{second}"));
    project.shop(
        "WITH RECURSIVE n (n) AS (VALUES (100) UNION ALL SELECT n + 1 FROM n WHERE n < 399)
         INSERT INTO members SELECT 'user ' || n FROM n",
    );
    let held = |arguments: &[&str], code: i32| -> Vec<Value> {
        let ran = project.run(&[&["sync", "--json"], arguments].concat());
        assert_eq!(ran.code, code, "{ran:?}");
        let of_line = |line: &Value| json!([line["kind"], line["held"], line["delivered"]]);
        ran.lines().iter().map(of_line).collect()
    };
    held(&[], 0);
    // One stream cannot be delivered to, so that nothing is planned for it: only the other shows its removals.
    let (second, aside) = (project.path("second"), project.path("aside"));
    fs::rename(&second, &aside).unwrap();
    project.write("second", "in the way");
    add(&project, "new");
    let first = held(&[], 3);
    assert_eq!(first, [json!(["delta", 0, 1]), json!(["delta", 0, 0])]);
    project.shop("DELETE FROM members WHERE user_id >= 'user 280'");
    let shown = held(&[], 3);
    assert_eq!(shown, [json!(["delta", 120, 0]), json!(["resume", 0, 0])]);

    fs::remove_file(&second).unwrap();
    fs::rename(&aside, &second).unwrap();
    assert_eq!(
        held(&["--approve"], 4),
        [
            json!(["delta", 0, 120]),
            json!(["resume", 0, 1]),
            json!(["delta", 120, 0]),
        ]
    );
    assert_eq!(
        held(&["--approve"], 0),
        [json!(["delta", 0, 0]), json!(["delta", 0, 120])]
    );
    assert_eq!(told(&project, "second"), told(&project, "delivered"));
}

/// A new stream has no members that could be removed, whatever the guard holds elsewhere.
#[test]
fn a_stream_that_is_new_while_the_guard_holds_gets_its_first_sync() {
    let project = project(&["a", "b"]);
    sync(&project, 0, &[json!(["members", "first", 2, 0, 2])]);
    project.shop("DELETE FROM members");
    configure(&project, "\"members\"", "[\"members\", \"copies\"]");
    sync(
        &project,
        4,
        &[
            json!(["members", "delta", 0, 2, 0]),
            json!(["copies", "first", 0, 0, 0]),
        ],
    );
    add(&project, "c");
    sync(
        &project,
        0,
        &[
            json!(["members", "delta", 1, 2, 3]),
            json!(["copies", "delta", 1, 0, 1]),
        ],
    );
}

#[test]
fn a_resync_of_one_stream_tells_the_others_nothing() {
    let project = project(&["a", "b"]);
    configure(&project, "\"members\"", "[\"members\", \"copies\"]");
    project.succeed(&["sync"]);
    remove(&project, "b");
    let ran = project.succeed(&["resync", "members", "--stream", "copies", "--json"]);
    check(&ran, &[json!(["copies", "resync", 0, 1, 2])]);
    assert_eq!(records(&project.path("delivered/members")).len(), 2);
    sync(
        &project,
        0,
        &[
            json!(["members", "delta", 0, 1, 1]),
            json!(["copies", "delta", 0, 0, 0]),
        ],
    );
}

#[test]
fn the_source_of_an_audience_with_two_streams_is_read_once() {
    let web = Web::start(|_| Reply::json(&json!(["a", "b"])));
    let project = Project::empty();
    let source = format!("[source.crm]\nurl = \"{}\"\n", web.url("/"));
    let config = CONFIG.replace("\"members\"", "[\"members\", \"copies\"]");
    project.write("audience-sync.toml", &format!("{source}{config}"));
    project.write(
        "schedules/main.toml",
        "[[audience]]\nname = \"Members\"\nsource = \"crm\"\n",
    );
    let line =
        |stream: &str, kind: &str, removed: u8| json!([stream, kind, 2 - removed, removed, 2]);
    sync(
        &project,
        0,
        &[line("members", "first", 0), line("copies", "first", 0)],
    );
    assert_eq!(web.requests().len(), 1);
    web.answer(|_| Reply::json(&json!(["b", "c"])));
    sync(
        &project,
        0,
        &[line("members", "delta", 1), line("copies", "delta", 1)],
    );
    assert_eq!(web.requests().len(), 1);
    let expected = known([("a", false), ("b", true), ("c", true)]);
    assert_eq!(told(&project, "delivered/copies"), expected);
    assert_eq!(told(&project, "delivered/members"), expected);
}
