//! Whole files in, whole messages out: what a message says is what a user has.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::audience::{Class, Guard};
use crate::event::CallType;
use crate::firehose::Api;
use crate::mapping::{Match, StreamName};
use crate::source::Sqlite;
use crate::stream::Place;

/// A project in a directory of its own, which goes with it.
struct Project(PathBuf);

impl Project {
    fn empty() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("audience-sync-config-{}-{count}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(root.join("schedules")).unwrap();
        Self(root)
    }

    fn new(main: &str, schedule: &str) -> Self {
        Self::empty()
            .with("audience-sync.toml", main)
            .with("schedules/daily.toml", schedule)
    }

    fn with(self, file: &str, content: impl AsRef<[u8]>) -> Self {
        fs::write(self.0.join(file), content).unwrap();
        self
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.0.join("audience-sync.toml"))
    }

    /// The message, with paths as they are in the project.
    #[track_caller]
    fn check(self, expected: &str) {
        let error = self.load().map(drop).unwrap_err();
        let message = error
            .to_string()
            .replace(&format!("{}/", self.0.display()), "");
        assert_eq!(message, expected);
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const MAIN: &str = r#"
[source.shop]
sqlite = "shop.sqlite"
[destination.main]
directory = "delivered"
mapping = { "*" = "all" }
"#;

const TWO: &str = r#"
[source.shop]
sqlite = "shop.sqlite"
[destination.main]
directory = "delivered"
mapping = { "*" = "all" }
[destination.other]
directory = "delivered"
mapping = { page = "pages" }
"#;

const SCHEDULE: &str = r#"
[[audience]]
name = "VIP"
source = "shop"
query = "SELECT id FROM users"
"#;

/// A whole `audience-sync.toml`.
#[track_caller]
fn check_main(main: &str, expected: &str) {
    Project::new(main, SCHEDULE).check(expected);
}

/// Settings of `[destination.main]`, from line 2 on.
#[track_caller]
fn check_destination(settings: &str, expected: &str) {
    let main =
        format!("[destination.main]\n{settings}\n[destination.main.mapping]\n\"*\" = \"all\"\n");
    Project::new(&main, "").check(expected);
}

/// Rows of `[destination.main.mapping]`, from line 2 on.
#[track_caller]
fn check_mapping(rows: &str, expected: &str) {
    let main = format!(
        "[destination.main.mapping]\n{rows}\n[destination.main]\ndirectory = \"delivered\"\n[source.shop]\nsqlite = \"shop.sqlite\"\n"
    );
    Project::new(&main, SCHEDULE).check(expected);
}

/// A whole schedule.
#[track_caller]
fn check_schedule(schedule: &str, expected: &str) {
    Project::new(MAIN, schedule).check(expected);
}

/// Settings of an audience named VIP, from line 5 on.
#[track_caller]
fn check_audience(settings: &str, expected: &str) {
    check_schedule(
        &format!(
            "[[audience]]\nname = \"VIP\"\nsource = \"shop\"\nquery = \"SELECT 1\"\n{settings}"
        ),
        expected,
    );
}

#[test]
fn the_example_of_the_contract_loads() {
    let main = r#"
        snapshot  = "snapshot.sqlite"
        schedules = "schedules"
        space_id  = "spa_x"

        [source.shop]
        sqlite = "shop.sqlite"

        [destination.main]
        region       = "eu-central-1"
        role_address = "arn:aws:iam::874699288871:role/example-role"
        secret_id    = { env = "AUDIENCE_SYNC_SECRET_ID" }
        endpoint_url     = "http://127.0.0.1:4566"
        sts_endpoint_url = "https://sts.example.com"
        api      = "put_record"
        pack     = true
        match    = "all"
        quota    = { mib_per_second = 5, records_per_second = 500000, requests_per_second = 2000 }
        price_per_gb = 0.035

        [destination.main.mapping]
        "User Registered" = "new_users"
        page              = ["web_pages", "pages"]
        identify          = "audience_memberships"
        "*"               = "everything"
    "#;
    let schedule = r#"
        cron     = "0 */2 * * *"
        timezone = "Europe/Berlin"

        [[computed_trait]]
        name   = "Total Revenue 180 Days"
        source = "shop"
        query  = "SELECT user_id, sum(total) AS value FROM orders GROUP BY user_id"
        id     = "trait_1"
        guard  = false

        [[audience]]
        name   = "Order Completed Last 30days"
        source = "shop"
        query  = """
SELECT DISTINCT user_id FROM orders"""
        key          = "recent_orders"
        destinations = ["main"]
        guard        = { max_removed_percent = 12.5, allow_empty = true, max_added_percent = 150, max_changed_percent = 5 }
        traits       = ["email"]
        refresh      = true
    "#;
    let project = Project::new(main, schedule);
    let root = &project.0;
    let config = project.load().unwrap();

    assert_eq!(config.path, root.join("audience-sync.toml"));
    assert_eq!(config.root, *root);
    assert_eq!(config.snapshot, root.join("snapshot.sqlite"));
    assert_eq!(config.space_id.as_deref(), Some("spa_x"));
    let shop = SourceName::new("shop");
    let path = root.join("shop.sqlite");
    assert_eq!(
        config.sources,
        BTreeMap::from([(
            shop.clone(),
            Source::Sqlite(Sqlite {
                name: shop.clone(),
                path
            })
        )])
    );

    let [destination] = config.destinations.values().collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!(destination.name, DestinationName::new("main"));
    assert!(destination.pack);
    assert_eq!(destination.mapping.matching, Match::All);
    let lefts: Vec<_> = destination
        .mapping
        .rows
        .iter()
        .map(|(left, _)| left.clone())
        .collect();
    let written = ["User Registered", "page", "identify", "*"].map(crate::mapping::Pattern::parse);
    assert_eq!(lefts, written, "rows stay in the order of the file");
    let streams = destination.mapping.streams(CallType::Page, None);
    assert_eq!(
        streams.iter().map(StreamName::as_str).collect::<Vec<_>>(),
        ["web_pages", "pages", "everything"]
    );
    let DestinationKind::Firehose(aws) = &destination.kind else {
        panic!()
    };
    assert_eq!(aws.region.as_str(), "eu-central-1");
    assert_eq!(aws.role.as_ref().unwrap().account(), "874699288871");
    assert_eq!(
        aws.secret.as_ref().unwrap().from,
        SecretSource::Env("AUDIENCE_SYNC_SECRET_ID".into())
    );
    assert_eq!(
        aws.sts_endpoint_url.as_deref(),
        Some("https://sts.example.com")
    );
    assert!(aws.is_loopback());
    assert_eq!(aws.api, Api::PutRecord);
    assert_eq!(
        aws.quota,
        Some(Quota {
            mib_per_second: Some(5.0),
            records_per_second: Some(500_000),
            requests_per_second: Some(2000)
        })
    );
    assert_eq!(aws.price_per_gb, Some(0.035));

    let [schedule] = &config.schedules[..] else {
        panic!()
    };
    assert_eq!(schedule.name, "daily");
    assert_eq!(schedule.path, root.join("schedules/daily.toml"));
    assert_eq!(schedule.cron.as_ref().unwrap().as_str(), "0 */2 * * *");
    assert_eq!(schedule.timezone, chrono_tz::Tz::Europe__Berlin);
    let [revenue, recent] = &config.audiences().collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!(revenue.audience.class, Class::Trait);
    assert_eq!(revenue.audience.key.as_str(), "total_revenue_180_days");
    assert!(!revenue.audience.key_is_explicit);
    assert_eq!(revenue.audience.id.as_str(), "trait_1");
    assert_eq!(revenue.audience.guard, None);
    assert_eq!(
        revenue.audience.destinations,
        [DestinationName::new("main")]
    );
    assert_eq!(recent.schedule, "daily");
    assert_eq!(recent.audience.class, Class::Audience);
    assert_eq!(recent.audience.name, "Order Completed Last 30days");
    assert_eq!(recent.audience.key.as_str(), "recent_orders");
    assert!(recent.audience.key_is_explicit);
    assert_eq!(recent.audience.id.as_str(), "recent_orders");
    assert_eq!(recent.audience.source, shop);
    assert_eq!(recent.audience.query, "SELECT DISTINCT user_id FROM orders");
    assert_eq!(recent.audience.traits, ["email"]);
    let guard = Guard {
        max_removed_percent: 12.5,
        allow_empty: true,
        max_added_percent: Some(150.0),
        max_changed_percent: Some(5.0),
        ..Guard::default()
    };
    assert_eq!(recent.audience.guard, Some(guard));
    assert!(recent.audience.refresh);
    let file = root.join("schedules/daily.toml");
    assert_eq!(
        recent.at,
        Location {
            file: file.clone(),
            line: 13,
            column: 9
        }
    );
    assert_eq!(
        recent.query_at,
        Location {
            file,
            line: 15,
            column: 9
        }
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let project = Project::new(
        "[source.shop]\nsqlite = \"a/b.sqlite\"\n[destination.main.mapping]\n\"*\" = \"all\"\n",
        SCHEDULE,
    );
    let config = project.load().unwrap();
    assert_eq!(config.snapshot, project.0.join("snapshot.sqlite"));
    assert_eq!(config.space_id, None);
    let destination = &config.destinations[&DestinationName::new("main")];
    assert!(!destination.pack);
    assert_eq!(destination.mapping.matching, Match::First);
    let DestinationKind::Firehose(aws) = &destination.kind else {
        panic!()
    };
    assert_eq!(aws.region, Region::default());
    assert_eq!(aws.api, Api::Auto);
    assert!(
        aws.role.is_none() && aws.secret.is_none() && aws.quota.is_none() && !aws.is_loopback()
    );
    assert!(config.schedules[0].cron.is_none());
    assert_eq!(config.schedules[0].timezone, chrono_tz::Tz::UTC);
    let audience = &config.audiences().next().unwrap().audience;
    assert_eq!(audience.id.as_str(), "vip");
    assert_eq!(audience.guard, Some(Guard::default()));
    assert!(audience.traits.is_empty() && !audience.refresh);
}

#[test]
fn paths_start_from_the_directory_of_the_file_and_absolute_ones_stay() {
    let main = MAIN.replace("shop.sqlite", "/data/shop.sqlite").replacen(
        '\n',
        "snapshot = \"state/s.sqlite\"\nschedules = \"plans\"\n",
        1,
    );
    let project = Project::new(&main, "");
    fs::rename(project.0.join("schedules"), project.0.join("plans")).unwrap();
    let project = project.with("plans/daily.toml", SCHEDULE);
    let config = project.load().unwrap();
    assert_eq!(config.snapshot, project.0.join("state/s.sqlite"));
    assert_eq!(
        config.sources[&SourceName::new("shop")],
        Source::Sqlite(Sqlite {
            name: SourceName::new("shop"),
            path: "/data/shop.sqlite".into()
        })
    );
    let DestinationKind::Directory(directory) =
        &config.destinations[&DestinationName::new("main")].kind
    else {
        panic!()
    };
    assert_eq!(*directory, project.0.join("delivered"));
    // A project that is moved goes on with its streams.
    let place = config.destinations[&DestinationName::new("main")].place(None);
    assert_eq!(place, Ok(Place::directory(Path::new("delivered"))));
    assert_eq!(config.schedules.len(), 1);

    let here = Root::of(Path::new("audience-sync.toml"));
    assert_eq!(here.0, Path::new("."));
    assert_eq!(here.join(Path::new("schedules")), Path::new("schedules"));
}

#[test]
fn schedules_are_sorted_and_hidden_or_other_files_are_left_out() {
    let other = SCHEDULE.replace("VIP", "Other");
    let project = Project::new(MAIN, SCHEDULE)
        .with("schedules/a.toml", other)
        .with("schedules/.daily.toml", "broken")
        .with("schedules/daily.toml~", "broken")
        .with("schedules/README.md", "broken");
    let config = project.load().unwrap();
    let names: Vec<_> = config
        .schedules
        .iter()
        .map(|schedule| schedule.name.as_str())
        .collect();
    assert_eq!(names, ["a", "daily"]);
}

#[test]
fn a_project_without_a_schedule_or_a_source_can_still_send() {
    let project = Project::empty().with(
        "audience-sync.toml",
        "[destination.main.mapping]\n\"*\" = \"all\"\n",
    );
    let config = project.load().unwrap();
    assert_eq!((config.schedules.len(), config.sources.len()), (0, 0));
}

#[test]
fn a_mark_in_front_of_the_file_is_ignored() {
    let project = Project::new(&format!("\u{feff}{MAIN}"), SCHEDULE);
    assert!(project.load().is_ok());
    Project::new("\u{feff}x = 1", SCHEDULE).check("unknown key `x`\n  --> audience-sync.toml:1:1\n\nhint: known: `snapshot`, `schedules`, `space_id`, `history`, `deliver_for`, `source`, `destination`");
}

#[test]
fn a_length_of_time_is_written_with_its_unit() {
    let load = |text: &str| Project::new(&format!("{text}\n{MAIN}"), SCHEDULE).load();
    assert_eq!(load("").unwrap().deliver_for, None);
    let hour = Duration::from_secs(3_600);
    assert_eq!(
        load("deliver_for = \"1h\"").unwrap().deliver_for,
        Some(hour)
    );
    assert_eq!(load("history = \"1h\"").unwrap().history, hour);
    let check = |text: &str, expected: &str| {
        Project::new(&format!("{text}\n{MAIN}"), SCHEDULE).check(expected);
    };
    check(
        "deliver_for = \"soon\"",
        "`deliver_for` is not a length of time: `soon`\n  --> audience-sync.toml:1:15\n\nhint: write it like \"1h\" or \"12h\"",
    );
    check(
        "deliver_for = \"0s\"",
        "`deliver_for` must be longer than no time at all\n  --> audience-sync.toml:1:15\n\nhint: leave it out to deliver for as long as it takes",
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    Project::empty().check("there is no file audience-sync.toml\n\nhint: `audience-sync init` makes one, and `--config PATH` names another");
    let directory = Project::empty();
    fs::create_dir(directory.0.join("audience-sync.toml")).unwrap();
    directory.check("audience-sync.toml is a directory and not a file");
    Project::empty().with("audience-sync.toml", b"# \xc3\xa9\n# \xff").check("audience-sync.toml is not UTF-8\n  --> audience-sync.toml:2:3\n\nhint: save it as UTF-8");
    Project::empty()
        .with("audience-sync.toml", b"\xff\xfea\0")
        .check("audience-sync.toml is UTF-16\n\nhint: save it as UTF-8");
    let directory = Project::empty().with("audience-sync.toml", MAIN);
    fs::create_dir(directory.0.join("schedules/daily.toml")).unwrap();
    directory.check("schedules/daily.toml is a directory and not a file");
    let missing = Project::empty().with("audience-sync.toml", MAIN);
    fs::remove_dir(missing.0.join("schedules")).unwrap();
    missing.check("there is no directory schedules for the schedules\n\nhint: make the directory and put a file for each schedule there, or set schedules = \"PATH\"");
    Project::empty().with("audience-sync.toml", format!("schedules = \"plans\"\n{MAIN}")).check("there is no directory plans for the schedules\n  --> audience-sync.toml:1:1\n\nhint: make the directory and put a file for each schedule there, or set schedules = \"PATH\"");
    Project::empty().with("audience-sync.toml", format!("schedules = \"audience-sync.toml\"\n{MAIN}")).check("audience-sync.toml is not a directory, as the schedules need\n  --> audience-sync.toml:1:1\n\nhint: make the directory and put a file for each schedule there, or set schedules = \"PATH\"");
}

#[test]
fn what_is_not_toml_says_where() {
    check_main(
        "x",
        "not valid TOML: key with no value, expected `=`\n  --> audience-sync.toml:1:2\n\nhint: a line is `key = value`, and a key with spaces stands in double quotes",
    );
    check_main(
        "x = ",
        "not valid TOML: string values must be quoted, expected literal string\n  --> audience-sync.toml:1:5\n\nhint: texts stand in double quotes",
    );
    check_main(
        "User Registered = \"x\"",
        "not valid TOML: key with no value, expected `=`\n  --> audience-sync.toml:1:6\n\nhint: a line is `key = value`, and a key with spaces stands in double quotes",
    );
    check_main(
        "snapshot = snapshot.sqlite",
        "not valid TOML: string values must be quoted, expected literal string\n  --> audience-sync.toml:1:12\n\nhint: texts stand in double quotes",
    );
    check_main(
        "snapshot = \"a\"\nsnapshot = \"b\"",
        "not valid TOML: duplicate key\n  --> audience-sync.toml:2:1",
    );
    check_main(
        "[source.a]\n[source.a]",
        "not valid TOML: duplicate key\n  --> audience-sync.toml:2:9",
    );
    check_main(
        "[source.a",
        "not valid TOML: unclosed table, expected `]`\n  --> audience-sync.toml:1:10",
    );
    check_main(
        "x = \"ü",
        "not valid TOML: invalid basic string, expected `\"`\n  --> audience-sync.toml:1:7",
    );
    check_main(
        "\0",
        "not valid TOML: key with no value, expected `=`\n  --> audience-sync.toml:1:2\n\nhint: a line is `key = value`, and a key with spaces stands in double quotes",
    );
    check_main(
        &format!("x = {}", "[".repeat(10_000)),
        "not valid TOML: cannot recurse further; max recursion depth met\n  --> audience-sync.toml:1:85",
    );
}

#[test]
fn a_key_that_nobody_knows_is_named_with_its_table() {
    check_main(
        "snapshots = \"x\"",
        "unknown key `snapshots`\n  --> audience-sync.toml:1:1\n\nhint: did you mean `snapshot`?",
    );
    check_main(
        "secret_id = \"hunter2\"",
        "unknown key `secret_id`\n  --> audience-sync.toml:1:1\n\nhint: known: `snapshot`, `schedules`, `space_id`, `history`, `deliver_for`, `source`, `destination`",
    );
    check_main(
        "[source.shop]\nsqlite = \"x\"\nquery = 1",
        "unknown key `query` in [source.shop]\n  --> audience-sync.toml:3:1\n\nhint: it stands under an audience, in a schedule",
    );
    check_destination(
        "regoin = \"us-west-2\"",
        "unknown key `regoin` in [destination.main]\n  --> audience-sync.toml:2:1\n\nhint: did you mean `region`?",
    );
    check_destination(
        "completely_else = 1",
        "unknown key `completely_else` in [destination.main]\n  --> audience-sync.toml:2:1\n\nhint: known: `directory`, `mapping`, `match`, `pack`, `region`, `role_address`, `secret_id`, `endpoint_url`, `sts_endpoint_url`, `api`, `quota`, `price_per_gb`",
    );
    check_destination(
        "quota = { mib = 1 }",
        "unknown key `mib` in `quota` in [destination.main]\n  --> audience-sync.toml:2:11\n\nhint: known: `mib_per_second`, `records_per_second`, `requests_per_second`",
    );
    check_main(
        "[destination.\"my main\"]\nregoin = 1",
        "unknown key `regoin` in [destination.\"my main\"]\n  --> audience-sync.toml:2:1\n\nhint: did you mean `region`?",
    );
    check_main(
        "[destination.main]\n\"a\\nb\" = 1",
        "unknown key `a\\nb` in [destination.main]\n  --> audience-sync.toml:2:1\n\nhint: known: `directory`, `mapping`, `match`, `pack`, `region`, `role_address`, `secret_id`, `endpoint_url`, `sts_endpoint_url`, `api`, `quota`, `price_per_gb`",
    );
    check_schedule(
        "crom = \"* * * * *\"",
        "unknown key `crom`\n  --> schedules/daily.toml:1:1\n\nhint: did you mean `cron`?",
    );
    check_audience(
        "querry = \"x\"",
        "unknown key `querry` in [[audience]]\n  --> schedules/daily.toml:5:1\n\nhint: did you mean `query`?",
    );
    check_audience(
        "guard = { max_removed = 3 }",
        "unknown key `max_removed` in `guard` in [[audience]]\n  --> schedules/daily.toml:5:11\n\nhint: did you mean `min_removed`?",
    );
    check_schedule(
        "[[computed_trait]]\nnme = 1",
        "unknown key `nme` in [[computed_trait]]\n  --> schedules/daily.toml:2:1\n\nhint: did you mean `name`?",
    );
}

#[test]
fn a_value_of_another_type_is_not_taken() {
    check_main(
        "snapshot = 1",
        "`snapshot` must be a string, not an integer\n  --> audience-sync.toml:1:12",
    );
    check_main(
        "snapshot = \"\"",
        "`snapshot` must not be empty\n  --> audience-sync.toml:1:12",
    );
    check_main(
        "snapshot = \"a\\u0000b\"",
        "`snapshot` must not hold a NUL\n  --> audience-sync.toml:1:12",
    );
    check_main(
        "space_id = \" \"",
        "`space_id` must not be empty\n  --> audience-sync.toml:1:12",
    );
    check_main(
        "source = 1",
        "`source` must be a table, not an integer\n  --> audience-sync.toml:1:10",
    );
    check_main(
        "[source]\nshop = \"shop.sqlite\"",
        "`shop` in [source] must be a table, not a string\n  --> audience-sync.toml:2:8\n\nhint: settings stand under [source.NAME], where the name is yours",
    );
    check_main(
        "[source.\"\"]\nsqlite = \"x\"",
        "a source has an empty name\n  --> audience-sync.toml:1:9\n\nhint: write [source.NAME]",
    );
    check_main(
        "[[source]]\nsqlite = \"x\"",
        "`source` must be a table, not an array\n  --> audience-sync.toml:1:1",
    );
    check_main(
        "[source.shop]",
        "`sqlite`, `files`, `url` or `adbc` is missing in [source.shop]\n  --> audience-sync.toml:1:9\n\nhint: sqlite = \"PATH\" names a database, files = \"PATTERN\" one or several exports, url = \"https://...\" a server, adbc = \"DRIVER\" a warehouse",
    );
    check_main(
        "[source.shop]\nsqlite = \"x\"\nfiles = \"y\"",
        "[source.shop] has both `sqlite` and `files`\n  --> audience-sync.toml:1:9\n\nhint: make two sources of it",
    );
    check_main(
        "[source.shop]\nfiles = \"x\"\nformat = \"xlsx\"",
        "`format` in [source.shop] is an unknown format: `xlsx`\n  --> audience-sync.toml:3:10\n\nhint: known: `csv`, `tsv`, `jsonl`, `ndjson`, `parquet`",
    );
    check_main(
        "[source.shop]\nfiles = \"x\"\nformat = \"parquet\"\nheader = false",
        "`header` in [source.shop] is of CSV, and `format` is something else\n  --> audience-sync.toml:4:10\n\nhint: remove one of the two",
    );
    check_main(
        "[source.shop]\nfiles = \"x\"\ndelimiter = \"||\"",
        "`delimiter` in [source.shop] must be one ASCII character\n  --> audience-sync.toml:3:13\n\nhint: write it like \";\", or \"\\t\" for a tab",
    );
    check_main(
        "[source.shop]\nsqlite = \"x\"\ndelimiter = \";\"",
        "unknown key `delimiter` in [source.shop]\n  --> audience-sync.toml:3:1\n\nhint: known: `sqlite`",
    );
    check_main(
        "[source.shop]\nsqlite = []",
        "`sqlite` in [source.shop] must be a string, not an array\n  --> audience-sync.toml:2:10",
    );
    check_main(
        "destination = 1979-05-27",
        "`destination` must be a table, not a datetime\n  --> audience-sync.toml:1:15",
    );
    check_main(
        "",
        "audience-sync.toml has no destination\n  --> audience-sync.toml:1:1\n\nhint: add [destination.main] and [destination.main.mapping]; `audience-sync init` shows how",
    );
    check_main(
        "[destination]",
        "audience-sync.toml has no destination\n  --> audience-sync.toml:1:1\n\nhint: add [destination.main] and [destination.main.mapping]; `audience-sync init` shows how",
    );
    check_destination(
        "pack = \"yes\"",
        "`pack` in [destination.main] must be true or false, not a string\n  --> audience-sync.toml:2:8",
    );
    check_destination(
        "region = 1.5",
        "`region` in [destination.main] must be a string, not a float\n  --> audience-sync.toml:2:10",
    );
}

/// Settings of `[source.shop]`, a server, from line 3 on.
#[track_caller]
fn check_server(settings: &str, expected: &str) {
    check_main(
        &format!("[source.shop]\nurl = \"https://x/\"\n{settings}"),
        expected,
    );
}

#[test]
fn settings_of_a_server_are_checked() {
    let check_url = |url: &str, expected: &str| {
        let expected = format!("`url` in [source.shop] {expected}");
        check_main(&format!("[source.shop]\nurl = \"{url}\""), &expected);
    };
    let at = "\n  --> audience-sync.toml:2:7\n\nhint:";
    check_url(
        "https://reader:hunter2@x/",
        &format!(
            "must be an http or https address with a host, and without a user or password{at} one looks like https://crm.example.com/members; a password goes into `headers`"
        ),
    );
    check_url(
        "http://crm.example.com/",
        &format!(
            "must be https: plain http is for localhost, 127.0.0.1 and [::1]{at} what others can read on its way they can change, too"
        ),
    );
    check_url(
        "https://x/{name}",
        &format!(
            "has braces around something else than `key` or `id`{at} {{key}} and {{id}} are those of the audience; a brace itself is written %7B or %7D"
        ),
    );
    check_server(
        "headers = { Authorization = \"Bearer hunter2\" }",
        "`Authorization` in `headers` in [source.shop] must not be written inline\n  --> audience-sync.toml:3:29\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_server(
        "headers = { Host = \"y\" }",
        "`Host` in `headers` in [source.shop] is a header that audience-sync sets itself\n  --> audience-sync.toml:3:20",
    );
    check_server(
        "headers = { \"a b\" = \"y\" }",
        "`a b` in `headers` in [source.shop] is no name of a header\n  --> audience-sync.toml:3:21",
    );
    check_server(
        "headers = { Accept = \"y\", accept = \"z\" }",
        "`accept` in `headers` in [source.shop] is there twice\n  --> audience-sync.toml:3:36\n\nhint: headers ignore case",
    );
    check_server(
        "format = \"parquet\"",
        "`format` in [source.shop] is an unknown format: `parquet`\n  --> audience-sync.toml:3:10\n\nhint: known: `json`, `jsonl`, `ndjson`, `csv`, `tsv`",
    );
    check_server(
        "items = \"data\"",
        "`items` in [source.shop] is no JSON pointer\n  --> audience-sync.toml:3:9\n\nhint: one looks like /paging/next: it begins with a slash, and ~1 stands for a slash in a name",
    );
    check_server(
        "total = \"header:\"",
        "`total` in [source.shop] names no header\n  --> audience-sync.toml:3:9\n\nhint: it looks like header:X-Total-Count",
    );
    check_server(
        "format = \"csv\"\nnext = \"/next\"",
        "`next` in [source.shop] points into JSON documents, and `format` is something else\n  --> audience-sync.toml:4:8\n\nhint: further pages are found by a Link header, and a total = \"header:NAME\"",
    );
    check_server(
        "cursor_parameter = \"cursor\"",
        "`cursor_parameter` in [source.shop] has no cursor to take\n  --> audience-sync.toml:3:20\n\nhint: add next = \"/...\", which points to the cursor of the next page",
    );
    check_server(
        "items = \"/data\"\ntotal = \"/data/0/total\"",
        "`total` in [source.shop] points into the members\n  --> audience-sync.toml:4:9\n\nhint: items = \"/...\" points to their list, beside which it stands",
    );
    check_server(
        "timeout = \"0s\"",
        "`timeout` in [source.shop] must be longer than no time at all\n  --> audience-sync.toml:3:11\n\nhint: leave it out for a minute",
    );
    let audience = |more: &str| {
        let main = MAIN.replace("sqlite = \"shop.sqlite\"", "url = \"https://x/\"");
        Project::new(
            &main,
            &format!("[[audience]]\nname = \"VIP\"\nsource = \"shop\"\n{more}"),
        )
    };
    audience("query = \"SELECT 1\"").check(
        "`query` in [[audience]] does not fit source `shop`\n  --> schedules/daily.toml:4:9\n\nhint: a server is asked by its `url`; `columns` and `traits` say what is used of its answers",
    );
    audience("url = \"https://y/\"").check(
        "`url` in [[audience]] leads to another server than its source, which has the headers\n  --> schedules/daily.toml:4:7\n\nhint: make another source of it",
    );
    audience("expect = { max_age = \"6h\" }").check(
        "`max_age` in `expect` in [[audience]] does not fit a server, which tells no time\n  --> schedules/daily.toml:4:22\n\nhint: leave it out to take the source however old it is",
    );
}

#[test]
fn settings_of_aws_are_checked() {
    check_destination(
        "region = \"us-west\"",
        "`region` in [destination.main] is not the code of a region: `us-west`\n  --> audience-sync.toml:2:10\n\nhint: a region is written like us-west-2",
    );
    check_destination(
        "role_address = \"arn:aws:iam::1:role/x\"\nsecret_id = { env = \"X\" }",
        "`role_address` in [destination.main] is not the ARN of an IAM role\n  --> audience-sync.toml:2:16\n\nhint: one looks like arn:aws:iam::874699288871:role/example-role",
    );
    check_destination(
        "role_address = \"arn:aws:iam::874699288871:role/x\"",
        "`role_address` in [destination.main] needs a `secret_id`, the role's external ID\n  --> audience-sync.toml:2:16\n\nhint: add secret_id = { env = \"AUDIENCE_SYNC_SECRET_ID\" }",
    );
    check_destination(
        "endpoint_url = \"http://localstack:4566\"",
        "`endpoint_url` in [destination.main] is on another machine, so https is required\n  --> audience-sync.toml:2:16\n\nhint: plain http is for localhost, 127.0.0.1 and [::1]",
    );
    check_destination(
        "sts_endpoint_url = \"127.0.0.1:4566\"",
        "`sts_endpoint_url` in [destination.main] must be an http or https address with a host, and without a user or password\n  --> audience-sync.toml:2:20\n\nhint: one looks like http://127.0.0.1:4566",
    );
    check_destination(
        "api = \"put_records\"",
        "`api` in [destination.main] is not a way to call Firehose: `put_records`\n  --> audience-sync.toml:2:7\n\nhint: did you mean `put_record`?",
    );
    check_destination(
        "quota = 5",
        "`quota` in [destination.main] must be a table, not an integer\n  --> audience-sync.toml:2:9",
    );
    check_destination(
        "quota = { mib_per_second = 0 }",
        "`mib_per_second` in `quota` in [destination.main] must be a finite number over 0\n  --> audience-sync.toml:2:28",
    );
    check_destination(
        "quota = { mib_per_second = inf }",
        "`mib_per_second` in `quota` in [destination.main] must be a finite number over 0\n  --> audience-sync.toml:2:28",
    );
    check_destination(
        "quota = { mib_per_second = \"5\" }",
        "`mib_per_second` in `quota` in [destination.main] must be a number, not a string\n  --> audience-sync.toml:2:28",
    );
    check_destination(
        "quota = { records_per_second = -1 }",
        "`records_per_second` in `quota` in [destination.main] must be a whole number over 0\n  --> audience-sync.toml:2:32",
    );
    check_destination(
        "quota = { requests_per_second = 1.5 }",
        "`requests_per_second` in `quota` in [destination.main] must be an integer, not a float\n  --> audience-sync.toml:2:33",
    );
    for price in ["-0.01", "nan", "inf"] {
        check_destination(
            &format!("price_per_gb = {price}"),
            "`price_per_gb` in [destination.main] must be a finite number, 0 or more\n  --> audience-sync.toml:2:16\n\nhint: it is in dollars: price_per_gb = 0.029",
        );
    }
    check_destination(
        "price_per_gb = \"$0.029\"",
        "`price_per_gb` in [destination.main] must be a number, not a string\n  --> audience-sync.toml:2:16",
    );
    check_destination(
        "directory = \"delivered\"\nprice_per_gb = 0",
        "`price_per_gb` in [destination.main] is for AWS, but `directory` makes a destination of files\n  --> audience-sync.toml:3:1\n\nhint: remove one of the two",
    );
    check_destination(
        "directory = \"delivered\"\nregion = \"us-west-2\"",
        "`region` in [destination.main] is for AWS, but `directory` makes a destination of files\n  --> audience-sync.toml:3:1\n\nhint: remove one of the two",
    );
    check_destination(
        "directory = \"delivered\"\nsecret_id = \"hunter2\"",
        "`secret_id` in [destination.main] is for AWS, but `directory` makes a destination of files\n  --> audience-sync.toml:3:1\n\nhint: remove one of the two",
    );
}

#[test]
fn mappings_are_checked() {
    check_main(
        "[destination.main]",
        "[destination.main.mapping] is missing\n  --> audience-sync.toml:1:14\n\nhint: add a row such as \"*\" = \"stream\"",
    );
    check_main(
        "[destination.\"a b\".mapping]",
        "[destination.\"a b\".mapping] has no row\n  --> audience-sync.toml:1:20\n\nhint: add a row such as \"*\" = \"stream\"",
    );
    check_mapping(
        "\"\" = \"s\"",
        "[destination.main.mapping] has a row without an event\n  --> audience-sync.toml:2:1\n\nhint: the left side is an event name, an event type or \"*\"",
    );
    check_mapping(
        "\"track:\" = \"s\"",
        "[destination.main.mapping] has a row without an event\n  --> audience-sync.toml:2:1\n\nhint: the left side is an event name, an event type or \"*\"",
    );
    check_mapping(
        "Page = \"s\"\npage = \"t\"",
        "`page` in [destination.main.mapping] is there already\n  --> audience-sync.toml:3:1\n\nhint: the left side ignores case; list several streams in one row",
    );
    check_mapping(
        "\"Track:x\" = \"s\"\nx = \"t\"",
        "`x` in [destination.main.mapping] is there already\n  --> audience-sync.toml:3:1\n\nhint: the left side ignores case; list several streams in one row",
    );
    check_mapping(
        "page = []",
        "`page` in [destination.main.mapping] must name a delivery stream\n  --> audience-sync.toml:2:8",
    );
    check_mapping(
        "page = [\"a\", \"b\", \"a\"]",
        "`page` in [destination.main.mapping] lists `a` twice\n  --> audience-sync.toml:2:19",
    );
    check_mapping(
        "page = [\"a\", 1]",
        "`page` in [destination.main.mapping] must be a string, not an integer\n  --> audience-sync.toml:2:14",
    );
    check_mapping(
        "page = \"web pages\"",
        "`page` in [destination.main.mapping] is no name that a delivery stream can have: `web pages`\n  --> audience-sync.toml:2:8\n\nhint: a name is 1 to 64 of a-z A-Z 0-9 _ . -",
    );
    check_mapping(
        "page = [\"\"]",
        "`page` in [destination.main.mapping] must not be empty\n  --> audience-sync.toml:2:9",
    );
    check_mapping(
        "Order.Completed = \"s\"",
        "`Order` in [destination.main.mapping] must be a delivery stream or a list of them, not a table\n  --> audience-sync.toml:2:1\n\nhint: a name with a dot or a space stands in double quotes",
    );
    check_destination(
        "match = \"frist\"",
        "`match` in [destination.main] must be \"first\" or \"all\", not `frist`\n  --> audience-sync.toml:2:9\n\nhint: did you mean `first`?",
    );
    check_mapping(
        "page = \"pages\"",
        "no row of the mapping of [destination.main] fits an identify, so nothing of `VIP` would arrive\n  --> audience-sync.toml:3:14\n\nhint: add a row identify = \"stream\" to the mapping",
    );
}

#[test]
fn schedules_are_checked() {
    check_schedule(
        "",
        "schedules/daily.toml has no audience and no computed trait\n  --> schedules/daily.toml:1:1\n\nhint: add an [[audience]] with a name, a source and a query, or remove the file",
    );
    check_schedule(
        "audience = []",
        "schedules/daily.toml has no audience and no computed trait\n  --> schedules/daily.toml:1:1\n\nhint: add an [[audience]] with a name, a source and a query, or remove the file",
    );
    check_schedule(
        "[audience]\nname = \"x\"",
        "`audience` must be a list of tables, not a table\n  --> schedules/daily.toml:1:1\n\nhint: each one begins with a line [[audience]], in two brackets",
    );
    check_schedule(
        "audience = [1]",
        "`audience` must be a table, not an integer\n  --> schedules/daily.toml:1:13\n\nhint: each one begins with a line [[audience]], in two brackets",
    );
    check_schedule(
        "cron = \"0 25 * * *\"",
        "`cron` has a wrong hour\n  --> schedules/daily.toml:1:8\n\nhint: the form is \"minute hour day-of-month month day-of-week\", such as \"0 */2 * * *\"; a sixth field in front is the second",
    );
    check_schedule(
        "cron = \"@daily\"",
        "`cron` must have 5 or 6 fields, not 1\n  --> schedules/daily.toml:1:8\n\nhint: the form is \"minute hour day-of-month month day-of-week\", such as \"0 */2 * * *\"; a sixth field in front is the second",
    );
    check_schedule(
        "cron = \"0 0 31 2 *\"",
        "`cron` would never run, since no year has such a day\n  --> schedules/daily.toml:1:8\n\nhint: the form is \"minute hour day-of-month month day-of-week\", such as \"0 */2 * * *\"; a sixth field in front is the second",
    );
    check_schedule(
        "cron = 5",
        "`cron` must be a string, not an integer\n  --> schedules/daily.toml:1:8",
    );
    check_schedule(
        "timezone = \"Europe/Berln\"",
        "`timezone` is not a time zone: `Europe/Berln`\n  --> schedules/daily.toml:1:12\n\nhint: did you mean `Europe/Berlin`?",
    );
    check_schedule(
        "timezone = \"Mars\"",
        "`timezone` is not a time zone: `Mars`\n  --> schedules/daily.toml:1:12\n\nhint: a time zone has an IANA name, such as Europe/Berlin",
    );
}

#[test]
fn audiences_are_checked() {
    check_schedule(
        "[[audience]]",
        "`name` is missing in [[audience]]\n  --> schedules/daily.toml:1:1",
    );
    check_schedule(
        "[[audience]]\nname = \"x\"",
        "`source` is missing in [[audience]]\n  --> schedules/daily.toml:1:1",
    );
    check_schedule(
        "[[audience]]\nname = \"x\"\nquery = \"q\"",
        "`source` is missing in [[audience]]\n  --> schedules/daily.toml:1:1",
    );
    check_schedule(
        "[[audience]]\nname = \"\"\nsource = \"shop\"\nquery = \"q\"",
        "`name` in [[audience]] must not be empty\n  --> schedules/daily.toml:2:8",
    );
    check_schedule(
        "[[audience]]\nname = \"!?\"\nsource = \"shop\"\nquery = \"q\"",
        "`name` in [[audience]] has no letter or digit to make a key of\n  --> schedules/daily.toml:2:8\n\nhint: add a key = \"...\", the trait that carries the membership",
    );
    check_schedule(
        "[[audience]]\nname = \"x\"\nsource = \"shop\"\nquery = \" \"",
        "`query` in [[audience]] must not be empty\n  --> schedules/daily.toml:4:9",
    );
    check_schedule(
        "[[audience]]\nname = \"x\"\nsource = \"shpo\"\nquery = \"q\"",
        "`source` in [[audience]] names an unknown source: `shpo`\n  --> schedules/daily.toml:3:10\n\nhint: did you mean `shop`?",
    );
    check_audience(
        "key = \"\"",
        "`key` in [[audience]] must not be empty\n  --> schedules/daily.toml:5:7",
    );
    check_audience(
        "key = \"a b\"",
        "`key` in [[audience]] must not hold spaces or control characters\n  --> schedules/daily.toml:5:7\n\nhint: a key is written like order_completed_last_30days",
    );
    check_audience(
        "id = \"a\\tb\"",
        "`id` in [[audience]] must not hold control characters\n  --> schedules/daily.toml:5:6",
    );
    check_audience(
        "destinations = []",
        "`destinations` in [[audience]] must name a destination\n  --> schedules/daily.toml:5:16\n\nhint: known: `main`",
    );
    check_audience(
        "destinations = [\"main\", \"main\"]",
        "`destinations` in [[audience]] lists `main` twice\n  --> schedules/daily.toml:5:25",
    );
    check_audience(
        "destinations = [\"mian\"]",
        "`destinations` in [[audience]] names an unknown destination: `mian`\n  --> schedules/daily.toml:5:17\n\nhint: did you mean `main`?",
    );
    check_audience(
        "destinations = \"main\"",
        "`destinations` in [[audience]] must be a list of strings, not a string\n  --> schedules/daily.toml:5:16",
    );
    check_audience(
        "guard = true",
        "`guard` in [[audience]] must be false or a table, not true\n  --> schedules/daily.toml:5:9\n\nhint: leave it out for the default guard",
    );
    check_audience(
        "guard = 3",
        "`guard` in [[audience]] must be false or a table, not an integer\n  --> schedules/daily.toml:5:9",
    );
    check_audience(
        "guard = { max_removed_percent = 101 }",
        "`max_removed_percent` in `guard` in [[audience]] must be from 0 to 100\n  --> schedules/daily.toml:5:33",
    );
    check_audience(
        "guard = { max_removed_percent = nan }",
        "`max_removed_percent` in `guard` in [[audience]] must be from 0 to 100\n  --> schedules/daily.toml:5:33",
    );
    check_audience(
        "guard = { min_removed = -1 }",
        "`min_removed` in `guard` in [[audience]] must be a whole number, 0 or more\n  --> schedules/daily.toml:5:25",
    );
    check_audience(
        "guard = { min_removed = 1.5 }",
        "`min_removed` in `guard` in [[audience]] must be an integer, not a float\n  --> schedules/daily.toml:5:25",
    );
    check_audience(
        "guard = { allow_empty = 1 }",
        "`allow_empty` in `guard` in [[audience]] must be true or false, not an integer\n  --> schedules/daily.toml:5:25",
    );
    check_audience(
        "traits = [\"email\", \"email\"]",
        "`traits` in [[audience]] lists `email` twice\n  --> schedules/daily.toml:5:20",
    );
    check_audience(
        "traits = [\"vip\"]",
        "`traits` in [[audience]] lists `vip`, which is the key and sent anyway\n  --> schedules/daily.toml:5:11",
    );
    check_audience(
        "guard = { max_changed_percent = 101 }",
        "`max_changed_percent` in `guard` in [[audience]] must be from 0 to 100\n  --> schedules/daily.toml:5:33",
    );
    check_audience(
        "guard = { max_added_percent = -1 }",
        "`max_added_percent` in `guard` in [[audience]] must be a finite number, 0 or more\n  --> schedules/daily.toml:5:31",
    );
    check_audience(
        "guard = { max_added_percent = inf }",
        "`max_added_percent` in `guard` in [[audience]] must be a finite number, 0 or more\n  --> schedules/daily.toml:5:31",
    );
    check_audience(
        "traits = [\"Vip\"]",
        "`traits` in [[audience]] lists `Vip`, which differs from the key only by case\n  --> schedules/daily.toml:5:11",
    );
    check_audience(
        "traits = [\"email\", \"Email\"]",
        "`traits` in [[audience]] lists `Email` beside `email`, which differs only by case\n  --> schedules/daily.toml:5:20\n\nhint: columns ignore case, so keys and traits in one stream must differ by more; give one of the two another name",
    );
    check_audience(
        "refresh = true",
        "`refresh` in [[audience]] is about `traits`, and there are none\n  --> schedules/daily.toml:5:11\n\nhint: leave it out, or add traits = [\"email\"]",
    );
    check_audience(
        "refresh = 1\ntraits = [\"email\"]",
        "`refresh` in [[audience]] must be true or false, not an integer\n  --> schedules/daily.toml:5:11",
    );
    check_audience(
        "reconcile = \"1h\"",
        "`reconcile` in [[audience]] says how long `changes` is trusted, and there is none\n  --> schedules/daily.toml:5:13\n\nhint: leave it out: without `changes` everyone is read each time",
    );
    check_audience(
        "changes = \"SELECT id, is_member FROM users\"",
        "`changes` in [[audience]] has no `:since`\n  --> schedules/daily.toml:5:11\n\nhint: write `... WHERE changed_at > :since`, which is the time in UTC as CURRENT_TIMESTAMP writes it; a column of seconds is compared with `unixepoch(:since)`",
    );
    check_audience(
        "changes = \" \"",
        "`changes` in [[audience]] must not be empty\n  --> schedules/daily.toml:5:11",
    );
    check_audience(
        "changes = \"SELECT :since\"\nreconcile = \"0s\"",
        "`reconcile` in [[audience]] must be longer than no time at all\n  --> schedules/daily.toml:6:13\n\nhint: leave `changes` out to read everyone each time",
    );
    check_audience(
        "changes = \"SELECT :since\"\nreconcile = \"daily\"",
        "`reconcile` in [[audience]] is not a length of time: `daily`\n  --> schedules/daily.toml:6:13\n\nhint: write it like \"24h\" or \"12h\"",
    );
    check_audience(
        "traits = [\"user_id\"]",
        "`traits` in [[audience]] lists `user_id`, which means something else in a result\n  --> schedules/daily.toml:5:11",
    );
    let expect = |expect: &str, problem: &str| {
        check_schedule(
            &format!(
                "[[audience]]\nname = \"x\"\nsource = \"shop\"\nquery = \"SELECT 1\"\nexpect = {expect}"
            ),
            problem,
        );
    };
    expect(
        "{ min_member = 1 }",
        "unknown key `min_member` in `expect` in [[audience]]\n  --> schedules/daily.toml:5:12\n\nhint: did you mean `min_members`?",
    );
    expect(
        "{ min_members = -1 }",
        "`min_members` in `expect` in [[audience]] must be a whole number, 0 or more\n  --> schedules/daily.toml:5:26",
    );
    expect(
        "{ max_age = \"6h\" }",
        "`max_age` in `expect` in [[audience]] needs to know how old the source is\n  --> schedules/daily.toml:5:22\n\nhint: add updated_at = \"SELECT max(loaded_at) FROM ...\", a time in UTC or seconds since 1970",
    );
    expect(
        "{ updated_at = \"SELECT 1\" }",
        "`updated_at` in `expect` in [[audience]] is a query that tells how old the source is, for `max_age`\n  --> schedules/daily.toml:5:25\n\nhint: add max_age = \"6h\"",
    );
}

#[test]
fn a_change_query_is_trusted_for_a_day_unless_it_says_how_long() {
    let changes = |text: &str| {
        let schedule = format!("{SCHEDULE}changes = \"SELECT :since\"\n{text}");
        let config = Project::new(MAIN, &schedule).load().unwrap();
        let audience = &config.audiences().next().unwrap().audience;
        audience.changes.clone().unwrap()
    };
    assert_eq!(changes("").query, "SELECT :since");
    assert_eq!(changes("").reconcile, Duration::from_secs(24 * 3_600));
    assert_eq!(
        changes("reconcile = \"90m\"").reconcile,
        Duration::from_secs(90 * 60)
    );
    let computed_trait =
        SCHEDULE.replace("audience", "computed_trait") + "changes = \"SELECT :since\"\n";
    Project::new(MAIN, &computed_trait).check("`changes` in [[computed_trait]] is for audiences: the values of a computed trait are read each time\n  --> schedules/daily.toml:6:11\n\nhint: leave it out");
}

#[test]
fn a_source_or_destination_that_is_missing_is_asked_for() {
    Project::new("[destination.main.mapping]\n\"*\" = \"all\"", SCHEDULE).check("`source` in [[audience]] names a source, but none is configured\n  --> schedules/daily.toml:4:10\n\nhint: add [source.NAME] with sqlite = \"PATH\" to audience-sync.toml");
    Project::new(TWO, SCHEDULE).check("`destinations` is missing, and there are several to choose from\n  --> schedules/daily.toml:2:1\n\nhint: add destinations = [\"main\", \"other\"], or some of them");
    let other = format!("{SCHEDULE}destinations = [\"main\", \"other\"]");
    Project::new(TWO, &other).check("no row of the mapping of [destination.other] fits an identify, so nothing of `VIP` would arrive\n  --> audience-sync.toml:7:14\n\nhint: add a row identify = \"stream\" to the mapping");
}

#[test]
fn two_audiences_with_one_key_or_id_are_refused_across_files() {
    let two = |first: &str, second: &str| {
        let first = format!("{SCHEDULE}{first}");
        let second = format!(
            "{}{second}",
            SCHEDULE
                .replace("audience", "computed_trait")
                .replace("VIP", "Other")
        );
        Project::new(MAIN, &first).with("schedules/weekly.toml", second)
    };
    two("", "key = \"vip\"").check("`Other` has the same key as `VIP`: `vip`, which stands at schedules/daily.toml:3:1\n  --> schedules/weekly.toml:3:1\n\nhint: give one of them another `key`");
    two("id = \"a\"", "id = \"a\"").check("`Other` has the same id as `VIP`: `a`, which stands at schedules/daily.toml:3:1\n  --> schedules/weekly.toml:3:1\n\nhint: give one of them another `id`");
    two("", "id = \"vip\"").check("`Other` has the same id as `VIP`: `vip`, which stands at schedules/daily.toml:3:1\n  --> schedules/weekly.toml:3:1\n\nhint: give one of them another `id`");
    assert!(two("", "").load().is_ok());
}

#[test]
fn names_that_would_be_one_column_of_a_stream_are_refused_with_both_places() {
    let main = "[source.shop]\nsqlite = \"shop.sqlite\"\n\
                [destination.main]\ndirectory = \"a\"\nmapping = { identify = [\"x\", \"y\"] }\n\
                [destination.other]\ndirectory = \"b\"\nmapping = { identify = \"x\" }";
    let two = |name: &str, rest: &str| {
        let first = format!("{SCHEDULE}destinations = [\"main\"]\ntraits = [\"email\"]");
        let second = format!(
            "{}{rest}",
            SCHEDULE.replace("\"VIP\"", &format!("{name:?}"))
        );
        Project::new(main, &first).with("schedules/weekly.toml", second)
    };
    let hint = keys::DIFFER;
    let check = |name: &str, rest: &str, columns: &str| {
        let rest = format!("destinations = [\"other\", \"main\"]\n{rest}");
        two(name, &rest).check(&format!(
            "{columns} of `VIP`, which stands at schedules/daily.toml:3:1, are one column downstream\n  --> schedules/weekly.toml:3:1\n\nhint: {hint}"
        ));
    };
    check(
        "Other",
        "key = \"Vip\"",
        "the key `Vip` of `Other` and the key `vip`",
    );
    check(
        "Other",
        "traits = [\"vip\"]",
        "the trait `vip` of `Other` and the key `vip`",
    );
    check(
        "Email",
        "",
        "the key `email` of `Email` and the trait `email`",
    );
    check(
        "Other",
        "traits = [\"EMAIL\"]",
        "the trait `EMAIL` of `Other` and the trait `email`",
    );
    let elsewhere = "destinations = [\"other\"]\nkey = \"Vip\"\ntraits = [\"EMAIL\"]";
    assert!(two("Other", elsewhere).load().is_ok());
    let shared = "destinations = [\"main\"]\ntraits = [\"email\"]";
    assert!(two("Other", shared).load().is_ok());
}

#[test]
fn refresh_is_for_audiences() {
    let schedule = SCHEDULE.replace("audience", "computed_trait") + "refresh = false\n";
    Project::new(MAIN, &schedule).check("`refresh` in [[computed_trait]] is for audiences: a computed trait is sent again whenever its value changes\n  --> schedules/daily.toml:6:11\n\nhint: leave it out");
}

#[test]
fn a_secret_in_the_file_is_refused_and_never_repeated() {
    check_destination(
        "secret_id = \"hunter2\"",
        "`secret_id` in [destination.main] must not be written inline\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = hunter2",
        "not valid TOML: string values must be quoted, expected literal string\n  --> audience-sync.toml:2:13\n\nhint: texts stand in double quotes",
    );
    check_destination(
        "secret_id = \"hunter2",
        "not valid TOML: invalid basic string, expected `\"`\n  --> audience-sync.toml:2:21",
    );
    check_destination(
        "secret_id = 'hunter2\n",
        "not valid TOML: invalid literal string, expected `'`\n  --> audience-sync.toml:2:21",
    );
    check_destination(
        "secret_id = \"\\hunter2\"",
        "not valid TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\\`, `\"`, `x`, `u`, `U`\n  --> audience-sync.toml:2:15",
    );
    check_destination(
        "secret_id = 31337",
        "`secret_id` in [destination.main] must not be written inline\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = [\"hunter2\"]",
        "`secret_id` in [destination.main] must not be written inline\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { env = \"X\", value = \"hunter2\" }",
        "`secret_id` in [destination.main] has an unknown key\n  --> audience-sync.toml:2:26\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { evn = \"hunter2\" }",
        "`secret_id` in [destination.main] has an unknown key\n  --> audience-sync.toml:2:15\n\nhint: did you mean `env`?",
    );
    check_destination(
        "secret_id = { hunter2 = \"x\" }",
        "`secret_id` in [destination.main] has an unknown key\n  --> audience-sync.toml:2:15\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { hunter2 }",
        "not valid TOML: invalid literal string, expected `'`\n  --> audience-sync.toml:2:23",
    );
    check_destination(
        "secret_id.hunter2 = 1",
        "`secret_id` in [destination.main] has an unknown key\n  --> audience-sync.toml:2:11\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = {}",
        "`secret_id` in [destination.main] must have either `env` or `file`\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { env = \"X\", file = \"hunter2\" }",
        "`secret_id` in [destination.main] must have either `env` or `file`\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { env = [\"hunter2\"] }",
        "`secret_id` in [destination.main] must have a string for `env`\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { env = \"$hunter2\" }",
        "`secret_id` in [destination.main] must have the name of an environment variable for `env`\n  --> audience-sync.toml:2:13\n\nhint: such as { env = \"AUDIENCE_SYNC_SECRET_ID\" }",
    );
    check_destination(
        "secret_id = { file = \"\" }",
        "`secret_id` in [destination.main] must have the path of a file for `file`\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "secret_id = { file = \"hunter2\\u0000\" }",
        "`secret_id` in [destination.main] must have the path of a file for `file`\n  --> audience-sync.toml:2:13\n\nhint: write { env = \"NAME\" } or { file = \"PATH\" }",
    );
    check_destination(
        "endpoint_url = \"http://hunter2@localhost\"",
        "`endpoint_url` in [destination.main] must be an http or https address with a host, and without a user or password\n  --> audience-sync.toml:2:16\n\nhint: one looks like http://127.0.0.1:4566",
    );
}

#[test]
fn a_configuration_can_be_printed_and_secrets_are_read_on_demand() {
    let settings =
        "secret_id = { file = \"secret\" }\n[destination.main.mapping]\n\"*\" = \"all\"\n";
    let project = Project::empty()
        .with(
            "audience-sync.toml",
            format!("[destination.main]\n{settings}"),
        )
        .with("secret", "hunter2\n");
    let config = project.load().unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let DestinationKind::Firehose(aws) = &config.destinations[&DestinationName::new("main")].kind
    else {
        panic!()
    };
    let secret = aws.secret.as_ref().unwrap().resolve().unwrap();
    assert_eq!(secret.expose(), "hunter2");
    assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(***) Secret(***)");
}

/// A source of files, from line 1 on, and an audience of it, whose own settings are from line 4 on.
#[track_caller]
fn files(source: &str, audience: &str) -> Project {
    let main = format!(
        "[source.shop]\n{source}\n[destination.main]\ndirectory = \"delivered\"\nmapping = {{ \"*\" = \"all\" }}\n"
    );
    let schedule = format!("[[audience]]\nname = \"VIP\"\nsource = \"shop\"\n{audience}\n");
    Project::new(&main, &schedule)
}

#[test]
fn files_that_can_never_be_read_are_a_mistake() {
    let check =
        |source: &str, audience: &str, expected: &str| files(source, audience).check(expected);
    check(
        "files = \"a[.csv\"",
        "",
        "`files` in [source.shop] is no pattern: invalid range pattern\n  --> audience-sync.toml:2:9\n\nhint: [[] stands for a bracket",
    );
    check(
        "files = \"a.csv\"",
        "files = \"a/**/b.csv\"",
        "`files` in [[audience]] is no pattern: `**` would stand for folders within folders, which are not looked through\n  --> schedules/daily.toml:4:9\n\nhint: `*` stands for the folders of one: a/*/*.csv",
    );
    let way_out = "\n\nhint: add format = \"csv\", \"tsv\", \"jsonl\" or \"parquet\" to the source";
    check(
        "files = \"a.xlsx.gz\"",
        "",
        &format!(
            "`source` in [[audience]] is of files whose ending names no format\n  --> schedules/daily.toml:3:10{way_out}, or let `files` name some"
        ),
    );
    check(
        "files = \"exports\"",
        "files = \"*.xlsx\"",
        &format!(
            "`files` in [[audience]] has an ending that names no format\n  --> schedules/daily.toml:4:9{way_out}"
        ),
    );
    for (source, audience) in [
        ("files = \"exports\"", "files = \"vip.CSV.gz\""),
        ("files = \"exports/*\"", ""),
        ("files = \"exports/a.*\"", ""),
        ("files = \"exports/*.gz\"", ""),
        ("files = \"members\"\nformat = \"csv\"", ""),
    ] {
        files(source, audience).load().unwrap();
    }
}

#[test]
fn what_is_of_csv_is_for_csv() {
    for (setting, column) in [
        ("delimiter = \";\"", 13),
        ("quote = \"'\"", 9),
        ("header = false", 10),
    ] {
        let name = setting.split(' ').next().unwrap();
        files(&format!("files = \"a\"\nformat = \"jsonl\"\n{setting}"), "").check(&format!(
            "`{name}` in [source.shop] is of CSV, and `format` is something else\n  --> audience-sync.toml:4:{column}\n\nhint: remove one of the two"
        ));
        let http = format!("url = \"https://example.com\"\nformat = \"json\"\n{setting}");
        files(&http, "").check(&format!(
            "`{name}` in [source.shop] is of CSV, and `format` is something else\n  --> audience-sync.toml:4:{column}\n\nhint: remove one of the two"
        ));
    }
    for settings in [
        "quote = \";\"\ndelimiter = \";\"",
        "quote = \",\"",
        "quote = \"\\t\"",
    ] {
        files(&format!("files = \"a.csv\"\n{settings}"), "").check(
            "`quote` in [source.shop] is the delimiter, too\n  --> audience-sync.toml:3:9\n\nhint: let one of them be another character",
        );
    }
    files("files = \"a.csv\"\nquote = \",\"\ndelimiter = \";\"", "")
        .load()
        .unwrap();
}

#[test]
fn columns_are_those_of_a_result() {
    files("files = \"a.csv\"\ncolumns = { usr_id = \"id\" }", "").check(
        "`usr_id` in `columns` in [source.shop] is no column that an audience takes\n  --> audience-sync.toml:3:13\n\nhint: did you mean `user_id`?",
    );
    files("files = \"a.csv\"", "traits = [\"email\"]\ncolumns = { Email = \"mail\" }").check(
        "`Email` in `columns` in [[audience]] is no column that it takes\n  --> schedules/daily.toml:5:13\n\nhint: did you mean `email`?",
    );
    files("url = \"https://example.com\"\ncolumns = { plan = \"tier\" }", "").check(
        "`plan` in `columns` in [source.shop] is no column that an audience takes\n  --> audience-sync.toml:3:13\n\nhint: known: `user_id`, `anonymous_id`, `value`",
    );
    // One audience of the source takes it, another one does not.
    let two = "traits = [\"email\"]\n[[audience]]\nname = \"Other\"\nsource = \"shop\"\ncolumns = { value = \"x\" }";
    files(
        "files = \"a.csv\"\ncolumns = { email = \"mail\", anonymous_id = \"x\" }",
        two,
    )
    .load()
    .unwrap();
}

#[test]
fn what_belongs_to_an_audience_is_said_to() {
    for (key, value) in [("expect", "{}"), ("traits", "[]"), ("query", "\"\"")] {
        files(&format!("files = \"a.csv\"\n{key} = {value}"), "").check(&format!(
            "unknown key `{key}` in [source.shop]\n  --> audience-sync.toml:3:1\n\nhint: it stands under an audience, in a schedule"
        ));
    }
}
