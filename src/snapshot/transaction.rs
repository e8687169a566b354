//! Several writes in one transaction: each commit waits for the disk, and two hundred small plans need not wait two
//! hundred times. What fails takes only itself back.

use std::ops::Deref;

use rusqlite::{Connection, Savepoint, Transaction, TransactionBehavior};

use super::{Snapshot, SnapshotError, life};

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
        let writing = match self.connection.is_autocommit() {
            true => {
                let behavior = TransactionBehavior::Immediate;
                Writing::Whole(self.connection.transaction_with_behavior(behavior)?)
            }
            false => Writing::Part(self.connection.savepoint()?),
        };
        life::must_be_held(&writing, self.holder.as_ref())?;
        Ok(writing)
    }

    /// What is written from now on shares a transaction, until [`commit_shared`](Self::commit_shared). Several may share at
    /// once. A snapshot that is dropped before has written none of it.
    pub fn share_transaction(&mut self) -> Result<(), SnapshotError> {
        if self.sharing == 0 {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
        }
        self.sharing += 1;
        Ok(())
    }

    /// Puts on disk what was written in the shared transaction. It goes on for the others who share it.
    pub fn commit_shared(&mut self) -> Result<(), SnapshotError> {
        self.sharing -= 1;
        self.connection.execute_batch("COMMIT")?;
        if self.sharing > 0 {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
        }
        Ok(())
    }

    /// Everything that `write` does, or nothing of it.
    pub fn together<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let [begin, commit, roll_back] = match self.connection.is_autocommit() {
            true => ["BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"],
            false => [
                "SAVEPOINT together",
                "RELEASE together",
                "ROLLBACK TO together; RELEASE together",
            ],
        };
        self.connection.execute_batch(begin)?;
        let held = life::must_be_held(&self.connection, self.holder.as_ref());
        self.is_all_or_nothing = true;
        let written = held.and_then(|()| write(self));
        self.is_all_or_nothing = false;
        let written = written.and_then(|written| {
            self.connection.execute_batch(commit)?;
            Ok(written)
        });
        if written.is_err() {
            // The first error is the one that counts, and may have ended the transaction already.
            drop(self.connection.execute_batch(roll_back));
        }
        written
    }
}
