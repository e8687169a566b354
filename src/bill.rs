//! What a delivery would be charged and how long its quota would make it take, known before anything is sent.
//!
//! Firehose charges each record rounded up to 5 KiB, so lines in records of their own cost several times what the same
//! lines cost packed. Whoever has to choose sees both.

use std::ops::AddAssign;

use serde::{Serialize, Serializer};

use crate::run::Counts;

/// Dollars for a GB of billed bytes: what us-east-1 takes for the first 500 TB of a month.
/// <https://aws.amazon.com/firehose/pricing/>
pub const PRICE_PER_GB: f64 = 0.029;
/// When others quoted that price.
pub const PRICED_IN: &str = "July 2026";
/// The examples on that page have 1,048,576 KB in a GB.
const GB: f64 = (1_u64 << 30) as f64;

/// What a delivery to one stream would count if nothing were refused, with each line in a record of its own and packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Foreseen {
    pub unpacked: Counts,
    pub packed: Counts,
}

impl Foreseen {
    pub const fn counts(&self, pack: bool) -> Counts {
        if pack { self.packed } else { self.unpacked }
    }
}

impl AddAssign for Foreseen {
    fn add_assign(&mut self, other: Self) {
        self.unpacked += other.unpacked;
        self.packed += other.packed;
    }
}

/// The two ways side by side. The object `bill` of `sync --dry-run --json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bill {
    pub price_per_gb: f64,
    /// Which of the two is configured.
    pub pack: bool,
    /// Where files play Firehose it is what Firehose would charge.
    #[serde(skip)]
    pub is_free: bool,
    pub unpacked: Charge,
    pub packed: Charge,
}

impl AddAssign for Bill {
    fn add_assign(&mut self, other: Self) {
        self.unpacked += other.unpacked;
        self.packed += other.packed;
    }
}

/// What one way comes to: every stream is paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Charge {
    pub records: u64,
    pub bytes: u64,
    pub billed_bytes: u64,
    pub dollars: f64,
    /// Streams are written to side by side: of the one that takes longest. `None` where there is no quota.
    #[serde(serialize_with = "hundredths")]
    pub quota_seconds: Option<f64>,
}

impl Charge {
    pub fn new(
        streams: &[Counts],
        price_per_gb: f64,
        quota_seconds: impl Fn(&Counts) -> Option<f64>,
    ) -> Self {
        let mut sum = Counts::default();
        streams.iter().for_each(|counts| sum += *counts);
        Self {
            records: sum.records,
            bytes: sum.bytes,
            billed_bytes: sum.billed_bytes,
            dollars: sum.billed_bytes as f64 / GB * price_per_gb,
            quota_seconds: streams.iter().filter_map(quota_seconds).reduce(f64::max),
        }
    }
}

impl AddAssign for Charge {
    /// One after another: times add up, too.
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.billed_bytes += other.billed_bytes;
        self.dollars += other.dollars;
        let seconds = self.quota_seconds.into_iter().chain(other.quota_seconds);
        self.quota_seconds = seconds.reduce(|sum, more| sum + more);
    }
}

fn hundredths<S: Serializer>(seconds: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    seconds
        .map(|seconds| (seconds * 100.0).round() / 100.0)
        .serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLION: Counts = Counts {
        requests: 2_000,
        retries: 0,
        records: 1_000_000,
        bytes: 301_000_000,
        billed_bytes: 5_120_000_000,
    };

    #[test]
    fn every_stream_is_paid_for_and_the_slowest_says_how_long() {
        let seconds = |counts: &Counts| Some(counts.records as f64 / 1_000.0);
        let half = Counts {
            records: 500_000,
            ..MILLION
        };
        let charge = Charge::new(&[half, MILLION], PRICE_PER_GB, seconds);
        assert_eq!(charge.records, 1_500_000);
        assert_eq!(charge.billed_bytes, 10_240_000_000);
        // 9.54 GB of 2^30 bytes.
        assert!((charge.dollars - 0.276_566).abs() < 1e-6, "{charge:?}");
        assert_eq!(charge.quota_seconds, Some(1_000.0));
    }

    #[test]
    fn what_goes_one_after_another_takes_the_time_of_both() {
        let mut charge = Charge::new(&[MILLION], 1.0, |_| Some(2.0));
        charge += Charge::new(&[MILLION], 1.0, |_| Some(3.0));
        assert_eq!(charge.quota_seconds, Some(5.0));
        assert_eq!(charge.records, 2_000_000);
        charge += Charge::new(&[], 1.0, |_| None);
        assert_eq!(charge.quota_seconds, Some(5.0));
    }

    #[test]
    fn where_there_is_no_quota_there_is_no_time() {
        let charge = Charge::new(&[MILLION], 0.0, |_| None);
        assert_eq!((charge.dollars, charge.quota_seconds), (0.0, None));
        let json = serde_json::to_string(&charge).unwrap();
        assert_eq!(
            json,
            r#"{"records":1000000,"bytes":301000000,"billed_bytes":5120000000,"dollars":0.0,"quota_seconds":null}"#
        );
    }
}
