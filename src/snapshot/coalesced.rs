//! Runs whose changes to one user share a record.

use std::collections::BTreeSet;

use rusqlite::params;

use super::journal::{Chunk, JournaledRun, waiting_chunk};
use super::writer::ChunkKind;
use super::{Snapshot, SnapshotError};

impl Snapshot {
    /// Lets the changes of these runs, of which nothing was sent yet, share records; returns by which number they are
    /// known together.
    pub fn coalesce(&mut self, runs: &[i64]) -> Result<Option<i64>, SnapshotError> {
        let first = runs.first().copied();
        let transaction = self.begin()?;
        for run in runs {
            transaction
                .prepare_cached("UPDATE run SET together = ?2 WHERE number = ?1")?
                .execute(params![run, first])?;
        }
        transaction.commit()?;
        Ok(first)
    }

    /// How many runs are known together: for ever as many, whatever was delivered of them.
    pub fn coalesced(&self, together: i64) -> Result<usize, SnapshotError> {
        // None of them is older than the first.
        let count: i64 = self.connection.query_row(
            "SELECT count(*) FROM run WHERE number >= ?1 AND together = ?1",
            [together],
            |row| row.get(0),
        )?;
        Ok(count as usize)
    }

    /// The first chunk of a run that is not delivered, from this one on: of those who leave, or of the others. Either
    /// are in the order of users.
    pub fn waiting_chunk(
        &self,
        run: &JournaledRun,
        leaving: bool,
        from: i64,
    ) -> Result<Option<Chunk>, SnapshotError> {
        let kind = match leaving {
            true => ChunkKind::Leaving,
            false => ChunkKind::Entering,
        };
        let mut statement = self.connection.prepare_cached(
            "SELECT seq, count, entries FROM chunk
             WHERE run = ?1 AND seq >= ?2 AND kind = ?3
               AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.run = chunk.run AND delivered.seq = chunk.seq)
             ORDER BY seq LIMIT 1",
        )?;
        let mut rows = statement.query(params![run.number, from, kind.as_str()])?;
        let row = rows.next()?;
        row.map(|row| waiting_chunk(&self.connection, run, row))
            .transpose()
    }

    /// The entries of a chunk that share no record any more.
    pub fn apart(&self, run: &JournaledRun, seq: i64) -> Result<BTreeSet<usize>, SnapshotError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT position FROM apart WHERE run = ?1 AND seq = ?2")?;
        let positions = statement.query_map([run.number, seq], |row| row.get::<_, i64>(0))?;
        let positions = positions.map(|position| position.map(|position| position as usize));
        Ok(positions.collect::<Result<_, _>>()?)
    }

    /// Notes of some of them that they share none from now on.
    pub fn set_apart(
        &mut self,
        run: &JournaledRun,
        seq: i64,
        entries: &BTreeSet<usize>,
    ) -> Result<(), SnapshotError> {
        let transaction = self.begin()?;
        for entry in entries {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO apart (run, seq, position) VALUES (?1, ?2, ?3)",
                )?
                .execute([run.number, seq, *entry as i64])?;
        }
        Ok(transaction.commit()?)
    }
}
