//! `sync` and `resync`.

use anyhow::Context as _;

use super::args::{Args, ResyncArgs, RunOptions, SyncArgs};
use super::output::{Output, bytes, count, table};
use super::{Exit, Refusal, bill, held, progress, project, signals};
use crate::audience::keys::Known;
use crate::config::Config;
use crate::progress::Progress;
use crate::run::{Outcome, RunId, RunKind};
use crate::snapshot::{Handle, Held, Snapshot};
use crate::stop::Stop;
use crate::sync::{Keyed, Project, Report, Request, Runner};

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
        reports.refuse(&refused, &error.to_string(), request, &known);
    }
    // Where nothing can run, nothing is written: not even an empty snapshot.
    if keyed.is_empty() && !(words.is_empty() && project::has_journal(&config)?) {
        if config.audiences().next().is_none() {
            output.note("nothing to sync: no schedule has an audience or a computed trait");
        }
        return Ok(reports.close());
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
            reports.busy(&keyed, &error, request, &known);
            return Err(error);
        }
    };
    // Whoever was waited for may have frozen keys meanwhile.
    if options.wait {
        project::select(&config, words, &project::known(&config)?)?;
    }
    let snapshot = open(&config, request)?;
    let selection = Selection {
        everything: words.is_empty(),
        keyed,
    };
    let delivered = deliver_selection(
        &config,
        &project,
        snapshot,
        &selection,
        request,
        &mut reports,
    );
    drop(lock);
    let exit = reports.close();
    delivered.map(|()| exit)
}

/// Runs a selection on a runtime of its own, with a bar and an ear for signals.
pub(super) fn deliver_selection(
    config: &Config,
    project: &Project,
    snapshot: Snapshot,
    selection: &Selection,
    request: Request,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let handle = Handle::new(snapshot);
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let runner = Runner {
            project,
            snapshot: &handle,
            stop,
            progress: shown,
        };
        let ran = selection.run(&runner, request, reports).await;
        ran.with_context(|| project::unusable(&config.snapshot))
    })
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
    /// Runs them together. One that fails does not stop the others.
    pub(super) async fn run(
        &self,
        runner: &Runner<'_>,
        request: Request,
        reports: &mut Reports,
    ) -> anyhow::Result<()> {
        for outlet in runner.project.destinations.values() {
            outlet.pulse.reset();
        }
        let mut done = Vec::new();
        let ran = runner
            .run_all(&self.keyed, self.everything, request, &mut done)
            .await;
        done.into_iter().for_each(|report| reports.add(report));
        ran?;
        if !request.dry_run {
            runner.prune().await?;
        }
        // Audiences that a signal kept from running may have left something before.
        let is_stopped = runner.stop.is_requested();
        if is_stopped
            && !runner
                .snapshot
                .with(|snapshot| snapshot.waiting())
                .await?
                .is_empty()
        {
            reports.exit = reports.exit.or_worse(Exit::Undelivered);
        }
        Ok(())
    }
}

/// Prints reports, as lines at once or as a table at the end, and knows the exit code.
pub(super) struct Reports {
    output: Output,
    rows: Vec<Report>,
    exit: Exit,
    /// Standard output is gone or full. That ends no run.
    unprinted: Option<std::io::Error>,
}

