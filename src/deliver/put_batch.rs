//! What goes in one call: the chunk of a large run, or small chunks of several runs.

use std::ops::Range;

use super::RunContext;
use crate::batch::{LineBuffer, Lines, MAX_CALL_BYTES, MAX_CALL_RECORDS, MAX_RECORD_BYTES, Record};
use crate::firehose::{Delivery, Meters};
use crate::snapshot::{Chunk, Dead, Settled, SnapshotError, chunk};

/// Chunks that go to a stream together.
pub(super) struct PutBatch {
    /// With the positions of their runs. There is at most one of each run.
    chunks: Vec<(usize, Chunk)>,
    lines: usize,
    bytes: usize,
}

/// About as many bytes as a line has beside what the journal holds of it.
const LINE_BYTES: usize = 560;

fn bytes(chunk: &Chunk) -> usize {
    chunk.entries.len() + chunk.count * LINE_BYTES
}

impl PutBatch {
    fn has_room(&self, run: usize, chunk: &Chunk) -> bool {
        self.lines + chunk.count <= MAX_CALL_RECORDS
            && self.bytes + bytes(chunk) <= MAX_CALL_BYTES
            && self.chunks.iter().all(|(other, _)| *other != run)
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|(_, chunk)| chunk)
    }
}

/// Puts each chunk into the first batch that has room for it.
pub(super) fn batches(chunks: Vec<(usize, Chunk)>) -> Vec<PutBatch> {
    let mut batches: Vec<PutBatch> = Vec::new();
    for (run, chunk) in chunks {
        let (lines, bytes) = (chunk.count, bytes(&chunk));
        let batch = match batches.iter_mut().find(|batch| batch.has_room(run, &chunk)) {
            Some(batch) => batch,
            None => batches.push_mut(PutBatch {
                chunks: Vec::new(),
                lines: 0,
                bytes: 0,
            }),
        };
        batch.lines += lines;
        batch.bytes += bytes;
        batch.chunks.push((run, chunk));
    }
    batches
}

/// The lines of a batch, those of one run after those of another, and what is known of each.
pub(super) struct Rendered {
    parts: Vec<Part>,
    pub(super) meters: Meters,
    /// Which lines the stream has accepted.
    accepted: Vec<bool>,
    /// Which lines it may have accepted without an answer.
    maybe_accepted: Vec<bool>,
    /// Lines that an earlier attempt found dead.
    was_dead: Vec<bool>,
    /// These, and those that are too long.
    is_out: Vec<bool>,
}

/// The lines of one chunk.
struct Part {
    run: usize,
    /// Empty once they are not needed any more.
    lines: Lines,
    positions: Range<usize>,
}

impl Rendered {
    pub(super) fn new(batch: &PutBatch, runs: &[RunContext]) -> Result<Self, SnapshotError> {
        let mut rendered = Self {
            parts: Vec::new(),
            meters: Meters::default(),
            accepted: Vec::new(),
            maybe_accepted: Vec::new(),
            was_dead: Vec::new(),
            is_out: Vec::new(),
        };
        for (run, chunk) in &batch.chunks {
            rendered.push(*run, &runs[*run], chunk)?;
        }
        Ok(rendered)
    }

    fn push(
        &mut self,
        run: usize,
        context: &RunContext,
        chunk: &Chunk,
    ) -> Result<(), SnapshotError> {
        let (lines, from) = (render(context, chunk)?, self.accepted.len());
        self.meters.add(lines.count(), &context.meter);
        let end = from + lines.count();
        let extend = |flags: &mut Vec<bool>, known: &[bool]| {
            flags.extend(known);
            flags.resize(end, false);
        };
        extend(&mut self.accepted, &chunk.accepted);
        extend(&mut self.maybe_accepted, &chunk.maybe_accepted);
        extend(&mut self.was_dead, &[]);
        extend(&mut self.is_out, &[]);
        for line in &chunk.dead {
            self.was_dead[from + line] = true;
            self.is_out[from + line] = true;
        }
        for (line, _) in lines.too_long() {
            self.is_out[from + line] = true;
        }
        let positions = from..end;
        self.parts.push(Part {
            run,
            lines,
            positions,
        });
        Ok(())
    }

    /// What is yet to be accepted. A record holds lines of one run only.
    pub(super) fn records(&self, pack: bool) -> Vec<Record> {
        let mut records = Vec::new();
        for Part {
            lines, positions, ..
        } in &self.parts
        {
            let from = positions.start;
            let is_wanted = |line: usize| !self.accepted[from + line] && !self.is_out[from + line];
            let own = lines.records(pack, is_wanted).into_iter();
            records.extend(own.map(|record| Record {
                lines: from + record.lines.start..from + record.lines.end,
                ..record
            }));
        }
        records
    }

