//! What goes in one call: the chunk of a large run, or small ones of several.

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

/// A parcel as lines, those of one chunk after those of another. Positions are those of its lines.
pub(super) struct Load {
    pub(super) streams: Vec<StreamName>,
    pub(super) meters: Meters,
    parts: Vec<Part>,
    /// Lines that are dead already, or too long.
    is_out: Vec<bool>,
}

/// The lines of one chunk.
struct Part {
    run: usize,
    chunk: Chunk,
    lines: Lines,
    from: usize,
}

impl Load {
    pub(super) fn render(parcel: Parcel, runs: &[Errand]) -> Result<Self, SnapshotError> {
        let mut load = Self::new(runs[parcel.chunks[0].0].run.streams.clone());
        for (run, chunk) in parcel.chunks {
            let lines = render(&runs[run], &chunk)?;
            load.push(run, &runs[run], chunk, lines);
        }
        Ok(load)
    }

    pub(super) fn new(streams: Vec<StreamName>) -> Self {
        Self {
            streams,
            meters: Meters::default(),
            parts: Vec::new(),
            is_out: Vec::new(),
        }
    }

    /// Adds the lines of a chunk.
    pub(super) fn push(&mut self, run: usize, errand: &Errand, chunk: Chunk, lines: Lines) {
        let from = self.is_out.len();
        self.is_out.resize(from + chunk.count, false);
        let too_long = lines.too_long().map(|(line, _)| line);
        for line in too_long.chain(chunk.dead.iter().copied()) {
            self.is_out[from + line] = true;
        }
        self.meters.add(chunk.count, &errand.meter);
        self.parts.push(Part {
            run,
            from,
            chunk,
            lines,
        });
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
        let mut accepted = vec![false; self.is_out.len()];
        for Part { chunk, from, .. } in &self.parts {
            if let Some(before) = chunk.accepted.get(stream) {
                accepted[*from..from + chunk.count].copy_from_slice(before);
            }
        }
        accepted
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
        let parts = self.parts.iter().filter(move |part| {
            let mut lines = part.from..part.from + part.chunk.count;
            lines.any(is_left)
        });
        parts.map(|part| part.run)
    }

    /// The lines that no record can hold, and that were not known before.
    pub(super) fn too_long(&self) -> Vec<Dead> {
        let mut dead = Vec::new();
        for part in &self.parts {
            let lines = part.lines.too_long();
            let new = lines.filter(|(line, _)| !part.chunk.dead.contains(line));
            dead.extend(new.map(|(line, bytes)| Dead {
                position: part.from + line,
                reason: format!(
                    "the record is {bytes} bytes, over the limit of {MAX_RECORD_BYTES}"
                ),
                stream: None,
                doubtful: Vec::new(),
            }));
        }
        dead
    }

    /// What became of each chunk: which lines each stream has accepted by now, and which are newly dead.
    pub(super) fn settle(
        self,
        accepted: &[Vec<bool>],
        mut dead: Vec<Dead>,
    ) -> Vec<(usize, Settled)> {
        let settle = |part: Part| {
            let lines = part.from..part.from + part.chunk.count;
            let own = dead.extract_if(.., |dead| lines.contains(&dead.position));
            let own = own.map(|dead| Dead {
                position: dead.position - part.from,
                ..dead
            });
            let settled = Settled {
                chunk: part.chunk,
                dead: own.collect(),
                accepted: accepted
                    .iter()
                    .map(|stream| stream[lines.clone()].to_vec())
                    .collect(),
            };
            (part.run, settled)
        };
        self.parts.into_iter().map(settle).collect()
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
