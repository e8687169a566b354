//! `run`: stays, and syncs by the cron schedules.
//!
//! No schedule waits for another: those that are due run side by side, over one snapshot that the first of them opens. A
//! manual sync or resync is waited for. The snapshot is closed, and its lock released, when nothing runs. What failed is
//! tried again by itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until};

use super::args::Args;
use super::output::{Output, count};
use super::sync::{Reports, Selection};
use super::{Exit, Refusal, held, project, retire, signals};
use crate::audience::{AudienceId, Key, SourceName};
use crate::causes::in_one_line;
use crate::config::{Config, Schedule};
use crate::progress::Progress;
use crate::run::{Outcome, RunKind};
use crate::schedule::{Backoff, Clock, Timetable, keep};
use crate::snapshot::{Busy, FeedId, Handle, JournaledRun, RunLock};
use crate::stop::Stop;
use crate::stream::Stream;
use crate::sync::{Keyed, Left, Project, Report, Request, Runner, Shared, Streams};

pub(super) fn run(args: &Args, output: &Output, accept_old: bool) -> anyhow::Result<Exit> {
    // Without a look at the queries, which are of one audience each: they are checked below.
    let config = Config::load(&args.config)?;
    let project = project::open(&config)?;
    let known = project::known(&config)?;
    let keyed = project::select_not_retired(&config, &known)?;
    retire::warn(&config, &project)?;
    let schedules: Vec<Scheduled> = config.schedules.iter().filter_map(Scheduled::new).collect();
    if schedules.is_empty() {
        return Err(Refusal::usage(
            "no schedule has a `cron`, so there is nothing to run\n\nhint: add one, or run by command: `audience-sync sync`",
        )
        .into());
    }
    // A snapshot that is missing or too old is reported now, and not every two hours.
    let lock = project::lock(&config, "run", true)?;
    drop(project::open_snapshot(&config, lock, accept_old)?);
    super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let (ticks, due) = unbounded_channel();
        let daemon = Arc::new(Daemon {
            config,
            project,
            schedules,
            output: *output,
            stop: stop.clone(),
            ticks,
            open: Mutex::default(),
        });
        daemon.check_queries(keyed);
        // What falls due from now on is for the clock; what did before is overdue.
        let now = Utc::now();
        let timetables = daemon.schedules.iter();
        let timetables = timetables.map(|schedule| schedule.timetable.clone());
        let clock = Clock::new(timetables.collect(), now);
        daemon.start_overdue(now)?;
        let kept = async {
            let kept = keep(clock, &stop, Utc::now, |position| daemon.tick(position));
            Ok(kept.await?)
        };
        tokio::try_join!(kept, daemon.work(due))?;
        tracing::info!("stopped");
        Ok(Exit::Success)
    })
}

/// A schedule that has a `cron`.
struct Scheduled {
    name: String,
    audiences: Vec<AudienceId>,
    timetable: Timetable,
    /// From a tick until its run has ended.
    is_running: AtomicBool,
}

impl Scheduled {
    fn new(schedule: &Schedule) -> Option<Self> {
        let cron = schedule.cron.clone()?;
        Some(Self {
            name: schedule.name.clone(),
            audiences: schedule
                .audiences
                .iter()
                .map(|configured| configured.audience.id.clone())
                .collect(),
            timetable: Timetable {
                cron,
                timezone: schedule.timezone,
            },
            is_running: AtomicBool::new(false),
        })
    }
}

/// What is tried again after it failed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Retry {
    /// A whole run: its source failed, or the snapshot did before it was planned.
    Audience(AudienceId),
    /// Only the delivery of what was planned.
    Journal(FeedId),
}

impl Retry {
    /// What one work has in hand at a time: all of an audience, or what `send` left for a stream.
    fn whole(&self) -> Self {
        match self {
            Self::Audience(id) | Self::Journal((Some(id), _)) => Self::Audience(id.clone()),
            Self::Journal(_) => self.clone(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Audience(id) | Self::Journal((Some(id), _)) => id.as_str(),
            Self::Journal((None, _)) => "(send)",
        }
    }
}

/// What is run at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Work {
    /// For the log.
    name: String,
    /// The position of the schedule whose tick this is.
    tick: Option<usize>,
    audiences: BTreeSet<AudienceId>,
    journals: BTreeSet<FeedId>,
}

