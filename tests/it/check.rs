//! `check`: what would run where, and everything that would stop it. Nothing is written.

use serde_json::{Value, json};

use crate::support::{CONFIG, Project, Ran, assert_fields};

const SCHEDULE: &str = r#"
cron = "0 */2 * * *"
timezone = "Europe/Berlin"

[[audience]]
name = "Members"
source = "shop"
query = "SELECT user_id FROM members"

[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, spend AS value FROM members"
"#;

const BY_COMMAND: &str = r#"
[[audience]]
name = "Visitors"
source = "shop"
query = "SELECT anonymous_id FROM visitors"
"#;

fn project() -> Project {
    let project = Project::new(SCHEDULE);
    project.write("schedules/visits.toml", BY_COMMAND);
    project.shop(
        "CREATE TABLE members (user_id TEXT, spend); CREATE TABLE visitors (anonymous_id TEXT)",
    );
    project
}

/// Runs `check`, which must leave every file as it was.
#[track_caller]
pub(crate) fn check(project: &Project, flags: &[&str], code: i32) -> Ran {
    let before = project.contents();
    let ran = project.run(&[&["check"], flags].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(project.contents() == before, "check changed a file");
    ran
}

#[test]
fn what_would_run_where_is_printed() {
    let project = project();
    let ran = check(&project, &["--json"], 0);
    assert_eq!(
        ran.stderr,
        "2 audiences, 1 computed trait, 2 schedules: ok\n"
    );
    let lines = ran.lines();
    assert_fields(
        &lines[0],
        &[
            "audience",
            "id",
            "name",
            "kind",
            "schedule",
            "cron",
            "timezone",
            "next_run",
            "source",
            "destination",
            "streams",
        ],
    );
    let found: Vec<_> = lines
        .iter()
        .map(|line| {
            json!([
                line["audience"],
                line["kind"],
                line["schedule"],
                line["cron"],
                line["timezone"],
                line["streams"]
            ])
        })
        .collect();
    let cron = "0 */2 * * *";
    assert_eq!(
        found,
        [
            json!([
                "members",
                "audience",
                "main",
                cron,
                "Europe/Berlin",
                ["members"]
            ]),
            json!(["spend", "trait", "main", cron, "Europe/Berlin", ["members"]]),
            json!(["visitors", "audience", "visits", null, null, ["members"]]),
        ]
    );
    let next = lines[0]["next_run"].as_str().unwrap();
    assert!(next.ends_with(":00:00.000Z"), "{next}");
    assert_eq!(lines[2]["next_run"], Value::Null);

    let table = check(&project, &[], 0).stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.contains("0 */2 * * * Europe/Berlin") && table.contains("by command"),
        "{table}"
    );
    assert!(
        table.contains(" CET ") || table.contains(" CEST "),
        "{table}"
    );
}

#[test]
fn one_of_each_is_not_many() {
    let project = Project::new(BY_COMMAND);
    project.shop("CREATE TABLE visitors (anonymous_id TEXT)");
    assert_eq!(
        check(&project, &[], 0).stderr,
        "1 audience, 1 schedule: ok\n"
    );
}

#[test]
fn each_destination_has_a_line_with_its_streams() {
    let project = project();
    let more = r#"
[destination.other]
directory = "elsewhere"
match = "all"
[destination.other.mapping]
identify = ["one", "two"]
"*" = "everything"
"#;
    project.write("audience-sync.toml", &format!("{CONFIG}{more}"));
    let both =
        |text: &str| text.replace("source =", "destinations = [\"main\", \"other\"]\nsource =");
    project.write("schedules/main.toml", &both(SCHEDULE));
    project.write("schedules/visits.toml", &both(BY_COMMAND));
    let lines = check(&project, &["--json"], 0).lines();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[1]["destination"], "other");
    assert_eq!(lines[1]["streams"], json!(["one", "two", "everything"]));
}

