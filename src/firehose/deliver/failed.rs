//! What a call did not deliver, and what that says.

use std::collections::{HashMap, HashSet};

use super::super::rate_limiter::Feedback;
use super::super::{Cause, Failure, Receipt, Refusal};
use crate::batch::Record;

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// A call as a whole.
    Call,
    /// The only record of a call, by an answer of its own.
    OnlyRecord,
    /// Some records of a call.
    SomeRecords,
}

/// What a call did not deliver.
pub(super) struct Failed {
    /// How many records it carried.
    pub(super) call: usize,
    /// Some of them were delivered.
    pub(super) is_accepted: bool,
    /// Records with an answer of their own.
    pub(super) one_by_one: Vec<(Record, Failure)>,
    /// The others. `refusal` is their reason.
    pub(super) rest: Vec<Record>,
    pub(super) refusal: Option<Refusal>,
}

impl Failed {
    /// The records of a call that were delivered, and the others.
    pub(super) fn split(records: Vec<Record>, receipt: Receipt) -> (Vec<Record>, Self) {
        let Receipt {
            delivered,
            refused,
            refusal,
        } = receipt;
        let mut failed = Self {
            call: records.len(),
            is_accepted: !delivered.is_empty(),
            one_by_one: Vec::new(),
            rest: Vec::new(),
            refusal,
        };
        // So it is with nearly every call.
        if delivered.len() == records.len() {
            return (records, failed);
        }
        let delivered: HashSet<usize> = delivered.into_iter().collect();
        let mut refused: HashMap<usize, Failure> = refused.into_iter().collect();
        let mut done = Vec::with_capacity(delivered.len());
        for (index, record) in records.into_iter().enumerate() {
            match refused.remove(&index) {
                _ if delivered.contains(&index) => done.push(record),
                Some(failure) => failed.one_by_one.push((record, failure)),
                None => failed.rest.push(record),
            }
        }
        (done, failed)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.one_by_one.is_empty() && self.rest.is_empty()
    }

    /// Whether the stream had no room for the call as a whole.
    pub(super) const fn is_call_too_many(&self) -> bool {
        matches!(&self.refusal, Some(Refusal::Failed(failure)) if matches!(failure.cause, Cause::Throttled))
    }

    /// What it says about how much the stream takes. A single line says nothing. `is_about_lines`: the failure of
    /// several ones is likely to be about the lines, too.
    pub(super) fn feedback(&self, is_one_line: bool, is_about_lines: bool) -> Feedback {
        let one_by_one = || self.one_by_one.iter().map(|(_, failure)| failure.cause);
        let throttled = one_by_one().filter(|cause| *cause == Cause::Throttled);
        let others = match &self.refusal {
            // A call too many says nothing about its size: smaller calls are more calls.
            Some(Refusal::Failed(_)) => self.rest.len(),
            _ => 0,
        };
        let failed = others
            + one_by_one()
                .filter(|cause| *cause != Cause::Content)
                .count();
        match (failed, throttled.count()) {
            // Nothing was sent.
            (0, _) if matches!(self.refusal, Some(Refusal::Retry(_))) => {
                Feedback::Failed(self.rest.len())
            }
            (0, _) => Feedback::Enough,
            _ if is_one_line => Feedback::Nothing,
            (_, 0) if is_about_lines => Feedback::Nothing,
            (failed, 0) => Feedback::Failed(failed),
            (_, throttled) => Feedback::TooMuch(throttled),
        }
    }

    /// In words, without anything that the call carried.
    pub(super) fn reason(&self) -> String {
        match (&self.refusal, self.one_by_one.as_slice()) {
            (_, [(_, failure), ..]) => format!(
                "firehose refused {} of {} records ({})",
                self.one_by_one.len(),
                self.call,
                failure.code
            ),
            (Some(refusal), _) => refusal.to_string(),
            (None, _) => String::new(),
        }
    }
}
