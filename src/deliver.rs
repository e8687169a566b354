//! Carries chunks from the journal to a destination, and the receipts back.
//!
//! The snapshot and the destination do not know each other; this is where they meet. A bounded number of chunks is
//! under way, taken by credit: what came back while the snapshot was busy is remembered together, and only then are
//! as many new chunks taken. Nothing waits for a queue that waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use crate::batch::{LineBuffer, Lines, MAX_RECORD_BYTES};
use crate::event::Identify;
use crate::firehose::{Blamed, Destination, Ended, Meter, Pulse};
use crate::progress::Progress;
use crate::snapshot::{Chunk, Credit, Dead, Handle, JournaledRun, Settled, SnapshotError, chunk};
use crate::stop::Stop;

/// Chunks taken and not yet remembered: what a crash can repeat,
const CHUNKS_UNDER_WAY: usize = 16;
/// and their bytes in the journal. On its way through the SDK each of them is held about five times.
const BYTES_UNDER_WAY: usize = 4 << 20;

/// What became of a run's chunks.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Changes that every stream has.
    pub delivered: u64,
    /// Why changes stay in the journal, in words for people.
    pub problem: Option<String>,
    /// How many were found that can never be delivered: they are in the way of nothing,
    pub dead: u64,
    /// and why.
    pub obituary: Option<String>,
}

impl Sent {
    /// Everything that is wrong.
    pub fn trouble(&self) -> Option<String> {
        let both: Vec<&str> = [&self.problem, &self.obituary]
            .into_iter()
            .filter_map(Option::as_deref)
            .collect();
        (!both.is_empty()).then(|| both.join("\n"))
    }
}

/// Where records go, and what watches over them.
#[derive(Debug, Clone)]
pub struct Route {
    pub destination: Arc<Destination>,
    pub pulse: Arc<Pulse>,
    pub stop: Stop,
}

/// Delivers what a run has in the journal. What could not be delivered stays there.
pub async fn deliver(
    snapshot: &Handle,
    run: &JournaledRun,
    route: &Route,
    meter: &Arc<Meter>,
    progress: &Progress,
) -> Result<Sent, SnapshotError> {
    let _delivering = route.pulse.start();
    let courier = Arc::new(Courier {
        identify: run.computation.as_ref().map(Identify::new),
        run: run.clone(),
        route: route.clone(),
        meter: Arc::clone(meter),
        trouble: Mutex::default(),
    });
    let mut outcome = Sent::default();
    let mut under_way = JoinSet::new();
    let mut bytes_under_way = 0;
    let mut obituary = Obituary::default();
    let mut settled = Vec::new();
    let mut after = run.after;
    loop {
        let credit = if courier.goes_on() {
            Credit {
                chunks: CHUNKS_UNDER_WAY - under_way.len(),
                bytes: BYTES_UNDER_WAY.saturating_sub(bytes_under_way),
            }
        } else {
            Credit::NONE
        };
        let (run, remember) = (run.clone(), std::mem::take(&mut settled));
        let chunks = snapshot
            .with(move |snapshot| snapshot.settle(&run, &remember, after, credit))
            .await?;
        for chunk in chunks {
            after = chunk.seq;
            bytes_under_way += chunk.entries.len();
            let courier = Arc::clone(&courier);
            under_way.spawn(async move { courier.carry(chunk).await });
        }
        let Some(first) = under_way.join_next().await else {
            break;
        };
        let mut back = Some(first);
        while let Some(joined) = back {
            let chunk = joined.expect("carrying a chunk does not panic")?;
            bytes_under_way -= chunk.chunk.entries.len();
            outcome.delivered += chunk.newly_delivered();
            outcome.dead += chunk.dead.len() as u64;
            chunk.dead.iter().for_each(|dead| obituary.add(dead));
            settled.push(chunk);
            back = under_way.try_join_next();
        }
        progress.delivered(outcome.delivered);
    }
    outcome.problem = courier.problem();
    outcome.obituary = obituary.words(run);
    Ok(outcome)
}

/// Counts what can never be delivered, for people. The reasons themselves may repeat what was sent, and are for
/// `snapshot dead` only.
#[derive(Debug, Default)]
struct Obituary {
    too_long: u64,
    /// By position in the run's streams and code.
    refused: BTreeMap<(usize, String), u64>,
}

impl Obituary {
    fn add(&mut self, dead: &Dead) {
        let Some(stream) = dead.stream else {
            self.too_long += 1;
            return;
        };
        let code = dead.reason.split(':').next().unwrap_or_default();
        *self.refused.entry((stream, code.to_owned())).or_default() += 1;
    }

    fn words(&self, run: &JournaledRun) -> Option<String> {
        let mut words = Vec::new();
        if self.too_long > 0 {
            words.push(format!(
                "{} can never be delivered: over {MAX_RECORD_BYTES} bytes",
                self.too_long
            ));
        }
        words.extend(self.refused.iter().map(|((stream, code), count)| {
            let stream = &run.streams[*stream];
            format!("stream `{stream}` refuses the content of {count} ({code})")
        }));
        if !self.refused.is_empty() {
            let again = match run.computation {
                Some(_) => "the next run decides them anew",
                None => "`audience-sync snapshot dead --retry` sends them again",
            };
            words.push(format!(
                "\nhint: `audience-sync snapshot dead` lists them, with the reason; {again}"
            ));
        }
        (!words.is_empty()).then(|| words.join("\n"))
    }
}

