//! Runs, told as a story: deliver what earlier ones left, plan, deliver, remember. All that one command or tick is asked
//! for goes through each of these together.

mod abreast;
mod delivery;
mod planning;
mod reading;
mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audience::keys::Known;
use crate::audience::{Audience, DestinationName, Key, SourceName};
use crate::deliver::Route;
use crate::firehose::{Destination, Pulse};
use crate::mapping::Mapping;
use crate::progress::Progress;
use crate::run::{Outcome, RunKind, Timestamp};
use crate::snapshot::{Handle, JournaledRun, SnapshotError};
use crate::source::Source;
use crate::stop::Stop;
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
    /// The audience as its source is asked for it: by the key that is frozen.
    pub fn asked(&self) -> Audience {
        Audience {
            key: self.key.clone(),
            ..self.audience.clone()
        }
    }

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

/// An audience at one of its destinations.
type Place<'a> = (&'a Keyed, &'a DestinationName);

fn is_at(run: &JournaledRun, (keyed, destination): &Place<'_>) -> bool {
    run.is_of(&keyed.audience.id) && run.destination == **destination
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

    /// What was to be delivered stays in the journal when the snapshot fails, which the command says by itself.
    fn stay(&mut self) {
        if self.run.is_some() && self.report.outcome == Outcome::Planned {
            self.report.outcome = Outcome::Undelivered;
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

        if ran.is_err() {
            pending.iter_mut().for_each(Pending::stay);
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
        left.retain(|run| others || is_asked(run));
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
        self.plan_all(&free, request, pending).await?;
        let planned = &mut pending[first..];
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
}
