//! Segment calls that people give us, through the same mapping, journal and writer as the identifies.
//!
//! Lines go in batches: written to the journal, then delivered. What a stream does not accept stays there, and later lines
//! for it are journalled too, so that a pipe never loses its end.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::audience::DestinationName;
use crate::batch::MAX_RECORD_BYTES;
use crate::deliver::{Outgoing, deliver};
use crate::event::{Call, CallError};
use crate::firehose::Meter;
use crate::lines::{Line, LineError, next_line};
use crate::mapping::StreamName;
use crate::run::{Counts, Outcome, RunId, Timestamp};
use crate::snapshot::{JournaledRun, SnapshotError};
use crate::sync::{Outlet, Runner};

/// A batch has at most about this many lines.
const BATCH_LINES: usize = 8_000;
/// A batch has at most about this many bytes.
const BATCH_BYTES: usize = 8 << 20;
/// Lines that are read ahead: few, since each may be as long as a record.
const LINES_AHEAD: usize = 32;
/// What has come in is a batch after this long, however little it is.
const BATCH_AGE: Duration = Duration::from_secs(1);

/// What came of the lines at one stream. The fields of `send --json`.
#[derive(Debug, Clone, Serialize)]
pub struct SendReport {
    pub destination: DestinationName,
    /// `None` where no line was for a stream of the destination.
    pub stream: Option<StreamName>,
    pub outcome: Outcome,
    /// Valid lines that were read.
    pub lines: u64,
    /// Lines that were not valid calls, at any destination.
    pub refused: u64,
    /// Valid lines that fit no row of the destination's mapping.
    pub unmapped: u64,
    pub delivered: u64,
    /// Lines in the journal, or dead.
    pub undelivered: u64,
    /// Those of them that are dead.
    #[serde(skip)]
    pub dead: u64,
    #[serde(flatten)]
    pub counts: Counts,
    pub seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What came of all lines.
#[derive(Debug)]
pub struct SendReports {
    pub by_stream: Vec<SendReport>,
    /// The number of the last line that was taken, when asked to stop before the input had ended.
    pub stopped_after: Option<u64>,
}

/// Why a line was not sent.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Reads lines on a thread of its own, since standard input cannot be asked nicely. An I/O error is the last.
pub fn read_lines(mut input: impl BufRead + Send + 'static) -> mpsc::Receiver<Line> {
    let (lines, read) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        while let Some(line) = next_line(&mut input) {
            let is_last = matches!(line, Err(LineError::Io(_)));
            if lines.blocking_send(line).is_err() || is_last {
                break;
            }
        }
    });
    read
}

/// Sends lines until there are no more, or until asked to stop.
pub struct Sender<'a> {
    runner: &'a Runner<'a>,
    /// By destination and stream: a run each, opened with its first line.
    runs: BTreeMap<(DestinationName, StreamName), Opened>,
    batch: BTreeMap<(DestinationName, StreamName), Vec<Vec<u8>>>,
    batch_lines: usize,
    batch_bytes: usize,
    /// Of each destination, the lines that fit no row of its mapping.
    unmapped: BTreeMap<DestinationName, u64>,
    lines: u64,
    refused: u64,
}

/// A run that is added to, and what came of it so far.
struct Opened {
    run: JournaledRun,
    meter: Arc<Meter>,
    journaled: u64,
    delivered: u64,
    /// Why lines stay in the journal.
    problem: Option<String>,
    /// The stream takes nothing any more: what comes is only journalled from now on.
    is_over: bool,
    /// Lines that can never be delivered.
    dead: u64,
    /// Why the last of them cannot.
    dead_summary: Option<String>,
}

impl Opened {
    fn new(run: JournaledRun) -> Self {
        Self {
            run,
            meter: Arc::default(),
            journaled: 0,
            delivered: 0,
            problem: None,
            is_over: false,
            dead: 0,
            dead_summary: None,
        }
    }

    const fn undelivered(&self) -> u64 {
        self.journaled - self.delivered
    }
}

const fn outcome(delivered: u64, undelivered: u64) -> Outcome {
    match (undelivered, delivered) {
        (0, 0) => Outcome::Unchanged,
        (0, _) => Outcome::Delivered,
        _ => Outcome::Undelivered,
    }
}

impl<'a> Sender<'a> {
    /// To these destinations, which the project has.
    pub fn new(
        runner: &'a Runner<'a>,
        destinations: impl IntoIterator<Item = DestinationName>,
    ) -> Self {
        Self {
            runner,
            runs: BTreeMap::new(),
            batch: BTreeMap::new(),
            batch_lines: 0,
            batch_bytes: 0,
            unmapped: destinations.into_iter().map(|name| (name, 0)).collect(),
            lines: 0,
            refused: 0,
        }
    }

