//! When to give up on a destination.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A run in which nothing at all is accepted for so long is ended.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);

/// When something was last accepted, over all that is delivered to a destination.
#[derive(Debug)]
pub struct Pulse(Mutex<Beat>);

#[derive(Debug)]
struct Beat {
    last: Instant,
    /// The destination is out of reach: whoever comes next need not wait as long again.
    gave_up: bool,
}

impl Pulse {
    pub fn new() -> Self {
        Self(Mutex::new(Beat {
            last: Instant::now(),
            gave_up: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        *self.lock() = Beat {
            last: Instant::now(),
            gave_up: false,
        };
    }

    pub(super) fn beat(&self) {
        *self.lock() = Beat {
            last: Instant::now(),
            gave_up: false,
        };
    }

    /// When a delivery without a further beat is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.lock().last + GIVE_UP_AFTER
    }

    pub(super) fn give_up(&self) {
        self.lock().gave_up = true;
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}
