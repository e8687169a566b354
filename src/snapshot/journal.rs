//! What waits to be delivered: handed out in chunks, and remembered as record IDs come back.

use std::collections::BTreeSet;

use rusqlite::{Connection, Row, params};

use super::apply::Apply;
use super::members::has_unsettled;
use super::unsettled::Unsettled;
use super::writer::{ChunkKind, ChunkWriter};
use super::{Snapshot, SnapshotError, chunk, class};
use crate::audience::{AudienceId, DestinationName, Key, Value};
use crate::event::Computation;
use crate::mapping::StreamName;
use crate::run::{Outcome, RunId, RunKind, Timestamp};

/// A run with chunks in the journal, and all that is needed to send them.
#[derive(Debug, Clone)]
pub struct JournaledRun {
    pub number: i64,
    pub id: RunId,
    pub kind: RunKind,
    pub destination: DestinationName,
    /// Frozen by the plan: a later change of the mapping is for later runs.
    pub streams: Vec<StreamName>,
    /// `None` for a run of `send`: its chunks hold whole lines.
    pub computation: Option<Computation>,
    pub(super) audience: Option<i64>,
    /// In the source when the run was planned.
    pub members: u64,
    pub held: u64,
    /// Changes that were decided, and those that are still to be delivered.
    pub planned: u64,
    pub waiting: u64,
    /// Chunks up to this number are not handed out: -1 for none.
    pub after: i64,
    /// An earlier process may have sent some of it, and died before it remembered the answer.
    pub is_resumed: bool,
}

impl JournaledRun {
    pub fn is_of(&self, audience: &AudienceId) -> bool {
        self.computation
            .as_ref()
            .is_some_and(|computation| computation.audience == *audience)
    }
}

/// The unit that is handed out, and comes back as [`Settled`].
#[derive(Debug, Clone)]
pub struct Chunk {
    pub seq: i64,
    pub count: usize,
    pub entries: Vec<u8>,
    /// For each stream, which entries it accepted before a run ended early. Empty where none.
    pub accepted: Vec<Vec<bool>>,
    /// Entries that an earlier attempt found dead.
    pub dead: Vec<usize>,
}

/// An entry that can never be delivered.
#[derive(Debug, Clone)]
pub struct Dead {
    pub position: usize,
    pub reason: String,
    /// By position in the run's streams: the one that refuses it. `None` where no stream may be given it.
    pub stream: Option<usize>,
    /// Streams that may have accepted it all the same: an answer was lost before.
    pub doubtful: Vec<usize>,
}

impl Dead {
    /// What is too long for any stream is not kept, nor ever sent again.
    const fn is_kept(&self) -> bool {
        self.stream.is_some()
    }
}

/// What Firehose said about a chunk.
#[derive(Debug)]
pub struct Settled {
    pub chunk: Chunk,
    /// For each stream, which entries it has accepted by now.
    pub accepted: Vec<Vec<bool>>,
    pub dead: Vec<Dead>,
}

impl Settled {
    /// Entries that every stream has now, and had not before.
    pub fn newly_delivered(&self) -> u64 {
        let before = Self::in_every_stream(self.chunk.count, &self.chunk.accepted);
        let now = Self::in_every_stream(self.chunk.count, &self.accepted);
        before
            .iter()
            .zip(&now)
            .filter(|(before, now)| **now && !**before)
            .count() as u64
    }

    /// For each entry, whether it is in every stream. A dead one never is.
    fn in_every_stream(count: usize, accepted: &[Vec<bool>]) -> Vec<bool> {
        (0..count)
            .map(|entry| !accepted.is_empty() && accepted.iter().all(|stream| stream[entry]))
            .collect()
    }
}

impl Snapshot {
    /// Opens a run of `send` for calls that go to the same streams.
    pub fn open_send(
        &mut self,
        id: RunId,
        started_at: Timestamp,
        destination: &DestinationName,
        streams: &[StreamName],
    ) -> Result<JournaledRun, SnapshotError> {
        self.connection.execute(
            "INSERT INTO run (id, destination, kind, started_at, streams) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id.to_string(), destination.as_str(), RunKind::Send.as_str(), started_at.millis(), json(streams)],
        )?;
        self.run(self.connection.last_insert_rowid())
    }

    /// Writes a batch of calls to the journal: their lines, each with its newline. The run then hands out that batch.
    pub fn journal_calls(
        &mut self,
        run: &mut JournaledRun,
        lines: &[Vec<u8>],
    ) -> Result<(), SnapshotError> {
        let transaction = self.begin()?;
        let last: Option<i64> = transaction.query_row(
            "SELECT max(seq) FROM chunk WHERE run = ?1",
            [run.number],
            |row| row.get(0),
        )?;
        run.after = last.unwrap_or(-1);
        let mut writer = ChunkWriter::new(&transaction, run.number, run.after + 1, 1)?;
        for line in lines {
            writer.push(ChunkKind::Calls, None, line.len(), |entries| {
                chunk::push_call(entries, line)
            })?;
        }
        writer.flush()?;
        drop(writer);
        transaction.execute(
            "UPDATE run SET planned = planned + ?2 WHERE number = ?1",
            params![run.number, lines.len() as i64],
        )?;
        transaction.commit()?;
        run.waiting = lines.len() as u64;
        Ok(())
    }

