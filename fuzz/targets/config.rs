//! `audience-sync.toml` and one schedule, with a line of four percent signs between them: typed values, or a message
//! that says where.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use audience_sync::audience::keys;
use audience_sync::config::Config;
use audience_sync::source::{check_syntax, check_syntax_of_changes};
use chrono::DateTime;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const BETWEEN: &[u8] = b"%%%%\n";

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    fs::create_dir(folder.path().join("schedules")).expect("a folder for the schedule");
    folder
});

fuzz_target!(|data: &[u8]| {
    let middle = data
        .windows(BETWEEN.len())
        .position(|bytes| bytes == BETWEEN);
    let (main, schedule) = match middle {
        Some(at) => (&data[..at], &data[at + BETWEEN.len()..]),
        None => (
            data,
            &b"[[audience]]\nname = \"A\"\nsource = \"shop\"\nquery = \"SELECT 1\"\n"[..],
        ),
    };
    let root = FOLDER.path();
    fs::write(root.join("audience-sync.toml"), main).expect("room in memory");
    fs::write(root.join("schedules/daily.toml"), schedule).expect("room in memory");
    match Config::load(&root.join("audience-sync.toml")) {
        Ok(config) => use_it(&config),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let Some(at) = &error.at {
                let text = fs::read(&at.file).expect("the file that it names");
                let lines = text.split(|byte| *byte == b'\n').count();
                assert!((1..=lines).contains(&at.line), "{error}");
            }
        }
    }
});

fn use_it(config: &Config) {
    let audiences: Vec<_> = config
        .audiences()
        .map(|configured| &configured.audience)
        .collect();
    // Another trait may have the name of a key; two keys that are one are found by loading.
    match keys::freeze(audiences.iter().copied(), &[], |it| config.streams_of(it)) {
        Ok(frozen) => assert_eq!(frozen.len(), audiences.len()),
        Err(error) => panic!("{error}"),
    }
    for audience in audiences {
        check_syntax(&audience.query);
        if let Some(changes) = &audience.changes {
            check_syntax_of_changes(&changes.query);
        }
    }
    for schedule in &config.schedules {
        let Some(cron) = &schedule.cron else { continue };
        for seconds in [0, 1_711_846_800, 4_102_444_799] {
            let now = DateTime::from_timestamp(seconds, 0).expect("a moment");
            let next = cron.next_after(now, schedule.timezone);
            let previous = cron.previous_before_or_at(now, schedule.timezone);
            assert!(next.is_none_or(|next| next > now));
            assert!(previous.is_none_or(|previous| previous <= now));
        }
    }
}
