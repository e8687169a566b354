//! Dead letters: lines that a stream will not accept, kept with the reason until the cause is mended or a later run
//! decides anew.
//!
//! A change of an audience is decided anew by the next run of its feed. A call that was given to `send` is decided by
//! nothing else, and only sent again when asked to. A letter keeps its own line, so that its chunk may be pruned.

use rusqlite::{Connection, params};

use super::chunk::{self, Unreadable};
use super::journal::{self, JournaledRun, unreadable};
use super::writer::{ChunkKind, ChunkWriter};
use super::{Snapshot, SnapshotError};
use crate::audience::{Action, Change};
use crate::diff::{Scope, UserIds};
use crate::event::Computation;
use crate::run::Timestamp;

/// Of rows of `dead`: whether the line may be sent again as it is.
const IS_LETTER: &str = "superseded_by IS NULL AND entry IS NOT NULL";

/// One of them.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    pub run: &'a JournaledRun,
    /// Firehose's code and words. They may repeat what was sent.
    pub reason: &'a str,
    pub died_at: Timestamp,
    /// Whether the line is kept, so that it can be sent again.
    pub is_kept: bool,
    pub content: LetterContent<'a>,
}

/// What was not delivered.
#[derive(Debug)]
pub enum LetterContent<'a> {
    Change(&'a Computation, Change<'a>),
    /// A line of `send`.
    Call(&'a [u8]),
}

impl Snapshot {
    /// Hands on each dead letter that no later run has decided anew, in the order of runs.
    pub fn each_dead_letter<E: From<SnapshotError>>(
        &self,
        mut each: impl FnMut(DeadLetter<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::from;
        let mut statement = self
            .connection
            .prepare(
                "SELECT run, seq, position, reason, at, entry FROM dead WHERE superseded_by IS NULL
                 AND (entry IS NOT NULL
                      OR EXISTS (SELECT 1 FROM chunk WHERE chunk.run = dead.run AND chunk.seq = dead.seq))
                 ORDER BY run, seq, position",
            )
            .map_err(sql)?;
        let mut rows = statement.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let run = journal::run(&self.connection, row.get(0).map_err(sql)?)?;
            let seq = row.get(1).map_err(sql)?;
            let position = row.get::<_, i64>(2).map_err(sql)? as usize;
            let entry: Option<Vec<u8>> = row.get(5).map_err(sql)?;
            let is_kept = entry.is_some();
            let chunk = match entry {
                Some(entry) => (entry, 0),
                None => (self.entries(&run, seq)?, position),
            };
            let content =
                content(&run, &chunk.0, chunk.1).map_err(|Unreadable| unreadable(&run, seq))?;
            let reason: String = row.get(3).map_err(sql)?;
            each(DeadLetter {
                run: &run,
                reason: &reason,
                died_at: Timestamp::from_millis(row.get(4).map_err(sql)?),
                is_kept,
                content,
            })?;
        }
        Ok(())
    }

    fn entries(&self, run: &JournaledRun, seq: i64) -> Result<Vec<u8>, SnapshotError> {
        Ok(self.connection.query_row(
            "SELECT entries FROM chunk JOIN bytes ON bytes.id = chunk.bytes WHERE run = ?1 AND seq = ?2",
            [run.number, seq],
            |row| row.get(0),
        )?)
    }

    /// Puts every dead letter that can be sent again back into the journal, each in a chunk of its own; returns how many
    /// those are.
    pub fn requeue_dead_letters(&mut self) -> Result<u64, SnapshotError> {
        let transaction = self.begin()?;
        let runs = letters_by_run(&transaction)?;
        for (run, letters) in &runs {
            requeue(&transaction, *run, letters)?;
        }
        // The rows stay: the chunks that the letters were in have not delivered them.
        transaction.execute(
            &format!("UPDATE dead SET superseded_by = run, entry = NULL WHERE {IS_LETTER}"),
            [],
        )?;
        transaction.commit()?;
        Ok(runs.iter().map(|(_, letters)| letters.len() as u64).sum())
    }

    /// Forgets every dead letter; returns how many those were. A change is decided anew all the same.
    pub fn drop_dead_letters(&mut self) -> Result<u64, SnapshotError> {
        let dropped = self.connection.execute(
            "UPDATE dead SET superseded_by = 0, entry = NULL WHERE superseded_by IS NULL",
            [],
        )?;
        Ok(dropped as u64)
    }
}

/// The kept lines of each run.
type Letters = Vec<(i64, Vec<Vec<u8>>)>;

