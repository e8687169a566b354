//! Delivered records, as a bucket might hold them, zipped or not: a snapshot that opens, or a reason.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use audience_sync::event::Landed;
use audience_sync::landed::Records;
use audience_sync::mapping::StreamName;
use audience_sync::snapshot::{Rebuild, Snapshot, Unsaid};
use audience_sync::stream::{Place, Stream};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder in memory"));

fuzz_target!(|data: &[u8]| {
    let stream = Stream {
        place: Place::Directory("delivered".into()),
        name: StreamName::parse("members").expect("a stream name"),
    };
    let mut rebuild = None;
    let mut records = Records::new(data).expect("memory is read");
    while let Ok(Some((_, landed))) = records.read() {
        let Landed::Ours(statement) = landed else {
            continue;
        };
        let rebuild = rebuild.get_or_insert_with(|| Rebuild::new().expect("room to gather in"));
        if rebuild.push(&stream, &statement).is_err() {
            return;
        }
    }
    let Some(rebuild) = rebuild else { return };
    let path = FOLDER.path().join("snapshot.sqlite");
    let Ok(restored) = rebuild.write(&path, &Unsaid::default()) else {
        return;
    };
    let snapshot = Snapshot::inspect(&path).expect("what was written is a snapshot");
    let feeds = snapshot.expect("it is there").feeds().expect("it is whole");
    let members = |count: Vec<u64>| count.into_iter().sum::<u64>();
    assert_eq!(
        members(feeds.iter().map(|feed| feed.members).collect()),
        members(restored.iter().map(|feed| feed.members).collect())
    );
    fs::remove_file(path).expect("it is ours");
});
