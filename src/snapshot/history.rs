//! What the inspection commands read: audiences, members, runs, and everything that was said about one user.

use rusqlite::{OptionalExtension, params};

use super::held::Held;
use super::journal::flags;
use super::members::{SqlUser, SqlValueBuf, user};
use super::streams::{STREAM, stream_from};
use super::{Snapshot, SnapshotError, chunk, class, journal, streams};
use crate::audience::{AudienceId, Class, DestinationName, Key, User, UserKind, ValueBuf};
use crate::event::{Identify, MessageId};
use crate::run::{RunId, RunKind, Timestamp};
use crate::stream::Stream;

/// One audience at one stream.
#[derive(Debug, Clone)]
pub struct FeedSummary {
    pub id: AudienceId,
    pub key: Key,
    pub name: String,
    pub destination: DestinationName,
    pub stream: Stream,
    pub class: Class,
    pub retired: bool,
    pub members: u64,
    /// Users who may have been told that they are members, and are none.
    pub phantoms: u64,
    /// The last run about everyone, whatever came of it.
    pub last_run: Option<RunId>,
    pub last_outcome: Option<String>,
    /// When the last run about everyone was planned that did not fail, by the clock of that moment.
    pub last_planned_at: Option<Timestamp>,
    /// When that run had delivered everything.
    pub last_synced_at: Option<Timestamp>,
    /// Changes in the journal.
    pub pending: u64,
    /// Changes that the stream will not accept.
    pub dead: u64,
    /// What the guard kept back in the last run that planned.
    pub held: Option<Held>,
}

/// A member that a stream has accepted.
#[derive(Debug, Clone)]
pub struct MemberSummary<'a> {
    pub user: User<'a>,
    pub value: ValueBuf,
    pub since: Timestamp,
    pub run: RunId,
}

/// One run of the history.
#[derive(Debug, Clone)]
pub struct RunSummary {
    pub id: RunId,
    /// `None` for `send`.
    pub audience: Option<AudienceId>,
    /// `None` for `send`, and before the first run of the audience that planned.
    pub key: Option<Key>,
    pub destination: DestinationName,
    pub stream: Stream,
    pub kind: RunKind,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// `None` while it runs, and after a crash.
    pub outcome: Option<String>,
    pub error: Option<String>,
    pub members: u64,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    /// Removals that the guard kept back,
    pub held: u64,
    /// additions,
    pub held_added: u64,
    /// and changes.
    pub held_changed: u64,
    pub skipped_rows: u64,
    pub delivered: u64,
    pub dead: u64,
    pub pending: u64,
}

/// What a stream has accepted about a user, now.
#[derive(Debug, Clone)]
pub struct UserMembership {
    pub audience: AudienceId,
    pub key: Key,
    pub destination: DestinationName,
    pub stream: Stream,
    pub class: Class,
    /// Whether the user is known by user id or by anonymous id.
    pub user: UserKind,
    pub value: ValueBuf,
    pub since: Timestamp,
    /// The run that the user entered by, or that changed the value.
    pub run: RunId,
}

/// One change that a run decided about a user.
#[derive(Debug, Clone)]
pub struct ChangeEntry {
    pub audience: AudienceId,
    pub key: Key,
    pub class: Class,
    pub destination: DestinationName,
    pub stream: Stream,
    /// Whether the user is known by user id or by anonymous id.
    pub user: UserKind,
    pub run: RunId,
    pub kind: RunKind,
    /// When the run began.
    pub decided_at: Timestamp,
    /// The value of the trait, as JSON.
    pub value: String,
    pub message_id: MessageId,
    pub state: ChangeState,
}

#[derive(Debug, Clone)]
pub enum ChangeState {
    /// With its chunk, or before the rest of it where `None`.
    Delivered(Option<Timestamp>),
    Waiting,
    Dead(String),
}

