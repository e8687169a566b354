//! The first phase of a run: read the source, compare, journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delivery::outcome;
use super::reading::{Reading, Way};
use super::{Keyed, Outlet, Pending, Place, Report, Request, Runner};
use crate::audience::DestinationName;
use crate::audience::keys::Known;
use crate::causes::in_one_line;
use crate::diff::Scope;
use crate::event::{CallType, Computation};
use crate::run::{Outcome, RunId, Timestamp};
use crate::snapshot::{Delivered, Journal, Plan, Planning, Snapshot, SnapshotError, ToldError};
use crate::source::{Interrupt, SourceError};

/// So many sources are read before it is their turn: queries that sort, or that are slow to begin, run side by side.
const SOURCES_AHEAD: usize = 2;
/// Plans share a transaction for so long, and no longer than one of them takes.
const PLANS_TOGETHER_FOR: Duration = Duration::from_secs(1);

/// Why a run decided nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Of one audience, as a source that cannot be read.
    #[error(transparent)]
    Told(#[from] ToldError),
    /// Of all of them: nothing can be planned.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("asked to stop")]
    Stopped,
}

impl PlanError {
    /// Whether the configuration is wrong.
    pub(super) const fn is_configuration(&self) -> bool {
        matches!(self, Self::Source(error) if error.is_configuration())
    }
}

/// A run that is about to be planned.
pub(super) struct Intended {
    pub(super) planning: Planning,
    pub(super) reading: Reading,
}

/// When the runs of one command begin, each later than all before it, and what the snapshot knew before the first.
pub(super) struct Starts {
    last: Option<Timestamp>,
    known: Vec<Known>,
}

impl Starts {
    fn next(&mut self) -> Timestamp {
        let next = Timestamp::after(Timestamp::now(), self.last);
        self.last = Some(next);
        next
    }
}

