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
    pub stream: usize,
    pub waits: bool,
    pub is_dead: bool,
}

impl Entry {
    fn is_waiting(&self) -> bool {
        !self.is_dead && self.waits
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
            let stream = STREAMS
                .iter()
                .position(|known| *known == run.stream.name.as_str());
            let stream = stream.unwrap();
            let entries = entries(&connection, *number, stream, &Identify::new(computation));
            let waiting = entries.iter().filter(|entry| entry.is_waiting()).count();
            assert_eq!(run.waiting, waiting as u64, "run {number}");
            if waiting > 0 {
                first_waiting.get_or_insert(*number);
                // While something waits at a stream, nothing new is decided for it.
                assert!(behind.insert((computation.audience.clone(), stream)));
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

fn entries(connection: &Connection, run: i64, stream: usize, identify: &Identify) -> Vec<Entry> {
    let sql = "SELECT seq, entries, delivered_at IS NOT NULL, accepted
               FROM chunk JOIN bytes ON bytes.id = chunk.bytes WHERE run = ?1";
    let mut statement = connection.prepare_cached(sql).unwrap();
    let mut rows = statement.query([run]).unwrap();
    let mut entries = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let seq: i64 = row.get(0).unwrap();
        let bytes: Vec<u8> = row.get(1).unwrap();
        let is_delivered: bool = row.get(2).unwrap();
        let accepted: Option<Vec<u8>> = row.get(3).unwrap();
        let accepted = |position: usize| accepted.as_ref().is_some_and(|it| it[position] != 0);
        let from = entries.len();
        for (position, change) in chunk::changes(&bytes).enumerate() {
            entries.push(Entry {
                id: identify.message_id(&change.unwrap()).as_str().to_owned(),
                stream,
                waits: !is_delivered && !accepted(position),
                is_dead: false,
            });
        }
        for position in dead(connection, run, seq) {
            entries[from + position].is_dead = true;
        }
    }
    entries
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
