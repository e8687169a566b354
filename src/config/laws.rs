//! Whatever a file holds: typed values, or a message that says where.

use std::fs;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::audience::Guard;
use crate::firehose::Api;
use crate::laws::cases;
use crate::mapping::{Match, Pattern, StreamName};

const MAIN: &str = r#"
snapshot = "s.sqlite"
space_id = "spa_x"
history = "30d"
[source.shop]
sqlite = "shop.sqlite"
[destination.main]
region = "eu-central-1"
role_address = "arn:aws:iam::874699288871:role/example-role"
secret_id = { env = "SECRET" }
endpoint_url = "http://127.0.0.1:4566"
api = "put_record"
pack = true
match = "all"
quota = { mib_per_second = 1.5, records_per_second = 1_000 }
price_per_gb = 0.035
[destination.main.mapping]
"User Registered" = ["new", "all"]
"*" = "all"
"#;

const SCHEDULE: &str = r#"
cron = "0 */2 * * *"
timezone = "Europe/Berlin"
[[audience]]
name = "VIP"
source = "shop"
query = "SELECT user_id FROM vips"
id = "aud_1"
key = "vip"
destinations = ["main"]
traits = ["email"]
guard = { max_removed_percent = 5.5, min_removed = 1, allow_empty = true, max_added_percent = 150, max_changed_percent = 50 }
refresh = true
[[computed_trait]]
name = "Spend"
source = "shop"
query = "SELECT user_id, total AS value FROM spend"
guard = false
"#;

/// Loads a project of these two files.
fn load(main: &[u8], schedule: &[u8]) -> (TempDir, Result<Config, ConfigError>) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("schedules")).unwrap();
    fs::write(folder.path().join("audience-sync.toml"), main).unwrap();
    fs::write(folder.path().join("schedules/daily.toml"), schedule).unwrap();
    let config = Config::load(&folder.path().join("audience-sync.toml"));
    (folder, config)
}

/// One slip of the finger: bytes of a text are replaced, from a place on.
type Slip = (prop::sample::Index, usize, Vec<u8>);

fn slips() -> impl Strategy<Value = Vec<Slip>> {
    let put = prop_oneof![
        "[a-z\"'=\\[\\]{}.#, \n\\\\*0-9-]{0,4}".prop_map(String::into_bytes),
        "\\PC{0,3}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..3),
    ];
    vec((any::<prop::sample::Index>(), 0..12_usize, put), 0..4)
}

fn slipped(text: &str, slips: Vec<Slip>) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (at, taken, put) in slips {
        let from = at.index(bytes.len() + 1);
        let to = (from + taken).min(bytes.len());
        bytes.splice(from..to, put);
    }
    bytes
}

