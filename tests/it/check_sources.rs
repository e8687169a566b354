//! `check --sources`: what the first rows of each source are like. Nothing is decided, written or given away.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::check::check;
use crate::support::postgres::{PASSWORD, Postgres, drivers};
use crate::support::web::{Reply, Web};
use crate::support::{CONFIG, Project, Ran, assert_fields, eventually};

/// Looks at all sources; only the lines about them.
#[track_caller]
fn look(project: &Project, code: i32) -> (Vec<Value>, Ran) {
    let ran = check(project, &["--sources", "--json"], code);
    let lines = ran.lines().into_iter();
    let lines = lines.filter(|line| line.get("peek").is_some());
    (lines.collect(), ran)
}

/// An audience from `shop` by this query.
fn audience(name: &str, query: &str) -> String {
    format!("[[audience]]\nname = \"{name}\"\nsource = \"shop\"\nquery = '''{query}'''\n")
}

fn shop(schedule: &str, sql: &str) -> Project {
    let project = Project::new(schedule);
    project.shop(sql);
    project
}

/// Of a line: some fields.
fn fields(line: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| line[name].clone()).collect()
}

#[test]
fn what_the_first_rows_of_sqlite_are_like_is_told() {
    let schedule = r#"
[[computed_trait]]
name = "Spend"
source = "shop"
traits = ["email"]
query = "SELECT id AS user_id, spend AS value, lower(email) AS email FROM members"
"#;
    let project = shop(
        schedule,
        "CREATE TABLE members (id TEXT, spend NUMERIC, email);
         INSERT INTO members VALUES ('ada', 7, 'a@example.com'), ('bob', 1.5, NULL), (NULL, 1, NULL), ('', 2, 'x'), ('cy', '', NULL);",
    );
    let (lines, ran) = look(&project, 0);
    assert_eq!(
        ran.stderr,
        "0 audiences, 1 computed trait, 1 schedule: ok\n"
    );
    assert_fields(
        &lines[0],
        &[
            "audience",
            "id",
            "peek",
            "source",
            "source_kind",
            "reads",
            "parts",
            "columns",
            "rows",
            "complete",
            "skipped_rows",
            "faults",
            "order",
            "first_row_seconds",
            "seconds",
            "updated_at",
            "max_age_seconds",
            "min_members",
            "errors",
        ],
    );
    let told = [
        "audience",
        "peek",
        "source",
        "source_kind",
        "reads",
        "parts",
    ];
    assert_eq!(
        fields(&lines[0], &told),
        json!(["spend", "query", "shop", "sqlite", ["shop.sqlite"], 1])
    );
    let told = ["rows", "complete", "skipped_rows", "order", "errors"];
    assert_eq!(
        fields(&lines[0], &told),
        json!([5, true, 2, "sorted_by_source", []])
    );
    let column = |name: &str, declared: Value, found: Value| json!({ "column": name, "source_column": name, "declared": declared, "found": found });
    assert_eq!(
        lines[0]["columns"],
        json!([
            column("user_id", json!("TEXT"), json!({ "text": 4, "NULL": 1 })),
            column(
                "value",
                json!("NUMERIC"),
                json!({ "integer": 3, "real": 1, "text": 1 })
            ),
            column("email", Value::Null, json!({ "text": 2, "NULL": 3 })),
        ])
    );
    // In the order in which they are asked for.
    let fault = |reason: &str, row: u64| json!({ "reason": reason, "rows": 1, "first_row": row, "first_in": null });
    assert_eq!(
        lines[0]["faults"],
        json!([fault("with a NULL id", 1), fault("with an empty id", 2)])
    );
    let seconds = lines[0]["seconds"].as_f64().unwrap();
    let first = lines[0]["first_row_seconds"].as_f64().unwrap();
    assert!(first <= seconds && seconds < 60.0, "{first} {seconds}");

    let text = check(&project, &["--sources"], 0).stdout;
    for words in [
        "\nspend from shop, sqlite\n",
        "  reads     shop.sqlite\n",
        "  column    user_id (declared TEXT): NULL 1, text 4\n",
        "  column    email: NULL 3, text 2\n",
        "  rows      5 in all, 2 of them skipped\n",
        "  fault     1 with an empty id, the first in row 2\n",
        "  order     sorted by the source; verified so far\n",
        "  time      0.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for id in ["ada", "bob", "example.com"] {
        assert!(!format!("{text}{ran:?}").contains(id), "{text}");
    }
}

