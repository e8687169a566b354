//! The way to end a reading, or a query that is still looking for its first row.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, InterruptHandle};

/// Ends what a source does, from another thread. A query that has yet to begin is not held up by it: ask again.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Reading>);

#[derive(Default)]
struct Reading {
    query: Mutex<Option<InterruptHandle>>,
    is_over: AtomicBool,
}

impl Interrupt {
    /// Lets the queries of this connection be ended.
    pub(super) fn watch(&self, connection: &Connection) {
        *self.handle() = Some(connection.get_interrupt_handle());
    }

    /// Whether somebody has asked for the end: for those who read without a query.
    pub(super) fn is_requested(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    pub fn interrupt(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        if let Some(handle) = self.handle().as_ref() {
            handle.interrupt();
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<InterruptHandle>> {
        self.0.query.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}
