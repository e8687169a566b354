//! Carries chunks from the journal to a stream, and the receipts back.
//!
//! The snapshot and the destination do not know each other; this is where they meet. A bounded number of lines is in
//! flight: what came back while the snapshot was busy is remembered together, and only then are as many new lines taken.
//! Nothing waits for a queue that waits for it.
//!
//! Each stream has a dispatcher of its own, so that one in trouble holds up no other. The audiences of a stream take
//! turns, and small chunks of several runs share a call: many audiences cost what their records cost, and not a round
//! trip each. Lines that failed are tried alone in a slow lane, beside everything else.

mod fair_queue;
mod put_batch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::batch::{MAX_CALL_RECORDS, MAX_RECORD_BYTES};
use crate::bill::Foreseen;
use crate::event::Identify;
use crate::firehose::{Destination, Ended, Meter, Suspect};
use crate::progress::Progress;
use crate::snapshot::{
    Chunk, Credit, Dead, Handle, JournaledRun, Settled, Snapshot, SnapshotError,
};
use crate::stop::Stop;
use fair_queue::{FairQueue, InFlight};
use put_batch::{PutBatch, Rendered, batches};

/// What all streams together have in flight: taken from the journal, and not yet remembered. A crash can repeat these
/// lines. The bytes are those in the journal; on its way through the SDK each is held about five times.
const IN_FLIGHT: InFlight = InFlight {
    lines: 16 * MAX_CALL_RECORDS,
    bytes: 4 << 20,
};
/// Calls that each stream may have in flight, however many streams there are.
const LEAST_CALLS: usize = 2;
/// Bytes of the batches whose lines are tried alone. What has no room waits for the next run.
const MAX_SLOW_BYTES: usize = 16 << 20;

/// A run with something to deliver, and what counts what is sent of it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub run: JournaledRun,
    pub meter: Arc<Meter>,
}

/// What became of a run's chunks.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Changes that the stream has accepted.
    pub delivered: u64,
    /// Why changes stay in the journal, in words for people.
    pub problem: Option<String>,
    /// Whether the stream takes nothing any more.
    pub is_over: bool,
    /// How many changes can never be delivered. They hold up nothing.
    pub dead: u64,
    /// Why the dead are dead, in words for people.
    pub dead_summary: Option<String>,
    /// How long it took until the last change was accepted.
    pub took: Duration,
}

impl Sent {
    /// Everything that is wrong.
    pub fn trouble(&self) -> Option<String> {
        let both: Vec<&str> = [&self.problem, &self.dead_summary]
            .into_iter()
            .filter_map(Option::as_deref)
            .collect();
        (!both.is_empty()).then(|| both.join("\n"))
    }
}

/// Where the records of a stream go, and what may end that.
#[derive(Debug, Clone)]
pub struct Route {
    pub destination: Arc<Destination>,
    pub stop: Stop,
    /// Streams that are delivered to now: they share what may be in flight.
    pub streams: Arc<AtomicUsize>,
}

impl Route {
    /// What one stream may have in flight now.
    fn share(&self) -> InFlight {
        let streams = self.streams.load(Ordering::Relaxed).max(1);
        let least = LEAST_CALLS * MAX_CALL_RECORDS;
        InFlight {
            lines: (IN_FLIGHT.lines / streams).max(least),
            bytes: IN_FLIGHT.bytes / streams,
        }
    }
}

/// Delivers what runs to one stream have in the journal, and tells what became of each run. What could not be delivered
/// stays there.
pub async fn deliver(
    snapshot: &Handle,
    outgoing: Vec<Outgoing>,
    route: &Route,
    progress: &Progress,
) -> Result<Vec<Sent>, SnapshotError> {
    route.streams.fetch_add(1, Ordering::Relaxed);
    let delivered = Dispatcher::new(outgoing, route, progress)
        .run(snapshot)
        .await;
    route.streams.fetch_sub(1, Ordering::Relaxed);
    delivered
}

/// What a delivery of what a run has in the journal would count.
pub async fn estimate(
    snapshot: &Handle,
    run: &JournaledRun,
    destination: &Destination,
) -> Result<Foreseen, SnapshotError> {
    let context = [RunContext::new(run.clone(), Arc::default())];
    let mut sum = Foreseen::default();
    let mut after = run.after;
    loop {
        let of = run.clone();
        let chunks = snapshot
            .with(move |snapshot| snapshot.settle(&of, &[], after, Credit::ONE))
            .await?;
        let Some(last) = chunks.last() else {
            return Ok(sum);
        };
        after = last.seq;
        for batch in batches(chunks.into_iter().map(|chunk| (0, chunk)).collect()) {
            let rendered = Rendered::new(&batch, &context)?;
            sum += destination.foresee(|pack| rendered.records(pack));
        }
    }
}

