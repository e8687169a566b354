//! What waits to be delivered: handed out in chunks, and remembered as record IDs come back.

use std::collections::BTreeSet;

use rusqlite::{Connection, Row, params};

use super::apply::Apply;
use super::doubt::Doubts;
use super::streams::{STREAM, number_of, stream_from};
use super::writer::{ChunkKind, ChunkWriter};
use super::{Snapshot, SnapshotError, chunk, class, life};
use crate::audience::{Action, AudienceId, Change, DestinationName, Key, Value};
use crate::event::Computation;
use crate::run::{Outcome, RunId, RunKind, Timestamp};
use crate::stream::Stream;

/// A run with chunks in the journal, and all that is needed to send them.
#[derive(Debug, Clone)]
pub struct JournaledRun {
    pub number: i64,
    pub id: RunId,
    pub kind: RunKind,
    /// What the destination was called when the run was planned.
    pub destination: DestinationName,
    /// Frozen by the plan: a later change of the mapping is for later runs.
    pub stream: Stream,
    /// Whether the stream has ever accepted a line.
    pub has_accepted: bool,
    /// `None` for a run of `send`: its chunks hold whole lines.
    pub computation: Option<Computation>,
    pub(super) feed: Option<i64>,
    pub(super) stream_number: i64,
    /// In the source when the run was planned.
    pub members: u64,
    pub held: u64,
    /// Changes that were decided, and those that are still to be delivered.
    pub planned: u64,
    pub waiting: u64,
    /// Chunks up to this number are not handed out: -1 for none.
    pub after: i64,
    /// A process died while it delivered this run: any line that waits may have been accepted.
    pub was_interrupted: bool,
    /// Whether the members of its feed are kept with a hash of their traits.
    pub(super) keeps_traits: bool,
}

/// What tells a feed apart: its audience and its stream. Without an audience, what `send` has for the stream.
pub type FeedId = (Option<AudienceId>, Stream);

impl JournaledRun {
    /// What tells its feed apart.
    pub fn feed_id(&self) -> FeedId {
        let computation = self.computation.as_ref();
        let audience = computation.map(|computation| computation.audience.clone());
        (audience, self.stream.clone())
    }

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
    /// Which entries the stream accepted before a run ended early. Empty where none.
    pub accepted: Vec<bool>,
    /// Which it may have accepted without an answer. Empty where none.
    pub maybe_accepted: Vec<bool>,
    /// Entries that an earlier attempt found dead.
    pub dead: Vec<usize>,
}

/// An entry that can never be delivered.
#[derive(Debug, Clone)]
pub struct Dead {
    pub position: usize,
    /// Firehose's code. `None` for a line that is too long for any record: it is not kept, nor ever sent again.
    pub code: Option<String>,
    /// For people. It may repeat what was sent.
    pub reason: String,
}

/// What Firehose answered about a chunk.
#[derive(Debug)]
pub struct Settled {
    pub chunk: Chunk,
    /// Which entries the stream has accepted by now.
    pub accepted: Vec<bool>,
    /// Which of the others it may have accepted without an answer.
    pub maybe_accepted: Vec<bool>,
    pub dead: Vec<Dead>,
}

impl Settled {
    /// Whether the stream has accepted an entry now, and had not before.
    fn is_new(&self, entry: usize) -> bool {
        self.accepted[entry] && !self.chunk.accepted.get(entry).copied().unwrap_or(false)
    }

    /// How many entries that is.
    pub fn newly_delivered(&self) -> u64 {
        (0..self.chunk.count)
            .filter(|entry| self.is_new(*entry))
            .count() as u64
    }
}

impl Snapshot {
    /// Opens a run of `send` for calls that go to the same stream.
    pub fn open_send(
        &mut self,
        id: RunId,
        started_at: Timestamp,
        destination: &DestinationName,
        stream: &Stream,
    ) -> Result<JournaledRun, SnapshotError> {
        let transaction = self.begin()?;
        let stream = number_of(&transaction, stream)?;
        let number = life::next_run(&transaction, started_at)?;
        transaction.execute(
            "INSERT INTO run (number, id, stream, destination, kind, started_at, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                number,
                id.to_string(),
                stream,
                destination.as_str(),
                RunKind::Send.as_str(),
                started_at.millis(),
                Timestamp::now().millis()
            ],
        )?;
        transaction.commit()?;
        self.run(number)
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
        let mut writer =
            ChunkWriter::new(&transaction, run.number, ChunkKind::Calls, run.after + 1, 1)?;
        for line in lines {
            writer.push(None, line.len(), |entries| chunk::push_call(entries, line))?;
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
        let mut statement = self.connection.prepare_cached(&format!(
            "{} WHERE planned > delivered + dead ORDER BY run.number",
            *RUN
        ))?;
        let mut rows = statement.query([])?;
        let mut runs = Vec::new();
        while let Some(row) = rows.next()? {
            runs.push(journaled_run(row)?);
        }
        Ok(runs)
    }

