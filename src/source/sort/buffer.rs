//! Members in memory: as they come, and then in order.

use super::Shares;
use super::record::{self, Place};
use super::run::{Ends, shared};
use crate::audience::{Member, MemberBuf};
use crate::source::is_greater;

/// Members as they come. What it may hold is set aside at once, and so takes no memory before it is used.
pub(super) struct Buffer {
    records: Vec<u8>,
    members: usize,
    /// Empty until they are sorted.
    order: Vec<Entry>,
    shares: Shares,
}

/// Where a record is, and eight bytes of its key: nearly all comparisons need no more. So are its bytes fetched without a
/// look at them, and while those before it still come from memory.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    head: u64,
    at: u32,
    length: u32,
}

impl Buffer {
    pub(super) fn new(shares: Shares) -> Self {
        Self {
            records: Vec::with_capacity(shares.record_bytes),
            members: 0,
            order: Vec::with_capacity(shares.members),
            shares,
        }
    }

    /// Any member fits an empty one.
    pub(super) fn has_room_for(&self, member: &Member<'_>) -> bool {
        self.members == 0
            || (self.members < self.shares.members
                && self.records.len() + record::length(member) <= self.shares.record_bytes)
    }

    pub(super) fn push(&mut self, member: &Member<'_>) {
        if self.members == 0 {
            self.records.reserve_exact(record::length(member));
        }
        record::write(member, &mut self.records);
        self.members += 1;
    }

    /// Puts them in order, each user once. Those that are in order are only looked at.
    pub(super) fn sort(mut self) -> Ordered {
        let mut at = 0;
        while at < self.records.len() {
            let end = find(&self.records, at).end;
            self.order.push(Entry::new(at, end));
            at = end;
        }
        let records = self.records.as_slice();
        let common = common(&self.order, records);
        sort(&mut self.order, records, common, MOST_HEADS);
        once_each(&mut self.order, records);
        Ordered {
            buffer: self,
            next: 0,
        }
    }

    /// How much memory it has set aside.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.records.capacity() + self.order.capacity() * size_of::<Entry>()
    }
}

/// Members in order, each once.
pub(super) struct Ordered {
    buffer: Buffer,
    next: usize,
}

impl Ordered {
    /// Puts as many of the next ones into a block as it takes, or a single one; `false` at the end.
    pub(super) fn fill(&mut self, block: &mut Vec<u8>) -> bool {
        let Buffer {
            records,
            order,
            shares,
            ..
        } = &self.buffer;
        let Some(first) = order.get(self.next) else {
            return false;
        };
        shares.empty(block, first.bytes(records).len());
        for entry in &order[self.next..] {
            let record = entry.bytes(records);
            if !shares.has_room(block, record.len()) {
                break;
            }
            block.extend_from_slice(record);
            self.next += 1;
        }
        true
    }

    pub(super) fn ends(&self) -> Option<Ends> {
        let key = |entry: &Entry| entry.key(&self.buffer.records).to_vec();
        Some(Ends {
            first: key(self.buffer.order.first()?),
            last: key(self.buffer.order.last()?),
        })
    }

    /// The bytes of its longest record.
    pub(super) fn longest(&self) -> usize {
        let lengths = self.buffer.order.iter().map(|entry| entry.length as usize);
        lengths.max().unwrap_or_default()
    }

    /// For others, in the same memory.
    pub(super) fn into_empty(self) -> Buffer {
        let mut buffer = self.buffer;
        buffer.records.clear();
        buffer.records.shrink_to(buffer.shares.record_bytes);
        buffer.members = 0;
        buffer.order.clear();
        buffer
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.buffer.bytes()
    }
}

impl Entry {
    fn new(at: usize, end: usize) -> Self {
        let short = |number| u32::try_from(number).expect("no member takes four gigabytes");
        Self {
            head: 0,
            at: short(at),
            length: short(end - at),
        }
    }

    fn bytes<'a>(&self, records: &'a [u8]) -> &'a [u8] {
        let at = self.at as usize;
        &records[at..at + self.length as usize]
    }

    fn key<'a>(&self, records: &'a [u8]) -> &'a [u8] {
        find(records, self.at as usize).key(records)
    }
}

fn find(records: &[u8], at: usize) -> Place {
    record::find(records, at).expect("a buffer holds whole records")
}

/// So few are compared by their whole keys.
const FEW: usize = 16;
/// Keys that are alike for longer, too.
const MOST_HEADS: u32 = 8;

/// Sorts by the eight bytes of the key at `from`, up to which all are alike, and those which are alike there too by the
/// next eight.
fn sort(entries: &mut [Entry], records: &[u8], from: usize, heads: u32) {
    if entries.len() <= FEW || heads == 0 {
        entries.sort_unstable_by(|a, b| a.key(records).cmp(b.key(records)));
        return;
    }
    for entry in &mut *entries {
        entry.head = head(entry.key(records), from);
    }
    entries.sort_unstable_by_key(|entry| entry.head);
    for alike in entries.chunk_by_mut(|a, b| a.head == b.head) {
        if alike.len() > 1 {
            sort(alike, records, from + 8, heads - 1);
        }
    }
}

/// Eight bytes of a key as a number that compares as they do. What ends before compares as if zeros followed, so keys
/// of the same head may still differ.
pub(super) fn head(key: &[u8], from: usize) -> u64 {
    let key = key.get(from..).unwrap_or_default();
    match key.first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => {
            let mut eight = [0; 8];
            eight[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(eight)
        }
    }
}

/// How many bytes the keys begin with that all have: of many users, the head is only then a good part of the id.
fn common(entries: &[Entry], records: &[u8]) -> usize {
    let Some((first, others)) = entries.split_first() else {
        return 0;
    };
    let first = first.key(records);
    others.iter().fold(first.len(), |common, entry| {
        shared(&first[..common], entry.key(records))
    })
}

/// Of several records of a user, leaves the greatest.
fn once_each(order: &mut Vec<Entry>, records: &[u8]) {
    let mut members = [MemberBuf::default(), MemberBuf::default()];
    order.dedup_by(|next, kept| {
        let is_same = next.head == kept.head && next.key(records) == kept.key(records);
        if is_same && is_entry_greater(*next, *kept, records, &mut members) {
            *kept = *next;
        }
        is_same
    });
}

fn is_entry_greater(
    next: Entry,
    kept: Entry,
    records: &[u8],
    members: &mut [MemberBuf; 2],
) -> bool {
    if next.bytes(records) == kept.bytes(records) {
        return false;
    }
    for (entry, member) in [next, kept].iter().zip(&mut *members) {
        let read = find(records, entry.at as usize).read(records, member);
        read.expect("a buffer holds whole members");
    }
    is_greater(&members[0], &members[1])
}
