//! The way to end a query that is still looking for its first row.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, InterruptHandle};

/// Ends the query that a source runs, from another thread. One that has yet to begin is not held up by it: ask again.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Mutex<Option<InterruptHandle>>>);

impl Interrupt {
    /// Lets the queries of this connection be ended.
    pub(super) fn watch(&self, connection: &Connection) {
        *self.handle() = Some(connection.get_interrupt_handle());
    }

    pub fn interrupt(&self) {
        if let Some(handle) = self.handle().as_ref() {
            handle.interrupt();
        }
    }

    fn handle(&self) -> MutexGuard<'_, Option<InterruptHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}
