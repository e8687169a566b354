//! Members from a warehouse: PostgreSQL and SQLite, through the drivers that everybody uses.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::postgres::{Database, Postgres, drivers};
use crate::support::{Project, Ran, eventually, truth};

const CONFIG: &str = r#"
[source.wh]
adbc = "postgresql"
uri = { env = "WAREHOUSE_URI" }

[destination.main]
directory = "delivered"

[destination.main.mapping]
identify = "members"
"#;

/// A project with an audience `VIP` by this query, or `None` where drivers are skipped.
fn project(uri: &str, query: &str) -> Option<Project> {
    let drivers = drivers()?;
    let mut project = Project::empty();
    project.write("audience-sync.toml", CONFIG);
    ask(&project, query);
    let mut set = |name: &str, value: &str| {
        project.variables.insert(name.to_owned(), value.to_owned());
    };
    set("WAREHOUSE_URI", uri);
    set("VIRTUAL_ENV", drivers.to_str().unwrap());
    Some(project)
}

fn ask(project: &Project, query: &str) {
    let schedule =
        format!("[[audience]]\nname = \"VIP\"\nsource = \"wh\"\nquery = '''{query}'''\n");
    project.write("schedules/main.toml", &schedule);
}

/// A database with a table of members, on the server of all tests.
fn warehouse(members: &str) -> Option<Database<'static>> {
    drivers()?;
    let database = Postgres::shared().database();
    database.sql(&format!(
        "CREATE TABLE members (user_id text); INSERT INTO members VALUES {members}"
    ));
    Some(database)
}

/// Who is a member downstream.
fn members(project: &Project) -> Vec<String> {
    let truth = truth(&project.delivered());
    let now = truth.into_iter().filter(|(_, value)| *value == json!(true));
    now.map(|((user, _), _)| user).collect()
}

#[track_caller]
fn fails(project: &Project, code: i32, words: &str) -> Ran {
    let ran = project.run(&["sync", "-vv"]);
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    assert!(project.delivered().is_empty());
    ran
}

#[test]
fn a_warehouse_is_synced_in_full_and_then_by_its_changes() {
    let Some(database) = warehouse("('ada'), ('bob'), ('bob'), (NULL), ('')") else {
        return;
    };
    let project = project(&database.uri(), "SELECT user_id FROM members;").unwrap();
    let line = project.sync();
    assert_eq!(line["kind"], "first");
    assert_eq!(
        (&line["members"], &line["skipped_rows"]),
        (&json!(2), &json!(2))
    );
    database.sql("DELETE FROM members WHERE user_id = 'bob'; INSERT INTO members VALUES ('cleo')");
    let line = project.sync();
    assert_eq!((&line["added"], &line["removed"]), (&json!(1), &json!(1)));
    assert_eq!(members(&project), ["ada", "cleo"]);
    assert_eq!(project.sync()["outcome"], "unchanged");
    project.succeed(&["check"]);
}

#[test]
fn whatever_order_a_database_has_users_are_compared_as_bytes() {
    let Some(database) = warehouse("('a'), ('B'), ('ä'), ('A'), ('_'), ('b')") else {
        return;
    };
    let as_people_do = database.sql("SELECT string_agg(user_id, '' ORDER BY user_id) FROM members");
    assert_eq!(as_people_do.trim(), "_aAäbB");
    for query in [
        "SELECT user_id FROM members ORDER BY user_id",
        "SELECT user_id, NULL AS anonymous_id FROM members ORDER BY user_id -- both ids",
    ] {
        let project = project(&database.uri(), query).unwrap();
        assert_eq!(project.sync()["members"], 6, "{query}");
        assert_eq!(project.sync()["outcome"], "unchanged", "{query}");
        assert_eq!(members(&project), ["A", "B", "_", "a", "b", "ä"], "{query}");
    }
    // Integers are users by their decimal text, and so are all kinds of them.
    let numbers = "SELECT n::int8 AS user_id FROM generate_series(-5, 120) n ORDER BY n";
    let project = project(&database.uri(), numbers).unwrap();
    assert_eq!(project.sync()["members"], 126);
    for kind in ["int2", "int4", "numeric", "text"] {
        ask(&project, &numbers.replace("int8", kind));
        assert_eq!(project.sync()["outcome"], "unchanged", "{kind}");
    }
}

#[test]
fn a_uuid_is_a_user_by_its_text() {
    let Some(database) = warehouse("('0b7b4a4e-9d2f-4c1a-8d10-000000000001')") else {
        return;
    };
    let query = "SELECT user_id::uuid AS user_id FROM members";
    let project = project(&database.uri(), query).unwrap();
    assert_eq!(project.sync()["members"], 1);
    let expected = ["0b7b4a4e-9d2f-4c1a-8d10-000000000001"];
    assert_eq!(members(&project), expected);
}