fn letters_by_run(connection: &Connection) -> Result<Letters, SnapshotError> {
    let mut select = connection.prepare(&format!(
        "SELECT run, entry FROM dead WHERE {IS_LETTER} ORDER BY run, seq, position"
    ))?;
    let mut rows = select.query([])?;
    let mut runs: Letters = Vec::new();
    while let Some(row) = rows.next()? {
        let run = row.get(0)?;
        let letter = row.get(1)?;
        match runs.last_mut() {
            Some((same, letters)) if *same == run => letters.push(letter),
            _ => runs.push((run, vec![letter])),
        }
    }
    Ok(runs)
}

/// Writes letters into further chunks of their run, one each: there are few of them.
fn requeue(connection: &Connection, number: i64, letters: &[Vec<u8>]) -> Result<(), SnapshotError> {
    let run = journal::run(connection, number)?;
    let last: Option<i64> = connection.query_row(
        "SELECT max(seq) FROM chunk WHERE run = ?1",
        [number],
        |row| row.get(0),
    )?;
    let first = last.unwrap_or(-1) + 1;
    for (seq, entry) in (first..).zip(letters) {
        let content = content(&run, entry, 0).map_err(|Unreadable| unreadable(&run, seq))?;
        let (kind, change) = match &content {
            LetterContent::Call(_) => (ChunkKind::Calls, None),
            LetterContent::Change(_, change) if change.action == Action::Leave => {
                (ChunkKind::Leaving, Some(change))
            }
            LetterContent::Change(_, change) => (ChunkKind::Entering, Some(change)),
        };
        let mut writer = ChunkWriter::new(connection, number, kind, seq, 1)?;
        writer.push(change, entry.len(), |entries| entries.extend(entry))?;
        writer.flush()?;
    }
    // The chunk that a letter was in counted it; now its new chunk does.
    connection.execute(
        "UPDATE run SET finished_at = NULL, outcome = 'undelivered', dead = dead - ?2 WHERE number = ?1",
        params![number, letters.len() as i64],
    )?;
    Ok(())
}

/// The entry at a position of a chunk.
fn content<'a>(
    run: &'a JournaledRun,
    entries: &'a [u8],
    position: usize,
) -> Result<LetterContent<'a>, Unreadable> {
    match &run.computation {
        Some(computation) => {
            let change = chunk::changes(entries).nth(position).ok_or(Unreadable)??;
            Ok(LetterContent::Change(computation, change))
        }
        None => {
            let line = chunk::calls(entries).nth(position).ok_or(Unreadable)??;
            Ok(LetterContent::Call(line))
        }
    }
}

/// Notes that a run decides anew about the users in its scope: letters of earlier runs about them are not sent any more.
pub(super) fn supersede_dead(
    connection: &Connection,
    feed: i64,
    run: i64,
    scope: &Scope,
) -> Result<(), SnapshotError> {
    let Scope::Users(ids) = scope else {
        connection
            .prepare_cached(
                "UPDATE dead SET superseded_by = ?1, entry = NULL
                 WHERE superseded_by IS NULL AND (SELECT feed FROM run WHERE run.number = dead.run) = ?2",
            )?
            .execute(params![run, feed])?;
        return Ok(());
    };
    let mut supersede = connection.prepare_cached(
        "UPDATE dead SET superseded_by = ?1, entry = NULL WHERE run = ?2 AND seq = ?3 AND position = ?4",
    )?;
    for [of, seq, position] in letters_about(connection, feed, ids)? {
        supersede.execute([run, of, seq, position])?;
    }
    Ok(())
}

/// The run, chunk and position of each letter of a feed about these users. Of one that is not kept, the chunk still names
/// the user.
fn letters_about(
    connection: &Connection,
    feed: i64,
    ids: &UserIds,
) -> Result<Vec<[i64; 3]>, SnapshotError> {
    let mut select = connection.prepare_cached(
        "SELECT dead.run, dead.seq, dead.position, iif(entry IS NULL, dead.position, 0), coalesce(entry, entries)
         FROM dead JOIN run ON run.number = dead.run
         LEFT JOIN chunk ON entry IS NULL AND chunk.run = dead.run AND chunk.seq = dead.seq
         LEFT JOIN bytes ON bytes.id = chunk.bytes
         WHERE superseded_by IS NULL AND run.feed = ?1",
    )?;
    let mut rows = select.query([feed])?;
    let mut letters = Vec::new();
    while let Some(row) = rows.next()? {
        let letter: [i64; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
        let [run, seq, _] = letter;
        let position = row.get::<_, i64>(3)? as usize;
        let Some(entries) = row.get::<_, Option<Vec<u8>>>(4)? else {
            continue;
        };
        let change = chunk::changes(&entries).nth(position);
        let change = change.and_then(Result::ok);
        let change = change.ok_or(SnapshotError::UnreadableChunk { run, seq })?;
        if ids.contains(change.member.user) {
            letters.push(letter);
        }
    }
    Ok(letters)
}
