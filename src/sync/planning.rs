//! The first phase of a run: read the source, compare, journal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use super::ahead::{Ahead, Intended, Ready};
use super::delivery::outcome;
use super::reading::{Found, Reading, Strategy};
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

/// Plans share a transaction for so long, and no longer than one of them takes.
const PLANS_TOGETHER_FOR: Duration = Duration::from_secs(1);
/// After so long without a source that has something to compare, others are read, and what is planned is delivered.
const SLOW_AFTER: Duration = Duration::from_secs(5);

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

/// What the snapshot knew before the first run of a command.
pub(super) type KnownFeeds = BTreeSet<(AudienceId, Stream)>;

impl Runner<'_> {
    /// Plans feeds in the order of their audiences, those with a slow source later, several in one transaction. They are
    /// handed on when they are on disk: all together, or those before a source that is slow. Asked to stop, it plans no
    /// more.
    pub(super) async fn plan_all(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        known: &KnownFeeds,
        hand_on: UnboundedSender<Vec<Pending>>,
    ) -> Result<(), SnapshotError> {
        let mut on_disk = Vec::new();
        let planned = self.plan_in_turn(feeds, request, known, &mut on_disk, &hand_on);
        let planned = planned.await;
        drop(hand_on.send(on_disk));
        planned
    }

    async fn plan_in_turn(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        known: &KnownFeeds,
        on_disk: &mut Vec<Pending>,
        hand_on: &UnboundedSender<Vec<Pending>>,
    ) -> Result<(), SnapshotError> {
        let mut to_plan = feeds
            .chunk_by(|one, next| one.keyed.audience.id == next.keyed.audience.id)
            .map(|feeds| self.intend(feeds, request, known));
        let mut next = to_plan.next();
        let mut ahead = Ahead::default();
        // On disk with the next commit, or not at all.
        let mut planned = Vec::new();
        let mut together_since: Option<Instant> = None;
        while !self.stop.is_requested() {
            while let Some(intended) = next.take_if(|next| ahead.has_room_for(next)) {
                let intended = self.choose_strategy(intended).await?;
                ahead.begin(intended, &self.shared.turns);
                next = to_plan.next();
            }
            let patience = match together_since {
                Some(since) => PLANS_TOGETHER_FOR.saturating_sub(since.elapsed()),
                None => SLOW_AFTER,
            };
            let ready = tokio::select! {
                biased;
                ready = ahead.next() => ready,
                () = self.stop.requested() => break,
                () = sleep(patience) => {
                    match together_since.take() {
                        Some(_) => {
                            self.snapshot.with(Snapshot::commit_shared).await?;
                            on_disk.append(&mut planned);
                        }
                        None => ahead.let_wait(),
                    }
                    if ahead.is_slow() {
                        drop(hand_on.send(std::mem::take(on_disk)));
                    }
                    continue;
                }
            };
            let Some(ready) = ready else { break };
            if !request.dry_run && together_since.is_none() {
                self.snapshot.with(Snapshot::share_transaction).await?;
                together_since = Some(Instant::now());
            }
            planned.extend(self.plan_one(ready, request).await?);
            if together_since.is_some_and(|since| since.elapsed() >= PLANS_TOGETHER_FOR) {
                self.snapshot.with(Snapshot::commit_shared).await?;
                on_disk.append(&mut planned);
                together_since = None;
            }
        }
        if together_since.is_some() {
            self.snapshot.with(Snapshot::commit_shared).await?;
        }
        on_disk.append(&mut planned);
        Ok(())
    }

    /// Runs of some feeds of one audience.
    pub(super) fn intend(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        known: &KnownFeeds,
    ) -> Intended {
        let plannings: Vec<Planning> = feeds
            .iter()
            .map(|feed| self.planning(feed, request, known))
            .collect();
        Intended {
            reading: self.reading(feeds[0].keyed.asked()),
            plannings,
        }
    }

    fn planning(&self, feed: &Feed<'_>, request: &Request, known: &KnownFeeds) -> Planning {
        // Until it is planned.
        let started_at = Timestamp::now();
        let audience = &feed.keyed.audience;
        let kind = feed.kind(known, request);
        let is_elsewhere = |(known, _): &(AudienceId, Stream)| *known == audience.id;
        if kind == RunKind::First && known.iter().any(is_elsewhere) {
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
            scope: request.scope.clone(),
            refresh: audience.refresh,
            guard: audience.guard,
            approval: request.approval,
        }
    }

    fn reading(&self, audience: crate::audience::Audience) -> Reading {
        Reading {
            interrupt: Interrupt::default(),
            source: self.project.sources[&audience.source].clone(),
            audience,
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            strategy: Strategy::Everyone,
        }
    }

    pub(super) async fn plan_one(
        &self,
        ready: Ready,
        request: &Request,
    ) -> Result<Vec<Pending>, SnapshotError> {
        let started = Instant::now();
        let Ready {
            plannings,
            reading,
            found,
            took,
            ..
        } = ready;
        let mut pending: Vec<Pending> = plannings.iter().map(unplanned).collect();
        match self.plan(reading, found, plannings.clone(), request).await {
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
                    self.note_failure(&mut pending, plannings, reason.clone())
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
            report.seconds = (took + started.elapsed()).as_secs_f64();
        }
        Ok(pending)
    }

    async fn note_failure(
        &self,
        pending: &mut [Pending],
        mut plannings: Vec<Planning>,
        reason: String,
    ) -> Result<(), SnapshotError> {
        let shared = Arc::clone(&self.shared);
        let fail = move |snapshot: &mut Snapshot| {
            shared.start(&mut plannings);
            snapshot.fail(&plannings, &reason)?;
            Ok::<_, SnapshotError>(plannings)
        };
        let failed = self.snapshot.with(fail).await?;
        for (pending, planning) in pending.iter_mut().zip(failed) {
            pending.report.run = Some(planning.computation.run);
        }
        Ok(())
    }

    pub(super) async fn note_plan(
        &self,
        pending: &mut Pending,
        plan: Plan,
    ) -> Result<(), SnapshotError> {
        let Pending { run, report } = pending;
        report.run = Some(plan.run.id);
        report.members = Some(plan.tally.members);
        report.added = plan.tally.added;
        report.removed = plan.tally.removed;
        report.changed = plan.tally.changed;
        report.hold(plan.held);
        report.skipped_rows = plan.skipped_rows;
        report.missed = plan.missed;
        report.unknown_users = plan.tally.unknown;
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

    /// The feeds that the snapshot knows. Runs from now on begin later than its last one.
    pub(super) async fn known_feeds(&self) -> Result<KnownFeeds, SnapshotError> {
        let last = self.snapshot.with(|snapshot| snapshot.last_started_at());
        self.shared.start_after(last.await?);
        self.snapshot.with(|snapshot| snapshot.known_feeds()).await
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
        found: Result<Found, SourceError>,
        mut plannings: Vec<Planning>,
        request: &Request,
    ) -> Result<Vec<Plan>, PlanError> {
        let found = match found {
            Err(_) if self.stop.is_requested() => return Err(PlanError::Stopped),
            found => found?,
        };
        let interrupt = reading.interrupt.clone();
        self.progress.plan(plannings[0].computation.key.as_str());
        let destination = |planning: &Planning| {
            let outlet = &self.project.destinations[&planning.destination];
            Arc::clone(&outlet.destination)
        };
        let destinations: Vec<_> = plannings.iter().map(destination).collect();
        let dry_run = request.dry_run;
        let shared = Arc::clone(&self.shared);
        let planned = self.snapshot.with(move |snapshot| {
            shared.start(&mut plannings);
            let scopes = plannings.iter().map(|planning| planning.scope.clone());
            let scopes: Vec<Scope> = scopes.collect();
            let decide = |delivered: Vec<Delivered<'_>>, journals: &mut [Journal<'_>]| {
                reading.go(found, delivered, &scopes, journals)
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
