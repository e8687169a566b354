//! Runs, told as a story: deliver what earlier ones left, plan, deliver, remember.
//!
//! The unit is the feed: one audience at one stream. All feeds that one command or tick is asked for go through each phase
//! together, and an audience's source is read once for all of its streams. Only a feed of which an earlier run left
//! something waits until that is delivered; the others are planned and delivered meanwhile.
//!
//! [`Runner::run_all`] has all of it. `planning` decides and journals, `reading` gives it the source, `delivery` sends what
//! is in the journal and closes the runs, and `streams` finds the remembered stream that each mapping means.

mod ahead;
mod delivery;
mod planning;
mod reading;
mod report;
mod retire;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::unbounded_channel;

use crate::audience::{Audience, AudienceId, DestinationName, Key, SourceName};
use crate::deliver::Route;
use crate::diff::Scope;
use crate::firehose::Destination;
use crate::mapping::Mapping;
use crate::progress::Progress;
use crate::run::{Outcome, RunId, RunKind, Timestamp};
use crate::snapshot::{Approval, FeedId, Handle, JournaledRun, Planning, SnapshotError};
use crate::source::Source;
use crate::stop::Stop;
use crate::stream::{Place, Stream};
use ahead::Turns;
use planning::KnownFeeds;
pub use report::Report;
pub use retire::Retirement;
pub use streams::Streams;

/// Streams whose journals are delivered at the same moment have their feeds planned together.
const READY_TOGETHER: usize = 64;

/// What runs work with: made once from the configuration.
pub struct Project {
    pub sources: BTreeMap<SourceName, Source>,
    pub destinations: BTreeMap<DestinationName, Outlet>,
    /// All that the schedules name, whatever is wrong with single ones.
    pub audiences: Vec<Audience>,
    pub space_id: Option<String>,
    /// How long delivered changes are kept.
    pub history: Duration,
}

/// A destination, where it is, and what goes to which of its streams.
#[derive(Debug, Clone)]
pub struct Outlet {
    pub destination: Arc<Destination>,
    pub place: Place,
    pub mapping: Mapping,
    /// How long one command or tick may deliver.
    pub deliver_for: Option<Duration>,
}

impl Outlet {
    pub fn new(destination: Destination, place: Place, mapping: Mapping) -> Self {
        Self {
            destination: Arc::new(destination),
            place,
            mapping,
            deliver_for: None,
        }
    }
}

/// What a run is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Which users are decided about.
    pub scope: Scope,
    /// Only at streams of this name.
    pub stream: Option<String>,
    /// Deliver what the guard holds, as far as this covers it.
    pub approval: Option<Approval>,
    /// Only tell what would be done.
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
}

/// One audience at one stream.
#[derive(Debug, Clone)]
pub struct Feed<'a> {
    pub keyed: &'a Keyed,
    pub destination: &'a DestinationName,
    pub stream: Stream,
}

impl Feed<'_> {
    /// What a run is for, by the feeds that the snapshot knows.
    pub fn kind(&self, known: &BTreeSet<(AudienceId, Stream)>, request: &Request) -> RunKind {
        match (self.is_known(known), &request.scope) {
            (_, Scope::Users(_)) | (true, Scope::Everyone) => RunKind::Resync,
            (false, _) => RunKind::First,
            (true, Scope::Changes) => RunKind::Delta,
        }
    }

    /// Whether it was ever planned, by the feeds that the snapshot knows.
    fn is_known(&self, known: &BTreeSet<(AudienceId, Stream)>) -> bool {
        known.contains(&(self.keyed.audience.id.clone(), self.stream.clone()))
    }

    fn has(&self, run: &JournaledRun) -> bool {
        run.is_of(&self.keyed.audience.id) && run.stream == self.stream
    }
}

/// Which runs of earlier commands are delivered first.
#[derive(Debug, Clone, Default)]
pub enum Left {
    /// Those of the feeds that are planned.
    #[default]
    OfFeeds,
    /// Those of these feeds, too.
    Also(BTreeSet<FeedId>),
    /// Those of all feeds of the configuration, and of `send`.
    All,
}

/// Runs over one snapshot, whose lock is held.
pub struct Runner<'a> {
    pub project: &'a Project,
    pub snapshot: &'a Handle,
    pub streams: &'a Streams,
    pub stop: Stop,
    pub progress: Progress,
    shared: Arc<Shared>,
}

/// What runners of one snapshot share that run at the same time. Each has audiences of its own.
#[derive(Debug, Default)]
pub struct Shared {
    /// Streams that are delivered to now.
    delivering: Arc<AtomicUsize>,
    /// When the last run began: each begins later than all before it.
    last_start: Mutex<Option<Timestamp>>,
    turns: Arc<Turns>,
}

impl Shared {
    fn start_after(&self, last: Option<Timestamp>) {
        let mut known = self.last_start();
        *known = last.max(*known);
    }

    /// Starts runs. On the snapshot's thread, so that they are numbered in the order of their times.
    fn start(&self, plannings: &mut [Planning]) {
        let mut last = self.last_start();
        for planning in plannings {
            let at = Timestamp::after(Timestamp::now(), *last);
            planning.computation.run = RunId::at(at);
            planning.computation.started_at = at;
            *last = Some(at);
        }
    }