/// A run, and what renders and counts its lines.
struct RunContext {
    run: JournaledRun,
    /// `None` for calls, which are lines already.
    identify: Option<Identify>,
    meter: Arc<Meter>,
}

impl RunContext {
    fn new(run: JournaledRun, meter: Arc<Meter>) -> Self {
        Self {
            identify: run.computation.as_ref().map(Identify::new),
            run,
            meter,
        }
    }
}

/// Counts dead lines, for people. The reasons themselves may repeat what was sent, and are for `snapshot dead` only.
#[derive(Debug, Default)]
struct DeadSummary {
    too_long: u64,
    refused: BTreeMap<String, u64>,
}

impl DeadSummary {
    fn add(&mut self, dead: &Dead) {
        match &dead.code {
            None => self.too_long += 1,
            Some(code) => *self.refused.entry(code.clone()).or_default() += 1,
        }
    }

    fn words(&self, run: &JournaledRun) -> Option<String> {
        let mut words = Vec::new();
        if self.too_long > 0 {
            words.push(format!(
                "{} can never be delivered: over {MAX_RECORD_BYTES} bytes",
                self.too_long
            ));
        }
        let stream = &run.stream.name;
        words.extend(
            self.refused
                .iter()
                .map(|(code, count)| format!("stream `{stream}` will not accept {count} ({code})")),
        );
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

/// A batch that came back from the stream.
struct Returned {
    batch: PutBatch,
    rendered: Rendered,
    /// Lines that are yet to be tried alone, slowly.
    suspects: Vec<Suspect>,
    dead: Vec<Dead>,
    ended_by: Option<Ended>,
    /// The bytes that it held in the slow lane; `None` if it was in flight as usual.
    slow: Option<usize>,
}

/// Renders and sends the chunks of runs to one stream.
struct Dispatcher<'p> {
    runs: Arc<Vec<RunContext>>,
    route: Route,
    progress: &'p Progress,
    began: Instant,
    sent: Vec<Sent>,
    summaries: Vec<DeadSummary>,
    /// Why the stream takes nothing any more.
    problem: Option<String>,
    /// Runs of which something was offered and not accepted.
    left: BTreeSet<usize>,
    slow: SlowLane,
    /// Runs with lines for which the slow lane had no room.
    put_off: BTreeSet<usize>,
}

/// Batches with lines that failed. Each line is tried alone, beside everything else.
#[derive(Default)]
struct SlowLane {
    waiting: VecDeque<(PutBatch, Rendered, Vec<Suspect>)>,
    under_way: usize,
    /// Those that wait and those under way; at most [`MAX_SLOW_BYTES`].
    bytes: usize,
}

impl<'p> Dispatcher<'p> {
    fn new(outgoing: Vec<Outgoing>, route: &Route, progress: &'p Progress) -> Self {
        let count = outgoing.len();
        let context = |Outgoing { run, meter }| RunContext::new(run, meter);
        let mut summaries: Vec<DeadSummary> = Vec::new();
        summaries.resize_with(count, DeadSummary::default);
        Self {
            runs: Arc::new(outgoing.into_iter().map(context).collect()),
            route: route.clone(),
            progress,
            began: Instant::now(),
            sent: vec![Sent::default(); count],
            summaries,
            problem: None,
            left: BTreeSet::new(),
            slow: SlowLane::default(),
            put_off: BTreeSet::new(),
        }
    }

    /// Whether there is any use in taking further chunks.
    fn takes_more(&self) -> bool {
        !self.route.stop.is_requested() && self.problem.is_none()
    }

