//! Every kind of source gives the members that SQLite does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use audience_sync::audience::{Class, SourceName};
use audience_sync::progress::Progress;
use audience_sync::run::Outcome;
use audience_sync::snapshot::{Handle, Snapshot};
use audience_sync::source::{Adbc, Dialect, Files, Http, Pointer, Source, Template, Total};
use audience_sync::stop::Stop;
use audience_sync::sync::{Left, Request, Runner, Streams};
use chrono::NaiveDate;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::replay::{Downstream, Truth, audience, move_on, orders, project};
use crate::support::Project;
use crate::support::postgres::{Database, Postgres, drivers};
use crate::support::web::{self, Reply, Web};

/// A source that holds what a day says.
trait Kind {
    fn source(&self, folder: &Path) -> Source;

    /// Lets the source hold this.
    fn hold(&self, folder: &Path, key: &str, members: &[(&str, &Value)]);

    /// What the audience of a key asks of it.
    fn ask(&self, key: &str) -> Ask;
}

/// What stands under an audience.
#[derive(Default)]
struct Ask {
    query: String,
    files: Option<String>,
}

/// What a day says of one key, and what it does not say any more.
fn present<'t>(truth: &'t Truth<'_>, key: &str) -> Vec<(&'t str, &'t Value)> {
    let of_key = truth.iter().filter(|((_, of), _)| *of == key);
    let present = of_key.filter(|(_, value)| **value != json!(false) && **value != json!(null));
    // In no order at all.
    let mut members: Vec<_> = present.map(|((user, _), value)| (*user, value)).collect();
    members.sort_by_key(|(user, _)| user.bytes().rev().collect::<Vec<_>>());
    members
}

/// In memory where the system has such a place: nothing of a replay must survive a power cut, and each day waits several
/// times for the disk.
fn folder_in_memory() -> TempDir {
    match Path::new("/dev/shm") {
        memory if memory.is_dir() => tempfile::tempdir_in(memory).unwrap(),
        _ => tempfile::tempdir().unwrap(),
    }
}

/// Real orders, day by day.
async fn replay(kind: &impl Kind) {
    replay_each(1, kind).await;
}

/// Real orders, in steps of some days.
async fn replay_each(days: usize, kind: &impl Kind) {
    let folder = folder_in_memory();
    let (orders, delivered) = (orders(), folder.path().join("delivered"));
    let project = project(folder.path(), kind.source(folder.path()));
    let keyed = [("members", Class::Audience), ("revenue", Class::Trait)].map(|(key, class)| {
        let Ask { query, files } = kind.ask(key);
        let mut keyed = audience(key, class, &query);
        keyed.audience.files = files;
        keyed
    });
    let snapshot = Handle::new(Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap());
    let streams = Streams::resolve(&project, &[]).unwrap();
    let runner = Runner::new(
        &project,
        &snapshot,
        &streams,
        Stop::new(),
        Progress::default(),
    );
    let (mut truth, mut downstream) = (Truth::new(), Downstream::default());
    let (first, last) = ("1997-01-01".parse().unwrap(), "1998-06-30".parse().unwrap());
    let each = NaiveDate::iter_days(&first).step_by(days);
    for day in each.take_while(|day| *day <= last) {
        let changes = move_on(&mut truth, &orders, day);
        for keyed in &keyed {
            let key = keyed.key.as_str();
            kind.hold(folder.path(), key, &present(&truth, key));
        }
        let mut reports = Vec::new();
        let request = Request::default();
        let ran = runner.run_all(&keyed, &Left::All, &request, &mut reports);
        ran.await.unwrap();
        for report in reports {
            let is_fine = matches!(report.outcome, Outcome::Delivered | Outcome::Unchanged);
            assert!(is_fine, "{day}: {report:?}");
        }
        assert_eq!(downstream.take(&delivered), changes, "{day}");
        downstream.is(&truth, day);
    }
}

/// Files with this ending, written in this way.
struct Exports {
    ending: &'static str,
    write: fn(&[(&str, &Value)]) -> Vec<u8>,
}

