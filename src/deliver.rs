//! Carries chunks from the journal to a destination, and the receipts back.
//!
//! The snapshot and the destination do not know each other; this is where they meet. A bounded number of lines is
//! under way, taken by credit: what came back while the snapshot was busy is remembered together, and only then are
//! as many new ones taken. Nothing waits for a queue that waits for it.
//!
//! Runs take turns, and small chunks of several runs go as one parcel: what many audiences cost is what their records
//! cost, and not a round trip each.

mod parcel;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::batch::{MAX_CALL_RECORDS, MAX_RECORD_BYTES};
use crate::bill::Foreseen;
use crate::event::Identify;
use crate::firehose::{Blamed, Destination, Ended, Meter, Pulse};
use crate::mapping::StreamName;
use crate::progress::Progress;
use crate::snapshot::{
    Chunk, Credit, Dead, Handle, JournaledRun, Settled, Snapshot, SnapshotError,
};
use crate::stop::Stop;
use parcel::{Answer, Load, Parcel, parcels};
use turns::{Freight, Turns};

/// What is taken and not yet remembered, at most: lines, which a crash can repeat, and their bytes in the journal. On
/// its way through the SDK each of those is held about five times.
const UNDER_WAY: Freight = Freight {
    lines: 16 * MAX_CALL_RECORDS,
    bytes: 4 << 20,
};

/// A run with something to deliver, and who counts what is sent of it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub run: JournaledRun,
    pub meter: Arc<Meter>,
}

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
    /// Until the last that could be delivered was.
    pub took: Duration,
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

/// Delivers what runs to one destination have in the journal, and tells of each what became of it. What could not be
/// delivered stays there.
pub async fn deliver(
    snapshot: &Handle,
    outgoing: Vec<Outgoing>,
    route: &Route,
    progress: &Progress,
) -> Result<Vec<Sent>, SnapshotError> {
    let _delivering = route.pulse.start();
    let courier = Arc::new(Courier::new(outgoing, route));
    let mut turns = Turns::new(courier.runs.iter().map(|errand| &errand.run).enumerate());
    let mut account = Account::new(courier.runs.len(), progress);
    let mut under_way = JoinSet::new();
    let mut freight = Freight::default();
    let mut settled = Vec::new();
    // What is under way then is still remembered.
    let mut broken = None;
    loop {
        turns.keep(|run| courier.goes_on(run));
        let room = match courier.takes_more() && broken.is_none() {
            true => freight.until(UNDER_WAY),
            false => Freight::default(),
        };
        let (back, there) = (std::mem::take(&mut settled), Arc::clone(&courier));
        let (taken, left) = snapshot
            .with(move |snapshot| {
                let taken = there.exchange(snapshot, back, &mut turns, room);
                (taken, turns)
            })
            .await;
        turns = left;
        let taken = taken.unwrap_or_else(|error| {
            broken.get_or_insert(error);
            Vec::new()
        });
        taken.iter().for_each(|(_, chunk)| freight.add(chunk));
        for parcel in parcels(taken, |run| &*courier.runs[run].run.streams) {
            let courier = Arc::clone(&courier);
            under_way.spawn(async move { courier.carry(parcel).await });
        }
        let Some(first) = under_way.join_next().await else {
            break;
        };
        let mut back = Some(first);
        while let Some(joined) = back {
            match joined.expect("carrying a parcel does not panic") {
                Ok(parts) => settled.extend(parts),
                Err(error) => {
                    broken.get_or_insert(error);
                }
            }
            back = under_way.try_join_next();
        }
        for (run, part) in &settled {
            freight.take_off(&part.chunk);
            account.note(*run, part.newly_delivered(), &part.dead);
        }
    }
    if let Some(error) = broken {
        return Err(error);
    }
    let Account {
        mut sent,
        obituaries,
        ..
    } = account;
    for (run, sent) in sent.iter_mut().enumerate() {
        sent.problem = courier.problem(run, turns.has(run));
        sent.is_over = !courier.takes_more() || !courier.goes_on(run);
        sent.obituary = obituaries[run].words(&courier.runs[run].run);
    }
    Ok(sent)
}

/// What has become of each run so far.
struct Account<'p> {
    sent: Vec<Sent>,
    obituaries: Vec<Obituary>,
    began: Instant,
    progress: &'p Progress,
}

impl<'p> Account<'p> {
    fn new(runs: usize, progress: &'p Progress) -> Self {
        let mut obituaries: Vec<Obituary> = Vec::new();
        obituaries.resize_with(runs, Obituary::default);
        Self {
            sent: vec![Sent::default(); runs],
            obituaries,
            began: Instant::now(),
            progress,
        }
    }

    fn note(&mut self, run: usize, delivered: u64, dead: &[Dead]) {
        let sent = &mut self.sent[run];
        sent.delivered += delivered;
        sent.dead += dead.len() as u64;
        sent.took = self.began.elapsed();
        let obituary = &mut self.obituaries[run];
        dead.iter().for_each(|dead| obituary.add(dead));
        self.progress.delivered(delivered);
    }
}

