//! Brings members into order that come in any: on disk, as soon as they are more than their share of memory.
//!
//! They fill a buffer. A full one is sorted on a thread of its own and written to a temporary file, as a run, while the
//! next one fills. At the end the runs are merged, with those who are in memory still. Where memory does not hold a block
//! of each run, some are merged first.
//!
//! Whether all came in order is known when all have come, so nobody is handed on before. It costs next to nothing then:
//! a buffer in order is only looked at, it continues the run before it, and a single run is read as it was written.
//!
//! No crate that sorts on disk knows of several rows of one user, and those that let bytes be compared in place of
//! values are young. SQLite's sorter takes five times as long.

mod buffer;
#[cfg(test)]
mod laws;
mod merge;
mod record;
mod run;
mod writer;

use std::io;
use std::path::PathBuf;

use super::Interrupt;
use crate::audience::Member;

use buffer::{Buffer, Entry};
use writer::{Runs, Writer};

pub(super) use merge::Sorted;

/// Why members were not brought into order.
#[derive(Debug, thiserror::Error)]
pub enum SortError {
    /// The disk is full, or nobody may write there.
    #[error(
        "members could not be sorted: no temporary file could be written in {}\n\n\
         hint: let TMPDIR name a folder with room for all of them",
        folder.display()
    )]
    Unwritable {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("members could not be sorted: a temporary file could not be read")]
    Unreadable(#[source] io::Error),
    /// What was read is not what was written.
    #[error("members could not be sorted: a temporary file is damaged")]
    Damaged,
    #[error("members were not sorted: asked to stop")]
    Interrupted,
}

/// Takes members in any order, and however often.
pub(super) struct Sorter {
    /// Where temporary files are made.
    folder: PathBuf,
    shares: Shares,
    interrupt: Interrupt,
    filling: Buffer,
    /// From the first full buffer on.
    writer: Option<Writer>,
}

impl Sorter {
    /// With so many bytes of memory for all that it does. A single member may take more.
    pub(super) fn new(budget: usize, interrupt: &Interrupt) -> Self {
        Self::with(std::env::temp_dir(), Shares::of(budget), interrupt)
    }

    fn with(folder: PathBuf, shares: Shares, interrupt: &Interrupt) -> Self {
        Self {
            folder,
            shares,
            interrupt: interrupt.clone(),
            filling: Buffer::new(shares),
            writer: None,
        }
    }

    pub(super) fn push(&mut self, member: &Member<'_>) -> Result<(), SortError> {
        if !self.filling.has_room_for(member) {
            self.spill()?;
        }
        self.filling.push(member);
        Ok(())
    }

    /// Has the full buffer sorted and written, and goes on with an empty one.
    fn spill(&mut self) -> Result<(), SortError> {
        let runs = || Runs::new(self.folder.clone(), self.shares, self.interrupt.clone());
        let start = || Writer::start(runs());
        let writer = self.writer.get_or_insert_with(start);
        writer.exchange(&mut self.filling)
    }

    /// When all have come.
    pub(super) fn finish(self) -> Result<Sorted, SortError> {
        // While the run before is written.
        let last = self.filling.sort();
        let runs = match self.writer {
            Some(writer) => writer.finish()?,
            None => Runs::new(self.folder, self.shares, self.interrupt),
        };
        runs.merge_with(last)
    }
}

/// How the budget is shared: two buffers, of which one fills while the other one is sorted and written, and a block for
/// each run that is merged and for what is written.
#[derive(Debug, Clone, Copy)]
struct Shares {
    /// Of a buffer,
    record_bytes: usize,
    /// and how many members it takes.
    members: usize,
    block_bytes: usize,
    /// How many runs are merged at once, unless records are long.
    at_once: usize,
}

const BLOCKS: usize = 64;

impl Shares {
    fn of(budget: usize) -> Self {
        let block_bytes = (budget / 8 / BLOCKS).max(1);
        let buffer = budget.saturating_sub(block_bytes * BLOCKS) / 2;
        // Of an id of 24 bytes, record and entry are as five to three.
        let members = (buffer * 3 / 8 / size_of::<Entry>()).max(1);
        let record_bytes = buffer.saturating_sub(members * size_of::<Entry>());
        Self {
            record_bytes: record_bytes.min(u32::MAX as usize),
            members,
            block_bytes,
            at_once: BLOCKS - 1,
        }
    }

    /// How many runs are merged at once whose longest block has so many bytes: a record that is longer than a block is one,
    /// and each run may have one of those in memory.
    fn at_once(&self, longest: usize) -> usize {
        let blocks = self.block_bytes * BLOCKS / longest.max(self.block_bytes);
        blocks.saturating_sub(1).clamp(2, self.at_once)
    }

    /// Makes room in a block for a first record, which may be longer than a block is.
    fn empty(&self, block: &mut Vec<u8>, length: usize) {
        let bytes = length.max(self.block_bytes);
        block.clear();
        block.shrink_to(bytes);
        block.reserve_exact(bytes);
    }

    fn has_room(&self, block: &[u8], record: usize) -> bool {
        block.is_empty() || block.len() + record <= self.block_bytes
    }
}