    async fn run(mut self, snapshot: &Handle) -> Result<Vec<Sent>, SnapshotError> {
        let mut queue = FairQueue::new(self.runs.iter().map(|context| &context.run).enumerate());
        let mut under_way = JoinSet::new();
        let mut in_flight = InFlight::default();
        let mut settled = Vec::new();
        // What is under way then is still remembered.
        let mut broken = None;
        loop {
            let room = match self.takes_more() && broken.is_none() {
                true => in_flight.until(self.route.share()),
                false => InFlight::default(),
            };
            let (back, runs) = (std::mem::take(&mut settled), Arc::clone(&self.runs));
            let (taken, left) = snapshot
                .with(move |snapshot| {
                    let taken = exchange(snapshot, &runs, back, &mut queue, room);
                    (taken, queue)
                })
                .await;
            queue = left;
            let taken = taken.unwrap_or_else(|error| {
                broken.get_or_insert(error);
                Vec::new()
            });
            taken.iter().for_each(|(_, chunk)| in_flight.add(chunk));
            for batch in batches(taken) {
                let send = send(batch, Arc::clone(&self.runs), self.route.clone());
                under_way.spawn(send);
            }
            while let Some(slow) = self.next_slow(in_flight.lines > 0) {
                under_way.spawn(slow);
            }
            let Some(first) = under_way.join_next().await else {
                break;
            };
            let mut back = Some(first);
            while let Some(joined) = back {
                match joined.expect("sending a batch does not panic") {
                    Ok(returned) => {
                        let returned: Returned = returned;
                        match returned.slow {
                            Some(bytes) => {
                                self.slow.bytes -= bytes;
                                self.slow.under_way -= 1;
                            }
                            None => {
                                let chunks = returned.batch.chunks();
                                chunks.for_each(|chunk| in_flight.take_off(chunk));
                            }
                        }
                        settled.extend(self.take_back(returned));
                    }
                    Err(error) => {
                        broken.get_or_insert(error);
                    }
                }
                back = under_way.try_join_next();
            }
        }
        match broken {
            Some(error) => Err(error),
            None => Ok(self.close(&queue)),
        }
    }

    /// Counts what came back, and hands it on to be remembered. Lines that failed wait in the slow lane.
    fn take_back(&mut self, returned: Returned) -> Vec<(usize, Settled)> {
        let Returned {
            mut batch,
            mut rendered,
            suspects,
            dead,
            ended_by,
            slow: _,
        } = returned;
        let parts = rendered.settle(&mut batch, dead);
        for (run, part) in &parts {
            let delivered = part.newly_delivered();
            let sent = &mut self.sent[*run];
            sent.delivered += delivered;
            sent.dead += part.dead.len() as u64;
            sent.took = self.began.elapsed();
            part.dead
                .iter()
                .for_each(|dead| self.summaries[*run].add(dead));
            self.progress.delivered(delivered);
        }
        if let Some(ended) = ended_by {
            self.left.extend(rendered.left_by());
            self.note_end(ended);
        } else if !suspects.is_empty() {
            rendered.forget_lines();
            let bytes = slow_bytes(&batch, &suspects);
            if self.slow.bytes > 0 && self.slow.bytes + bytes > MAX_SLOW_BYTES {
                self.put_off.extend(rendered.left_by());
            } else {
                self.slow.bytes += bytes;
                self.slow.waiting.push_back((batch, rendered, suspects));
            }
        }
        parts
    }

    /// The next batch whose lines are tried alone. While the stream accepts nothing, it is one batch at a time, after all
    /// that is in flight: the stream itself may be to blame, and each line alone is a call.
    fn next_slow(
        &mut self,
        is_offering: bool,
    ) -> Option<impl Future<Output = Result<Returned, SnapshotError>> + Send + use<>> {
        if !self.takes_more() {
            for (_, rendered, _) in self.slow.waiting.drain(..) {
                self.left.extend(rendered.left_by());
            }
        }
        let has_accepted = self.sent.iter().any(|sent| sent.delivered > 0);
        if !has_accepted && (is_offering || self.slow.under_way > 0) {
            return None;
        }
        let (batch, rendered, suspects) = self.slow.waiting.pop_front()?;
        self.slow.under_way += 1;
        let (runs, route) = (Arc::clone(&self.runs), self.route.clone());
        Some(retry(batch, rendered, suspects, runs, route))
    }

    fn note_end(&mut self, ended: Ended) {
        let stream = &self.runs[0].run.stream.name;
        let problem = match ended {
            Ended::Stopped => return,
            Ended::TimeUp => "the time for deliveries is over (`deliver_for`)".to_owned(),
            Ended::Blocked(blocked) | Ended::RefusesEverything(blocked) => blocked.to_string(),
            Ended::Stalled(reason) => {
                format!("stream `{stream}` accepted nothing for 90 s: {reason}")
            }
        };
        self.problem.get_or_insert(problem);
    }