impl Kind for Exports {
    fn source(&self, folder: &Path) -> Source {
        Source::Files(Files {
            name: SourceName::new("shop"),
            root: folder.to_owned(),
            pattern: "exports/*".into(),
            format: None,
            dialect: Dialect::default(),
            columns: [("user_id".to_owned(), "customer".to_owned())].into(),
        })
    }

    fn hold(&self, folder: &Path, key: &str, members: &[(&str, &Value)]) {
        fs::create_dir_all(folder.join("exports")).unwrap();
        // Two files, as large exports come.
        for (number, members) in members.chunks(members.len() / 2 + 1).enumerate() {
            let path = folder.join(format!("exports/{key}-{number}{}", self.ending));
            fs::write(path, (self.write)(members)).unwrap();
        }
    }

    fn ask(&self, key: &str) -> Ask {
        Ask {
            files: Some(format!("{key}-*")),
            ..Ask::default()
        }
    }
}

fn delimited(members: &[(&str, &Value)], delimiter: char) -> Vec<u8> {
    let mut text = format!("value{delimiter}customer\n");
    for (user, value) in members {
        text.push_str(&format!("{value}{delimiter}\"{user}\"\n"));
    }
    text.into_bytes()
}

fn json_lines(members: &[(&str, &Value)]) -> Vec<u8> {
    let mut text = String::new();
    for (user, value) in members {
        text.push_str(&json!({ "value": value, "more": [1], "customer": user }).to_string());
        text.push('\n');
    }
    text.into_bytes()
}

#[tokio::test]
async fn real_orders_from_csv_leave_the_truth_downstream_after_every_day() {
    replay(&Exports {
        ending: ".csv",
        write: |members| delimited(members, ','),
    })
    .await;
}

#[tokio::test]
async fn real_orders_from_compressed_tsv_leave_the_truth_downstream_after_every_day() {
    replay(&Exports {
        ending: ".tsv.gz",
        write: |members| {
            let level = flate2::Compression::fast();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(&delimited(members, '\t')).unwrap();
            encoder.finish().unwrap()
        },
    })
    .await;
}

#[tokio::test]
async fn real_orders_from_json_lines_leave_the_truth_downstream_after_every_day() {
    replay(&Exports {
        ending: ".jsonl.zst",
        write: |members| zstd::encode_all(&*json_lines(members), 1).unwrap(),
    })
    .await;
}

