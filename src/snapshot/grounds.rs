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
        /// Changes of which a change query did not tell, where it was asked too.
        missed: Option<u64>,
    },
    /// A change query was asked, in so many words. It need not have told everything.
    Changes { by: String },
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
            Some(Self::Everyone { by, from, .. }) => (Some(by), from.as_ref()),
            Some(Self::Changes { by }) => (Some(by), None),
            None => (None, None),
        };
        let is_whole = !matches!(grounds, Some(Self::Changes { .. }));
        // Where a clock was set back, a start is in a time to come. When the source was read is then not known.
        let at = Some(started_at.millis()).filter(|_| started_at <= Timestamp::now());
        connection.execute(
            "UPDATE audience SET planned_by = ?2, planned_from = ?3, planned_at = ?4,
                    reconciled_at = iif(?5, ?4, reconciled_at) WHERE number = ?1",
            params![audience, by, from, at, is_whole],
        )?;
        Ok(())
    }

    pub(super) fn missed(&self) -> Option<u64> {
        match self {
            Self::Everyone { missed, .. } => *missed,
            Self::AsBefore | Self::Changes { .. } => None,
        }
    }
}

/// The last plan of an audience at a destination, which left nothing open: the members are what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPlan {
    /// How the source was asked,
    pub by: String,
    /// and what it was.
    pub from: Option<String>,
    /// When it began; `None` where a clock was wrong.
    pub at: Option<Timestamp>,
    /// When the last plan began that read everyone.
    pub reconciled_at: Option<Timestamp>,
    pub members: u64,
    pub skipped_rows: u64,
}

impl Snapshot {
    /// `None` where a plan must look at everyone: nothing is known, the last run failed, or it left something in the
    /// journal, held, dead or unsettled.
    pub fn last_plan(&self, computation: &Computation) -> Result<Option<LastPlan>, SnapshotError> {
        let last = self.connection.query_row(
            "SELECT planned_by, planned_from, last.members, last.skipped_rows, planned_at, reconciled_at
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
                let time = |millis: Option<i64>| millis.map(Timestamp::from_millis);
                Ok(LastPlan {
                    by: row.get(0)?,
                    from: row.get(1)?,
                    at: time(row.get(4)?),
                    reconciled_at: time(row.get(5)?),
                    members: row.get::<_, i64>(2)? as u64,
                    skipped_rows: row.get::<_, i64>(3)? as u64,
                })
            },
        );
        Ok(last.optional()?)
    }
}