    fn close(mut self, queue: &FairQueue) -> Vec<Sent> {
        let takes_more = self.takes_more();
        for (run, sent) in self.sent.iter_mut().enumerate() {
            if queue.has(run) || self.left.contains(&run) {
                sent.problem.clone_from(&self.problem);
            }
            if sent.problem.is_none() && self.put_off.contains(&run) {
                let stream = &self.runs[run].run.stream.name;
                let problem = format!(
                    "stream `{stream}` refuses so many single lines that some wait for the next run"
                );
                sent.problem = Some(problem);
            }
            sent.is_over = !takes_more;
            sent.dead_summary = self.summaries[run].words(&self.runs[run].run);
        }
        self.sent
    }
}

/// Remembers what came back, in one transaction, and then takes as many further chunks as there is room for.
fn exchange(
    snapshot: &mut Snapshot,
    runs: &[RunContext],
    back: Vec<(usize, Settled)>,
    queue: &mut FairQueue,
    room: InFlight,
) -> Result<Vec<(usize, Chunk)>, SnapshotError> {
    if !back.is_empty() {
        snapshot.together(|snapshot| remember(snapshot, runs, back))?;
    }
    queue.take(snapshot, |run| &runs[run].run, room)
}

fn remember(
    snapshot: &mut Snapshot,
    runs: &[RunContext],
    back: Vec<(usize, Settled)>,
) -> Result<(), SnapshotError> {
    let mut by_run: BTreeMap<usize, Vec<Settled>> = BTreeMap::new();
    for (run, settled) in back {
        by_run.entry(run).or_default().push(settled);
    }
    for (run, mut settled) in by_run {
        // In order they leave no gaps on the pages of the members.
        settled.sort_by_key(|settled| settled.chunk.seq);
        snapshot.settle(&runs[run].run, &settled, -1, Credit::NONE)?;
    }
    Ok(())
}

async fn send(
    batch: PutBatch,
    runs: Arc<Vec<RunContext>>,
    route: Route,
) -> Result<Returned, SnapshotError> {
    let mut rendered = Rendered::new(&batch, &runs)?;
    let (destination, run) = (&route.destination, &runs[0].run);
    let records = rendered.records(destination.pack);
    let (meters, stop) = (&rendered.meters, &route.stop);
    let delivery = destination
        .deliver(&run.stream.name, records, meters, run.has_accepted, stop)
        .await;
    rendered.note(&delivery);
    Ok(Returned {
        dead: rendered.too_long(),
        batch,
        rendered,
        suspects: delivery.suspects,
        ended_by: delivery.ended_by,
        slow: None,
    })
}

/// The bytes that a batch holds while its lines are tried alone.
fn slow_bytes(batch: &PutBatch, suspects: &[Suspect]) -> usize {
    let chunks = batch.chunks().map(|chunk| chunk.entries.len());
    let lines = suspects.iter().map(|suspect| suspect.record.data.len());
    chunks.chain(lines).sum()
}

/// Tries alone the lines that failed, until each is delivered or dead.
async fn retry(
    batch: PutBatch,
    mut rendered: Rendered,
    suspects: Vec<Suspect>,
    runs: Arc<Vec<RunContext>>,
    route: Route,
) -> Result<Returned, SnapshotError> {
    let slow = slow_bytes(&batch, &suspects);
    let (destination, run) = (&route.destination, &runs[0].run);
    let (meters, stop) = (&rendered.meters, &route.stop);
    let delivery = destination
        .retry(&run.stream.name, suspects, meters, run.has_accepted, stop)
        .await;
    rendered.note(&delivery);
    let dead = delivery.dead.into_iter().map(|dead| Dead {
        position: dead.record.lines.start,
        reason: format!("{}: {}", dead.code, dead.message),
        code: Some(dead.code),
    });
    Ok(Returned {
        dead: dead.collect(),
        batch,
        rendered,
        suspects: Vec::new(),
        ended_by: delivery.ended_by,
        slow: Some(slow),
    })
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
    use crate::stream::{Place, Stream};

    /// More chunks than are under way together.
    const LINES: usize = 10_000;

    fn stream(name: &str) -> Stream {
        Stream {
            place: Place::Directory("delivered".into()),
            name: StreamName::parse(name).unwrap(),
        }
    }

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
        let mut snapshot = Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap();
        let lines: Vec<Vec<u8>> = (0..LINES).map(|n| format!("{n}\n").into_bytes()).collect();
        let outgoing = [(1, &*lame), (2, "w")].map(|(millis, of)| {
            let at = Timestamp::from_millis(millis);
            let id = RunId::at(at);
            let mut run = snapshot.open_send(id, at, &name, &stream(of)).unwrap();
            snapshot.journal_calls(&mut run, &lines).unwrap();
            Outgoing {
                run,
                meter: Arc::default(),
            }
        });
        let route = Route {
            destination: Arc::new(Destination::directory(
                name,
                false,
                Directory::new(root.clone()),
            )),
            stop: Stop::new(),
            streams: Arc::default(),
        };
        let handle = Handle::new(snapshot);
        let progress = Progress::default();
        let started = tokio::time::Instant::now();
        let [lame_one, other] = outgoing.map(|outgoing| {
            let (handle, route, progress) = (&handle, &route, &progress);
            async move {
                let sent = deliver(handle, vec![outgoing], route, progress).await;
                (sent.unwrap().remove(0), started.elapsed())
            }
        });
        let ((sent, took), (other, other_took)) = tokio::join!(lame_one, other);
        let problem = sent.problem.unwrap();
        assert!(
            problem.starts_with(&format!("stream `{lame}` accepted nothing for 90 s")),
            "{problem}"
        );
        assert_eq!((sent.delivered, sent.dead), (0, 0));
        assert!(took < Duration::from_secs(200));
        assert_eq!((other.delivered, other.problem), (LINES as u64, None));
        assert!(other_took < Duration::from_secs(1), "{other_took:?}");
        let left = handle.with(|snapshot| snapshot.waiting()).await.unwrap();
        assert_eq!(left[0].waiting, LINES as u64);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_is_waited_for_once_by_all_runs() {
        let folder = tempfile::tempdir().unwrap();
        let name = DestinationName::new("main");
        let stream = stream("members");
        let mut snapshot = Snapshot::create(&folder.path().join("snapshot.sqlite")).unwrap();
        let outgoing = (1..=3).map(|millis| {
            let at = Timestamp::from_millis(millis);
            let id = RunId::at(at);
            let mut run = snapshot.open_send(id, at, &name, &stream).unwrap();
            snapshot
                .journal_calls(&mut run, &[b"call\n".to_vec()])
                .unwrap();
            Outgoing {
                run,
                meter: Arc::default(),
            }
        });
        let outgoing: Vec<Outgoing> = outgoing.collect();
        // A reason that might pass: no file system takes names so long.
        let directory = Directory::new(folder.path().join("x".repeat(300)));
        let route = Route {
            destination: Arc::new(Destination::directory(name, false, directory)),
            stop: Stop::new(),
            streams: Arc::default(),
        };
        let handle = Handle::new(snapshot);
        let started = tokio::time::Instant::now();
        let sent = deliver(&handle, outgoing.clone(), &route, &Progress::default())
            .await
            .unwrap();
        assert!(started.elapsed() < Duration::from_secs(95));
        for sent in sent {
            let problem = sent.problem.unwrap();
            assert!(problem.starts_with("stream `members` accepted nothing for 90 s"));
            assert!(sent.is_over);
        }
        // They share their calls, and each is counted for each of them.
        let counts = outgoing.iter().map(|outgoing| outgoing.meter.counts());
        let requests: Vec<u64> = counts.map(|counts| counts.requests).collect();
        assert!(
            requests[0] > 9 && requests == [requests[0]; 3],
            "{requests:?}"
        );
    }

    #[tokio::test]
    async fn what_is_under_way_when_a_chunk_cannot_be_read_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.sqlite");
        let name = DestinationName::new("main");
        let stream = stream("members");
        let mut snapshot = Snapshot::create(&path).unwrap();
        let at = Timestamp::from_millis(1);
        let mut run = snapshot
            .open_send(RunId::at(at), at, &name, &stream)
            .unwrap();
        let lines = vec![b"call\n".to_vec(); 3 * MAX_CALL_RECORDS];
        snapshot.journal_calls(&mut run, &lines).unwrap();
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute("UPDATE bytes SET entries = x'09' WHERE id = (SELECT bytes FROM chunk WHERE seq = 0)", [])
            .unwrap();
        let handle = Handle::new(snapshot);
        let directory = Directory::new(folder.path().join("delivered"));
        let route = Route {
            destination: Arc::new(Destination::directory(name, false, directory)),
            stop: Stop::new(),
            streams: Arc::default(),
        };
        let outgoing = Outgoing {
            run,
            meter: Arc::default(),
        };
        let sent = deliver(&handle, vec![outgoing], &route, &Progress::default()).await;
        assert!(
            matches!(sent, Err(SnapshotError::UnreadableChunk { seq: 0, .. })),
            "{sent:?}"
        );
        let left = handle.with(|snapshot| snapshot.waiting()).await.unwrap();
        assert_eq!(left[0].waiting, MAX_CALL_RECORDS as u64);
    }
}
