//! What a snapshot says was decided, and which of it still waits: read from the file that a process has left.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use audience_sync::event::Identify;
use audience_sync::snapshot::{Snapshot, chunk};
use rusqlite::{Connection, OpenFlags, Params};

use super::STREAMS;
use super::source::REFUSED;

/// One change that was decided.
pub(super) struct Entry {
    /// The `messageId` of its record.
    pub id: String,
    pub stream: usize,
    pub waits: bool,
    pub is_dead: bool,
    /// It is about the user whom some stream refuses for ever.
    pub is_refused: bool,
}

impl Entry {
    pub(super) fn is_waiting(&self) -> bool {
        !self.is_dead && self.waits
    }
}

/// Reads the journal, and what left it since the last time.
#[derive(Default)]
pub(super) struct Journal {
    /// The last run that was read.
    last: i64,
    /// Earlier runs that had something in the journal then, or a dead letter that may be put back into it.
    open: BTreeSet<i64>,
}

impl Journal {
    pub(super) fn read(&mut self, path: &Path) -> Vec<Entry> {
        // A process may end before there is a snapshot.
        let Some(snapshot) = Snapshot::inspect(path).unwrap() else {
            return Vec::new();
        };
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut runs = std::mem::take(&mut self.open);
        runs.extend(numbers(
            &connection,
            "SELECT number FROM run WHERE number > ?1",
            [self.last],
        ));
        self.last = runs.last().map_or(self.last, |last| self.last.max(*last));
        self.open = letters(&connection);
        let (mut behind, mut all) = (HashSet::new(), Vec::new());
        for number in runs {
            let run = snapshot.run(number).unwrap();
            let Some(computation) = &run.computation else {
                continue;
            };
            let stream = STREAMS
                .iter()
                .position(|known| *known == run.stream.name.as_str());
            let stream = stream.unwrap();
            let entries = entries(&connection, number, stream, &Identify::new(computation));
            let waiting = entries.iter().filter(|entry| entry.is_waiting()).count();
            assert_eq!(run.waiting, waiting as u64, "run {number}");
            if waiting > 0 {
                self.open.insert(number);
                // While something waits at a stream, nothing new is decided for it.
                assert!(behind.insert((computation.audience.clone(), stream)));
            }
            all.extend(entries);
        }
        all
    }
}

/// The runs of dead letters that may be sent again.
fn letters(connection: &Connection) -> BTreeSet<i64> {
    let sql = "SELECT run FROM dead WHERE superseded_by IS NULL";
    numbers(connection, sql, []).collect()
}

fn numbers(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
) -> impl Iterator<Item = i64> {
    let mut statement = connection.prepare_cached(sql).unwrap();
    let numbers = statement.query_map(parameters, |row| row.get(0)).unwrap();
    numbers.map(Result::unwrap).collect::<Vec<_>>().into_iter()
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
            let change = change.unwrap();
            entries.push(Entry {
                id: identify.message_id(&change).as_str().to_owned(),
                stream,
                waits: !is_delivered && !accepted(position),
                is_dead: false,
                is_refused: change.member.user.id == REFUSED,
            });
        }
        for position in dead(connection, run, seq) {
            entries[from + position].is_dead = true;
        }
    }
    entries
}

/// The entries of a chunk that can never be delivered.
fn dead(connection: &Connection, run: i64, seq: i64) -> impl Iterator<Item = usize> {
    let sql = "SELECT position FROM dead WHERE run = ?1 AND seq = ?2";
    numbers(connection, sql, [run, seq]).map(|position| position as usize)
}
