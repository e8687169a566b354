//! Runs, told as a story: deliver what earlier ones left, plan, deliver, remember. All that one command or tick is asked
//! for goes through each of these together.

mod abreast;
mod planning;
mod reading;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::audience::keys::Known;
use crate::audience::{Audience, DestinationName, Key, SourceName};
use crate::causes::in_one_line;
use crate::deliver::{Outgoing, Route, deliver, foresee};
use crate::firehose::{Destination, Pulse};
use crate::mapping::Mapping;
use crate::progress::Progress;
use crate::run::{Outcome, RunKind, Timestamp};
use crate::snapshot::{Handle, JournaledRun, Planning, Snapshot, SnapshotError};
use crate::source::Source;
use crate::stop::Stop;
use abreast::abreast;
use planning::{PlanError, Starts};
use reading::Reading;
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
    /// Whether all that one command says of a user goes in one record.
    pub coalesce: bool,
}

impl Outlet {
    pub fn new(destination: Destination, mapping: Mapping) -> Self {
        Self {
            destination: Arc::new(destination),
            mapping,
            pulse: Arc::default(),
            coalesce: false,
        }
    }

    /// The way there, as long as nobody asks to stop.
    pub fn route(&self, stop: &Stop) -> Route {
        Route {
            destination: Arc::clone(&self.destination),
            pulse: Arc::clone(&self.pulse),
            stop: stop.clone(),
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

/// Runs over one snapshot, by whoever holds its lock.
pub struct Runner<'a> {
    pub project: &'a Project,
    pub snapshot: &'a Handle,
    pub stop: Stop,
    pub progress: Progress,
}

/// So many sources are read before it is their turn: queries that sort, or that are slow to begin, run side by side.
const SOURCES_AHEAD: usize = 2;
/// Plans share a transaction for so long, and no longer than one of them takes.
const PLANS_TOGETHER_FOR: Duration = Duration::from_secs(1);

/// An audience at one of its destinations.
type Place<'a> = (&'a Keyed, &'a DestinationName);

fn is_at(run: &JournaledRun, (keyed, destination): &Place<'_>) -> bool {
    run.is_of(&keyed.audience.id) && run.destination == **destination
}

/// A run that is about to be planned.
struct Intended {
    planning: Planning,
    reading: Reading,
}

/// What there is to say of a run so far, and the run itself where something of it is to be delivered.
struct Pending {
    run: Option<JournaledRun>,
    report: Report,
}

impl Pending {
    /// Of an earlier run.
    fn left(run: JournaledRun) -> Self {
        let computation = run.computation.as_ref();
        let key = computation.map(|computation| computation.key.clone());
        let to = run.destination.clone();
        let mut report = Report::new(key, to, RunKind::Resume, Outcome::Planned);
        report.run = Some(run.id);
        report.members = run.members;
        report.undelivered = run.waiting;
        Self {
            run: Some(run),
            report,
        }
    }

    /// What was to be delivered stays in the journal when the snapshot fails.
    fn fall(&mut self, error: &SnapshotError) {
        if self.run.is_some() && self.report.outcome == Outcome::Planned {
            self.report.outcome = Outcome::Undelivered;
            self.report.error = Some(in_one_line(error));
        }
    }

    /// The run, where something of it stays in the journal. The dead are in the way of nothing.
    fn stuck(&self) -> Option<&JournaledRun> {
        let Report {
            outcome,
            undelivered,
            dead,
            ..
        } = self.report;
        let is_stuck = outcome == Outcome::Undelivered && undelivered > dead;
        self.run.as_ref().filter(|_| is_stuck)
    }
}

impl Runner<'_> {
    /// One run of an audience at each of its destinations.
    pub async fn run(&self, keyed: &Keyed, request: Request) -> Result<Vec<Report>, SnapshotError> {
        let keyed = std::slice::from_ref(keyed);
        let mut reports = Vec::new();
        self.run_all(keyed, false, request, &mut reports).await?;
        Ok(reports)
    }

    /// One run of each of these audiences at each of its destinations; one that fails stops nobody. What earlier runs
    /// left comes first, of `others` too, and is reported by itself; while it cannot be delivered, nothing new is
    /// decided about its audience. The reports are in the order of the audiences, those of others before them. They
    /// say what was done before an error, too.
    pub async fn run_all(
        &self,
        keyed: &[Keyed],
        others: bool,
        request: Request,
        reports: &mut Vec<Report>,
    ) -> Result<(), SnapshotError> {
        let places: Vec<Place<'_>> = keyed
            .iter()
            .flat_map(|keyed| {
                let destinations = keyed.audience.destinations.iter();
                destinations.map(move |to| (keyed, to))
            })
            .collect();
        let mut pending = self.left_of(&places, others).await?;
        let ran = self.go(&places, request, &mut pending).await;

        if let Err(error) = &ran {
            pending.iter_mut().for_each(|pending| pending.fall(error));
        }
        reports.extend(pending.into_iter().map(|pending| pending.report));
        // The place of others is none, which comes before all.
        reports.sort_by_cached_key(|report| {
            places.iter().position(|(keyed, destination)| {
                report.audience.as_ref() == Some(&keyed.key) && report.destination == **destination
            })
        });
        ran
    }

    /// What earlier runs at these places left, and those of others.
    async fn left_of(
        &self,
        places: &[Place<'_>],
        others: bool,
    ) -> Result<Vec<Pending>, SnapshotError> {
        let mut left = self.snapshot.with(|snapshot| snapshot.waiting()).await?;
        let is_asked = |run: &JournaledRun| places.iter().any(|place| is_at(run, place));
        // What shares records is sent again together: then they are the same.
        let asked = left.iter().filter(|run| is_asked(run));
        let together: BTreeSet<i64> = asked.filter_map(|run| run.together).collect();
        let goes_along = |run: &JournaledRun| run.together.is_some_and(|it| together.contains(&it));
        left.retain(|run| others || is_asked(run) || goes_along(run));
        Ok(left.into_iter().map(Pending::left).collect())
    }

    /// Sees to what is pending, then plans and delivers what comes to it.
    async fn go(
        &self,
        places: &[Place<'_>],
        request: Request,
        pending: &mut Vec<Pending>,
    ) -> Result<(), SnapshotError> {
        self.resume(pending, request.dry_run).await?;
        let stuck: Vec<&JournaledRun> = pending.iter().filter_map(Pending::stuck).collect();
        let mut free = places.to_vec();
        free.retain(|place| !stuck.iter().any(|run| is_at(run, place)));
        let first = pending.len();
        pending.extend(self.plan_all(&free, request).await?);
        let planned = &mut pending[first..];
        self.coalesce(planned).await?;
        self.deliver(planned).await
    }

    /// Drops delivered changes that are older than the project keeps them.
    pub async fn prune(&self) -> Result<(), SnapshotError> {
        let kept = i64::try_from(self.project.history.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::from_millis(Timestamp::now().millis().saturating_sub(kept));
        let stop = self.stop.clone();
        self.snapshot
            .with(move |snapshot| {
                snapshot.prune(before)?;
                snapshot.bring_members_up_to_date(|| !stop.is_requested())
            })
            .await
    }

    /// Delivers what `send` left in the journal.
    pub async fn resume_calls(&self) -> Result<Vec<Report>, SnapshotError> {
        let mut left = self.snapshot.with(|snapshot| snapshot.waiting()).await?;
        left.retain(|run| run.computation.is_none());
        let mut pending: Vec<Pending> = left.into_iter().map(Pending::left).collect();
        self.resume(&mut pending, false).await?;
        Ok(pending.into_iter().map(|pending| pending.report).collect())
    }

    async fn resume(&self, left: &mut [Pending], dry_run: bool) -> Result<(), SnapshotError> {
        match dry_run {
            true => self.foresee(left).await,
            false => self.deliver(left).await,
        }
    }

    /// Says what a delivery would count. Asked to stop, it leaves that open.
    async fn foresee(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        for Pending { run, report } in pending {
            let outlet = self.project.destinations.get(&report.destination);
            let Some((run, outlet)) = run.as_ref().zip(outlet) else {
                continue;
            };
            tokio::select! {
                streams = foresee(self.snapshot, run, &outlet.destination) => {
                    report.foresee(&outlet.destination, &streams?);
                }
                () = self.stop.requested() => break,
            }
        }
        Ok(())
    }

    /// Plans them in their order, several in one transaction: on disk, all of them, before anything is sent. Asked to
    /// stop, it plans no more.
    async fn plan_all(
        &self,
        to_run: &[Place<'_>],
        request: Request,
    ) -> Result<Vec<Pending>, SnapshotError> {
        let mut starts = self.starts().await?;
        let mut to_run = to_run
            .iter()
            .map(|(keyed, destination)| self.intend(keyed, destination, request, &mut starts));
        let mut ahead: VecDeque<Intended> = VecDeque::new();
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
                together_since = None;
            }
        }
        if together_since.is_some() {
            self.snapshot.with(Snapshot::close_together).await?;
        }
        Ok(planned)
    }

    /// Lets runs to a destination that coalesces share their records. On disk before anything is sent, so that what is
    /// sent again is the same.
    async fn coalesce(&self, planned: &mut [Pending]) -> Result<(), SnapshotError> {
        let mut by_destination: BTreeMap<DestinationName, Vec<&mut JournaledRun>> = BTreeMap::new();
        for run in planned.iter_mut().filter_map(|it| it.run.as_mut()) {
            if self.project.destinations[&run.destination].coalesce {
                let to = run.destination.clone();
                by_destination.entry(to).or_default().push(run);
            }
        }
        for runs in by_destination.into_values().filter(|runs| runs.len() > 1) {
            let numbers: Vec<i64> = runs.iter().map(|run| run.number).collect();
            let together = self
                .snapshot
                .with(move |snapshot| snapshot.coalesce(&numbers))
                .await?;
            runs.into_iter().for_each(|run| run.together = together);
        }
        Ok(())
    }

    fn intend(
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

    async fn plan_one(
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

    /// Delivers what is pending, to all destinations at once, completes the reports and closes the runs.
    async fn deliver(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        self.show_delivery(pending);
        let mut by_destination: BTreeMap<DestinationName, Vec<&mut Pending>> = BTreeMap::new();
        for pending in pending.iter_mut().filter(|pending| pending.run.is_some()) {
            let to = pending.report.destination.clone();
            by_destination.entry(to).or_default().push(pending);
        }
        let deliveries = by_destination
            .into_iter()
            .map(|(name, pending)| self.deliver_to(name, pending));
        abreast(deliveries).await.into_iter().collect()
    }

    fn show_delivery(&self, pending: &[Pending]) {
        let runs = pending.iter().filter_map(|pending| pending.run.as_ref());
        let changes = runs.clone().map(|run| run.waiting).sum();
        match pending {
            _ if changes == 0 => {}
            [one] => self.progress.deliver(one.report.name(), changes),
            _ => {
                let several = format!("{} audiences", runs.count());
                self.progress.deliver(&several, changes);
            }
        }
    }

    async fn deliver_to(
        &self,
        name: DestinationName,
        mut pending: Vec<&mut Pending>,
    ) -> Result<(), SnapshotError> {
        let Some(outlet) = self.project.destinations.get(&name) else {
            for Pending { report, .. } in pending {
                report.outcome = Outcome::Undelivered;
                report.error = Some(format!(
                    "the configuration has no destination `{name}` any more\n\nhint: put it back until its journal is delivered"
                ));
            }
            return Ok(());
        };
        let runs = pending.iter().filter_map(|pending| pending.run.clone());
        let outgoing: Vec<Outgoing> = runs
            .map(|run| Outgoing {
                run,
                meter: Arc::default(),
            })
            .collect();
        let (runs, stop) = (outgoing.clone(), self.stop.clone());
        self.snapshot
            .with(move |snapshot| {
                let goes_on = || !stop.is_requested();
                let mut runs = runs.iter().map(|outgoing| &outgoing.run);
                runs.try_for_each(|run| snapshot.make_ready_for(run, goes_on))
            })
            .await?;
        let sent = deliver(
            self.snapshot,
            outgoing.clone(),
            &outlet.route(&self.stop),
            &self.progress,
        )
        .await?;
        let mut closed = Vec::new();
        for ((pending, Outgoing { run, meter }), sent) in pending.iter_mut().zip(outgoing).zip(sent)
        {
            let report = &mut pending.report;
            report.delivered = sent.delivered;
            report.undelivered = run.waiting - sent.delivered;
            report.counts = meter.counts();
            report.error = sent.trouble();
            report.outcome = outcome(report);
            report.seconds += sent.took.as_secs_f64();
            closed.push((run, report.outcome));
        }
        let left = self.close(closed).await?;
        for (pending, left) in pending.into_iter().zip(left) {
            // Those found dead by an earlier attempt were not waiting any more.
            pending.report.dead = pending.report.undelivered.saturating_sub(left);
        }
        Ok(())
    }

    /// Closes runs with what came of them; returns how many changes of each are left in the journal.
    async fn close(&self, runs: Vec<(JournaledRun, Outcome)>) -> Result<Vec<u64>, SnapshotError> {
        let close = move |snapshot: &mut Snapshot| {
            let mut left = Vec::with_capacity(runs.len());
            for (run, outcome) in &runs {
                snapshot.finish(run, *outcome)?;
                left.push(snapshot.run(run.number)?.waiting);
            }
            Ok(left)
        };
        self.snapshot
            .with(move |snapshot| snapshot.together(close))
            .await
    }
}

/// What came of a run that was decided.
fn outcome(report: &Report) -> Outcome {
    if report.undelivered > 0 {
        Outcome::Undelivered
    // What an earlier run held is decided anew by the one that follows.
    } else if report.held > 0 {
        Outcome::Held
    } else if report.delivered > 0 {
        Outcome::Delivered
    } else {
        Outcome::Unchanged
    }
}
