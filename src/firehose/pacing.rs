//! When the next call to a stream may go, and how much of it.
//!
//! Its quota is kept beforehand, so that Firehose has no reason to refuse anything: a quota is by the second while
//! throttling shows by the minute, so bursts are what hurts, and AWS's advice is to send smoothly.
//! <https://repost.aws/knowledge-center/firehose-traffic-throttles-in-quota>
//! What a stream takes less than that is found out by what it refuses ([`aimd`](super::aimd)). A stream that takes
//! nothing at all is asked less and less often, by all calls to it together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Pulse;
use super::aimd::{Rate, Window};
use crate::batch::{Record, calls};
use crate::mapping::StreamName;
use crate::run::Counts;

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

    /// What may be sent in a second, and for how long at once: bytes, records, requests, and bytes of the rate that was
    /// found out.
    fn limits(&self, rate: f64) -> [(f64, Duration); 4] {
        [
            (self.bytes * STEADY, BURST),
            (self.records * STEADY, BURST),
            (self.requests * STEADY, BURST),
            (rate, RATE_BURST),
        ]
    }

    /// How many calls carry these records while nothing is refused.
    pub(super) fn calls(&self, records: &[Record]) -> usize {
        let limits = self.limits(f64::INFINITY);
        let split = |call| {
            let mut rest = &records[call];
            std::iter::from_fn(move || {
                let (count, _) = fitting(&limits, rest, false);
                rest = &rest[count..];
                (count > 0).then_some(count)
            })
        };
        calls(records).flat_map(split).count()
    }

    /// How long so much takes when it is sent steadily; `None` where nothing limits it.
    pub(super) fn seconds(&self, counts: &Counts) -> Option<f64> {
        let each = [
            (counts.bytes, self.bytes),
            (counts.records, self.records),
            (counts.requests, self.requests),
        ];
        let limited = each.into_iter().filter(|(_, limit)| limit.is_finite());
        limited
            .map(|(amount, limit)| amount as f64 / (limit * STEADY))
            .reduce(f64::max)
    }
}

/// How many of these records go together, and how much of each limit they take.
fn fitting(limits: &[(f64, Duration); 4], records: &[Record], singly: bool) -> (usize, [f64; 4]) {
    let mut amounts = [0.0; 4];
    let mut count = 0;
    for record in records {
        let bytes = record.data.len() as f64;
        let requests = f64::from(u8::from(singly || count == 0));
        let mut more = amounts;
        for (amount, added) in more.iter_mut().zip([bytes, 1.0, requests, bytes]) {
            *amount += added;
        }
        let mut each = more.iter().zip(limits);
        let fits = each.all(|(amount, (limit, burst))| *amount <= limit * burst.as_secs_f64());
        // However large it is, one goes.
        if count > 0 && !fits {
            break;
        }
        (amounts, count) = (more, count + 1);
    }
    (count, amounts)
}

/// The pace of each stream of a destination.
#[derive(Debug)]
pub(super) struct Pacing {
    quota: Quota,
    streams: Mutex<HashMap<StreamName, Arc<Pace>>>,
}

impl Pacing {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            streams: Mutex::default(),
        }
    }

    pub(super) const fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn of(&self, stream: &StreamName) -> Arc<Pace> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = || Arc::new(Pace::new(self.quota));
        Arc::clone(streams.entry(stream.clone()).or_insert_with(pace))
    }
}

/// Of the quota, so much is sent steadily,
const STEADY: f64 = 0.9;
/// and after a pause so much of it at once, which is also the most for one call. Both together are within the quota in
/// any one second.
const BURST: Duration = Duration::from_millis(100);
/// The same where a stream takes less than it should, by the rate that was found out.
const RATE_BURST: Duration = Duration::from_millis(250);
/// In seconds, whatever the quota says: a clock does not count to ever.
const LONGEST_WAIT: f64 = 3_600.0;
/// Calls to one stream that may be in flight together.
const MOST_CALLS: f64 = 16.0;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// So many lines may be refused by themselves, with nothing accepted in between, before the stream is to blame:
const SUSPICIOUS: u32 = 20;
/// and so many by a stream that has accepted others.
const VERY_SUSPICIOUS: u32 = 1_000;

/// The pace of one stream, which all calls to it share.
#[derive(Debug)]
pub(super) struct Pace {
    quota: Quota,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// When the stream will have worked off what it was given: bytes, records and requests of its quota, and bytes of
    /// the rate that was found out.
    busy_until: [Instant; 4],
    rate: Rate,
    window: Window,
    in_flight: usize,
    /// Begins anew with each refusal: calls that were in flight then say nothing new.
    round: u64,
    /// Nothing is sent before.
    not_before: Instant,
    /// The longest that the next refusal makes everyone wait.
    backoff: Duration,
    has_accepted: bool,
    /// Lines that were refused by themselves since something was accepted.
    alone: u32,
}