impl Snapshot {
    /// Every audience and stream, in order of key.
    pub fn feeds(&self) -> Result<Vec<FeedSummary>, SnapshotError> {
        let mut statement = self.connection.prepare(&format!(
            "SELECT audience.id, audience.key, audience.name, feed.destination, audience.class, audience.retired_at IS NOT NULL, feed.members,
                    (SELECT count(*) FROM doubt WHERE doubt.feed = feed.number AND NOT EXISTS (
                         SELECT 1 FROM membership WHERE membership.feed = doubt.feed AND membership.user = doubt.user)),
                    last.id, last.outcome, planned.at, planned.held, planned.held_added, planned.held_changed,
                    planned.held_of, planned.held_sample,
                    (SELECT max(finished_at) FROM (SELECT finished_at FROM run WHERE audience_id = audience.id
                         AND run.stream = feed.stream AND outcome IN ('delivered', 'unchanged') AND NOT only_users
                         ORDER BY number DESC LIMIT 1)),
                    (SELECT coalesce(sum(planned - delivered - dead), 0) FROM run
                     WHERE run.feed = feed.number AND planned > delivered + dead),
                    (SELECT count(*) FROM dead JOIN run ON run.number = dead.run
                     WHERE superseded_by IS NULL AND run.feed = feed.number),
                    {STREAM}
             FROM feed JOIN audience ON audience.number = feed.audience JOIN stream ON stream.number = feed.stream
             LEFT JOIN run AS last ON last.number =
                    (SELECT number FROM run WHERE audience_id = audience.id AND run.stream = feed.stream
                     AND NOT only_users ORDER BY number DESC LIMIT 1)
             LEFT JOIN run AS planned ON planned.number =
                    (SELECT number FROM run WHERE audience_id = audience.id AND run.stream = feed.stream
                     AND outcome IS NOT 'failed' AND NOT only_users ORDER BY number DESC LIMIT 1)
             ORDER BY audience.key, feed.destination, stream.name"
        ))?;
        let mut rows = statement.query([])?;
        let mut feeds = Vec::new();
        while let Some(row) = rows.next()? {
            let count = |column| -> rusqlite::Result<u64> {
                Ok(row.get::<_, Option<i64>>(column)?.unwrap_or_default() as u64)
            };
            let time = |column| -> rusqlite::Result<Option<Timestamp>> {
                Ok(row
                    .get::<_, Option<i64>>(column)?
                    .map(Timestamp::from_millis))
            };
            let sample: Option<String> = row.get(15)?;
            let held = [count(11)?, count(12)?, count(13)?, count(14)?];
            feeds.push(FeedSummary {
                id: AudienceId::new(row.get::<_, String>(0)?),
                key: Key::new(row.get::<_, String>(1)?),
                name: row.get(2)?,
                destination: DestinationName::new(row.get::<_, String>(3)?),
                class: class(&row.get::<_, String>(4)?)?,
                retired: row.get(5)?,
                members: count(6)?,
                phantoms: count(7)?,
                last_run: row
                    .get::<_, Option<String>>(8)?
                    .as_deref()
                    .and_then(RunId::parse),
                last_outcome: row.get(9)?,
                last_planned_at: time(10)?,
                held: Held::of_run(held, sample.as_deref())?,
                last_synced_at: time(16)?,
                pending: count(17)?,
                dead: count(18)?,
                stream: stream_from(row, 19)?,
            });
        }
        Ok(feeds)
    }

    /// Hands on each member of an audience that a stream has accepted, in the order of users.
    pub fn each_member<E: From<SnapshotError>>(
        &self,
        audience: &AudienceId,
        stream: &Stream,
        mut each: impl FnMut(MemberSummary<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::from;
        let stream = streams::find(&self.connection, stream)?;
        let mut statement = self
            .connection
            .prepare(
                "SELECT user, value, run.started_at, run.id FROM membership JOIN run ON run.number = since
                 WHERE membership.feed = (
                     SELECT feed.number FROM feed JOIN audience ON audience.number = feed.audience
                     WHERE audience.id = ?1 AND feed.stream = ?2) ORDER BY user",
            )
            .map_err(sql)?;
        let mut rows = statement
            .query(params![audience.as_str(), stream])
            .map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (kind, id) = user(row.get_ref(0).map_err(sql)?)?;
            let run: String = row.get(3).map_err(sql)?;
            each(MemberSummary {
                user: User { kind, id },
                value: row.get::<_, SqlValueBuf>(1).map_err(sql)?.0,
                since: Timestamp::from_millis(row.get(2).map_err(sql)?).of_entering(),
                run: RunId::parse(&run).ok_or(SnapshotError::Unknown("run id"))?,
            })?;
        }
        Ok(())
    }