/// What a delivery of what a run has in the journal would count, stream by stream.
pub async fn foresee(
    snapshot: &Handle,
    run: &JournaledRun,
    destination: &Destination,
) -> Result<Vec<Foreseen>, SnapshotError> {
    let errand = [Errand::new(run.clone(), Arc::default())];
    let mut foreseen = vec![Foreseen::default(); run.streams.len()];
    let mut after = run.after;
    loop {
        let of = run.clone();
        let chunks = snapshot
            .with(move |snapshot| snapshot.settle(&of, &[], after, Credit::ONE))
            .await?;
        let Some(last) = chunks.last() else {
            return Ok(foreseen);
        };
        after = last.seq;
        let chunks = chunks.into_iter().map(|chunk| (0, chunk)).collect();
        for parcel in parcels(chunks, |_| &*run.streams) {
            let load = Load::render(&parcel, &errand)?;
            for (stream, foreseen) in foreseen.iter_mut().enumerate() {
                let accepted = load.accepted(stream);
                *foreseen += destination.foresee(|pack| load.records(pack, &accepted));
            }
        }
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

/// Renders and sends the chunks of runs to one destination.
struct Courier {
    runs: Vec<Errand>,
    route: Route,
    trouble: Mutex<Trouble>,
}

/// One of the runs.
struct Errand {
    run: JournaledRun,
    /// `None` for calls, which are lines already.
    identify: Option<Identify>,
    meter: Arc<Meter>,
}

impl Errand {
    fn new(run: JournaledRun, meter: Arc<Meter>) -> Self {
        Self {
            identify: run.computation.as_ref().map(Identify::new),
            run,
            meter,
        }
    }
}

/// What became of a parcel at one stream.
struct Brought {
    /// By position in the streams of its runs.
    stream: usize,
    accepted: Vec<bool>,
    /// Lines that the stream will not have.
    blamed: Vec<Blamed>,
}

/// Why chunks are not delivered any more.
#[derive(Default)]
struct Trouble {
    /// Streams that take nothing; the others go on.
    parked: BTreeMap<StreamName, String>,
    /// For all of them.
    given_up: Option<String>,
    /// Runs of which something is not delivered for either.
    met_by: BTreeSet<usize>,
}

impl Courier {
    fn new(outgoing: Vec<Outgoing>, route: &Route) -> Self {
        let errand = |Outgoing { run, meter }| Errand::new(run, meter);
        Self {
            runs: outgoing.into_iter().map(errand).collect(),
            route: route.clone(),
            trouble: Mutex::default(),
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is any use in taking further chunks,
    fn takes_more(&self) -> bool {
        !self.route.stop.is_requested() && self.trouble().given_up.is_none()
    }

    /// and in taking those of this run.
    fn goes_on(&self, run: usize) -> bool {
        let trouble = self.trouble();
        let mut streams = self.runs[run].run.streams.iter();
        streams.any(|stream| !trouble.parked.contains_key(stream))
    }

    fn problem(&self, run: usize, is_left: bool) -> Option<String> {
        let trouble = self.trouble();
        if !is_left && !trouble.met_by.contains(&run) {
            return None;
        }
        let streams = self.runs[run].run.streams.iter();
        let parked = streams.filter_map(|stream| trouble.parked.get(stream));
        let mut problems: Vec<String> = parked.chain(&trouble.given_up).cloned().collect();
        problems.dedup();
        (!problems.is_empty()).then(|| problems.join("\n"))
    }

    /// Remembers what came back, in one transaction, and then takes as many further chunks as there is room for.
    fn exchange(
        &self,
        snapshot: &mut Snapshot,
        back: Vec<(usize, Settled)>,
        turns: &mut Turns,
        room: Freight,
    ) -> Result<Vec<(usize, Chunk)>, SnapshotError> {
        let run = |run: usize| &self.runs[run].run;
        if !back.is_empty() {
            snapshot.together(|snapshot| self.remember(snapshot, back))?;
        }
        turns.take(snapshot, run, room)
    }

    fn remember(
        &self,
        snapshot: &mut Snapshot,
        back: Vec<(usize, Settled)>,
    ) -> Result<(), SnapshotError> {
        let mut by_run: BTreeMap<usize, Vec<Settled>> = BTreeMap::new();
        for (run, settled) in back {
            by_run.entry(run).or_default().push(settled);
        }
        for (run, mut settled) in by_run {
            // In order they leave no gaps on the pages of the members.
            settled.sort_unstable_by_key(|settled| settled.chunk.seq);
            snapshot.settle(&self.runs[run].run, &settled, -1, Credit::NONE)?;
        }
        Ok(())
    }

    async fn carry(
        self: Arc<Self>,
        parcel: Parcel,
    ) -> Result<Vec<(usize, Settled)>, SnapshotError> {
        let load = Load::render(&parcel, &self.runs)?;
        Ok(parcel.settle(self.carry_load(load).await))
    }

    /// One load to every stream that does not have all of it yet.
    async fn carry_load(self: Arc<Self>, load: Load) -> Answer {
        let load = Arc::new(load);
        let brought = self.carry_to_all(&load).await;
        let mut dead = load.too_long();
        dead.extend(self.dead_of(&load, &brought));
        let accepted = brought.into_iter().map(|brought| brought.accepted);
        Answer {
            accepted: accepted.collect(),
            dead,
        }
    }

    /// To all streams at once: one that is slow keeps nothing from the others.
    async fn carry_to_all(self: &Arc<Self>, load: &Arc<Load>) -> Vec<Brought> {
        let mut under_way = JoinSet::new();
        for stream in 0..load.streams.len() {
            let (courier, load) = (Arc::clone(self), Arc::clone(load));
            under_way.spawn(async move { courier.carry_to(stream, &load).await });
        }
        let mut brought = under_way.join_all().await;
        brought.sort_by_key(|brought| brought.stream);
        brought
    }

    /// The lines that some stream refuses, once all of the others have them or refuse them, too. Until then they wait
    /// with their chunk.
    fn dead_of(&self, load: &Load, brought: &[Brought]) -> Vec<Dead> {
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
                let is_resumed = self.runs[load.run_of(position)].run.is_resumed;
                let doubtful = brought.iter().filter(|other| {
                    let of_it = |blamed: &&Blamed| blamed.record.lines.start == position;
                    let blamed = other.blamed.iter().find(of_it);
                    blamed.is_some_and(|blamed| blamed.is_doubtful || is_resumed)
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

    async fn carry_to(&self, stream: usize, load: &Load) -> Brought {
        let mut accepted = load.accepted(stream);
        let mut blamed = Vec::new();
        let name = &load.streams[stream];
        let is_parked = self.trouble().parked.contains_key(name);
        let mut ended_by = None;
        if !is_parked {
            let Route {
                destination,
                pulse,
                stop,
            } = &self.route;
            let records = load.records(destination.pack, &accepted);
            let delivery = destination
                .deliver(name, records, &load.meters, pulse, stop)
                .await;
            for record in delivery.delivered {
                accepted[record.lines].fill(true);
            }
            blamed = delivery.blamed;
            ended_by = delivery.ended_by;
        }
        // Calls of `send` are decided by nobody else. What is no fault of theirs leaves them in the journal.
        if let Some(Ended::Hopeless(_)) = ended_by {
            blamed.retain(|blamed| {
                let run = load.run_of(blamed.record.lines.start);
                self.runs[run].run.computation.is_some()
            });
        }
        if is_parked || ended_by.is_some() {
            self.trouble().met_by.extend(load.left_by(&accepted));
        }
        if let Some(ended) = ended_by {
            self.note_end(name, ended);
        }
        Brought {
            stream,
            accepted,
            blamed,
        }
    }

    fn note_end(&self, stream: &StreamName, ended: Ended) {
        let problem = match ended {
            Ended::Stopped => return,
            Ended::TimeUp => {
                let problem = "the time for deliveries is over (`deliver_for`)".to_owned();
                self.trouble().given_up.get_or_insert(problem);
                return;
            }
            Ended::Parked(parked) | Ended::Hopeless(parked) => parked.to_string(),
            Ended::GaveUp(reason) => {
                format!("stream `{stream}` accepted nothing for 90 s: {reason}")
            }
        };
        let mut trouble = self.trouble();
        trouble.parked.entry(stream.clone()).or_insert(problem);
    }
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
        let (handle, meter) = (Handle::new(snapshot), Arc::<Meter>::default());
        let outgoing = vec![Outgoing {
            run,
            meter: Arc::clone(&meter),
        }];
        let started = tokio::time::Instant::now();
        let sent = deliver(&handle, outgoing, &route, &Progress::default())
            .await
            .unwrap()
            .remove(0);
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

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_is_waited_for_once_by_all_runs() {
        let folder = tempfile::tempdir().unwrap();
        let name = DestinationName::new("main");
        let streams = [StreamName::parse("members").unwrap()];
        let mut snapshot = Snapshot::open(&folder.path().join("snapshot.sqlite")).unwrap();
        let outgoing = (1..=3).map(|millis| {
            let at = Timestamp::from_millis(millis);
            let id = RunId::at(at);
            let mut run = snapshot.open_send(id, at, &name, &streams).unwrap();
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
            pulse: Arc::default(),
            stop: Stop::new(),
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
        let streams = [StreamName::parse("members").unwrap()];
        let mut snapshot = Snapshot::open(&path).unwrap();
        let at = Timestamp::from_millis(1);
        let mut run = snapshot
            .open_send(RunId::at(at), at, &name, &streams)
            .unwrap();
        let lines = vec![b"call\n".to_vec(); 3 * MAX_CALL_RECORDS];
        snapshot.journal_calls(&mut run, &lines).unwrap();
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute("UPDATE chunk SET entries = x'09' WHERE seq = 0", [])
            .unwrap();
        let handle = Handle::new(snapshot);
        let directory = Directory::new(folder.path().join("delivered"));
        let route = Route {
            destination: Arc::new(Destination::directory(name, false, directory)),
            pulse: Arc::default(),
            stop: Stop::new(),
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
