//! Members from a warehouse: PostgreSQL and SQLite, through the drivers that everybody uses.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::duckdb::DuckDb;
use crate::support::postgres::{Database, PASSWORD_IN_URI, Postgres, drivers};
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
fn a_file_of_duckdb_is_read_through_its_library() {
    let Some(duckdb) = DuckDb::library() else {
        return;
    };
    let mut project = Project::empty();
    duckdb.sql(
        &project.path("shop.duckdb"),
        "CREATE TABLE orders AS SELECT 'user-' || (n * 7 % 5000) AS user_id, n::decimal(10, 2) / 4 AS total, n AS items,
             TIMESTAMP '2026-11-24 10:00:00' AS loaded_at
         FROM range(10000) t(n)",
    );
    let schedule = r#"
[[computed_trait]]
name = "Revenue"
source = "wh"
traits = ["items", "day", "names"]
query = """
SELECT user_id, sum(total)::decimal(18, 2) AS value, sum(items) AS items, max(loaded_at)::date AS day, list(user_id)[1] AS names
FROM orders GROUP BY user_id
"""
expect = { max_age = "99999d", updated_at = "SELECT max(loaded_at) FROM orders" }
"#;
    project.write("schedules/main.toml", schedule);
    let library = duckdb.path();
    let manifest = format!(
        "[Driver]\nentrypoint = \"duckdb_adbc_init\"\nshared = \"{}\"\n",
        library.display()
    );
    project.write("mine.toml", &manifest);
    let folder = library.parent().unwrap().to_str().unwrap().to_owned();
    let by_path = library.to_str().unwrap();
    for (driver, searched) in [("duckdb", true), (by_path, false), ("mine.toml", false)] {
        let config = CONFIG.replace("postgresql", driver);
        let uri = "{ env = \"WAREHOUSE_URI\" }";
        project.write(
            "audience-sync.toml",
            &config.replace(uri, "\"shop.duckdb\""),
        );
        project.variables.clear();
        if searched {
            let places = project.variables.entry("ADBC_DRIVER_PATH".to_owned());
            places.or_insert(folder.clone());
        }
        let line = project.sync();
        assert_eq!(line["members"], 5000, "{driver}: {line}");
    }
    assert_eq!(project.sync()["outcome"], "unchanged");
    let records = project.delivered();
    let of = |user: &str| records.iter().find(|record| record["userId"] == user);
    // Orders 1 and 5,001.
    assert_eq!(
        of("user-7").unwrap()["traits"],
        json!({ "revenue": 1250.5, "items": 5002, "day": "2026-11-24", "names": "user-7" })
    );
    assert_eq!(records.len(), 5000);

    project.variables.clear();
    project.write(
        "audience-sync.toml",
        &CONFIG
            .replace("postgresql", "duckdb")
            .replace("WAREHOUSE_URI", "HOME"),
    );
    project
        .variables
        .insert("HOME".to_owned(), "unused".to_owned());
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for words in [
        "driver `duckdb`: there is no such driver",
        "`dbc install duckdb`",
        "libduckdb",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
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
        database
            .uri()
            .replace("/warehouse_", "/nowhere_")
            .replace(PASSWORD_IN_URI, secret),
        format!("nonsense:{secret}@"),
        // One that the driver misreads.
        format!("postgres:{secret}@warehouse"),
        format!("postgresql://postgres:12{secret}/34{secret}@127.0.0.1/shop"),
        format!("host=/nowhere user=postgres password={secret} port={secret}"),
    ];
    for (place, uri) in uris.iter().enumerate() {
        let mut project = project(uri, "SELECT user_id FROM members").unwrap();
        let all = ("RUST_LOG".to_owned(), "trace".to_owned());
        project.variables.extend([all]);
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
        ("SELECT 1; SELECT 2", "it is more than one statement"),
        (
            "SELECT user_id AS a, 1 AS b FROM members",
            "no column `user_id`",
        ),
        (
            "SELECT user_id, user_id FROM members",
            "it has two columns `user_id`",
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
    ask(&project, "SELECT user_id FROM members");
    let schedule = std::fs::read_to_string(project.path("schedules/main.toml")).unwrap();
    let expect = "expect = { max_age = \"1h\", updated_at = \"SELECT now(), leave()\" }\n";
    project.write("schedules/main.toml", &(schedule + expect));
    fails(&project, 1, "in a read-only transaction");
    assert_eq!(database.sql("SELECT count(*) FROM members").trim(), "1");
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

#[test]
fn a_column_that_holds_no_values_is_the_wrong_one() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), "").unwrap();
    for (value, words) in [
        (
            "true",
            "gives true or false in column `value`, which takes text or numbers",
        ),
        ("ARRAY[1]", "gives a list in column `value`"),
        ("repeat('x', 100000000)", "a row holds more than 4 MiB"),
    ] {
        let schedule = format!(
            "[[computed_trait]]\nname = \"VIP\"\nsource = \"wh\"\nquery = \"SELECT user_id, {value} AS value FROM members\"\n"
        );
        project.write("schedules/main.toml", &schedule);
        fails(&project, 1, words);
    }
}

