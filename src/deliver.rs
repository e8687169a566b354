//! Carries chunks from the journal to a destination, and the receipts back.
//!
//! The snapshot and the destination do not know each other; this is where they meet. A bounded number of chunks is
//! under way, taken by credit: what came back while the snapshot was busy is remembered together, and only then are
//! as many new chunks taken. Nothing waits for a queue that waits for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use crate::batch::{LineBuffer, Lines, MAX_RECORD_BYTES};
use crate::bill::Foreseen;
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
    /// Whether no stream takes anything any more.
    pub is_over: bool,
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
    outcome.is_over = !courier.goes_on();
    outcome.obituary = obituary.words(run);
    Ok(outcome)
}

/// What a delivery of what a run has in the journal would count, stream by stream.
pub async fn foresee(
    snapshot: &Handle,
    run: &JournaledRun,
    destination: &Destination,
) -> Result<Vec<Foreseen>, SnapshotError> {
    let identify = run.computation.as_ref().map(Identify::new);
    let mut foreseen = vec![Foreseen::default(); run.streams.len()];
    let mut after = run.after;
    loop {
        let of = run.clone();
        let chunks = snapshot
            .with(move |snapshot| snapshot.settle(&of, &[], after, Credit::ONE))
            .await?;
        let Some(chunk) = chunks.first() else {
            return Ok(foreseen);
        };
        let lines = render(run, identify.as_ref(), chunk)?;
        for (stream, foreseen) in foreseen.iter_mut().enumerate() {
            let is_accepted = |line: usize| {
                chunk
                    .accepted
                    .get(stream)
                    .is_some_and(|accepted| accepted[line])
            };
            let is_wanted = |line: usize| !is_accepted(line) && !chunk.dead.contains(&line);
            *foreseen += destination.foresee(&lines, is_wanted);
        }
        after = chunk.seq;
    }
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

/// What became of a chunk at one stream.
struct Brought {
    /// By position in the run's streams.
    stream: usize,
    accepted: Vec<bool>,
    /// Lines that the stream will not have.
    blamed: Vec<Blamed>,
}

/// Why chunks are not delivered any more.
#[derive(Default)]
struct Trouble {
    /// By position in the run's streams; the others go on.
    parked: BTreeMap<usize, String>,
    /// For all of them.
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
    async fn carry(self: Arc<Self>, chunk: Chunk) -> Result<Settled, SnapshotError> {
        let lines = render(&self.run, self.identify.as_ref(), &chunk)?;
        let lines = Arc::new(lines);
        let mut dead: Vec<Dead> = lines
            .too_long()
            .filter(|(position, _)| !chunk.dead.contains(position))
            .map(|(position, bytes)| Dead {
                position,
                reason: format!(
                    "the record is {bytes} bytes, over the limit of {MAX_RECORD_BYTES}"
                ),
                stream: None,
                doubtful: Vec::new(),
            })
            .collect();
        let mut is_out = vec![false; chunk.count];
        let out = dead.iter().map(|dead| dead.position);
        out.chain(chunk.dead.iter().copied())
            .for_each(|position| is_out[position] = true);
        let mut accepted = chunk.accepted.clone();
        accepted.resize(self.run.streams.len(), vec![false; chunk.count]);
        let brought = self.carry_to_all(&lines, accepted, is_out).await;
        dead.extend(self.dead_of(&brought));
        Ok(Settled {
            chunk,
            accepted: brought
                .into_iter()
                .map(|brought| brought.accepted)
                .collect(),
            dead,
        })
    }

    /// To all streams at once: one that is slow keeps nothing from the others.
    async fn carry_to_all(
        self: &Arc<Self>,
        lines: &Arc<Lines>,
        accepted: Vec<Vec<bool>>,
        is_out: Vec<bool>,
    ) -> Vec<Brought> {
        let is_out = Arc::new(is_out);
        let mut under_way = JoinSet::new();
        for (stream, accepted) in accepted.into_iter().enumerate() {
            let (courier, lines, is_out) =
                (Arc::clone(self), Arc::clone(lines), Arc::clone(&is_out));
            under_way
                .spawn(async move { courier.carry_to(stream, &lines, accepted, &is_out).await });
        }
        let mut brought = under_way.join_all().await;
        brought.sort_by_key(|brought| brought.stream);
        brought
    }

    /// The lines that some stream refuses, once all of the others have them or refuse them, too. Until then they wait
    /// with their chunk.
    fn dead_of(&self, brought: &[Brought]) -> Vec<Dead> {
        let refuses = |brought: &Brought, position: usize| {
            let mut blamed = brought.blamed.iter();
            blamed.any(|blamed| blamed.record.lines.start == position)
        };
        let mut dead: Vec<Dead> = Vec::new();
        for by in brought {
            for blamed in &by.blamed {
                let position = blamed.record.lines.start;
                let is_known = dead.iter().any(|dead| dead.position == position);
                let mut others = brought.iter();
                let is_decided =
                    others.all(|other| other.accepted[position] || refuses(other, position));
                if is_known || !is_decided {
                    continue;
                }
                let doubtful = brought.iter().filter(|other| {
                    let of_it = |blamed: &&Blamed| blamed.record.lines.start == position;
                    let blamed = other.blamed.iter().find(of_it);
                    blamed.is_some_and(|blamed| blamed.is_doubtful || self.run.is_resumed)
                });
                dead.push(Dead {
                    position,
                    reason: format!("{}: {}", blamed.code, blamed.message),
                    stream: Some(by.stream),
                    doubtful: doubtful.map(|other| other.stream).collect(),
                });
            }
        }
        dead
    }

    async fn carry_to(
        &self,
        stream: usize,
        lines: &Lines,
        mut accepted: Vec<bool>,
        is_out: &[bool],
    ) -> Brought {
        let mut blamed = Vec::new();
        let is_parked = self.trouble().parked.contains_key(&stream);
        if !is_parked {
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
            blamed = delivery.blamed;
            // Calls of `send` are decided by nobody else. What is no fault of theirs leaves them in the journal.
            let is_hopeless = matches!(delivery.ended_by, Some(Ended::Hopeless(_)));
            if is_hopeless && self.run.computation.is_none() {
                blamed.clear();
            }
            if let Some(ended) = delivery.ended_by {
                self.note_end(stream, ended);
            }
        }
        Brought {
            stream,
            accepted,
            blamed,
        }
    }

    fn note_end(&self, stream: usize, ended: Ended) {
        let problem = match ended {
            Ended::Stopped => return,
            Ended::TimeUp => {
                let problem = "the time for deliveries is over (`deliver_for`)".to_owned();
                self.trouble().given_up.get_or_insert(problem);
                return;
            }
            Ended::Parked(parked) | Ended::Hopeless(parked) => parked.to_string(),
            Ended::GaveUp(reason) => {
                let name = &self.run.streams[stream];
                format!("stream `{name}` accepted nothing for 90 s: {reason}")
            }
        };
        self.trouble().parked.entry(stream).or_insert(problem);
    }
}

/// The lines of a chunk.
fn render(
    run: &JournaledRun,
    identify: Option<&Identify>,
    chunk: &Chunk,
) -> Result<Lines, SnapshotError> {
    let unreadable = |_| SnapshotError::UnreadableChunk {
        run: run.number,
        seq: chunk.seq,
    };
    let mut lines = LineBuffer::with_capacity(chunk.count * 512);
    match identify {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::audience::DestinationName;
    use crate::firehose::Directory;
    use crate::mapping::StreamName;
    use crate::run::{RunId, Timestamp};
    use crate::snapshot::Snapshot;

    /// More chunks than are under way together.
    const LINES: usize = 10_000;

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_keeps_nothing_from_the_others() {
        let folder = tempfile::tempdir().unwrap();
        // A reason that might pass: so deep down, the files of a stream with a long name have too long a path.
        let mut root = folder.path().to_owned();
        while let left @ 1.. = 3_950_usize.saturating_sub(root.as_os_str().len() + 1) {
            root.push("x".repeat(left.min(200)));
        }
        let name = DestinationName::new("main");
        let lame = "lame".repeat(16);
        let streams = [&*lame, "w"].map(|name| StreamName::parse(name).unwrap());
        let mut snapshot = Snapshot::open(&folder.path().join("snapshot.sqlite")).unwrap();
        let at = Timestamp::from_millis(1);
        let mut run = snapshot
            .open_send(RunId::at(at), at, &name, &streams)
            .unwrap();
        let lines: Vec<Vec<u8>> = (0..LINES).map(|n| format!("{n}\n").into_bytes()).collect();
        snapshot.journal_calls(&mut run, &lines).unwrap();

        let route = Route {
            destination: Arc::new(Destination::directory(
                name,
                false,
                Directory::new(root.clone()),
            )),
            pulse: Arc::default(),
            stop: Stop::new(),
        };
        let (handle, meter) = (Handle::new(snapshot), Arc::default());
        let started = tokio::time::Instant::now();
        let sent = deliver(&handle, &run, &route, &meter, &Progress::default())
            .await
            .unwrap();
        let problem = sent.problem.unwrap();
        assert!(
            problem.starts_with(&format!("stream `{lame}` accepted nothing for 90 s")),
            "{problem}"
        );
        assert_eq!((sent.delivered, sent.dead), (0, 0));
        assert_eq!(meter.counts().records, LINES as u64);
        assert!(started.elapsed() < Duration::from_secs(200));
        let left = handle.with(|snapshot| snapshot.waiting()).await.unwrap();
        assert_eq!(left[0].waiting, LINES as u64);
    }
}
