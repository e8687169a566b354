//! One failing audience does not stop the others, and the exit code tells the worst.

use std::fs;

use serde_json::Value;

use crate::support::{Project, truth};

const CONFIG: &str = r#"
[source.shop]
sqlite = "shop.sqlite"

[source.gone]
sqlite = "gone.sqlite"

[destination.main]
directory = "delivered"
mapping = { identify = "members" }
"#;

const GOOD: (&str, &str, &str) = ("Good", "shop", "SELECT user_id FROM members");
const MISSING: (&str, &str, &str) = ("Missing", "gone", "SELECT user_id FROM members");
const COLUMN: (&str, &str, &str) = ("Column", "shop", "SELECT nobody FROM members");
const HALF_WAY: (&str, &str, &str) = (
    "Half Way",
    "shop",
    "SELECT user_id, iif(user_id = 'b', abs(-9223372036854775807 - 1), 1) AS email FROM members",
);
const EMPTY: (&str, &str, &str) = ("Empty", "shop", "SELECT user_id FROM leaving");

fn project(audiences: &[(&str, &str, &str)]) -> Project {
    let project = Project::empty();
    project.write("audience-sync.toml", CONFIG);
    let audience = |(name, source, query): &(&str, &str, &str)| {
        let traits = if query.contains("email") {
            "traits = [\"email\"]"
        } else {
            ""
        };
        format!(
            "[[audience]]\nname = \"{name}\"\nsource = \"{source}\"\nquery = \"{query}\"\n{traits}\n"
        )
    };
    let schedule: String = audiences.iter().map(audience).collect();
    project.write("schedules/main.toml", &schedule);
    project.shop(
        "CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a'), ('b');
         CREATE TABLE leaving (user_id TEXT); INSERT INTO leaving VALUES ('a')",
    );
    project
}

#[track_caller]
fn check(audiences: &[(&str, &str, &str)], code: i32, outcomes: &[&str], words: &str) {
    let project = project(audiences);
    if audiences.contains(&EMPTY) {
        project.succeed(&["sync", "Empty"]);
        project.shop("DELETE FROM leaving");
    }
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, code, "{ran:?}");
    let mut lines = ran.lines();
    lines.sort_by_key(|line| line["audience"].as_str().unwrap().to_owned());
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["outcome"] == "failed", line["error"].is_string());
            let expected = if line["audience"] == "empty" {
                "delta"
            } else {
                "first"
            };
            assert_eq!(line["kind"], expected);
            format!(
                "{} {}",
                line["audience"].as_str().unwrap(),
                line["outcome"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(found, outcomes);
    assert!(ran.stderr.contains(words), "{ran:?}");
    if audiences.contains(&GOOD) {
        let records = project.delivered();
        assert_eq!(
            truth(&records)
                .keys()
                .filter(|(_, key)| key == "good")
                .count(),
            2
        );
    }
}

#[test]
fn a_source_that_is_missing_fails_its_audience_only() {
    check(
        &[MISSING, GOOD],
        1,
        &["good delivered", "missing failed"],
        "there is no database at",
    );
}

#[test]
fn a_query_that_can_never_run_is_a_mistake_in_the_configuration() {
    check(
        &[COLUMN, GOOD],
        2,
        &["column failed", "good delivered"],
        "no such column: nobody",
    );
    check(&[COLUMN], 2, &["column failed"], "schedules/main.toml");
}

#[test]
fn a_query_that_fails_half_way_decides_nothing() {
    check(
        &[HALF_WAY, GOOD],
        1,
        &["good delivered", "half_way failed"],
        "integer overflow",
    );
    let project = project(&[HALF_WAY]);
    assert_eq!(project.run(&["sync"]).code, 1);
    assert_eq!(project.delivered().len(), 0);
    // The source is repaired: its first sync is still to come.
    project.shop("UPDATE members SET user_id = 'c' WHERE user_id = 'b'");
    let line = project.sync();
    assert_eq!(
        (&line["kind"], &line["added"]),
        (&"first".into(), &2.into())
    );
    // It breaks again: who is a member stays one.
    project.shop("DELETE FROM members; INSERT INTO members VALUES ('b')");
    assert_eq!(project.run(&["sync"]).code, 1);
    assert_eq!(project.delivered().len(), 2);
}

#[test]
fn the_worst_of_several_decides_the_exit_code() {
    check(
        &[MISSING, COLUMN, EMPTY, GOOD],
        2,
        &[
            "column failed",
            "empty held",
            "good delivered",
            "missing failed",
        ],
        "",
    );
    check(
        &[MISSING, EMPTY, GOOD],
        1,
        &["empty held", "good delivered", "missing failed"],
        "",
    );
    check(&[EMPTY, GOOD], 4, &["empty held", "good delivered"], "");
    let project = project(&[EMPTY, GOOD]);
    project.succeed(&["sync", "Empty"]);
    project.shop("DELETE FROM leaving");
    fs::remove_dir_all(project.path("delivered")).unwrap();
    project.write("delivered", "in the way");
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let outcomes: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| line["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["held", "undelivered"]);
    assert!(
        ran.stderr.contains("2 changes are not delivered"),
        "{ran:?}"
    );
}

/// A damaged source is no empty one.
#[test]
fn a_source_that_is_damaged_half_way_removes_nobody() {
    let project = project(&[GOOD]);
    let values: Vec<String> = (0..5000).map(|n| format!("('user_{n:08}')")).collect();
    project.shop(&format!("INSERT INTO members VALUES {}", values.join(", ")));
    project.sync();
    let whole = fs::read(project.path("shop.sqlite")).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8192].fill(0);
    let broken: [&[u8]; 3] = [&damaged, &whole[..middle], &[]];
    for bytes in broken {
        fs::write(project.path("shop.sqlite"), bytes).unwrap();
        let ran = project.run(&["sync", "--json"]);
        assert_eq!(
            (ran.code, &ran.lines()[0]["outcome"]),
            (1, &"failed".into()),
            "{ran:?}"
        );
        assert_eq!(project.delivered().len(), 5002);
    }
    fs::write(project.path("shop.sqlite"), whole).unwrap();
    assert_eq!(project.sync()["outcome"], "unchanged");
}

#[test]
fn a_schedule_whose_identifies_fit_no_row_is_refused() {
    let project = project(&[GOOD]);
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("identify = ", "page = "),
    );
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(!project.path("snapshot.sqlite").exists());
}

