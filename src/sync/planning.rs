//! The first phase of a run: read the source, compare, journal.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::delivery::outcome;
use super::reading::{Reading, Strategy};
use super::{Feed, Pending, Report, Request, Runner};
use crate::audience::AudienceId;
use crate::batch::Lines;
use crate::bill::Foreseen;
use crate::causes::in_one_line;
use crate::diff::Scope;
use crate::event::Computation;
use crate::run::{Outcome, RunId, RunKind, Timestamp};
use crate::snapshot::{
    Delivered, Estimate, Journal, Plan, Planning, ReportedError, Snapshot, SnapshotError,
};
use crate::source::{Interrupt, SourceError};
use crate::stream::Stream;

/// Sources that are read before it is their turn: queries that sort, or that are slow to begin, run side by side.
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
    Reported(#[from] ReportedError),
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

/// The runs of some feeds of one audience that are about to be planned together.
pub(super) struct Intended {
    pub(super) plannings: Vec<Planning>,
    pub(super) reading: Reading,
}

/// When the runs of one command begin, each later than all before it, and what the snapshot knew before the first.
pub(super) struct Starts {
    last: Option<Timestamp>,
    known: BTreeSet<(AudienceId, Stream)>,
}

impl Starts {
    fn next(&mut self) -> Timestamp {
        let next = Timestamp::after(Timestamp::now(), self.last);
        self.last = Some(next);
        next
    }
}

impl Runner<'_> {
    /// Plans feeds in the order of their audiences, several audiences in one transaction: on disk, all of them, before
    /// anything is sent. Asked to stop, it plans no more.
    pub(super) async fn plan_all(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        starts: &Mutex<Starts>,
        pending: &mut Vec<Pending>,
    ) -> Result<(), SnapshotError> {
        let mut to_plan = feeds
            .chunk_by(|one, next| one.keyed.audience.id == next.keyed.audience.id)
            .map(|feeds| self.intend(feeds, request, starts));
        let mut ahead: VecDeque<Intended> = VecDeque::new();
        // On disk with the next commit, or not at all.
        let mut planned = Vec::new();
        let mut together_since: Option<Instant> = None;
        while !self.stop.is_requested() {
            let next = match ahead.pop_front() {
                Some(next) => next,
                None => match to_plan.next() {
                    Some(next) => self.choose_strategy(next).await?,
                    None => break,
                },
            };
            while ahead.len() < SOURCES_AHEAD
                && let Some(later) = to_plan.next()
            {
                let mut later = self.choose_strategy(later).await?;
                later.reading.begin();
                ahead.push_back(later);
            }
            if !request.dry_run && together_since.is_none() {
                self.snapshot.with(Snapshot::share_transaction).await?;
                together_since = Some(Instant::now());
            }
            planned.extend(self.plan_one(next, request).await?);
            if together_since.is_some_and(|since| since.elapsed() >= PLANS_TOGETHER_FOR) {
                self.snapshot.with(Snapshot::commit_shared).await?;
                pending.append(&mut planned);
                together_since = None;
            }
        }
        if together_since.is_some() {
            self.snapshot.with(Snapshot::commit_shared).await?;
        }
        pending.append(&mut planned);
        Ok(())
    }

    /// Runs of some feeds of one audience. They begin when this is called: what the source gets after that is for the
    /// next runs.
    pub(super) fn intend(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        starts: &Mutex<Starts>,
    ) -> Intended {
        let mut starts = starts.lock().unwrap_or_else(PoisonError::into_inner);
        let plannings: Vec<Planning> = feeds
            .iter()
            .map(|feed| self.planning(feed, request, &mut starts))
            .collect();
        let began = plannings[0].computation.started_at;
        Intended {
            reading: self.reading(feeds[0].keyed.asked(), began),
            plannings,
        }
    }

    fn planning(&self, feed: &Feed<'_>, request: &Request, starts: &mut Starts) -> Planning {
        let started_at = starts.next();
        let audience = &feed.keyed.audience;
        let kind = feed.kind(&starts.known, request);
        let is_elsewhere = |(known, _): &(AudienceId, Stream)| *known == audience.id;
        if kind == RunKind::First && starts.known.iter().any(is_elsewhere) {
            tracing::info!(
                "{}: stream {} is new to it and gets a first sync",
                feed.keyed.key,
                feed.stream
            );
        }
        Planning {
            computation: Computation {
                audience: audience.id.clone(),
                key: feed.keyed.key.clone(),
                class: audience.class,
                stream: feed.stream.name.clone(),
                run: RunId::at(started_at),
                started_at,
                space_id: self.project.space_id.clone(),
            },
            stream: feed.stream.clone(),
            destination: feed.destination.clone(),
            name: audience.name.clone(),
            kind,
            scope: match request.resync {
                true => Scope::Everyone,
                false => Scope::Changes,
            },
            guard: audience.guard,
            approval: request.approval,
        }
    }

    fn reading(&self, audience: crate::audience::Audience, started_at: Timestamp) -> Reading {
        Reading {
            started_at,
            interrupt: Interrupt::default(),
            source: self.project.sources[&audience.source].clone(),
            audience,
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            strategy: Strategy::Everyone,
            begun: None,
        }
    }

    pub(super) async fn plan_one(
        &self,
        intended: Intended,
        request: &Request,
    ) -> Result<Vec<Pending>, SnapshotError> {
        let started = Instant::now();
        let Intended { plannings, reading } = intended;
        let mut pending: Vec<Pending> = plannings.iter().map(unplanned).collect();
        match self.plan(reading, plannings.clone(), request).await {
            Ok(plans) => {
                for (pending, plan) in pending.iter_mut().zip(plans) {
                    self.note_plan(pending, plan).await?;
                }
            }
            // Nothing was decided, and nothing is wrong: there is nothing to report.
            Err(PlanError::Stopped) => return Ok(Vec::new()),
            Err(PlanError::Snapshot(error)) => return Err(error),
            Err(error) => {
                let reason = in_one_line(&error);
                let misconfigured = error.is_configuration();
                if !request.dry_run {
                    let reason = reason.clone();
                    self.snapshot
                        .with(move |snapshot| snapshot.fail(&plannings, &reason))
                        .await?;
                }
                for Pending { report, .. } in &mut pending {
                    report.outcome = Outcome::Failed;
                    report.misconfigured = misconfigured;
                    report.error = Some(reason.clone());
                }
            }
        }
        for Pending { report, .. } in &mut pending {
            report.seconds = started.elapsed().as_secs_f64();
        }
        Ok(pending)
    }

    pub(super) async fn note_plan(
        &self,
        pending: &mut Pending,
        plan: Plan,
    ) -> Result<(), SnapshotError> {
        let Pending { run, report } = pending;
        report.members = Some(plan.tally.members);
        report.added = plan.tally.added;
        report.removed = plan.tally.removed;
        report.changed = plan.tally.changed;
        report.hold(plan.held);
        report.skipped_rows = plan.skipped_rows;
        report.missed = plan.missed;
        report.undelivered = plan.run.waiting;
        match plan.estimate {
            Some(estimate) => {
                let outlet = &self.project.destinations[&report.destination];
                report.estimate(&outlet.destination, estimate);
            }
            None if plan.run.waiting > 0 => *run = Some(plan.run),
            None => {
                report.outcome = outcome(report);
                let (of, outcome) = (plan.run, report.outcome);
                self.snapshot
                    .with(move |snapshot| snapshot.finish(&of, outcome))
                    .await?;
            }
        }
        Ok(())
    }

    pub(super) async fn starts(&self) -> Result<Starts, SnapshotError> {
        let read = |snapshot: &mut Snapshot| {
            Ok(Starts {
                last: snapshot.last_started_at()?,
                known: snapshot.known_feeds()?,
            })
        };
        self.snapshot.with(read).await
    }

    /// Chooses how the source is read, which no other run changes.
    pub(super) async fn choose_strategy(
        &self,
        mut intended: Intended,
    ) -> Result<Intended, SnapshotError> {
        self.snapshot
            .with(move |snapshot| {
                let Intended { plannings, reading } = &mut intended;
                reading.strategy = reading.choose(snapshot, plannings)?;
                Ok(intended)
            })
            .await
    }

    async fn plan(
        &self,
        reading: Reading,
        plannings: Vec<Planning>,
        request: &Request,
    ) -> Result<Vec<Plan>, PlanError> {
        let interrupt = reading.interrupt.clone();
        self.progress.plan(plannings[0].computation.key.as_str());
        let destination = |planning: &Planning| {
            let outlet = &self.project.destinations[&planning.destination];
            Arc::clone(&outlet.destination)
        };
        let destinations: Vec<_> = plannings.iter().map(destination).collect();
        let dry_run = request.dry_run;
        let planned = self.snapshot.with(move |snapshot| {
            let scopes: Vec<Scope> = plannings.iter().map(|planning| planning.scope).collect();
            let decide = |delivered: Vec<Delivered<'_>>, journals: &mut [Journal<'_>]| {
                reading.go(delivered, &scopes, journals)
            };
            if !dry_run {
                return snapshot.plan(&plannings, decide);
            }
            let weigh = |destination: &Arc<crate::firehose::Destination>| {
                let destination = Arc::clone(destination);
                Box::new(move |lines: &Lines| destination.weigh(lines))
                    as Box<dyn Fn(&Lines) -> Foreseen + Sync>
            };
            let weigh: Vec<_> = destinations.iter().map(weigh).collect();
            let estimates: Vec<Estimate<'_>> =
                weigh.iter().map(|weigh| &**weigh as Estimate<'_>).collect();
            snapshot.dry_run(&plannings, &estimates, decide)
        });
        // A query may go on for minutes before its first row.
        match self.stop.or_end(planned, || interrupt.interrupt()).await {
            // Interrupted, most likely; in any case nothing was decided, and the next run meets it again.
            Err(PlanError::Source(_)) if self.stop.is_requested() => Err(PlanError::Stopped),
            planned => planned,
        }
    }
}

/// What there is to report of a run that is not planned yet.
pub(super) fn unplanned(planning: &Planning) -> Pending {
    let mut report = Report::new(
        Some(planning.computation.key.clone()),
        planning.destination.clone(),
        planning.stream.name.clone(),
        planning.kind,
        Outcome::Planned,
    );
    report.run = Some(planning.computation.run);
    Pending { run: None, report }
}
