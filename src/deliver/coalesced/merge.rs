//! What several runs have in the journal, user by user.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::slice;

use crate::audience::{Change, UserKind};
use crate::deliver::Errand;
use crate::deliver::parcel::Answer;
use crate::event::Part;
use crate::snapshot::chunk::{self, Unreadable};
use crate::snapshot::{Chunk, Credit, Dead, JournaledRun, Settled, Snapshot, SnapshotError};

/// How far the changes of one run and kind were handed out.
pub(super) struct Cursor {
    pub(super) run: usize,
    leaving: bool,
    /// Chunks of which something was handed out that is not remembered yet, and last the one with the next change.
    open: Vec<Open>,
    /// So many changes of that one are behind.
    entry: usize,
    /// The next chunk has this number, or a greater one.
    seq: i64,
}

impl Cursor {
    pub(super) fn both(run: usize) -> [Self; 2] {
        [false, true].map(|leaving| Self {
            run,
            leaving,
            open: Vec::new(),
            entry: 0,
            seq: 0,
        })
    }

    pub(super) fn chunk(&mut self, place: Place) -> &mut Open {
        &mut self.open[place.chunk]
    }

    /// Writes down what became of changes. Places in its chunks are none any more.
    pub(super) fn remember(
        &mut self,
        snapshot: &mut Snapshot,
        run: &JournaledRun,
    ) -> Result<(), SnapshotError> {
        for open in self.open.iter_mut().filter(|open| open.has_news) {
            open.remember(snapshot, run)?;
        }
        // The last may have further changes.
        self.open.drain(..self.open.len().saturating_sub(1));
        Ok(())
    }
}

/// Where a change is: with which cursor, and which entry of which of its chunks.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) cursor: usize,
    chunk: usize,
    entry: usize,
}

/// A chunk that is read, and what became of it.
pub(super) struct Open {
    settled: Settled,
    starts: Vec<usize>,
    /// Entries that share no line,
    apart: BTreeSet<usize>,
    /// and those that shared one which was refused since.
    newly_apart: BTreeSet<usize>,
    has_news: bool,
}

/// What a part came to.
pub(super) enum Fate {
    /// Every stream has it.
    Delivered,
    Dead(Dead),
    /// The line that it shared was refused, and these streams may have accepted it all the same.
    Apart(Vec<usize>),
    Waits,
}

impl Open {
    fn new(chunk: Chunk, apart: BTreeSet<usize>, streams: usize) -> Result<Self, Unreadable> {
        let starts = chunk::starts(&chunk.entries)?;
        if starts.len() != chunk.count {
            return Err(Unreadable);
        }
        let accepted = match chunk.accepted.is_empty() {
            true => vec![vec![false; chunk.count]; streams],
            false => chunk.accepted.clone(),
        };
        Ok(Self {
            settled: Settled {
                chunk,
                accepted,
                dead: Vec::new(),
            },
            starts,
            apart,
            newly_apart: BTreeSet::new(),
            has_news: false,
        })
    }

    pub(super) const fn seq(&self) -> i64 {
        self.settled.chunk.seq
    }

    /// The next entry that is yet to be delivered.
    fn next_waiting(&self, from: usize) -> Option<usize> {
        let Settled {
            chunk, accepted, ..
        } = &self.settled;
        (from..chunk.count).find(|entry| {
            let is_everywhere = accepted.iter().all(|stream| stream[*entry]);
            !is_everywhere && !chunk.dead.contains(entry)
        })
    }

    fn change(&self, entry: usize) -> Result<Change<'_>, Unreadable> {
        chunk::change_at(&self.settled.chunk.entries, self.starts[entry])
    }

    fn bytes(&self, entry: usize) -> usize {
        let end = self.starts.get(entry + 1);
        end.unwrap_or(&self.settled.chunk.entries.len()) - self.starts[entry]
    }

    /// Takes what became of a line of which an entry is a part, and maybe the only one.
    pub(super) fn take_back(
        &mut self,
        place: Place,
        is_shared: bool,
        line: usize,
        answer: &Answer,
    ) -> Fate {
        let entry = place.entry;
        self.has_news = true;
        for (accepted, lines) in self.settled.accepted.iter_mut().zip(&answer.accepted) {
            accepted[entry] |= lines[line];
        }
        let mut streams = self.settled.accepted.iter();
        match answer.dead.iter().find(|dead| dead.position == line) {
            None if streams.all(|stream| stream[entry]) => Fate::Delivered,
            None => Fate::Waits,
            Some(letter) if is_shared => {
                self.newly_apart.insert(entry);
                Fate::Apart(letter.doubtful.clone())
            }
            Some(letter) => Fate::Dead(Dead {
                position: entry,
                ..letter.clone()
            }),
        }
    }

    pub(super) fn bury(&mut self, letter: Dead) {
        self.settled.dead.push(letter);
    }

    fn remember(
        &mut self,
        snapshot: &mut Snapshot,
        run: &JournaledRun,
    ) -> Result<(), SnapshotError> {
        snapshot.set_apart(run, self.seq(), &self.newly_apart)?;
        snapshot.settle(run, slice::from_ref(&self.settled), -1, Credit::NONE)?;
        // The next time it is no news.
        let Settled {
            chunk,
            accepted,
            dead,
        } = &mut self.settled;
        chunk.accepted.clone_from(accepted);
        chunk.dead.extend(dead.drain(..).map(|dead| dead.position));
        self.newly_apart.clear();
        self.has_news = false;
        Ok(())
    }
}

/// The next user of a cursor.
type Head = Reverse<(UserKind, String, usize)>;