#[test]
fn the_first_pages_of_a_server_are_looked_at() {
    let members: Vec<Value> = (0..2_000)
        .map(|number| json!({ "id": format!("u{number}"), "value": if number == 3 { json!(null) } else { json!(number) } }))
        .collect();
    let web = Web::start(move |request| Reply::page(request, &members, 600));
    let mut project = Project::empty();
    let settings = "headers = { authorization = { env = \"CRM_TOKEN\" } }\nitems = \"/data\"\nnext = \"/paging/cursor\"\n\
                    cursor_parameter = \"cursor\"\ntotal = \"/paging/total\"\ncolumns = { user_id = \"id\" }";
    let url = web.url("/{key}");
    let config = CONFIG.replace(
        "sqlite = \"shop.sqlite\"",
        &format!("url = \"{url}\"\n{settings}"),
    );
    project.write("audience-sync.toml", &config);
    project.write(
        "schedules/main.toml",
        "[[computed_trait]]\nname = \"Spend\"\nsource = \"shop\"\n",
    );
    project
        .variables
        .insert("CRM_TOKEN".to_owned(), "Bearer hunter2".to_owned());
    let (lines, ran) = look(&project, 0);
    let page = |number: u64| format!("{}, page {number}: json", web.url("/spend"));
    assert_eq!(
        fields(
            &lines[0],
            &[
                "source_kind",
                "reads",
                "parts",
                "rows",
                "complete",
                "order",
                "errors"
            ]
        ),
        json!([
            "http",
            [page(1), page(2)],
            2,
            1_001,
            false,
            "sorted_here",
            []
        ]),
    );
    assert_eq!(
        lines[0]["columns"][2],
        json!({ "column": "value", "source_column": "value", "declared": null, "found": { "integer": 1_000, "NULL": 1 } }),
    );
    assert_eq!(web.requests().len(), 2);
    assert!(!format!("{ran:?}").contains("hunter2"), "{ran:?}");

    // What fails a run is a problem here, too.
    web.answer(|request| Reply::page(request, &[json!({ "id": "u1" })], 600));
    let (_, ran) = look(&project, 1);
    assert!(
        ran.stderr.contains("no object in it has a member `value`"),
        "{ran:?}"
    );

    web.answer(|_| Reply::status(401));
    let (lines, ran) = look(&project, 1);
    assert_eq!(lines[0]["rows"], 0);
    assert!(
        ran.stderr.contains("/spend, page 1: HTTP 401 Unauthorized"),
        "{ran:?}"
    );
}

#[test]
fn a_thousand_good_rows_are_enough_and_are_found_behind_bad_ones() {
    let fill = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000)
                INSERT INTO";
    let schedule = [
        audience("Indexed", "SELECT id AS user_id FROM texts"),
        audience("Numbers", "SELECT id AS user_id FROM numbers"),
        audience(
            "Nulls",
            "SELECT CASE WHEN id > 'u1500' THEN id END AS user_id FROM texts",
        ),
        audience("Nobody", "SELECT id AS user_id FROM texts WHERE id < 'a'"),
    ];
    let project = shop(
        &schedule.concat(),
        &format!(
            "CREATE TABLE texts (id TEXT PRIMARY KEY); CREATE TABLE numbers (id);
             {fill} texts SELECT format('u%04d', n) FROM n; {fill} numbers SELECT n FROM n"
        ),
    );
    let (lines, _) = look(&project, 0);
    let told = |line: &Value| {
        fields(
            line,
            &["audience", "rows", "complete", "skipped_rows", "order"],
        )
    };
    let told: Vec<Value> = lines.iter().map(told).collect();
    assert_eq!(
        told,
        [
            json!(["indexed", 1000, false, 0, "given"]),
            json!(["numbers", 1000, false, 0, "sorted_by_source"]),
            json!(["nulls", 2500, false, 1500, "sorted_by_source"]),
            json!(["nobody", 0, true, 0, "given"]),
        ]
    );
    assert_eq!(lines[1]["columns"][0]["found"], json!({ "integer": 1000 }));
    assert_eq!(lines[3]["first_row_seconds"], Value::Null);
}