/// An error is about a place in one of the files, unless what it misses is a file.
fn check_error(folder: &TempDir, error: &ConfigError) -> Result<(), TestCaseError> {
    let Some(at) = &error.at else {
        let names_a_place = [
            "there is no directory",
            "is not a directory",
            "is UTF-16",
            "failed to read",
        ];
        prop_assert!(
            names_a_place
                .iter()
                .any(|words| error.message.contains(words)),
            "{}",
            error
        );
        return Ok(());
    };
    prop_assert!(at.file.starts_with(folder.path()), "{}", error);
    let lines = fs::read(&at.file)
        .unwrap()
        .split(|byte| *byte == b'\n')
        .count();
    prop_assert!(
        (1..=lines).contains(&at.line) && at.column >= 1,
        "{}",
        error
    );
    let place = format!("--> {at}");
    prop_assert!(error.to_string().contains(&place));
    Ok(())
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

/// Of a guard: percent, number, and whether all may go.
type Bounds = (u8, u32, bool);

/// What a project says, in words and as values.
#[derive(Debug, Clone)]
struct Settings {
    space_id: Option<String>,
    days: u64,
    region: Option<&'static str>,
    api: Option<&'static str>,
    pack: Option<bool>,
    matches_all: Option<bool>,
    rows: Vec<(String, Vec<String>)>,
    audiences: Vec<(String, Option<Bounds>)>,
}

fn settings() -> impl Strategy<Value = Settings> {
    let word = "[a-zA-Z0-9äß .'\"\\\\-]{0,12}[a-z]";
    let rows = btree_map("[a-z ]{0,8}[a-z]", vec("[a-zA-Z0-9_.-]{1,64}", 1..3), 0..4);
    let audiences = btree_map(
        "[a-z]{1,8}",
        option::of((0..=100_u8, any::<u32>(), any::<bool>())),
        1..4,
    );
    let region = prop::sample::select(&["us-east-1", "eu-central-1", "us-gov-west-1"][..]);
    let api = prop::sample::select(&["auto", "put_record_batch", "put_record"][..]);
    (
        option::of(word),
        0..10_000_u64,
        option::of(region),
        option::of(api),
        option::of(any::<bool>()),
        option::of(any::<bool>()),
        rows,
        audiences,
    )
        .prop_map(
            |(space_id, days, region, api, pack, matches_all, rows, audiences)| Settings {
                space_id,
                days,
                region,
                api,
                pack,
                matches_all,
                rows: rows
                    .into_iter()
                    .map(|(left, mut streams)| {
                        streams.dedup();
                        (left, streams)
                    })
                    .collect(),
                audiences: audiences.into_iter().collect(),
            },
        )
}

impl Settings {
    fn main(&self) -> String {
        let mut lines = vec![format!("history = \"{}d\"", self.days)];
        lines.extend(
            self.space_id
                .as_deref()
                .map(|id| format!("space_id = {}", quoted(id))),
        );
        lines.push("[source.shop]\nsqlite = \"shop.sqlite\"\n[destination.main]".to_owned());
        lines.extend(self.region.map(|region| format!("region = \"{region}\"")));
        lines.extend(self.api.map(|api| format!("api = \"{api}\"")));
        lines.extend(self.pack.map(|pack| format!("pack = {pack}")));
        let matching = |all| format!("match = \"{}\"", if all { "all" } else { "first" });
        lines.extend(self.matches_all.map(matching));
        lines.push("[destination.main.mapping]\n\"*\" = \"everything\"".to_owned());
        for (left, streams) in &self.rows {
            lines.push(format!("{} = {streams:?}", quoted(left)));
        }
        lines.join("\n")
    }

    fn schedule(&self) -> String {
        let mut lines = Vec::new();
        for (name, guard) in &self.audiences {
            lines.push(format!(
                "[[audience]]\nname = {}\nsource = \"shop\"\nquery = \"SELECT 1\"",
                quoted(name)
            ));
            lines.push(match guard {
                None => "guard = false".to_owned(),
                Some((percent, removed, empty)) => format!(
                    "guard = {{ max_removed_percent = {percent}, min_removed = {removed}, allow_empty = {empty} }}"
                ),
            });
        }
        lines.join("\n")
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_slip_of_the_finger_is_found_or_means_something(main in slips(), schedule in slips()) {
        let (folder, loaded) = load(&slipped(MAIN, main), &slipped(SCHEDULE, schedule));
        if let Err(error) = loaded {
            check_error(&folder, &error)?;
        }
    }

    #[test]
    fn whatever_stands_in_the_files_is_answered(main in vec(any::<u8>(), 0..200), schedule in "\\PC{0,200}") {
        let (folder, loaded) = load(&main, schedule.as_bytes());
        check_error(&folder, &loaded.unwrap_err())?;
        let (folder, loaded) = load(MAIN.as_bytes(), schedule.as_bytes());
        check_error(&folder, &loaded.unwrap_err())?;
    }

    #[test]
    fn what_is_written_is_what_is_meant(settings in settings()) {
        let (_folder, loaded) = load(settings.main().as_bytes(), settings.schedule().as_bytes());
        let config = loaded.unwrap();
        prop_assert_eq!(&config.space_id, &settings.space_id);
        prop_assert_eq!(config.history, Duration::from_secs(settings.days * 24 * 60 * 60));
        let destination = &config.destinations[&DestinationName::new("main")];
        let DestinationKind::Firehose(aws) = &destination.kind else {
            panic!("{destination:?}");
        };
        prop_assert_eq!(aws.region.as_str(), settings.region.unwrap_or("us-west-2"));
        let api = match settings.api {
            Some("put_record") => Api::PutRecord,
            Some("put_record_batch") => Api::PutRecordBatch,
            _ => Api::Auto,
        };
        prop_assert_eq!(aws.api, api);
        prop_assert_eq!(destination.pack, settings.pack.unwrap_or(false));
        let is_all = destination.mapping.matching == Match::All;
        prop_assert_eq!(is_all, settings.matches_all.unwrap_or(false));
        let everything = ("*".to_owned(), vec!["everything".to_owned()]);
        let rows = [everything].into_iter().chain(settings.rows).map(|(left, streams)| {
            let streams: Vec<_> = streams.iter().map(|name| StreamName::parse(name).unwrap()).collect();
            (Pattern::parse(&left), streams)
        });
        prop_assert_eq!(&destination.mapping.rows, &rows.collect::<Vec<_>>());
        let found: Vec<_> = config.audiences().map(|configured| &configured.audience).collect();
        prop_assert_eq!(found.len(), settings.audiences.len());
        for (audience, (name, guard)) in found.iter().zip(&settings.audiences) {
            let guard = guard.map(|(percent, removed, allow_empty)| Guard {
                max_removed_percent: f64::from(percent),
                min_removed: u64::from(removed),
                allow_empty,
                ..Guard::default()
            });
            prop_assert_eq!((&audience.name, &audience.guard), (name, &guard));
        }
    }
}
