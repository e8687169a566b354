//! Sources that are read before it is their turn: one that is slow keeps no other waiting.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::reading::{Found, Reading};
use crate::audience::SourceName;
use crate::snapshot::Planning;
use crate::source::{Interrupt, SourceError};

/// Sources that one command or tick reads ahead: queries that sort, or that are slow to begin, run side by side.
const AHEAD: usize = 2;
/// Sources that all of them read at a time. Each has members in memory, and may sort.
const MAX_READ: usize = 8;

/// Whose turn it is to read.
#[derive(Debug)]
pub(super) struct Turns {
    reading: Arc<Semaphore>,
    /// Of a source to which nobody can write while it is read: one audience at a time, so that writers get in between.
    alone: Mutex<BTreeMap<SourceName, Arc<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            reading: Arc::new(Semaphore::new(MAX_READ)),
            alone: Mutex::default(),
        }
    }
}

/// The right to read a source, until it is dropped.
struct Turn {
    _alone: Option<OwnedSemaphorePermit>,
    _reading: OwnedSemaphorePermit,
}

impl Turns {
    async fn wait_for(&self, reading: &Reading) -> Turn {
        let alone = match reading.source.keeps_writers_waiting() {
            true => Some(permit(self.alone(&reading.audience.source)).await),
            false => None,
        };
        Turn {
            _alone: alone,
            _reading: permit(Arc::clone(&self.reading)).await,
        }
    }

    fn alone(&self, source: &SourceName) -> Arc<Semaphore> {
        let mut alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        let one = || Arc::new(Semaphore::new(1));
        Arc::clone(alone.entry(source.clone()).or_insert_with(one))
    }
}

async fn permit(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = semaphore.acquire_owned().await;
    permit.expect("nobody closes it")
}

/// The runs of some feeds of one audience that are about to be planned together.
pub(super) struct Intended {
    pub(super) plannings: Vec<Planning>,
    pub(super) reading: Reading,
}

/// The same when there is something to compare, or a reason why there is not.
pub(super) struct Ready {
    pub(super) plannings: Vec<Planning>,
    pub(super) reading: Reading,
    pub(super) found: Result<Found, SourceError>,
    /// Until there was something to compare.
    pub(super) took: Duration,
    _turn: Turn,
}

impl Intended {
    /// Begins to read the source.
    pub(super) async fn begin(self, turns: Arc<Turns>) -> Ready {
        let Self { plannings, reading } = self;
        let turn = turns.wait_for(&reading).await;
        let began = Instant::now();
        let begun = spawn_blocking(move || (reading.begin(), reading));
        let (found, reading) = begun.await.expect("beginning to read does not panic");
        Ready {
            plannings,
            reading,
            found,
            took: began.elapsed(),
            _turn: turn,
        }
    }
}

/// What is read ahead. Dropping it ends that.
#[derive(Default)]
pub(super) struct Ahead {
    /// Each is used in its turn,
    reading: VecDeque<BeingRead>,
    /// or as soon as it can be, once it has turned out to be slow.
    slow: FuturesUnordered<BeingRead>,
}

struct BeingRead {
    interrupt: Interrupt,
    task: JoinHandle<Ready>,
}

impl Future for BeingRead {
    type Output = Ready;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ready> {
        let ready = Pin::new(&mut self.task).poll(context);
        ready.map(|ready| ready.expect("beginning to read does not panic"))
    }
}

impl Ahead {
    /// Whether a source may be read now. One to which nobody can write meanwhile waits until it is its turn: it would keep
    /// the source while another one is waited for.
    pub(super) fn has_room_for(&self, intended: &Intended) -> bool {
        let keeps_writers_waiting = intended.reading.source.keeps_writers_waiting();
        self.reading.is_empty() || self.reading.len() < AHEAD && !keeps_writers_waiting
    }

    pub(super) fn begin(&mut self, intended: Intended, turns: &Arc<Turns>) {
        self.reading.push_back(BeingRead {
            interrupt: intended.reading.interrupt.clone(),
            task: tokio::spawn(intended.begin(Arc::clone(turns))),
        });
    }

    /// The next one; `None` where none is read.
    pub(super) async fn next(&mut self) -> Option<Ready> {
        let first = async {
            match self.reading.front_mut() {
                Some(first) => Some(first.await),
                None => None,
            }
        };
        tokio::select! {
            Some(ready) = first => {
                self.reading.pop_front();
                Some(ready)
            }
            Some(ready) = self.slow.next() => Some(ready),
            else => None,
        }
    }

    /// Whether only slow ones are waited for.
    pub(super) fn is_slow(&self) -> bool {
        self.reading.is_empty()
    }

    /// Makes room for others: those that are read now take long.
    pub(super) fn let_wait(&mut self) {
        self.slow.extend(self.reading.drain(..));
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let all = self.reading.iter().chain(self.slow.iter());
        all.for_each(|one| one.interrupt.interrupt());
    }
}