#[test]
fn a_change_query_is_looked_at_too() {
    let changes =
        "changes = \"SELECT id AS user_id, is_in AS is_member FROM members WHERE at > :since\"\n";
    let schedule = audience("Members", "SELECT id AS user_id FROM members WHERE is_in") + changes;
    let project = shop(
        &schedule,
        "CREATE TABLE members (id TEXT, is_in BOOLEAN, at TEXT);
         INSERT INTO members VALUES ('ada', 1, '2026-01-01 00:00:00'), ('bob', 0, '2026-01-02 00:00:00')",
    );
    let (lines, _) = look(&project, 0);
    let told = |line: &Value| fields(line, &["peek", "rows", "order"]);
    assert_eq!(told(&lines[0]), json!(["query", 1, "sorted_by_source"]));
    assert_eq!(told(&lines[1]), json!(["changes", 2, null]));
    assert_eq!(lines[1]["columns"][1]["found"], json!({ "integer": 2 }));

    project.shop("UPDATE members SET is_in = 'gone' WHERE id = 'bob'");
    let (lines, ran) = look(&project, 1);
    assert_eq!(lines[0]["errors"], json!([]));
    let words =
        "the change query of \"Members\" gives a text in column `is_member`, which takes 1 or 0";
    assert_eq!(lines[1]["errors"], json!([words]));
    assert_eq!(ran.stderr, format!("error: {words}\n"));
}

#[test]
fn one_source_that_fails_does_not_keep_the_others_from_being_looked_at() {
    let schedule = [
        audience(
            "Blobs",
            "SELECT id AS user_id FROM members UNION ALL SELECT x'00'",
        ),
        audience("Gone", "SELECT id AS user_id FROM nowhere"),
        audience("Members", "SELECT id AS user_id FROM members"),
    ];
    let project = shop(
        &schedule.concat(),
        "CREATE TABLE members (id TEXT); INSERT INTO members VALUES ('ada')",
    );
    let (lines, ran) = look(&project, 2);
    let asked: Vec<&Value> = lines.iter().map(|line| &line["audience"]).collect();
    assert_eq!(asked, ["blobs", "members"]);
    let words =
        "the query of \"Blobs\" gives a BLOB in column `user_id`, which takes text or integers";
    assert_eq!(lines[0]["errors"], json!([words]));
    assert_eq!(fields(&lines[0], &["rows", "complete"]), json!([2, false]));
    assert_eq!(
        lines[0]["columns"][0]["found"],
        json!({ "text": 1, "BLOB": 1 })
    );
    assert_eq!(
        fields(&lines[1], &["rows", "complete", "errors"]),
        json!([1, true, []])
    );
    assert!(ran.stderr.contains("no such table: nowhere"), "{ran:?}");
    assert!(
        ran.stderr.contains(words) && !ran.stderr.contains(": ok"),
        "{ran:?}"
    );
    let text = check(&project, &["--sources"], 2).stdout;
    assert!(text.contains(&format!("  problem   {words}\n")), "{text}");
}

const EXPORTS: &str = r#"
[source.exports]
files = "exports/*"
columns = { user_id = "customer" }

[destination.main]
directory = "delivered"
mapping = { identify = "members" }
"#;

fn exports(schedule: &str) -> Project {
    let project = Project::empty();
    project.write("audience-sync.toml", EXPORTS);
    project.write("schedules/main.toml", schedule);
    project
}