    /// Every run that has something left in the journal, oldest first.
    pub fn waiting(&self) -> Result<Vec<JournaledRun>, SnapshotError> {
        let mut statement = self.connection.prepare(&format!(
            "{RUN} WHERE planned > delivered + dead ORDER BY run.number"
        ))?;
        let mut rows = statement.query([])?;
        let mut runs = Vec::new();
        while let Some(row) = rows.next()? {
            runs.push(JournaledRun {
                is_resumed: true,
                ..journaled_run(row)?
            });
        }
        Ok(runs)
    }

    /// The same for one audience at one destination.
    pub fn waiting_of(
        &self,
        audience: &AudienceId,
        destination: &DestinationName,
    ) -> Result<Vec<JournaledRun>, SnapshotError> {
        let mut runs = self.waiting()?;
        runs.retain(|run| run.is_of(audience) && run.destination == *destination);
        Ok(runs)
    }

    /// A run as it stands now.
    pub fn run(&self, number: i64) -> Result<JournaledRun, SnapshotError> {
        run(&self.connection, number)
    }

    /// Remembers what Firehose said about some chunks, and hands out further ones after `after`, as many as the credit allows: one
    /// transaction for both, so that what came back while the last one was committed shares the next.
    pub fn settle(
        &mut self,
        run: &JournaledRun,
        settled: &[Settled],
        after: i64,
        credit: Credit,
    ) -> Result<Vec<Chunk>, SnapshotError> {
        if settled.is_empty() {
            return take(&self.connection, run, after, credit);
        }
        let transaction = self.begin()?;
        let now = Timestamp::now().millis();
        let (mut delivered, mut dead) = (0, 0);
        for settled in settled {
            let (newly_delivered, newly_dead) = remember(&transaction, run, settled, now)?;
            delivered += newly_delivered;
            dead += newly_dead;
        }
        transaction
            .prepare_cached(
                "UPDATE run SET delivered = delivered + ?2, dead = dead + ?3 WHERE number = ?1",
            )?
            .execute(params![run.number, delivered, dead])?;
        // A crash before `finish` must not leave a run that is delivered without an outcome.
        transaction
            .prepare_cached(
                "UPDATE run SET finished_at = ?2, outcome = CASE
                     WHEN dead > 0 THEN 'undelivered' WHEN held > 0 THEN 'held' ELSE 'delivered' END
                 WHERE number = ?1 AND planned = delivered + dead",
            )?
            .execute(params![run.number, now])?;
        let chunks = take(&transaction, run, after, credit)?;
        transaction.commit()?;
        self.settled.extend(run.audience);
        Ok(chunks)
    }

    /// Closes a run with what came of it.
    pub fn finish(&mut self, run: &JournaledRun, outcome: Outcome) -> Result<(), SnapshotError> {
        self.connection.execute(
            "UPDATE run SET finished_at = ?2, outcome = ?3 WHERE number = ?1",
            params![run.number, Timestamp::now().millis(), outcome.as_str()],
        )?;
        Ok(())
    }
}

pub(super) fn json(streams: &[StreamName]) -> String {
    serde_json::to_string(streams).expect("names are JSON")
}

const RUN: &str = "
    SELECT run.number, run.id, run.kind, run.destination, run.streams, run.started_at, run.space_id, run.members,
           run.held, run.planned - run.delivered - run.dead, audience.number, audience.id, audience.key, audience.class,
           run.planned
    FROM run LEFT JOIN audience ON audience.number = run.audience";

pub(super) fn run(connection: &Connection, number: i64) -> Result<JournaledRun, SnapshotError> {
    let mut statement = connection.prepare_cached(&format!("{RUN} WHERE run.number = ?1"))?;
    let mut rows = statement.query([number])?;
    journaled_run(rows.next()?.ok_or(SnapshotError::Unknown("run"))?)
}

