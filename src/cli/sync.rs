//! `sync` and `resync`.

use anyhow::Context as _;

use super::args::{Args, ResyncArgs, RunOptions, SyncArgs};
use super::output::{Output, bytes, count, table};
use super::{Exit, Refusal, progress, project, signals};
use crate::config::Config;
use crate::firehose::Stop;
use crate::progress::Progress;
use crate::run::{Outcome, RunKind};
use crate::snapshot::{Handle, Snapshot};
use crate::sync::{Keyed, Report, Request, Runner};

pub(super) fn sync(args: &Args, output: &Output, sync: &SyncArgs) -> anyhow::Result<Exit> {
    let request = Request {
        resync: false,
        approve: sync.options.approve,
        dry_run: sync.options.dry_run,
    };
    run(args, output, &sync.audiences, &sync.options, request)
}

pub(super) fn resync(args: &Args, output: &Output, resync: &ResyncArgs) -> anyhow::Result<Exit> {
    let request = Request {
        resync: true,
        approve: resync.options.approve,
        dry_run: resync.options.dry_run,
    };
    run(args, output, &resync.audiences, &resync.options, request)
}

fn run(
    args: &Args,
    output: &Output,
    words: &[String],
    options: &RunOptions,
    request: Request,
) -> anyhow::Result<Exit> {
    let config = project::load(args)?;
    let project = project::open(&config)?;
    let known = project::known(&config)?;
    let keyed = project::select(&config, words, &known)?;
    project::report_forgotten(&config, &known);
    let (keyed, refused) = project::check_queries(&config, keyed, &project);
    let mut reports = Reports::new(*output);
    for (refused, error) in refused {
        reports.refuse(&refused, &error.to_string(), request)?;
    }
    // Where nothing can run, nothing is written: not even an empty snapshot.
    if keyed.is_empty() {
        return reports.close();
    }
    let command = if request.resync { "resync" } else { "sync" };
    let lock = if request.dry_run {
        Ok(None)
    } else {
        project::lock(&config, command, options.wait).map(Some)
    };
    let lock = match lock {
        Ok(lock) => lock,
        Err(error) => {
            reports.busy(&keyed, &error, request)?;
            return Err(error);
        }
    };
    let snapshot = open(&config, request)?;
    let selection = Selection {
        everything: words.is_empty(),
        keyed,
    };
    super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let handle = Handle::new(snapshot);
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let runner = Runner {
            project: &project,
            snapshot: &handle,
            stop,
            progress: shown,
        };
        selection
            .run(&runner, request, &mut reports)
            .await
            .with_context(|| project::unusable(&config.snapshot))
    })?;
    drop(lock);
    reports.close()
}

fn open(config: &Config, request: Request) -> anyhow::Result<Snapshot> {
    if !request.dry_run {
        return project::open_snapshot(config);
    }
    match project::inspect(config)? {
        Some(snapshot) => Ok(snapshot),
        None => Ok(Snapshot::empty()?),
    }
}

/// The audiences of one command or tick.
pub(super) struct Selection {
    /// Also what others left in the journal.
    pub everything: bool,
    pub keyed: Vec<Keyed>,
}

impl Selection {
    /// Runs them one after another. One that fails does not stop the others.
    pub(super) async fn run(
        &self,
        runner: &Runner<'_>,
        request: Request,
        reports: &mut Reports,
    ) -> anyhow::Result<()> {
        if self.everything {
            for report in runner.resume_others(&self.keyed, request.dry_run).await? {
                reports.add(report)?;
            }
        }
        for keyed in &self.keyed {
            for report in runner.run(keyed, request).await? {
                reports.add(report)?;
            }
        }
        Ok(())
    }
}

/// Prints reports as they come, or gathers them for a table, and knows the exit code.
pub(super) struct Reports {
    output: Output,
    rows: Vec<Report>,
    exit: Exit,
}