/// Hands out changes, those of one user together.
pub(super) struct Merge<'a> {
    pub(super) errands: &'a [Errand],
    snapshot: &'a Snapshot,
    cursors: &'a mut [Cursor],
    heads: BinaryHeap<Head>,
}

impl<'a> Merge<'a> {
    /// Goes on where the cursors are.
    pub(super) fn new(
        snapshot: &'a Snapshot,
        errands: &'a [Errand],
        cursors: &'a mut [Cursor],
    ) -> Result<Self, SnapshotError> {
        let mut merge = Self {
            errands,
            snapshot,
            cursors,
            heads: BinaryHeap::new(),
        };
        for cursor in 0..merge.cursors.len() {
            merge.find_head(cursor)?;
        }
        Ok(merge)
    }

    /// What waits for the next user, in the order of the cursors.
    pub(super) fn next_user(&mut self) -> Result<Option<Vec<Place>>, SnapshotError> {
        let Some(Reverse((kind, id, first))) = self.heads.pop() else {
            return Ok(None);
        };
        let mut cursors = vec![first];
        while let Some(Reverse((other, user, cursor))) = self.heads.peek()
            && (*other, user) == (kind, &id)
        {
            cursors.push(*cursor);
            self.heads.pop();
        }
        let mut places = Vec::with_capacity(cursors.len());
        for cursor in cursors {
            places.push(self.give(cursor));
            self.find_head(cursor)?;
        }
        Ok(Some(places))
    }

    fn give(&mut self, number: usize) -> Place {
        let cursor = &mut self.cursors[number];
        let place = Place {
            cursor: number,
            chunk: cursor.open.len() - 1,
            entry: cursor.entry,
        };
        cursor.entry += 1;
        place
    }

    /// Finds the next user of a cursor, in a further chunk where one has come to its end.
    fn find_head(&mut self, number: usize) -> Result<(), SnapshotError> {
        loop {
            let cursor = &mut self.cursors[number];
            if let Some(open) = cursor.open.last()
                && let Some(entry) = open.next_waiting(cursor.entry)
            {
                cursor.entry = entry;
                let chunk = cursor.open.len() - 1;
                let place = Place {
                    cursor: number,
                    chunk,
                    entry,
                };
                let user = self.change(place)?.member.user;
                let head = (user.kind, user.id.to_owned(), number);
                self.heads.push(Reverse(head));
                return Ok(());
            }
            if !self.open(number)? {
                return Ok(());
            }
        }
    }

    /// Reads the next chunk of a cursor; `false` where there is none.
    fn open(&mut self, number: usize) -> Result<bool, SnapshotError> {
        let cursor = &mut self.cursors[number];
        let run = &self.errands[cursor.run].run;
        let next = self
            .snapshot
            .waiting_chunk(run, cursor.leaving, cursor.seq)?;
        let Some(chunk) = next else {
            return Ok(false);
        };
        let seq = chunk.seq;
        let apart = self.snapshot.apart(run, seq)?;
        let unreadable = |_| SnapshotError::UnreadableChunk {
            run: run.number,
            seq,
        };
        let open = Open::new(chunk, apart, run.streams.len());
        cursor.open.push(open.map_err(unreadable)?);
        (cursor.seq, cursor.entry) = (seq + 1, 0);
        Ok(true)
    }

    fn chunk(&self, place: Place) -> &Open {
        &self.cursors[place.cursor].open[place.chunk]
    }

    /// Whose change it is.
    pub(super) fn run(&self, place: Place) -> usize {
        self.cursors[place.cursor].run
    }

    /// Whether it has a line of its own, whoever else says something of its user.
    pub(super) fn is_apart(&self, place: Place) -> bool {
        self.chunk(place).apart.contains(&place.entry)
    }

    /// As many bytes as it has in the journal.
    pub(super) fn bytes(&self, place: Place) -> usize {
        self.chunk(place).bytes(place.entry)
    }

    fn change(&self, place: Place) -> Result<Change<'_>, SnapshotError> {
        let change = self.chunk(place).change(place.entry);
        change.map_err(|_| self.unreadable(place))
    }

    pub(super) fn part(&self, place: Place) -> Result<Part<'_>, SnapshotError> {
        let identify = self.errands[self.run(place)].identify.as_ref();
        let identify = identify.ok_or_else(|| self.unreadable(place))?;
        Part::new(identify, self.change(place)?).map_err(|_| self.unreadable(place))
    }

    fn unreadable(&self, place: Place) -> SnapshotError {
        SnapshotError::UnreadableChunk {
            run: self.errands[self.run(place)].run.number,
            seq: self.chunk(place).seq(),
        }
    }

    /// Whether a stream has all of these.
    pub(super) fn has_all(&self, stream: usize, places: &[Place]) -> bool {
        let has = |place: &Place| self.chunk(*place).settled.accepted[stream][place.entry];
        places.iter().all(has)
    }
}

/// Streams that may have accepted a line which was refused later: by run, chunk and entry of its parts.
#[derive(Default)]
pub(super) struct Doubts(BTreeMap<(usize, i64, usize), Vec<usize>>);

impl Doubts {
    pub(super) fn note(&mut self, run: usize, open: &Open, place: Place, streams: Vec<usize>) {
        self.0.insert((run, open.seq(), place.entry), streams);
    }

    /// What has come back by itself is in doubt where its line was.
    pub(super) fn recall(&mut self, run: usize, open: &Open, letter: &mut Dead) {
        let at = (run, open.seq(), letter.position);
        letter
            .doubtful
            .extend(self.0.remove(&at).into_iter().flatten());
    }
}
