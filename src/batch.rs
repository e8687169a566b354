//! Lines as Firehose takes them: records within AWS's limits, and calls of as many records as one may carry.
//!
//! Limits: <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>. They count bytes before base64.

use std::ops::Range;

use bytes::Bytes;

/// A PutRecordBatch takes so many records.
pub const MAX_CALL_RECORDS: usize = 500;
/// A PutRecordBatch takes so many bytes.
pub const MAX_CALL_BYTES: usize = 4 << 20;
/// A record takes 1,000 KiB.
pub const MAX_RECORD_BYTES: usize = 1_024_000;
/// A record may hold so many lines, or de-aggregation does not happen.
/// <https://docs.aws.amazon.com/firehose/latest/dev/dynamic-partitioning-multirecord-deaggergation.html>
pub const MAX_RECORD_LINES: usize = 500;

/// What Firehose charges for a record: its size rounded up to 5 KiB.
/// <https://aws.amazon.com/firehose/pricing/>
pub const fn billed_bytes(record_bytes: usize) -> u64 {
    const UNIT: u64 = 5 << 10;
    (record_bytes as u64).div_ceil(UNIT) * UNIT
}

/// Lines as they are written, one after another.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl LineBuffer {
    /// Room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            ends: Vec::new(),
        }
    }

    /// Appends one line, which `render` writes with its newline.
    pub fn push(&mut self, render: impl FnOnce(&mut Vec<u8>)) {
        render(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    pub fn finish(self) -> Lines {
        Lines {
            bytes: self.bytes.into(),
            ends: self.ends,
        }
    }
}

/// The lines of a chunk.
#[derive(Debug)]
pub struct Lines {
    bytes: Bytes,
    ends: Vec<usize>,
}

impl Lines {
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    fn bytes_of(&self, lines: &Range<usize>) -> Range<usize> {
        let before = lines.start.checked_sub(1);
        let start = before.map_or(0, |before| self.ends[before]);
        start..self.ends[lines.end - 1]
    }

    fn size(&self, line: usize) -> usize {
        self.bytes_of(&(line..line + 1)).len()
    }

    /// Whether no record can hold a line.
    pub fn is_too_long(&self, line: usize) -> bool {
        self.size(line) > MAX_RECORD_BYTES
    }

    /// The lines of which that is so, with their sizes.
    pub fn too_long(&self) -> impl Iterator<Item = (usize, usize)> {
        let lines = (0..self.count()).filter(|line| self.is_too_long(*line));
        lines.map(|line| (line, self.size(line)))
    }

    /// The records for the lines that are `wanted`: one for each line, or with `pack` the lines of each row in the
    /// records that are billed least. Nothing is copied.
    pub fn records(&self, pack: bool, wanted: impl Fn(usize) -> bool) -> Vec<Record> {
        let wanted: Vec<usize> = (0..self.count()).filter(|line| wanted(*line)).collect();
        let mut records = Vec::new();
        for row in wanted.chunk_by(|line, next| pack && line + 1 == *next) {
            let row = row[0]..row[0] + row.len();
            // What fits in one record is never billed less in two.
            if self.fits(&row) {
                records.push(self.record(row));
            } else {
                records.extend(self.cut(row).into_iter().map(|lines| self.record(lines)));
            }
        }
        records
    }

    fn record(&self, lines: Range<usize>) -> Record {
        Record {
            data: self.bytes.slice(self.bytes_of(&lines)),
            lines,
        }
    }

    /// Whether one record may hold a row of lines. What is too long by itself is for the caller not to want.
    fn fits(&self, row: &Range<usize>) -> bool {
        let is_within =
            || row.len() <= MAX_RECORD_LINES && self.bytes_of(row).len() <= MAX_RECORD_BYTES;
        row.len() == 1 || is_within()
    }

    /// Cuts a row that is too much for one record where the least is lost to rounding up, and of such ways into the
    /// fewest records.
    fn cut(&self, row: Range<usize>) -> Vec<Range<usize>> {
        // The best way to each line: what it is billed, in how many records, and where the last of them starts.
        let mut ways = vec![(0, 0, row.start)];
        for end in row.start + 1..=row.end {
            let from = |start: usize| {
                let (billed, records, _) = ways[start - row.start];
                let last = billed_bytes(self.bytes_of(&(start..end)).len());
                (billed + last, records + 1, start)
            };
            let starts = (row.start..end).rev();
            let best = starts
                .take_while(|start| self.fits(&(*start..end)))
                .map(from)
                .min_by_key(|(billed, records, _)| (*billed, *records));
            ways.push(best.expect("a line by itself fits"));
        }
        let mut cuts = Vec::new();
        let mut end = row.end;
        while end > row.start {
            let (.., start) = ways[end - row.start];
            cuts.push(start..end);
            end = start;
        }
        cuts.reverse();
        cuts
    }
}

/// What one call of Firehose delivers or refuses as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whole lines.
    pub data: Bytes,
    /// Which lines of the chunk they are.
    pub lines: Range<usize>,
}