    /// A run as it stands now.
    pub fn run(&self, number: i64) -> Result<JournaledRun, SnapshotError> {
        run(&self.connection, number)
    }

    /// Notes that runs are being delivered again: should this process die meanwhile, nothing is known of their lines.
    pub fn reopen(&mut self, runs: &[JournaledRun]) -> Result<(), SnapshotError> {
        let transaction = self.begin()?;
        for run in runs {
            transaction
                .prepare_cached(
                    "UPDATE run SET was_interrupted = ?2, outcome = NULL, finished_at = NULL WHERE number = ?1",
                )?
                .execute(params![run.number, run.was_interrupted])?;
        }
        Ok(transaction.commit()?)
    }

    /// Remembers what Firehose answered about some chunks, and hands out further ones after `after`, as many as the credit
    /// allows: one transaction for both, so that what came back while the last one was committed shares the next.
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
            dead += remember(&transaction, run, settled, now)?;
            delivered += settled.newly_delivered() as i64;
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
                     WHEN dead > 0 THEN 'undelivered'
                     WHEN held + held_added + held_changed > 0 THEN 'held' ELSE 'delivered' END
                 WHERE number = ?1 AND planned = delivered + dead",
            )?
            .execute(params![run.number, now])?;
        if delivered > 0 && !run.has_accepted {
            transaction
                .prepare_cached("UPDATE stream SET has_accepted = 1 WHERE number = ?1")?
                .execute([run.stream_number])?;
        }
        let chunks = take(&transaction, run, after, credit)?;
        transaction.commit()?;
        self.settled.extend(run.feed);
        Ok(chunks)
    }

    /// Closes a run with what came of it.
    pub fn finish(&mut self, run: &JournaledRun, outcome: Outcome) -> Result<(), SnapshotError> {
        self.connection
            .prepare_cached("UPDATE run SET finished_at = ?2, outcome = ?3 WHERE number = ?1")?
            .execute(params![
                run.number,
                Timestamp::now().millis(),
                outcome.as_str()
            ])?;
        Ok(())
    }
}

const RUN_COLUMNS: &str = "
    run.number, run.id, run.kind, run.destination, run.started_at, run.space_id, run.members,
    run.held + run.held_added + run.held_changed, run.planned - run.delivered - run.dead, feed.number, audience.id,
    audience.key, audience.class, run.planned, run.was_interrupted OR run.outcome IS NULL, run.stream,
    stream.has_accepted, feed.keeps_traits";

static RUN: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "SELECT {RUN_COLUMNS}, {STREAM} FROM run JOIN stream ON stream.number = run.stream
         LEFT JOIN feed ON feed.number = run.feed LEFT JOIN audience ON audience.number = feed.audience"
    )
});

pub(super) fn run(connection: &Connection, number: i64) -> Result<JournaledRun, SnapshotError> {
    let mut statement = connection.prepare_cached(&format!("{} WHERE run.number = ?1", *RUN))?;
    let mut rows = statement.query([number])?;
    journaled_run(rows.next()?.ok_or(SnapshotError::Unknown("run"))?)
}

