//! One run, told as a story: deliver what an earlier run left, plan, deliver, remember.

mod planning;
mod reading;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audience::keys::Known;
use crate::audience::{Audience, AudienceId, DestinationName, Key, SourceName};
use crate::causes::in_one_line;
use crate::deliver::{Route, Sent, deliver};
use crate::firehose::{Destination, Meter, Pulse};
use crate::mapping::Mapping;
use crate::progress::Progress;
use crate::run::{Outcome, RunKind, Timestamp};
use crate::snapshot::{Handle, JournaledRun, SnapshotError};
use crate::source::Source;
use crate::stop::Stop;
use planning::PlanError;
pub use report::Report;

/// What runs work with: made once from the configuration.
pub struct Project {
    pub sources: BTreeMap<SourceName, Source>,
    pub destinations: BTreeMap<DestinationName, Outlet>,
    pub space_id: Option<String>,
    /// How long delivered changes are kept.
    pub history: Duration,
}

/// A destination and what goes to which of its streams.
#[derive(Debug, Clone)]
pub struct Outlet {
    pub destination: Arc<Destination>,
    pub mapping: Mapping,
    pub pulse: Arc<Pulse>,
}

impl Outlet {
    pub fn new(destination: Destination, mapping: Mapping) -> Self {
        Self {
            destination: Arc::new(destination),
            mapping,
            pulse: Arc::default(),
        }
    }
}

/// What a run is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request {
    /// Send everyone again.
    pub resync: bool,
    /// Deliver removals that the guard would hold.
    pub approve: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// An audience with the key it goes by.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub audience: Audience,
    pub key: Key,
}

impl Keyed {
    /// What a run is for, by what the snapshot knows.
    pub fn kind(
        &self,
        destination: &DestinationName,
        known: &[Known],
        request: Request,
    ) -> RunKind {
        let is_known = known
            .iter()
            .any(|known| known.id == self.audience.id && known.destination == *destination);
        match (is_known, request.resync) {
            (false, _) => RunKind::First,
            (true, true) => RunKind::Resync,
            (true, false) => RunKind::Delta,
        }
    }
}

/// Runs over one snapshot, one after another, by whoever holds its lock.
pub struct Runner<'a> {
    pub project: &'a Project,
    pub snapshot: &'a Handle,
    pub stop: Stop,
    pub progress: Progress,
}

