//! A project to start from.

use std::fs;

use serde_json::json;

use crate::support::Project;

#[test]
fn it_writes_two_files_and_check_asks_for_the_database() {
    let project = Project::empty();
    let ran = project.succeed(&["init"]);
    assert!(ran.stdout.contains("audience-sync.toml"), "{ran:?}");
    assert!(ran.stderr.contains("audience-sync check"), "{ran:?}");
    let written = project.contents();
    let names: Vec<_> = written.keys().cloned().collect();
    assert_eq!(
        names,
        [
            project.path("audience-sync.toml"),
            project.path("schedules/orders.toml")
        ]
    );
    let check = project.run(&["check"]);
    assert_eq!(check.code, 1, "{check:?}");
    assert!(
        format!("{}{}", check.stdout, check.stderr).contains("there is no database at"),
        "{check:?}"
    );
    // With the database that the query is for, it works.
    project.shop(
        "CREATE TABLE orders (user_id TEXT, completed_at TEXT); INSERT INTO orders VALUES ('a', date('now'))",
    );
    project.succeed(&["check"]);
    assert_eq!(project.sync()["added"], 1);
}

#[test]
fn it_overwrites_nothing() {
    for name in ["audience-sync.toml", "schedules/orders.toml"] {
        let project = Project::empty();
        project.write(name, "# mine");
        let before = project.contents();
        let ran = project.run(&["init"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains("there is a project already"), "{ran:?}");
        assert_eq!(project.contents(), before);
    }
    // A file in place of the directory is no place for a project either.
    let project = Project::empty();
    project.write("taken", "mine");
    let ran = project.run(&["init", "taken"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(fs::read_to_string(project.path("taken")).unwrap(), "mine");
}

#[test]
fn it_makes_the_directory_and_tells_programs_what_it_made() {
    let project = Project::empty();
    let lines = project.succeed(&["init", "a/new one", "--json"]).lines();
    assert_eq!(
        lines,
        [
            json!({"created": "a/new one/audience-sync.toml"}),
            json!({"created": "a/new one/schedules/orders.toml"})
        ]
    );
    assert!(project.path("a/new one/schedules/orders.toml").exists());
}

/// As a crash leaves it: some files whole, one not yet in its place.
#[test]
fn what_a_crash_left_is_in_nobodys_way() {
    let whole = Project::empty();
    whole.succeed(&["init"]);
    let schedule = fs::read_to_string(whole.path("schedules/orders.toml")).unwrap();

    let project = Project::empty();
    project.write("schedules/orders.toml", &schedule);
    project.write(".audience-sync.toml.unfinished", "# half of");
    project.succeed(&["init"]);
    let texts = |project: &Project| project.contents().into_values().collect::<Vec<_>>();
    assert!(texts(&project) == texts(&whole));
    assert_eq!(project.run(&["init"]).code, 2);
}
