//! What a run decided, written whole before anything is sent: the run and all of its chunks, or nothing.

use rusqlite::{Connection, OptionalExtension, params};

use super::dead::supersede_dead;
use super::grounds::Grounds;
use super::held::{Approval, Held, LastHeld, Leavers};
use super::journal::{json, run};
use super::members::{Delivered, SelectMembers};
use super::rehearsal::{Rehearsed, Weigh};
use super::writer::{ChunkKind, ChunkWriter};
use super::{JournaledRun, Snapshot, SnapshotError, chunk};
use crate::audience::{Action, Change, Guard};
use crate::bill::Foreseen;
use crate::diff::Tally;
use crate::event::{Computation, Identify};
use crate::mapping::StreamName;
use crate::run::{Outcome, RunKind, Timestamp};

/// A run that is about to be decided.
#[derive(Debug, Clone)]
pub struct Planning {
    pub computation: Computation,
    pub name: String,
    pub kind: RunKind,
    pub streams: Vec<StreamName>,
    /// `None` where removals are sent whatever their number.
    pub guard: Option<Guard>,
    /// Somebody said yes to what an earlier run held.
    pub approve: bool,
}

/// What was decided.
#[derive(Debug, Clone)]
pub struct Plan {
    pub run: JournaledRun,
    pub tally: Tally,
    /// Removals that the guard kept out of the journal.
    pub held: Option<Held>,
    /// Of removals that are in it although an earlier run held some.
    pub approval: Option<Approval>,
    pub skipped_rows: u64,
    /// Changes that a change query had not told of, where everyone was read to see that.
    pub missed: Option<u64>,
    /// What it would be for one stream: only a rehearsal renders its lines.
    pub foreseen: Option<Foreseen>,
}

impl Snapshot {
    /// Decides a run and writes it to the journal, all or nothing.
    ///
    /// `merge` compares the source with the delivered members and gives each change to the journal; it returns the
    /// tally and the number of rows it skipped.
    pub fn plan<E: From<SnapshotError>>(
        &mut self,
        planning: &Planning,
        merge: impl FnOnce(&mut Delivered<'_>, &mut Journal<'_>) -> Result<(Tally, u64), E>,
    ) -> Result<Plan, E> {
        let transaction = self.begin()?;
        let plan = plan(&transaction, planning, merge)?;
        tracing::debug!(
            audience = %planning.computation.audience,
            run = %planning.computation.run,
            members = plan.tally.members,
            delivered = plan.tally.delivered,
            changes = plan.run.waiting,
            held = plan.held.as_ref().map_or(0, |held| held.count),
            "planned"
        );
        transaction.commit().map_err(SnapshotError::from)?;
        Ok(plan)
    }

    /// Remembers a run that decided nothing, with the reason.
    pub fn fail(&mut self, planning: &Planning, error: &str) -> Result<(), SnapshotError> {
        // In one transaction, as a plan is: a run without an outcome would be taken for one that planned.
        let transaction = self.begin()?;
        let audience = number_of(&transaction, &planning.computation)?;
        let run = insert_run(&transaction, planning, audience)?;
        transaction.execute(
            "UPDATE run SET finished_at = ?2, outcome = ?3, error = ?4 WHERE number = ?1",
            params![
                run,
                Timestamp::now().millis(),
                Outcome::Failed.as_str(),
                error
            ],
        )?;
        transaction.commit()?;
        Ok(())
    }
}

fn plan<E: From<SnapshotError>>(
    transaction: &Connection,
    planning: &Planning,
    merge: impl FnOnce(&mut Delivered<'_>, &mut Journal<'_>) -> Result<(Tally, u64), E>,
) -> Result<Plan, E> {
    let audience = audience(transaction, planning)?;
    let last_held = last_held(transaction, planning)?;
    let number = insert_run(transaction, planning, Some(audience))?;
    supersede_dead(transaction, &planning.computation, number)?;
    let mut members = SelectMembers::of(transaction, Some(audience), planning.computation.class)?;
    let delivered = members.read(Some(audience))?;
    let journal = Journal::write(transaction, number, planning)?;
    let decided = decide(planning, delivered, journal, last_held, merge)?;
    let Decided {
        tally,
        skipped_rows,
        ..
    } = decided;
    let held = decided.held.as_ref();
    let sample = held.map(|held| serde_json::to_string(&held.sample).expect("ids are JSON"));
    transaction
        .execute(
            "UPDATE run SET members = ?2, added = ?3, removed = ?4, changed = ?5, held = ?6, skipped_rows = ?7, planned = ?8,
                    held_of = ?9, held_sample = ?10, held_digest = ?11
             WHERE number = ?1",
            params![
                number,
                tally.members as i64,
                tally.added as i64,
                tally.removed as i64,
                tally.changed as i64,
                decided.held_count() as i64,
                skipped_rows as i64,
                decided.planned() as i64,
                held.map_or(0, |held| held.of as i64),
                sample,
                held.and(decided.digest.as_deref())
            ],
        )
        .map_err(SnapshotError::from)?;
    let is_complete = decided.held.is_none();
    Grounds::note(decided.grounds.as_ref(), transaction, audience, is_complete)?;
    Ok(decided.into_plan(run(transaction, number)?))
}

