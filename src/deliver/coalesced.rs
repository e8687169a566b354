//! Runs that were planned together and whose changes to one user share a line: their chunks are merged by user.
//!
//! It goes in rounds, and what became of a round is remembered in one transaction: all of a line has left the journal
//! or nothing of it. Which changes share a line follows from these changes alone, and not from what else still waits.
//! So what is sent again is the same bytes. A line that is refused is taken apart for good, and the journal knows it
//! before its parts go by themselves: one that Firehose will not have keeps no other. Of each run, one chunk of those who enter and one of those who leave is in
//! memory, and what a round holds.

#[cfg(test)]
mod laws;
mod merge;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::parcel::Load;
use super::turns::Freight;
use super::{Account, Courier, Errand, UNDER_WAY};
use crate::batch::{LineBuffer, MAX_CALL_BYTES, MAX_CALL_RECORDS, MAX_RECORD_BYTES};
use crate::event::Part;
use crate::mapping::StreamName;
use crate::snapshot::{Chunk, Handle, Settled, Snapshot, SnapshotError};
use merge::{Cursor, Doubts, Merge, Open, Place};

/// Positions of the runs that go by themselves, and of those that go together.
pub(super) fn groups(runs: &[Errand]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (position, Errand { run, .. }) in runs.iter().enumerate() {
        if let Some(together) = run.together {
            let group = groups.entry((together, &run.streams)).or_default();
            group.push(position);
        }
    }
    // Of whom all others are done, the last one goes by itself.
    groups.retain(|_, group| group.len() > 1);
    let together: Vec<_> = groups.into_values().collect();
    let is_alone = |run: &usize| !together.iter().any(|group| group.contains(run));
    ((0..runs.len()).filter(is_alone).collect(), together)
}

/// Delivers what each group has in the journal, one group after another.
pub(super) async fn deliver(
    snapshot: &Handle,
    courier: &Arc<Courier>,
    groups: Vec<Vec<usize>>,
    account: &mut Account<'_>,
) -> Result<(), SnapshotError> {
    for runs in groups {
        let there = Arc::clone(courier);
        let group = snapshot
            .with(move |snapshot| Group::new(runs, &there.runs, snapshot))
            .await?;
        let group = deliver_group(snapshot, courier, group, account).await?;
        let there = Arc::clone(courier);
        snapshot
            .with(move |snapshot| group.note_left(snapshot, &there))
            .await?;
    }
    Ok(())
}

/// A round that could not be delivered is in the way of no other.
async fn deliver_group(
    snapshot: &Handle,
    courier: &Arc<Courier>,
    mut group: Group,
    account: &mut Account<'_>,
) -> Result<Group, SnapshotError> {
    // All of them go to the same streams.
    while courier.takes_more() && courier.goes_on(group.runs[0]) {
        let there = Arc::clone(courier);
        let (left, round) = snapshot
            .with(move |snapshot| group.next_round(snapshot, &there.runs))
            .await?;
        group = left;
        if round.loads.is_empty() {
            if !group.begin_again() {
                break;
            }
            continue;
        }
        let mut chunks = carry(courier, round).await;
        for open in &mut chunks {
            open.recall(&mut group.doubts);
        }
        let apart: Vec<_> = chunks.iter().filter_map(Open::newly_apart).collect();
        group.has_apart |= !apart.is_empty();
        let settled: Vec<_> = chunks.into_iter().map(Open::settle).collect();
        for (run, part) in &settled {
            account.note(*run, part);
        }
        let there = Arc::clone(courier);
        let remember = move |snapshot: &mut Snapshot| {
            for (run, seq, entries) in &apart {
                snapshot.set_apart(&there.runs[*run].run, *seq, entries)?;
            }
            there.remember(snapshot, settled)
        };
        snapshot
            .with(move |snapshot| snapshot.together(remember))
            .await?;
    }
    Ok(group)
}

/// All of a round at once; returns the chunks of which something is in it, with what became of that.
async fn carry(courier: &Arc<Courier>, round: Round) -> Vec<Open> {
    let Round { mut chunks, loads } = round;
    let mut under_way = JoinSet::new();
    for (load, places) in loads {
        let courier = Arc::clone(courier);
        under_way.spawn(async move { (courier.carry_load(load).await, places) });
    }
    for (settled, places) in under_way.join_all().await {
        bring_back(&settled, &places, &mut chunks);
    }
    chunks.retain(|open| open.is_in_round);
    chunks
}

/// What became of lines became of each of their parts.
fn bring_back(settled: &[(usize, Settled)], places: &Places, chunks: &mut [Open]) {
    for (run, settled) in settled {
        for (line, places) in places[run].iter().enumerate() {
            for place in places {
                let is_shared = places.len() > 1;
                chunks[place.chunk].take_back(place.entry, is_shared, line, settled);
            }
        }
    }
}

/// Runs that go together.
struct Group {
    /// By their positions, in the order of keys: that of the traits in a line.
    runs: Vec<usize>,
    /// What of them was in no round yet.
    cursors: Vec<Cursor>,
    /// As many bytes as each may have of a record: a change that may take more goes by itself.
    share: usize,
    /// Lines were taken apart, and their parts are yet to go.
    has_apart: bool,
    doubts: Doubts,
}

