//! What a run decided, written whole before anything is sent: the runs of all feeds of an audience, and all of their
//! chunks, or nothing.

use rusqlite::{Connection, OptionalExtension, params};

use super::dead::supersede_dead;
use super::dry_run::{Estimate, Estimator};
use super::held::{Approval, Held, HeldUser, last_shown, sample};
use super::journal::run;
use super::members::{Delivered, SelectMembers};
use super::watermark::Watermark;
use super::writer::{ChunkKind, ChunkWriter};
use super::{JournaledRun, Snapshot, SnapshotError, chunk, life, streams};
use crate::audience::{Action, AudienceId, Change, DestinationName, Guard};
use crate::bill::Foreseen;
use crate::diff::{Scope, Tally};
use crate::event::{Computation, Identify};
use crate::run::{Outcome, RunKind, Timestamp};
use crate::stream::Stream;

/// A run of one feed that is about to be decided.
#[derive(Debug, Clone)]
pub struct Planning {
    pub computation: Computation,
    pub stream: Stream,
    pub destination: DestinationName,
    pub name: String,
    pub kind: RunKind,
    pub scope: Scope,
    /// Members are also sent again when their extra traits have changed.
    pub refresh: bool,
    /// `None` where nothing is held.
    pub guard: Option<Guard>,
    /// Delivers what the guard holds, as far as it covers that.
    pub approval: Option<Approval>,
}

impl Planning {
    /// Whether it is about single users.
    pub(super) const fn names_users(&self) -> bool {
        matches!(self.scope, Scope::Users(_))
    }
}

/// What was decided.
#[derive(Debug, Clone)]
pub struct Plan {
    pub run: JournaledRun,
    pub tally: Tally,
    /// What the guard kept out of the journal.
    pub held: Option<Held>,
    pub skipped_rows: u64,
    /// Changes that a change query had not reported, where everyone was read to see that.
    pub missed: Option<u64>,
    /// What it would count: only a dry run renders its lines.
    pub estimate: Option<Foreseen>,
}

/// What reading the source came to.
#[derive(Debug)]
pub struct Decided {
    /// Of each feed.
    pub tallies: Vec<Tally>,
    pub skipped_rows: u64,
    pub watermark: Watermark,
}

