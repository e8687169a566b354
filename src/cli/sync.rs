//! `sync` and `resync`.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;

use super::args::{Args, ResyncArgs, RunOptions, SyncArgs};
use super::output::{Output, bytes, count, table};
use super::{Exit, Refusal, bill, held, progress, project, retire, signals, users};
use crate::audience::AudienceId;
use crate::config::Config;
use crate::diff::Scope;
use crate::progress::Progress;
use crate::run::{Outcome, RunId, RunKind};
use crate::snapshot::{Approval, Handle, Held, Snapshot};
use crate::stop::Stop;
use crate::stream::Stream;
use crate::sync::{Keyed, Left, Project, Report, Request, Runner, Streams};

pub(super) fn sync(args: &Args, output: &Output, sync: &SyncArgs) -> anyhow::Result<Exit> {
    let request = Request {
        approval: approval(&sync.options),
        dry_run: sync.options.dry_run,
        ..Request::default()
    };
    run(args, output, &sync.audiences, &sync.options, request)
}

pub(super) fn resync(args: &Args, output: &Output, resync: &ResyncArgs) -> anyhow::Result<Exit> {
    let scope = match users::read(&resync.users)? {
        Some(ids) => Scope::Users(Arc::new(ids)),
        None => Scope::Everyone,
    };
    let request = Request {
        scope,
        stream: resync.stream.clone(),
        approval: approval(&resync.options),
        dry_run: resync.options.dry_run,
    };
    run(args, output, &resync.audiences, &resync.options, request)
}

fn approval(options: &RunOptions) -> Option<Approval> {
    let approve = options.approve.as_ref()?;
    Some(approve.map_or(Approval::Shown, Approval::UpTo))
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
    retire::warn(&config, &project)?;
    let (keyed, refused) = project::check_queries(&config, keyed, &project);
    let mut reports = Reports::new(*output);
    reports.approval = request.approval;
    let mut labels = Labels::of(&config, &project, &request)?;
    labels.must_have_stream(&keyed)?;
    for (refused, error) in refused {
        labels.report(&mut reports, &refused, |report| {
            report.outcome = Outcome::Failed;
            report.error = Some(error.to_string());
            report.misconfigured = true;
        });
    }
    // Where nothing can run, nothing is written.
    if keyed.is_empty() && !(words.is_empty() && project::has_journal(&config)?) {
        if config.audiences().next().is_none() {
            output.note("nothing to sync: no schedule has an audience or a computed trait");
        }
        return Ok(reports.close());
    }
    let command = match request.scope {
        Scope::Changes => "sync",
        Scope::Everyone | Scope::Users(_) => "resync",
    };
    let lock = if request.dry_run {
        Ok(None)
    } else {
        project::lock(&config, command, options.wait).map(Some)
    };
    let lock = match lock {
        Ok(lock) => lock,
        Err(error) => {
            if output.json && is_busy(&error) {
                for keyed in &keyed {
                    labels.report(&mut reports, keyed, |report| report.outcome = Outcome::Busy);
                }
            }
            return Err(error);
        }
    };
    // The run that was waited for may have frozen keys meanwhile.
    if options.wait {
        project::select(&config, words, &project::known(&config)?)?;
    }
    let snapshot = match lock {
        Some(lock) => project::open_snapshot(&config, lock, options.accept_old_snapshot)?,
        None => look(&config, output)?,
    };
    let selection = Selection {
        left: match words {
            [] => Left::All,
            _ => Left::OfFeeds,
        },
        keyed,
    };
    let delivered = deliver_selection(
        &config,
        &project,
        snapshot,
        &selection,
        &request,
        &mut reports,
    );
    let exit = reports.close();
    delivered.map(|()| exit)
}

pub(super) fn is_busy(error: &anyhow::Error) -> bool {
    let refusal = error.downcast_ref::<Refusal>();
    refusal.is_some_and(|refusal| refusal.exit == Exit::Busy)
}

/// Reports of audiences that are not run, one of each feed.
struct Labels<'a> {
    project: &'a Project,
    request: &'a Request,
    streams: Streams,
    known: BTreeSet<(AudienceId, Stream)>,
}

