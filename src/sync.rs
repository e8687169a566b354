//! One run, told as a story: deliver what an earlier run left, plan, deliver, remember.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::audience::keys::Known;
use crate::audience::{Audience, AudienceId, DestinationName, Key, SourceName};
use crate::causes::in_one_line;
use crate::deliver::{Route, Sent, deliver};
use crate::diff::{self, Members, Scope};
use crate::event::{CallType, Computation};
use crate::firehose::{Destination, Meter, Pulse};
use crate::mapping::Mapping;
use crate::progress::Progress;
use crate::run::{Counts, Outcome, RunId, RunKind, Timestamp};
use crate::snapshot::{
    Approval, Delivered, Handle, Held, Journal, JournaledRun, Plan, Planning, SnapshotError,
};
use crate::source::{Interrupt, Source, SourceError};
use crate::stop::Stop;

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

/// What came of one run of one audience at one destination. The fields of `sync --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The key; `null` for calls that `send` left in the journal.
    pub audience: Option<Key>,
    pub destination: DestinationName,
    pub run: Option<RunId>,
    pub kind: RunKind,
    pub outcome: Outcome,
    /// In the source now.
    pub members: u64,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    /// Removals that the guard keeps back,
    pub held: u64,
    /// and more about them.
    #[serde(flatten)]
    pub hold: Option<Held>,
    /// How the removals that were approved compare with those that an earlier run held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
    /// Changes that Firehose accepted.
    pub delivered: u64,
    /// Changes that are still in the journal, or dead.
    pub undelivered: u64,
    /// Those of them that are dead: the next run decides them anew.
    #[serde(skip)]
    pub dead: u64,
    pub skipped_rows: u64,
    #[serde(flatten)]
    pub counts: Counts,
    #[serde(serialize_with = "hundredths")]
    pub seconds: f64,
    /// Why it failed, or why something is not delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The configuration is at fault, and not the run.
    #[serde(skip)]
    pub misconfigured: bool,
}

fn hundredths<S: Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 100.0).round() / 100.0)
}

impl Report {
    /// A report that says nothing yet.
    pub fn new(
        audience: Option<Key>,
        destination: DestinationName,
        kind: RunKind,
        outcome: Outcome,
    ) -> Self {
        Self {
            audience,
            destination,
            run: None,
            kind,
            outcome,
            members: 0,
            added: 0,
            removed: 0,
            changed: 0,
            held: 0,
            hold: None,
            approved: None,
            delivered: 0,
            undelivered: 0,
            dead: 0,
            skipped_rows: 0,
            counts: Counts::default(),
            seconds: 0.0,
            error: None,
            misconfigured: false,
        }
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        self.audience.as_ref().map_or("send", Key::as_str)
    }
}

/// Why a run decided nothing.
#[derive(Debug, thiserror::Error)]
enum PlanError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("asked to stop")]
    Stopped,
}

/// How many members are read between two looks at the clock and the signals.
const LOOK_EVERY: u64 = 4_096;

const INTERRUPT_EVERY: Duration = Duration::from_millis(100);

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

    async fn planning(
        &self,
        keyed: &Keyed,
        outlet: &Outlet,
        destination: &DestinationName,
        request: Request,
    ) -> Result<Planning, SnapshotError> {
        let (last, known) = self
            .snapshot
            .with(|snapshot| {
                Ok::<_, SnapshotError>((snapshot.last_started_at()?, snapshot.known()?))
            })
            .await?;
        let started_at = Timestamp::after(Timestamp::now(), last);
        let Keyed { audience, key } = keyed;
        Ok(Planning {
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
            kind: keyed.kind(destination, &known, request),
            streams: outlet.mapping.streams(CallType::Identify, None),
            guard: audience.guard.filter(|_| !request.approve),
            approve: request.approve,
        })
    }

    async fn plan(
        &self,
        keyed: &Keyed,
        planning: Planning,
        request: Request,
    ) -> Result<Plan, PlanError> {
        let interrupt = Interrupt::default();
        let reading = Reading {
            interrupt: interrupt.clone(),
            source: self.project.sources[&keyed.audience.source].clone(),
            audience: keyed.audience.clone(),
            scope: if request.resync {
                Scope::Everyone
            } else {
                Scope::Changes
            },
            progress: self.progress.clone(),
            stop: self.stop.clone(),
        };
        self.progress.plan(keyed.key.as_str());
        let planned = self.snapshot.with(move |snapshot| {
            let merge = |delivered: &mut Delivered<'_>, journal: &mut Journal<'_>| {
                reading.merge(delivered, journal)
            };
            if request.dry_run {
                snapshot.rehearse(&planning, merge)
            } else {
                snapshot.plan(&planning, merge)
            }
        });
        match self.or_interrupt(planned, &interrupt).await {
            // Interrupted, most likely; in any case nothing was decided, and the next run meets it again.
            Err(PlanError::Source(_)) if self.stop.is_requested() => Err(PlanError::Stopped),
            planned => planned,
        }
    }

    /// Waits for a plan. Once asked to stop, it ends the query: one may go on for minutes before its first row.
    async fn or_interrupt<T>(&self, planned: impl Future<Output = T>, interrupt: &Interrupt) -> T {
        let mut planned = pin!(planned);
        tokio::select! {
            planned = &mut planned => return planned,
            () = self.stop.requested() => {}
        }
        loop {
            interrupt.interrupt();
            // Between two statements nobody hears it.
            match tokio::time::timeout(INTERRUPT_EVERY, &mut planned).await {
                Ok(planned) => return planned,
                Err(_) => continue,
            }
        }
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

/// Reads a source into a plan, on the snapshot's thread.
struct Reading {
    source: Source,
    audience: Audience,
    scope: Scope,
    progress: Progress,
    stop: Stop,
    interrupt: Interrupt,
}

impl Reading {
    fn merge(
        &self,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(diff::Tally, u64), PlanError> {
        self.source
            .read(&self.audience, &self.interrupt, |members| {
                let mut watched = Watched {
                    members,
                    read: 0,
                    reading: self,
                };
                let tally = diff::merge(&mut watched, delivered, self.scope, |change| {
                    journal.push(&change).map_err(PlanError::from)
                })?;
                let skipped = members.skipped;
                if skipped.total() > 0 {
                    tracing::warn!(
                        "{:?}: skipped {} rows: {}",
                        self.audience.name,
                        skipped.total(),
                        skipped.explain()
                    );
                }
                if skipped.traits > 0 {
                    tracing::warn!(
                        "{:?}: {} extra traits are infinite or not UTF-8, and go as null",
                        self.audience.name,
                        skipped.traits
                    );
                }
                Ok((tally, skipped.total()))
            })
    }
}

/// Members that are counted as they pass, and that stop when asked to.
struct Watched<'r, M> {
    members: &'r mut M,
    read: u64,
    reading: &'r Reading,
}

impl<M: Members<Error = SourceError>> Members for Watched<'_, M> {
    type Error = PlanError;

    fn advance(&mut self) -> Result<bool, PlanError> {
        self.read += 1;
        if self.read.is_multiple_of(LOOK_EVERY) {
            self.reading.progress.read(self.read);
            if self.reading.stop.is_requested() {
                return Err(PlanError::Stopped);
            }
        }
        Ok(self.members.advance()?)
    }

    fn current(&self) -> crate::audience::Member<'_> {
        self.members.current()
    }
}
