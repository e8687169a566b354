//! When to give up on a destination.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A run in which nothing at all is accepted for so long is ended.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);

/// When something was last accepted, over all that is delivered to a destination, and how long that may go on.
#[derive(Debug)]
pub struct Pulse {
    beat: Mutex<Beat>,
    /// How long all runs of one command or tick may deliver.
    deliver_for: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Beat {
    last: Instant,
    /// The destination is out of reach: whoever comes next need not wait as long again.
    gave_up: bool,
    /// Calls that wait for their turn, and since when there are any: that is no silence of the destination's.
    waiting: usize,
    waiting_since: Instant,
    deliveries: usize,
    delivering_since: Instant,
    /// What deliveries may take; used up by those that have ended.
    left: Option<Duration>,
}

impl Beat {
    /// When it would have been accepted last if nobody waited.
    fn last(&self, now: Instant) -> Instant {
        match self.waiting {
            0 => self.last,
            _ => self.last + now.duration_since(self.waiting_since.max(self.last)),
        }
    }

    /// When the time for deliveries is over; `None` where it is not limited.
    fn until(&self, now: Instant) -> Option<Instant> {
        let since = match self.deliveries {
            0 => now,
            _ => self.delivering_since,
        };
        since.checked_add(self.left?)
    }
}

impl Pulse {
    pub fn new() -> Self {
        Self::bounded(None)
    }

    /// For deliveries that take so long in all, from the last [`reset`](Self::reset) on.
    pub fn bounded(deliver_for: Option<Duration>) -> Self {
        let now = Instant::now();
        let beat = Beat {
            last: now,
            gave_up: false,
            waiting: 0,
            waiting_since: now,
            deliveries: 0,
            delivering_since: now,
            left: None,
        };
        Self {
            beat: Mutex::new(beat),
            deliver_for,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the clock for another delivery, unless an earlier one was given up. What happens when no delivery is
    /// under way takes nothing of the time for them.
    pub fn start(&self) -> Delivering<'_> {
        let (mut beat, now) = (self.lock(), Instant::now());
        if !beat.gave_up {
            beat.last = now;
        }
        if beat.deliveries == 0 {
            beat.delivering_since = now;
        }
        beat.deliveries += 1;
        Delivering(self)
    }

    /// Forgets an outage: whoever comes next has all the time again.
    pub fn reset(&self) {
        let (mut beat, now) = (self.lock(), Instant::now());
        (beat.last, beat.gave_up) = (now, false);
        (beat.left, beat.delivering_since) = (self.deliver_for, now);
    }

    pub(super) fn beat(&self) {
        let mut beat = self.lock();
        (beat.last, beat.gave_up) = (Instant::now(), false);
    }

    /// A call waits for its turn, which is not the destination's doing.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let mut beat = self.lock();
        if beat.waiting == 0 {
            beat.waiting_since = Instant::now();
        }
        beat.waiting += 1;
        Waiting(self)
    }

    /// When a delivery without a further beat is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.lock().last(Instant::now()) + GIVE_UP_AFTER
    }

    pub(super) fn give_up(&self) {
        self.lock().gave_up = true;
    }

    /// Whether the time for deliveries is over.
    pub fn is_time_up(&self) -> bool {
        let now = Instant::now();
        self.lock().until(now).is_some_and(|until| until <= now)
    }

    /// Waits until the time for deliveries is over.
    pub(super) async fn time_is_up(&self) {
        // It is not moved while something is delivered.
        let until = self.lock().until(Instant::now());
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

/// A delivery that is under way.
#[must_use]
#[derive(Debug)]
pub struct Delivering<'a>(&'a Pulse);

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        let (mut beat, now) = (self.0.lock(), Instant::now());
        beat.deliveries -= 1;
        if beat.deliveries == 0 {
            let took = now.duration_since(beat.delivering_since);
            beat.left = beat.left.map(|left| left.saturating_sub(took));
        }
    }
}

/// A call that waits for its turn.
#[must_use]
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Pulse);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (mut beat, now) = (self.0.lock(), Instant::now());
        beat.last = beat.last(now);
        beat.waiting -= 1;
        beat.waiting_since = now;
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_deliveries_use_up_their_time() {
        let pulse = Pulse::bounded(Some(3 * SECOND));
        pulse.reset();
        for _ in 0..2 {
            // A query that takes long.
            sleep(10 * SECOND).await;
            assert!(!pulse.is_time_up());
            let _delivering = pulse.start();
            sleep(SECOND).await;
        }
        sleep(10 * SECOND).await;
        let delivering = pulse.start();
        let started = Instant::now();
        pulse.time_is_up().await;
        assert_eq!(started.elapsed().as_millis() / 10, 100);
        assert!(pulse.is_time_up());
        drop(delivering);
        // Whoever comes next begins nothing,
        let delivering = pulse.start();
        assert!(pulse.is_time_up());
        drop(delivering);
        // until the next command or tick.
        pulse.reset();
        assert!(!pulse.is_time_up());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_turn_is_no_silence() {
        let pulse = Pulse::new();
        let _delivering = pulse.start();
        let (start, long) = (Instant::now(), 100 * SECOND);
        let first = pulse.wait();
        sleep(long).await;
        let second = pulse.wait();
        sleep(long).await;
        drop(first);
        sleep(long).await;
        // Two that wait together have waited once.
        assert_eq!(pulse.deadline(), start + 3 * long + GIVE_UP_AFTER);
        drop(second);
        sleep(SECOND).await;
        assert_eq!(pulse.deadline(), start + 3 * long + GIVE_UP_AFTER);
        let waiting = pulse.wait();
        sleep(SECOND).await;
        pulse.beat();
        let beat = Instant::now();
        sleep(SECOND).await;
        drop(waiting);
        assert_eq!(pulse.deadline(), beat + SECOND + GIVE_UP_AFTER);
    }
}