    fn last_start(&self) -> MutexGuard<'_, Option<Timestamp>> {
        let last = self.last_start.lock();
        last.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What there is to report of a run so far, and the run itself where something of it is to be delivered.
struct Pending {
    run: Option<JournaledRun>,
    report: Report,
}

impl Pending {
    /// Of a feed that cannot send single users again: its first sync, which sends everyone, is yet to come.
    fn refused(feed: &Feed<'_>) -> Self {
        let (key, to, stream) = (&feed.keyed.key, feed.destination.clone(), &feed.stream.name);
        let mut report = Report::new(
            Some(key.clone()),
            to,
            stream.clone(),
            RunKind::Resync,
            Outcome::Failed,
        );
        report.misconfigured = true;
        report.error = Some(format!(
            "stream {stream} has not had its first sync, and single users are only sent again after that\n\n\
             hint: type `audience-sync sync {key}`, which sends every member"
        ));
        Self { run: None, report }
    }

    /// Of an earlier run.
    fn left(run: JournaledRun) -> Self {
        let computation = run.computation.as_ref();
        let key = computation.map(|computation| computation.key.clone());
        let (to, stream) = (run.destination.clone(), run.stream.name.clone());
        let mut report = Report::new(key, to, stream, RunKind::Resume, Outcome::Planned);
        report.run = Some(run.id);
        report.members = Some(run.members);
        report.undelivered = run.waiting;
        Self {
            run: Some(run),
            report,
        }
    }

    /// Notes that what was to be delivered stays in the journal, since the snapshot failed. The command reports that.
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

impl<'a> Runner<'a> {
    pub fn new(
        project: &'a Project,
        snapshot: &'a Handle,
        streams: &'a Streams,
        stop: Stop,
        progress: Progress,
    ) -> Self {
        Self {
            project,
            snapshot,
            streams,
            stop,
            progress,
            shared: Arc::default(),
        }
    }

    /// The same beside others.
    pub fn beside(mut self, shared: &Arc<Shared>) -> Self {
        self.shared = Arc::clone(shared);
        self
    }

    /// The way to a destination, as long as nobody asks to stop.
    pub(crate) fn route(&self, destination: &DestinationName) -> Route {
        let outlet = &self.project.destinations[destination];
        Route {
            destination: Arc::clone(&outlet.destination),
            stop: self.stop.clone(),
            streams: Arc::clone(&self.shared.delivering),
        }
    }

    /// One run of each feed of an audience.
    pub async fn run(
        &self,
        keyed: &Keyed,
        request: &Request,
    ) -> Result<Vec<Report>, SnapshotError> {
        let keyed = std::slice::from_ref(keyed);
        let mut reports = Vec::new();
        let left = Left::OfFeeds;
        self.run_all(keyed, &left, request, &mut reports).await?;
        Ok(reports)
    }

    /// One run of each feed of these audiences; a feed that fails or is stuck stops no other.
    ///
    /// What an earlier run left comes first and has a report of its own. While it cannot be delivered, nothing new is
    /// decided about its feed. Reports are in the order of the audiences, those of other audiences before them. After an
    /// error they tell what was done before it.
    pub async fn run_all(
        &self,
        keyed: &[Keyed],
        left: &Left,
        request: &Request,
        reports: &mut Vec<Report>,
    ) -> Result<(), SnapshotError> {
        let all = self.streams.feeds(self.project, keyed, request);
        let known = self.known_feeds().await?;
        let names_users = matches!(request.scope, Scope::Users(_));
        let (feeds, refused): (Vec<_>, Vec<_>) = all
            .iter()
            .cloned()
            .partition(|feed| !names_users || feed.is_known(&known));
        let left = self.left_of(&feeds, left).await?;
        let mut fresh: Vec<Pending> = refused.iter().map(Pending::refused).collect();
        let mut resumed = Vec::new();
        let (behind, free): (Vec<_>, Vec<_>) = feeds
            .iter()
            .cloned()
            .partition(|feed| left.iter().any(|run| feed.has(run)));
        // A dry run plans as if what waits had been delivered.
        let (first, second) = match request.dry_run {
            true => {
                resumed = left.into_iter().map(Pending::left).collect();
                let estimated = self.estimate(&mut resumed).await;
                (
                    estimated,
                    self.plan_and_deliver(&feeds, request, &known, &mut fresh)
                        .await,
                )
            }
            false => tokio::join!(
                self.resume_and_go_on(left, &behind, request, &known, &mut resumed),
                self.plan_and_deliver(&free, request, &known, &mut fresh),
            ),
        };
        let ran = first.and(second);
        let mut pending: Vec<Pending> = resumed.into_iter().chain(fresh).collect();
        if ran.is_err() {
            pending.iter_mut().for_each(Pending::stay);
        }
        reports.extend(pending.into_iter().map(|pending| pending.report));
        // The position of others is none, which comes before all.
        reports.sort_by_cached_key(|report| {
            all.iter().position(|feed| {
                report.audience.as_ref() == Some(&feed.keyed.key)
                    && report.destination == *feed.destination
                    && report.stream == feed.stream.name
            })
        });
        ran
    }