impl Runner<'_> {
    /// Plans them in their order, several in one transaction: on disk, all of them, before anything is sent. Asked to
    /// stop, it plans no more.
    pub(super) async fn plan_all(
        &self,
        to_run: &[Place<'_>],
        request: Request,
        pending: &mut Vec<Pending>,
    ) -> Result<(), SnapshotError> {
        let mut starts = self.starts().await?;
        let mut to_run = to_run
            .iter()
            .map(|(keyed, destination)| self.intend(keyed, destination, request, &mut starts));
        let mut ahead: VecDeque<Intended> = VecDeque::new();
        // On disk with the next commit, or not at all.
        let mut planned = Vec::new();
        let mut together_since: Option<Instant> = None;
        while !self.stop.is_requested() {
            let next = match ahead.pop_front() {
                Some(next) => next,
                None => match to_run.next() {
                    Some(next) => self.find_way(next).await?,
                    None => break,
                },
            };
            while ahead.len() < SOURCES_AHEAD
                && let Some(later) = to_run.next()
            {
                let mut later = self.find_way(later).await?;
                later.reading.begin();
                ahead.push_back(later);
            }
            if !request.dry_run && together_since.is_none() {
                self.snapshot.with(Snapshot::open_together).await?;
                together_since = Some(Instant::now());
            }
            planned.extend(self.plan_one(next, request).await?);
            if together_since.is_some_and(|since| since.elapsed() >= PLANS_TOGETHER_FOR) {
                self.snapshot.with(Snapshot::close_together).await?;
                pending.append(&mut planned);
                together_since = None;
            }
        }
        if together_since.is_some() {
            self.snapshot.with(Snapshot::close_together).await?;
        }
        pending.append(&mut planned);
        Ok(())
    }

    pub(super) fn intend(
        &self,
        keyed: &Keyed,
        destination: &DestinationName,
        request: Request,
        starts: &mut Starts,
    ) -> Intended {
        let outlet = &self.project.destinations[destination];
        let planning = self.planning(keyed, outlet, destination, request, starts);
        Intended {
            reading: self.reading(keyed, request, planning.computation.started_at),
            planning,
        }
    }

    pub(super) async fn plan_one(
        &self,
        intended: Intended,
        request: Request,
    ) -> Result<Option<Pending>, SnapshotError> {
        let started = Instant::now();
        let Intended { planning, reading } = intended;
        let computation = &planning.computation;
        let (key, to) = (computation.key.clone(), computation.destination.clone());
        let mut report = Report::new(Some(key), to, planning.kind, Outcome::Planned);
        report.run = Some(computation.run);
        let mut run = None;

        match self.plan(reading, planning.clone(), request).await {
            Ok(plan) => {
                report.members = plan.tally.members;
                report.added = plan.tally.added;
                report.removed = plan.tally.removed;
                report.changed = plan.tally.changed;
                report.held = plan.held.as_ref().map_or(0, |held| held.count);
                report.hold = plan.held;
                report.approved = plan.approval;
                report.skipped_rows = plan.skipped_rows;
                report.missed = plan.missed;
                report.undelivered = plan.run.waiting;
                match plan.foreseen {
                    Some(foreseen) => {
                        let outlet = &self.project.destinations[&report.destination];
                        let streams = vec![foreseen; plan.run.streams.len()];
                        report.foresee(&outlet.destination, &streams);
                    }
                    None if plan.run.waiting > 0 => run = Some(plan.run),
                    None => {
                        report.outcome = outcome(&report);
                        let (of, outcome) = (plan.run, report.outcome);
                        self.snapshot
                            .with(move |snapshot| snapshot.finish(&of, outcome))
                            .await?;
                    }
                }
            }
            // Nothing was decided, and nothing is wrong: there is nothing to report.
            Err(PlanError::Stopped) => return Ok(None),
            Err(PlanError::Snapshot(error)) => return Err(error),
            Err(error) => {
                let reason = in_one_line(&error);
                report.outcome = Outcome::Failed;
                report.misconfigured = error.is_configuration();
                if !request.dry_run && !report.misconfigured {
                    let reason = reason.clone();
                    self.snapshot
                        .with(move |snapshot| snapshot.fail(&planning, &reason))
                        .await?;
                }
                report.error = Some(reason);
            }
        }
        report.seconds = started.elapsed().as_secs_f64();
        Ok(Some(Pending { run, report }))
    }

    pub(super) async fn starts(&self) -> Result<Starts, SnapshotError> {
        let read = |snapshot: &mut Snapshot| {
            Ok(Starts {
                last: snapshot.last_started_at()?,
                known: snapshot.known()?,
            })
        };
        self.snapshot.with(read).await
    }

    /// A run that begins now: what its source says after that is for the next one.
    pub(super) fn planning(
        &self,
        keyed: &Keyed,
        outlet: &Outlet,
        destination: &DestinationName,
        request: Request,
        starts: &mut Starts,
    ) -> Planning {
        let started_at = starts.next();
        let Keyed { audience, key } = keyed;
        Planning {
            computation: Computation {
                audience: audience.id.clone(),
                key: key.clone(),
                class: audience.class,
                destination: destination.clone(),
                run: RunId::at(started_at),
                started_at,
                space_id: self.project.space_id.clone(),
            },
            name: audience.name.clone(),
            kind: keyed.kind(destination, &starts.known, request),
            streams: outlet.mapping.streams(CallType::Identify, None),
            guard: audience.guard.filter(|_| !request.approve),
            approve: request.approve,
        }
    }

    pub(super) fn reading(
        &self,
        keyed: &Keyed,
        request: Request,
        started_at: Timestamp,
    ) -> Reading {
        Reading {
            started_at,
            interrupt: Interrupt::default(),
            source: self.project.sources[&keyed.audience.source].clone(),
            audience: keyed.asked(),
            scope: if request.resync {
                Scope::Everyone
            } else {
                Scope::Changes
            },
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            way: Way::Everyone,
            begun: None,
        }
    }

    /// Finds the way of a run, which no other run changes.
    pub(super) async fn find_way(&self, mut run: Intended) -> Result<Intended, SnapshotError> {
        self.snapshot
            .with(move |snapshot| {
                run.reading.way = run.reading.shortest_way(snapshot, &run.planning)?;
                Ok(run)
            })
            .await
    }

    pub(super) async fn plan(
        &self,
        reading: Reading,
        planning: Planning,
        request: Request,
    ) -> Result<Plan, PlanError> {
        let interrupt = reading.interrupt.clone();
        self.progress.plan(planning.computation.key.as_str());
        let to = &self.project.destinations[&planning.computation.destination];
        let destination = Arc::clone(&to.destination);
        let planned = self.snapshot.with(move |snapshot| {
            let merge = |delivered: &mut Delivered<'_>, journal: &mut Journal<'_>| {
                reading.go(delivered, journal)
            };
            if request.dry_run {
                snapshot.rehearse(&planning, &|lines| destination.weigh(lines), merge)
            } else {
                snapshot.plan(&planning, merge)
            }
        });
        // A query may go on for minutes before its first row.
        match self.stop.or_end(planned, || interrupt.interrupt()).await {
            // Interrupted, most likely; in any case nothing was decided, and the next run meets it again.
            Err(PlanError::Source(_)) if self.stop.is_requested() => Err(PlanError::Stopped),
            planned => planned,
        }
    }
}
