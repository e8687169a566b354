//! `send`

use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::Path;

use anyhow::Context as _;

use super::args::{Args, SendArgs};
use super::output::{Output, bytes, count, table};
use super::{Exit, Refusal, progress, project, signals};
use crate::lines::{Line, LineError};
use crate::progress::Progress;
use crate::run::Outcome;
use crate::send::{Refused, SendReport, SendReports, Sender, read_lines};
use crate::snapshot::Handle;
use crate::stop::Stop;
use crate::sync::Runner;

pub(super) fn run(args: &Args, output: &Output, send: &SendArgs) -> anyhow::Result<Exit> {
    let config = project::load(args)?;
    let destinations = project::destinations(&config, send.destination.as_deref())?;
    let project = project::open(&config)?;
    let lines = open(send.file.as_deref())?;
    let lock = project::lock(&config, "send", send.wait)?;
    let mut snapshot = project::open_snapshot(&config, lock, send.accept_old_snapshot)?;
    let streams = project::streams(&project, &mut snapshot)?;

    let mut exit = Exit::Success;
    let SendReports {
        by_stream: reports,
        stopped_after,
    } = super::runtime()?.block_on(async {
        let stop = Stop::new();
        signals::listen(stop.clone())?;
        let handle = Handle::new(snapshot);
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let runner = Runner::new(&project, &handle, &streams, stop, shown);
        // What an earlier `send` left goes first.
        for left in runner.resume_calls().await? {
            if left.outcome == Outcome::Undelivered {
                exit = exit.or_worse(Exit::Undelivered);
            }
            output.note(format_args!(
                "delivered {} of {} lines that an earlier send left in the journal of {}{}",
                count(left.delivered),
                count(left.delivered + left.undelivered),
                left.stream,
                left.error
                    .map(|error| format!(": {error}"))
                    .unwrap_or_default()
            ));
        }
        let refuse = |number: u64, reason: &Refused| {
            if matches!(reason, Refused::Line(LineError::Io(_))) {
                exit = exit.or_worse(Exit::Failed);
            }
            output.note(format_args!("line {number}: {reason}"));
        };
        Sender::new(&runner, destinations)
            .send(lines, refuse)
            .await
            .with_context(|| project::unusable(&config.snapshot))
    })?;
    for report in &reports {
        if report.refused > 0 || report.outcome == Outcome::Undelivered {
            exit = exit.or_worse(Exit::Undelivered);
        }
        if output.json {
            output.line(report)?;
        }
    }
    if !output.json {
        output.text(table(
            &HEADER,
            &HEADER[3..],
            reports.iter().map(row).collect(),
        ))?;
    }
    for of_destination in reports.chunk_by(|one, next| one.destination == next.destination) {
        explain_unmapped(output, &of_destination[0]);
        of_destination
            .iter()
            .for_each(|report| explain(output, report));
    }
    if let Some(number) = stopped_after {
        exit = exit.or_worse(Exit::Undelivered);
        output.note(format_args!(
            "\nstopped after line {number}; nothing after it is sent"
        ));
    }
    Ok(exit)
}

fn open(file: Option<&Path>) -> anyhow::Result<tokio::sync::mpsc::Receiver<Line>> {
    match file.filter(|file| *file != Path::new("-")) {
        None => Ok(read_lines(BufReader::new(stdin()))),
        Some(path) => {
            let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
                true => Err(std::io::Error::from(std::io::ErrorKind::IsADirectory)),
                false => Ok(file),
            });
            let file = opened.map_err(|error| {
                Refusal::usage(format!("cannot read {}: {error}", path.display()))
            })?;
            Ok(read_lines(BufReader::new(file)))
        }
    }
}

/// Once for each destination: its streams share its mapping.
fn explain_unmapped(output: &Output, report: &SendReport) {
    if report.unmapped > 0 {
        output.note(format_args!(
            "\n{}: {} lines fit no row of the mapping and were not sent\n\nhint: add a row for their event or type, or `\"*\"`",
            report.destination,
            count(report.unmapped)
        ));
    }
}

fn explain(output: &Output, report: &SendReport) {
    let name = match &report.stream {
        Some(stream) => stream.as_str(),
        None => report.destination.as_str(),
    };
    if let Some(error) = &report.error {
        output.note(format_args!("\n{name}: {error}"));
    }
    let waiting = report.undelivered.saturating_sub(report.dead);
    if waiting > 0 {
        output.note(format_args!(
            "\n{name}: {} lines are not delivered; they stay in the journal\n\nhint: the next send or sync sends them first",
            count(waiting)
        ));
    }
}

const HEADER: [&str; 9] = [
    "destination",
    "stream",
    "outcome",
    "lines",
    "refused",
    "unmapped",
    "delivered",
    "undelivered",
    "sent",
];

fn row(report: &SendReport) -> Vec<String> {
    vec![
        report.destination.to_string(),
        report
            .stream
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string),
        report.outcome.as_str().to_owned(),
        count(report.lines),
        count(report.refused),
        count(report.unmapped),
        count(report.delivered),
        count(report.undelivered),
        bytes(report.counts.bytes),
    ]
}
