//! When the next call to a stream may go, and how much of it.
//!
//! We keep the stream's quota, so that Firehose has no reason to refuse anything: a quota is by the second while
//! throttling shows by the minute, so bursts are what hurts, and AWS's advice is to send smoothly.
//! <https://repost.aws/knowledge-center/firehose-traffic-throttles-in-quota>
//! If a stream takes less than its quota, its refusals show it ([`aimd`](super::aimd)). A stream that takes nothing is
//! tried less and less often, by all calls to it together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::aimd::{Rate, Window};
use super::stall::StallTimeout;
use crate::batch::{Record, calls};
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

/// This part of the quota is sent steadily.
const STEADY: f64 = 0.9;
/// After a pause this much of the quota is sent at once, which is also the most for one call. Together with [`STEADY`] it
/// is within the quota in any one second.
const BURST: Duration = Duration::from_millis(100);
/// The same where a stream takes less than it should, by the rate that was found out.
const RATE_BURST: Duration = Duration::from_millis(250);
/// In seconds, whatever the quota says: a clock does not count to ever.
const LONGEST_WAIT: f64 = 3_600.0;
/// Calls to one stream that may be in flight together.
const MOST_CALLS: f64 = 16.0;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// Limits the calls to one stream.
#[derive(Debug)]
pub(super) struct RateLimiter {
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
    calls: usize,
    /// In the calls that are in flight.
    records: usize,
    /// Begins anew with the first refusal of a call that was begun after the last one.
    round: u64,
    /// Records that were in flight when the round began.
    round_records: usize,
    /// Nothing is sent before.
    not_before: Instant,
    /// The longest wait after the next refusal.
    backoff: Duration,
}

/// The right to make a call.
#[derive(Debug)]
pub(super) struct Permit {
    /// With this many of the records.
    pub(super) records: usize,
    round: u64,
    limiter: Arc<RateLimiter>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        state.calls -= 1;
        state.records -= self.records;
        drop(state);
        self.limiter.changed.notify_waiters();
    }
}

/// What the answer to a call says about how much a stream takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feedback {
    /// It took all of it, or had another reason than its own state not to.
    Enough,
    /// It had no room for this many records.
    TooMuch(usize),
    /// This many records failed, for a reason that says nothing about how much it takes.
    Failed(usize),
    /// A single line was refused, which may be because of the line.
    Nothing,
}

impl RateLimiter {
    pub(super) fn new(quota: Quota) -> Self {
        let now = Instant::now();
        let state = State {
            busy_until: [now; 4],
            rate: Rate::new(now),
            window: Window::new(MOST_CALLS),
            calls: 0,
            records: 0,
            round: 0,
            round_records: 0,
            not_before: now,
            backoff: FIRST_BACKOFF,
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

    /// Waits until some of these records may go; `None` where the stall timeout is over before. `singly`: each is a
    /// request. `is_first`: they were never tried, so that one call is made in any case.
    pub(super) async fn permit(
        self: &Arc<Self>,
        records: &[Record],
        singly: bool,
        is_first: bool,
        stall: &StallTimeout,
    ) -> Option<Permit> {
        let mut permit = self.enter().await;
        if !self.back_off(stall).await && !is_first {
            return None;
        }
        let count = self.reserve(records, singly, stall).await;
        let mut state = self.lock();
        state.records += count;
        (permit.records, permit.round) = (count, state.round);
        Some(permit)
    }

    /// Waits until one line may be tried again, alone; `false` where the stall timeout is over before. It takes nothing
    /// of the window, so that an answer that does not come keeps no other call from being made.
    pub(super) async fn permit_alone(&self, record: &Record, stall: &StallTimeout) -> bool {
        let is_in_time = self.back_off(stall).await;
        if is_in_time {
            self.reserve(std::slice::from_ref(record), true, stall)
                .await;
        }
        is_in_time
    }

    /// Waits until fewer calls are in flight than may be.
    async fn enter(self: &Arc<Self>) -> Permit {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if state.calls < state.window.calls() {
                    state.calls += 1;
                    return Permit {
                        records: 0,
                        round: state.round,
                        limiter: Arc::clone(self),
                    };
                }
            }
            changed.await;
        }
    }

    /// Waits as long as all calls wait after a refusal; `false` where the stall timeout is over first.
    async fn back_off(&self, stall: &StallTimeout) -> bool {
        loop {
            let until = self.lock().not_before;
            if !stall.sleep_until(until).await {
                return false;
            }
            if self.lock().not_before <= until {
                return true;
            }
        }
    }

    /// Waits for the quota of as many of these records as may go together, and tells how many those are.
    async fn reserve(&self, records: &[Record], singly: bool, stall: &StallTimeout) -> usize {
        let (count, at) = self
            .lock()
            .reserve(&self.quota, records, singly, Instant::now());
        let _waiting = stall.wait();
        sleep_until(at).await;
        count
    }

