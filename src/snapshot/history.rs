//! What the inspection commands read: audiences, members, runs, and everything that was said about one user.

use rusqlite::{OptionalExtension, params};

use super::dead::IS_LETTER;
use super::held::Held;
use super::members::{SqlUser, SqlValueBuf, user};
use super::{Snapshot, SnapshotError, chunk, class, journal};
use crate::audience::{AudienceId, Class, DestinationName, Key, User, UserKind, ValueBuf};
use crate::event::{Identify, MessageId};
use crate::mapping::StreamName;
use crate::run::{RunId, RunKind, Timestamp};

/// One audience at one destination.
#[derive(Debug, Clone)]
pub struct AudienceSummary {
    pub id: AudienceId,
    pub key: Key,
    pub name: String,
    pub destination: DestinationName,
    pub class: Class,
    pub members: u64,
    /// The last run, whatever came of it.
    pub last_run: Option<RunId>,
    /// When the last run began that did not fail,
    pub last_started_at: Option<Timestamp>,
    /// and when it ended.
    pub last_synced_at: Option<Timestamp>,
    /// Changes in the journal.
    pub pending: u64,
    /// Removals that the guard kept back in the last run that planned,
    pub held: u64,
    /// and more about them.
    pub hold: Option<Held>,
}

/// A member that Firehose has accepted.
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
    pub held: u64,
    pub skipped_rows: u64,
    pub delivered: u64,
    pub dead: u64,
    pub pending: u64,
}

/// What Firehose has accepted about a user, now.
#[derive(Debug, Clone)]
pub struct Membership {
    pub audience: AudienceId,
    pub key: Key,
    pub destination: DestinationName,
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
pub struct Deed {
    pub audience: AudienceId,
    pub key: Key,
    pub class: Class,
    pub destination: DestinationName,
    /// Whether the user is known by user id or by anonymous id.
    pub user: UserKind,
    pub run: RunId,
    pub kind: RunKind,
    /// The timestamp of the record.
    pub decided_at: Timestamp,
    pub streams: Vec<StreamName>,
    /// The value of the trait, as JSON.
    pub value: String,
    pub message_id: MessageId,
    pub state: DeedState,
}

#[derive(Debug, Clone)]
pub enum DeedState {
    /// With its chunk, or before the rest of it where `None`.
    Delivered(Option<Timestamp>),
    Waiting,
    Dead(String),
}

impl Snapshot {
    /// Every audience and destination, in order of key.
    pub fn audiences(&self) -> Result<Vec<AudienceSummary>, SnapshotError> {
        let mut statement = self.connection.prepare(
            "SELECT audience.id, key, name, audience.destination, class,
                    audience.members,
                    (SELECT run.id FROM run WHERE audience_id = audience.id AND run.destination = audience.destination
                     ORDER BY number DESC LIMIT 1),
                    (SELECT finished_at FROM run WHERE audience_id = audience.id AND run.destination = audience.destination
                     AND outcome <> 'failed' ORDER BY number DESC LIMIT 1),
                    (SELECT coalesce(sum(planned - delivered - dead), 0) FROM run
                     WHERE run.audience = audience.number AND planned > delivered + dead),
                    last.started_at, last.held, last.held_of, last.held_sample
             FROM audience LEFT JOIN run AS last ON last.number =
                    (SELECT number FROM run WHERE audience_id = audience.id AND run.destination = audience.destination
                     AND outcome IS NOT 'failed' ORDER BY number DESC LIMIT 1)
             ORDER BY audience.key, audience.destination",
        )?;
        let mut rows = statement.query([])?;
        let mut audiences = Vec::new();
        while let Some(row) = rows.next()? {
            let held = row.get::<_, Option<i64>>(10)?.unwrap_or_default() as u64;
            let held_of = row.get::<_, Option<i64>>(11)?.unwrap_or_default();
            let sample: Option<String> = row.get(12)?;
            audiences.push(AudienceSummary {
                id: AudienceId::new(row.get::<_, String>(0)?),
                key: Key::new(row.get::<_, String>(1)?),
                name: row.get(2)?,
                destination: DestinationName::new(row.get::<_, String>(3)?),
                class: class(&row.get::<_, String>(4)?)?,
                members: row.get::<_, i64>(5)? as u64,
                last_run: row
                    .get::<_, Option<String>>(6)?
                    .as_deref()
                    .and_then(RunId::parse),
                last_started_at: row.get::<_, Option<i64>>(9)?.map(Timestamp::from_millis),
                last_synced_at: row.get::<_, Option<i64>>(7)?.map(Timestamp::from_millis),
                pending: row.get::<_, i64>(8)? as u64,
                held,
                hold: Held::of_run(held, held_of, sample.as_deref())?,
            });
        }
        Ok(audiences)
    }

