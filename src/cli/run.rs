//! `run`: stays, and syncs by the cron schedules.
//!
//! Runs take turns, since they share a snapshot; a manual sync or resync beside them is waited for. The lock is held
//! for a run only, so that the other commands find it free in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::args::Args;
use super::output::{Output, count};
use super::sync::{Reports, Selection};
use super::{Exit, Refusal, project, signals};
use crate::audience::AudienceId;
use crate::causes::in_one_line;
use crate::config::{Config, Schedule};
use crate::progress::Progress;
use crate::run::Outcome;
use crate::schedule::{Timetable, keep};
use crate::snapshot::{Busy, Handle, Held, RunLock};
use crate::stop::Stop;
use crate::sync::{Project, Report, Request, Runner};

pub(super) fn run(args: &Args, output: &Output) -> anyhow::Result<Exit> {
    let config = project::load(args)?;
    let project = project::open(&config)?;
    let known = project::known(&config)?;
    // Whatever is wrong with the keys and queries is said now, and not every two hours.
    let keyed = project::select(&config, &[], &known)?;
    let (_, mut refused) = project::check_queries(&config, keyed, &project);
    if let Some((_, error)) = refused.pop() {
        return Err(error.into());
    }
    project::report_forgotten(&config, &known);
    let turns: Vec<Turn> = config.schedules.iter().filter_map(Turn::new).collect();
    if turns.is_empty() {
        return Err(Refusal::usage(
            "no schedule has a `cron`, so there is nothing to run\n\nhint: add one, or run by command: `audience-sync sync`",
        )
        .into());
    }
    super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let daemon = Arc::new(Daemon {
            config,
            project,
            turns,
            output: *output,
            stop: stop.clone(),
            busy: Mutex::new(()),
        });
        daemon.start_overdue()?;
        let timetables = daemon
            .turns
            .iter()
            .map(|turn| turn.timetable.clone())
            .collect();
        let on_time = Arc::clone(&daemon);
        keep(timetables, &stop, move |position| {
            Daemon::tick(&on_time, position)
        })
        .await?;
        // What is in flight is finished and remembered.
        drop(daemon.busy.lock().await);
        tracing::info!("stopped");
        Ok(Exit::Success)
    })
}

/// One schedule, and whether it runs now.
struct Turn {
    name: String,
    audiences: Vec<AudienceId>,
    timetable: Timetable,
    is_running: AtomicBool,
    /// Whether its last run left something in the journal,
    is_left: AtomicBool,
    /// and somebody sees to that.
    is_retried: AtomicBool,
}

/// Says that a schedule does not run any more, however its run ended.
struct Running<'a>(&'a Turn);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Release);
    }
}

impl Turn {
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
            is_left: AtomicBool::new(false),
            is_retried: AtomicBool::new(false),
        })
    }
}

struct Daemon {
    config: Config,
    project: Project,
    turns: Vec<Turn>,
    output: Output,
    stop: Stop,
    busy: Mutex<()>,
}

/// A journal that was left is tried again after 1, 2, 4 and at most 30 minutes.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(30 * 60);

impl Daemon {
    /// Starts the schedules that have missed an occurrence, and says when the others are due.
    fn start_overdue(self: &Arc<Self>) -> anyhow::Result<()> {
        let last = self.last_started()?;
        let now = Utc::now();
        for (position, turn) in self.turns.iter().enumerate() {
            let started = turn
                .audiences
                .iter()
                .map(|id| last.get(id).copied().flatten());
            let oldest = started.min().flatten();
            if turn.timetable.is_overdue(oldest, now) {
                tracing::info!("{}: overdue", turn.name);
                Self::tick(self, position);
            }
            if let Some(next) = turn.timetable.cron.next_after(now, turn.timetable.timezone) {
                tracing::info!(
                    "{}: next at {}",
                    turn.name,
                    next.with_timezone(&turn.timetable.timezone)
                );
            }
        }
        Ok(())
    }

    /// When each audience last began a run that did not fail, the earliest of its destinations; `None` where a run has
    /// left something in the journal since.
    fn last_started(&self) -> anyhow::Result<BTreeMap<AudienceId, Option<DateTime<Utc>>>> {
        let Some(snapshot) = project::inspect(&self.config)? else {
            return Ok(BTreeMap::new());
        };
        let mut last = BTreeMap::new();
        for audience in snapshot.audiences()? {
            let started = audience.last_started_at.filter(|_| audience.pending == 0);
            let started = started.map(|at| at.to_datetime());
            let earliest = last.entry(audience.id).or_insert(started);
            *earliest = started.min(*earliest);
        }
        Ok(last)
    }

