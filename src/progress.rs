//! How far a run is, for whoever wants to show it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Shared between a run, which writes, and the shell, which looks now and then.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    what: Mutex<String>,
    read: AtomicU64,
    delivered: AtomicU64,
    to_deliver: AtomicU64,
    landed: AtomicU64,
}

/// What there is to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Idle,
    /// So many members were read from the source of this audience.
    Planning {
        audience: String,
        read: u64,
    },
    /// So many changes of this audience, or of several, are delivered.
    Delivering {
        audience: String,
        delivered: u64,
        of: u64,
    },
    /// So many records were read of what landed.
    Landing {
        read: u64,
    },
}

impl Progress {
    /// A run reads its source now.
    pub fn plan(&self, audience: &str) {
        self.begin(audience, 0);
    }

    /// A run delivers so many changes now.
    pub fn deliver(&self, audience: &str, changes: u64) {
        self.begin(audience, changes);
    }

    fn begin(&self, what: &str, to_deliver: u64) {
        *self.0.what.lock().unwrap_or_else(PoisonError::into_inner) = what.to_owned();
        self.0.read.store(0, Ordering::Relaxed);
        self.0.delivered.store(0, Ordering::Relaxed);
        self.0.to_deliver.store(to_deliver, Ordering::Relaxed);
    }

    pub fn read(&self, members: u64) {
        self.0.read.store(members, Ordering::Relaxed);
    }

    /// So many more changes are delivered.
    pub fn delivered(&self, changes: u64) {
        self.0.delivered.fetch_add(changes, Ordering::Relaxed);
    }

    pub fn landed(&self, records: u64) {
        self.0.landed.store(records, Ordering::Relaxed);
    }

    /// Where the run is.
    pub fn step(&self) -> Step {
        let landed = self.0.landed.load(Ordering::Relaxed);
        if landed > 0 {
            return Step::Landing { read: landed };
        }
        let audience = self
            .0
            .what
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let of = self.0.to_deliver.load(Ordering::Relaxed);
        match (audience.is_empty(), of) {
            (true, _) => Step::Idle,
            (_, 0) => Step::Planning {
                audience,
                read: self.0.read.load(Ordering::Relaxed),
            },
            _ => Step::Delivering {
                audience,
                delivered: self.0.delivered.load(Ordering::Relaxed),
                of,
            },
        }
    }
}