impl Reports {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            rows: Vec::new(),
            exit: Exit::Success,
            unprinted: None,
        }
    }

    pub(super) fn add(&mut self, report: Report) {
        self.exit = self.exit.or_worse(exit_of(&report));
        if self.output.json && self.unprinted.is_none() {
            self.unprinted = self.output.line(&report).err();
        }
        self.rows.push(report);
    }

    /// Reports an audience whose query can never run.
    fn refuse(&mut self, keyed: &Keyed, reason: &str, request: Request, known: &[Known]) {
        for destination in &keyed.audience.destinations {
            let mut report = Report::new(
                Some(keyed.key.clone()),
                destination.clone(),
                keyed.kind(destination, known, request),
                Outcome::Failed,
            );
            report.error = Some(reason.to_owned());
            report.misconfigured = true;
            self.add(report);
        }
    }

    /// Tells programs that nothing was run.
    fn busy(&mut self, keyed: &[Keyed], error: &anyhow::Error, request: Request, known: &[Known]) {
        let is_busy = error
            .downcast_ref::<Refusal>()
            .is_some_and(|refusal| refusal.exit == Exit::Busy);
        if !is_busy || !self.output.json {
            return;
        }
        for keyed in keyed {
            for destination in &keyed.audience.destinations {
                let key = Some(keyed.key.clone());
                self.add(Report::new(
                    key,
                    destination.clone(),
                    keyed.kind(destination, known, request),
                    Outcome::Busy,
                ));
            }
        }
    }

    /// Prints the table for people, and what went wrong.
    pub(super) fn close(mut self) -> Exit {
        if !self.output.json && !self.rows.is_empty() {
            self.unprinted = self.print_table().err();
        }
        for report in &self.rows {
            self.explain(report);
        }
        match &self.unprinted {
            // Whoever read it has seen enough; what was done is done.
            None => self.exit,
            Some(error) if error.kind() == std::io::ErrorKind::BrokenPipe => self.exit,
            Some(error) => {
                self.output.note(format_args!(
                    "\nerror: cannot write to standard output: {error}"
                ));
                self.exit.or_worse(Exit::Failed)
            }
        }
    }

    /// The reports, and below them what a dry run would cost and whom the guard holds.
    fn print_table(&self) -> std::io::Result<()> {
        self.output.text(reports_table(&self.rows))?;
        if let Some(bill) = bill::shown(&self.rows) {
            self.output.text(bill)?;
        }
        for report in &self.rows {
            if let Some(held) = &report.hold {
                let (name, destination) = (report.name(), report.destination.as_str());
                self.output.text(held::sample(name, destination, held))?;
            }
        }
        Ok(())
    }

    /// The last run of an audience.
    pub(super) fn run_of(&self, key: &str) -> Option<RunId> {
        let is_of = |report: &&Report| {
            report
                .audience
                .as_ref()
                .is_some_and(|audience| audience.as_str() == key)
        };
        self.rows.iter().rfind(is_of).and_then(|report| report.run)
    }

    /// The reports, for whoever shows them in another way.
    pub(super) fn into_rows(self) -> Vec<Report> {
        self.rows
    }

    fn explain(&self, report: &Report) {
        let name = report.name();
        if let Some(error) = &report.error {
            self.output.note(format_args!("\n{name}: {error}"));
        }
        let waiting = report.undelivered.saturating_sub(report.dead);
        if report.outcome == Outcome::Undelivered && waiting > 0 {
            self.output.note(format_args!(
                "\n{name}: {} changes are not delivered; they stay in the journal\n\nhint: the next sync sends them first",
                count(waiting)
            ));
        }
        if let Some(approval) = report.approved {
            let is_dry_run = report.outcome == Outcome::Planned;
            let approved = held::approved(approval, report.removed, is_dry_run);
            self.output.note(format_args!("\n{name}: {approved}"));
        }
        if let Some(held) = &report.hold {
            self.hint_held(report, held);
        }
    }

    fn hint_held(&self, report: &Report, held: &Held) {
        let name = report.name();
        let why = match report.members {
            0 => "; the source has no members".to_owned(),
            members => format!("; the source has {}", count(members)),
        };
        let command = match report.kind {
            RunKind::Resync => "resync",
            _ => "sync",
        };
        self.output.note(format_args!(
            "\n{name}: the guard holds {} removals, {:.1} % of the {} delivered members{why}\n\n\
             hint: look at the source; if they have really left, type `audience-sync {command} {name} --approve`",
            count(held.count),
            held.percent(),
            count(held.of)
        ));
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

/// A column of the table: its name, its text, and whether it is only shown where some row has something in it.
type Column = (&'static str, fn(&Report) -> String, bool);

const COLUMNS: [Column; 14] = [
    (
        "audience",
        |report| {
            report
                .audience
                .as_ref()
                .map_or_else(|| "(send)".to_owned(), ToString::to_string)
        },
        false,
    ),
    (
        "destination",
        |report| report.destination.to_string(),
        false,
    ),
    ("kind", |report| report.kind.as_str().to_owned(), false),
    (
        "outcome",
        |report| report.outcome.as_str().to_owned(),
        false,
    ),
    ("members", |report| count(report.members), false),
    ("added", |report| count(report.added), false),
    ("removed", |report| count(report.removed), false),
    ("changed", |report| count(report.changed), false),
    ("held", |report| count(report.held), true),
    ("delivered", |report| count(report.delivered), false),
    ("undelivered", |report| count(report.undelivered), true),
    ("skipped", |report| count(report.skipped_rows), true),
    ("sent", |report| bytes(report.counts.bytes), false),
    ("seconds", |report| format!("{:.2}", report.seconds), false),
];

/// The reports as a table. Words stand left and numbers right.
fn reports_table(reports: &[Report]) -> String {
    let is_shown =
        |(_, text, if_any): &&Column| !if_any || reports.iter().any(|report| text(report) != "0");
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_shown).collect();
    let names: Vec<&str> = columns.iter().map(|(name, ..)| *name).collect();
    let row = |report: &Report| columns.iter().map(|(_, text, _)| text(report)).collect();
    table(&names, &names[4..], reports.iter().map(row).collect())
}