/// What a merge came to.
pub(super) struct Decided {
    pub(super) tally: Tally,
    pub(super) skipped_rows: u64,
    held: Option<Held>,
    approval: Option<Approval>,
    /// Of all who leave.
    digest: Option<Vec<u8>>,
    grounds: Option<Grounds>,
    foreseen: Option<Foreseen>,
}

impl Decided {
    pub(super) fn held_count(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.count)
    }

    /// Changes that are in the journal now.
    pub(super) fn planned(&self) -> u64 {
        let Tally {
            added,
            changed,
            repeated,
            removed,
            ..
        } = self.tally;
        added + changed + repeated + removed - self.held_count()
    }

    pub(super) fn into_plan(self, run: JournaledRun) -> Plan {
        Plan {
            run,
            tally: self.tally,
            held: self.held,
            approval: self.approval,
            skipped_rows: self.skipped_rows,
            missed: self.grounds.as_ref().and_then(Grounds::missed),
            foreseen: self.foreseen,
        }
    }
}

/// Merges into a journal, and takes the removals out of it where the guard holds them.
pub(super) fn decide<E: From<SnapshotError>>(
    planning: &Planning,
    mut delivered: Delivered<'_>,
    mut journal: Journal<'_>,
    last_held: Option<LastHeld>,
    merge: impl FnOnce(&mut Delivered<'_>, &mut Journal<'_>) -> Result<(Tally, u64), E>,
) -> Result<Decided, E> {
    let (tally, skipped_rows) = merge(&mut delivered, &mut journal)?;
    let holds = |guard: Guard| guard.holds(tally.removed, tally.delivered, tally.members);
    let is_held = planning.guard.is_some_and(holds);
    let (sample, digest) = journal.leavers.take().map(Leavers::finish).unzip();
    let compare = |last: LastHeld| digest.as_deref().map(|digest| last.compare(digest));
    Ok(Decided {
        tally,
        skipped_rows,
        held: is_held.then(|| Held {
            count: tally.removed,
            of: tally.delivered,
            sample: sample.unwrap_or_default(),
        }),
        grounds: journal.grounds.take(),
        approval: last_held.filter(|_| tally.removed > 0).and_then(compare),
        foreseen: journal.close(is_held)?,
        digest,
    })
}

/// What there is to approve, where somebody does.
pub(super) fn last_held(
    connection: &Connection,
    planning: &Planning,
) -> Result<Option<LastHeld>, SnapshotError> {
    if !planning.approve {
        return Ok(None);
    }
    LastHeld::find(connection, &planning.computation)
}

/// The number of the audience, which is known from now on, and by its present name.
fn audience(connection: &Connection, planning: &Planning) -> Result<i64, SnapshotError> {
    let Computation {
        audience,
        destination,
        key,
        class,
        ..
    } = &planning.computation;
    Ok(connection.query_row(
        "INSERT INTO audience (id, destination, key, class, name) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id, destination) DO UPDATE SET name = excluded.name RETURNING number",
        params![
            audience.as_str(),
            destination.as_str(),
            key.as_str(),
            class.as_str(),
            planning.name
        ],
        |row| row.get(0),
    )?)
}

pub(super) fn number_of(
    connection: &Connection,
    computation: &Computation,
) -> Result<Option<i64>, SnapshotError> {
    let number = connection.query_row(
        "SELECT number FROM audience WHERE id = ?1 AND destination = ?2",
        params![
            computation.audience.as_str(),
            computation.destination.as_str()
        ],
        |row| row.get(0),
    );
    Ok(number.optional()?)
}