impl Snapshot {
    /// Decides the runs of some feeds of one audience and writes them to the journal, all or nothing.
    ///
    /// `decide` compares the source with the delivered members of each feed and gives each change to the feed's journal.
    pub fn plan<E: From<SnapshotError>>(
        &mut self,
        plannings: &[Planning],
        decide: impl FnOnce(Vec<Delivered<'_>>, &mut [Journal<'_>]) -> Result<Decided, E>,
    ) -> Result<Vec<Plan>, E> {
        let transaction = self.begin()?;
        let plans = plan(&transaction, plannings, decide)?;
        for (planning, plan) in plannings.iter().zip(&plans) {
            tracing::debug!(
                audience = %planning.computation.audience,
                stream = %planning.stream.name,
                run = %planning.computation.run,
                members = plan.tally.members,
                delivered = plan.tally.delivered,
                changes = plan.run.waiting,
                held = plan.held.as_ref().map_or(0, Held::count),
                "planned"
            );
        }
        transaction.commit().map_err(SnapshotError::from)?;
        Ok(plans)
    }

    /// Remembers runs that decided nothing, with the reason.
    pub fn fail(&mut self, plannings: &[Planning], error: &str) -> Result<(), SnapshotError> {
        // In one transaction, as a plan is: a run without an outcome would be taken for one that planned.
        let transaction = self.begin()?;
        for planning in plannings {
            let stream = streams::number_of(&transaction, &planning.stream)?;
            let feed = feed_of(&transaction, &planning.computation.audience, Some(stream))?;
            let run = insert_run(&transaction, planning, feed, stream)?;
            transaction.execute(
                "UPDATE run SET finished_at = ?2, outcome = ?3, error = ?4 WHERE number = ?1",
                params![
                    run,
                    Timestamp::now().millis(),
                    Outcome::Failed.as_str(),
                    error
                ],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn plan<E: From<SnapshotError>>(
    transaction: &Connection,
    plannings: &[Planning],
    decide: impl FnOnce(Vec<Delivered<'_>>, &mut [Journal<'_>]) -> Result<Decided, E>,
) -> Result<Vec<Plan>, E> {
    let mut feeds = Vec::with_capacity(plannings.len());
    let mut selects = Vec::with_capacity(plannings.len());
    let mut journals = Vec::with_capacity(plannings.len());
    for planning in plannings {
        let class = planning.computation.class;
        let stream = streams::number_of(transaction, &planning.stream)?;
        let feed = feed(transaction, planning, stream)?;
        let shown = last_shown(transaction, planning, Some(stream))?;
        let number = insert_run(transaction, planning, Some(feed), stream)?;
        supersede_dead(transaction, feed, number, &planning.scope)?;
        selects.push(SelectMembers::of(
            transaction,
            Some(feed),
            class,
            planning.refresh,
        )?);
        journals.push(Journal::write(transaction, number, planning)?);
        feeds.push((feed, number, shown));
    }
    let delivered = selects.iter_mut().map(SelectMembers::read);
    let delivered = delivered.collect::<Result<Vec<_>, _>>()?;
    let decided = decide(delivered, &mut journals)?;
    let mut plans = Vec::with_capacity(plannings.len());
    let feeds = plannings
        .iter()
        .zip(feeds)
        .zip(journals)
        .zip(&decided.tallies);
    for (((planning, (feed, number, shown)), mut journal), tally) in feeds {
        let held = journal.held(planning, tally, shown);
        journal.close(held.as_ref())?;
        let planned = tally.decided() - held.as_ref().map_or(0, Held::count);
        note_decided(transaction, number, tally, &decided, held.as_ref(), planned)?;
        let is_complete = held.is_none();
        match planning.names_users() {
            true => decided.watermark.compare(transaction, feed)?,
            false => Watermark::note(Some(&decided.watermark), transaction, feed, is_complete)?,
        }
        plans.push(Plan {
            run: JournaledRun {
                // Nothing of it was sent yet.
                was_interrupted: false,
                ..run(transaction, number)?
            },
            tally: *tally,
            held,
            skipped_rows: decided.skipped_rows,
            missed: decided.watermark.missed(),
            estimate: None,
        });
    }
    Ok(plans)
}

fn note_decided(
    connection: &Connection,
    run: i64,
    tally: &Tally,
    decided: &Decided,
    held: Option<&Held>,
    planned: u64,
) -> Result<(), SnapshotError> {
    let sample = held.map(|held| serde_json::to_string(&held.sample).expect("ids are JSON"));
    let [removals, additions, changes, of] = held.map_or([0; 4], |held| {
        [held.removals, held.additions, held.changes, held.of]
    });
    connection
        .prepare_cached(
            "UPDATE run SET members = ?2, added = ?3, removed = ?4, changed = ?5, skipped_rows = ?6, planned = ?7,
                    held = ?8, held_added = ?9, held_changed = ?10, held_of = ?11, held_sample = ?12
             WHERE number = ?1",
        )?
        .execute(params![
            run,
            tally.members as i64,
            tally.added as i64,
            tally.removed as i64,
            tally.changed as i64,
            decided.skipped_rows as i64,
            planned as i64,
            removals as i64,
            additions as i64,
            changes as i64,
            of as i64,
            sample
        ])?;
    Ok(())
}

/// The number of the feed, which is known from now on, and its audience by its present name.
fn feed(connection: &Connection, planning: &Planning, stream: i64) -> Result<i64, SnapshotError> {
    let Computation {
        audience,
        key,
        class,
        ..
    } = &planning.computation;
    let audience: i64 = connection
        .prepare_cached(
            "INSERT INTO audience (id, key, class, name) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING number",
        )?
        .query_row(
            params![
                audience.as_str(),
                key.as_str(),
                class.as_str(),
                planning.name
            ],
            |row| row.get(0),
        )?;
    Ok(connection
        .prepare_cached(
            "INSERT INTO feed (audience, stream, destination, keeps_traits) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (audience, stream) DO UPDATE
             SET destination = excluded.destination, keeps_traits = max(keeps_traits, excluded.keeps_traits)
             RETURNING number",
        )?
        .query_row(
            params![
                audience,
                stream,
                planning.destination.as_str(),
                planning.refresh
            ],
            |row| row.get(0),
        )?)
}

/// The number of a feed that some plan has made.
pub(super) fn feed_of(
    connection: &Connection,
    audience: &AudienceId,
    stream: Option<i64>,
) -> Result<Option<i64>, SnapshotError> {
    let number = connection
        .prepare_cached(
            "SELECT feed.number FROM feed JOIN audience ON audience.number = feed.audience
             WHERE audience.id = ?1 AND feed.stream = ?2",
        )?
        .query_row(params![audience.as_str(), stream], |row| row.get(0));
    Ok(number.optional()?)
}

fn insert_run(
    connection: &Connection,
    planning: &Planning,
    feed: Option<i64>,
    stream: i64,
) -> Result<i64, SnapshotError> {
    let Computation {
        audience,
        run,
        started_at,
        space_id,
        ..
    } = &planning.computation;
    let number = life::next_run(connection, *started_at)?;
    connection
        .prepare_cached(
            "INSERT INTO run (number, id, feed, audience_id, stream, destination, kind, started_at, at, space_id, only_users)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            number,
            run.to_string(),
            feed,
            audience.as_str(),
            stream,
            planning.destination.as_str(),
            planning.kind.as_str(),
            started_at.millis(),
            Timestamp::now().millis(),
            space_id,
            planning.names_users()
        ])?;
    Ok(number)
}

/// Where a merge puts what it decides about one feed.
pub struct Journal<'c> {
    identify: Identify,
    leavers: Vec<HeldUser>,
    /// Where changes and additions may be held apart from each other, they are in chunks of their own.
    kinds_are_apart: bool,
    to: Destined<'c>,
}

