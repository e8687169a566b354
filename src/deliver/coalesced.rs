//! Runs that were planned together and whose changes to one user share a line: their chunks are merged by user.
//!
//! It goes in rounds, and what became of several is remembered in one transaction: all of a line has left the journal or
//! nothing of it. Which changes share a line follows from these changes alone, and not from what else still waits. So
//! what is sent again is the same bytes. A line that is refused is taken apart for good, and the journal knows it before
//! its parts go by themselves: one that Firehose will not have keeps no other.
//!
//! Of each run, one chunk of those who enter and one of those who leave is in memory, and those of which something is not
//! remembered yet. Each is read once, and settled when it is through: a round may hold few users of many audiences.

#[cfg(test)]
mod laws;
mod merge;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::parcel::{Answer, Load};
use super::{Account, Courier, Errand};
use crate::batch::{LineBuffer, MAX_CALL_BYTES, MAX_CALL_RECORDS, MAX_RECORD_BYTES};
use crate::event::Part;
use crate::mapping::StreamName;
use crate::snapshot::{Dead, Handle, Snapshot, SnapshotError};
use merge::{Cursor, Doubts, Fate, Merge, Place};

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
    loop {
        // All of them go to the same streams.
        let goes_on = courier.takes_more() && courier.goes_on(group.runs[0]);
        let there = Arc::clone(courier);
        let (left, round) = snapshot
            .with(move |snapshot| group.go_on(snapshot, &there.runs, goes_on))
            .await?;
        group = left;
        if round.is_empty() {
            return Ok(group);
        }
        for (answer, lines) in carry(courier, round).await {
            group.take_back(&answer, &lines, account);
        }
    }
}

/// All of a round at once.
async fn carry(courier: &Arc<Courier>, round: Round) -> Vec<(Answer, Places)> {
    let mut under_way = JoinSet::new();
    for (load, lines) in round {
        let courier = Arc::clone(courier);
        under_way.spawn(async move { (courier.carry_load(load).await, lines) });
    }
    under_way.join_all().await
}

/// Loads that are under way together.
type Round = Vec<(Load, Places)>;
/// Where the parts of each line of a load are.
type Places = Vec<Vec<Place>>;

/// Runs that go together.
struct Group {
    /// By their positions, in the order of keys: that of the traits in a line.
    runs: Vec<usize>,
    cursors: Vec<Cursor>,
    /// As many bytes as each may have of a record: a change that may take more goes by itself.
    share: usize,
    /// What was handed out since the snapshot was last told what became of it.
    unremembered: Bulk,
    /// Places were taken apart, and their parts are yet to go.
    has_apart: bool,
    doubts: Doubts,
}

/// Places, their bytes as they are sent, and those of their parts in the journal.
#[derive(Debug, Clone, Copy, Default)]
struct Bulk {
    lines: usize,
    sent: usize,
    held: usize,
}

/// What a crash can repeat: as much as sixteen calls carry. As many chunks as hold that are in memory.
const UNREMEMBERED: Bulk = Bulk {
    lines: 16 * MAX_CALL_RECORDS,
    sent: 16 * MAX_CALL_BYTES,
    held: 8 << 20,
};
/// As many bytes go in one round. On its way through the SDK each of those is held about five times.
const ROUND_BYTES: usize = 8 << 20;

