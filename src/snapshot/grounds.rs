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
        /// Since when the source says what is new.
        at: Timestamp,
        /// What the source was; `None` where that is in doubt.
        from: Option<String>,
        /// Changes of which a change query did not tell, where it was asked too.
        missed: Option<u64>,
    },
    /// A change query was asked, in so many words. It need not have told everything.
    Changes { by: String, at: Timestamp },
}

impl Grounds {
    /// Notes them in the transaction of a plan. Where a plan has none, nothing is known from now on. One that holds
    /// something is not complete: its change query must tell of them again.
    pub(super) fn note(
        grounds: Option<&Self>,
        connection: &Connection,
        audience: i64,
        is_complete: bool,
    ) -> Result<(), SnapshotError> {
        let (by, at, from, missed) = match grounds {
            Some(Self::AsBefore) => return Ok(()),
            Some(Self::Everyone {
                by,
                at,
                from,
                missed,
            }) => (Some(by), Some(*at), from.as_ref(), *missed),
            Some(Self::Changes { by, at }) => (Some(by), Some(*at), None, None),
            None => (None, None, None, None),
        };
        // What was known is of another question.
        connection.execute(
            "UPDATE audience SET planned_at = NULL, reconciled_at = NULL WHERE number = ?1 AND planned_by IS NOT ?2",
            params![audience, by],
        )?;
        // Whoever read everyone, and did not see what the change query tells, has hidden what it missed until then.
        connection.execute(
            "UPDATE audience SET planned_by = ?2, planned_from = ?3, planned_at = iif(?4, ?5, planned_at),
                    reconciled_at = iif(?4 AND (?6 OR reconciled_at IS NULL), ?5, reconciled_at)
             WHERE number = ?1",
            params![
                audience,
                by,
                from,
                is_complete,
                at.map(Timestamp::millis),
                missed.is_some()
            ],
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

/// The last plan of an audience at a destination. Where it left nothing open, the members are what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPlan {
    /// How the source was asked,
    pub by: String,
    /// and what it was.
    pub from: Option<String>,
    /// When the last one began that was complete.
    pub at: Option<Timestamp>,
    /// The same of the last one that read everyone, and saw what the change query had told.
    pub reconciled_at: Option<Timestamp>,
    pub members: u64,
    pub skipped_rows: u64,
    pub left: Left,
}

/// What a plan left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// Removals that the guard holds.
    Held,
    /// It failed, or something of it is in the journal, dead or unsettled.
    More,
}

impl Snapshot {
    /// `None` where nothing is known of one.
    pub fn last_plan(&self, computation: &Computation) -> Result<Option<LastPlan>, SnapshotError> {
        let last = self.connection.query_row(
            "SELECT planned_by, planned_from, last.members, last.skipped_rows, planned_at, reconciled_at, last.held > 0,
                 last.outcome IN ('delivered', 'unchanged', 'held') AND last.dead = 0
                 AND NOT EXISTS (SELECT 1 FROM unsettled WHERE unsettled.audience = audience.number)
                 AND NOT EXISTS (SELECT 1 FROM run WHERE run.audience = audience.number AND planned > delivered + run.dead)
             FROM audience JOIN run AS last ON last.number =
                 (SELECT max(number) FROM run WHERE audience_id = ?1 AND destination = ?2)
             WHERE audience.id = ?1 AND audience.destination = ?2 AND planned_by IS NOT NULL",
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
                    left: match (row.get::<_, Option<bool>>(7)?, row.get(6)?) {
                        (Some(true), false) => Left::Nothing,
                        (Some(true), true) => Left::Held,
                        (Some(false) | None, _) => Left::More,
                    },
                })
            },
        );
        Ok(last.optional()?)
    }
}
