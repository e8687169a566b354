//! Dead letters: what Firehose will not have, kept with its reason until somebody mends it or a later run decides anew.
//!
//! They lie in their chunks. What a run decided about an audience is decided anew by its next run, from what Firehose
//! has accepted; a call that was given to `send` is decided by nobody else, and only sent again when asked to.

use rusqlite::{Connection, params};

use super::chunk::{self, Unreadable};
use super::journal::{self, JournaledRun};
use super::{Snapshot, SnapshotError};
use crate::audience::Change;
use crate::event::Computation;
use crate::mapping::StreamName;
use crate::run::Timestamp;

/// Of rows of `dead`: whether it may be sent again as it is.
pub(super) const IS_LETTER: &str = "is_whole AND superseded_by IS NULL";

/// One of them.
#[derive(Debug)]
pub struct DeadLetter<'a> {
    pub run: &'a JournaledRun,
    /// The stream that refuses it; `None` for what no stream may be given, which is too long.
    pub stream: Option<&'a StreamName>,
    /// Firehose's code and words. They may repeat what it was sent.
    pub reason: &'a str,
    /// Since when.
    pub died_at: Timestamp,
    /// Whether all of it is kept, so that it can be sent again.
    pub is_whole: bool,
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
                "SELECT dead.run, dead.seq, position, reason, at, stream, is_whole, entries
                 FROM dead JOIN chunk ON chunk.run = dead.run AND chunk.seq = dead.seq
                 WHERE superseded_by IS NULL ORDER BY dead.run, dead.seq, position",
            )
            .map_err(sql)?;
        let mut rows = statement.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let run = journal::run(&self.connection, row.get(0).map_err(sql)?)?;
            let seq = row.get(1).map_err(sql)?;
            let unreadable = |Unreadable| SnapshotError::UnreadableChunk {
                run: run.number,
                seq,
            };
            let position = row.get::<_, i64>(2).map_err(sql)? as usize;
            let entries = row.get_ref(7).and_then(|column| Ok(column.as_blob()?));
            let content = content(&run, entries.map_err(sql)?, position).map_err(unreadable)?;
            let reason: String = row.get(3).map_err(sql)?;
            let stream: Option<i64> = row.get(5).map_err(sql)?;
            each(DeadLetter {
                run: &run,
                stream: stream.and_then(|stream| run.streams.get(stream as usize)),
                reason: &reason,
                died_at: Timestamp::from_millis(row.get(4).map_err(sql)?),
                is_whole: row.get(6).map_err(sql)?,
                content,
            })?;
        }
        Ok(())
    }

    /// Puts every dead letter that can be sent again back into the journal; returns how many those are. Streams that
    /// have one already are not given it again.
    pub fn revive_dead_letters(&mut self) -> Result<u64, SnapshotError> {
        let transaction = self.begin()?;
        transaction.execute(
            &format!(
                "DELETE FROM delivered WHERE (run, seq) IN (SELECT run, seq FROM dead WHERE {IS_LETTER})"
            ),
            [],
        )?;
        transaction.execute(
            &format!(
                "UPDATE run SET finished_at = NULL, outcome = NULL,
                     dead = dead - (SELECT count(*) FROM dead AS letter WHERE letter.run = number AND {IS_LETTER})
                 WHERE number IN (SELECT run FROM dead WHERE {IS_LETTER})"
            ),
            [],
        )?;
        let revived = transaction.execute(&format!("DELETE FROM dead WHERE {IS_LETTER}"), [])?;
        transaction.commit()?;
        Ok(revived as u64)
    }
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

/// Notes that a run has decided about everyone in its audience anew: what died before is not to be sent any more.
pub(super) fn supersede_dead(
    connection: &Connection,
    computation: &Computation,
    run: i64,
) -> Result<(), SnapshotError> {
    connection.execute(
        "UPDATE dead SET superseded_by = ?1 WHERE superseded_by IS NULL AND run IN (
             SELECT number FROM run WHERE audience_id = ?2 AND destination = ?3 AND number < ?1 AND dead > 0)",
        params![
            run,
            computation.audience.as_str(),
            computation.destination.as_str()
        ],
    )?;
    Ok(())
}