impl Bulk {
    const fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.sent += other.sent;
        self.held += other.held;
    }

    /// What may come to it in a round. The last user may be one of each run, with a line each.
    const fn room(self, runs: usize) -> Self {
        Self {
            lines: UNREMEMBERED.lines.saturating_sub(self.lines + runs),
            sent: ROUND_BYTES,
            held: UNREMEMBERED.held.saturating_sub(self.held),
        }
    }

    /// Whether there is room for another line. A round ends with a full call where it can.
    const fn fits(self, room: Self, is_call_full: bool) -> bool {
        let sent = match is_call_full {
            true => self.sent + MAX_CALL_BYTES / 2,
            false => self.sent,
        };
        self.lines <= room.lines && sent < room.sent && self.held < room.held
    }

    /// Whether the next round had better not wait to be remembered with it.
    const fn is_half(self) -> bool {
        let Bulk { lines, sent, held } = UNREMEMBERED;
        self.lines >= lines / 2 || self.sent >= sent / 2 || self.held >= held / 2
    }
}

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
            cursors: cursors(&runs),
            share: MAX_RECORD_BYTES / snapshot.coalesced(together)?.max(1),
            unremembered: Bulk::default(),
            has_apart: false,
            doubts: Doubts::default(),
            runs,
        })
    }

    /// Remembers what came back, now and then, and hands out the next round: none where all is remembered and nothing
    /// is left, or nothing more is wanted.
    fn go_on(
        mut self,
        snapshot: &mut Snapshot,
        errands: &[Errand],
        is_wanted: bool,
    ) -> Result<(Self, Round), SnapshotError> {
        if self.unremembered.is_half() {
            self.remember(snapshot, errands)?;
        }
        let mut round = match is_wanted {
            true => self.next_round(snapshot, errands),
            false => Ok(Round::new()),
        };
        // What came back before a chunk that cannot be read is remembered, too.
        if round.as_ref().map_or(true, Vec::is_empty) {
            self.remember(snapshot, errands)?;
        }
        if is_wanted && round.as_ref().is_ok_and(Vec::is_empty) && self.begin_again() {
            round = self.next_round(snapshot, errands);
        }
        round.map(|round| (self, round))
    }

    /// Goes back to the first change where some behind are to go by themselves. The journal knows by now which.
    fn begin_again(&mut self) -> bool {
        self.cursors = cursors(&self.runs);
        std::mem::take(&mut self.has_apart)
    }

    /// The next changes, as many as may be under way.
    fn next_round(
        &mut self,
        snapshot: &Snapshot,
        errands: &[Errand],
    ) -> Result<Round, SnapshotError> {
        let streams = &errands[self.runs[0]].run.streams;
        let room = self.unremembered.room(self.runs.len());
        let mut merge = Merge::new(snapshot, errands, &mut self.cursors)?;
        let mut round = Round::new();
        let mut filling = Filling::default();
        let mut given = Bulk::default();
        while (given.lines == 0 || given.fits(room, filling.is_full))
            && let Some(places) = merge.next_user()?
        {
            for line in lines(places, &merge, self.share)? {
                let rendered = line.render();
                if !filling.has_room(rendered.len()) {
                    round.push(std::mem::take(&mut filling).close(streams, &merge));
                }
                given.add(Bulk {
                    lines: 1,
                    sent: rendered.len(),
                    held: line.places.iter().map(|place| merge.bytes(*place)).sum(),
                });
                filling.push(line.places, &rendered, &merge);
            }
        }
        if filling.count > 0 {
            round.push(filling.close(streams, &merge));
        }
        self.unremembered.add(given);
        Ok(round)
    }

    /// What became of lines became of each of their parts.
    fn take_back(&mut self, answer: &Answer, lines: &Places, account: &mut Account<'_>) {
        let mut came_to: BTreeMap<usize, (u64, Vec<Dead>)> = BTreeMap::new();
        for (line, places) in lines.iter().enumerate() {
            for place in places {
                let cursor = &mut self.cursors[place.cursor];
                let run = cursor.run;
                let open = cursor.chunk(*place);
                let (delivered, dead) = came_to.entry(run).or_default();
                match open.take_back(*place, places.len() > 1, line, answer) {
                    Fate::Delivered => *delivered += 1,
                    Fate::Apart(streams) => {
                        self.has_apart = true;
                        self.doubts.note(run, open, *place, streams);
                    }
                    Fate::Dead(mut letter) => {
                        self.doubts.recall(run, open, &mut letter);
                        open.bury(letter.clone());
                        dead.push(letter);
                    }
                    Fate::Waits => {}
                }
            }
        }
        for (run, (delivered, dead)) in came_to {
            account.note(run, delivered, &dead);
        }
    }

    /// Writes down all that came back: of each line in one transaction.
    fn remember(
        &mut self,
        snapshot: &mut Snapshot,
        errands: &[Errand],
    ) -> Result<(), SnapshotError> {
        self.unremembered = Bulk::default();
        snapshot.together(|snapshot| {
            let mut cursors = self.cursors.iter_mut();
            cursors.try_for_each(|cursor| cursor.remember(snapshot, &errands[cursor.run].run))
        })
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

fn cursors(runs: &[usize]) -> Vec<Cursor> {
    runs.iter().flat_map(|run| Cursor::both(*run)).collect()
}

/// What is said of one user together.
struct Line<'m> {
    parts: Vec<Part<'m>>,
    places: Vec<Place>,
    /// It is not to be shared.
    is_full: bool,
}

impl Line<'_> {
    fn render(&self) -> Vec<u8> {
        let mut line = Vec::new();
        Part::render(&self.parts, &mut line);
        line
    }

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

/// Places that become a load.
#[derive(Default)]
struct Filling {
    /// By the run of their first part, which they are counted for.
    by_run: BTreeMap<usize, (LineBuffer, Places)>,
    count: usize,
    bytes: usize,
    /// Another line like the last is for another call.
    is_full: bool,
}

impl Filling {
    /// Whether one call still carries all of it with a line of so many bytes.
    const fn has_room(&self, bytes: usize) -> bool {
        self.count == 0 || self.count < MAX_CALL_RECORDS && self.bytes + bytes <= MAX_CALL_BYTES
    }

    fn push(&mut self, places: Vec<Place>, line: &[u8], merge: &Merge<'_>) {
        let (lines, parts) = self.by_run.entry(merge.run(places[0])).or_default();
        lines.push(|bytes| bytes.extend(line));
        parts.push(places);
        self.count += 1;
        self.bytes += line.len();
        self.is_full = !self.has_room(line.len());
    }

    fn close(self, streams: &[StreamName], merge: &Merge<'_>) -> (Load, Places) {
        let mut load = Load::new(streams.to_vec());
        let mut all = Places::with_capacity(self.count);
        for (run, (lines, parts)) in self.by_run {
            load.push(run, &merge.errands[run], lines.finish());
            all.extend(parts);
        }
        for (position, places) in all.iter().enumerate() {
            for stream in 0..streams.len() {
                if merge.has_all(stream, places) {
                    load.has(stream, position);
                }
            }
        }
        (load, all)
    }
}
