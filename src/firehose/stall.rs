//! When to give up on a stream that accepts nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::mapping::StreamName;

/// A delivery to a stream that accepts nothing for this long ends.
const STALL_TIMEOUT: Duration = Duration::from_secs(90);
/// The first reason is logged after this long.
const WARN_AFTER: Duration = Duration::from_secs(5);

/// When a stream last accepted something, over all deliveries to it.
#[derive(Debug)]
pub(super) struct StallTimeout {
    stream: StreamName,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last_accepted: Instant,
    /// Why the first call after that accepted nothing.
    reason: Option<String>,
    is_logged: bool,
    /// Later deliveries need not wait as long again: they try once.
    has_given_up: bool,
    /// Calls that wait for our own rate limit, and since when there are any: meanwhile the stream has nothing to accept.
    waiting: usize,
    waiting_since: Instant,
    /// Deliveries under way, and since when there are none: meanwhile nothing is offered.
    deliveries: usize,
    idle_since: Instant,
}

impl State {
    /// When the stream would have accepted something last if no call had waited.
    fn last_accepted(&self, now: Instant) -> Instant {
        match self.waiting {
            0 => self.last_accepted,
            _ => {
                let since = self.waiting_since.max(self.last_accepted);
                self.last_accepted + now.duration_since(since)
            }
        }
    }

    fn restart(&mut self) {
        self.last_accepted = Instant::now();
        (self.reason, self.is_logged, self.has_given_up) = (None, false, false);
    }

    /// When the reason is to be logged.
    fn log_at(&self, now: Instant) -> Option<Instant> {
        let is_due = self.reason.is_some() && !self.is_logged && !self.has_given_up;
        is_due.then(|| self.last_accepted(now) + WARN_AFTER)
    }
}

impl StallTimeout {
    pub(super) fn new(stream: StreamName) -> Self {
        let now = Instant::now();
        Self {
            stream,
            state: Mutex::new(State {
                last_accepted: now,
                reason: None,
                is_logged: false,
                has_given_up: false,
                waiting: 0,
                waiting_since: now,
                deliveries: 0,
                idle_since: now,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a delivery. The time since the last one does not count.
    pub(super) fn start(&self) -> Delivering<'_> {
        let mut state = self.lock();
        if state.deliveries == 0 {
            let idle = state.idle_since.max(state.last_accepted).elapsed();
            state.last_accepted += idle;
        }
        state.deliveries += 1;
        Delivering(self)
    }

    /// Forgets an outage: the next delivery has all the time again.
    pub(super) fn restart(&self) {
        self.lock().restart();
    }

    /// The same if no delivery is under way: one that is ends when its time is over, whatever begins beside it.
    pub(super) fn restart_if_idle(&self) -> bool {
        let mut state = self.lock();
        let is_idle = state.deliveries == 0;
        if is_idle {
            state.restart();
        }
        is_idle
    }

    /// Notes why a call accepted nothing.
    pub(super) fn failed(&self, reason: &str) {
        self.lock().reason.get_or_insert_with(|| reason.to_owned());
        self.log_when_due();
    }

    fn log_when_due(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        if state.log_at(now).is_none_or(|at| now < at) {
            return;
        }
        state.is_logged = true;
        tracing::warn!(
            stream = %self.stream,
            "nothing was accepted for {} s, and is tried for up to {} s: {}",
            WARN_AFTER.as_secs(),
            STALL_TIMEOUT.as_secs(),
            state.reason.as_deref().unwrap_or_default()
        );
    }

    /// A call waits for our own rate limit, until the returned value is dropped.
    pub(super) fn wait(&self) -> Waiting<'_> {
        let mut state = self.lock();
        if state.waiting == 0 {
            state.waiting_since = Instant::now();
        }
        state.waiting += 1;
        Waiting(self)
    }

    /// When deliveries end if nothing more is accepted.
    pub(super) fn deadline(&self) -> Instant {
        self.lock().last_accepted(Instant::now()) + STALL_TIMEOUT
    }

    /// Waits until then; `false` where the timeout is over first.
    pub(super) async fn sleep_until(&self, until: Instant) -> bool {
        loop {
            self.log_when_due();
            let (deadline, now) = (self.deadline(), Instant::now());
            if deadline <= now {
                return false;
            }
            if until <= now {
                return true;
            }
            let log_at = self.lock().log_at(now).unwrap_or(until);
            sleep_until(until.min(deadline).min(log_at)).await;
        }
    }

    pub(super) fn give_up(&self) {
        self.lock().has_given_up = true;
    }
}

/// A delivery that is under way.
#[must_use]
#[derive(Debug)]
pub(super) struct Delivering<'a>(&'a StallTimeout);

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.deliveries -= 1;
        state.idle_since = Instant::now();
    }
}

/// A call that waits for our own rate limit.
#[must_use]
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a StallTimeout);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.last_accepted = state.last_accepted(now);
        state.waiting -= 1;
        state.waiting_since = now;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stall_timeout() -> StallTimeout {
        StallTimeout::new(StreamName::parse("members").unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_our_own_rate_limit_is_no_stall() {
        let stall = stall_timeout();
        let _delivering = stall.start();
        let (start, long) = (Instant::now(), 100 * SECOND);
        let first = stall.wait();
        sleep(long).await;
        let second = stall.wait();
        sleep(long).await;
        drop(first);
        sleep(long).await;
        // Two that wait together have waited once.
        assert_eq!(stall.deadline(), start + 3 * long + STALL_TIMEOUT);
        drop(second);
        sleep(SECOND).await;
        assert_eq!(stall.deadline(), start + 3 * long + STALL_TIMEOUT);
        let waiting = stall.wait();
        sleep(SECOND).await;
        stall.restart();
        let accepted = Instant::now();
        sleep(SECOND).await;
        drop(waiting);
        assert_eq!(stall.deadline(), accepted + SECOND + STALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_time_of_deliveries_counts() {
        let stall = stall_timeout();
        sleep(100 * SECOND).await;
        let first = stall.start();
        assert_eq!(stall.deadline(), Instant::now() + STALL_TIMEOUT);
        sleep(SECOND).await;
        // It goes on beside the first.
        let second = stall.start();
        assert_eq!(stall.deadline(), Instant::now() + STALL_TIMEOUT - SECOND);
        drop((first, second));
        sleep(100 * SECOND).await;
        let third = stall.start();
        assert_eq!(stall.deadline(), Instant::now() + STALL_TIMEOUT - SECOND);
        assert!(!stall.sleep_until(Instant::now() + 100 * SECOND).await);
        stall.give_up();
        drop(third);
        sleep(100 * SECOND).await;
        let _fourth = stall.start();
        assert!(!stall.sleep_until(Instant::now()).await);
        stall.restart();
        assert!(stall.sleep_until(Instant::now()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_reason_is_logged_after_5_seconds() {
        let stall = stall_timeout();
        let _delivering = stall.start();
        stall.failed("the first");
        stall.failed("the second");
        let is_logged = |stall: &StallTimeout| stall.lock().is_logged;
        assert!(stall.sleep_until(Instant::now() + SECOND).await);
        assert!(!is_logged(&stall));
        assert_eq!(stall.lock().reason.as_deref(), Some("the first"));
        let until = Instant::now() + 20 * SECOND;
        {
            let waiting = stall.sleep_until(until);
            let logged = async {
                sleep(4_001 * SECOND / 1_000).await;
                assert!(is_logged(&stall));
            };
            tokio::join!(waiting, logged);
        }
        // What is accepted begins anew.
        stall.restart();
        assert!(!is_logged(&stall));
    }
}