impl Reports {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            rows: Vec::new(),
            exit: Exit::Success,
        }
    }

    pub(super) fn add(&mut self, report: Report) -> anyhow::Result<()> {
        self.exit = self.exit.or_worse(exit_of(&report));
        if self.output.json {
            self.output.line(&report)?;
        }
        self.rows.push(report);
        Ok(())
    }

    /// Reports an audience whose query can never run.
    fn refuse(&mut self, keyed: &Keyed, reason: &str, request: Request) -> anyhow::Result<()> {
        for destination in &keyed.audience.destinations {
            let mut report = Report::new(
                Some(keyed.key.clone()),
                destination.clone(),
                kind(request),
                Outcome::Failed,
            );
            report.error = Some(reason.to_owned());
            report.misconfigured = true;
            self.add(report)?;
        }
        Ok(())
    }

    /// Tells programs that nothing was run.
    fn busy(
        &mut self,
        keyed: &[Keyed],
        error: &anyhow::Error,
        request: Request,
    ) -> anyhow::Result<()> {
        let is_busy = error
            .downcast_ref::<Refusal>()
            .is_some_and(|refusal| refusal.exit == Exit::Busy);
        if !is_busy || !self.output.json {
            return Ok(());
        }
        for keyed in keyed {
            for destination in &keyed.audience.destinations {
                let key = Some(keyed.key.clone());
                self.add(Report::new(
                    key,
                    destination.clone(),
                    kind(request),
                    Outcome::Busy,
                ))?;
            }
        }
        Ok(())
    }

    /// Prints the table for people, and what went wrong.
    pub(super) fn close(self) -> anyhow::Result<Exit> {
        if !self.output.json && !self.rows.is_empty() {
            self.output.text(table(
                &HEADER,
                &NUMBERS,
                self.rows.iter().map(row).collect(),
            ))?;
        }
        for report in &self.rows {
            self.explain(report);
        }
        Ok(self.exit)
    }

    fn explain(&self, report: &Report) {
        let name = report.audience.as_ref().map_or("send", |key| key.as_str());
        if let Some(error) = &report.error {
            self.output.note(format_args!("\n{name}: {error}"));
        }
        match report.outcome {
            Outcome::Undelivered if report.undelivered > report.dead => self.output.note(format_args!(
                "\n{name}: {} changes are not delivered; they stay in the journal\n\nhint: the next sync sends them first",
                count(report.undelivered - report.dead)
            )),
            Outcome::Held => self.hint_held(report, name),
            Outcome::Planned if report.held > 0 => self.hint_held(report, name),
            _ => {}
        }
    }

    fn hint_held(&self, report: &Report, name: &str) {
        let before = report.members + report.removed - report.added;
        let percent = report.held as f64 * 100.0 / before.max(1) as f64;
        self.output.note(format_args!(
            "\n{name}: the guard holds {} removals, {percent:.1} % of the {} delivered members\n\n\
             hint: look at the source; if they have really left, type `audience-sync sync {name} --approve`",
            count(report.held),
            count(before)
        ));
    }
}

fn kind(request: Request) -> RunKind {
    if request.resync {
        RunKind::Resync
    } else {
        RunKind::Delta
    }
}

fn exit_of(report: &Report) -> Exit {
    match report.outcome {
        Outcome::Delivered | Outcome::Unchanged => Exit::Success,
        Outcome::Planned if report.held > 0 => Exit::Held,
        Outcome::Planned => Exit::Success,
        Outcome::Held => Exit::Held,
        Outcome::Undelivered => Exit::Undelivered,
        Outcome::Failed if report.misconfigured => Exit::Usage,
        Outcome::Failed => Exit::Failed,
        Outcome::Busy => Exit::Busy,
    }
}

const HEADER: [&str; 11] = [
    "audience",
    "destination",
    "kind",
    "outcome",
    "members",
    "added",
    "removed",
    "changed",
    "delivered",
    "sent",
    "seconds",
];
const NUMBERS: [&str; 7] = [
    "members",
    "added",
    "removed",
    "changed",
    "delivered",
    "sent",
    "seconds",
];

fn row(report: &Report) -> Vec<String> {
    vec![
        report
            .audience
            .as_ref()
            .map_or_else(|| "(send)".to_owned(), ToString::to_string),
        report.destination.to_string(),
        report.kind.as_str().to_owned(),
        report.outcome.as_str().to_owned(),
        count(report.members),
        count(report.added),
        count(report.removed),
        count(report.changed),
        count(report.delivered),
        bytes(report.counts.bytes),
        format!("{:.2}", report.seconds),
    ]
}