impl<'a> Labels<'a> {
    fn of(config: &Config, project: &'a Project, request: &'a Request) -> anyhow::Result<Self> {
        let (streams, known) = match project::inspect(config)? {
            Some(snapshot) => (
                project::look_at_streams(project, &snapshot)?,
                snapshot.known_feeds()?,
            ),
            None => (
                project::look_at_streams(project, &Snapshot::empty()?)?,
                BTreeSet::new(),
            ),
        };
        Ok(Self {
            project,
            request,
            streams,
            known,
        })
    }

    /// Refuses a stream that none of the audiences goes to.
    fn must_have_stream(&self, keyed: &[Keyed]) -> anyhow::Result<()> {
        let Some(stream) = &self.request.stream else {
            return Ok(());
        };
        let feeds = |request| self.streams.feeds(self.project, keyed, request);
        if !feeds(self.request).is_empty() {
            return Ok(());
        }
        let known = feeds(&Request::default());
        let known: BTreeSet<_> = known.iter().map(|feed| feed.stream.name.as_str()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        Err(Refusal::usage(format!(
            "no stream is called {stream:?}\n\nhint: these audiences go to {}",
            known.join(", ")
        ))
        .into())
    }

    fn report(&mut self, reports: &mut Reports, keyed: &Keyed, fill: impl Fn(&mut Report)) {
        let keyed = std::slice::from_ref(keyed);
        for feed in self.streams.feeds(self.project, keyed, self.request) {
            let mut report = Report::new(
                Some(feed.keyed.key.clone()),
                feed.destination.clone(),
                feed.stream.name.clone(),
                feed.kind(&self.known, self.request),
                Outcome::Failed,
            );
            fill(&mut report);
            reports.add(report);
        }
    }
}

/// Runs a selection.
pub(super) fn deliver_selection(
    config: &Config,
    project: &Project,
    mut snapshot: Snapshot,
    selection: &Selection,
    request: &Request,
    reports: &mut Reports,
) -> anyhow::Result<()> {
    let streams = match request.dry_run {
        true => project::look_at_streams(project, &snapshot)?,
        false => project::streams(project, &mut snapshot)?,
    };
    with_runner(config, project, snapshot, &streams, async |runner| {
        selection.run(runner, request, reports).await
    })
}

/// Does something on a runtime of its own, with a bar and an ear for signals.
pub(super) fn with_runner(
    config: &Config,
    project: &Project,
    snapshot: Snapshot,
    streams: &Streams,
    work: impl AsyncFnOnce(&Runner<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let handle = Handle::new(snapshot);
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let runner = Runner::new(project, &handle, streams, stop, shown);
        let done = work(&runner).await;
        done.with_context(|| project::unusable(&config.snapshot))
    })
}

/// The snapshot of a dry run.
fn look(config: &Config, output: &Output) -> anyhow::Result<Snapshot> {
    match project::inspect(config)? {
        Some(snapshot) => Ok(snapshot),
        None => {
            output.note(format_args!(
                "there is no snapshot at {}: this is the plan of a first sync, as if nothing was ever delivered",
                config.snapshot.display()
            ));
            Ok(Snapshot::empty()?)
        }
    }
}

/// The audiences of one command or tick.
pub(super) struct Selection {
    pub left: Left,
    pub keyed: Vec<Keyed>,
}

