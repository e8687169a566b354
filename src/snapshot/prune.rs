//! What is dropped after `history`: delivered chunks, and runs that changed nothing.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{Snapshot, SnapshotError};
use crate::run::Timestamp;

/// A run that begins so long after the last one prunes nothing: a clock that was far ahead once must not drop a history
/// that is young.
const SUSPICIOUS_GAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The next run that begins so much later, by the same clock, does.
const AGREES_AFTER: Duration = Duration::from_secs(60 * 60);

/// Rows that one transaction drops, so that the log stays short.
const SLICE: i64 = 1_000;

impl Snapshot {
    /// Drops delivered chunks that are at least as old as `history`, and runs of that age that changed nothing. Runs that changed
    /// something stay, and so does what they did to the members. Age is judged by the clock at which a row was written.
    pub fn prune(
        &mut self,
        now: Timestamp,
        history: Duration,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        if !self.is_plausible(now)? {
            return Ok(());
        }
        let before = now.before(history);
        let mut has_dropped = false;
        for drop in [drop_chunks, drop_dead, drop_runs] {
            while goes_on() {
                let transaction = self.begin()?;
                let dropped = drop(&transaction, before)?;
                transaction.commit()?;
                if dropped == 0 {
                    break;
                }
                has_dropped = true;
            }
        }
        match has_dropped {
            true => self.empty_log(),
            false => Ok(()),
        }
    }

    /// Whether it may be this late: not long after the last run, or two clocks an hour apart agree.
    fn is_plausible(&self, now: Timestamp) -> Result<bool, SnapshotError> {
        let (seen, suspected): (Option<i64>, Option<i64>) = self
            .connection
            .prepare_cached("SELECT clock_seen, clock_suspected FROM life")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let age = |then: i64| Duration::from_millis((now.millis() - then).try_into().unwrap_or(0));
        let is_near = seen.is_none_or(|seen| age(seen) <= SUSPICIOUS_GAP);
        let agrees =
            suspected.is_some_and(|then| (AGREES_AFTER..=SUSPICIOUS_GAP).contains(&age(then)));
        let waits = suspected.is_some_and(|then| age(then) < AGREES_AFTER && now.millis() >= then);
        let (seen, suspected) = match (is_near || agrees, waits) {
            (true, _) => (Some(now.millis()), None),
            (false, true) => (seen, suspected),
            (false, false) => (seen, Some(now.millis())),
        };
        self.connection
            .prepare_cached("UPDATE life SET clock_seen = ?1, clock_suspected = ?2")?
            .execute(params![seen, suspected])?;
        Ok(is_near || agrees)
    }

    /// Moves the log into the file and empties it: what was erased is gone from both.
    pub fn empty_log(&mut self) -> Result<(), SnapshotError> {
        let is_busy: bool =
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy {
            tracing::warn!(
                "another program reads the snapshot, so what was erased from it stays in its log until the next run"
            );
        }
        Ok(())
    }
}

fn drop_chunks(connection: &Connection, before: Timestamp) -> Result<usize, SnapshotError> {
    const OLD: &str =
        "SELECT run, seq, bytes FROM chunk WHERE delivered_at <= ?1 ORDER BY delivered_at LIMIT ?2";
    let old = params![before.millis(), SLICE];
    connection
        .prepare_cached(&format!(
            "DELETE FROM bytes WHERE id IN (SELECT bytes FROM ({OLD}))"
        ))?
        .execute(old)?;
    Ok(connection
        .prepare_cached(&format!(
            "DELETE FROM chunk WHERE (run, seq) IN (SELECT run, seq FROM ({OLD}))"
        ))?
        .execute(old)?)
}

/// What is known of dead entries goes after their chunk. A letter that may still be sent again has its own line, and stays.
fn drop_dead(connection: &Connection, before: Timestamp) -> Result<usize, SnapshotError> {
    Ok(connection
        .prepare_cached(
            "DELETE FROM dead WHERE (run, seq, position) IN (
                 SELECT run, seq, position FROM dead INDEXED BY dead_without_entry
                 WHERE entry IS NULL AND at <= ?1
                 AND NOT EXISTS (SELECT 1 FROM chunk WHERE chunk.run = dead.run AND chunk.seq = dead.seq)
                 ORDER BY at LIMIT ?2)",
        )?
        .execute(params![before.millis(), SLICE])?)
}

/// The last run of each feed about everyone stays, and the last such one that did not fail: the next plan and `snapshot list`
/// look at them.
fn drop_runs(connection: &Connection, before: Timestamp) -> Result<usize, SnapshotError> {
    Ok(connection
        .prepare_cached(
            "DELETE FROM run WHERE number IN (
                 SELECT number FROM run INDEXED BY run_unchanged
                 WHERE planned = 0 AND at <= ?1 AND EXISTS (
                     SELECT 1 FROM run AS later WHERE later.audience_id IS run.audience_id
                     AND later.stream = run.stream AND later.number > run.number AND NOT later.only_users)
                 AND (outcome IS 'failed' OR EXISTS (
                     SELECT 1 FROM run AS later WHERE later.audience_id IS run.audience_id
                     AND later.stream = run.stream AND later.number > run.number AND later.outcome IS NOT 'failed'
                     AND NOT later.only_users))
                 ORDER BY at LIMIT ?2)",
        )?
        .execute(params![before.millis(), SLICE])?)
}