    /// Hands on each run, of one audience or of all, newest first, until there are `limit`.
    pub fn each_run<E: From<SnapshotError>>(
        &self,
        audience: Option<&AudienceId>,
        limit: u64,
        mut each: impl FnMut(RunSummary) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::from;
        // Two statements: each has an index that gives its runs in order.
        let which = match audience {
            Some(_) => "audience_id = ?1",
            None => "?1 IS NULL",
        };
        let mut statement = self
            .connection
            .prepare_cached(&format!(
                "SELECT run.id, audience_id, destination, kind, started_at, finished_at, outcome, error, members, added,
                        removed, changed, held, held_added, held_changed, skipped_rows, delivered, dead,
                        planned - delivered - dead,
                        (SELECT key FROM audience WHERE audience.id = audience_id LIMIT 1), {STREAM}
                 FROM run JOIN stream ON stream.number = run.stream
                 WHERE {which} ORDER BY started_at DESC, run.number DESC LIMIT ?2"
            ))
            .map_err(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = statement
            .query(params![audience.map(AudienceId::as_str), limit])
            .map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            each(run_summary(row)?)?;
        }
        Ok(())
    }

    /// What is accepted about a user now, by user id or by anonymous id.
    pub fn memberships(&self, id: &str) -> Result<Vec<UserMembership>, SnapshotError> {
        let mut feeds = self.connection.prepare(&format!(
            "SELECT feed.number, audience.id, key, destination, class, {STREAM}
             FROM feed JOIN audience ON audience.number = feed.audience JOIN stream ON stream.number = feed.stream
             ORDER BY key, destination, stream.name"
        ))?;
        // One by one: joined, the view would be made for every member first.
        let mut find = self.connection.prepare(
            "SELECT value, run.started_at, run.id FROM membership JOIN run ON run.number = since
             WHERE membership.feed = ?1 AND user = ?2",
        )?;
        let mut rows = feeds.query([])?;
        let mut memberships = Vec::new();
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            for user in by_any_kind(id) {
                let kind = user.0.kind;
                let mut found = find.query(params![number, user])?;
                let Some(member) = found.next()? else {
                    continue;
                };
                let run: String = member.get(2)?;
                memberships.push(UserMembership {
                    audience: AudienceId::new(row.get::<_, String>(1)?),
                    key: Key::new(row.get::<_, String>(2)?),
                    destination: DestinationName::new(row.get::<_, String>(3)?),
                    class: class(&row.get::<_, String>(4)?)?,
                    stream: stream_from(row, 5)?,
                    user: kind,
                    value: member.get::<_, SqlValueBuf>(0)?.0,
                    since: Timestamp::from_millis(member.get(1)?).of_entering(),
                    run: RunId::parse(&run).ok_or(SnapshotError::Unknown("run id"))?,
                });
            }
        }
        Ok(memberships)
    }

    /// Every change that the history holds about a user, by user id or by anonymous id, oldest first.
    pub fn changes_of(&self, id: &str) -> Result<Vec<ChangeEntry>, SnapshotError> {
        // Within a run and kind chunks are in order, so a range names the few that can hold the user.
        let mut statement = self.connection.prepare(
            "SELECT run, seq, count, delivered_at, accepted, entries FROM chunk JOIN bytes ON bytes.id = chunk.bytes
             WHERE first_user <= ?1 AND last_user >= ?1 OR first_user <= ?2 AND last_user >= ?2 ORDER BY run, seq",
        )?;
        let mut rows = statement.query(by_any_kind(id))?;
        let mut changes = Vec::new();
        while let Some(row) = rows.next()? {
            let (run, seq): (i64, i64) = (row.get(0)?, row.get(1)?);
            let delivered_at: Option<i64> = row.get(3)?;
            let entries: Vec<u8> = row.get(5)?;
            let run = journal::run(&self.connection, run)?;
            let Some(computation) = &run.computation else {
                continue;
            };
            let unreadable = || journal::unreadable(&run, seq);
            let accepted =
                flags(row.get(4)?, row.get::<_, i64>(2)? as usize).ok_or_else(unreadable)?;
            let identify = Identify::new(computation);
            for (position, change) in chunk::changes(&entries).enumerate() {
                let change = change.map_err(|_| unreadable())?;
                if change.member.user.id != id {
                    continue;
                }
                let state = match self.dead_row(run.number, seq, position)? {
                    // It is told by the chunk that it went to.
                    Some((_, Some(requeued_by))) if requeued_by == run.number => continue,
                    Some((reason, _)) => ChangeState::Dead(reason),
                    None if delivered_at.is_some() => {
                        ChangeState::Delivered(delivered_at.map(Timestamp::from_millis))
                    }
                    None if accepted.get(position) == Some(&true) => ChangeState::Delivered(None),
                    None => ChangeState::Waiting,
                };
                changes.push(ChangeEntry {
                    audience: computation.audience.clone(),
                    key: computation.key.clone(),
                    class: computation.class,
                    destination: run.destination.clone(),
                    stream: run.stream.clone(),
                    user: change.member.user.kind,
                    run: run.id,
                    kind: run.kind,
                    decided_at: computation.started_at,
                    value: String::from_utf8_lossy(&identify.value(&change)).into_owned(),
                    message_id: identify.message_id(&change),
                    state,
                });
            }
        }
        Ok(changes)
    }

    /// Why an entry is dead, and what has superseded it.
    fn dead_row(
        &self,
        run: i64,
        seq: i64,
        position: usize,
    ) -> Result<Option<(String, Option<i64>)>, SnapshotError> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT reason, superseded_by FROM dead WHERE run = ?1 AND seq = ?2 AND position = ?3",
            )?
            .query_row(params![run, seq, position as i64], |row| {
                Ok((row.get(0)?, row.get(1)?))
            });
        Ok(row.optional()?)
    }
}

