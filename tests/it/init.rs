//! A project to start from.

use std::fs;

use serde_json::json;

use crate::support::Project;
use crate::support::endpoint::Endpoint;

#[test]
fn it_writes_a_project_with_an_empty_snapshot_and_check_asks_for_the_database() {
    let project = Project::empty().without_snapshot();
    let ran = project.succeed(&["init"]);
    assert!(ran.stdout.contains("audience-sync.toml"), "{ran:?}");
    assert!(ran.stderr.contains("audience-sync check"), "{ran:?}");
    let written = project.contents();
    let names: Vec<_> = written.keys().cloned().collect();
    assert_eq!(
        names,
        [
            project.path("audience-sync.toml"),
            project.path("schedules/orders.toml"),
            project.path("snapshot.sqlite"),
            project.path("snapshot.sqlite.lock")
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
            json!({"created": "a/new one/schedules/orders.toml"}),
            json!({"created": "a/new one/snapshot.sqlite"})
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
    project.write(".snapshot.sqlite.rebuild", "SQLite fo");
    project.write("snapshot.sqlite", "");
    project.succeed(&["init"]);
    for (name, bytes) in whole.contents() {
        let name = name.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".toml") {
            let name = ["", "schedules/"].map(|folder| format!("{folder}{name}"));
            let found = name
                .iter()
                .find_map(|name| fs::read(project.path(name)).ok());
            assert_eq!(found, Some(bytes), "{name:?}");
        }
    }
    assert_eq!(project.contents().len(), whole.contents().len());
    assert_eq!(project.run(&["init"]).code, 2);
    project.succeed(&["snapshot", "list"]);
}

/// A snapshot may be all that is left of a project, and so may its lock file.
#[test]
fn what_is_known_of_earlier_runs_is_kept() {
    let project = Project::empty().without_snapshot();
    project.succeed(&["init"]);
    project.shop(
        "CREATE TABLE orders (user_id TEXT, completed_at TEXT); INSERT INTO orders VALUES ('a', date('now'))",
    );
    project.sync();
    for name in ["audience-sync.toml", "schedules/orders.toml"] {
        fs::remove_file(project.path(name)).unwrap();
    }
    let ran = project.succeed(&["init"]);
    assert!(!ran.stdout.contains("snapshot.sqlite"), "{ran:?}");
    assert_eq!(project.sync()["outcome"], "unchanged");

    for name in [
        "audience-sync.toml",
        "schedules/orders.toml",
        "snapshot.sqlite",
    ] {
        fs::remove_file(project.path(name)).unwrap();
    }
    let ran = project.succeed(&["init"]);
    assert!(!ran.stdout.contains("snapshot.sqlite"), "{ran:?}");
    assert!(!project.path("snapshot.sqlite").exists());
    let ran = project.run(&["sync"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("snapshot rebuild"),
        "{ran:?}"
    );
}

/// The way that `init` itself shows: first a directory, then AWS in place of it.
#[test]
fn everyone_is_sent_to_aws_once_it_takes_the_place_of_the_directory() {
    let endpoint = Endpoint::start();
    let mut project = Project::empty().without_snapshot();
    project.succeed(&["init"]);
    project.shop(
        "CREATE TABLE orders (user_id TEXT, completed_at TEXT);
         INSERT INTO orders VALUES ('a', date('now')), ('b', date('now'))",
    );
    assert_eq!(project.sync()["kind"], "first");
    let config = fs::read_to_string(project.path("audience-sync.toml")).unwrap();
    let directory = "directory = \"delivered\"";
    assert!(config.contains(directory), "{config}");
    let aws = format!(
        "region = \"us-west-2\"\nendpoint_url = \"{}\"",
        endpoint.url()
    );
    project.write("audience-sync.toml", &config.replace(directory, &aws));
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "AKIAPROJECT"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ] {
        project.variables.insert(name.to_owned(), value.to_owned());
    }
    let line = project.sync();
    let told = ["kind", "outcome", "added", "delivered"].map(|field| line[field].clone());
    assert_eq!(
        told,
        [json!("first"), json!("delivered"), json!(2), json!(2)]
    );
    assert_eq!(endpoint.ledger().accepted.len(), 2);
    // Those who leave from now on are told there, and not in the directory.
    project.shop("DELETE FROM orders WHERE user_id = 'a'");
    let line = project.sync();
    assert_eq!(
        (&line["kind"], &line["removed"]),
        (&json!("delta"), &json!(1))
    );
    assert_eq!(endpoint.ledger().accepted.len(), 3);
    assert_eq!(project.delivered().len(), 2);
    // And back again: nothing of what the directory was told is forgotten.
    project.write("audience-sync.toml", &config);
    let line = project.sync();
    let told = ["kind", "added", "removed"].map(|field| line[field].clone());
    assert_eq!(told, [json!("delta"), json!(0), json!(1)]);
}
