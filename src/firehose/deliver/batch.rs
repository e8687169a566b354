//! Records that go in one call, and what earlier calls for them have come to.

use std::collections::VecDeque;

use super::super::Cause;
use crate::batch::{Record, calls};

/// Records for one call.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    /// A call was made for them.
    pub(super) is_tried: bool,
    /// How many calls for them in a row delivered nothing.
    pub(super) fruitless: u32,
    /// How many calls for them in a row failed, or for those that they were taken apart from. The stream's backoff is
    /// no longer than this says: what is offered for the first time does not wait for what failed often.
    pub(super) failures: u32,
    /// They were taken apart from others, when this many answers had come, for this cause.
    pub(super) parted: Option<(u64, Cause)>,
    /// The numbers of the first answer that refused them, and of the last one.
    pub(super) first_refused: Option<u64>,
    pub(super) last_refused: Option<u64>,
    /// Each record had an answer of its own the last time, so none keeps others like it from being accepted.
    pub(super) is_one_by_one: bool,
}

impl Batch {
    /// The same with other records.
    pub(super) fn with(&self, records: Vec<Record>) -> Self {
        Self { records, ..*self }
    }

    /// Two halves by records, or the lines of a single one; `None` for a single line.
    pub(super) fn halves(&self, answers: u64, cause: Cause) -> Option<[Self; 2]> {
        let (first, second) = match self.records.as_slice() {
            [record] => {
                let (first, second) = record.halves()?;
                (vec![first], vec![second])
            }
            records => {
                let (first, second) = records.split_at(records.len() / 2);
                (first.to_vec(), second.to_vec())
            }
        };
        let half = |records| Self {
            fruitless: 0,
            parted: Some((answers, cause)),
            ..self.with(records)
        };
        Some([half(first), half(second)])
    }

    /// The same with two records for each of several lines, which go in one call if there is room.
    pub(super) fn halved_records(self, answers: u64, cause: Cause) -> VecDeque<Self> {
        let halve = |record: Record| match record.halves() {
            None => vec![record],
            Some((first, second)) => vec![first, second],
        };
        let mut batches = Self::all(self.records.iter().cloned().flat_map(halve).collect());
        for batch in &mut batches {
            *batch = Self {
                fruitless: 0,
                parted: Some((answers, cause)),
                ..self.with(std::mem::take(&mut batch.records))
            };
        }
        batches
    }

    /// Takes in another one if both may go in one call.
    pub(super) fn join(&mut self, other: Self) -> Option<Self> {
        let count = self.records.len();
        self.records.extend_from_slice(&other.records);
        if calls(&self.records).count() > 1 {
            self.records.truncate(count);
            return Some(other);
        }
        self.fruitless = self.fruitless.max(other.fruitless);
        self.failures = self.failures.max(other.failures);
        let both = self.parted.zip(other.parted);
        self.parted = both.map(|(first, second)| if first.0 > second.0 { first } else { second });
        self.first_refused = self.first_refused.max(other.first_refused);
        self.last_refused = self.last_refused.max(other.last_refused);
        None
    }

    /// A batch for each call, within AWS's limits.
    pub(super) fn all(mut records: Vec<Record>) -> VecDeque<Self> {
        let starts: Vec<usize> = calls(&records).map(|call| call.start).collect();
        let mut batches = VecDeque::with_capacity(starts.len());
        for start in starts.into_iter().rev() {
            batches.push_front(Self {
                records: records.split_off(start),
                ..Self::default()
            });
        }
        batches
    }

    /// A record for each line.
    pub(super) fn into_lines(self) -> impl Iterator<Item = Record> {
        self.records.into_iter().flat_map(into_lines)
    }

    /// Whether it is one line, so that a call for it is a call for this line alone.
    pub(super) fn is_one_line(&self) -> bool {
        matches!(self.records.as_slice(), [record] if record.lines.len() == 1)
    }
}

fn into_lines(record: Record) -> Vec<Record> {
    match record.halves() {
        None => vec![record],
        Some((first, second)) => [first, second].into_iter().flat_map(into_lines).collect(),
    }
}
