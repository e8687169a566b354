//! Whose chunks are handed out next. Audiences take turns, so that a small one does not wait for the end of a large one.

use std::collections::{BTreeMap, VecDeque};

use crate::audience::AudienceId;
use crate::batch::MAX_CALL_RECORDS;
use crate::snapshot::{Chunk, Credit, JournaledRun, Snapshot, SnapshotError};

/// Lines, and their bytes in the journal: what is in flight, or what more may be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InFlight {
    pub(super) lines: usize,
    pub(super) bytes: usize,
}

impl InFlight {
    pub(super) const fn add(&mut self, chunk: &Chunk) {
        self.lines += chunk.count;
        self.bytes += chunk.entries.len();
    }

    pub(super) const fn take_off(&mut self, chunk: &Chunk) {
        self.lines -= chunk.count;
        self.bytes -= chunk.entries.len();
    }

    /// How much more it may be until it is as much as that.
    pub(super) const fn until(self, most: Self) -> Self {
        Self {
            lines: most.lines.saturating_sub(self.lines),
            bytes: most.bytes.saturating_sub(self.bytes),
        }
    }

    /// Whether there is room for one more chunk, whatever it holds: at most the lines of one call. The last one may
    /// have more bytes than that.
    const fn has_room(self) -> bool {
        self.lines >= MAX_CALL_RECORDS && self.bytes > 0
    }
}

/// Runs, by their positions, with chunks that were not handed out yet.
pub(super) struct FairQueue {
    lanes: VecDeque<Lane>,
}

/// The runs of one audience, or those of `send`: what was decided first goes first.
type Lane = VecDeque<Waiting>;

#[derive(Clone, Copy)]
struct Waiting {
    run: usize,
    /// The last chunk that was handed out.
    after: i64,
}

impl FairQueue {
    pub(super) fn new<'r>(runs: impl Iterator<Item = (usize, &'r JournaledRun)>) -> Self {
        let mut lanes: VecDeque<Lane> = VecDeque::new();
        let mut known: BTreeMap<Option<&AudienceId>, usize> = BTreeMap::new();
        for (position, run) in runs {
            let computation = run.computation.as_ref();
            let audience = computation.map(|computation| &computation.audience);
            let lane = *known.entry(audience).or_insert_with(|| {
                lanes.push_back(Lane::new());
                lanes.len() - 1
            });
            lanes[lane].push_back(Waiting {
                run: position,
                after: run.after,
            });
        }
        Self { lanes }
    }

    /// Whether not all of a run was handed out.
    pub(super) fn has(&self, run: usize) -> bool {
        let mut waiting = self.lanes.iter().flatten();
        waiting.any(|waiting| waiting.run == run)
    }

    /// Hands out the next chunks, as many as there is room for.
    pub(super) fn take<'r>(
        &mut self,
        snapshot: &mut Snapshot,
        run_at: impl Fn(usize) -> &'r JournaledRun,
        mut room: InFlight,
    ) -> Result<Vec<(usize, Chunk)>, SnapshotError> {
        let mut taken = Vec::new();
        while room.has_room()
            && let Some(mut lane) = self.lanes.pop_front()
        {
            let Some(first) = lane.front_mut() else {
                continue;
            };
            let (run, share) = (
                first.run,
                room.lines / MAX_CALL_RECORDS / (self.lanes.len() + 1),
            );
            let credit = Credit {
                chunks: share.max(1),
                bytes: room.bytes,
            };
            let mut given = InFlight::default();
            let chunks = snapshot.settle(run_at(run), &[], first.after, credit)?;
            let is_end = chunks.len() < credit.chunks;
            for chunk in chunks {
                first.after = chunk.seq;
                given.add(&chunk);
                taken.push((run, chunk));
            }
            // Fewer than it may have: there are no more, unless they are large.
            if is_end && given.bytes < room.bytes {
                lane.pop_front();
            }
            room = given.until(room);
            if !lane.is_empty() {
                self.lanes.push_back(lane);
            }
        }
        Ok(taken)
    }
}