fn journaled_run(row: &Row<'_>) -> Result<JournaledRun, SnapshotError> {
    let id = RunId::parse(&row.get::<_, String>(1)?).ok_or(SnapshotError::Unknown("run id"))?;
    let stream = stream_from(row, 18)?;
    let feed: Option<i64> = row.get(9)?;
    let computation = match feed {
        None => None,
        Some(_) => Some(Computation {
            audience: AudienceId::new(row.get::<_, String>(10)?),
            key: Key::new(row.get::<_, String>(11)?),
            class: class(&row.get::<_, String>(12)?)?,
            stream: stream.name.clone(),
            run: id,
            started_at: Timestamp::from_millis(row.get(4)?),
            space_id: row.get(5)?,
        }),
    };
    Ok(JournaledRun {
        number: row.get(0)?,
        id,
        kind: RunKind::parse(&row.get::<_, String>(2)?)
            .ok_or(SnapshotError::Unknown("kind of run"))?,
        destination: DestinationName::new(row.get::<_, String>(3)?),
        stream,
        has_accepted: row.get(16)?,
        computation,
        feed,
        stream_number: row.get(15)?,
        members: row.get::<_, i64>(6)? as u64,
        held: row.get::<_, i64>(7)? as u64,
        planned: row.get::<_, i64>(13)? as u64,
        waiting: row.get::<_, i64>(8)? as u64,
        after: -1,
        was_interrupted: row.get(14)?,
        keeps_traits: row.get::<_, Option<bool>>(17)?.unwrap_or_default(),
    })
}

/// How much may be handed out: a number of chunks, and no further one once there are this many bytes.
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
        "SELECT seq, count, accepted, maybe_accepted, entries FROM chunk JOIN bytes ON bytes.id = chunk.bytes
         WHERE run = ?1 AND seq > ?2 AND delivered_at IS NULL ORDER BY seq LIMIT ?3",
    )?;
    let mut rows = statement.query(params![run.number, after, credit.chunks as i64])?;
    while let Some(row) = rows.next()? {
        let seq = row.get(0)?;
        let count = row.get::<_, i64>(1)? as usize;
        let flags = |column| flags(row.get(column)?, count).ok_or_else(|| unreadable(run, seq));
        let chunk = Chunk {
            seq,
            count,
            accepted: flags(2)?,
            maybe_accepted: flags(3)?,
            entries: row.get(4)?,
            dead: dead(connection, run.number, seq)?,
        };
        bytes += chunk.entries.len();
        chunks.push(chunk);
        if bytes >= credit.bytes {
            break;
        }
    }
    Ok(chunks)
}

/// One byte an entry, or nothing at all; `None` for another number of bytes.
pub(super) fn flags(column: Option<Vec<u8>>, count: usize) -> Option<Vec<bool>> {
    let Some(bytes) = column else {
        return Some(Vec::new());
    };
    (bytes.len() == count).then(|| bytes.iter().map(|byte| *byte != 0).collect())
}

/// The column for such flags: NULL where none is set.
fn to_column(flags: &[bool]) -> Option<Vec<u8>> {
    flags
        .contains(&true)
        .then(|| flags.iter().map(|flag| u8::from(*flag)).collect())
}

pub(super) fn unreadable(run: &JournaledRun, seq: i64) -> SnapshotError {
    SnapshotError::UnreadableChunk {
        run: run.number,
        seq,
    }
}

/// Entries of a chunk that can never be delivered.
fn dead(connection: &Connection, run: i64, seq: i64) -> Result<Vec<usize>, SnapshotError> {
    let mut statement = connection.prepare_cached(
        "SELECT position FROM dead WHERE run = ?1 AND seq = ?2 ORDER BY position",
    )?;
    let positions = statement.query_map([run, seq], |row| row.get::<_, i64>(0))?;
    Ok(positions
        .map(|position| position.map(|position| position as usize))
        .collect::<Result<_, _>>()?)
}