/// The reader of the lines may stop early; the runs go on.
#[test]
fn a_reader_that_goes_away_ends_no_run() {
    let audience = |name: &str| {
        format!(
            "[[audience]]\nname = \"{name}\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\n"
        )
    };
    let project = Project::new(&["One", "Two", "Three"].map(audience).concat());
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    let mut child = project.command(&["sync", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(project.delivered().len(), 3);
}

#[test]
fn an_extra_trait_that_cannot_be_written_removes_nobody() {
    let project = Project::new(
        "[[audience]]\nname = \"Members\"\nsource = \"shop\"\nquery = \"SELECT user_id, n FROM members\"\ntraits = [\"n\"]\n",
    );
    project.shop(
        "CREATE TABLE members (user_id TEXT, n); INSERT INTO members VALUES ('a', 1), ('b', 2)",
    );
    project.sync();
    project.shop("UPDATE members SET n = 9e999 WHERE user_id = 'a'; UPDATE members SET n = CAST(x'ff' AS TEXT) WHERE user_id = 'b'");
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(ran.lines()[0]["outcome"], "unchanged");
    assert!(
        ran.stderr
            .contains("2 extra traits are infinite or not UTF-8, and go as null"),
        "{ran:?}"
    );
}

/// The journal does not depend on what the schedules name today.
const ONE: &str =
    "[[audience]]\nname = \"One\"\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\n";

/// With a destination `main` that takes nothing, and another one.
fn blocked(schedule: &str) -> Project {
    let project = Project::new(schedule);
    let config = CONFIG.to_owned()
        + "[destination.other]\ndirectory = \"other\"\nmapping = { identify = \"members\" }\n";
    project.write("audience-sync.toml", &config);
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    fs::write(project.path("delivered"), "in the way").unwrap();
    assert_eq!(project.run(&["sync"]).code, 3);
    fs::remove_file(project.path("delivered")).unwrap();
    project
}

fn kinds(lines: &[Value]) -> Vec<(&str, &str, &str)> {
    let kinds = lines.iter().map(|line| {
        let text = ["audience", "kind", "outcome"].map(|name| line[name].as_str().unwrap());
        (text[0], text[1], text[2])
    });
    kinds.collect()
}

#[test]
fn what_waits_for_an_audience_that_no_schedule_names_waits_on_and_goes_first_if_it_comes_back() {
    let schedule = ONE.to_owned() + "destinations = [\"main\"]\n";
    let project = blocked(&schedule);
    fs::remove_file(project.path("schedules/main.toml")).unwrap();
    assert_eq!(project.run(&["sync"]).code, 0);
    assert_eq!(project.delivered().len(), 0);
    project.write("schedules/main.toml", &schedule);
    let lines = project.succeed(&["sync", "--json"]).lines();
    let expected = [
        ("one", "resume", "delivered"),
        ("one", "delta", "unchanged"),
    ];
    assert_eq!(kinds(&lines), expected);
    assert_eq!(project.delivered().len(), 1);
}

/// Another audience still goes there.
#[test]
fn what_waits_for_a_stream_that_an_audience_no_longer_maps_to_waits_on() {
    let two = ONE.replace("One", "Two") + "destinations = [\"main\"]\n";
    let both = ONE.to_owned() + "destinations = [\"main\", \"other\"]\n" + &two;
    let project = blocked(&both);
    let one = ONE.to_owned() + "destinations = [\"other\"]\n" + &two;
    project.write("schedules/main.toml", &one);
    let lines = project.succeed(&["sync", "--json"]).lines();
    let expected = [
        ("one", "delta", "unchanged"),
        ("two", "resume", "delivered"),
        ("two", "delta", "unchanged"),
    ];
    assert_eq!(kinds(&lines), expected);
    project.write("schedules/main.toml", &both);
    let lines = project.succeed(&["sync", "one", "--json"]).lines();
    let expected = [
        ("one", "resume", "delivered"),
        ("one", "delta", "unchanged"),
        ("one", "delta", "unchanged"),
    ];
    assert_eq!(kinds(&lines), expected);
}
