//! What a plan found out about its source. Where nothing of it has changed since, and the plan left nothing open, the
//! next plan need not read everything again.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Snapshot, SnapshotError, streams};
use crate::audience::AudienceId;
use crate::run::Timestamp;
use crate::stream::Stream;

/// What a plan found out about its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watermark {
    /// The source was not modified since the last plan, whose watermark stays.
    NotModified,
    /// Everyone was read.
    Everyone {
        /// How the source was asked.
        by: String,
        /// Changes of the source after this are for the next plan.
        at: Timestamp,
        /// What the source was; `None` where its version is unknown.
        from: Option<String>,
        /// Changes that a change query did not report, where it was asked too.
        missed: Option<u64>,
    },
    /// A change query was asked. It need not have reported everything.
    Changes { by: String, at: Timestamp },
}

impl Watermark {
    /// Notes it in the transaction of a plan. Where a plan has none, nothing is known from now on. A plan that holds
    /// something is not complete: its change query must report the held users again.
    pub(super) fn note(
        watermark: Option<&Self>,
        connection: &Connection,
        feed: i64,
        is_complete: bool,
    ) -> Result<(), SnapshotError> {
        let (by, at, from, missed) = match watermark {
            Some(Self::NotModified) => return Ok(()),
            Some(Self::Everyone {
                by,
                at,
                from,
                missed,
            }) => (Some(by), Some(*at), from.as_ref(), *missed),
            Some(Self::Changes { by, at }) => (Some(by), Some(*at), None, None),
            None => (None, None, None, None),
        };
        // What was known answers another question.
        connection
            .prepare_cached(
                "UPDATE feed SET planned_at = NULL, reconciled_at = NULL WHERE number = ?1 AND planned_by IS NOT ?2",
            )?
            .execute(params![feed, by])?;
        // A plan that read everyone, and did not ask the change query, has hidden what the query missed until then.
        connection
            .prepare_cached(
                "UPDATE feed SET planned_by = ?2, planned_from = ?3, planned_at = iif(?4, ?5, planned_at),
                        reconciled_at = iif(?4 AND (?6 OR reconciled_at IS NULL), ?5, reconciled_at)
                 WHERE number = ?1",
            )?
            .execute(params![
                feed,
                by,
                from,
                is_complete,
                at.map(Timestamp::millis),
                missed.is_some()
            ])?;
        Ok(())
    }

    /// Compares it with the watermark of the last plan, in the transaction of a plan about single users. That watermark
    /// stays: all others are as the last plan left them. But the single users are as the source is now. Where it was
    /// another one then, it is read by the next plan, also if it becomes again what it was.
    pub(super) fn compare(&self, connection: &Connection, feed: i64) -> Result<(), SnapshotError> {
        let now = match self {
            Self::NotModified => return Ok(()),
            Self::Everyone { by, from, .. } => from.as_ref().map(|from| (by, from)),
            Self::Changes { .. } => None,
        };
        let (by, from) = now.unzip();
        connection
            .prepare_cached(
                "UPDATE feed SET planned_from = NULL
                 WHERE number = ?1 AND (planned_by IS NOT ?2 OR planned_from IS NOT ?3)",
            )?
            .execute(params![feed, by, from])?;
        Ok(())
    }

    pub(super) fn missed(&self) -> Option<u64> {
        match self {
            Self::Everyone { missed, .. } => *missed,
            Self::NotModified | Self::Changes { .. } => None,
        }
    }
}

/// The last plan of a feed, about everyone. Where it left nothing open, the members are what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPlan {
    /// How the source was asked,
    pub by: String,
    /// and what it was.
    pub from: Option<String>,
    /// When the last complete plan began.
    pub at: Option<Timestamp>,
    /// When the last plan began that read everyone and compared that with the change query.
    pub reconciled_at: Option<Timestamp>,
    pub members: u64,
    pub skipped_rows: u64,
    pub left: Left,
}

/// What a plan left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    Nothing,
    /// What the guard holds.
    Held,
    /// It failed, or something of it is in the journal, dead or in doubt.
    More,
}

impl Snapshot {
    /// `None` where nothing is known of one.
    pub fn last_plan(
        &self,
        audience: &AudienceId,
        stream: &Stream,
    ) -> Result<Option<LastPlan>, SnapshotError> {
        let Some(stream) = streams::find(&self.connection, stream)? else {
            return Ok(None);
        };
        let mut select = self.connection.prepare_cached(
            "SELECT planned_by, planned_from, last.members, last.skipped_rows, planned_at, reconciled_at,
                 last.held + last.held_added + last.held_changed > 0,
                 last.outcome IN ('delivered', 'unchanged', 'held') AND last.dead = 0
                 AND NOT EXISTS (SELECT 1 FROM doubt WHERE doubt.feed = feed.number)
                 AND NOT EXISTS (SELECT 1 FROM run WHERE run.feed = feed.number AND planned > delivered + run.dead)
             FROM audience JOIN feed ON feed.audience = audience.number AND feed.stream = ?2
             JOIN run AS last ON last.number =
                 (SELECT number FROM run WHERE audience_id = ?1 AND stream = ?2 AND NOT only_users ORDER BY number DESC LIMIT 1)
             WHERE audience.id = ?1 AND planned_by IS NOT NULL",
        )?;
        let last = select.query_row(params![audience.as_str(), stream], |row| {
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
        });
        Ok(last.optional()?)
    }
}