/// Renders and sends the chunks of one run.
struct Courier {
    run: JournaledRun,
    /// `None` for calls, which are lines already.
    identify: Option<Identify>,
    route: Route,
    meter: Arc<Meter>,
    trouble: Mutex<Trouble>,
}

/// Why chunks are not delivered any more.
#[derive(Default)]
struct Trouble {
    /// By position in the run's streams; the others go on.
    parked: BTreeMap<usize, String>,
    given_up: Option<String>,
}

impl Courier {
    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is any use in taking further chunks.
    fn goes_on(&self) -> bool {
        let trouble = self.trouble();
        !self.route.stop.is_requested()
            && trouble.given_up.is_none()
            && trouble.parked.len() < self.run.streams.len()
    }

    fn problem(&self) -> Option<String> {
        let trouble = self.trouble();
        let mut problems: Vec<String> = trouble
            .parked
            .values()
            .chain(&trouble.given_up)
            .cloned()
            .collect();
        problems.dedup();
        (!problems.is_empty()).then(|| problems.join("\n"))
    }

    /// One chunk to every stream that does not have it yet.
    async fn carry(&self, chunk: Chunk) -> Result<Settled, SnapshotError> {
        let lines = self.render(&chunk)?;
        let mut dead: Vec<Dead> = lines
            .too_long()
            .filter(|(position, _)| !chunk.dead.contains(position))
            .map(|(position, bytes)| Dead {
                position,
                reason: format!(
                    "the record is {bytes} bytes, over the limit of {MAX_RECORD_BYTES}"
                ),
                stream: None,
            })
            .collect();
        let mut accepted = chunk.accepted.clone();
        accepted.resize(self.run.streams.len(), vec![false; chunk.count]);
        let mut is_out = vec![false; chunk.count];
        let out = dead.iter().map(|dead| dead.position);
        out.chain(chunk.dead.iter().copied())
            .for_each(|position| is_out[position] = true);
        for (stream, accepted) in accepted.iter_mut().enumerate() {
            for blamed in self.carry_to(stream, &lines, accepted, &is_out).await {
                let position = blamed.record.lines.start;
                // Two streams may both refuse it; that it is dead is said once.
                if !dead.iter().any(|dead| dead.position == position) {
                    dead.push(Dead {
                        position,
                        reason: format!("{}: {}", blamed.code, blamed.message),
                        stream: Some(stream),
                    });
                }
            }
        }
        Ok(Settled {
            chunk,
            accepted,
            dead,
        })
    }

    /// Returns the lines that the stream will not have.
    async fn carry_to(
        &self,
        stream: usize,
        lines: &Lines,
        accepted: &mut [bool],
        is_out: &[bool],
    ) -> Vec<Blamed> {
        if self.trouble().parked.contains_key(&stream) {
            return Vec::new();
        }
        let Route {
            destination,
            pulse,
            stop,
        } = &self.route;
        let name = &self.run.streams[stream];
        let records = lines.records(destination.pack, |line| !accepted[line] && !is_out[line]);
        let delivery = destination
            .deliver(name, records, &self.meter, pulse, stop)
            .await;
        for record in delivery.delivered {
            accepted[record.lines].fill(true);
        }
        match delivery.ended_by {
            None | Some(Ended::Stopped) => {}
            Some(Ended::Parked(parked)) => {
                self.trouble().parked.insert(stream, parked.to_string());
            }
            Some(Ended::GaveUp(reason)) => {
                let problem = format!("stream `{name}` accepted nothing for 90 s: {reason}");
                self.trouble().given_up.get_or_insert(problem);
            }
            Some(Ended::TimeUp) => {
                let problem = "the time for deliveries is over (`deliver_for`)".to_owned();
                self.trouble().given_up.get_or_insert(problem);
            }
        }
        delivery.blamed
    }

    fn render(&self, chunk: &Chunk) -> Result<Lines, SnapshotError> {
        let unreadable = |_| SnapshotError::UnreadableChunk {
            run: self.run.number,
            seq: chunk.seq,
        };
        let mut lines = LineBuffer::with_capacity(chunk.count * 512);
        match &self.identify {
            Some(identify) => {
                for change in chunk::changes(&chunk.entries) {
                    let change = change.map_err(unreadable)?;
                    lines.push(|bytes| identify.render(&change, bytes));
                }
            }
            None => {
                for line in chunk::calls(&chunk.entries) {
                    let line = line.map_err(unreadable)?;
                    lines.push(|bytes| bytes.extend(line));
                }
            }
        }
        let lines = lines.finish();
        if lines.count() != chunk.count {
            return Err(unreadable(chunk::Unreadable));
        }
        Ok(lines)
    }
}