fn parquet(members: &[(&str, &Value)]) -> Vec<u8> {
    let users = StringArray::from_iter_values(members.iter().map(|(user, _)| user));
    let values = Int64Array::from_iter(members.iter().map(|(_, value)| value.as_i64()));
    let columns: [(&str, ArrayRef); 2] =
        [("value", Arc::new(values)), ("customer", Arc::new(users))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[tokio::test]
async fn real_orders_from_parquet_leave_the_truth_downstream_after_every_day() {
    replay(&Exports {
        ending: ".parquet",
        write: parquet,
    })
    .await;
}

/// A database behind an ADBC driver.
struct Warehouse {
    driver: String,
    database: Database<'static>,
}

impl Warehouse {
    fn new() -> Option<Self> {
        let library = drivers()?.join("lib");
        // One version of Python is in the environment.
        let python = fs::read_dir(library).unwrap().next().unwrap().unwrap();
        let package = python.path().join("site-packages/adbc_driver_postgresql");
        let driver = package.join("libadbc_driver_postgresql.so");
        let database = Postgres::shared().database();
        database.sql(
            "CREATE TABLE members (user_id text); CREATE TABLE revenue (user_id text, value bigint)",
        );
        Some(Self {
            driver: driver.to_str().unwrap().to_owned(),
            database,
        })
    }
}

impl Kind for Warehouse {
    fn source(&self, _: &Path) -> Source {
        Source::Adbc(Adbc {
            name: SourceName::new("shop"),
            driver: self.driver.clone(),
            options: [("uri".to_owned(), self.database.uri())].into(),
            secrets: BTreeMap::new(),
        })
    }

    fn hold(&self, _: &Path, key: &str, members: &[(&str, &Value)]) {
        let rows = members.iter().map(|(user, value)| match key {
            "members" => format!("('{user}')"),
            _ => format!("('{user}', {value})"),
        });
        let rows: Vec<String> = rows.collect();
        let insert = match rows.is_empty() {
            true => String::new(),
            false => format!("; INSERT INTO {key} VALUES {}", rows.join(", ")),
        };
        self.database.sql(&format!("TRUNCATE {key}{insert}"));
    }

    fn ask(&self, key: &str) -> Ask {
        Ask {
            query: format!("SELECT * FROM {key}"),
            ..Ask::default()
        }
    }
}

/// Each step is a connection and a load of the table, so that there are fewer of them.
#[tokio::test]
async fn real_orders_from_postgresql_leave_the_truth_downstream_after_every_third_day() {
    if let Some(warehouse) = Warehouse::new() {
        replay_each(3, &warehouse).await;
    }
}

/// A server that gives the members page by page.
struct Server {
    web: Web,
    /// By key, as JSON.
    members: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
}

impl Server {
    fn new() -> Self {
        let members: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
        let held = Arc::clone(&members);
        let web = Web::start(move |request| {
            let key = request.path.trim_start_matches('/');
            page(request, &held.lock().unwrap()[key])
        });
        Self { web, members }
    }
}

/// As [`Reply::page`] has it, of which there are many here.
fn page(request: &web::Request, members: &[String]) -> Reply {
    const SIZE: usize = 4_000;
    let cursor = request.query.get("cursor");
    let begin: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
    let end = members.len().min(begin + SIZE);
    let cursor = match end < members.len() {
        true => format!("\"{end}\""),
        false => "null".to_owned(),
    };
    let (total, data) = (members.len(), members[begin..end].join(","));
    let body =
        format!("{{\"data\":[{data}],\"paging\":{{\"total\":{total},\"cursor\":{cursor}}}}}");
    Reply::new("application/json", body)
}

impl Kind for Server {
    fn source(&self, _: &Path) -> Source {
        Source::Http(Http {
            name: SourceName::new("shop"),
            url: Template::parse(&self.web.url("/{key}")).unwrap(),
            headers: BTreeMap::new(),
            secrets: BTreeMap::new(),
            format: None,
            dialect: Dialect::default(),
            columns: [("user_id".to_owned(), "customer".to_owned())].into(),
            items: Pointer::parse("/data").unwrap(),
            next: Pointer::parse("/paging/cursor"),
            cursor_parameter: Some("cursor".to_owned()),
            total: Pointer::parse("/paging/total").map(Total::At),
            timeout: Duration::from_secs(60),
        })
    }

    fn hold(&self, _: &Path, key: &str, members: &[(&str, &Value)]) {
        let object = |(user, value): &(&str, &Value)| {
            format!("{{\"customer\":\"{user}\",\"value\":{value}}}")
        };
        let objects = members.iter().map(object).collect();
        self.members.lock().unwrap().insert(key.to_owned(), objects);
    }

    fn ask(&self, _: &str) -> Ask {
        Ask::default()
    }
}

#[tokio::test]
async fn real_orders_from_a_server_leave_the_truth_downstream_after_every_third_day() {
    replay_each(3, &Server::new()).await;
}

const EXPORTS: &str = r#"
[source.exports]
files = "exports/*.csv"
columns = { user_id = "customer" }

[destination.main]
directory = "delivered"
mapping = { identify = "members" }
"#;

const TWO: &str = r#"
[[audience]]
name = "Members"
source = "exports"

[[audience]]
name = "Vips"
source = "exports"
files = "vips.jsonl"
columns = { user_id = "id" }
traits = ["email"]
"#;

fn exports(schedule: &str) -> Project {
    let project = Project::empty();
    project.write("audience-sync.toml", EXPORTS);
    project.write("schedules/main.toml", schedule);
    project.write("exports/one.csv", "customer,x\nb,1\na,2\n");
    project.write("exports/two.csv", "x,customer\n3,c\n");
    project.write("exports/vips.jsonl", "{\"id\":\"v\",\"email\":\"v@x\"}\n");
    project
}

/// Of each line: what it is of, how it ended, members, added and removed.
fn told(lines: &[Value]) -> Vec<Value> {
    let fields = ["audience", "outcome", "members", "added", "removed"];
    let told = |line: &Value| fields.map(|field| line[field].clone());
    lines.iter().map(|line| json!(told(line))).collect()
}

#[test]
fn an_audience_from_files_is_synced_and_files_that_were_not_modified_are_not_read() {
    let project = exports(TWO);
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(
        told(&ran.lines()),
        [
            json!(["members", "delivered", 3, 3, 0]),
            json!(["vips", "delivered", 1, 1, 0])
        ]
    );
    let of_vip = |record: &Value| record["userId"] == "v";
    let delivered = project.delivered();
    let vip = delivered.iter().find(|record| of_vip(record)).unwrap();
    assert_eq!(vip["traits"], json!({ "vips": true, "email": "v@x" }));

    project.write("exports/two.csv", "x,customer\n3,d\n");
    let ran = project.succeed(&["sync", "--json"]);
    assert_eq!(
        told(&ran.lines())[0],
        json!(["members", "delivered", 3, 1, 1])
    );
    // Files that rest are not read: they need not even be readable as what they are.
    let was_not_read = || {
        let ran = project.succeed(&["sync", "-v"]);
        ran.stderr.matches("the source was not modified").count() == 2
    };
    crate::support::eventually("the files have rested", was_not_read);
}

#[test]
fn a_file_that_cannot_be_used_fails_its_audience_and_no_other() {
    let project = exports(TWO);
    project.succeed(&["sync"]);
    project.write("exports/one.csv", "customer,x\nb,1\na");
    project.write("exports/vips.jsonl", "{\"id\":\"v\"}\n{\"id\":\"w\"}\n");
    let ran = project.run(&["sync", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let lines = ran.lines();
    assert_eq!(
        told(&lines),
        [
            json!(["members", "failed", null, 0, 0]),
            json!(["vips", "delivered", 2, 1, 0])
        ]
    );
    let error = lines[0]["error"].as_str().unwrap();
    assert!(
        error.contains("source `exports`: exports/one.csv, row 2: the file ends inside it"),
        "{error}"
    );
    // No file at all is no empty audience.
    for name in ["one", "two"] {
        fs::remove_file(project.path(&format!("exports/{name}.csv"))).unwrap();
    }
    let ran = project.run(&["sync", "members", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let error = ran.lines()[0]["error"].as_str().unwrap().to_owned();
    assert!(
        error.contains("exports/*.csv: there is no such file"),
        "{error}"
    );
}

#[test]
fn a_file_that_one_audience_misses_is_nobody_elses_fault() {
    let missing =
        "[[audience]]\nname = \"Missing\"\nsource = \"exports\"\nfiles = \"missing.csv\"\n";
    let project = exports(&format!("{missing}{TWO}"));
    let ran = project.run(&["check", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let faulty = |line: &Value| json!([line["audience"], line["error"].is_string()]);
    assert_eq!(
        ran.lines().iter().map(faulty).collect::<Vec<_>>(),
        [
            json!(["missing", true]),
            json!(["members", false]),
            json!(["vips", false])
        ]
    );
    assert!(
        ran.stderr
            .ends_with("; until it can be read, nothing is synced for missing\n"),
        "{ran:?}"
    );
}

#[test]
fn what_does_not_fit_a_source_of_files_is_a_mistake_in_the_configuration() {
    let project = exports(TWO);
    let check = |more: &str, words: &str| {
        project.write("schedules/main.toml", &format!("{TWO}{more}\n"));
        let ran = project.run(&["check"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
    };
    check(
        "query = \"SELECT 1\"",
        "`query` in [[audience]] does not fit source `exports`",
    );
    check(
        "changes = \"SELECT :since\"",
        "`changes` in [[audience]] does not fit source `exports`",
    );
}

#[test]
fn a_trait_that_no_object_has_is_warned_of_once() {
    let project = exports(
        "[[audience]]\nname = \"Vips\"\nsource = \"exports\"\nfiles = \"vip*.jsonl\"\ncolumns = { user_id = \"id\" }\ntraits = [\"email\", \"plan\"]\n",
    );
    project.write("exports/vip-2.jsonl", "{\"id\":\"w\",\"plan\":\"x\"}\n");
    project.write("exports/vip-3.jsonl", "{\"id\":\"x\",\"plan\":\"x\"}\n");
    let ran = project.succeed(&["sync"]);
    let told = "source `exports`: exports/vip-2.jsonl: no object in it has a member `email`, so that trait is null for everyone there";
    assert!(ran.stderr.contains(told), "{ran:?}");
    assert_eq!(ran.stderr.matches("no object").count(), 1, "{ran:?}");
}

#[test]
fn a_name_of_a_file_steers_no_terminal() {
    let project = exports(TWO);
    project.write("exports/\u{1b}[31m\n.csv", "customer\na");
    project.write("exports/vips.jsonl", "{\"id\":\"v\"}\n");
    let check = |ran: crate::support::Ran, words: &str| {
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(words), "{ran:?}");
        assert!(!ran.stderr.contains('\u{1b}'), "{ran:?}");
    };
    check(
        project.run(&["sync"]),
        "exports/\\u{1b}[31m\\n.csv, row 1: the file ends inside it",
    );
    let config = format!("{EXPORTS}\n[source.shop]\nsqlite = \"\\u001b[31m.sqlite\"\n");
    project.write("audience-sync.toml", &config);
    project.write(
        "schedules/main.toml",
        "[[audience]]\nname = \"Members\"\nsource = \"shop\"\nquery = \"SELECT 1 AS user_id\"\n",
    );
    check(
        project.run(&["sync"]),
        "there is no database at \\u{1b}[31m.sqlite",
    );
}

#[test]
fn a_source_that_is_stale_or_short_decides_nothing() {
    let schedule = |source: &str, query: &str, expect: &str| {
        format!(
            "[[audience]]\nname = \"Members\"\nsource = \"{source}\"\n{query}\nexpect = {expect}\n"
        )
    };
    let project = exports("");
    let config = format!("{EXPORTS}\n[source.shop]\nsqlite = \"shop.sqlite\"\n");
    project.write("audience-sync.toml", &config);
    project.shop(
        "CREATE TABLE users (id TEXT, loaded_at); INSERT INTO users VALUES ('a', '2026-01-02'), ('b', '2026-01-01 10:00:00')",
    );
    let query = "query = \"SELECT id AS user_id FROM users\"";
    let told_at = |column: &str| {
        format!("{{ max_age = \"6h\", updated_at = \"SELECT {column} FROM users\" }}")
    };
    let check = |schedule: String, words: Option<&str>| {
        project.write("schedules/main.toml", &schedule);
        let ran = project.run(&["sync", "--json"]);
        let line = &ran.lines()[0];
        match words {
            Some(words) => {
                assert_eq!(
                    (ran.code, &line["outcome"]),
                    (1, &json!("failed")),
                    "{ran:?}"
                );
                assert!(line["error"].as_str().unwrap().contains(words), "{ran:?}");
                assert!(!project.path("delivered").exists());
            }
            None => assert_eq!(ran.code, 0, "{ran:?}"),
        }
    };
    let shop = |expect: &str| schedule("shop", query, expect);
    check(
        shop("{ min_members = 3 }"),
        Some(
            "source `shop` is not to be believed: \"Members\" has 2 members there, and `min_members` is 3",
        ),
    );
    for (column, words) in [
        ("max(loaded_at)", "ago, and `max_age` is 6h"),
        (
            "unixepoch() - 6 * 3600 - 60",
            "6h 1m ago, and `max_age` is 6h",
        ),
        ("NULL", "`updated_at` tells no time"),
        ("'soon'", "`updated_at` tells no time"),
        ("-1e300", "`updated_at` tells no time"),
        ("1e300", "`updated_at` tells no time"),
        ("9223372036854775", "`updated_at` tells no time"),
        ("unixepoch() - 9000000000", "years"),
        (
            "max('2126-01-01T00:00:00Z')",
            "from now: milliseconds since 1970 in place of seconds, or a local time in place of UTC?",
        ),
        ("1000 * unixepoch()", "from now: milliseconds"),
        (
            "datetime('now', '+1 hour', '+30 seconds')",
            "it was brought up to date 1h ",
        ),
        (
            "max(seen_at)",
            "`updated_at` cannot run: no such column: seen_at",
        ),
    ] {
        check(shop(&told_at(column)), Some(words));
    }
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 3_600);
    let file = |name: &str| {
        fs::File::options()
            .write(true)
            .open(project.path(name))
            .unwrap()
    };
    for name in ["exports/one.csv", "exports/two.csv"] {
        file(name).set_modified(old).unwrap();
    }
    let exports = |expect: &str| schedule("exports", "", expect);
    check(
        exports("{ max_age = \"2h\", min_members = 1 }"),
        Some("source `exports` is not to be believed: it was brought up to date 3h"),
    );
    check(
        exports("{ min_members = 4 }"),
        Some("has 3 members there, and `min_members` is 4"),
    );

    check(exports("{ max_age = \"4h\", min_members = 3 }"), None);
    // Nobody has to read it again to find it too old.
    crate::support::eventually("the files have rested", || {
        let ran = project.succeed(&["sync", "-v"]);
        ran.stderr.contains("the source was not modified")
    });
    fs::remove_dir_all(project.path("delivered")).unwrap();
    check(
        exports("{ max_age = \"2h\" }"),
        Some("ago, and `max_age` is 2h"),
    );
    check(exports("{ min_members = 4 }"), Some("`min_members` is 4"));
    for column in [
        "datetime('now', '-5 hours')",
        "unixepoch()",
        // No two clocks agree.
        "datetime('now', '+4 minutes')",
    ] {
        check(shop(&told_at(column)), None);
    }
}

#[test]
fn a_stale_warehouse_decides_nothing() {
    let Some(drivers) = drivers() else { return };
    let database = Postgres::shared().database();
    database.sql("CREATE TABLE users (id text, at timestamptz); INSERT INTO users VALUES ('a', now() - interval '3 hours')");
    let mut project = Project::empty();
    project.write(
        "audience-sync.toml",
        &format!(
            "[source.wh]\nadbc = \"postgresql\"\nuri = {{ env = \"WAREHOUSE_URI\" }}\n{}",
            EXPORTS
                .split_once("[destination")
                .map(|(_, rest)| format!("[destination{rest}"))
                .unwrap()
        ),
    );
    project
        .variables
        .insert("WAREHOUSE_URI".to_owned(), database.uri());
    project.variables.insert(
        "VIRTUAL_ENV".to_owned(),
        drivers.to_str().unwrap().to_owned(),
    );
    let sync = |max_age: &str, at: &str| {
        project.write("schedules/main.toml", &format!("[[audience]]\nname = \"Members\"\nsource = \"wh\"\nquery = \"SELECT id AS user_id FROM users\"\nexpect = {{ max_age = \"{max_age}\", updated_at = \"SELECT {at} FROM users\" }}\n"));
        project.run(&["sync", "--json"])
    };
    for (max_age, at, words) in [
        ("2h", "max(at)", "it was brought up to date 3h"),
        ("2h", "max(at)::text", "it was brought up to date 3h"),
        (
            "2h",
            "floor(extract(epoch FROM max(at)))::bigint",
            "it was brought up to date 3h",
        ),
        ("2h", "max(seen_at)", "`updated_at` cannot run: "),
        ("2h", "NULL", "`updated_at` tells no time"),
    ] {
        let ran = sync(max_age, at);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(words), "{at}: {ran:?}");
        assert!(!project.path("delivered").exists());
    }
    assert_eq!(sync("4h", "max(at)").code, 0);
}