fn insert_run(
    connection: &Connection,
    planning: &Planning,
    audience: Option<i64>,
) -> Result<i64, SnapshotError> {
    let Computation {
        audience: id,
        destination,
        run,
        started_at,
        space_id,
        ..
    } = &planning.computation;
    connection.execute(
        "INSERT INTO run (id, audience, audience_id, destination, kind, started_at, space_id, streams)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            run.to_string(),
            audience,
            id.as_str(),
            destination.as_str(),
            planning.kind.as_str(),
            started_at.millis(),
            space_id,
            json(&planning.streams)
        ],
    )?;
    Ok(connection.last_insert_rowid())
}

/// Where a merge puts what it decides.
pub struct Journal<'c> {
    identify: Identify,
    /// Only where the guard may hold them, or somebody approves.
    leavers: Option<Leavers>,
    grounds: Option<Grounds>,
    to: Destined<'c>,
}

enum Destined<'c> {
    /// Entering and leaving users are both in order, each in chunks of their own.
    Disk {
        entering: Box<ChunkWriter<'c>>,
        leaving: Box<ChunkWriter<'c>>,
    },
    /// The same chunks, one at a time.
    Nowhere {
        entering: Box<Rehearsed<'c>>,
        leaving: Box<Rehearsed<'c>>,
    },
}

impl<'c> Journal<'c> {
    fn write(
        connection: &'c Connection,
        run: i64,
        planning: &Planning,
    ) -> Result<Self, SnapshotError> {
        // Even numbers for one, odd ones for the other: neither needs to know how many the other wrote.
        let writer =
            |first| Ok::<_, SnapshotError>(Box::new(ChunkWriter::new(connection, run, first, 2)?));
        let to = Destined::Disk {
            entering: writer(0)?,
            leaving: writer(1)?,
        };
        Ok(Self::new(planning, to))
    }

    /// Weighs what it is given, and keeps nothing.
    pub(super) fn rehearse(planning: &Planning, weigh: Weigh<'c>) -> Self {
        let to = Destined::Nowhere {
            entering: Box::new(Rehearsed::new(weigh)),
            leaving: Box::new(Rehearsed::new(weigh)),
        };
        Self::new(planning, to)
    }

    fn new(planning: &Planning, to: Destined<'c>) -> Self {
        let is_asked_about = planning.guard.is_some() || planning.approve;
        Self {
            identify: Identify::new(&planning.computation),
            leavers: is_asked_about.then(Leavers::default),
            grounds: None,
            to,
        }
    }

    /// Says what the plan rests on, once all of the source was read.
    pub fn rest_on(&mut self, grounds: Grounds) {
        self.grounds = Some(grounds);
    }

    pub fn push(&mut self, change: &Change<'_>) -> Result<(), SnapshotError> {
        let leaves = change.action == Action::Leave;
        if leaves && let Some(leavers) = &mut self.leavers {
            leavers.push(change.member.user);
        }
        match &mut self.to {
            Destined::Disk { entering, leaving } => {
                let (writer, kind) = if leaves {
                    (leaving, ChunkKind::Leaving)
                } else {
                    (entering, ChunkKind::Entering)
                };
                let bytes = self.identify.longest_line(change);
                writer.push(kind, Some(change), bytes, |entries| {
                    chunk::push_change(entries, change)
                })
            }
            Destined::Nowhere { entering, leaving } => {
                let rehearsed = if leaves { leaving } else { entering };
                let bytes = self.identify.longest_line(change);
                rehearsed.push(bytes, |line| self.identify.render(change, line));
                Ok(())
            }
        }
    }

    /// Writes what is left, or drops all removals.
    fn close(self, drop_leaving: bool) -> Result<Option<Foreseen>, SnapshotError> {
        match self.to {
            Destined::Disk {
                mut entering,
                mut leaving,
            } => {
                entering.flush()?;
                leaving.flush()?;
                if drop_leaving {
                    leaving.drop_all(ChunkKind::Leaving)?;
                }
                Ok(None)
            }
            Destined::Nowhere { entering, leaving } => {
                let mut foreseen = entering.finish();
                if !drop_leaving {
                    foreseen += leaving.finish();
                }
                Ok(Some(foreseen))
            }
        }
    }
}