    /// Runs a schedule in the background, unless it is still running.
    fn tick(self: &Arc<Self>, position: usize) {
        let turn = &self.turns[position];
        if turn.is_running.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                "{}: skipped, since its last run is still going on",
                turn.name
            );
            return;
        }
        let daemon = Arc::clone(self);
        tokio::spawn(async move {
            let turn = &daemon.turns[position];
            daemon.take_turn(turn).await;
            if turn.is_left.load(Ordering::Acquire) && !turn.is_retried.swap(true, Ordering::AcqRel)
            {
                daemon.retry(turn).await;
                turn.is_retried.store(false, Ordering::Release);
            }
        });
    }

    /// Tries what a schedule left in the journal again, until it is delivered. Its own ticks go on meanwhile.
    async fn retry(&self, turn: &Turn) {
        let mut wait = FIRST_RETRY;
        while turn.is_left.load(Ordering::Acquire) {
            tracing::info!(
                "{}: what is in the journal is tried again in {} s",
                turn.name,
                wait.as_secs()
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.requested() => return,
            }
            wait = LONGEST_RETRY.min(wait * 2);
            if turn.is_left.load(Ordering::Acquire) && !turn.is_running.swap(true, Ordering::AcqRel)
            {
                self.take_turn(turn).await;
            }
        }
    }

    /// Runs a schedule once, when it is its turn.
    async fn take_turn(&self, turn: &Turn) {
        let _running = Running(turn);
        let _busy = self.busy.lock().await;
        if !self.stop.is_requested() {
            match self.sync(turn).await {
                Ok(is_left) => turn.is_left.store(is_left, Ordering::Release),
                Err(error) => tracing::error!("{}: {}", turn.name, in_one_line(&*error)),
            }
        }
    }

    /// Whether something is left in the journal.
    async fn sync(&self, turn: &Turn) -> anyhow::Result<bool> {
        let Some(_lock) = self.lock(turn).await? else {
            return Ok(false);
        };
        let snapshot = project::open_snapshot(&self.config)?;
        let known = snapshot.known()?;
        let mut keyed = project::select(&self.config, &[], &known)?;
        keyed.retain(|keyed| turn.audiences.contains(&keyed.audience.id));
        project::report_forgotten(&self.config, &known);
        let handle = Handle::new(snapshot);
        let runner = Runner {
            project: &self.project,
            snapshot: &handle,
            stop: self.stop.clone(),
            progress: Progress::default(),
        };
        let mut reports = Reports::new(self.output);
        let selection = Selection {
            everything: true,
            keyed,
        };
        let ran = selection
            .run(&runner, Request::default(), &mut reports)
            .await;
        let rows = reports.into_rows();
        rows.iter().for_each(log);
        ran.with_context(|| project::unusable(&self.config.snapshot))?;
        // Not by the outcomes: a record that can never be delivered is no reason to try again.
        let waiting = handle.with(|snapshot| snapshot.waiting()).await?;
        Ok(waiting
            .iter()
            .any(|run| rows.iter().any(|report| report.run == Some(run.id))))
    }

    /// Waits for the lock; `None` when asked to stop meanwhile.
    async fn lock(&self, turn: &Turn) -> anyhow::Result<Option<RunLock>> {
        let mut has_said = false;
        loop {
            match RunLock::take(&self.config.snapshot, "run") {
                Ok(lock) => return Ok(Some(lock)),
                Err(error @ Busy::Unusable { .. }) => return Err(error.into()),
                Err(Busy::Held { holder }) => {
                    if !has_said {
                        tracing::info!("{}: waits for {holder}", turn.name);
                        has_said = true;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
                () = self.stop.requested() => return Ok(None),
            }
        }
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
            "{name}: delivered {delivered}; the guard holds {} removals, {:.1} % of the delivered members. \
             hint: `audience-sync snapshot list` shows some of them; `audience-sync sync {name} --approve` if they have really left",
            count(report.held),
            report.hold.as_ref().map_or(0.0, Held::percent)
        ),
        outcome => tracing::info!(
            "{name}: {}, {} members, {} added, {} removed, {} changed in {:.2} s",
            outcome.as_str(),
            count(report.members),
            count(report.added),
            count(report.removed),
            count(report.changed),
            report.seconds
        ),
    }
}
