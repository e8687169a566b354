//! What a plan rests on: where nothing of it has changed since, and nothing was left open, the next plan need not read
//! everything again.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Snapshot, SnapshotError};
use crate::event::Computation;
use crate::run::Timestamp;

/// What a plan found out about its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grounds {
    /// It is as the last plan left it. What that one rests on stays.
    AsBefore,
    /// Everyone was read.
    Everyone {
        /// How the source was asked.
        by: String,
        /// What the source was; `None` where that is in doubt.
        from: Option<String>,
    },
}

impl Grounds {
    /// Notes them in the transaction of a plan. Where a plan has none, nothing is known from now on.
    pub(super) fn note(
        grounds: Option<&Self>,
        connection: &Connection,
        audience: i64,
        started_at: Timestamp,
    ) -> Result<(), SnapshotError> {
        let (by, from) = match grounds {
            Some(Self::AsBefore) => return Ok(()),
            Some(Self::Everyone { by, from }) => (Some(by), from.as_ref()),
            None => (None, None),
        };
        // Where a clock was set back, a start is in a time to come. When the source was read is then not known.
        let at = Some(started_at.millis()).filter(|_| started_at <= Timestamp::now());
        connection.execute(
            "UPDATE audience SET planned_by = ?2, planned_from = ?3, planned_at = ?4, reconciled_at = ?4 WHERE number = ?1",
            params![audience, by, from, at],
        )?;
        Ok(())
    }
}

/// The last plan of an audience at a destination, which left nothing open: the members are what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPlan {
    /// How the source was asked,
    pub by: String,
    /// and what it was.
    pub from: Option<String>,
    pub members: u64,
    pub skipped_rows: u64,
}

impl Snapshot {
    /// `None` where a plan must look at everyone: nothing is known, the last run failed, or it left something in the
    /// journal, held, dead or unsettled.
    pub fn last_plan(&self, computation: &Computation) -> Result<Option<LastPlan>, SnapshotError> {
        let last = self.connection.query_row(
            "SELECT planned_by, planned_from, last.members, last.skipped_rows
             FROM audience JOIN run AS last ON last.number =
                 (SELECT max(number) FROM run WHERE audience_id = ?1 AND destination = ?2)
             WHERE audience.id = ?1 AND audience.destination = ?2 AND planned_by IS NOT NULL
               AND last.outcome IN ('delivered', 'unchanged') AND last.held = 0 AND last.dead = 0
               AND NOT EXISTS (SELECT 1 FROM unsettled WHERE unsettled.audience = audience.number)
               AND NOT EXISTS (SELECT 1 FROM run WHERE run.audience = audience.number AND planned > delivered + run.dead)",
            params![
                computation.audience.as_str(),
                computation.destination.as_str()
            ],
            |row| {
                Ok(LastPlan {
                    by: row.get(0)?,
                    from: row.get(1)?,
                    members: row.get::<_, i64>(2)? as u64,
                    skipped_rows: row.get::<_, i64>(3)? as u64,
                })
            },
        );
        Ok(last.optional()?)
    }
}