#[test]
fn rows_that_cannot_be_used_are_left_out_and_told_of() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let check = |project: &Project, query: &str, skipped: u64, words: &str| {
        ask(project, query);
        let ran = project.succeed(&["sync", "--json"]);
        let line = &ran.lines()[0];
        assert_eq!(
            (&line["members"], &line["skipped_rows"]),
            (&json!(1), &json!(skipped)),
            "{line}"
        );
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    };
    let in_utf8 = project(&database.uri(), "").unwrap();
    let long = "SELECT repeat('x', n) AS user_id FROM generate_series(1024, 1026) n";
    check(&in_utf8, long, 2, "2 with an id over 1024 bytes");

    let name = database.sql("SELECT current_database()");
    let name = name.trim();
    database.sql(&format!(
        "CREATE DATABASE {name}_bytes TEMPLATE template0 ENCODING SQL_ASCII LOCALE_PROVIDER libc LOCALE 'C'"
    ));
    let uri = database.uri().replace(name, &format!("{name}_bytes"));
    let in_bytes = project(&uri, "").unwrap();
    let query = r"SELECT E'a\xff' AS user_id UNION ALL SELECT 'bob'";
    check(&in_bytes, query, 1, "1 with text that is not UTF-8");

    let sqlite = project("shop.sqlite", "").unwrap();
    sqlite.write(
        "audience-sync.toml",
        &CONFIG.replace("postgresql", "sqlite"),
    );
    sqlite.shop("CREATE TABLE users (id)");
    let query = "SELECT CAST(x'61ff' AS TEXT) AS user_id UNION ALL SELECT 'a' || char(0) || 'b' UNION ALL SELECT 'bob'";
    check(
        &sqlite,
        query,
        2,
        "1 with text that is not UTF-8, 1 with a NUL in the id",
    );
}

#[test]
fn a_database_that_holds_nobody_removes_nobody() {
    let Some(database) = warehouse("('ada'), ('bob')") else {
        return;
    };
    let project = project(&database.uri(), "SELECT user_id FROM members").unwrap();
    project.sync();
    database.sql("DELETE FROM members");
    let ran = project.run(&["sync"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert_eq!(members(&project), ["ada", "bob"]);
}

#[test]
fn whatever_type_an_id_has_it_is_what_the_database_shows() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    database.sql(
        "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('b', 'B', 'a');
         CREATE DOMAIN email AS text; CREATE DOMAIN number AS bigint",
    );
    let project = project(&database.uri(), "").unwrap();
    let ask = |kind: &str, texts: &[&str]| {
        let rows = texts.iter().map(|text| format!("('{text}'::{kind})"));
        let rows = rows.collect::<Vec<_>>().join(", ");
        ask(
            &project,
            &format!("SELECT v AS user_id FROM (VALUES {rows}) AS t(v)"),
        );
        project.run(&["sync", "--approve"])
    };
    // In another order than that of their bytes.
    let cases: [(&str, &[&str]); 11] = [
        ("mood", &["b", "B", "a"]),
        ("email", &["b", "B", "a", "ä"]),
        ("varchar(9)", &["b", "c", "a", "ä"]),
        ("name", &["b", "B", "a", "ä"]),
        ("bpchar", &["b", "c", "a", "ä"]),
        ("char(3)", &["b  ", "B  ", "a  "]),
        ("number", &["-1", "9", "10"]),
        ("oid", &["1", "9", "10"]),
        ("numeric(20)", &["-1", "9", "10", "10000000000000000000"]),
        ("date", &["2026-11-24", "2025-11-24"]),
        ("jsonb", &["2", "1"]),
    ];
    for (kind, texts) in cases {
        let ran = ask(kind, texts);
        assert_eq!(ran.code, 0, "{kind}: {ran:?}");
        let mut expected = texts.to_vec();
        expected.sort_unstable();
        assert_eq!(members(&project), expected, "{kind}");
    }
    // What the driver does not know comes as it is kept.
    for (kind, text) in [("citext", "Ada"), ("inet", "10.0.0.0/8")] {
        let ran = ask(kind, &[text]);
        assert_eq!(ran.code, 1, "{kind}: {ran:?}");
        assert!(ran.stderr.contains("gives a BLOB"), "{kind}: {ran:?}");
        let ran = ask(&format!("{kind}::text"), &[text]);
        assert_eq!((ran.code, members(&project)), (0, vec![text.to_owned()]));
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
fn a_signal_ends_the_query_that_tells_how_old_a_database_is() {
    let Some(database) = warehouse("('ada')") else {
        return;
    };
    let project = project(&database.uri(), "").unwrap();
    let audience = |name: &str, query: &str, updated_at: &str| {
        format!(
            "[[audience]]\nname = \"{name}\"\nsource = \"wh\"\nquery = \"{query}\"\n\
             expect = {{ max_age = \"1h\", updated_at = \"{updated_at}\" }}\n"
        )
    };
    let [members, age] = ["SELECT user_id FROM members", "SELECT now()"];
    let late_age = "SELECT now() FROM pg_sleep(599)";
    let schedule = audience("First", members, age) + &audience("Late", members, late_age);
    project.write("schedules/main.toml", &schedule);
    let run = project.start(&["sync"]);
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("it sleeps", || database.sql(active).trim() == "1");
    run.signal("TERM");
    // Long before a query is done.
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
