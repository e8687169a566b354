//! A renamed audience keeps its key, or says why it cannot.

use crate::support::{Project, Ran};

fn audience(lines: &str) -> String {
    format!("[[audience]]\nsource = \"shop\"\nquery = \"SELECT user_id FROM members\"\n{lines}\n")
}

/// A project in which `name = "Big Spenders"` was synced.
fn project() -> Project {
    let project = Project::new(&audience("name = \"Big Spenders\""));
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    project.sync();
    project
}

fn sync_with(project: &Project, schedule: &str) -> Ran {
    project.write("schedules/main.toml", schedule);
    project.run(&["sync", "--json"])
}

#[track_caller]
fn check_refused(project: &Project, schedule: &str, words: &str) {
    let snapshot = std::fs::read(project.path("snapshot.sqlite")).unwrap();
    let ran = sync_with(project, schedule);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains(words), "{ran:?}");
    assert_eq!(ran.stdout, "");
    assert_eq!(
        std::fs::read(project.path("snapshot.sqlite")).unwrap(),
        snapshot
    );
}

#[test]
fn a_name_may_change_while_the_id_stays() {
    let project = project();
    let renamed = audience("name = \"Whales\"\nid = \"big_spenders\"");
    let ran = sync_with(&project, &renamed);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.lines()[0]["audience"], "big_spenders");
    assert_eq!(ran.lines()[0]["outcome"], "unchanged");
    assert!(
        ran.stderr
            .contains("\"Big Spenders\" is \"Whales\" now, and keeps the key `big_spenders`"),
        "{ran:?}"
    );
    for word in ["Whales", "big_spenders"] {
        project.succeed(&["sync", word]);
    }
    project.shop("INSERT INTO members VALUES ('b')");
    project.sync();
    let personas = &project.delivered()[1]["context"]["personas"];
    assert_eq!(
        (&personas["computation_id"], &personas["computation_key"]),
        (&"big_spenders".into(), &"big_spenders".into())
    );
    assert_eq!(project.delivered()[1]["traits"]["big_spenders"], true);
}

#[test]
fn another_key_for_a_known_audience_is_refused() {
    check_refused(
        &project(),
        &audience("name = \"Big Spenders\"\nid = \"big_spenders\"\nkey = \"whales\""),
        "has been `big_spenders` since its first sync, and cannot become `whales`",
    );
}

#[test]
fn a_key_that_was_retired_is_refused_with_the_way_out() {
    let project = project();
    let other = audience("name = \"Others\"");
    let ran = sync_with(&project, &other);
    assert_eq!(ran.code, 0, "{ran:?}");
    check_refused(
        &project,
        &audience("name = \"Big Spenders\"\nid = \"aud_2\""),
        "set `id = \"big_spenders\"`",
    );
    check_refused(
        &project,
        &audience("name = \"Anew\"\nkey = \"big_spenders\"\nid = \"aud_2\""),
        "belongs to the audience with id `big_spenders`",
    );
}

#[test]
fn names_that_are_swapped_keep_their_keys() {
    let both = |one: &str, two: &str| {
        audience(&format!("name = \"{one}\"\nid = \"aud_1\""))
            + &audience(&format!("name = \"{two}\"\nid = \"aud_2\""))
    };
    let project = Project::new(&both("One", "Two"));
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    project.succeed(&["sync"]);
    let ran = sync_with(&project, &both("Two", "One"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let keys: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| line["audience"].clone())
        .collect();
    assert_eq!(keys, ["one", "two"]);
    let lines = project.succeed(&["sync", "aud_1", "--json"]).lines();
    assert_eq!((lines.len(), &lines[0]["audience"]), (1, &"one".into()));
}

#[test]
fn two_audiences_of_one_key_are_refused() {
    let project = project();
    check_refused(
        &project,
        &(audience("name = \"Whales\"\nid = \"big_spenders\"")
            + &audience("name = \"Big Spenders\"\nid = \"aud_2\"")),
        "big_spenders",
    );
}

#[test]
fn an_audience_that_no_schedule_names_any_more_is_reported() {
    let project = project();
    for _ in 0..2 {
        let ran = sync_with(&project, &audience("name = \"Others\""));
        assert_eq!(ran.code, 0, "{ran:?}");
        for words in [
            "no schedule names \"Big Spenders\"",
            "set `id = \"big_spenders\"`",
        ] {
            assert!(ran.stderr.contains(words), "{ran:?}");
        }
    }
    // Its members keep their value downstream.
    assert!(
        project
            .delivered()
            .iter()
            .all(|record| record["traits"]["big_spenders"] != false)
    );
}

#[test]
fn an_audience_is_selected_by_key_id_or_name() {
    let project = Project::new(
        &(audience("name = \"Big Spenders\"\nid = \"aud_1\"\nkey = \"whales\"")
            + &audience("name = \"Others\"")),
    );
    project.shop("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('a')");
    for word in ["whales", "aud_1", "Big Spenders"] {
        let lines = project.succeed(&["sync", word, "--json"]).lines();
        assert_eq!((lines.len(), &lines[0]["audience"]), (1, &"whales".into()));
    }
    assert_eq!(
        project
            .succeed(&["sync", "whales", "Others", "--json"])
            .lines()
            .len(),
        2
    );
    let ran = project.run(&["sync", "whales", "spenders"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr.contains("no audience is called \"spenders\""),
        "{ran:?}"
    );
}

#[test]
fn a_key_that_lacks_marks_of_its_name_is_warned_of() {
    let project = Project::new(&audience("name = \"हिन्दी\""));
    project.shop("CREATE TABLE members (user_id TEXT)");
    let warning = "the key `हिन_दी` lacks accents or vowel signs of the name `हिन्दी`, which stands at \
                   schedules/main.toml:4:1. hint: add a `key`";
    let ran = project.run(&["check"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains(warning), "{ran:?}");
    project.write(
        "schedules/main.toml",
        &audience("name = \"हिन्दी\"\nkey = \"hindi\""),
    );
    let ran = project.run(&["check"]);
    assert!(!ran.stderr.contains("lacks"), "{ran:?}");
}
