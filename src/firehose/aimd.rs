//! Finds out what a stream takes: a little more as long as it takes everything, a good deal less when it refuses.
//!
//! Firehose says neither what its quota is nor how much of it others use, and refuses what is over it record by
//! record. So the rate follows the refused fraction: additive increase, multiplicative decrease. Pure: time comes in.
//! <https://en.wikipedia.org/wiki/Additive_increase/multiplicative_decrease>

use std::time::Duration;

use tokio::time::Instant;

/// In bytes a second. A stream that takes less than this for long is not throttled but broken: the region's smallest
/// quota is 16 times as much.
const LOWEST_RATE: f64 = 65_536.0;
/// How much of its first rate a stream is given more, each second.
const RAISE: f64 = 0.1;
/// Quotas are by the second.
const SECOND: Duration = Duration::from_secs(1);

/// How many bytes a second a stream is given; infinite until it refuses something.
#[derive(Debug)]
pub(super) struct Rate {
    limit: f64,
    /// By which the limit grows in a second.
    step: f64,
    raised_at: Instant,
    accepted: Accepted,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            limit: f64::INFINITY,
            step: 0.0,
            raised_at: now,
            accepted: Accepted {
                since: now,
                bytes: 0.0,
                before: 0.0,
            },
        }
    }

    pub(super) const fn limit(&self) -> f64 {
        self.limit
    }

    /// A call was accepted, or part of one. Beyond `enough` there is no limit any more.
    pub(super) fn accept(&mut self, bytes: usize, enough: f64, now: Instant) {
        self.accepted.add(bytes as f64, now);
        let passed = now.duration_since(self.raised_at).min(SECOND);
        self.raised_at = now;
        self.limit += self.step * passed.as_secs_f64();
        if self.limit >= enough {
            self.limit = f64::INFINITY;
        }
    }

    /// A fraction of a call was refused. Returns whether that begins a limit.
    pub(super) fn refuse(&mut self, fraction: f64, now: Instant) -> bool {
        let is_first = self.limit.is_infinite();
        if is_first {
            let taken = self.accepted.rate(now);
            // A stream that has taken nothing yet says nothing about how much it would take.
            if taken == 0.0 {
                return false;
            }
            self.limit = taken.max(LOWEST_RATE);
            self.step = self.limit * RAISE;
            self.raised_at = now;
        }
        self.limit = (self.limit * (1.0 - fraction / 2.0)).max(LOWEST_RATE);
        is_first
    }
}

/// How much was accepted lately.
#[derive(Debug)]
struct Accepted {
    since: Instant,
    bytes: f64,
    /// In the second before, as a rate.
    before: f64,
}

impl Accepted {
    fn add(&mut self, bytes: f64, now: Instant) {
        let passed = now.duration_since(self.since);
        if passed >= SECOND {
            self.before = self.bytes / passed.as_secs_f64();
            self.since = now;
            self.bytes = 0.0;
        }
        self.bytes += bytes;
    }

    /// In bytes a second. What came in less than a second counts as if it had taken one: a burst is no rate.
    fn rate(&self, now: Instant) -> f64 {
        let passed = now.duration_since(self.since).max(SECOND);
        self.before.max(self.bytes / passed.as_secs_f64())
    }
}

/// How many calls may be in flight together.
#[derive(Debug)]
pub(super) struct Window {
    limit: f64,
    most: f64,
}

impl Window {
    pub(super) const fn new(most: f64) -> Self {
        Self { limit: most, most }
    }

    pub(super) const fn calls(&self) -> usize {
        self.limit as usize
    }

    /// One more when as many calls as there may be went well.
    pub(super) fn grow(&mut self) {
        self.limit = self.most.min(self.limit + 1.0 / self.limit);
    }

    /// Half of them when a call came to nothing.
    pub(super) fn shrink(&mut self, fraction: f64) {
        self.limit = (self.limit * (1.0 - fraction / 2.0)).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn there_is_no_limit_until_something_is_refused() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        rate.accept(MIB, f64::INFINITY, start);
        assert_eq!(rate.limit(), f64::INFINITY);
        assert!(rate.refuse(0.5, after(start, 0.5)));
        // A mebibyte in half a second is a mebibyte a second, and a quarter of that less.
        assert_eq!(rate.limit(), 0.75 * MIB as f64);
        assert!(!rate.refuse(1.0, after(start, 0.6)));
        assert_eq!(rate.limit(), 0.375 * MIB as f64);
    }

    #[test]
    fn a_stream_that_has_taken_nothing_gets_no_limit() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert!(!rate.refuse(1.0, start));
        assert_eq!(rate.limit(), f64::INFINITY);
    }

    #[test]
    fn it_grows_by_a_tenth_of_its_first_rate_a_second_until_it_is_enough() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        rate.accept(MIB, f64::INFINITY, start);
        rate.refuse(1.0, start);
        for second in 1..=4 {
            rate.accept(MIB, 0.95 * MIB as f64, after(start, f64::from(second)));
        }
        assert!((rate.limit() - 0.9 * MIB as f64).abs() < 1.0);
        rate.accept(MIB, 0.95 * MIB as f64, after(start, 5.0));
        assert_eq!(rate.limit(), f64::INFINITY);
    }

    #[test]
    fn however_much_is_refused_something_is_still_sent() {
        let start = Instant::now();
        let (mut rate, mut window) = (Rate::new(start), Window::new(16.0));
        rate.accept(MIB, f64::INFINITY, start);
        for _ in 0..100 {
            rate.refuse(1.0, start);
            window.shrink(1.0);
        }
        assert_eq!((rate.limit(), window.calls()), (LOWEST_RATE, 1));
    }

    #[test]
    fn a_window_halves_at_once_and_grows_by_one_a_round() {
        let mut window = Window::new(16.0);
        window.shrink(1.0);
        assert_eq!(window.calls(), 8);
        for _ in 0..9 {
            window.grow();
        }
        assert_eq!(window.calls(), 9);
        for _ in 0..1_000 {
            window.grow();
        }
        assert_eq!(window.calls(), 16);
    }
}