#[test]
fn values_and_traits_are_what_they_are_in_the_database() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), "").unwrap();
    project.write(
        "schedules/main.toml",
        r#"
[[computed_trait]]
name = "Revenue"
source = "wh"
traits = ["whole", "exact", "real", "day", "at", "until", "is_new", "nothing"]
query = """
SELECT user_id, 12.50::numeric(10, 2) AS value, 7::numeric AS whole, 0.12345678901234567::numeric AS exact,
       0.1::float4 AS real, date '2026-11-24' AS day, timestamptz '2026-11-24 10:00:00.25+01' AS at,
       timestamp '2026-11-24 10:00:00' AS until, true AS is_new, NULL::int AS nothing
FROM members
"""
"#,
    );
    project.sync();
    let records = project.delivered();
    let expected: Value = json!({
        "revenue": 12.5, "whole": 7, "exact": "0.12345678901234567", "real": 0.1, "day": "2026-11-24",
        "at": "2026-11-24T09:00:00.250Z", "until": "2026-11-24T10:00:00", "is_new": true, "nothing": null,
    });
    assert_eq!(records[0]["traits"], expected);
}

#[test]
fn another_engine_is_read_through_its_driver_and_sorted_here() {
    let Some(drivers) = drivers() else { return };
    let project = project("shop.sqlite", "SELECT id AS user_id FROM users ORDER BY id").unwrap();
    project.shop("CREATE TABLE users (id INTEGER); INSERT INTO users VALUES (9), (10), (100), (9)");
    for driver in ["sqlite", "adbc_driver_sqlite", "drivers/mine.toml"] {
        project.write("audience-sync.toml", &CONFIG.replace("postgresql", driver));
        let library = "lib/python3*/site-packages/adbc_driver_sqlite/libadbc_driver_sqlite.so";
        let library = glob::glob(drivers.join(library).to_str().unwrap()).unwrap();
        let library = library.flatten().next().unwrap();
        let manifest = format!("[Driver]\nshared = \"{}\"\n", library.display());
        project.write("drivers/mine.toml", &manifest);
        assert_eq!(project.sync()["members"], 3, "{driver}");
        assert_eq!(members(&project), ["10", "100", "9"]);
    }
    // Where no driver says of what class a mistake is.
    let ran = {
        ask(&project, "SELECT nobody FROM users");
        project.run(&["sync"])
    };
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("no such column: nobody"), "{ran:?}");
}

#[test]
fn a_driver_that_is_missing_is_named_with_the_way_to_get_it() {
    let Some(mut project) = project("unused", "SELECT user_id FROM members") else {
        return;
    };
    project.variables.remove("VIRTUAL_ENV");
    project.write(
        "audience-sync.toml",
        &CONFIG.replace("postgresql", "nowhere"),
    );
    let ran = fails(
        &project,
        1,
        "source `wh`: driver `nowhere`: there is no such driver",
    );
    assert!(
        ran.stderr.contains("pip install adbc-driver-nowhere"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("ADBC_DRIVER_PATH"), "{ran:?}");
    let checked = project.run(&["check"]);
    assert_eq!(checked.code, 1, "{checked:?}");
    assert!(
        checked.stderr.contains("there is no such driver"),
        "{checked:?}"
    );

    project.write(
        "audience-sync.toml",
        &CONFIG.replace("postgresql", "./drivers/none.so"),
    );
    fails(&project, 1, "drivers/none.so");
}

#[test]
fn a_wrong_password_is_said_and_never_shown() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let secret = "hunter2-of-the-warehouse";
    let uris = [
        database.uri_as("postgres", secret),
        // One that the driver misreads.
        format!("postgres:{secret}@warehouse"),
        format!("postgresql://postgres:12{secret}/34{secret}@127.0.0.1/shop"),
        format!("host=/nowhere user=postgres password={secret} port={secret}"),
    ];
    for (place, uri) in uris.iter().enumerate() {
        let project = project(uri, "SELECT user_id FROM members").unwrap();
        let ran = fails(&project, 1, "source `wh`: no connection: ");
        assert!(!ran.stderr.contains(secret), "{place}: {}", ran.stderr);
        assert!(
            !ran.stderr.contains(uri.as_str()),
            "{place}: {}",
            ran.stderr
        );
        let all = project.run(&["sync", "--json", "-vv", "--log-format", "json"]);
        assert!(!format!("{all:?}").contains(secret), "{place}: {all:?}");
        for (path, bytes) in project.contents() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.contains(secret), "{place}: {}", path.display());
        }
    }
}

#[test]
fn a_mistake_in_a_query_is_a_mistake_in_the_configuration() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), "").unwrap();
    let cases = [
        (
            "SELECT nobody FROM members",
            "column \"nobody\" does not exist",
        ),
        (
            "SELECT user_id FROM nothing",
            "relation \"nothing\" does not exist",
        ),
        ("SELECT user_id FORM members", "syntax error"),
        ("SELECT 1; SELECT 2", "multiple commands"),
        (
            "SELECT user_id AS a, 1 AS b FROM members",
            "no column `user_id`",
        ),
        (
            "DELETE FROM members RETURNING user_id",
            "it is not a SELECT",
        ),
    ];
    for (query, words) in cases {
        ask(&project, query);
        fails(&project, 2, words);
    }
}