/// The two columns that an id may stand for.
fn by_any_kind(id: &str) -> [SqlUser<'_>; 2] {
    [UserKind::UserId, UserKind::AnonymousId].map(|kind| SqlUser(User { kind, id }))
}

fn run_summary(row: &rusqlite::Row<'_>) -> Result<RunSummary, SnapshotError> {
    let count = |index| row.get::<_, i64>(index).map(|count| count as u64);
    Ok(RunSummary {
        id: RunId::parse(&row.get::<_, String>(0)?).ok_or(SnapshotError::Unknown("run id"))?,
        audience: row.get::<_, Option<String>>(1)?.map(AudienceId::new),
        key: row.get::<_, Option<String>>(19)?.map(Key::new),
        destination: DestinationName::new(row.get::<_, String>(2)?),
        kind: RunKind::parse(&row.get::<_, String>(3)?)
            .ok_or(SnapshotError::Unknown("kind of run"))?,
        started_at: Timestamp::from_millis(row.get(4)?),
        finished_at: row.get::<_, Option<i64>>(5)?.map(Timestamp::from_millis),
        outcome: row.get(6)?,
        error: row.get(7)?,
        members: count(8)?,
        added: count(9)?,
        removed: count(10)?,
        changed: count(11)?,
        held: count(12)?,
        held_added: count(13)?,
        held_changed: count(14)?,
        skipped_rows: count(15)?,
        delivered: count(16)?,
        dead: count(17)?,
        pending: count(18)?,
        stream: stream_from(row, 20)?,
    })
}