    /// Notes what the stream has accepted, what it may have, and what it never will.
    pub(super) fn note(&mut self, delivery: &Delivery) {
        for record in &delivery.delivered {
            self.accepted[record.lines.clone()].fill(true);
        }
        for position in &delivery.maybe_accepted {
            self.maybe_accepted[*position] = true;
        }
        for dead in &delivery.dead {
            self.is_out[dead.record.lines.start] = true;
        }
    }

    /// Gives back the memory of lines that are not sent from here any more.
    pub(super) fn forget_lines(&mut self) {
        for part in &mut self.parts {
            part.lines = LineBuffer::with_capacity(0).finish();
        }
    }

    /// Runs of which something is not accepted.
    pub(super) fn left_by(&self) -> impl Iterator<Item = usize> {
        let is_left = |line: usize| !self.accepted[line] && !self.is_out[line];
        let left = self
            .parts
            .iter()
            .filter(move |part| part.positions.clone().any(is_left));
        left.map(|part| part.run)
    }

    /// The lines that no record can hold, and that were not known before.
    pub(super) fn too_long(&self) -> Vec<Dead> {
        let mut dead = Vec::new();
        for Part {
            lines, positions, ..
        } in &self.parts
        {
            let from = positions.start;
            let new = lines
                .too_long()
                .filter(|(line, _)| !self.was_dead[from + line]);
            dead.extend(new.map(|(line, bytes)| Dead {
                position: from + line,
                code: None,
                reason: format!(
                    "the record is {bytes} bytes, over the limit of {MAX_RECORD_BYTES}"
                ),
            }));
        }
        dead
    }

    /// What became of each chunk by now, with the dead lines that are new. The chunks then stand as they are remembered.
    pub(super) fn settle(
        &self,
        batch: &mut PutBatch,
        mut dead: Vec<Dead>,
    ) -> Vec<(usize, Settled)> {
        let mut from = 0;
        let settle = |(run, chunk): &mut (usize, Chunk)| {
            let lines = from..from + chunk.count;
            from = lines.end;
            let own = dead.extract_if(.., |dead| lines.contains(&dead.position));
            let own = own.map(|dead| Dead {
                position: dead.position - lines.start,
                ..dead
            });
            let settled = Settled {
                dead: own.collect(),
                accepted: self.accepted[lines.clone()].to_vec(),
                maybe_accepted: self.maybe_accepted[lines].to_vec(),
                chunk: chunk.clone(),
            };
            chunk.accepted.clone_from(&settled.accepted);
            chunk.maybe_accepted.clone_from(&settled.maybe_accepted);
            chunk
                .dead
                .extend(settled.dead.iter().map(|dead| dead.position));
            (*run, settled)
        };
        batch.chunks.iter_mut().map(settle).collect()
    }
}

fn render(context: &RunContext, chunk: &Chunk) -> Result<Lines, SnapshotError> {
    let unreadable = |_| SnapshotError::UnreadableChunk {
        run: context.run.number,
        seq: chunk.seq,
    };
    let mut lines = LineBuffer::with_capacity(bytes(chunk));
    match &context.identify {
        Some(identify) => {
            for change in chunk::changes(&chunk.entries) {
                let change = change.map_err(unreadable)?;
                lines.push(|bytes| identify.render(&change, bytes));
            }
        }
        None => {
            for line in chunk::calls(&chunk.entries) {
                let line = line.map_err(unreadable)?;
                lines.push(|bytes| bytes.extend(line));
            }
        }
    }
    let lines = lines.finish();
    if lines.count() != chunk.count {
        return Err(unreadable(chunk::Unreadable));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_fill_a_call() {
        let check = |chunks: &[(usize, usize, usize)], expected: &[&[usize]]| {
            let chunks = chunks.iter().map(|(run, count, bytes)| {
                let chunk = Chunk {
                    seq: 0,
                    count: *count,
                    entries: vec![0; *bytes],
                    accepted: Vec::new(),
                    maybe_accepted: Vec::new(),
                    dead: Vec::new(),
                };
                (*run, chunk)
            });
            let found: Vec<Vec<usize>> = batches(chunks.collect())
                .iter()
                .map(|batch| batch.chunks.iter().map(|(run, _)| *run).collect())
                .collect();
            assert_eq!(found, expected);
        };
        check(&[(0, 1, 9), (1, 499, 9), (2, 1, 9)], &[&[0, 1], &[2]]);
        // Into the first that has room, and not only into the last.
        check(&[(0, 300, 9), (1, 300, 9), (2, 200, 9)], &[&[0, 2], &[1]]);
        // There is one chunk of a run: its counts are those that it would have alone.
        check(&[(0, 1, 9), (0, 1, 9)], &[&[0], &[0]]);
        check(&[(0, 1, 4 << 20), (1, 1, 9)], &[&[0], &[1]]);
    }
}