impl Record {
    /// Half of the lines and the other half; `None` for a single line.
    pub fn halves(&self) -> Option<(Self, Self)> {
        if self.lines.len() < 2 {
            return None;
        }
        let middle = self.lines.len() / 2;
        let mut newlines = (0..self.data.len()).filter(|at| self.data[*at] == b'\n');
        // Each line ends with the only newline that it has.
        let end = newlines.nth(middle - 1)? + 1;
        let split = self.lines.start + middle;
        Some((
            Self {
                data: self.data.slice(..end),
                lines: self.lines.start..split,
            },
            Self {
                data: self.data.slice(end..),
                lines: split..self.lines.end,
            },
        ))
    }
}

/// Splits records into calls, in order: each of at most 500 records and 4 MiB.
pub fn calls(records: &[Record]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = records[start..]
            .iter()
            .take(MAX_CALL_RECORDS)
            .take_while(|record| {
                bytes += record.data.len();
                bytes <= MAX_CALL_BYTES
            });
        // A record is never longer than a call may be, so at least one fits.
        let end = start + fitting.count();
        let call = start..end;
        start = end;
        (!call.is_empty()).then_some(call)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lengths: &[usize]) -> Lines {
        let mut lines = LineBuffer::default();
        for (line, length) in lengths.iter().enumerate() {
            lines.push(|bytes| bytes.extend(vec![b'a' + (line % 26) as u8; *length]));
        }
        lines.finish()
    }

    fn sizes(lengths: &[usize], pack: bool) -> Vec<(Range<usize>, usize)> {
        let records = lines(lengths).records(pack, |_| true);
        records
            .into_iter()
            .map(|record| (record.lines, record.data.len()))
            .collect()
    }

    #[test]
    fn a_line_is_a_record_unless_they_are_packed() {
        assert_eq!(sizes(&[3, 2], false), [(0..1, 3), (1..2, 2)]);
        assert_eq!(sizes(&[3, 2], true), [(0..2, 5)]);
    }

    #[test]
    fn a_packed_record_stays_within_its_limits() {
        assert_eq!(sizes(&[1; 501], true), [(0..500, 500), (500..501, 1)]);
        assert_eq!(
            sizes(&[1_000_000, 24_000, 1], true),
            [(0..2, 1_024_000), (2..3, 1)]
        );
    }

    #[test]
    fn what_is_too_much_for_one_record_is_cut_where_rounding_up_loses_least() {
        // 196 units and 5, where filling the first record would make 197 and 5 of them.
        assert_eq!(
            sizes(&[196 * 5_120, 100, 5 * 5_120 - 100], true),
            [(0..1, 1_003_520), (1..3, 25_600)]
        );
        // Where it loses nothing, the first record takes what it can.
        assert_eq!(
            sizes(&[512_000, 512_000, 512_000], true),
            [(0..2, 1_024_000), (2..3, 512_000)]
        );
    }

    #[test]
    fn lines_that_are_not_wanted_are_left_out_and_never_bridged() {
        let records = lines(&[1, 1, 1, 1]).records(true, |line| line != 1);
        let found: Vec<_> = records
            .iter()
            .map(|record| (record.lines.clone(), record.data.as_ref()))
            .collect();
        assert_eq!(found, [(0..1, b"a".as_slice()), (2..4, b"cd")]);
    }

    #[test]
    fn a_record_is_halved_between_lines() {
        let record = Record {
            data: Bytes::from("a\nbb\nccc\n"),
            lines: 4..7,
        };
        let (first, second) = record.halves().unwrap();
        assert_eq!(
            (&*first.data, first.lines.clone()),
            (b"a\n".as_slice(), 4..5)
        );
        assert_eq!(
            (&*second.data, &second.lines),
            (b"bb\nccc\n".as_slice(), &(5..7))
        );
        assert_eq!(first.halves(), None);
    }

    #[test]
    fn a_call_takes_500_records_and_4_mib() {
        let check = |lengths: &[usize], expected: &[Range<usize>]| {
            let records = lines(lengths).records(false, |_| true);
            assert_eq!(calls(&records).collect::<Vec<_>>(), expected);
        };
        check(&[], &[]);
        check(&[1; 1001], &[0..500, 500..1000, 1000..1001]);
        check(&[1_024_000; 5], &[0..4, 4..5]);
    }

    #[test]
    fn a_line_over_the_limit_is_named_and_one_at_the_limit_is_not() {
        let lines = lines(&[MAX_RECORD_BYTES, MAX_RECORD_BYTES + 1]);
        assert_eq!(
            lines.too_long().collect::<Vec<_>>(),
            [(1, MAX_RECORD_BYTES + 1)]
        );
    }

    #[test]
    fn a_record_is_billed_in_units_of_5_kib() {
        assert_eq!(
            [billed_bytes(1), billed_bytes(5120), billed_bytes(5121)],
            [5120, 5120, 10_240]
        );
    }
}

#[cfg(test)]
mod laws {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    /// Mostly short lines, a few at and near the limit of a record.
    fn lengths() -> impl Strategy<Value = Vec<usize>> {
        let length = prop_oneof![
            60 => 1..600_usize,
            8 => 2_000..20_000_usize,
            1 => MAX_RECORD_BYTES - 600..=MAX_RECORD_BYTES,
        ];
        vec(length, 0..1_100)
    }

