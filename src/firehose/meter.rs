//! Counts of what goes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::{Record, billed_bytes};
use crate::run::Counts;

/// Counts what a run sends.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU64,
    retries: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    billed_bytes: AtomicU64,
}

impl Meter {
    fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn delivered(&self, records: &[Record]) {
        let sizes = records.iter().map(|record| record.data.len());
        let bytes = sizes.clone().sum::<usize>() as u64;
        let billed = sizes.map(billed_bytes).sum();
        self.records
            .fetch_add(records.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.billed_bytes.fetch_add(billed, Ordering::Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            requests: read(&self.requests),
            retries: read(&self.retries),
            records: read(&self.records),
            bytes: read(&self.bytes),
            billed_bytes: read(&self.billed_bytes),
        }
    }
}

/// Which meter counts which lines of a delivery. A record belongs to one run; a call counts for each run of which it
/// carries something.
#[derive(Debug, Default)]
pub struct Meters(Vec<(usize, Arc<Meter>)>);

impl Meters {
    /// The next lines, this many, are counted here.
    pub fn add(&mut self, lines: usize, meter: &Arc<Meter>) {
        let from = self.0.last().map_or(0, |(end, _)| *end);
        self.0.push((from + lines, Arc::clone(meter)));
    }

    pub(super) fn request(&self, records: &[Record]) {
        self.each(records, |meter, _| meter.request());
    }

    pub(super) fn retry(&self, records: &[Record]) {
        self.each(records, |meter, _| meter.retry());
    }

    pub(super) fn delivered(&self, records: &[Record]) {
        self.each(records, Meter::delivered);
    }

    /// Calls `count` for each meter that has records, with these records. Records are in the order of their lines.
    fn each(&self, records: &[Record], count: impl Fn(&Meter, &[Record])) {
        let mut rest = records;
        for (end, meter) in &self.0 {
            let (own, others) =
                rest.split_at(rest.partition_point(|record| record.lines.start < *end));
            if !own.is_empty() {
                count(meter, own);
            }
            rest = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_call_counts_for_each_meter_that_has_a_record_in_it() {
        let [one, other]: [Arc<Meter>; 2] = Default::default();
        let mut meters = Meters::default();
        meters.add(2, &one);
        meters.add(3, &other);
        let records: Vec<Record> = (0..5)
            .map(|line| Record {
                data: Bytes::from("a\n"),
                lines: line..line + 1,
            })
            .collect();
        meters.request(&records);
        meters.request(&records[3..]);
        meters.retry(&records[3..]);
        meters.delivered(&records);
        let counted = |meter: &Meter| {
            let counts = meter.counts();
            [
                counts.requests,
                counts.retries,
                counts.records,
                counts.bytes,
            ]
        };
        assert_eq!(counted(&one), [1, 0, 2, 4]);
        assert_eq!(counted(&other), [2, 1, 3, 6]);
    }
}