impl Runner<'_> {
    /// One run of an audience at each of its destinations. What an earlier run left comes first, and is reported by
    /// itself; while it cannot be delivered, nothing new is decided.
    pub async fn run(&self, keyed: &Keyed, request: Request) -> Result<Vec<Report>, SnapshotError> {
        let mut reports = Vec::new();
        for destination in &keyed.audience.destinations {
            if self.stop.is_requested() {
                break;
            }
            let left = self
                .left_by_audience(&keyed.audience.id, destination)
                .await?;
            let resumed = self.resume(left, request.dry_run).await?;
            // The dead are in the way of nothing.
            let is_stuck = resumed.iter().any(|report| {
                report.outcome == Outcome::Undelivered && report.undelivered > report.dead
            });
            reports.extend(resumed);
            if !is_stuck {
                reports.extend(self.plan_and_deliver(keyed, destination, request).await?);
            }
        }
        Ok(reports)
    }

    /// Delivers what is left in the journal by audiences that are not going to run, and by `send`.
    pub async fn resume_others(
        &self,
        running: &[Keyed],
        dry_run: bool,
    ) -> Result<Vec<Report>, SnapshotError> {
        let mut left = self.snapshot.with(|snapshot| snapshot.waiting()).await?;
        left.retain(|run| {
            !running.iter().any(|keyed| {
                run.is_of(&keyed.audience.id)
                    && keyed.audience.destinations.contains(&run.destination)
            })
        });
        self.resume(left, dry_run).await
    }

    /// Drops delivered changes that are older than the project keeps them.
    pub async fn prune(&self) -> Result<(), SnapshotError> {
        let kept = i64::try_from(self.project.history.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::from_millis(Timestamp::now().millis().saturating_sub(kept));
        self.snapshot
            .with(move |snapshot| snapshot.prune(before))
            .await
    }

    /// Delivers what `send` left in the journal.
    pub async fn resume_calls(&self) -> Result<Vec<Report>, SnapshotError> {
        let mut left = self.snapshot.with(|snapshot| snapshot.waiting()).await?;
        left.retain(|run| run.computation.is_none());
        self.resume(left, false).await
    }

    async fn left_by_audience(
        &self,
        audience: &AudienceId,
        destination: &DestinationName,
    ) -> Result<Vec<JournaledRun>, SnapshotError> {
        let (audience, destination) = (audience.clone(), destination.clone());
        self.snapshot
            .with(move |snapshot| snapshot.waiting_of(&audience, &destination))
            .await
    }

    async fn resume(
        &self,
        left: Vec<JournaledRun>,
        dry_run: bool,
    ) -> Result<Vec<Report>, SnapshotError> {
        let mut reports = Vec::new();
        for run in left {
            let started = Instant::now();
            let key = run
                .computation
                .as_ref()
                .map(|computation| computation.key.clone());
            let mut report = Report::new(
                key,
                run.destination.clone(),
                RunKind::Resume,
                Outcome::Planned,
            );
            report.run = Some(run.id);
            report.members = run.members;
            report.undelivered = run.waiting;
            if !dry_run {
                match self.project.destinations.get(&run.destination) {
                    Some(outlet) => self.deliver(&run, outlet, &mut report).await?,
                    None => {
                        report.outcome = Outcome::Undelivered;
                        report.error = Some(format!(
                            "the configuration has no destination `{}` any more\n\nhint: put it back until its journal is delivered",
                            run.destination
                        ));
                    }
                }
            }
            report.seconds = started.elapsed().as_secs_f64();
            reports.push(report);
        }
        Ok(reports)
    }

    async fn plan_and_deliver(
        &self,
        keyed: &Keyed,
        destination: &DestinationName,
        request: Request,
    ) -> Result<Option<Report>, SnapshotError> {
        let started = Instant::now();
        let outlet = &self.project.destinations[destination];
        let planning = self.planning(keyed, outlet, destination, request).await?;
        let key = Some(keyed.key.clone());
        let mut report = Report::new(key, destination.clone(), planning.kind, Outcome::Planned);
        report.run = Some(planning.computation.run);

        match self.plan(keyed, planning.clone(), request).await {
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
                match plan.rehearsed {
                    Some(rehearsed) => report.counts = rehearsed.counts(plan.run.streams.len()),
                    None => self.deliver(&plan.run, outlet, &mut report).await?,
                }
            }
            // Nothing was decided, and nothing is wrong: there is nothing to report.
            Err(PlanError::Stopped) => return Ok(None),
            Err(PlanError::Snapshot(error)) => return Err(error),
            Err(PlanError::Source(error)) => {
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
        Ok(Some(report))
    }

    /// Delivers a run from the journal, completes its report and closes it.
    async fn deliver(
        &self,
        run: &JournaledRun,
        outlet: &Outlet,
        report: &mut Report,
    ) -> Result<(), SnapshotError> {
        let route = Route {
            destination: Arc::clone(&outlet.destination),
            pulse: Arc::clone(&outlet.pulse),
            stop: self.stop.clone(),
        };
        let meter = Arc::new(Meter::default());
        let mut sent = Sent::default();
        if run.waiting > 0 {
            self.progress.deliver(report.name(), run.waiting);
            sent = deliver(self.snapshot, run, &route, &meter, &self.progress).await?;
        }
        let number = run.number;
        let left = self
            .snapshot
            .with(move |snapshot| snapshot.run(number))
            .await?
            .waiting;
        report.delivered = sent.delivered;
        report.undelivered = run.waiting - sent.delivered;
        // Those found dead by an earlier attempt were not waiting any more.
        report.dead = report.undelivered.saturating_sub(left);
        report.counts = meter.counts();
        report.error = sent.trouble();
        report.outcome = if report.undelivered > 0 {
            Outcome::Undelivered
        // What an earlier run held is decided anew by the one that follows.
        } else if report.held > 0 {
            Outcome::Held
        } else if report.delivered > 0 {
            Outcome::Delivered
        } else {
            Outcome::Unchanged
        };
        let (run, outcome) = (run.clone(), report.outcome);
        self.snapshot
            .with(move |snapshot| snapshot.finish(&run, outcome))
            .await
    }
}