fn journaled_run(row: &Row<'_>) -> Result<JournaledRun, SnapshotError> {
    let id = RunId::parse(&row.get::<_, String>(1)?).ok_or(SnapshotError::Unknown("run id"))?;
    let destination = DestinationName::new(row.get::<_, String>(3)?);
    let audience: Option<i64> = row.get(10)?;
    let computation = match audience {
        None => None,
        Some(_) => Some(Computation {
            audience: AudienceId::new(row.get::<_, String>(11)?),
            key: Key::new(row.get::<_, String>(12)?),
            class: class(&row.get::<_, String>(13)?)?,
            destination: destination.clone(),
            run: id,
            started_at: Timestamp::from_millis(row.get(5)?),
            space_id: row.get(6)?,
        }),
    };
    Ok(JournaledRun {
        number: row.get(0)?,
        id,
        kind: RunKind::parse(&row.get::<_, String>(2)?)
            .ok_or(SnapshotError::Unknown("kind of run"))?,
        destination,
        streams: serde_json::from_str(&row.get::<_, String>(4)?)
            .map_err(|_| SnapshotError::Unknown("list of streams"))?,
        computation,
        audience,
        members: row.get::<_, i64>(7)? as u64,
        held: row.get::<_, i64>(8)? as u64,
        planned: row.get::<_, i64>(14)? as u64,
        waiting: row.get::<_, i64>(9)? as u64,
        after: -1,
        is_resumed: false,
    })
}

/// How much may be handed out: so many chunks, and no further one once there are so many bytes.
#[derive(Debug, Clone, Copy)]
pub struct Credit {
    pub chunks: usize,
    pub bytes: usize,
}

impl Credit {
    pub const NONE: Self = Self {
        chunks: 0,
        bytes: 0,
    };
    pub const ONE: Self = Self {
        chunks: 1,
        bytes: usize::MAX,
    };
}

/// The next chunks of a run that are not delivered, in order.
pub(super) fn take(
    connection: &Connection,
    run: &JournaledRun,
    after: i64,
    credit: Credit,
) -> Result<Vec<Chunk>, SnapshotError> {
    let mut chunks = Vec::with_capacity(credit.chunks);
    if credit.chunks == 0 || credit.bytes == 0 {
        return Ok(chunks);
    }
    let mut bytes = 0;
    let mut statement = connection.prepare_cached(
        "SELECT seq, count, entries FROM chunk
         WHERE run = ?1 AND seq > ?2
           AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.run = chunk.run AND delivered.seq = chunk.seq)
         ORDER BY seq LIMIT ?3",
    )?;
    let mut rows = statement.query(params![run.number, after, credit.chunks as i64])?;
    while let Some(row) = rows.next()? {
        let chunk = waiting_chunk(connection, run, row)?;
        bytes += chunk.entries.len();
        chunks.push(chunk);
        if bytes >= credit.bytes {
            break;
        }
    }
    Ok(chunks)
}

pub(super) fn waiting_chunk(
    connection: &Connection,
    run: &JournaledRun,
    row: &Row<'_>,
) -> Result<Chunk, SnapshotError> {
    let seq = row.get(0)?;
    let count = row.get::<_, i64>(1)? as usize;
    Ok(Chunk {
        seq,
        count,
        entries: row.get(2)?,
        accepted: accepted(connection, run, seq, Some(count))?,
        dead: dead(connection, run.number, seq, "TRUE")?,
    })
}

/// For each stream, which entries it accepted before an attempt at the chunk ended. Empty where there was none.
pub(super) fn accepted(
    connection: &Connection,
    run: &JournaledRun,
    seq: i64,
    count: Option<usize>,
) -> Result<Vec<Vec<bool>>, SnapshotError> {
    let mut statement = connection.prepare_cached(
        "SELECT stream, accepted FROM partly_delivered WHERE run = ?1 AND seq = ?2",
    )?;
    let mut rows = statement.query(params![run.number, seq])?;
    let mut accepted = Vec::new();
    while let Some(row) = rows.next()? {
        let (stream, entries): (usize, Vec<u8>) = (row.get::<_, i64>(0)? as usize, row.get(1)?);
        if stream >= run.streams.len() || count.is_some_and(|count| count != entries.len()) {
            return Err(SnapshotError::UnreadableChunk {
                run: run.number,
                seq,
            });
        }
        accepted.resize(run.streams.len(), vec![false; entries.len()]);
        accepted[stream] = entries.iter().map(|entry| *entry != 0).collect();
    }
    Ok(accepted)
}

/// Entries of a chunk that can never be delivered, and of which something is so.
fn dead(
    connection: &Connection,
    run: i64,
    seq: i64,
    is_so: &str,
) -> Result<Vec<usize>, SnapshotError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT position FROM dead WHERE run = ?1 AND seq = ?2 AND {is_so} ORDER BY position"
    ))?;
    let positions = statement.query_map([run, seq], |row| row.get::<_, i64>(0))?;
    Ok(positions
        .map(|position| position.map(|position| position as usize))
        .collect::<Result<_, _>>()?)
}

