//! Counts of what goes out.

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
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self, record: &Record) {
        self.records.fetch_add(1, Ordering::Relaxed);
        self.bytes
            .fetch_add(record.data.len() as u64, Ordering::Relaxed);
        self.billed_bytes
            .fetch_add(billed_bytes(record.data.len()), Ordering::Relaxed);
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
