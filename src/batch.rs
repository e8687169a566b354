//! Lines as Firehose takes them: records within AWS's limits, and calls of as many records as one may carry.
//!
//! Limits: <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>. They count bytes before base64.

use std::ops::Range;

use bytes::Bytes;

/// A PutRecordBatch takes so many records,
pub const MAX_CALL_RECORDS: usize = 500;
/// and so many bytes.
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

    fn range(&self, line: usize) -> Range<usize> {
        let start = line.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[line]
    }

    /// The lines that no record can hold, with their sizes.
    pub fn too_long(&self) -> impl Iterator<Item = (usize, usize)> {
        let sizes = (0..self.count()).map(|line| (line, self.range(line).len()));
        sizes.filter(|(_, bytes)| *bytes > MAX_RECORD_BYTES)
    }

    /// The records for the lines that are `wanted`: one for each line, or with `pack` one for as many lines in a row
    /// as fit. Nothing is copied.
    pub fn records(&self, pack: bool, wanted: impl Fn(usize) -> bool) -> Vec<Record> {
        let mut records: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for line in (0..self.count()).filter(|line| wanted(*line)) {
            let range = self.range(line);
            match records.last_mut() {
                Some((bytes, lines))
                    if pack
                        && lines.end == line
                        && lines.len() < MAX_RECORD_LINES
                        && range.end - bytes.start <= MAX_RECORD_BYTES =>
                {
                    bytes.end = range.end;
                    lines.end = line + 1;
                }
                _ => records.push((range, line..line + 1)),
            }
        }
        let record = |(range, lines)| Record {
            data: self.bytes.slice(range),
            lines,
        };
        records.into_iter().map(record).collect()
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

    proptest! {
        #![proptest_config(cases(96))]

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
                let whole = lines.range(record.lines.start).start..lines.range(record.lines.end - 1).end;
                prop_assert!(record.data == lines.bytes[whole]);
                prop_assert!(record.data.len() <= 1_024_000);
                let most = if pack { 500 } else { 1 };
                prop_assert!(record.lines.len() <= most);
            }
            // No fewer records would do: two that could be one are none.
            let could_be_one = |pair: &[Record]| {
                pair[0].lines.end == pair[1].lines.start
                    && pair[0].lines.len() < 500
                    && pair[0].data.len() + lengths[pair[1].lines.start] <= 1_024_000
            };
            prop_assert!(!pack || !records.windows(2).any(could_be_one));

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