impl Selection {
    /// Runs them together. One that fails does not stop the others.
    pub(super) async fn run(
        &self,
        runner: &Runner<'_>,
        request: &Request,
        reports: &mut Reports,
    ) -> anyhow::Result<()> {
        for outlet in runner.project.destinations.values() {
            outlet.destination.begin(outlet.deliver_for);
        }
        let mut done = Vec::new();
        let ran = runner
            .run_all(&self.keyed, &self.left, request, &mut done)
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
    /// That did not cover what is held.
    approval: Option<Approval>,
    /// Standard output is gone or full. That ends no run.
    unprinted: Option<std::io::Error>,
}

impl Reports {
    pub(super) fn new(output: Output) -> Self {
        Self {
            output,
            rows: Vec::new(),
            exit: Exit::Success,
            approval: None,
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

    /// Prints the table for people, and what went wrong.
    pub(super) fn close(mut self) -> Exit {
        if !self.output.json && !self.rows.is_empty() {
            self.unprinted = self.print_table().err();
        }
        for (position, report) in self.rows.iter().enumerate() {
            self.explain(report, &self.rows[..position]);
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
                let (name, stream) = (report.name(), report.stream.as_str());
                self.output.text(held::sample(name, stream, held))?;
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

    fn explain(&self, report: &Report, before: &[Report]) {
        let name = match report.outcome {
            // It is no stream's fault, and said once.
            Outcome::Failed => report.name().to_owned(),
            _ => format!("{} at {}", report.name(), report.stream),
        };
        let is_said = before.iter().any(|other| {
            let is_same = other.audience == report.audience && other.error == report.error;
            is_same && report.outcome == Outcome::Failed
        });
        if let Some(error) = report.error.as_ref().filter(|_| !is_said) {
            self.output.note(format_args!("\n{name}: {error}"));
        }
        let waiting = report.undelivered.saturating_sub(report.dead);
        if report.outcome == Outcome::Undelivered && waiting > 0 {
            let goes_on = match report.kind {
                RunKind::Retire => {
                    let audience = report.name();
                    format!("`audience-sync retire {audience}` or the next sync goes on with them")
                }
                _ => "the next sync sends them first".to_owned(),
            };
            self.output.note(format_args!(
                "\n{name}: {} changes are not delivered; they stay in the journal\n\nhint: {goes_on}",
                count(waiting)
            ));
        }
        if let Some(unknown @ 1..) = report.unknown_users {
            self.output.note(format_args!(
                "\n{name}: {} of the users who were named are neither in the source nor known as members at {}; \
                 nothing is sent about them",
                count(unknown),
                report.stream
            ));
        }
        if let Some(held) = &report.hold {
            self.hint_held(report, held);
        }
    }

    fn hint_held(&self, report: &Report, held: &Held) {
        let name = report.name();
        let why = match report.members.unwrap_or_default() {
            0 => "; the source has no members".to_owned(),
            members => format!("; the source has {}", count(members)),
        };
        let way_out = match report.kind {
            _ if report.unknown_users.is_some() => {
                "type the same command with `--approve`".to_owned()
            }
            RunKind::Resync => format!("type `audience-sync resync {name} --approve`"),
            _ => format!("type `audience-sync sync {name} --approve`"),
        };
        let uncovered = match self.approval {
            None => String::new(),
            Some(Approval::UpTo(most)) => {
                format!("; that is more than `--approve={most}` covers")
            }
            Some(Approval::Shown) => {
                "; that is more than was shown when it was last held".to_owned()
            }
        };
        self.output.note(format_args!(
            "\n{name}: the guard holds {} of {} delivered members at {}{why}{uncovered}\n\n\
             hint: look at the source; if it is right, {way_out}",
            held::words(held),
            count(held.of),
            report.stream
        ));
    }
}

fn exit_of(report: &Report) -> Exit {
    match report.outcome {
        Outcome::Delivered | Outcome::Unchanged => Exit::Success,
        Outcome::Planned if report.hold.is_some() => Exit::Held,
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

const COLUMNS: [Column; 15] = [
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
    ("stream", |report| report.stream.to_string(), false),
    ("kind", |report| report.kind.as_str().to_owned(), false),
    (
        "outcome",
        |report| report.outcome.as_str().to_owned(),
        false,
    ),
    (
        "members",
        |report| report.members.map_or_else(|| "-".to_owned(), count),
        false,
    ),
    ("added", |report| count(report.added), false),
    ("removed", |report| count(report.removed), false),
    ("changed", |report| count(report.changed), false),
    (
        "held",
        |report| count(report.hold.as_ref().map_or(0, Held::count)),
        true,
    ),
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
    table(&names, &names[5..], reports.iter().map(row).collect())
}
