//! Keeps calls within a stream's quota, so that Firehose has no reason to refuse them.
//!
//! A quota is by the second while throttling shows by the minute, so bursts are what hurts: AWS's advice is to send
//! smoothly. <https://repost.aws/knowledge-center/firehose-traffic-throttles-in-quota>

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::batch::Record;
use crate::mapping::StreamName;

/// What one stream takes in a second; infinite where there is no limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quota {
    pub bytes: f64,
    pub records: f64,
    pub requests: f64,
}

impl Quota {
    pub const NONE: Self = Self {
        bytes: f64::INFINITY,
        records: f64::INFINITY,
        requests: f64::INFINITY,
    };

    /// What a stream begins with in a region; Firehose raises it by itself under load.
    /// <https://docs.aws.amazon.com/firehose/latest/dev/limits.html>
    pub fn of_region(region: &str) -> Self {
        let (mib, records, requests) = match region {
            "us-east-1" | "us-west-2" | "eu-west-1" => (5.0, 500_000.0, 2_000.0),
            _ => (1.0, 100_000.0, 1_000.0),
        };
        Self {
            bytes: mib * f64::from(1 << 20),
            records,
            requests,
        }
    }
}

/// Waits before calls, so that no stream gets more than its quota.
#[derive(Debug)]
pub(super) struct Pacing {
    quota: Quota,
    /// When each stream will have worked off what it was given, for each of the three limits.
    busy_until: Mutex<HashMap<StreamName, [Instant; 3]>>,
}

/// So much may be sent at once after a pause.
const BURST: Duration = Duration::from_secs(1);

/// In seconds, whatever the quota says: a clock does not count to ever.
const LONGEST_WAIT: f64 = 3_600.0;

impl Pacing {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            busy_until: Mutex::default(),
        }
    }

    /// Waits until a stream may be given these records in so many requests.
    pub(super) async fn wait(&self, stream: &StreamName, records: &[Record], requests: usize) {
        if self.quota == Quota::NONE {
            return;
        }
        let bytes: usize = records.iter().map(|record| record.data.len()).sum();
        let costs = [
            bytes as f64 / self.quota.bytes,
            records.len() as f64 / self.quota.records,
            requests as f64 / self.quota.requests,
        ];
        let now = Instant::now();
        let ready = {
            let mut streams = self
                .busy_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let busy_until = streams.entry(stream.clone()).or_insert([now; 3]);
            let mut ready = now;
            for (until, seconds) in busy_until.iter_mut().zip(costs) {
                ready = ready.max(until.checked_sub(BURST).unwrap_or(now));
                *until = now.max(*until) + Duration::from_secs_f64(seconds.min(LONGEST_WAIT));
            }
            ready
        };
        sleep_until(ready).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    async fn seconds(quota: Quota, calls: usize, records: usize, bytes: usize) -> f64 {
        let pacing = Pacing::new(quota);
        let stream = StreamName::parse("members").unwrap();
        let record = Record {
            data: Bytes::from(vec![b'x'; bytes]),
            lines: 0..1,
        };
        let started = Instant::now();
        for _ in 0..calls {
            pacing
                .wait(&stream, &vec![record.clone(); records], 1)
                .await;
        }
        started.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_holds_after_the_first_burst() {
        let check = async |quota, calls, records, bytes, expected: f64| {
            let took = seconds(quota, calls, records, bytes).await;
            assert!((took - expected).abs() < 0.05, "{took} and not {expected}");
        };
        check(Quota::NONE, 1_000, 500, 1_000, 0.0).await;
        // 100 calls of 100,000 bytes: a second's worth at once, the last one not waited for.
        check(
            Quota {
                bytes: 1e6,
                ..Quota::NONE
            },
            100,
            100,
            1_000,
            8.9,
        )
        .await;
        check(
            Quota {
                records: 1e3,
                ..Quota::NONE
            },
            100,
            100,
            1,
            8.9,
        )
        .await;
        check(
            Quota {
                requests: 10.0,
                ..Quota::NONE
            },
            100,
            1,
            1,
            8.9,
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_one_second_and_no_more() {
        let pacing = Pacing::new(Quota {
            requests: 10.0,
            ..Quota::NONE
        });
        let stream = StreamName::parse("members").unwrap();
        tokio::time::sleep(Duration::from_secs(100)).await;
        let started = Instant::now();
        for _ in 0..20 {
            pacing.wait(&stream, &[], 1).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(850));
    }

    #[test]
    fn three_regions_have_more() {
        assert_eq!(Quota::of_region("us-west-2").bytes, 5_242_880.0);
        assert_eq!(Quota::of_region("eu-north-1").requests, 1_000.0);
    }
}