/// By kind: entering, changing, repeating, leaving. Each is in the order of users.
enum Destined<'c> {
    Disk(Box<[ChunkWriter<'c>; 4]>),
    /// The same chunks, one at a time, weighed and not kept.
    Nowhere(Box<[Estimator<'c>; 4]>),
}

const KINDS: [ChunkKind; 4] = [
    ChunkKind::Entering,
    ChunkKind::Changing,
    ChunkKind::Repeating,
    ChunkKind::Leaving,
];
const ENTERING: usize = 0;
const CHANGING: usize = 1;
const LEAVING: usize = 3;

impl<'c> Journal<'c> {
    fn write(
        connection: &'c Connection,
        run: i64,
        planning: &Planning,
    ) -> Result<Self, SnapshotError> {
        // Every fourth number for each kind: none of them needs to know how many chunks another wrote.
        let writer = |kind: usize| {
            ChunkWriter::new(
                connection,
                run,
                KINDS[kind],
                kind as i64,
                KINDS.len() as i64,
            )
        };
        let writers = [writer(0)?, writer(1)?, writer(2)?, writer(3)?];
        Ok(Self::new(planning, Destined::Disk(Box::new(writers))))
    }

    /// Weighs what it is given, and keeps nothing.
    pub(super) fn estimate(planning: &Planning, estimate: Estimate<'c>) -> Self {
        let estimators = [0; 4].map(|_| Estimator::new(estimate));
        Self::new(planning, Destined::Nowhere(Box::new(estimators)))
    }

    fn new(planning: &Planning, to: Destined<'c>) -> Self {
        Self {
            identify: Identify::new(&planning.computation),
            leavers: Vec::new(),
            kinds_are_apart: planning
                .guard
                .is_some_and(|guard| guard.holds_more_than_removals()),
            to,
        }
    }

    pub fn push(&mut self, change: &Change<'_>) -> Result<(), SnapshotError> {
        let kind = match change.action {
            Action::Leave => LEAVING,
            Action::Change if self.kinds_are_apart => CHANGING,
            Action::Repeat if self.kinds_are_apart => 2,
            Action::Enter | Action::Change | Action::Repeat => ENTERING,
        };
        if kind == LEAVING {
            sample(&mut self.leavers, change.member.user);
        }
        let bytes = self.identify.longest_line(change);
        match &mut self.to {
            Destined::Disk(writers) => writers[kind].push(Some(change), bytes, |entries| {
                chunk::push_change(entries, change);
            }),
            Destined::Nowhere(estimators) => {
                estimators[kind].push(bytes, |line| self.identify.render(change, line));
                Ok(())
            }
        }
    }

    /// What the guard holds, unless an approval covers it.
    pub(super) fn held(
        &mut self,
        planning: &Planning,
        tally: &Tally,
        shown: [u64; 3],
    ) -> Option<Held> {
        let holds = tally.held_by(planning.guard.as_ref()?);
        let count = |is_held, count| if is_held { count } else { 0 };
        let held = Held {
            removals: count(holds.removals, tally.removed),
            additions: count(holds.additions, tally.added),
            changes: count(holds.changes, tally.changed),
            of: tally.delivered,
            sample: match holds.removals {
                true => std::mem::take(&mut self.leavers),
                false => Vec::new(),
            },
        };
        let is_covered = match planning.approval {
            None => false,
            Some(Approval::UpTo(most)) => held.count() <= most,
            Some(Approval::Shown) => {
                let now = [held.removals, held.additions, held.changes];
                now.iter().zip(shown).all(|(now, shown)| *now <= shown)
            }
        };
        (held.count() > 0 && !is_covered).then_some(held)
    }

    /// Writes what is left, and takes back what is held. A dry run tells what the rest would count.
    pub(super) fn close(self, held: Option<&Held>) -> Result<Option<Foreseen>, SnapshotError> {
        let is_held = |kind: usize| {
            held.is_some_and(|held| match kind {
                ENTERING => held.additions > 0,
                CHANGING => held.changes > 0,
                LEAVING => held.removals > 0,
                _ => false,
            })
        };
        match self.to {
            Destined::Disk(mut writers) => {
                for (kind, writer) in writers.iter_mut().enumerate() {
                    writer.flush()?;
                    if is_held(kind) {
                        writer.drop_all()?;
                    }
                }
                Ok(None)
            }
            Destined::Nowhere(estimators) => {
                let mut estimate = Foreseen::default();
                for (kind, estimator) in estimators.into_iter().enumerate() {
                    let weighed = estimator.finish();
                    if !is_held(kind) {
                        estimate += weighed;
                    }
                }
                Ok(Some(estimate))
            }
        }
    }
}
