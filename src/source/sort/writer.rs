//! Sorts full buffers and writes them as runs, on a thread of its own.

use std::cmp::Reverse;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::buffer::{Buffer, Ordered};
use super::merge::Sorted;
use super::record;
use super::run::{Ends, Run};
use super::{Shares, SortError};
use crate::diff::Members as _;
use crate::source::Interrupt;

/// The thread, and two buffers that go back and forth.
pub(super) struct Writer {
    full: SyncSender<Buffer>,
    empty: Receiver<Buffer>,
    /// Until it has said how it ended.
    thread: Option<JoinHandle<Result<Runs, SortError>>>,
}

impl Writer {
    /// Writes to these runs.
    pub(super) fn start(runs: Runs) -> Self {
        let (full, to_write) = sync_channel(1);
        let (written, empty) = sync_channel(1);
        let thread = thread::spawn(move || write_all(runs, &to_write, &written));
        Self {
            full,
            empty,
            thread: Some(thread),
        }
    }

    /// Takes a full buffer, and leaves an empty one as soon as there is one.
    pub(super) fn exchange(&mut self, buffer: &mut Buffer) -> Result<(), SortError> {
        let Ok(empty) = self.empty.recv() else {
            return Err(self.failure());
        };
        let full = std::mem::replace(buffer, empty);
        self.full.send(full).map_err(|_| self.failure())
    }

    /// When all is written.
    pub(super) fn finish(mut self) -> Result<Runs, SortError> {
        let thread = self.thread.take();
        drop(self);
        join(thread)
    }

    fn failure(&mut self) -> SortError {
        match join(self.thread.take()) {
            Err(error) => error,
            Ok(_) => unreachable!("it goes on for as long as there are buffers"),
        }
    }
}

/// Until nobody has more.
fn write_all(
    mut runs: Runs,
    full: &Receiver<Buffer>,
    empty: &SyncSender<Buffer>,
) -> Result<Runs, SortError> {
    let mut next = Buffer::new(runs.shares);
    // Nobody takes it at the end.
    while empty.send(next).is_ok()
        && let Ok(buffer) = full.recv()
    {
        let mut ordered = buffer.sort();
        runs.add(&mut ordered)?;
        next = ordered.into_empty();
    }
    Ok(runs)
}

fn join(thread: Option<JoinHandle<Result<Runs, SortError>>>) -> Result<Runs, SortError> {
    let thread = thread.expect("a sorter that has failed is not used again");
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs in temporary files, the older ones merged oftener than the younger ones.
pub(super) struct Runs {
    folder: PathBuf,
    shares: Shares,
    interrupt: Interrupt,
    pub(super) runs: Vec<Run>,
    block: Vec<u8>,
}

impl Runs {
    /// In temporary files in this folder.
    pub(super) fn new(folder: PathBuf, shares: Shares, interrupt: Interrupt) -> Self {
        Self {
            folder,
            shares,
            interrupt,
            runs: Vec::new(),
            block: Vec::new(),
        }
    }

    /// Adds members to the last run where they go on with it, or as another one.
    fn add(&mut self, ordered: &mut Ordered) -> Result<(), SortError> {
        let Some(ends) = ordered.ends() else {
            return Ok(());
        };
        let run = match self.runs.pop_if(|run| run.goes_on_with(&ends.first)) {
            Some(run) => run,
            None => {
                self.make_room()?;
                self.create(0)?
            }
        };
        let run = self.runs.push_mut(run);
        run.go_on(ends);
        while ordered.fill(&mut self.block) {
            let written = run.write(&self.block);
            written.map_err(|cause| unwritable(&self.folder, cause))?;
        }
        Ok(())
    }

    /// How many of them are merged at once, with others whose longest record is this.
    fn at_once(&self, longest: usize) -> usize {
        let longest = self.runs.iter().map(Run::longest).fold(longest, usize::max);
        self.shares.at_once(longest)
    }

    fn create(&self, passes: u32) -> Result<Run, SortError> {
        let run = Run::create(&self.folder, self.shares, passes);
        run.map_err(|cause| unwritable(&self.folder, cause))
    }

    /// Merges runs that were merged as often as each other, once there are as many as go at once: open files stay few, and
    /// a member is written as often as that takes.
    fn make_room(&mut self) -> Result<(), SortError> {
        while let Some(from) = self.runs.len().checked_sub(self.at_once(0))
            && self.runs[from].passes == self.runs[self.runs.len() - 1].passes
        {
            self.merge_from(from)?;
        }
        Ok(())
    }

    /// Makes the youngest runs one.
    fn merge_from(&mut self, from: usize) -> Result<(), SortError> {
        let runs = self.runs.split_off(from);
        let mut merged = self.create(runs[0].passes + 1)?;
        if let Some(ends) = Ends::of_all(runs.iter().filter_map(Run::ends)) {
            merged.go_on(ends);
        }
        let members = Sorted::of(runs, None, self.shares)?;
        self.write(members, &mut merged)?;
        self.runs.push(merged);
        Ok(())
    }

    fn write(&mut self, mut members: Sorted, run: &mut Run) -> Result<(), SortError> {
        let Self {
            folder,
            shares,
            interrupt,
            block,
            ..
        } = self;
        shares.empty(block, 0);
        while members.advance()? {
            let member = members.current();
            let length = record::length(&member);
            if !shares.has_room(block, length) {
                if interrupt.is_requested() {
                    return Err(SortError::Interrupted);
                }
                let written = run.write(block);
                written.map_err(|cause| unwritable(folder, cause))?;
                shares.empty(block, length);
            }
            record::write(&member, block);
        }
        let written = run.write(block);
        written.map_err(|cause| unwritable(folder, cause))
    }

    /// All of them, and these members.
    pub(super) fn merge_with(mut self, last: Ordered) -> Result<Sorted, SortError> {
        let at_once = self.at_once(last.longest());
        while let Some(excess) = self.runs.len().checked_sub(at_once)
            && excess > 0
        {
            // Whatever is written again should be short.
            self.runs.sort_by_key(|run| Reverse(run.blocks()));
            let count = at_once.min(excess + 1);
            self.merge_from(self.runs.len() - count)?;
        }
        Sorted::of(self.runs, Some(last), self.shares)
    }
}

fn unwritable(folder: &Path, cause: io::Error) -> SortError {
    SortError::Unwritable {
        folder: folder.to_owned(),
        cause,
    }
}
