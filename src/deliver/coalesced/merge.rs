//! What several runs have in the journal, user by user.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::audience::{Change, UserKind};
use crate::deliver::Errand;
use crate::deliver::turns::Freight;
use crate::event::Part;
use crate::snapshot::chunk::{self, Unreadable};
use crate::snapshot::{Chunk, Dead, Settled, Snapshot, SnapshotError};

/// How far the changes of one run and kind were handed out.
pub(super) struct Cursor {
    run: usize,
    leaving: bool,
    /// The chunk with the next one, or a number before it,
    seq: i64,
    /// and how many changes of that chunk are behind.
    entry: usize,
    /// The chunk itself, among those of a round.
    open: Option<usize>,
}

impl Cursor {
    pub(super) fn both(run: usize) -> [Self; 2] {
        [false, true].map(|leaving| Self {
            run,
            leaving,
            seq: 0,
            entry: 0,
            open: None,
        })
    }
}

/// Where a change is: which entry of which chunk of a round.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) entry: usize,
}

/// A chunk that is read, and what became of it.
pub(super) struct Open {
    pub(super) run: usize,
    /// Whether something of it was handed out.
    pub(super) is_in_round: bool,
    chunk: Chunk,
    starts: Vec<usize>,
    accepted: Vec<Vec<bool>>,
    dead: Vec<Dead>,
    /// Entries that share no line,
    apart: BTreeSet<usize>,
    /// and those that shared one that was refused just now, with the streams that may have accepted it all the same.
    newly_apart: BTreeMap<usize, Vec<usize>>,
}

/// Streams that may have accepted what a change shared: by its run, chunk and entry.
pub(super) type Doubts = BTreeMap<(usize, i64, usize), Vec<usize>>;

impl Open {
    fn new(
        run: usize,
        chunk: Chunk,
        apart: BTreeSet<usize>,
        streams: usize,
    ) -> Result<Self, Unreadable> {
        let starts = chunk::starts(&chunk.entries)?;
        if starts.len() != chunk.count {
            return Err(Unreadable);
        }
        let accepted = match chunk.accepted.is_empty() {
            true => vec![vec![false; chunk.count]; streams],
            false => chunk.accepted.clone(),
        };
        Ok(Self {
            run,
            is_in_round: false,
            chunk,
            starts,
            accepted,
            dead: Vec::new(),
            apart,
            newly_apart: BTreeMap::new(),
        })
    }

    /// The next entry that is yet to be delivered.
    fn next_waiting(&self, from: usize) -> Option<usize> {
        (from..self.chunk.count).find(|entry| {
            let is_everywhere = self.accepted.iter().all(|stream| stream[*entry]);
            !is_everywhere && !self.chunk.dead.contains(entry)
        })
    }

    fn change(&self, entry: usize) -> Result<Change<'_>, Unreadable> {
        chunk::change_at(&self.chunk.entries, self.starts[entry])
    }

    fn bytes(&self, entry: usize) -> usize {
        let end = self.starts.get(entry + 1);
        end.unwrap_or(&self.chunk.entries.len()) - self.starts[entry]
    }

    /// Takes what became of a line of which an entry is a part, and maybe the only one.
    pub(super) fn take_back(
        &mut self,
        entry: usize,
        is_shared: bool,
        line: usize,
        settled: &Settled,
    ) {
        for (accepted, lines) in self.accepted.iter_mut().zip(&settled.accepted) {
            accepted[entry] |= lines[line];
        }
        let letter = settled.dead.iter().find(|dead| dead.position == line);
        match letter {
            Some(letter) if is_shared => {
                self.newly_apart.insert(entry, letter.doubtful.clone());
            }
            Some(letter) => self.dead.push(Dead {
                position: entry,
                ..letter.clone()
            }),
            None => {}
        }
    }

    /// A letter is in doubt where the line was that it once shared.
    pub(super) fn recall(&mut self, doubts: &mut Doubts) {
        for letter in &mut self.dead {
            let at = (self.run, self.chunk.seq, letter.position);
            letter
                .doubtful
                .extend(doubts.remove(&at).into_iter().flatten());
        }
        let newly_apart = self.newly_apart.iter();
        doubts.extend(
            newly_apart
                .map(|(entry, streams)| ((self.run, self.chunk.seq, *entry), streams.clone())),
        );
    }

    /// The entries that share no line any more, and of which run and chunk they are.
    pub(super) fn newly_apart(&self) -> Option<(usize, i64, BTreeSet<usize>)> {
        let entries: BTreeSet<usize> = self.newly_apart.keys().copied().collect();
        (!entries.is_empty()).then_some((self.run, self.chunk.seq, entries))
    }

    pub(super) fn settle(self) -> (usize, Settled) {
        let settled = Settled {
            chunk: self.chunk,
            accepted: self.accepted,
            dead: self.dead,
        };
        (self.run, settled)
    }
}