/// The right to make a call.
#[derive(Debug)]
pub(super) struct Admitted {
    /// With so many of the records.
    pub(super) records: usize,
    round: u64,
    pace: Arc<Pace>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.pace.lock().in_flight -= 1;
        self.pace.changed.notify_waiters();
    }
}

/// What a stream said to a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Said {
    /// It took all of it, or had another reason than its own state not to.
    Enough,
    /// It refused this fraction for now.
    TooMuch(f64),
    /// It failed with this fraction, for a reason that says nothing about how much it takes.
    Failed(f64),
}

impl Pace {
    fn new(quota: Quota) -> Self {
        let now = Instant::now();
        let state = State {
            busy_until: [now; 4],
            rate: Rate::new(now),
            window: Window::new(MOST_CALLS),
            in_flight: 0,
            round: 0,
            not_before: now,
            backoff: FIRST_BACKOFF,
            has_accepted: false,
            alone: 0,
        };
        Self {
            quota,
            state: Mutex::new(state),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until some of these records may go; `None` where the destination is given up before. `singly`: each is a
    /// request. `is_first`: nobody has tried them yet, so that one call is made in any case.
    pub(super) async fn admit(
        self: &Arc<Self>,
        records: &[Record],
        singly: bool,
        is_first: bool,
        pulse: &Pulse,
    ) -> Option<Admitted> {
        let mut admitted = self.enter().await;
        if !self.back_off(pulse).await && !is_first {
            return None;
        }
        let (count, at) = self
            .lock()
            .reserve(&self.quota, records, singly, Instant::now());
        {
            let _waiting = pulse.wait();
            sleep_until(at).await;
        }
        (admitted.records, admitted.round) = (count, self.lock().round);
        Some(admitted)
    }

    /// Waits until fewer calls are in flight than may be.
    async fn enter(self: &Arc<Self>) -> Admitted {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if state.in_flight < state.window.calls() {
                    state.in_flight += 1;
                    return Admitted {
                        records: 0,
                        round: state.round,
                        pace: Arc::clone(self),
                    };
                }
            }
            changed.await;
        }
    }

    /// Waits as long as a refusal has everyone wait; `false` where the destination is given up first.
    async fn back_off(&self, pulse: &Pulse) -> bool {
        loop {
            let (until, deadline, now) = (self.lock().not_before, pulse.deadline(), Instant::now());
            if deadline <= now {
                return false;
            }
            if until <= now {
                return true;
            }
            sleep_until(until.min(deadline)).await;
        }
    }

    /// Takes in what came of a call that delivered so many bytes.
    pub(super) fn hear(&self, admitted: &Admitted, said: Said, delivered: usize) {
        let now = Instant::now();
        let mut state = self.lock();
        if delivered > 0 {
            let enough = self.quota.bytes;
            state.rate.accept(delivered, enough, now);
            (state.has_accepted, state.alone) = (true, 0);
            state.backoff = FIRST_BACKOFF;
        }
        let fraction = match said {
            Said::Enough => {
                state.window.grow();
                return;
            }
            Said::TooMuch(fraction) | Said::Failed(fraction) => fraction,
        };
        if admitted.round != state.round {
            return;
        }
        state.round += 1;
        state.window.shrink(fraction);
        let is_too_much = matches!(said, Said::TooMuch(_));
        if is_too_much && state.rate.refuse(fraction, now) {
            // What it took at once was its burst, and is used up.
            state.busy_until[3] = now + RATE_BURST;
        }
        state.not_before = now + state.backoff.mul_f64(fastrand::f64());
        if delivered == 0 {
            state.backoff = LONGEST_BACKOFF.min(state.backoff * 2);
        }
    }

    /// Notes that a line was refused by itself. Returns whether that has become so usual that the stream is to blame.
    pub(super) fn refused_alone(&self) -> bool {
        let mut state = self.lock();
        state.alone += 1;
        let most = match state.has_accepted {
            true => VERY_SUSPICIOUS,
            false => SUSPICIOUS,
        };
        state.alone >= most
    }
}

