//! What goes in one call: the chunk of a large run, or small ones of several.

use std::ops::Range;

use super::Errand;
use crate::batch::{LineBuffer, Lines, MAX_CALL_BYTES, MAX_CALL_RECORDS, MAX_RECORD_BYTES, Record};
use crate::firehose::Meters;
use crate::mapping::StreamName;
use crate::snapshot::{Chunk, Dead, Settled, SnapshotError, chunk};

/// Chunks that go to the same streams together.
pub(super) struct Parcel {
    /// With the positions of their runs, of which there is one of each at most.
    chunks: Vec<(usize, Chunk)>,
    lines: usize,
    bytes: usize,
}

/// About as many bytes as a line has beside what the journal holds of it.
const LINE_BYTES: usize = 560;

fn bytes(chunk: &Chunk) -> usize {
    chunk.entries.len() + chunk.count * LINE_BYTES
}

impl Parcel {
    fn has_room(&self, run: usize, chunk: &Chunk) -> bool {
        self.lines + chunk.count <= MAX_CALL_RECORDS
            && self.bytes + bytes(chunk) <= MAX_CALL_BYTES
            && self.chunks.iter().all(|(other, _)| *other != run)
    }
}

/// Puts each chunk into the first parcel that has room for it, and whose chunks go to the same streams.
pub(super) fn parcels<'r>(
    chunks: Vec<(usize, Chunk)>,
    streams: impl Fn(usize) -> &'r [StreamName],
) -> Vec<Parcel> {
    let mut parcels: Vec<Parcel> = Vec::new();
    for (run, chunk) in chunks {
        let fits = |parcel: &&mut Parcel| {
            parcel.has_room(run, &chunk) && streams(parcel.chunks[0].0) == streams(run)
        };
        let (lines, bytes) = (chunk.count, bytes(&chunk));
        let parcel = match parcels.iter_mut().find(fits) {
            Some(parcel) => parcel,
            None => parcels.push_mut(Parcel {
                chunks: Vec::new(),
                lines: 0,
                bytes: 0,
            }),
        };
        parcel.lines += lines;
        parcel.bytes += bytes;
        parcel.chunks.push((run, chunk));
    }
    parcels
}

/// What became of the lines of a load.
pub(super) struct Answer {
    /// For each stream, which lines it has accepted by now.
    pub(super) accepted: Vec<Vec<bool>>,
    /// Lines that can never be delivered, and of which that was not known before.
    pub(super) dead: Vec<Dead>,
}

impl Parcel {
    /// What became of each chunk: which entries each stream has accepted by now, and which are newly dead.
    pub(super) fn settle(self, answer: Answer) -> Vec<(usize, Settled)> {
        let Answer { accepted, mut dead } = answer;
        let mut from = 0;
        let settle = |(run, chunk): (usize, Chunk)| {
            let lines = from..from + chunk.count;
            from = lines.end;
            let own = dead.extract_if(.., |dead| lines.contains(&dead.position));
            let own = own.map(|dead| Dead {
                position: dead.position - lines.start,
                ..dead
            });
            let settled = Settled {
                dead: own.collect(),
                accepted: accepted
                    .iter()
                    .map(|stream| stream[lines.clone()].to_vec())
                    .collect(),
                chunk,
            };
            (run, settled)
        };
        self.chunks.into_iter().map(settle).collect()
    }
}

/// Lines that go to the same streams, those of one run after those of another.
pub(super) struct Load {
    pub(super) streams: Vec<StreamName>,
    pub(super) meters: Meters,
    parts: Vec<Part>,
    /// For each stream, which lines it accepted before.
    accepted: Vec<Vec<bool>>,
    /// Lines that an earlier attempt found dead.
    dead: Vec<bool>,
    /// These, and those that are too long.
    is_out: Vec<bool>,
}

/// The lines of one run, or of one of its chunks.
struct Part {
    run: usize,
    lines: Lines,
    from: usize,
}

impl Part {
    fn positions(&self) -> Range<usize> {
        self.from..self.from + self.lines.count()
    }
}

impl Load {
    /// The lines of a parcel, in its order.
    pub(super) fn render(parcel: &Parcel, runs: &[Errand]) -> Result<Self, SnapshotError> {
        let (first, _) = &parcel.chunks[0];
        let mut load = Self::new(runs[*first].run.streams.clone());
        for (run, chunk) in &parcel.chunks {
            let lines = render(&runs[*run], chunk)?;
            let from = load.dead.len();
            load.push(*run, &runs[*run], lines);
            for line in &chunk.dead {
                load.dead[from + line] = true;
                load.is_out[from + line] = true;
            }
            for (accepted, before) in load.accepted.iter_mut().zip(&chunk.accepted) {
                accepted[from..].copy_from_slice(before);
            }
        }
        Ok(load)
    }