    /// Lines of these lengths that tell from each other.
    fn lines(lengths: &[usize]) -> Lines {
        let mut lines = LineBuffer::default();
        for (line, length) in lengths.iter().enumerate() {
            let [low, high, ..] = (line as u32).to_le_bytes();
            lines.push(|bytes| {
                bytes.resize(bytes.len() + length, low);
                *bytes.last_mut().unwrap() = high;
            });
        }
        lines.finish()
    }

    fn billed(records: impl IntoIterator<Item = usize>) -> u64 {
        records.into_iter().map(billed_bytes).sum()
    }

    /// The sizes of the records when each takes as many lines as fit.
    fn filled_up(lengths: &[usize], mask: &[bool]) -> Vec<usize> {
        let mut records: Vec<(usize, usize)> = Vec::new();
        for (line, length) in lengths.iter().enumerate().filter(|(line, _)| mask[*line]) {
            match records.last_mut() {
                Some((bytes, lines))
                    if line > 0
                        && mask[line - 1]
                        && *lines < 500
                        && *bytes + length <= 1_024_000 =>
                {
                    (*bytes, *lines) = (*bytes + length, *lines + 1);
                }
                _ => records.push((*length, 1)),
            }
        }
        records.into_iter().map(|(bytes, _)| bytes).collect()
    }

    /// What the records are billed, and how many they are, when lines are cut after those whose bit is set.
    fn cut_by(bits: u32, lengths: &[usize]) -> Option<(u64, usize)> {
        let mut records = vec![0];
        for (line, length) in lengths.iter().enumerate() {
            *records.last_mut().unwrap() += length;
            if bits & (1 << line) != 0 && line + 1 < lengths.len() {
                records.push(0);
            }
        }
        let fits = records.iter().all(|record| *record <= 1_024_000);
        let count = records.len();
        fits.then(|| (billed(records), count))
    }

    proptest! {
        #![proptest_config(cases(96))]

        #[test]
        fn no_other_way_to_pack_is_billed_less_or_as_much_in_fewer_records(
            lengths in vec(prop_oneof![1..1_024_000_usize, 150_000..160_000_usize, 1..6_000_usize], 1..10),
        ) {
            let records = lines(&lengths).records(true, |_| true);
            let count = records.len();
            let found = (billed(records.iter().map(|record| record.data.len())), count);
            let best = (0..1 << (lengths.len() - 1)).filter_map(|bits| cut_by(bits, &lengths)).min();
            prop_assert_eq!(Some(found), best);
        }

        #[test]
        fn every_wanted_line_goes_once_in_order_and_within_the_limits(
            lengths in lengths(),
            pack in any::<bool>(),
            mask in vec(prop::bool::weighted(0.9), 1_100),
        ) {
            let lines = lines(&lengths);
            let records = lines.records(pack, |line| mask[line]);
            let carried: Vec<usize> = records.iter().flat_map(|record| record.lines.clone()).collect();
            let wanted: Vec<usize> = (0..lengths.len()).filter(|line| mask[*line]).collect();
            prop_assert_eq!(carried, wanted);
            for record in &records {
                let whole = lines.bytes_of(&record.lines);
                prop_assert!(record.data == lines.bytes[whole]);
                prop_assert!(record.data.len() <= 1_024_000);
                let most = if pack { 500 } else { 1 };
                prop_assert!(record.lines.len() <= most);
            }
            // Two that could be one are none.
            let could_be_one = |pair: &[Record]| {
                pair[0].lines.end == pair[1].lines.start
                    && pair[0].lines.len() + pair[1].lines.len() <= 500
                    && pair[0].data.len() + pair[1].data.len() <= 1_024_000
            };
            prop_assert!(!pack || !records.windows(2).any(could_be_one));
            // Rounding up costs less than a unit a record, and cutting elsewhere never costs more than filling each up.
            let billed = billed(records.iter().map(|record| record.data.len()));
            let bytes: usize = records.iter().map(|record| record.data.len()).sum();
            prop_assert!(billed < bytes as u64 + 5_120 * records.len() as u64 || records.is_empty());
            prop_assert!(!pack || billed <= self::billed(filled_up(&lengths, &mask)));

            let calls: Vec<_> = calls(&records).collect();
            let in_calls: Vec<usize> = calls.iter().cloned().flatten().collect();
            prop_assert_eq!(in_calls, (0..records.len()).collect::<Vec<_>>());
            let bytes = |call: &Range<usize>| -> usize {
                records[call.clone()].iter().map(|record| record.data.len()).sum()
            };
            for call in &calls {
                prop_assert!((1..=500).contains(&call.len()) && bytes(call) <= 4 << 20);
            }
            for pair in calls.windows(2) {
                let next = records[pair[1].start].data.len();
                prop_assert!(pair[0].len() == 500 || bytes(&pair[0]) + next > 4 << 20);
            }
        }
    }
}
