//! What is known of each stream of a destination, shared by all deliveries to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Quota;
use super::rate_limiter::RateLimiter;
use super::stall::StallTimeout;
use super::suspects::Evidence;
use crate::mapping::StreamName;

#[derive(Debug)]
pub(super) struct Streams {
    quota: Quota,
    streams: Mutex<HashMap<StreamName, Arc<StreamState>>>,
}

impl Streams {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            streams: Mutex::default(),
        }
    }

    pub(super) const fn quota(&self) -> Quota {
        self.quota
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamName, Arc<StreamState>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, stream: &StreamName) -> Arc<StreamState> {
        let mut streams = self.lock();
        let state = || Arc::new(StreamState::new(stream, self.quota));
        Arc::clone(streams.entry(stream.clone()).or_insert_with(state))
    }

    /// Forgets outages and refusals, but not of streams to which another tick delivers now.
    pub(super) fn begin(&self) {
        for state in self.lock().values() {
            if state.stall.restart_if_idle() {
                state.evidence().begin();
            }
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) stall: StallTimeout,
    evidence: Mutex<Evidence>,
}

impl StreamState {
    fn new(stream: &StreamName, quota: Quota) -> Self {
        Self {
            limiter: Arc::new(RateLimiter::new(quota)),
            stall: StallTimeout::new(stream.clone()),
            evidence: Mutex::default(),
        }
    }

    pub(super) fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, and tells its number.
    pub(super) fn answered(&self, is_accepted: bool) -> u64 {
        let mut evidence = self.evidence();
        let number = evidence.answered();
        if is_accepted {
            evidence.accepted();
            drop(evidence);
            self.stall.restart();
        }
        number
    }
}