#[test]
fn each_file_is_looked_at() {
    let schedule = r#"
[[computed_trait]]
name = "Spend"
source = "exports"
files = "spend-*"

[[audience]]
name = "Vips"
source = "exports"
files = "vips.jsonl"
columns = { user_id = "id" }
traits = ["email"]
"#;
    let project = exports(schedule);
    let rows = |from: u32| (from..from + 900).map(|n| format!("{n},u{n}\n"));
    let csv = |from: u32| "value,customer\n".to_owned() + &rows(from).collect::<String>();
    project.write("exports/spend-1.csv", &csv(0));
    let gz = File::create(project.path("exports/spend-2.tsv.gz")).unwrap();
    let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
    let tsv = csv(900).replacen("900,u900", "1.5,", 1).replace(',', "\t");
    gz.write_all(tsv.as_bytes()).unwrap();
    gz.finish().unwrap();
    let vips = "{\"id\":7,\"email\":null,\"x\":1}\n{\"id\":\"v\",\"email\":\"v@example.com\"}\n";
    project.write("exports/vips.jsonl", vips);
    let (lines, ran) = look(&project, 0);
    let told = ["source_kind", "reads", "parts", "rows", "complete", "order"];
    let reads = [
        "exports/spend-1.csv: csv",
        "exports/spend-2.tsv.gz: tsv, gzip",
    ];
    assert_eq!(
        fields(&lines[0], &told),
        json!(["files", reads, 2, 1001, false, "sorted_here"])
    );
    assert_eq!(
        lines[0]["columns"],
        json!([
            { "column": "user_id", "source_column": "customer", "declared": null, "found": { "text": 1001 } },
            { "column": "value", "source_column": "value", "declared": null, "found": { "integer": 1000, "real": 1 } },
        ])
    );
    assert_eq!(
        lines[0]["faults"],
        json!([{ "reason": "with an empty id", "rows": 1, "first_row": 1, "first_in": "exports/spend-2.tsv.gz" }])
    );
    let told = ["reads", "parts", "rows", "complete"];
    assert_eq!(
        fields(&lines[1], &told),
        json!([["exports/vips.jsonl: jsonl"], 1, 2, true])
    );
    assert_eq!(
        lines[1]["columns"][0]["found"],
        json!({ "integer": 1, "text": 1 })
    );
    assert_eq!(lines[1]["columns"][0]["source_column"], "id");
    let email = &lines[1]["columns"][2];
    assert_eq!(email["found"], json!({ "NULL": 1, "text": 1 }));
    assert!(!format!("{ran:?}").contains("example.com"), "{ran:?}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_place() {
    let project = exports("[[audience]]\nname = \"Vips\"\nsource = \"exports\"\n");
    project.write("exports/a.csv", "customer\nada\n");
    let check = |name: &str, text: &str, rows: u64, words: &str| {
        project.write(name, text);
        let (lines, ran) = look(&project, 1);
        assert_eq!(lines[0]["rows"], rows, "{name}: {lines:?}");
        let error = lines[0]["errors"][0].as_str().unwrap();
        assert!(error.contains(words), "{words}: {error}");
        assert!(ran.stderr.contains(words), "{ran:?}");
        assert!(!format!("{ran:?}").contains("hidden"), "{ran:?}");
        std::fs::remove_file(project.path(name)).unwrap();
    };
    check(
        "exports/b.csv",
        "user\nhidden\n",
        1,
        "exports/b.csv: it has no column `customer`",
    );
    check(
        "exports/b.jsonl",
        "{\"customer\":[\"hidden\"]}\n",
        2,
        "exports/b.jsonl, row 1: column `user_id` holds a list",
    );
    check(
        "exports/b.csv",
        "customer\nhidden",
        1,
        "exports/b.csv, row 1: the file ends inside it",
    );
    check(
        "exports/b.txt",
        "hidden\n",
        1,
        "exports/b.txt: its ending names no format",
    );
}

#[test]
fn what_is_expected_is_looked_at_as_far_as_a_few_rows_tell() {
    let expect = |more: &str| {
        let expect = format!("expect = {{ max_age = \"6h\", min_members = 1000{more} }}\n");
        audience("Members", "SELECT id AS user_id FROM members") + &expect
    };
    let by = |query: &str| expect(&format!(", updated_at = \"{query}\""));
    let project = shop(
        &by("SELECT unixepoch('2026-01-02 03:04:05')"),
        "CREATE TABLE members (id TEXT); INSERT INTO members VALUES ('ada')",
    );
    let (lines, ran) = look(&project, 1);
    assert_eq!(
        fields(
            &lines[0],
            &[
                "rows",
                "complete",
                "updated_at",
                "max_age_seconds",
                "min_members"
            ]
        ),
        json!([1, true, "2026-01-02T03:04:05.000Z", 21600, 1000])
    );
    let words = "source `shop` is not to be believed: it was brought up to date ";
    assert!(
        lines[0]["errors"][0].as_str().unwrap().starts_with(words),
        "{lines:?}"
    );
    assert!(
        ran.stderr.starts_with(&format!("error: {words}")),
        "{ran:?}"
    );
    let text = check(&project, &["--sources"], 1).stdout;
    for words in [
        "  expect    brought up to date 2026-01-02 03:04:05 UTC; max_age is 6h\n",
        "  expect    min_members is 1,000, which is not judged from a few rows\n",
    ] {
        assert!(text.contains(words), "{text}");
    }

    project.write("schedules/main.toml", &by("SELECT unixepoch()"));
    assert_eq!(look(&project, 0).0[0]["errors"], json!([]));
    project.write("schedules/main.toml", &by("SELECT 'soon'"));
    let (lines, _) = look(&project, 1);
    assert_eq!(fields(&lines[0], &["rows", "updated_at"]), json!([1, null]));
    let text = check(&project, &["--sources"], 1).stdout;
    assert!(
        text.contains("up to date at a time that is not known"),
        "{text}"
    );

    // The newest file tells.
    let schedule =
        "[[audience]]\nname = \"Vips\"\nsource = \"exports\"\nexpect = { max_age = \"2h\" }\n";
    let project = exports(schedule);
    project.write("exports/a.csv", "customer\nada\n");
    assert_eq!(look(&project, 0).0[0]["max_age_seconds"], 7200);
    let file = File::options()
        .write(true)
        .open(project.path("exports/a.csv"));
    let old = SystemTime::now() - Duration::from_secs(3 * 3_600);
    file.unwrap().set_modified(old).unwrap();
    assert!(look(&project, 1).1.stderr.contains("`max_age` is 2h"));
}

#[test]
fn a_key_that_is_frozen_goes_on() {
    let query = "SELECT id AS user_id FROM members";
    let project = shop(
        &audience("Members", query),
        "CREATE TABLE members (id TEXT)",
    );
    project.succeed(&["sync"]);
    let renamed = audience("Guests", query) + "id = \"members\"\n";
    project.write("schedules/main.toml", &renamed);
    assert_eq!(look(&project, 0).0[0]["audience"], "members");
}

const WAREHOUSE: &str = r#"
[source.shop]
adbc = "postgresql"
uri = { env = "WAREHOUSE_URI" }

[destination.main]
directory = "delivered"
mapping = { identify = "members" }
"#;

/// `None` where drivers are skipped.
fn warehouse(uri: &str, schedule: &str) -> Option<Project> {
    let drivers = drivers()?;
    let mut project = Project::empty();
    project.write("audience-sync.toml", WAREHOUSE);
    project.write("schedules/main.toml", schedule);
    let variables = [
        ("WAREHOUSE_URI", uri),
        ("VIRTUAL_ENV", drivers.to_str().unwrap()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    project.variables.extend(variables);
    Some(project)
}

#[test]
fn what_the_first_rows_of_postgresql_are_like_is_told() {
    if drivers().is_none() {
        return;
    }
    let database = Postgres::shared().database();
    database.sql(
        "CREATE TABLE members (id text, age int, born date, seen timestamptz);
         INSERT INTO members SELECT 'u' || n, n, '2000-01-01', now() FROM generate_series(1, 5000) n;
         INSERT INTO members VALUES ('', 1, NULL, NULL)",
    );
    let schedule = [
        audience("Members", "SELECT id AS user_id, born, seen FROM members;")
            + "traits = [\"born\", \"seen\"]\n",
        audience(
            "Both",
            "SELECT age AS user_id, id AS anonymous_id FROM members",
        ),
        audience("Wrong", "SELECT age::float8 AS user_id FROM members"),
        audience("Gone", "SELECT nothing FROM members"),
        audience("Nameless", "SELECT id AS a, age AS b FROM members"),
    ];
    let mut project = warehouse(&database.uri(), &schedule.concat()).unwrap();
    project
        .variables
        .insert("RUST_LOG".to_owned(), "trace".to_owned());
    let (lines, ran) = look(&project, 2);
    assert_eq!(lines.len(), 5, "{ran:?}");
    let told = ["rows", "complete", "skipped_rows", "order", "errors"];
    assert_eq!(
        fields(&lines[0], &told),
        json!([1001, false, 1, "asked_for", []])
    );
    let column = |name: &str, declared: &str, found: Value| json!({ "column": name, "source_column": name, "declared": declared, "found": found });
    assert_eq!(
        lines[0]["columns"],
        json!([
            column("user_id", "Utf8", json!({ "text": 1001 })),
            column("born", "Date32", json!({ "text": 1000, "NULL": 1 })),
            column(
                "seen",
                "Timestamp(µs, \"UTC\")",
                json!({ "text": 1000, "NULL": 1 })
            ),
        ])
    );
    let reads = lines[0]["reads"][0].as_str().unwrap();
    assert!(reads.starts_with("PostgreSQL 1"), "{reads}");
    assert!(reads.ends_with(", by ADBC PostgreSQL Driver"), "{reads}");
    assert_eq!(
        fields(&lines[1], &told),
        json!([1000, false, 0, "sorted_here", []])
    );
    let words = |line: usize, words: &str| {
        let error = lines[line]["errors"][0].as_str().unwrap();
        assert!(error.contains(words), "{error}");
    };
    words(2, "gives a real number in column `user_id`");
    words(
        3,
        "column \"nothing\" does not exist\n  --> schedules/main.toml:",
    );
    words(
        4,
        "it has no column `user_id` or `anonymous_id`, only `a`, `b`",
    );
    assert!(!format!("{ran:?}").contains(PASSWORD), "{ran:?}");
    assert!(!format!("{ran:?}").contains("u4999"), "{ran:?}");
    assert_eq!(ran.stderr.matches("error: ").count(), 3, "{ran:?}");
}

#[test]
fn a_warehouse_that_cannot_be_reached_is_said_once_and_without_its_password() {
    let schedule =
        audience("One", "SELECT 'a' AS user_id") + &audience("Two", "SELECT 'b' AS user_id");
    let uri = "host=/nowhere user=postgres password=hunter2-of-the-warehouse";
    let Some(mut project) = warehouse(uri, &schedule) else {
        return;
    };
    let (lines, ran) = look(&project, 1);
    assert_eq!(lines.len(), 2);
    assert_eq!(
        fields(&lines[1], &["rows", "columns", "reads", "parts"]),
        json!([0, [], [], 0])
    );
    assert_eq!(
        ran.stderr
            .matches("error: source `shop`: no connection: ")
            .count(),
        1,
        "{ran:?}"
    );
    assert!(!format!("{ran:?}").contains("hunter2"), "{ran:?}");
    let verbose = check(&project, &["--sources", "-vv", "--log-format", "json"], 1);
    assert!(!format!("{verbose:?}").contains("hunter2"), "{verbose:?}");

    // Without a driver nobody can be asked at all, with or without the flag.
    project.variables.remove("VIRTUAL_ENV");
    project.write(
        "audience-sync.toml",
        &WAREHOUSE.replace("postgresql", "nowhere"),
    );
    let (lines, ran) = look(&project, 1);
    assert!(lines.is_empty(), "{ran:?}");
    assert_eq!(
        ran.stderr.matches("there is no such driver").count(),
        1,
        "{ran:?}"
    );
    assert!(
        ran.lines()[1]["error"]
            .as_str()
            .unwrap()
            .contains("no such driver"),
        "{ran:?}"
    );
}

#[test]
fn a_signal_ends_the_look_and_the_query() {
    if drivers().is_none() {
        return;
    }
    let database = Postgres::shared().database();
    let sleeps = "SELECT pg_sleep(600)::text AS user_id";
    let schedule = audience("First", "SELECT 'a' AS user_id")
        + &audience("Sleeps", sleeps)
        + &audience("Last", sleeps);
    let project = warehouse(&database.uri(), &schedule).unwrap();
    let run = project.start(&["check", "--sources", "--json"]);
    let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("the query sleeps", || database.sql(active).trim() == "1");
    run.signal("INT");
    let ran = run.end();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .ends_with("error: asked to stop: 1 of 3 queries were looked at\n"),
        "{ran:?}"
    );
    assert_eq!(ran.lines().len(), 4, "{ran:?}");
    eventually("the query has ended", || database.sql(active).trim() == "0");
}

#[test]
fn without_the_flag_nobody_is_asked() {
    let project = shop(
        &audience("Members", "SELECT id AS user_id FROM members"),
        "CREATE TABLE members (id BLOB); INSERT INTO members VALUES (x'00')",
    );
    project.write("audience-sync.toml", CONFIG);
    assert_eq!(check(&project, &["--json"], 0).lines().len(), 1);
    assert_eq!(look(&project, 1).0.len(), 1);
}