    pub(super) fn new(streams: Vec<StreamName>) -> Self {
        Self {
            accepted: vec![Vec::new(); streams.len()],
            streams,
            meters: Meters::default(),
            parts: Vec::new(),
            dead: Vec::new(),
            is_out: Vec::new(),
        }
    }

    /// Adds lines of which no stream has any yet.
    pub(super) fn push(&mut self, run: usize, errand: &Errand, lines: Lines) {
        let from = self.dead.len();
        let part = Part { run, lines, from };
        let end = part.positions().end;
        self.dead.resize(end, false);
        self.is_out.resize(end, false);
        for accepted in &mut self.accepted {
            accepted.resize(end, false);
        }
        for (line, _) in part.lines.too_long() {
            self.is_out[from + line] = true;
        }
        self.meters.add(part.lines.count(), &errand.meter);
        self.parts.push(part);
    }

    fn part_of(&self, position: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.from <= position);
        &self.parts[after - 1]
    }

    /// Whose line it is.
    pub(super) fn run_of(&self, position: usize) -> usize {
        self.part_of(position).run
    }

    /// What a stream accepted before.
    pub(super) fn accepted(&self, stream: usize) -> Vec<bool> {
        self.accepted[stream].clone()
    }

    /// What is yet to be accepted. A record holds lines of one run only.
    pub(super) fn records(&self, pack: bool, accepted: &[bool]) -> Vec<Record> {
        let mut records = Vec::new();
        for Part { lines, from, .. } in &self.parts {
            let is_wanted = |line: usize| !accepted[from + line] && !self.is_out[from + line];
            records.extend(
                lines
                    .records(pack, is_wanted)
                    .into_iter()
                    .map(|record| Record {
                        lines: from + record.lines.start..from + record.lines.end,
                        ..record
                    }),
            );
        }
        records
    }

    /// Runs of which something is not accepted.
    pub(super) fn left_by(&self, accepted: &[bool]) -> impl Iterator<Item = usize> {
        let is_left = |line: usize| !accepted[line] && !self.is_out[line];
        let parts = self.parts.iter();
        let left = parts.filter(move |part| part.positions().any(is_left));
        left.map(|part| part.run)
    }

    /// The lines that no record can hold, and that were not known before.
    pub(super) fn too_long(&self) -> Vec<Dead> {
        let mut dead = Vec::new();
        for Part { lines, from, .. } in &self.parts {
            let new = lines.too_long().filter(|(line, _)| !self.dead[from + line]);
            dead.extend(new.map(|(line, bytes)| Dead {
                position: from + line,
                reason: format!(
                    "the record is {bytes} bytes, over the limit of {MAX_RECORD_BYTES}"
                ),
                stream: None,
                doubtful: Vec::new(),
            }));
        }
        dead
    }
}

fn render(errand: &Errand, chunk: &Chunk) -> Result<Lines, SnapshotError> {
    let unreadable = |_| SnapshotError::UnreadableChunk {
        run: errand.run.number,
        seq: chunk.seq,
    };
    let mut lines = LineBuffer::with_capacity(bytes(chunk));
    match &errand.identify {
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
    fn small_chunks_fill_a_call_where_they_go_to_the_same_streams() {
        let [one, other] = ["one", "other"].map(|name| [StreamName::parse(name).unwrap()]);
        let check = |chunks: &[(usize, usize, usize)], expected: &[&[usize]]| {
            let chunks = chunks.iter().map(|(run, count, bytes)| {
                let chunk = Chunk {
                    seq: 0,
                    count: *count,
                    entries: vec![0; *bytes],
                    accepted: Vec::new(),
                    dead: Vec::new(),
                };
                (*run, chunk)
            });
            let streams = |run| if run < 10 { &one[..] } else { &other[..] };
            let found: Vec<Vec<usize>> = parcels(chunks.collect(), streams)
                .iter()
                .map(|parcel| parcel.chunks.iter().map(|(run, _)| *run).collect())
                .collect();
            assert_eq!(found, expected);
        };
        check(&[(0, 1, 9), (1, 499, 9), (2, 1, 9)], &[&[0, 1], &[2]]);
        // Into the first that has room, and not only into the last.
        check(&[(0, 300, 9), (1, 300, 9), (2, 200, 9)], &[&[0, 2], &[1]]);
        check(&[(0, 1, 9), (10, 1, 9), (1, 1, 9)], &[&[0, 1], &[10]]);
        // Of one run there is one chunk: its counts are those that it would have alone.
        check(&[(0, 1, 9), (0, 1, 9)], &[&[0], &[0]]);
        check(&[(0, 1, 4 << 20), (1, 1, 9)], &[&[0], &[1]]);
    }
}