    /// Takes in that this many bytes were delivered.
    pub(super) fn accepted(&self, bytes: usize) {
        let mut state = self.lock();
        state.rate.accept(bytes, self.quota.bytes, Instant::now());
        state.backoff = FIRST_BACKOFF;
    }

    /// Takes in the answer to a call, which delivered this many bytes. `failures`: how many calls for its records had
    /// failed before.
    pub(super) fn observe(
        &self,
        permit: &Permit,
        feedback: Feedback,
        delivered: usize,
        failures: u32,
    ) {
        if delivered > 0 {
            self.accepted(delivered);
        }
        let now = Instant::now();
        let mut state = self.lock();
        let records = match feedback {
            Feedback::Nothing => return,
            Feedback::Enough => {
                state.window.grow();
                return;
            }
            Feedback::TooMuch(records) | Feedback::Failed(records) => records,
        };
        let is_new = permit.round == state.round;
        if is_new {
            state.round += 1;
            state.round_records = state.records;
            let backoff = state.backoff.min(FIRST_BACKOFF * (1 << failures.min(16)));
            let until = now + backoff.mul_f64(fastrand::f64());
            state.not_before = state.not_before.max(until);
            if delivered == 0 {
                state.backoff = LONGEST_BACKOFF.min(state.backoff * 2);
            }
        } else if permit.round + 1 < state.round {
            // Calls that were in flight two rounds ago say nothing new.
            return;
        }
        // Of all that was under way, and not of this call alone.
        let fraction = records as f64 / state.round_records.max(records) as f64;
        state.window.shrink(fraction);
        if matches!(feedback, Feedback::TooMuch(_)) && state.rate.refuse(fraction, now) {
            // What it took at once was its burst, and is used up.
            state.busy_until[3] = now + RATE_BURST;
        }
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
    use crate::mapping::StreamName;

    fn record(bytes: usize) -> Record {
        Record {
            data: Bytes::from(vec![b'x'; bytes]),
            lines: 0..1,
        }
    }

    fn limiter(quota: Quota) -> Arc<RateLimiter> {
        Arc::new(RateLimiter::new(quota))
    }

    fn stall() -> StallTimeout {
        StallTimeout::new(StreamName::parse("members").unwrap())
    }

    async fn permit(limiter: &Arc<RateLimiter>, records: &[Record]) -> Permit {
        let permit = limiter.permit(records, false, true, &stall()).await;
        permit.expect("the first call is made in any case")
    }

    /// How long it takes to send calls one after another, in as many parts as there are permits.
    async fn seconds(
        limiter: &Arc<RateLimiter>,
        calls: usize,
        records: usize,
        bytes: usize,
    ) -> f64 {
        let started = Instant::now();
        for _ in 0..calls {
            let mut left = vec![record(bytes); records];
            while !left.is_empty() {
                let permitted = permit(limiter, &left).await;
                left.drain(..permitted.records);
                limiter.observe(&permitted, Feedback::Enough, permitted.records * bytes, 16);
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
            let took = seconds(&limiter(quota), calls, records, bytes).await;
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
        let limiter = limiter(quota);
        let mut calls = Vec::new();
        for round in 0..8 {
            let mut left: Vec<_> = sizes.iter().map(|bytes| record(*bytes)).collect();
            while !left.is_empty() {
                let permitted = permit(&limiter, &left).await;
                let gone = left.drain(..permitted.records);
                let bytes: usize = gone.map(|record| record.data.len()).sum();
                calls.push((
                    Instant::now(),
                    [bytes as f64, permitted.records as f64, 1.0],
                ));
                limiter.observe(&permitted, Feedback::Enough, bytes, 16);
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
        let permitted = permit(&limiter(quota), &vec![record(1); 500]).await;
        assert_eq!(permitted.records, 18);
        let usual = Quota::of_region("us-west-2");
        let permitted = permit(&limiter(usual), &vec![record(550); 500]).await;
        assert_eq!(permitted.records, 500);
        let large = record(1_000_000);
        let tiny = Quota {
            bytes: 1.0,
            ..Quota::NONE
        };
        let permitted = permit(&limiter(tiny), &[large]).await;
        assert_eq!(permitted.records, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_earns_one_burst_and_no_more() {
        let limiter = limiter(Quota {
            requests: 100.0,
            ..Quota::NONE
        });
        tokio::time::sleep(Duration::from_secs(100)).await;
        // Nine at once, and 90 a second.
        assert_about(seconds(&limiter, 99, 1, 1).await, 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_makes_the_next_calls_smaller_and_slower() {
        let limiter = limiter(Quota::NONE);
        let records = vec![record(1_000); 500];
        let permitted = permit(&limiter, &records).await;
        assert_eq!(permitted.records, 500);
        // It has taken 200,000 bytes in its first second, and had enough of 60 %.
        limiter.observe(&permitted, Feedback::TooMuch(300), 200_000, 16);
        drop(permitted);
        let permitted = permit(&limiter, &records).await;
        assert_eq!(permitted.records, 35);
        drop(permitted);
        let took = seconds(&limiter, 2, 500, 1_000).await;
        assert!((5.0..7.2).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_nothing_is_asked_by_one_call_at_a_time_and_less_and_less_often() {
        let limiter = limiter(Quota::NONE);
        let all_at_once: Vec<_> = {
            let mut calls = Vec::new();
            for _ in 0..16 {
                calls.push(permit(&limiter, &[record(1)]).await);
            }
            calls
        };
        // They were in flight together, and are all of it: together they are about one half.
        for permitted in all_at_once {
            limiter.observe(&permitted, Feedback::Failed(1), 0, 16);
        }
        assert_eq!(limiter.lock().window.calls(), 9);
        let started = Instant::now();
        for _ in 0..20 {
            let permitted = permit(&limiter, &[record(1)]).await;
            limiter.observe(&permitted, Feedback::Failed(1), 0, 16);
        }
        assert_eq!(limiter.lock().window.calls(), 1);
        assert!(started.elapsed() > Duration::from_secs(10));
        // Something is accepted: all is well again, step by step.
        let permitted = permit(&limiter, &[record(1)]).await;
        limiter.observe(&permitted, Feedback::Enough, 1, 16);
        assert_eq!(limiter.lock().backoff, FIRST_BACKOFF);
        assert_eq!(limiter.lock().window.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_among_many_records_changes_little() {
        let limiter = limiter(Quota::NONE);
        let permitted = permit(&limiter, &vec![record(1); 500]).await;
        limiter.observe(&permitted, Feedback::Failed(1), 499, 16);
        assert_eq!(limiter.lock().window.calls(), 15);
        assert_eq!(limiter.lock().rate.limit(), f64::INFINITY);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_counts_as_a_part_of_what_is_under_way() {
        let limiter = limiter(Quota::NONE);
        let mut calls = Vec::new();
        for _ in 0..15 {
            calls.push(permit(&limiter, &vec![record(1); 500]).await);
        }
        let small = permit(&limiter, &[record(1), record(1)]).await;
        limiter.observe(&small, Feedback::Failed(2), 0, 16);
        assert_eq!(limiter.lock().window.calls(), 15);
        limiter.observe(&calls[0], Feedback::Failed(500), 0, 16);
        assert_eq!(limiter.lock().window.calls(), 15);
        for call in &calls[1..] {
            limiter.observe(call, Feedback::Failed(500), 0, 16);
        }
        assert_eq!(limiter.lock().window.calls(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_line_that_is_refused_slows_nothing_down() {
        let limiter = limiter(Quota::NONE);
        let accepted = permit(&limiter, &[record(1_000)]).await;
        limiter.observe(&accepted, Feedback::Enough, 1_000, 16);
        drop(accepted);
        for _ in 0..20 {
            let line = permit(&limiter, &[record(1)]).await;
            limiter.observe(&line, Feedback::Nothing, 0, 16);
        }
        let state = limiter.lock();
        assert_eq!((state.window.calls(), state.calls), (16, 0));
        assert_eq!(state.rate.limit(), f64::INFINITY);
        assert!(state.not_before <= Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_tried_alone_needs_no_place_in_the_window() {
        let limiter = limiter(Quota::NONE);
        let mut calls = Vec::new();
        for _ in 0..16 {
            calls.push(permit(&limiter, &[record(1)]).await);
        }
        assert!(limiter.permit_alone(&record(1), &stall()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_the_quota_is_no_reason_to_give_up() {
        let limiter = limiter(Quota {
            bytes: 1_000.0,
            ..Quota::NONE
        });
        let (records, stall) = ([record(180_000)], stall());
        let _delivering = stall.start();
        let started = Instant::now();
        for is_first in [true, false, false, false] {
            let permitted = limiter.permit(&records, false, is_first, &stall).await;
            let permitted = permitted.expect("it has waited for its quota only");
            limiter.observe(&permitted, Feedback::TooMuch(1), 0, 16);
        }
        assert_eq!(started.elapsed().as_secs(), 600);
    }

    #[test]
    fn three_regions_have_more() {
        assert_eq!(Quota::of_region("us-west-2").bytes, 5_242_880.0);
        assert_eq!(Quota::of_region("eu-north-1").requests, 1_000.0);
    }
}