/// What is sent together and remembered together.
struct Round {
    chunks: Vec<Open>,
    loads: Vec<(Load, Places)>,
}

/// Where the parts of each line are. Lines are counted for the run of their first part, and stand with those of that run.
type Places = BTreeMap<usize, Vec<Vec<Place>>>;

impl Group {
    fn new(
        mut runs: Vec<usize>,
        errands: &[Errand],
        snapshot: &Snapshot,
    ) -> Result<Self, SnapshotError> {
        runs.sort_by_key(|run| {
            let computation = errands[*run].run.computation.as_ref();
            computation.map(|computation| &computation.key)
        });
        let together = errands[runs[0]].run.together.unwrap_or_default();
        Ok(Self {
            cursors: runs.iter().flat_map(|run| Cursor::both(*run)).collect(),
            share: MAX_RECORD_BYTES / snapshot.coalesced(together)?.max(1),
            has_apart: false,
            doubts: Doubts::new(),
            runs,
        })
    }

    /// Goes back to the first change where some behind are to go by themselves.
    fn begin_again(&mut self) -> bool {
        self.cursors = self
            .runs
            .iter()
            .flat_map(|run| Cursor::both(*run))
            .collect();
        std::mem::take(&mut self.has_apart)
    }

    /// The next changes, as many as may be under way.
    fn next_round(
        mut self,
        snapshot: &Snapshot,
        errands: &[Errand],
    ) -> Result<(Self, Round), SnapshotError> {
        let streams = &errands[self.runs[0]].run.streams;
        let mut merge = Merge::new(snapshot, errands, &mut self.cursors)?;
        let mut loads = Vec::new();
        let mut filling = Filling::default();
        // Of one user there is at most one change in each run.
        let most = Freight {
            lines: UNDER_WAY.lines.saturating_sub(self.runs.len()),
            ..UNDER_WAY
        };
        while merge.has_given_less_than(most)
            && let Some(places) = merge.next_user()?
        {
            for line in lines(places, &merge, self.share)? {
                filling.push(line, &merge);
            }
            if filling.is_full() {
                loads.push(std::mem::take(&mut filling).close(streams, &merge));
            }
        }
        if filling.count > 0 {
            loads.push(filling.close(streams, &merge));
        }
        let chunks = merge.chunks;
        Ok((self, Round { chunks, loads }))
    }

    /// Notes of which runs something stays in the journal.
    fn note_left(&self, snapshot: &Snapshot, courier: &Courier) -> Result<(), SnapshotError> {
        for run in &self.runs {
            if snapshot.run(courier.runs[*run].run.number)?.waiting > 0 {
                courier.trouble().met_by.insert(*run);
            }
        }
        Ok(())
    }
}

/// What is said of one user together.
struct Line<'m> {
    parts: Vec<Part<'m>>,
    places: Vec<Place>,
    /// It is not to be shared.
    is_full: bool,
}

impl Line<'_> {
    fn takes(&self, part: &Part<'_>) -> bool {
        !self.is_full && self.parts[0].has_same_ids(part)
    }
}

/// Parts what waits for one user into lines: what is known of it by the same identifiers goes together.
fn lines<'m>(
    places: Vec<Place>,
    merge: &'m Merge<'_>,
    share: usize,
) -> Result<Vec<Line<'m>>, SnapshotError> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for place in places {
        let part = merge.part(place)?;
        let is_full = merge.is_apart(place) || part.takes_more_than(share);
        match lines.iter_mut().find(|line| !is_full && line.takes(&part)) {
            Some(line) => {
                line.parts.push(part);
                line.places.push(place);
            }
            None => lines.push(Line {
                parts: vec![part],
                places: vec![place],
                is_full,
            }),
        }
    }
    Ok(lines)
}

/// Lines that become a load.
#[derive(Default)]
struct Filling {
    lines: BTreeMap<usize, LineBuffer>,
    places: Places,
    count: usize,
    bytes: usize,
}

impl Filling {
    const fn is_full(&self) -> bool {
        self.count >= MAX_CALL_RECORDS || self.bytes >= MAX_CALL_BYTES
    }

    fn push(&mut self, line: Line<'_>, merge: &Merge<'_>) {
        let run = merge.chunks[line.places[0].chunk].run;
        self.lines.entry(run).or_default().push(|bytes| {
            let before = bytes.len();
            Part::render(&line.parts, bytes);
            self.bytes += bytes.len() - before;
        });
        self.places.entry(run).or_default().push(line.places);
        self.count += 1;
    }

    fn close(self, streams: &[StreamName], merge: &Merge<'_>) -> (Load, Places) {
        let mut load = Load::new(streams.to_vec());
        for ((run, lines), places) in self.lines.into_iter().zip(self.places.values()) {
            let has = |stream| {
                places
                    .iter()
                    .map(|line| merge.has_all(stream, line))
                    .collect()
            };
            // As if they were a chunk of that run.
            let chunk = Chunk {
                seq: 0,
                count: places.len(),
                entries: Vec::new(),
                accepted: (0..streams.len()).map(has).collect(),
                dead: Vec::new(),
            };
            load.push(run, &merge.errands[run], chunk, lines.finish());
        }
        (load, self.places)
    }
}