/// The next user of a cursor.
type Head = Reverse<(UserKind, String, usize)>;

/// Hands out changes, those of one user together.
pub(super) struct Merge<'a> {
    pub(super) errands: &'a [Errand],
    pub(super) chunks: Vec<Open>,
    given: Freight,
    snapshot: &'a Snapshot,
    cursors: &'a mut [Cursor],
    heads: BinaryHeap<Head>,
}

impl<'a> Merge<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        errands: &'a [Errand],
        cursors: &'a mut [Cursor],
    ) -> Result<Self, SnapshotError> {
        let mut merge = Self {
            errands,
            chunks: Vec::new(),
            given: Freight::default(),
            snapshot,
            cursors,
            heads: BinaryHeap::new(),
        };
        for cursor in 0..merge.cursors.len() {
            merge.cursors[cursor].open = None;
            merge.find_head(cursor)?;
        }
        Ok(merge)
    }

    /// Whether it has handed out less than that, or nothing.
    pub(super) const fn has_given_less_than(&self, most: Freight) -> bool {
        let Freight { lines, bytes } = self.given;
        lines == 0 || lines < most.lines && bytes < most.bytes
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

    fn give(&mut self, cursor: usize) -> Place {
        let cursor = &mut self.cursors[cursor];
        let place = Place {
            chunk: cursor.open.expect("a head is of an open chunk"),
            entry: cursor.entry,
        };
        cursor.entry += 1;
        let open = &mut self.chunks[place.chunk];
        open.is_in_round = true;
        self.given.lines += 1;
        self.given.bytes += open.bytes(place.entry);
        place
    }

    /// Finds the next user of a cursor, in a further chunk where one has come to its end.
    fn find_head(&mut self, number: usize) -> Result<(), SnapshotError> {
        loop {
            if self.cursors[number].open.is_none() && !self.open(number)? {
                return Ok(());
            }
            let cursor = &mut self.cursors[number];
            let chunk = cursor.open.expect("it was just opened");
            let open = &self.chunks[chunk];
            if let Some(entry) = open.next_waiting(cursor.entry) {
                cursor.entry = entry;
                let user = self.change(Place { chunk, entry })?.member.user;
                let head = (user.kind, user.id.to_owned(), number);
                self.heads.push(Reverse(head));
                return Ok(());
            }
            (cursor.seq, cursor.entry, cursor.open) = (cursor.seq + 1, 0, None);
        }
    }

    /// Reads the chunk that a cursor has come to; `false` where there is none.
    fn open(&mut self, cursor: usize) -> Result<bool, SnapshotError> {
        let cursor = &mut self.cursors[cursor];
        let run = &self.errands[cursor.run].run;
        let Some(chunk) = self
            .snapshot
            .waiting_chunk(run, cursor.leaving, cursor.seq)?
        else {
            return Ok(false);
        };
        cursor.seq = chunk.seq;
        let apart = self.snapshot.apart(run, chunk.seq)?;
        let open = Open::new(cursor.run, chunk, apart, run.streams.len());
        let unreadable = |_| SnapshotError::UnreadableChunk {
            run: run.number,
            seq: cursor.seq,
        };
        cursor.open = Some(self.chunks.len());
        self.chunks.push(open.map_err(unreadable)?);
        Ok(true)
    }

    /// Whether a change has a line of its own, whoever else says something of its user.
    pub(super) fn is_apart(&self, place: Place) -> bool {
        self.chunks[place.chunk].apart.contains(&place.entry)
    }

    fn change(&self, place: Place) -> Result<Change<'_>, SnapshotError> {
        let change = self.chunks[place.chunk].change(place.entry);
        change.map_err(|_| self.unreadable(place))
    }

    pub(super) fn part(&self, place: Place) -> Result<Part<'_>, SnapshotError> {
        let errand = &self.errands[self.chunks[place.chunk].run];
        let identify = errand.identify.as_ref();
        let identify = identify.ok_or_else(|| self.unreadable(place))?;
        Part::new(identify, self.change(place)?).map_err(|_| self.unreadable(place))
    }

    fn unreadable(&self, place: Place) -> SnapshotError {
        let open = &self.chunks[place.chunk];
        SnapshotError::UnreadableChunk {
            run: self.errands[open.run].run.number,
            seq: open.chunk.seq,
        }
    }

    /// Whether a stream has all of these.
    pub(super) fn has_all(&self, stream: usize, places: &[Place]) -> bool {
        let has = |place: &Place| self.chunks[place.chunk].accepted[stream][place.entry];
        places.iter().all(has)
    }
}