#[test]
fn a_query_may_do_nothing_but_read() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    database.sql("CREATE FUNCTION leave() RETURNS text LANGUAGE sql AS 'DELETE FROM members RETURNING user_id'");
    let project = project(&database.uri(), "").unwrap();
    let writing = [
        "WITH gone AS (DELETE FROM members RETURNING user_id) SELECT user_id FROM gone",
        "SELECT leave() AS user_id",
        "SELECT set_config('transaction_read_only', 'off', false) AS user_id, leave() AS left",
    ];
    for query in writing {
        ask(&project, query);
        let ran = project.run(&["sync"]);
        assert_ne!(ran.code, 0, "{query}: {ran:?}");
        assert_eq!(
            database.sql("SELECT count(*) FROM members").trim(),
            "1",
            "{query}"
        );
    }
}

#[test]
fn a_column_that_holds_no_ids_is_the_wrong_one() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), "").unwrap();
    for (query, found) in [
        ("SELECT 1.5::float8 AS user_id", "a real number"),
        ("SELECT '\\x00'::bytea AS user_id", "a BLOB"),
        ("SELECT ARRAY[1] AS user_id", "a list"),
        ("SELECT true AS user_id", "true or false"),
    ] {
        ask(&project, query);
        let words = format!("gives {found} in column `user_id`, which takes text or integers");
        fails(&project, 1, &words);
    }
}

/// Rows come at once, and then something happens.
fn half_way(what: &str) -> String {
    format!(
        "SELECT 'u' || n AS user_id, 'a' || CASE WHEN n = 150000 THEN {what} ELSE '' END AS anonymous_id \
         FROM generate_series(1, 200000) n"
    )
}

#[test]
fn a_query_that_fails_half_way_decides_nothing_and_names_nobody() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), &half_way("(1 / (n - n))::text")).unwrap();
    fails(&project, 1, "the query of \"VIP\" failed: division by zero");
    ask(&project, &half_way("('ada' || n)::int::text"));
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("invalid input syntax for type integer"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("ada150000"), "{ran:?}");
}

#[test]
fn a_server_that_dies_while_it_answers_decides_nothing() {
    if drivers().is_none() {
        return;
    }
    let postgres = Postgres::start();
    let database = postgres.database();
    database.sql("CREATE TABLE members (user_id text); INSERT INTO members VALUES ('ada')");
    let uri = database.uri();
    let project = project(&uri, "SELECT user_id FROM members").unwrap();
    project.sync();
    ask(&project, &half_way("pg_sleep(600)::text"));
    let run = project.start(&["sync", "--json"]);
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("the query sleeps", || database.sql(sleeps).trim() == "1");
    database.kill_the_one_who_runs("pg_sleep(600)");
    let ran = run.end();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains("the query of \"VIP\" failed"),
        "{ran:?}"
    );
    assert_eq!(members(&project), ["ada"]);
    assert_eq!(project.delivered().len(), 1);
}

#[test]
fn a_signal_ends_a_query_in_the_database_too() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let query = "SELECT pg_sleep(600)::text AS user_id FROM members";
    let project = project(&database.uri(), query).unwrap();
    let run = project.start(&["sync"]);
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("the query sleeps", || database.sql(active).trim() == "1");
    run.signal("TERM");
    run.end();
    assert_eq!(database.sql(active).trim(), "0");
}

#[test]
fn what_a_warehouse_cannot_be_asked_is_refused() {
    let project = Project::empty();
    let refused = |config: &str, audience: &str, words: &str| {
        project.write("audience-sync.toml", config);
        let schedule = format!(
            "[[audience]]\nname = \"VIP\"\nsource = \"wh\"\nquery = \"SELECT 1\"\n{audience}"
        );
        project.write("schedules/main.toml", &schedule);
        let ran = project.run(&["check"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    };
    let unfit = "does not fit source `wh`";
    refused(CONFIG, "changes = \"SELECT :since\"", unfit);
    refused(CONFIG, "files = \"a.csv\"", unfit);
    refused(CONFIG, "columns = { user_id = \"id\" }", unfit);
    let uri = "{ env = \"WAREHOUSE_URI\" }";
    let inline = |uri: &str| CONFIG.replace("{ env = \"WAREHOUSE_URI\" }", uri);
    refused(
        CONFIG,
        "",
        "the environment variable WAREHOUSE_URI is not set",
    );
    refused(
        &inline("\"postgresql://a:hunter2@db/x\""),
        "",
        "must not be written inline",
    );
    refused(
        &inline("\"host=db password=hunter2\""),
        "",
        "must not be written inline",
    );
    let option = |option: &str| inline(&format!("{uri}\noptions = {{ {option} }}"));
    refused(
        &option("password = \"hunter2\""),
        "",
        "must not be written inline",
    );
    refused(&option("uri = \"file:x\""), "", "stands beside `options`");
    refused(&option("rows = 5"), "", "must be a string");
    refused(&CONFIG.replace("adbc =", "adbx ="), "", "adbx");
    assert!(!Path::new(&project.path("snapshot.sqlite")).exists());
}