#[test]
fn a_query_that_cannot_run_is_an_error_with_its_place() {
    let project = project();
    project.write(
        "schedules/visits.toml",
        &BY_COMMAND.replace("FROM visitors", "FROM visits"),
    );
    let ran = check(&project, &["--json"], 2);
    let lines = ran.lines();
    assert_eq!(lines.len(), 3);
    assert_eq!((lines[0].get("error"), lines[1].get("error")), (None, None));
    assert!(
        lines[2]["error"]
            .as_str()
            .unwrap()
            .contains("no such table: visits")
    );
    assert!(
        ran.stderr
            .starts_with("error: the query of \"Visitors\" cannot run on source `shop`"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("--> schedules/visits.toml:5:"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains(": ok"), "{ran:?}");
}

#[test]
fn a_query_that_is_no_sql_stops_everything() {
    let project = project();
    project.write(
        "schedules/visits.toml",
        &BY_COMMAND.replace("SELECT", "SELEKT"),
    );
    let ran = check(&project, &[], 2);
    assert_eq!(ran.stdout, "");
    assert!(
        ran.stderr.contains("--> schedules/visits.toml:5:"),
        "{ran:?}"
    );
}

#[test]
fn a_source_that_cannot_be_read_is_a_failure_and_the_others_are_shown() {
    let project = project();
    project.write(
        "audience-sync.toml",
        &CONFIG.replace(
            "[source.shop]",
            "[source.crm]\nsqlite = \"crm.sqlite\"\n[source.shop]",
        ),
    );
    project.write(
        "schedules/visits.toml",
        &BY_COMMAND.replace("\"shop\"", "\"crm\""),
    );
    let missing = check(&project, &["--json"], 1);
    let lines = missing.lines();
    assert_eq!(lines[0].get("error"), None);
    assert!(
        lines[2]["error"]
            .as_str()
            .unwrap()
            .contains("no database at crm.sqlite")
    );
    assert!(
        missing
            .stderr
            .starts_with("error: source `crm`: there is no database at crm.sqlite\n\nhint: ")
    );
    assert!(
        missing.stderr.ends_with("nothing is synced for visitors\n"),
        "{missing:?}"
    );
    assert_eq!(check(&project, &[], 1).stdout.lines().count(), 4);

    project.write("crm.sqlite", &"x".repeat(4096));
    let corrupt = check(&project, &[], 1).stderr;
    assert!(
        corrupt.starts_with(
            "error: source `crm` (crm.sqlite) could not be read: file is not a database\n"
        ),
        "{corrupt}"
    );

    // The worse of two wins.
    project.write(
        "schedules/main.toml",
        &SCHEDULE.replace("spend AS value", "spend"),
    );
    let both = check(&project, &[], 2).stderr;
    assert_eq!(both.matches("error: ").count(), 2, "{both}");
}

#[test]
fn a_locked_source_is_found_once_for_all_its_audiences() {
    let project = project();
    let shop = project.shop_connection();
    shop.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let ran = project.run(&["check"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert_eq!(
        ran.stderr.matches("database is locked").count(),
        1,
        "{ran:?}"
    );
    assert!(
        ran.stderr
            .ends_with("nothing is synced for members, spend, visitors\n"),
        "{ran:?}"
    );
}

#[test]
fn a_missing_secret_is_named_and_a_present_one_is_not_shown() {
    let mut project = project();
    let aws = r#"
[destination.main]
role_address = "arn:aws:iam::874699288871:role/example-role"
secret_id = { env = "SECRET" }
[destination.main.mapping]
identify = "members"
"#;
    let source = CONFIG.split("[destination.main]").next().unwrap();
    project.write("audience-sync.toml", &format!("{source}{aws}"));
    let ran = check(&project, &[], 2);
    assert_eq!(ran.stdout, "");
    assert!(
        ran.stderr
            .contains("the environment variable SECRET is not set"),
        "{ran:?}"
    );

    project.variables.insert("SECRET".into(), "hunter2".into());
    project.variables.insert("RUST_LOG".into(), "trace".into());
    for flags in [&[][..], &["--json"], &["-vv", "--log-format", "json"]] {
        let ran = check(&project, flags, 0);
        assert!(!format!("{ran:?}").contains("hunter2"));
    }
}

#[test]
fn a_key_of_another_audience_is_refused() {
    let project = project();
    project.succeed(&["sync", "visitors"]);
    let other = BY_COMMAND.replace("source =", "id = \"aud_2\"\nsource =");
    project.write("schedules/visits.toml", &other);
    let ran = check(&project, &[], 2);
    assert!(
        ran.stderr
            .contains("belongs to the audience with id `visitors`"),
        "{ran:?}"
    );
}

#[test]
fn an_audience_that_no_schedule_names_any_more_is_reported() {
    let project = project();
    project.shop("INSERT INTO visitors VALUES ('v')");
    project.succeed(&["sync", "visitors"]);
    std::fs::remove_file(project.path("schedules/visits.toml")).unwrap();
    let ran = check(&project, &[], 0);
    assert!(
        ran.stderr.contains("no schedule names \"Visitors\""),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("set `id = \"visitors\"`"), "{ran:?}");
    assert!(
        ran.stderr
            .ends_with("1 audience, 1 computed trait, 1 schedule: ok\n"),
        "{ran:?}"
    );
}

#[test]
fn a_renamed_audience_is_shown_by_its_frozen_key() {
    let project = project();
    project.succeed(&["sync", "visitors"]);
    let renamed = BY_COMMAND.replace("\"Visitors\"", "\"Guests\"\nid = \"visitors\"");
    project.write("schedules/visits.toml", &renamed);
    let ran = check(&project, &["--json"], 0);
    let line = &ran.lines()[2];
    assert_eq!(
        (&line["audience"], &line["name"]),
        (&json!("visitors"), &json!("Guests"))
    );
    assert!(ran.stderr.contains("keeps the key `visitors`"), "{ran:?}");
}

#[test]
fn an_empty_project_is_well() {
    let project = Project::empty();
    project.write("audience-sync.toml", CONFIG);
    std::fs::create_dir(project.path("schedules")).unwrap();
    let ran = check(&project, &[], 0);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("", "0 audiences, 0 schedules: ok\n")
    );
}
