//! The way to end a reading, or a query that is still looking for its first row.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

/// Ends what a source does, from another thread. A query that has yet to begin is not held up by it: ask again. A
/// reading has few queries, and what they are ended by does nothing once they have ended.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Reading>);

/// Ends a query that runs, and does not wait for that.
type EndQuery = Box<dyn Fn() + Send>;

#[derive(Default)]
struct Reading {
    queries: Mutex<Vec<EndQuery>>,
    is_over: AtomicBool,
}

impl Interrupt {
    /// Lets the queries of this connection be ended.
    pub(super) fn watch(&self, connection: &Connection) {
        let handle = connection.get_interrupt_handle();
        self.end_by(move || handle.interrupt());
    }

    /// Says how the query that runs next is ended. Others may be running.
    pub(super) fn end_by(&self, end: impl Fn() + Send + 'static) {
        self.queries().push(Box::new(end));
    }

    /// Whether somebody has asked for the end: for those who read without a query.
    pub(crate) fn is_requested(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }

    pub fn interrupt(&self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.queries().iter().for_each(|end| end());
    }

    fn queries(&self) -> MutexGuard<'_, Vec<EndQuery>> {
        self.0
            .queries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}