    /// What earlier runs left. What waits for a feed that is not configured any more waits on, but for what retires an
    /// audience.
    async fn left_of(
        &self,
        feeds: &[Feed<'_>],
        which: &Left,
    ) -> Result<Vec<JournaledRun>, SnapshotError> {
        let mut left = self.snapshot.with(|snapshot| snapshot.waiting()).await?;
        let configured = self.streams.configured(self.project);
        left.retain(|run| {
            let is_asked = feeds.iter().any(|feed| feed.has(run))
                || match which {
                    Left::OfFeeds => false,
                    Left::Also(feeds) => feeds.contains(&run.feed_id()),
                    Left::All => run.kind == RunKind::Retire || configured.contains(&run.feed_id()),
                };
            is_asked && self.streams.has_way_for(run)
        });
        Ok(left)
    }

    /// Delivers what earlier runs left, each stream by itself, and plans its feeds as soon as nothing of them waits.
    async fn resume_and_go_on(
        &self,
        left: Vec<JournaledRun>,
        feeds: &[Feed<'_>],
        request: &Request,
        known: &KnownFeeds,
        pending: &mut Vec<Pending>,
    ) -> Result<(), SnapshotError> {
        let mut by_stream: BTreeMap<Stream, Vec<Pending>> = BTreeMap::new();
        for run in left {
            let of_stream = by_stream.entry(run.stream.clone()).or_default();
            of_stream.push(Pending::left(run));
        }
        let resume = |(stream, mut left): (Stream, Vec<Pending>)| async move {
            let delivered = self
                .deliver_stream(&stream, left.iter_mut().collect())
                .await;
            (stream, left, delivered)
        };
        let resumes: FuturesUnordered<_> = by_stream.into_iter().map(resume).collect();
        let mut ready = resumes.ready_chunks(READY_TOGETHER);
        let mut deliveries = FuturesUnordered::new();
        let mut outcome = Ok(());
        loop {
            let batch = tokio::select! {
                batch = ready.next() => batch,
                Some((delivered, planned)) = deliveries.next() => {
                    let planned: Vec<Pending> = planned;
                    pending.extend(planned);
                    outcome = outcome.and(delivered);
                    continue;
                }
            };
            let Some(batch) = batch else { break };
            let mut free: Vec<Feed<'_>> = Vec::new();
            for (stream, left, delivered) in batch {
                outcome = outcome.and(delivered);
                let is_free = |feed: &&Feed<'_>| {
                    let mut stuck = left.iter().filter_map(Pending::stuck);
                    feed.stream == stream && !stuck.any(|run| feed.has(run))
                };
                free.extend(feeds.iter().filter(is_free).cloned());
                pending.extend(left);
            }
            if outcome.is_ok() {
                deliveries.push(async move {
                    let mut planned = Vec::new();
                    let delivered = self
                        .plan_and_deliver(&free, request, known, &mut planned)
                        .await;
                    (delivered, planned)
                });
            }
        }
        while let Some((delivered, planned)) = deliveries.next().await {
            pending.extend(planned);
            outcome = outcome.and(delivered);
        }
        outcome
    }

    /// Delivers what is planned while the sources of others are still waited for.
    async fn plan_and_deliver(
        &self,
        feeds: &[Feed<'_>],
        request: &Request,
        known: &KnownFeeds,
        pending: &mut Vec<Pending>,
    ) -> Result<(), SnapshotError> {
        let (hand_on, mut planned) = unbounded_channel::<Vec<Pending>>();
        let deliver = async {
            let mut deliveries = FuturesUnordered::new();
            let mut outcome = Ok(());
            loop {
                tokio::select! {
                    Some(mut planned) = planned.recv() => deliveries.push(async move {
                        let delivered = self.deliver(&mut planned).await;
                        (delivered, planned)
                    }),
                    Some((delivered, planned)) = deliveries.next() => {
                        pending.extend(planned);
                        outcome = outcome.and(delivered);
                    }
                    else => break outcome,
                }
            }
        };
        let (planned, delivered) =
            tokio::join!(self.plan_all(feeds, request, known, hand_on), deliver);
        planned.and(delivered)
    }

    /// Drops delivered changes that are older than the project keeps them, and compacts members.
    pub async fn prune(&self) -> Result<(), SnapshotError> {
        let history = self.project.history;
        let stop = self.stop.clone();
        self.snapshot
            .with(move |snapshot| {
                let goes_on = || !stop.is_requested();
                snapshot.prune(Timestamp::now(), history, goes_on)?;
                snapshot.compact(goes_on)
            })
            .await
    }

    /// Delivers what `send` left in the journal.
    pub async fn resume_calls(&self) -> Result<Vec<Report>, SnapshotError> {
        let mut left = self.left_of(&[], &Left::All).await?;
        left.retain(|run| run.computation.is_none());
        let mut pending: Vec<Pending> = left.into_iter().map(Pending::left).collect();
        self.deliver(&mut pending).await?;
        Ok(pending.into_iter().map(|pending| pending.report).collect())
    }
}