impl Work {
    fn tick(position: usize, schedule: &Scheduled) -> Self {
        Self {
            name: schedule.name.clone(),
            tick: Some(position),
            audiences: schedule.audiences.iter().cloned().collect(),
            journals: BTreeSet::new(),
        }
    }

    /// What is tried again, apart by what may be to blame: one source, or one stream.
    fn retries(due: Vec<Retry>, source: impl Fn(&AudienceId) -> Option<SourceName>) -> Vec<Self> {
        let mut by_source: BTreeMap<Option<SourceName>, Self> = BTreeMap::new();
        let mut by_stream: BTreeMap<Stream, Self> = BTreeMap::new();
        for retry in due {
            let work = match &retry {
                Retry::Audience(id) => by_source.entry(source(id)).or_default(),
                Retry::Journal((_, stream)) => by_stream.entry(stream.clone()).or_default(),
            };
            work.name = "what failed".to_owned();
            match retry {
                Retry::Audience(id) => drop(work.audiences.insert(id)),
                Retry::Journal(feed) => drop(work.journals.insert(feed)),
            }
        }
        by_source
            .into_values()
            .chain(by_stream.into_values())
            .collect()
    }

    /// Whether it tries this again.
    fn covers(&self, retry: &Retry) -> bool {
        match retry {
            Retry::Audience(id) => self.audiences.contains(id),
            Retry::Journal(feed) => {
                let audience = feed.0.as_ref();
                self.journals.contains(feed)
                    || audience.is_some_and(|id| self.audiences.contains(id))
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = Retry> {
        let audiences = self.audiences.iter().cloned().map(Retry::Audience);
        audiences.chain(self.journals.iter().cloned().map(Retry::Journal))
    }
}

/// What is being worked on. No two works have the same in hand.
#[derive(Default)]
struct UnderWay(BTreeSet<Retry>);

impl UnderWay {
    fn has(&self, retry: &Retry) -> bool {
        self.0.contains(&retry.whole())
    }

    /// Adds some work, if nothing of it is under way.
    fn add(&mut self, work: &Work) -> bool {
        let is_free = !work.parts().any(|part| self.has(&part));
        if is_free {
            self.0.extend(work.parts().map(|part| part.whole()));
        }
        is_free
    }

    fn remove(&mut self, work: &Work) {
        for part in work.parts() {
            self.0.remove(&part.whole());
        }
    }
}

/// What came of some work.
#[derive(Debug, Default)]
struct Ran {
    /// One for each feed; without an audience for what `send` left.
    outcomes: Vec<(Option<AudienceId>, Outcome)>,
    /// What is in the journal after it; `None` where it ended with an error, as when the disk is full.
    left: Option<BTreeSet<FeedId>>,
}

impl Ran {
    /// What is to be tried again.
    fn failed(&self, work: &Work) -> BTreeSet<Retry> {
        let audiences = work.audiences.iter().filter(|id| self.has_failed(id));
        let audiences = audiences.cloned().map(Retry::Audience);
        let journals = self.left.as_ref().unwrap_or(&work.journals);
        audiences
            .chain(journals.iter().cloned().map(Retry::Journal))
            .collect()
    }

    /// Whether all of an audience is tried again: it was not planned, or nobody knows what it left.
    fn has_failed(&self, audience: &AudienceId) -> bool {
        let of_it = |(id, _): &&(Option<AudienceId>, Outcome)| id.as_ref() == Some(audience);
        let mut outcomes = self.outcomes.iter().filter(of_it).peekable();
        let is_unknown = self.left.is_none();
        let was_not_run = is_unknown && outcomes.peek().is_none();
        was_not_run
            || outcomes.any(|(_, outcome)| match outcome {
                Outcome::Failed => true,
                Outcome::Undelivered => is_unknown,
                _ => false,
            })
    }

    /// Takes over what failed, and drops what did not. Of what is under way, that work tells itself.
    fn reschedule(
        &self,
        work: &Work,
        others: &UnderWay,
        retries: &mut Backoff<Retry>,
        now: Instant,
    ) {
        let failed = self.failed(work);
        retries.retain(|retry| failed.contains(retry) || !work.covers(retry));
        for retry in failed.into_iter().filter(|retry| !others.has(retry)) {
            let name = retry.name().to_owned();
            if let Some(wait) = retries.fail(retry, now) {
                tracing::info!("{name}: tried again in {} s", wait.as_secs());
            }
        }
    }
}

struct Daemon {
    config: Config,
    project: Project,
    schedules: Vec<Scheduled>,
    output: Output,
    stop: Stop,
    /// The positions of the schedules whose time has come.
    ticks: UnboundedSender<usize>,
    /// What those that run share.
    open: Mutex<Weak<Session>>,
}

/// The snapshot while something runs, and what goes with it.
struct Session {
    handle: Handle,
    streams: Streams,
    keyed: Vec<Keyed>,
    shared: Arc<Shared>,
}

impl Daemon {
    /// Reports the queries that cannot run. Beside everything else: a source that does not answer keeps nobody waiting.
    fn check_queries(self: &Arc<Self>, keyed: Vec<Keyed>) {
        let daemon = Arc::clone(self);
        std::thread::spawn(move || {
            let (_, refused) = project::check_queries(&daemon.config, keyed, &daemon.project);
            for (keyed, error) in refused {
                tracing::error!("{}: {error}", keyed.key);
            }
        });
    }

    /// Starts the schedules that have missed an occurrence, and says when the others are due.
    fn start_overdue(&self, now: DateTime<Utc>) -> anyhow::Result<()> {
        let last = self.last_started()?;
        for (position, schedule) in self.schedules.iter().enumerate() {
            let started = schedule
                .audiences
                .iter()
                .map(|id| last.get(id).copied().flatten());
            let oldest = started.min().flatten();
            if schedule.timetable.is_overdue(oldest, now) {
                tracing::info!("{}: overdue", schedule.name);
                self.tick(position);
            }
            if let Some(next) = schedule.timetable.next_after(now) {
                tracing::info!(
                    "{}: next at {}",
                    schedule.name,
                    next.with_timezone(&schedule.timetable.timezone)
                );
            }
        }
        Ok(())
    }

    /// When each audience last began a run that did not fail, the earliest of the streams that it is mapped to
    /// now; `None` where a run has left something in the journal since.
    fn last_started(&self) -> anyhow::Result<BTreeMap<AudienceId, Option<DateTime<Utc>>>> {
        let Some(snapshot) = project::inspect(&self.config)? else {
            return Ok(BTreeMap::new());
        };
        let streams = project::look_at_streams(&self.project, &snapshot)?;
        let mut started = BTreeMap::new();
        for feed in snapshot.feeds()? {
            let at = feed.last_planned_at.filter(|_| feed.pending == 0);
            started.insert((Some(feed.id), feed.stream), at.map(|at| at.to_datetime()));
        }
        let mut last = BTreeMap::new();
        for feed in streams.configured(&self.project) {
            // A stream that is new to its audience was never told anything.
            let at = started.remove(&feed).flatten();
            if let (Some(audience), _) = feed {
                let earliest = last.entry(audience).or_insert(at);
                *earliest = at.min(*earliest);
            }
        }
        Ok(last)
    }

    /// Queues a run of a schedule, unless its last one has not ended.
    fn tick(&self, position: usize) {
        let schedule = &self.schedules[position];
        if schedule.is_running.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "{}: skipped, since its last run is still going on",
                schedule.name
            );
            return;
        }
        if self.ticks.send(position).is_err() {
            tracing::debug!("{}: not run, since the program stops", schedule.name);
        }
    }

    /// Runs what is due, until asked to stop. What is in flight then is finished and remembered.
    async fn work(self: &Arc<Self>, mut due: UnboundedReceiver<usize>) -> anyhow::Result<()> {
        let mut retries = Backoff::default();
        self.queue_journals(&mut retries)?;
        let mut under_way = UnderWay::default();
        let mut running = FuturesUnordered::new();
        // Ticks of schedules, until nothing of them is under way.
        let mut ticks = VecDeque::new();
        while !self.stop.is_requested() {
            let failed = retries.due(Instant::now(), |retry| !under_way.has(retry));
            let failed = Work::retries(failed, |audience| self.source(audience));
            let ready = ticks.drain(..).chain(failed).collect::<Vec<Work>>();
            for work in ready {
                if under_way.add(&work) {
                    running.push(self.run_work(work));
                } else if work.tick.is_some() {
                    ticks.push_back(work);
                }
            }
            tokio::select! {
                () = self.stop.requested() => {}
                () = until(retries.next(|retry| !under_way.has(retry))) => {}
                Some(position) = due.recv() => {
                    let work = Work::tick(position, &self.schedules[position]);
                    // A source that failed at the last tick is tried until this one.
                    retries.retain(|retry| match retry {
                        Retry::Audience(id) => !work.audiences.contains(id),
                        Retry::Journal(_) => true,
                    });
                    ticks.push_back(work);
                }
                Some((work, ran)) = running.next() => {
                    under_way.remove(&work);
                    ran.reschedule(&work, &under_way, &mut retries, Instant::now());
                    if let Some(position) = work.tick {
                        let schedule = &self.schedules[position];
                        schedule.is_running.store(false, Ordering::Release);
                    }
                }
            }
        }
        while running.next().await.is_some() {}
        Ok(())
    }

    fn source(&self, audience: &AudienceId) -> Option<SourceName> {
        let mut audiences = self.config.audiences().map(|it| &it.audience);
        let audience = audiences.find(|it| it.id == *audience);
        audience.map(|it| it.source.clone())
    }

    /// What is in the journal at the start is tried by itself, also where no schedule has its audience.
    fn queue_journals(&self, retries: &mut Backoff<Retry>) -> anyhow::Result<()> {
        if let Some(snapshot) = project::inspect(&self.config)? {
            let now = Instant::now();
            let streams = project::look_at_streams(&self.project, &snapshot)?;
            for feed in self.deliverable(&snapshot.waiting()?, &streams) {
                retries.fail(Retry::Journal(feed), now);
            }
        }
        Ok(())
    }

    /// As a task of its own: a panic in it is one failure more.
    async fn run_work(self: &Arc<Self>, work: Work) -> (Work, Ran) {
        let (daemon, of_task) = (Arc::clone(self), work.clone());
        let task = tokio::spawn(async move {
            let mut ran = Ran::default();
            if let Err(error) = daemon.sync(&of_task, &mut ran).await {
                tracing::error!("{}: {}", of_task.name, in_one_line(&*error));
            }
            ran
        });
        let ran = task.await.unwrap_or_else(|panic| {
            tracing::error!("{}: {panic}", work.name);
            Ran::default()
        });
        (work, ran)
    }

    async fn sync(&self, work: &Work, ran: &mut Ran) -> anyhow::Result<()> {
        let Some(session) = self.join(&work.name).await? else {
            ran.left = Some(BTreeSet::new());
            return Ok(());
        };
        let done = self.sync_in(&session, work, ran).await;
        self.leave(session).await;
        done
    }

    async fn sync_in(&self, session: &Session, work: &Work, ran: &mut Ran) -> anyhow::Result<()> {
        let keyed = session.keyed.iter();
        let keyed = keyed.filter(|keyed| work.audiences.contains(&keyed.audience.id));
        let selection = Selection {
            left: Left::Also(work.journals.clone()),
            keyed: keyed.cloned().collect(),
        };
        let (stop, progress) = (self.stop.clone(), Progress::default());
        let runner = Runner::new(
            &self.project,
            &session.handle,
            &session.streams,
            stop,
            progress,
        );
        let runner = runner.beside(&session.shared);
        let mut reports = Reports::new(self.output);
        let request = Request::default();
        let done = selection.run(&runner, &request, &mut reports).await;
        for report in reports.into_rows() {
            log(&report);
            let id = report.audience.as_ref().and_then(|key| session.id(key));
            ran.outcomes.push((id.cloned(), report.outcome));
        }
        done.with_context(|| project::unusable(&self.config.snapshot))?;
        // Not by the outcomes: a record that can never be delivered is no reason to try again.
        let waiting = session.handle.with(|snapshot| snapshot.waiting()).await?;
        ran.left = Some(self.deliverable(&waiting, &session.streams));
        Ok(())
    }

    /// Shares what runs already, or opens the snapshot; `None` when asked to stop meanwhile.
    async fn join(&self, name: &str) -> anyhow::Result<Option<Arc<Session>>> {
        let mut open = self.open.lock().await;
        if let Some(session) = open.upgrade() {
            return Ok(Some(session));
        }
        let Some(lock) = self.lock(name).await? else {
            return Ok(None);
        };
        let session = Arc::new(self.open_session(lock)?);
        *open = Arc::downgrade(&session);
        Ok(Some(session))
    }

    /// The last one closes the snapshot, before the next one opens it.
    async fn leave(&self, session: Arc<Session>) {
        let _open = self.open.lock().await;
        drop(session);
    }

    fn open_session(&self, lock: RunLock) -> anyhow::Result<Session> {
        let mut snapshot = project::open_snapshot(&self.config, lock, false)?;
        let streams = project::streams(&self.project, &mut snapshot)?;
        let known = snapshot.known()?;
        let keyed = project::select_not_retired(&self.config, &known)?;
        retire::warn_by(&self.config, &streams, &snapshot)?;
        Ok(Session {
            handle: Handle::new(snapshot),
            streams,
            keyed,
            shared: Arc::default(),
        })
    }

    /// What is in the journal and is configured, and what retires an audience.
    fn deliverable(&self, waiting: &[JournaledRun], streams: &Streams) -> BTreeSet<FeedId> {
        let configured = streams.configured(&self.project);
        let is_deliverable = |run: &&JournaledRun| {
            streams.has_way_for(run)
                && (run.kind == RunKind::Retire || configured.contains(&run.feed_id()))
        };
        let runs = waiting.iter().filter(is_deliverable);
        runs.map(JournaledRun::feed_id).collect()
    }

    /// Waits for the lock; `None` when asked to stop meanwhile.
    async fn lock(&self, name: &str) -> anyhow::Result<Option<RunLock>> {
        let mut has_logged = false;
        loop {
            match RunLock::take(&self.config.snapshot, "run") {
                Ok(lock) => return Ok(Some(lock)),
                Err(error @ Busy::Unusable { .. }) => return Err(error.into()),
                Err(Busy::Held { holder }) => {
                    if !has_logged {
                        tracing::info!("{name}: waits for {holder}");
                        has_logged = true;
                    }
                }
            }
            tokio::select! {
                () = sleep(Duration::from_millis(500)) => {}
                () = self.stop.requested() => return Ok(None),
            }
        }
    }
}

impl Session {
    fn id(&self, key: &Key) -> Option<&AudienceId> {
        let keyed = self.keyed.iter().find(|keyed| keyed.key == *key);
        keyed.map(|keyed| &keyed.audience.id)
    }
}

/// Waits until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}

fn log(report: &Report) {
    let name = report.name();
    let problem = report.error.as_deref().unwrap_or_default();
    let (delivered, undelivered) = (count(report.delivered), count(report.undelivered));
    match report.outcome {
        Outcome::Failed => tracing::error!("{name}: failed: {problem}"),
        Outcome::Undelivered => {
            tracing::error!(
                "{name}: {undelivered} changes are not delivered and stay in the journal: {problem}"
            );
        }
        Outcome::Held => tracing::warn!(
            "{name}: delivered {delivered}; the guard holds {}. \
             hint: `audience-sync snapshot list` shows some of the users; `audience-sync sync {name} --approve` if the source is right",
            report.hold.as_ref().map_or_else(String::new, held::words)
        ),
        outcome => tracing::info!(
            "{name}: {}, {} members, {} added, {} removed, {} changed in {:.2} s",
            outcome.as_str(),
            count(report.members.unwrap_or_default()),
            count(report.added),
            count(report.removed),
            count(report.changed),
            report.seconds
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tempfile::TempDir;

    use super::super::args::LogFormat;
    use super::*;
    use crate::audience::DestinationName;
    use crate::mapping::StreamName;
    use crate::snapshot::Snapshot;
    use crate::stream::{Place, Stream};
    use crate::sync::Retirement;

    fn id(text: &str) -> AudienceId {
        AudienceId::new(text)
    }

    fn feed(audience: &str) -> FeedId {
        let audience = Some(audience).filter(|audience| *audience != "send");
        let stream = Stream {
            place: Place::directory(Path::new("delivered")),
            name: StreamName::parse("members").unwrap(),
        };
        (audience.map(id), stream)
    }

    fn journal(audience: &str) -> Retry {
        Retry::Journal(feed(audience))
    }

    fn audience(text: &str) -> Retry {
        Retry::Audience(id(text))
    }

    fn ran(outcomes: &[(&str, Outcome)], left: Option<&[&str]>) -> Ran {
        let outcomes = outcomes.iter();
        Ran {
            outcomes: outcomes
                .map(|(of, outcome)| (Some(id(of)), *outcome))
                .collect(),
            left: left.map(|left| left.iter().copied().map(feed).collect()),
        }
    }

    fn work_of(parts: &[Retry]) -> Work {
        let mut work = Work::default();
        for part in parts.iter().cloned() {
            match part {
                Retry::Audience(id) => drop(work.audiences.insert(id)),
                Retry::Journal(feed) => drop(work.journals.insert(feed)),
            }
        }
        work
    }

    /// Whatever is due, without a look at what runs.
    fn all_due(retries: &mut Backoff<Retry>, now: Instant) -> Vec<Retry> {
        retries.due(now, |_| true)
    }

    fn next(retries: &Backoff<Retry>) -> Option<Instant> {
        retries.next(|_| true)
    }

    #[test]
    fn a_source_that_failed_and_a_journal_that_was_left_are_tried_again_by_themselves() {
        let check = |work: &[Retry], ran: Ran, expected: &[Retry]| {
            let failed = ran.failed(&work_of(work));
            assert_eq!(failed, expected.iter().cloned().collect(), "{ran:?}");
        };
        let [a, b] = [audience("a"), audience("b")];
        let both = [a.clone(), b.clone()];
        let outcomes = [("a", Outcome::Failed), ("b", Outcome::Delivered)];
        check(&both, ran(&outcomes, Some(&[])), std::slice::from_ref(&a));
        let outcomes = [("a", Outcome::Undelivered), ("b", Outcome::Unchanged)];
        check(&both, ran(&outcomes, Some(&["a"])), &[journal("a")]);
        // Dead, and so in the journal of nobody.
        check(&both, ran(&outcomes, Some(&[])), &[]);
        // What others left.
        check(
            &both,
            ran(&[], Some(&["send", "c"])),
            &[journal("send"), journal("c")],
        );
        // The snapshot failed: before anything, and while this was delivered.
        check(&both, ran(&[], None), &both);
        let outcomes = [("a", Outcome::Delivered), ("b", Outcome::Undelivered)];
        check(&both, ran(&outcomes, None), std::slice::from_ref(&b));
        check(&[journal("c")], ran(&[], None), &[journal("c")]);
        check(
            &[journal("c"), a.clone()],
            ran(&[], None),
            &[a, journal("c")],
        );
    }

    #[test]
    fn what_is_done_is_not_tried_again_and_an_error_proves_nothing() {
        let check = |ran: Ran, expected: &[Retry]| {
            let (mut retries, now) = (Backoff::default(), Instant::now());
            for retry in [audience("a"), audience("b"), journal("a"), journal("b")] {
                retries.fail(retry, now);
            }
            let work = work_of(&[audience("a"), journal("a")]);
            ran.reschedule(&work, &UnderWay::default(), &mut retries, now);
            let due = all_due(&mut retries, now + Duration::from_secs(60));
            assert_eq!(due, expected, "{ran:?}");
        };
        let done = [("a", Outcome::Delivered)];
        check(ran(&done, Some(&["b"])), &[audience("b"), journal("b")]);
        check(ran(&done, Some(&[])), &[audience("b"), journal("b")]);
        check(
            ran(&done, None),
            &[audience("b"), journal("a"), journal("b")],
        );
    }

    /// With the audiences `a`, whose source is not there, and `b`.
    fn daemon(folder: &TempDir) -> Arc<Daemon> {
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        fs::create_dir(folder.path().join("schedules")).unwrap();
        write(
            "audience-sync.toml",
            "[source.a]\nsqlite = \"a.sqlite\"\n[source.b]\nsqlite = \"b.sqlite\"\n\
             [destination.main]\ndirectory = \"delivered\"\n[destination.main.mapping]\nidentify = \"members\"\n",
        );
        let audience = |name: &str| {
            format!(
                "[[audience]]\nname = \"{name}\"\nsource = \"{name}\"\nquery = \"SELECT user_id FROM members\"\n"
            )
        };
        let schedule = "cron = \"0 4 * * *\"\n".to_owned() + &audience("a") + &audience("b");
        write("schedules/main.toml", &schedule);
        add_source(folder, "b");
        let config = Config::load(&folder.path().join("audience-sync.toml")).unwrap();
        Snapshot::create(&config.snapshot).unwrap();
        Arc::new(Daemon {
            project: project::open(&config).unwrap(),
            schedules: config.schedules.iter().filter_map(Scheduled::new).collect(),
            config,
            output: Output::new(false, LogFormat::Text),
            stop: Stop::new(),
            ticks: unbounded_channel().0,
            open: Mutex::default(),
        })
    }

    fn add_source(folder: &TempDir, name: &str) {
        let path = folder.path().join(format!("{name}.sqlite"));
        rusqlite::Connection::open(path)
            .unwrap()
            .execute_batch("CREATE TABLE members (user_id TEXT); INSERT INTO members VALUES ('u')")
            .unwrap();
    }

    /// What comes of a retry, which it reschedules.
    async fn retried(
        daemon: &Arc<Daemon>,
        due: Vec<Retry>,
        retries: &mut Backoff<Retry>,
    ) -> Vec<(Option<AudienceId>, Outcome)> {
        attempt(daemon, work_of(&due), retries).await
    }

    async fn run_tick(daemon: &Arc<Daemon>, retries: &mut Backoff<Retry>) {
        retries.retain(|retry| matches!(retry, Retry::Journal(_)));
        attempt(daemon, Work::tick(0, &daemon.schedules[0]), retries).await;
    }

    async fn attempt(
        daemon: &Arc<Daemon>,
        work: Work,
        retries: &mut Backoff<Retry>,
    ) -> Vec<(Option<AudienceId>, Outcome)> {
        let (work, ran) = daemon.run_work(work).await;
        ran.reschedule(&work, &UnderWay::default(), retries, Instant::now());
        ran.outcomes
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_source_that_failed_is_read_again_and_no_other_until_the_next_tick() {
        let folder = tempfile::tempdir().unwrap();
        let (daemon, mut retries) = (daemon(&folder), Backoff::default());
        let tick = Instant::now();
        run_tick(&daemon, &mut retries).await;
        assert!(next(&retries) >= Some(tick + MINUTE));
        let due = all_due(&mut retries, Instant::now() + MINUTE);
        assert_eq!(due, [audience("a")]);

        let again = Instant::now();
        let outcomes = retried(&daemon, due, &mut retries).await;
        assert_eq!(outcomes, [(Some(id("a")), Outcome::Failed)]);
        assert!(next(&retries) >= Some(again + 2 * MINUTE));

        // It begins with a minute anew.
        run_tick(&daemon, &mut retries).await;
        assert!(next(&retries) <= Some(Instant::now() + MINUTE));

        add_source(&folder, "a");
        let due = all_due(&mut retries, Instant::now() + MINUTE);
        let outcomes = retried(&daemon, due, &mut retries).await;
        assert_eq!(outcomes, [(Some(id("a")), Outcome::Delivered)]);
        assert_eq!(next(&retries), None);
    }

    #[tokio::test]
    async fn a_snapshot_that_could_not_be_used_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let (daemon, mut retries) = (daemon(&folder), Backoff::default());
        let aside = folder.path().join("aside.sqlite");
        fs::rename(&daemon.config.snapshot, &aside).unwrap();
        run_tick(&daemon, &mut retries).await;
        let due = all_due(&mut retries, Instant::now() + MINUTE);
        assert_eq!(due, [audience("a"), audience("b")]);

        fs::rename(&aside, &daemon.config.snapshot).unwrap();
        let outcomes = retried(&daemon, due, &mut retries).await;
        let [a, b] = [
            (Some(id("a")), Outcome::Failed),
            (Some(id("b")), Outcome::Delivered),
        ];
        assert_eq!(outcomes, [a, b]);
        assert_eq!(
            all_due(&mut retries, Instant::now() + 2 * MINUTE),
            [audience("a")]
        );
    }

    /// A file lies where the directory of the destination should be.
    #[tokio::test]
    async fn a_journal_that_was_left_is_delivered_again_without_a_plan() {
        let folder = tempfile::tempdir().unwrap();
        let (daemon, mut retries) = (daemon(&folder), Backoff::default());
        fs::write(folder.path().join("delivered"), "in the way").unwrap();
        add_source(&folder, "a");
        run_tick(&daemon, &mut retries).await;
        let due = all_due(&mut retries, Instant::now() + MINUTE);
        assert_eq!(due, [journal("a"), journal("b")]);

        fs::remove_file(folder.path().join("delivered")).unwrap();
        fs::remove_file(folder.path().join("a.sqlite")).unwrap();
        let outcomes = retried(&daemon, due, &mut retries).await;
        let delivered = ["a", "b"].map(|of| (Some(id(of)), Outcome::Delivered));
        assert_eq!(outcomes, delivered);
        assert_eq!(next(&retries), None);
    }

    /// It is retired while the schedules still name it.
    #[tokio::test]
    async fn an_audience_that_is_retired_keeps_the_others_from_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (daemon, mut retries) = (daemon(&folder), Backoff::default());
        add_source(&folder, "a");
        run_tick(&daemon, &mut retries).await;
        let delivered = folder.path().join("delivered");
        fs::rename(&delivered, folder.path().join("aside")).unwrap();
        fs::write(&delivered, "in the way").unwrap();
        retire(&daemon, "b").await;

        daemon.queue_journals(&mut retries).unwrap();
        let due = all_due(&mut retries, Instant::now() + MINUTE);
        assert_eq!(due, [journal("b")]);
        fs::remove_file(&delivered).unwrap();
        let outcomes = retried(&daemon, due, &mut retries).await;
        assert_eq!(outcomes, [(None, Outcome::Delivered)]);
        assert_eq!(next(&retries), None);

        let audiences = daemon.schedules[0].audiences.iter().cloned();
        let work = Work {
            audiences: audiences.collect(),
            ..Work::default()
        };
        let (_, ran) = daemon.run_work(work).await;
        assert_eq!(ran.outcomes, [(Some(id("a")), Outcome::Unchanged)]);
        assert_eq!(ran.left, Some(BTreeSet::new()));
    }

    /// Retires an audience as the command does. Its stream accepts nothing.
    async fn retire(daemon: &Daemon, key: &str) {
        let mut snapshot = Snapshot::open(&daemon.config.snapshot).unwrap().unwrap();
        let streams = project::streams(&daemon.project, &mut snapshot).unwrap();
        let mut known = snapshot.known().unwrap();
        known.retain(|known| known.key.as_str() == key);
        let stream = snapshot.streams().unwrap().remove(0);
        let retirement = Retirement {
            audience: known.remove(0),
            feeds: vec![(DestinationName::new("main"), stream)],
            is_whole: true,
        };
        let handle = Handle::new(snapshot);
        let (stop, progress) = (Stop::new(), Progress::default());
        let runner = Runner::new(&daemon.project, &handle, &streams, stop, progress);
        let mut reports = Vec::new();
        runner.retire(&retirement, &mut reports).await.unwrap();
        assert_eq!(reports[0].outcome, Outcome::Undelivered);
    }
}