/// Takes what was too long out of a chunk that nobody will send again: each run decides the dead anew, and would keep
/// their megabytes anew.
fn lighten(
    connection: &Connection,
    run: &JournaledRun,
    chunk: &Chunk,
) -> Result<(), SnapshotError> {
    let dead = dead(connection, run.number, chunk.seq, "NOT is_whole")?;
    if run.computation.is_none() || dead.is_empty() {
        return Ok(());
    }
    let mut entries = Vec::new();
    for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
        let mut change = change.map_err(|_| SnapshotError::UnreadableChunk {
            run: run.number,
            seq: chunk.seq,
        })?;
        if dead.contains(&entry) {
            change.member.traits = "";
            if let Value::Text(_) = change.member.value {
                change.member.value = Value::Text("");
            }
        }
        chunk::push_change(&mut entries, &change);
    }
    connection.execute(
        "UPDATE chunk SET entries = ?3 WHERE run = ?1 AND seq = ?2",
        params![run.number, chunk.seq, entries],
    )?;
    Ok(())
}

/// Applies what is newly accepted by every stream; returns how many entries that is, and how many are newly dead.
fn remember(
    connection: &Connection,
    run: &JournaledRun,
    settled: &Settled,
    now: i64,
) -> Result<(i64, i64), SnapshotError> {
    let Settled {
        chunk,
        accepted,
        dead,
    } = settled;
    let before = Settled::in_every_stream(chunk.count, &chunk.accepted);
    let after = Settled::in_every_stream(chunk.count, accepted);
    let newly = dead.iter().map(|dead| dead.position);
    let dead_positions: BTreeSet<usize> = newly.chain(chunk.dead.iter().copied()).collect();
    let is_new = |entry: usize| after[entry] && !before[entry];

    if let Some(audience) = run.audience {
        // Of an entry that was dead before, nobody knows any more whether its user was unsettled.
        let has_strangers =
            has_unsettled(connection, Some(audience))? || !chunk.accepted.is_empty();
        let mut apply = Apply::new(connection, audience, run, has_strangers)?;
        let mut unsettled = Unsettled::of(connection, audience)?;
        for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
            let change = change.map_err(|_| SnapshotError::UnreadableChunk {
                run: run.number,
                seq: chunk.seq,
            })?;
            if is_new(entry) {
                apply.apply(&change)?;
                unsettled.all_have(&change)?;
            } else if let Some(letter) = dead.iter().find(|letter| letter.position == entry) {
                let has = |stream: usize| accepted[stream][entry];
                unsettled.some_have(&change, &run.streams, has, letter)?;
            }
        }
        apply.finish()?;
    }
    let newly_dead = bury(connection, run.number, chunk.seq, dead, now)?;
    connection
        .prepare_cached("DELETE FROM partly_delivered WHERE run = ?1 AND seq = ?2")?
        .execute(params![run.number, chunk.seq])?;
    let is_settled = |entry: usize| after[entry] || dead_positions.contains(&entry);
    let leaves = (0..chunk.count).all(is_settled);
    if leaves {
        connection
            .prepare_cached("INSERT INTO delivered (run, seq, at) VALUES (?1, ?2, ?3)")?
            .execute(params![run.number, chunk.seq, now])?;
    }
    let mut is_kept = !leaves;
    if leaves && !dead_positions.is_empty() {
        lighten(connection, run, chunk)?;
        // Which streams have a dead letter must be known when it is sent again.
        is_kept = !self::dead(connection, run.number, chunk.seq, "is_whole")?.is_empty();
    }
    if is_kept {
        keep_accepted(connection, run, chunk.seq, accepted)?;
    }
    let newly_delivered = (0..chunk.count).filter(|entry| is_new(*entry)).count();
    Ok((newly_delivered as i64, newly_dead))
}

/// Writes down which entries are dead, and why; returns how many of them are newly so.
fn bury(
    connection: &Connection,
    run: i64,
    seq: i64,
    dead: &[Dead],
    now: i64,
) -> Result<i64, SnapshotError> {
    let mut newly_dead = 0;
    for letter in dead {
        newly_dead += connection
            .prepare_cached(
                "INSERT OR IGNORE INTO dead (run, seq, position, reason, at, stream, is_whole)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                run,
                seq,
                letter.position as i64,
                letter.reason,
                now,
                letter.stream.map(|stream| stream as i64),
                letter.is_kept()
            ])? as i64;
    }
    Ok(newly_dead)
}

fn keep_accepted(
    connection: &Connection,
    run: &JournaledRun,
    seq: i64,
    accepted: &[Vec<bool>],
) -> Result<(), SnapshotError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO partly_delivered (run, seq, stream, accepted) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for (stream, entries) in accepted.iter().enumerate() {
        let entries: Vec<u8> = entries.iter().map(|entry| u8::from(*entry)).collect();
        insert.execute(params![run.number, seq, stream as i64, entries])?;
    }
    Ok(())
}