    /// Sends all lines. `refuse` is told the number of a line that is not a call, and the reason.
    pub async fn send(
        mut self,
        mut lines: mpsc::Receiver<Line>,
        mut refuse: impl FnMut(u64, &Refused),
    ) -> Result<SendReports, SnapshotError> {
        let started = Instant::now();
        let mut number = 0;
        let mut stopped_after = None;
        let mut flush_at = None;
        loop {
            let next = async {
                match flush_at {
                    Some(at) => tokio::time::timeout_at(at, lines.recv()).await,
                    None => Ok(lines.recv().await),
                }
            };
            let next = tokio::select! {
                next = next => next,
                () = self.runner.stop.requested() => {
                    stopped_after = Some(number);
                    break;
                }
            };
            match next {
                Ok(Some(line)) => {
                    number += 1;
                    if let Err(reason) = self.take(line) {
                        self.refused += 1;
                        refuse(number, &reason);
                    }
                    let age = || tokio::time::Instant::now() + BATCH_AGE;
                    flush_at = flush_at.or_else(|| Some(age()));
                    if self.batch_lines >= BATCH_LINES || self.batch_bytes >= BATCH_BYTES {
                        self.flush().await?;
                        flush_at = None;
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    self.flush().await?;
                    flush_at = None;
                }
            }
        }
        self.flush().await?;
        Ok(SendReports {
            by_stream: self.close(started).await?,
            stopped_after,
        })
    }

    /// Adds a line to the batch of each stream that it goes to.
    fn take(&mut self, line: Line) -> Result<(), Refused> {
        let line = line?;
        if line.trim().is_empty() {
            return Ok(());
        }
        let call = Call::parse(&line, Timestamp::now(), || Uuid::new_v4().to_string())?;
        if call.line.len() > MAX_RECORD_BYTES {
            return Err(LineError::TooLong.into());
        }
        self.lines += 1;
        for (name, unmapped) in &mut self.unmapped {
            let Outlet { mapping, .. } = &self.runner.project.destinations[name];
            let streams = mapping.streams(call.call, call.event.as_deref());
            if streams.is_empty() {
                *unmapped += 1;
            }
            for stream in streams {
                self.batch_lines += 1;
                self.batch_bytes += call.line.len();
                let batch = self.batch.entry((name.clone(), stream)).or_default();
                batch.push(call.line.clone());
            }
        }
        Ok(())
    }

    /// Journals the batch, then delivers it.
    async fn flush(&mut self) -> Result<(), SnapshotError> {
        (self.batch_lines, self.batch_bytes) = (0, 0);
        let mut batches = Vec::new();
        for (to, lines) in std::mem::take(&mut self.batch) {
            let opened = self.runs.remove(&to);
            let stream = self.runner.streams.get(&to.0, &to.1).clone();
            let destination = to.0.clone();
            let count = lines.len() as u64;
            let mut opened = self
                .runner
                .snapshot
                .with(move |snapshot| {
                    let mut opened = match opened {
                        Some(opened) => opened,
                        None => {
                            let started_at =
                                Timestamp::after(Timestamp::now(), snapshot.last_started_at()?);
                            Opened::new(snapshot.open_send(
                                RunId::at(started_at),
                                started_at,
                                &destination,
                                &stream,
                            )?)
                        }
                    };
                    snapshot.journal_calls(&mut opened.run, &lines)?;
                    snapshot.note_delivery([&opened.run])?;
                    Ok::<_, SnapshotError>(opened)
                })
                .await?;
            opened.journaled += count;
            batches.push((to, opened));
        }
        // All streams at once: one in trouble holds up no other.
        let deliveries = batches.into_iter().map(|(to, mut opened)| async {
            let delivered = match opened.is_over || self.runner.stop.is_requested() {
                true => Ok(()),
                false => self.deliver(&to.0, &mut opened).await,
            };
            (to, opened, delivered)
        });
        let mut outcome = Ok(());
        for (to, opened, delivered) in join_all(deliveries).await {
            self.runs.insert(to, opened);
            outcome = outcome.and(delivered);
        }
        outcome
    }

    async fn deliver(
        &self,
        destination: &DestinationName,
        opened: &mut Opened,
    ) -> Result<(), SnapshotError> {
        let outgoing = Outgoing {
            run: opened.run.clone(),
            meter: Arc::clone(&opened.meter),
        };
        let progress = &self.runner.progress;
        progress.deliver("send", opened.run.waiting);
        let route = self.runner.route(destination);
        let sent = deliver(self.runner.snapshot, vec![outgoing], &route, progress).await?;
        let sent = sent.into_iter().next().unwrap_or_default();
        opened.delivered += sent.delivered;
        opened.problem = sent.problem.or(opened.problem.take());
        opened.is_over = sent.is_over;
        opened.dead += sent.dead;
        opened.dead_summary = sent.dead_summary.or(opened.dead_summary.take());
        Ok(())
    }

    async fn close(self, started: Instant) -> Result<Vec<SendReport>, SnapshotError> {
        let (lines, refused) = (self.lines, self.refused);
        let seconds = (started.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        let mut reports = Vec::new();
        for (destination, unmapped) in &self.unmapped {
            let report = |stream: Option<&StreamName>, opened: Option<&Opened>| {
                let delivered = opened.map_or(0, |opened| opened.delivered);
                let undelivered = opened.map_or(0, Opened::undelivered);
                let problems = opened.map(|opened| [&opened.problem, &opened.dead_summary]);
                let problems: Vec<&str> = problems
                    .into_iter()
                    .flatten()
                    .filter_map(Option::as_deref)
                    .collect();
                SendReport {
                    outcome: outcome(delivered, undelivered),
                    destination: destination.clone(),
                    stream: stream.cloned(),
                    lines,
                    refused,
                    unmapped: *unmapped,
                    delivered,
                    undelivered,
                    dead: opened.map_or(0, |opened| opened.dead),
                    counts: opened.map_or_else(Counts::default, |opened| opened.meter.counts()),
                    seconds,
                    error: (!problems.is_empty()).then(|| problems.join("\n")),
                }
            };
            let own = self.runs.iter().filter(|((to, _), _)| to == destination);
            let own: Vec<_> = own
                .map(|((_, stream), opened)| report(Some(stream), Some(opened)))
                .collect();
            match own.is_empty() {
                true => reports.push(report(None, None)),
                false => reports.extend(own),
            }
        }
        for opened in self.runs.into_values() {
            self.runner
                .snapshot
                .with(move |snapshot| {
                    let outcome = outcome(opened.delivered, opened.undelivered());
                    snapshot.finish(&opened.run, outcome)
                })
                .await?;
        }
        Ok(reports)
    }
}
