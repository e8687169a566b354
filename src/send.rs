//! Segment calls that people give us, through the same mapping, journal and writer as the identifies.
//!
//! Lines go in batches: written to the journal, then delivered. What a destination does not accept stays there, and
//! later lines for it are journalled too, so that a pipe never loses its end.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// A batch is this many lines,
const BATCH_LINES: usize = 8_000;
/// or this many bytes,
const BATCH_BYTES: usize = 8 << 20;
/// Lines that are read ahead: few, since each may be as long as a record.
const LINES_AHEAD: usize = 32;
/// or what has come in for so long.
const BATCH_AGE: Duration = Duration::from_secs(1);

/// What came of the lines at one destination. The fields of `send --json`.
#[derive(Debug, Clone, Serialize)]
pub struct SendReport {
    pub destination: DestinationName,
    pub outcome: Outcome,
    /// Valid lines that were read.
    pub lines: u64,
    /// Lines that were not valid calls, at any destination.
    pub refused: u64,
    /// Valid lines that fit no row of this destination's mapping.
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
    pub by_destination: Vec<SendReport>,
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
    /// By destination and streams: a run each, opened with its first line.
    runs: BTreeMap<(DestinationName, Vec<StreamName>), Opened>,
    batch: BTreeMap<(DestinationName, Vec<StreamName>), Vec<Vec<u8>>>,
    batch_lines: usize,
    batch_bytes: usize,
    tallies: BTreeMap<DestinationName, Tally>,
    lines: u64,
    refused: u64,
}

#[derive(Default)]
struct Tally {
    unmapped: u64,
    meter: Arc<Meter>,
}

/// A run that is added to, and what came of it so far.
struct Opened {
    run: JournaledRun,
    journaled: u64,
    delivered: u64,
    /// Why lines stay in the journal.
    problem: Option<String>,
    /// No stream takes anything any more: what comes is only journalled from now on.
    is_over: bool,
    /// Lines that can never be delivered,
    dead: u64,
    /// and why the last of them cannot.
    obituary: Option<String>,
}

impl Opened {
    fn new(run: JournaledRun) -> Self {
        Self {
            run,
            journaled: 0,
            delivered: 0,
            problem: None,
            is_over: false,
            dead: 0,
            obituary: None,
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
            tallies: destinations
                .into_iter()
                .map(|name| (name, Tally::default()))
                .collect(),
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
            by_destination: self.close(started).await?,
            stopped_after,
        })
    }

    /// Adds a line to the batch of each destination that it fits.
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
        for (name, tally) in &mut self.tallies {
            let Outlet { mapping, .. } = &self.runner.project.destinations[name];
            let streams = mapping.streams(call.call, call.event.as_deref());
            if streams.is_empty() {
                tally.unmapped += 1;
                continue;
            }
            self.batch_lines += 1;
            self.batch_bytes += call.line.len();
            self.batch
                .entry((name.clone(), streams))
                .or_default()
                .push(call.line.clone());
        }
        Ok(())
    }

    /// Journals the batch, then delivers it.
    async fn flush(&mut self) -> Result<(), SnapshotError> {
        (self.batch_lines, self.batch_bytes) = (0, 0);
        for (to, lines) in std::mem::take(&mut self.batch) {
            let opened = self.runs.remove(&to);
            let (destination, streams) = to.clone();
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
                                &streams,
                            )?)
                        }
                    };
                    snapshot.journal_calls(&mut opened.run, &lines)?;
                    Ok::<_, SnapshotError>(opened)
                })
                .await?;
            opened.journaled += count;
            if !opened.is_over && !self.runner.stop.is_requested() {
                self.deliver(&to.0, &mut opened).await?;
            }
            self.runs.insert(to, opened);
        }
        Ok(())
    }

    async fn deliver(
        &self,
        destination: &DestinationName,
        opened: &mut Opened,
    ) -> Result<(), SnapshotError> {
        let Runner {
            project,
            snapshot,
            stop,
            progress,
        } = self.runner;
        let outlet = &project.destinations[destination];
        let outgoing = Outgoing {
            run: opened.run.clone(),
            meter: Arc::clone(&self.tallies[destination].meter),
        };
        progress.deliver("send", opened.run.waiting);
        let sent = deliver(snapshot, vec![outgoing], &outlet.route(stop), progress).await?;
        let sent = sent.into_iter().next().unwrap_or_default();
        opened.delivered += sent.delivered;
        opened.problem = sent.problem.or(opened.problem.take());
        opened.is_over = sent.is_over;
        opened.dead += sent.dead;
        opened.obituary = sent.obituary.or(opened.obituary.take());
        Ok(())
    }

    async fn close(self, started: Instant) -> Result<Vec<SendReport>, SnapshotError> {
        let (lines, refused) = (self.lines, self.refused);
        let seconds = (started.elapsed().as_secs_f64() * 100.0).round() / 100.0;
        let report = |(destination, tally): (DestinationName, Tally)| {
            let of_it = self.runs.iter().filter(|((to, _), _)| *to == destination);
            let runs: Vec<&Opened> = of_it.map(|(_, opened)| opened).collect();
            let delivered = runs.iter().map(|opened| opened.delivered).sum();
            let undelivered = runs.iter().map(|opened| opened.undelivered()).sum();
            let dead = runs.iter().map(|opened| opened.dead).sum();
            let mut problems: Vec<&str> = runs
                .iter()
                .flat_map(|opened| [&opened.problem, &opened.obituary])
                .filter_map(Option::as_deref)
                .collect();
            problems.dedup();
            SendReport {
                outcome: outcome(delivered, undelivered),
                destination,
                lines,
                refused,
                unmapped: tally.unmapped,
                delivered,
                undelivered,
                dead,
                counts: tally.meter.counts(),
                seconds,
                error: (!problems.is_empty()).then(|| problems.join("\n")),
            }
        };
        let reports: Vec<SendReport> = self.tallies.into_iter().map(report).collect();
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
