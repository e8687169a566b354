//! How long the deliveries of one command or tick may take together.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time that deliveries may take. Only the time in which something is delivered counts.
#[derive(Debug, Default)]
pub(super) struct TimeLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is left after the deliveries that have ended; `None` without a limit.
    left: Option<Duration>,
    deliveries: usize,
    /// Since when at least one delivery is under way.
    since: Option<Instant>,
}

impl State {
    /// When the time is over; `None` without a limit.
    fn end(&self, now: Instant) -> Option<Instant> {
        self.since.unwrap_or(now).checked_add(self.left?)
    }
}

impl TimeLimit {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the deliveries that follow this much time in all.
    pub(super) fn begin(&self, limit: Option<Duration>) {
        let mut state = self.lock();
        state.left = limit;
        state.since = state.since.map(|_| Instant::now());
    }

    /// Counts the time until the returned value is dropped.
    pub(super) fn start(&self) -> Counting<'_> {
        let mut state = self.lock();
        state.deliveries += 1;
        state.since.get_or_insert_with(Instant::now);
        Counting(self)
    }

    pub(super) fn is_up(&self) -> bool {
        let now = Instant::now();
        self.lock().end(now).is_some_and(|end| end <= now)
    }

    /// Waits until the time is over.
    pub(super) async fn up(&self) {
        let end = self.lock().end(Instant::now());
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    }
}

/// A delivery that is under way.
#[must_use]
#[derive(Debug)]
pub(super) struct Counting<'a>(&'a TimeLimit);

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.deliveries -= 1;
        if state.deliveries == 0 {
            let took = state.since.take().map_or(Duration::ZERO, |at| at.elapsed());
            state.left = state.left.map(|left| left.saturating_sub(took));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn only_deliveries_use_up_their_time() {
        let limit = TimeLimit::default();
        limit.begin(Some(3 * SECOND));
        for _ in 0..2 {
            // A query that takes long.
            sleep(10 * SECOND).await;
            assert!(!limit.is_up());
            let _counting = limit.start();
            // Two at once count once.
            let _another = limit.start();
            sleep(SECOND).await;
        }
        sleep(10 * SECOND).await;
        let counting = limit.start();
        let started = Instant::now();
        limit.up().await;
        assert_eq!(started.elapsed().as_millis() / 10, 100);
        assert!(limit.is_up());
        drop(counting);
        // The next delivery begins nothing,
        let counting = limit.start();
        assert!(limit.is_up());
        drop(counting);
        // until the next command or tick.
        limit.begin(Some(3 * SECOND));
        assert!(!limit.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_the_time_is_never_over() {
        let limit = TimeLimit::default();
        limit.begin(None);
        let _counting = limit.start();
        sleep(1_000_000 * SECOND).await;
        assert!(!limit.is_up());
    }
}