    /// Hands on each member of an audience at a destination, in the order of users.
    pub fn each_member<E: From<SnapshotError>>(
        &self,
        audience: &AudienceId,
        destination: &DestinationName,
        mut each: impl FnMut(MemberSummary<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::from;
        let mut statement = self
            .connection
            .prepare(
                "SELECT user, value, run.started_at, run.id FROM membership JOIN run ON run.number = since
                 WHERE membership.audience = (SELECT number FROM audience WHERE id = ?1 AND destination = ?2) ORDER BY user",
            )
            .map_err(sql)?;
        let mut rows = statement
            .query(params![audience.as_str(), destination.as_str()])
            .map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (kind, id) = user(row.get_ref(0).map_err(sql)?)?;
            let run: String = row.get(3).map_err(sql)?;
            each(MemberSummary {
                user: User { kind, id },
                value: row.get::<_, SqlValueBuf>(1).map_err(sql)?.0,
                since: Timestamp::from_millis(row.get(2).map_err(sql)?),
                run: RunId::parse(&run).ok_or(SnapshotError::Unknown("run id"))?,
            })?;
        }
        Ok(())
    }

    /// Hands on each run, of one audience or of all, newest first.
    pub fn each_run<E: From<SnapshotError>>(
        &self,
        audience: Option<&AudienceId>,
        mut each: impl FnMut(RunSummary) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::from;
        let mut statement = self
            .connection
            .prepare(
                "SELECT id, audience_id, destination, kind, started_at, finished_at, outcome, error, members, added,
                        removed, changed, held, skipped_rows, delivered, dead, planned - delivered - dead,
                        (SELECT key FROM audience WHERE audience.id = audience_id LIMIT 1)
                 FROM run WHERE ?1 IS NULL OR audience_id = ?1 ORDER BY number DESC",
            )
            .map_err(sql)?;
        let mut rows = statement
            .query([audience.map(AudienceId::as_str)])
            .map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            each(run_summary(row)?)?;
        }
        Ok(())
    }

