//! Several writes in one transaction: each commit waits for the disk, and two hundred small plans need not wait two
//! hundred times. What fails takes only itself back.

use std::ops::Deref;

use rusqlite::{Connection, Savepoint, Transaction, TransactionBehavior};

use super::{Snapshot, SnapshotError};

/// A transaction of its own, or a part of the one that is open. Dropped without a commit, it has changed nothing.
pub(super) enum Writing<'s> {
    Whole(Transaction<'s>),
    Part(Savepoint<'s>),
    /// Undone with all the rest: a savepoint would copy each page that it changes.
    Within(&'s Connection),
}

impl Writing<'_> {
    pub(super) fn commit(self) -> rusqlite::Result<()> {
        match self {
            Self::Whole(transaction) => transaction.commit(),
            Self::Part(savepoint) => savepoint.commit(),
            Self::Within(_) => Ok(()),
        }
    }
}

impl Deref for Writing<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        match self {
            Self::Whole(transaction) => transaction,
            Self::Part(savepoint) => savepoint,
            Self::Within(connection) => connection,
        }
    }
}

impl Snapshot {
    pub(super) fn begin(&mut self) -> Result<Writing<'_>, SnapshotError> {
        if self.is_all_or_nothing {
            return Ok(Writing::Within(&self.connection));
        }
        if !self.connection.is_autocommit() {
            return Ok(Writing::Part(self.connection.savepoint()?));
        }
        let behavior = TransactionBehavior::Immediate;
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        Ok(Writing::Whole(transaction))
    }

    /// What is written from now on shares a transaction, until [`close_together`](Self::close_together). A snapshot that is dropped
    /// before has written none of it.
    pub fn open_together(&mut self) -> Result<(), SnapshotError> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Puts on disk what was written together.
    pub fn close_together(&mut self) -> Result<(), SnapshotError> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    /// Everything that `write` does, or nothing of it.
    pub fn together<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        self.open_together()?;
        self.is_all_or_nothing = true;
        let written = write(self);
        self.is_all_or_nothing = false;
        let written = written.and_then(|written| {
            self.close_together()?;
            Ok(written)
        });
        if written.is_err() {
            // The first error is the one that counts, and may have ended the transaction already.
            drop(self.connection.execute_batch("ROLLBACK"));
        }
        written
    }
}
