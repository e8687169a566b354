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
    until: Option<Instant>,
}

impl Pulse {
    pub fn new() -> Self {
        Self::bounded(None)
    }

    /// For deliveries that end after so long, counted from the last [`reset`](Self::reset).
    pub fn bounded(deliver_for: Option<Duration>) -> Self {
        let beat = Beat {
            last: Instant::now(),
            gave_up: false,
            until: None,
        };
        Self {
            beat: Mutex::new(beat),
            deliver_for,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the clock for another delivery, unless an earlier one was given up.
    pub fn start(&self) {
        let mut beat = self.lock();
        if !beat.gave_up {
            beat.last = Instant::now();
        }
    }

    /// Forgets an outage: whoever comes next has all the time again.
    pub fn reset(&self) {
        let now = Instant::now();
        *self.lock() = Beat {
            last: now,
            gave_up: false,
            until: self.deliver_for.and_then(|time| now.checked_add(time)),
        };
    }

    pub(super) fn beat(&self) {
        let mut beat = self.lock();
        (beat.last, beat.gave_up) = (Instant::now(), false);
    }

    /// When a delivery without a further beat is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.lock().last + GIVE_UP_AFTER
    }

    pub(super) fn give_up(&self) {
        self.lock().gave_up = true;
    }

    /// Whether the time for deliveries is over.
    pub fn is_time_up(&self) -> bool {
        self.lock()
            .until
            .is_some_and(|until| until <= Instant::now())
    }

    /// Waits until the time for deliveries is over.
    pub(super) async fn time_is_up(&self) {
        // It is not moved while something is delivered.
        let until = self.lock().until;
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}
