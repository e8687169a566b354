//! What a snapshot says was decided, and which of it still waits: read from the file that a process has left.

use std::collections::HashSet;
use std::path::Path;

use audience_sync::event::Identify;
use audience_sync::snapshot::{Snapshot, chunk};
use rusqlite::{Connection, OpenFlags, params};

use super::STREAMS;

/// One change that was decided.
pub(super) struct Entry {
    /// The `messageId` of its record.
    pub id: String,
    /// Of the streams, those it still waits for.
    pub waits_for: [bool; STREAMS.len()],
    pub is_dead: bool,
}

impl Entry {
    fn is_waiting(&self) -> bool {
        !self.is_dead && self.waits_for.contains(&true)
    }
}

/// Reads the journal, and what left it since the last time.
#[derive(Default)]
pub(super) struct Journal {
    /// Runs before this one have nothing in the journal, nor any dead letter that may be put back into it.
    first: i64,
}

impl Journal {
    pub(super) fn read(&mut self, path: &Path) -> Vec<Entry> {
        // A process may end before there is a snapshot.
        let Some(snapshot) = Snapshot::inspect(path).unwrap() else {
            return Vec::new();
        };
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let runs = runs(&connection, self.first);
        let (mut first_waiting, mut behind) = (None, HashSet::new());
        let mut all = Vec::new();
        let letter = first_letter(&connection);
        for number in &runs {
            let run = snapshot.run(*number).unwrap();
            let Some(computation) = &run.computation else {
                continue;
            };
            let streams: Vec<_> = run.streams.iter().map(|stream| stream.as_str()).collect();
            assert_eq!(streams, STREAMS);
            let entries = entries(&connection, *number, &Identify::new(computation));
            let waiting = entries.iter().filter(|entry| entry.is_waiting()).count();
            assert_eq!(run.waiting, waiting as u64, "run {number}");
            if waiting > 0 {
                first_waiting.get_or_insert(*number);
                // While something waits, nothing new is decided.
                assert!(behind.insert(computation.audience.clone()));
            }
            all.extend(entries);
        }
        let last = runs.last().map_or(self.first, |last| last + 1);
        let first = first_waiting.unwrap_or(last);
        self.first = letter.map_or(first, |letter| first.min(letter));
        all
    }
}

fn first_letter(connection: &Connection) -> Option<i64> {
    let sql = "SELECT min(run) FROM dead WHERE superseded_by IS NULL";
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn runs(connection: &Connection, first: i64) -> Vec<i64> {
    let sql = "SELECT number FROM run WHERE number >= ?1 ORDER BY number";
    let mut statement = connection.prepare(sql).unwrap();
    let runs = statement.query_map([first], |row| row.get(0)).unwrap();
    runs.map(Result::unwrap).collect()
}

fn entries(connection: &Connection, run: i64, identify: &Identify) -> Vec<Entry> {
    let sql = "SELECT chunk.seq, chunk.entries, delivered.at IS NOT NULL
               FROM chunk LEFT JOIN delivered ON delivered.run = chunk.run AND delivered.seq = chunk.seq
               WHERE chunk.run = ?1";
    let mut statement = connection.prepare_cached(sql).unwrap();
    let mut rows = statement.query([run]).unwrap();
    let mut entries = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let seq: i64 = row.get(0).unwrap();
        let bytes: Vec<u8> = row.get(1).unwrap();
        let is_delivered: bool = row.get(2).unwrap();
        let from = entries.len();
        entries.extend(chunk::changes(&bytes).map(|change| Entry {
            id: identify.message_id(&change.unwrap()).as_str().to_owned(),
            waits_for: [!is_delivered; STREAMS.len()],
            is_dead: false,
        }));
        let chunk = &mut entries[from..];
        if !is_delivered {
            note_accepted(connection, run, seq, chunk);
        }
        for position in dead(connection, run, seq) {
            chunk[position].is_dead = true;
        }
    }
    entries
}

/// What a stream had accepted when an attempt at the whole chunk ended.
fn note_accepted(connection: &Connection, run: i64, seq: i64, chunk: &mut [Entry]) {
    let sql = "SELECT stream, accepted FROM partly_delivered WHERE run = ?1 AND seq = ?2";
    let mut statement = connection.prepare_cached(sql).unwrap();
    let mut rows = statement.query(params![run, seq]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let stream: usize = row.get::<_, i64>(0).unwrap() as usize;
        let accepted: Vec<u8> = row.get(1).unwrap();
        assert_eq!(accepted.len(), chunk.len());
        for (entry, accepted) in chunk.iter_mut().zip(accepted) {
            entry.waits_for[stream] = accepted == 0;
        }
    }
}

/// The entries of a chunk that can never be delivered.
fn dead(connection: &Connection, run: i64, seq: i64) -> Vec<usize> {
    let sql = "SELECT position FROM dead WHERE run = ?1 AND seq = ?2";
    let mut statement = connection.prepare_cached(sql).unwrap();
    let positions = statement.query_map(params![run, seq], |row| row.get::<_, i64>(0));
    let positions = positions.unwrap();
    positions
        .map(|position| position.unwrap() as usize)
        .collect()
}