impl State {
    /// How many of these records may go together, and when.
    fn reserve(
        &mut self,
        quota: &Quota,
        records: &[Record],
        singly: bool,
        now: Instant,
    ) -> (usize, Instant) {
        let limits = quota.limits(self.rate.limit());
        let (count, amounts) = fitting(&limits, records, singly);
        let seconds =
            |amount: f64, limit: f64| Duration::from_secs_f64((amount / limit).min(LONGEST_WAIT));
        let amounts = || amounts.iter().zip(limits);
        let mut at = now;
        for (until, (amount, (limit, burst))) in self.busy_until.iter().zip(amounts()) {
            // What is larger than a burst goes when all before it is worked off.
            let room = burst.saturating_sub(seconds(*amount, limit));
            at = at.max(until.checked_sub(room).unwrap_or(now));
        }
        for (until, (amount, (limit, _))) in self.busy_until.iter_mut().zip(amounts()) {
            *until = at.max(*until) + seconds(*amount, limit);
        }
        (count, at)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(bytes: usize) -> Record {
        Record {
            data: Bytes::from(vec![b'x'; bytes]),
            lines: 0..1,
        }
    }

    fn pace(quota: Quota) -> Arc<Pace> {
        Pacing::new(quota).of(&StreamName::parse("members").unwrap())
    }

    async fn admit(pace: &Arc<Pace>, records: &[Record]) -> Admitted {
        let admitted = pace.admit(records, false, true, &Pulse::new()).await;
        admitted.expect("the first call is made in any case")
    }

    /// How long it takes to send so many calls one after another, in as many parts as they are given.
    async fn seconds(pace: &Arc<Pace>, calls: usize, records: usize, bytes: usize) -> f64 {
        let started = Instant::now();
        for _ in 0..calls {
            let mut left = vec![record(bytes); records];
            while !left.is_empty() {
                let admitted = admit(pace, &left).await;
                left.drain(..admitted.records);
                pace.hear(&admitted, Said::Enough, admitted.records * bytes);
            }
        }
        started.elapsed().as_secs_f64()
    }

    #[track_caller]
    fn assert_about(took: f64, expected: f64) {
        assert!((took - expected).abs() < 0.05, "{took} and not {expected}");
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_holds_after_the_first_burst() {
        let check = async |quota, calls, records, bytes, expected| {
            let took = seconds(&pace(quota), calls, records, bytes).await;
            assert_about(took, expected);
        };
        check(Quota::NONE, 1_000, 500, 1_000, 0.0).await;
        // 10 MB at 0.9 MB a second: a tenth of a second's worth at once, the last call not waited for.
        let bytes = Quota {
            bytes: 1e6,
            ..Quota::NONE
        };
        check(bytes, 100, 100, 1_000, 11.0).await;
        let records = Quota {
            records: 1e3,
            ..Quota::NONE
        };
        check(records, 100, 100, 1, 11.0).await;
        let requests = Quota {
            requests: 10.0,
            ..Quota::NONE
        };
        check(requests, 100, 1, 1, 11.0).await;
    }

    /// Each call as it goes: when, and its bytes, records and requests.
    async fn sent(quota: Quota, sizes: &[usize]) -> Vec<(Instant, [f64; 3])> {
        let pace = pace(quota);
        let mut calls = Vec::new();
        for round in 0..8 {
            let mut left: Vec<_> = sizes.iter().map(|bytes| record(*bytes)).collect();
            while !left.is_empty() {
                let admitted = admit(&pace, &left).await;
                let gone = left.drain(..admitted.records);
                let bytes: usize = gone.map(|record| record.data.len()).sum();
                calls.push((Instant::now(), [bytes as f64, admitted.records as f64, 1.0]));
                pace.hear(&admitted, Said::Enough, bytes);
            }
            // All of it is worked off, some of it, or nothing.
            tokio::time::sleep(Duration::from_millis([0, 30, 400, 5_000][round % 4])).await;
        }
        calls
    }

    #[tokio::test(start_paused = true)]
    async fn in_no_second_is_more_sent_than_the_quota_and_one_record() {
        let check = async |quota: Quota, sizes: &[usize]| {
            let calls = sent(quota, sizes).await;
            let largest = *sizes.iter().max().unwrap() as f64;
            let most = [
                quota.bytes + largest,
                quota.records + 1.0,
                quota.requests + 1.0,
            ];
            for (first, (from, _)) in calls.iter().enumerate() {
                let mut sum = [0.0; 3];
                let second = calls[first..]
                    .iter()
                    .take_while(|(at, _)| at.duration_since(*from) < Duration::from_secs(1));
                for (_, amounts) in second {
                    sum.iter_mut()
                        .zip(amounts)
                        .for_each(|(all, more)| *all += more);
                }
                let is_kept = sum.iter().zip(most).all(|(sum, most)| *sum <= most);
                assert!(is_kept, "{sum:?} of {most:?}");
            }
        };
        let quota = |bytes, records, requests| Quota {
            bytes,
            records,
            requests,
        };
        let none = f64::INFINITY;
        check(quota(none, 100.0, none), &[1; 100]).await;
        check(quota(none, none, 20.0), &[1]).await;
        check(quota(none, none, 1.0), &[1]).await;
        check(quota(1e5, none, none), &[550; 500]).await;
        check(quota(1e5, none, none), &[550, 90_000, 2, 300_000, 9_000]).await;
        check(quota(1e5, 300.0, 5.0), &[1, 700, 700, 30_000, 40, 1]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_no_larger_than_what_may_go_at_once() {
        let quota = Quota {
            records: 200.0,
            ..Quota::NONE
        };
        let admitted = admit(&pace(quota), &vec![record(1); 500]).await;
        assert_eq!(admitted.records, 18);
        let usual = Quota::of_region("us-west-2");
        let admitted = admit(&pace(usual), &vec![record(550); 500]).await;
        assert_eq!(admitted.records, 500);
        let large = record(1_000_000);
        let tiny = Quota {
            bytes: 1.0,
            ..Quota::NONE
        };
        let admitted = admit(&pace(tiny), &[large]).await;
        assert_eq!(admitted.records, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_one_burst_and_no_more() {
        let pace = pace(Quota {
            requests: 100.0,
            ..Quota::NONE
        });
        tokio::time::sleep(Duration::from_secs(100)).await;
        // Nine at once, and 90 a second.
        assert_about(seconds(&pace, 99, 1, 1).await, 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_makes_the_next_calls_smaller_and_slower() {
        let pace = pace(Quota::NONE);
        let records = vec![record(1_000); 500];
        let admitted = admit(&pace, &records).await;
        assert_eq!(admitted.records, 500);
        // It has taken 200,000 bytes in its first second, and had enough of 60 %.
        pace.hear(&admitted, Said::TooMuch(0.6), 200_000);
        drop(admitted);
        let admitted = admit(&pace, &records).await;
        assert_eq!(admitted.records, 35);
        drop(admitted);
        let took = seconds(&pace, 2, 500, 1_000).await;
        assert!((5.0..7.2).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_is_asked_by_one_call_at_a_time_and_less_and_less_often() {
        let pace = pace(Quota::NONE);
        let all_at_once: Vec<_> = {
            let mut calls = Vec::new();
            for _ in 0..16 {
                calls.push(admit(&pace, &[record(1)]).await);
            }
            calls
        };
        // They were in flight together: that is one refusal, and not sixteen.
        for admitted in all_at_once {
            pace.hear(&admitted, Said::Failed(1.0), 0);
        }
        assert_eq!(pace.lock().window.calls(), 8);
        let started = Instant::now();
        for _ in 0..20 {
            let admitted = admit(&pace, &[record(1)]).await;
            pace.hear(&admitted, Said::Failed(1.0), 0);
        }
        assert_eq!(pace.lock().window.calls(), 1);
        assert!(started.elapsed() > Duration::from_secs(10));
        // Something is accepted: all is well again, step by step.
        let admitted = admit(&pace, &[record(1)]).await;
        pace.hear(&admitted, Said::Enough, 1);
        assert_eq!(pace.lock().backoff, FIRST_BACKOFF);
        assert_eq!(pace.lock().window.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_among_many_records_changes_little() {
        let pace = pace(Quota::NONE);
        let admitted = admit(&pace, &vec![record(1); 500]).await;
        pace.hear(&admitted, Said::Failed(0.002), 499);
        assert_eq!(pace.lock().window.calls(), 15);
        assert_eq!(pace.lock().rate.limit(), f64::INFINITY);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_quota_is_no_reason_to_give_up() {
        let pace = pace(Quota {
            bytes: 1_000.0,
            ..Quota::NONE
        });
        let (records, pulse) = ([record(180_000)], Pulse::new());
        let started = Instant::now();
        for is_first in [true, false, false, false] {
            let admitted = pace.admit(&records, false, is_first, &pulse).await;
            let admitted = admitted.expect("it has waited for its quota only");
            pace.hear(&admitted, Said::TooMuch(1.0), 0);
        }
        assert_eq!(started.elapsed().as_secs(), 600);
    }

    #[test]
    fn three_regions_have_more() {
        assert_eq!(Quota::of_region("us-west-2").bytes, 5_242_880.0);
        assert_eq!(Quota::of_region("eu-north-1").requests, 1_000.0);
    }
}
