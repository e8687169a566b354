//! What the snapshot knows of its own life: the number and the time of its last run, and who may write to it. It outlives
//! pruned rows.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::lock::RunLock;
use super::{JournaledRun, Snapshot, SnapshotError};
use crate::run::Timestamp;

/// The right of one process to write to the snapshot.
pub(super) struct Holder {
    lock: RunLock,
    /// Random, and in the snapshot: a process whose lock file was removed finds another one's there.
    token: [u8; 16],
}

impl Snapshot {
    /// Lets the holder of the lock write. Each transaction from now on first sees that nobody else has taken over.
    pub fn hold(&mut self, lock: RunLock) -> Result<(), SnapshotError> {
        let token = *Uuid::new_v4().as_bytes();
        self.connection
            .execute("UPDATE life SET holder = ?1", [&token[..]])?;
        self.holder = Some(Holder { lock, token });
        Ok(())
    }

    /// Writes into the lock file that these runs are about to tell people something. They must be on disk: later ones that
    /// are being planned may come to nothing.
    pub fn note_delivery<'r>(
        &mut self,
        runs: impl IntoIterator<Item = &'r JournaledRun>,
    ) -> Result<(), SnapshotError> {
        let last = runs.into_iter().map(|run| run.number).max();
        match (&mut self.holder, last) {
            (Some(holder), Some(last)) => {
                holder.lock.note_run(last).map_err(SnapshotError::LockFile)
            }
            _ => Ok(()),
        }
    }

    /// When the last run began: the next one must begin later.
    pub fn last_started_at(&self) -> Result<Option<Timestamp>, SnapshotError> {
        let last = self
            .connection
            .prepare_cached("SELECT last_started_at FROM life")?
            .query_row([], |row| row.get::<_, Option<i64>>(0))?;
        Ok(last.map(Timestamp::from_millis))
    }

    /// The number of the last run; 0 before the first.
    pub fn last_run(&self) -> Result<i64, SnapshotError> {
        Ok(self
            .connection
            .prepare_cached("SELECT last_run FROM life")?
            .query_row([], |row| row.get(0))?)
    }

    /// Goes on from a number, where that is higher than the last one.
    pub fn go_on_from(&mut self, number: i64) -> Result<(), SnapshotError> {
        self.connection
            .execute("UPDATE life SET last_run = max(last_run, ?1)", [number])?;
        Ok(())
    }
}

/// The number of a run that begins at a time. It is never given again.
pub(super) fn next_run(
    connection: &Connection,
    started_at: Timestamp,
) -> Result<i64, SnapshotError> {
    Ok(connection
        .prepare_cached(
            "UPDATE life SET last_run = last_run + 1, last_started_at = max(ifnull(last_started_at, ?1), ?1)
             RETURNING last_run",
        )?
        .query_row(params![started_at.millis()], |row| row.get(0))?)
}

/// Sees, in a transaction that has begun, that the snapshot is still held by this process.
pub(super) fn must_be_held(
    connection: &Connection,
    holder: Option<&Holder>,
) -> Result<(), SnapshotError> {
    let Some(Holder { lock, token }) = holder else {
        return Ok(());
    };
    let found: Option<Vec<u8>> = connection
        .prepare_cached("SELECT holder FROM life")?
        .query_row([], |row| row.get(0))?;
    match lock.is_in_place() && found.as_deref() == Some(&token[..]) {
        true => Ok(()),
        false => Err(SnapshotError::TakenOver),
    }
}