/// Applies what is newly accepted; returns how many entries are newly dead.
fn remember(
    connection: &Connection,
    run: &JournaledRun,
    settled: &Settled,
    now: i64,
) -> Result<i64, SnapshotError> {
    let Settled {
        chunk,
        accepted,
        maybe_accepted,
        dead,
    } = settled;
    if let Some(feed) = run.feed {
        let mut doubts = Doubts::of(connection, feed)?;
        // A run that was planned while its feed had doubts may tell users to leave who are no members.
        let has_phantoms = !doubts.is_empty();
        let mut apply = Apply::new(connection, feed, run, has_phantoms)?;
        for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
            let change = change.map_err(|_| unreadable(run, chunk.seq))?;
            if settled.is_new(entry) {
                apply.apply(&change)?;
                doubts.clear(change.member.user)?;
            } else if let Some(dead) = dead.iter().find(|dead| dead.position == entry) {
                let was_sent = dead.code.is_some();
                let may_be_there = was_sent
                    && (run.was_interrupted || maybe_accepted.get(entry).copied().unwrap_or(false));
                // A resync that was refused has yet to be made up for.
                if may_be_there || change.action == Action::Repeat {
                    doubts.note(&change.member)?;
                }
            }
        }
        apply.finish()?;
    }
    let newly_dead = note_dead(connection, run, chunk, dead, now)?;
    let dead: BTreeSet<usize> = dead
        .iter()
        .map(|dead| dead.position)
        .chain(chunk.dead.iter().copied())
        .collect();
    let leaves = (0..chunk.count).all(|entry| accepted[entry] || dead.contains(&entry));
    if leaves {
        connection
            .prepare_cached(
                "UPDATE chunk SET delivered_at = ?3, accepted = NULL, maybe_accepted = NULL WHERE run = ?1 AND seq = ?2",
            )?
            .execute(params![run.number, chunk.seq, now])?;
    } else {
        connection
            .prepare_cached(
                "UPDATE chunk SET accepted = ?3, maybe_accepted = ?4 WHERE run = ?1 AND seq = ?2",
            )?
            .execute(params![
                run.number,
                chunk.seq,
                to_column(accepted),
                to_column(maybe_accepted)
            ])?;
    }
    if leaves && !dead.is_empty() {
        drop_long_values(connection, run, chunk)?;
    }
    Ok(newly_dead)
}

/// Writes down which entries are dead, and why, each with its own bytes; returns how many are newly so.
fn note_dead(
    connection: &Connection,
    run: &JournaledRun,
    chunk: &Chunk,
    dead: &[Dead],
    now: i64,
) -> Result<i64, SnapshotError> {
    let mut newly_dead = 0;
    for dead in dead {
        let entry = match &dead.code {
            Some(_) => Some(entry_of(run, chunk, dead.position)?),
            None => None,
        };
        newly_dead += connection
            .prepare_cached(
                "INSERT OR IGNORE INTO dead (run, seq, position, at, code, reason, entry)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                run.number,
                chunk.seq,
                dead.position as i64,
                now,
                dead.code.as_deref().unwrap_or(TOO_LONG),
                dead.reason,
                entry
            ])? as i64;
    }
    Ok(newly_dead)
}

/// What stands in place of a code where no record can hold a line.
pub(super) const TOO_LONG: &str = "TooLong";

/// The bytes of one entry, as a chunk of its own.
fn entry_of(run: &JournaledRun, chunk: &Chunk, position: usize) -> Result<Vec<u8>, SnapshotError> {
    let missing = || unreadable(run, chunk.seq);
    let mut bytes = Vec::new();
    match run.computation {
        Some(_) => {
            let change: Option<Result<Change<'_>, _>> =
                chunk::changes(&chunk.entries).nth(position);
            let change = change.and_then(Result::ok).ok_or_else(missing)?;
            chunk::push_change(&mut bytes, &change);
        }
        None => {
            let call = chunk::calls(&chunk.entries).nth(position);
            chunk::push_call(&mut bytes, call.and_then(Result::ok).ok_or_else(missing)?);
        }
    }
    Ok(bytes)
}

/// Takes what was too long out of a chunk that is not sent again: each run decides about those users anew, and would keep
/// their megabytes anew.
fn drop_long_values(
    connection: &Connection,
    run: &JournaledRun,
    chunk: &Chunk,
) -> Result<(), SnapshotError> {
    let mut select = connection.prepare_cached(
        "SELECT position FROM dead WHERE run = ?1 AND seq = ?2 AND entry IS NULL",
    )?;
    let too_long = select.query_map([run.number, chunk.seq], |row| row.get::<_, i64>(0))?;
    let too_long: BTreeSet<i64> = too_long.collect::<Result<_, _>>()?;
    if run.computation.is_none() || too_long.is_empty() {
        return Ok(());
    }
    let mut entries = Vec::new();
    for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
        let mut change = change.map_err(|_| unreadable(run, chunk.seq))?;
        if too_long.contains(&(entry as i64)) {
            change.member.traits = "";
            if let Value::Text(_) = change.member.value {
                change.member.value = Value::Text("");
            }
        }
        chunk::push_change(&mut entries, &change);
    }
    connection.execute(
        "UPDATE bytes SET entries = ?3 WHERE id = (SELECT bytes FROM chunk WHERE run = ?1 AND seq = ?2)",
        params![run.number, chunk.seq, entries],
    )?;
    Ok(())
}