    /// What is accepted about a user now, by user id or by anonymous id.
    pub fn memberships(&self, id: &str) -> Result<Vec<Membership>, SnapshotError> {
        let mut audiences = self.connection.prepare(
            "SELECT number, id, key, destination, class FROM audience ORDER BY key, destination",
        )?;
        // One by one: joined, the view would be made for every member first.
        let mut find = self.connection.prepare(
            "SELECT value, run.started_at, run.id FROM membership JOIN run ON run.number = since
             WHERE membership.audience = ?1 AND user = ?2",
        )?;
        let mut rows = audiences.query([])?;
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
                memberships.push(Membership {
                    audience: AudienceId::new(row.get::<_, String>(1)?),
                    key: Key::new(row.get::<_, String>(2)?),
                    destination: DestinationName::new(row.get::<_, String>(3)?),
                    class: class(&row.get::<_, String>(4)?)?,
                    user: kind,
                    value: member.get::<_, SqlValueBuf>(0)?.0,
                    since: Timestamp::from_millis(member.get(1)?),
                    run: RunId::parse(&run).ok_or(SnapshotError::Unknown("run id"))?,
                });
            }
        }
        Ok(memberships)
    }

    /// Everything the history says about a user, by user id or by anonymous id, oldest first.
    pub fn deeds(&self, id: &str) -> Result<Vec<Deed>, SnapshotError> {
        // Within a run and kind chunks are in order, so a range names the few that can hold the user.
        let mut statement = self.connection.prepare(
            "SELECT run, seq, entries FROM chunk
             WHERE first_user <= ?1 AND last_user >= ?1 OR first_user <= ?2 AND last_user >= ?2 ORDER BY run, seq",
        )?;
        let mut rows = statement.query(by_any_kind(id))?;
        let mut deeds = Vec::new();
        while let Some(row) = rows.next()? {
            let (run, seq): (i64, i64) = (row.get(0)?, row.get(1)?);
            let entries: Vec<u8> = row.get(2)?;
            let run = journal::run(&self.connection, run)?;
            let Some(computation) = &run.computation else {
                continue;
            };
            let identify = Identify::new(computation);
            for (position, change) in chunk::changes(&entries).enumerate() {
                let change = change.map_err(|_| SnapshotError::UnreadableChunk {
                    run: run.number,
                    seq,
                })?;
                if change.member.user.id != id {
                    continue;
                }
                deeds.push(Deed {
                    audience: computation.audience.clone(),
                    key: computation.key.clone(),
                    class: computation.class,
                    destination: computation.destination.clone(),
                    user: change.member.user.kind,
                    run: run.id,
                    kind: run.kind,
                    decided_at: computation.started_at,
                    streams: run.streams.clone(),
                    value: String::from_utf8_lossy(&identify.value(&change)).into_owned(),
                    message_id: identify.message_id(&change),
                    state: self.state(&run, seq, position)?,
                });
            }
        }
        Ok(deeds)
    }

    fn state(
        &self,
        run: &journal::JournaledRun,
        seq: i64,
        position: usize,
    ) -> Result<DeedState, SnapshotError> {
        let dead = self.connection.query_row(
            "SELECT reason FROM dead WHERE run = ?1 AND seq = ?2 AND position = ?3",
            params![run.number, seq, position as i64],
            |row| row.get(0),
        );
        if let Some(reason) = dead.optional()? {
            return Ok(DeedState::Dead(reason));
        }
        let delivered = self.connection.query_row(
            "SELECT at FROM delivered WHERE run = ?1 AND seq = ?2",
            params![run.number, seq],
            |row| row.get(0),
        );
        if let Some(at) = delivered.optional()? {
            return Ok(DeedState::Delivered(Some(Timestamp::from_millis(at))));
        }
        let accepted = journal::accepted(&self.connection, run, seq, None)?;
        let everywhere = !accepted.is_empty()
            && accepted
                .iter()
                .all(|stream| stream.get(position).copied().unwrap_or(false));
        Ok(if everywhere {
            DeedState::Delivered(None)
        } else {
            DeedState::Waiting
        })
    }
}

impl Snapshot {
    /// Drops the chunks of runs that began before a time, have nothing left to deliver and no letter that may be sent
    /// again, and whom they held. The runs stay, and so does what they did to the members.
    pub fn prune(&mut self, before: Timestamp) -> Result<(), SnapshotError> {
        let last: Option<i64> = self.connection.query_row(
            "SELECT max(number) FROM run WHERE started_at < ?1",
            [before.millis()],
            |row| row.get(0),
        )?;
        let Some(last) = last else { return Ok(()) };
        let transaction = self.connection.transaction()?;
        for table in ["chunk", "delivered", "partly_delivered", "dead"] {
            transaction.execute(
                &format!(
                    "DELETE FROM {table} WHERE run <= ?1
                     AND run NOT IN (SELECT number FROM run WHERE planned > delivered + dead)
                     AND run NOT IN (SELECT run FROM dead WHERE {IS_LETTER})"
                ),
                [last],
            )?;
        }
        transaction.execute(
            "UPDATE run SET held_sample = NULL WHERE number <= ?1 AND held_sample IS NOT NULL",
            [last],
        )?;
        Ok(transaction.commit()?)
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
        key: row.get::<_, Option<String>>(17)?.map(Key::new),
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
        skipped_rows: count(13)?,
        delivered: count(14)?,
        dead: count(15)?,
        pending: count(16)?,
    })
}
