//! What the guard holds, as people are asked about it, and what an approval covers.

use rusqlite::{Connection, OptionalExtension, params};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use super::{Planning, SnapshotError};
use crate::audience::{User, UserKind};

/// How many users a sample names.
const SAMPLE: usize = 5;

/// Changes that wait for an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub removals: u64,
    pub additions: u64,
    pub changes: u64,
    /// The members that were delivered before.
    pub of: u64,
    /// The first users, in byte order, who would be removed.
    pub sample: Vec<HeldUser>,
}

impl Held {
    /// All that is held.
    pub const fn count(&self) -> u64 {
        self.removals + self.additions + self.changes
    }

    /// The removals, in percent of the delivered members.
    pub fn percent(&self) -> f64 {
        self.removals as f64 * 100.0 / self.of.max(1) as f64
    }

    /// From the columns of a run.
    pub(super) fn of_run(
        [removals, additions, changes, of]: [u64; 4],
        sample: Option<&str>,
    ) -> Result<Option<Self>, SnapshotError> {
        let sample = sample.map(serde_json::from_str).transpose();
        let held = Self {
            removals,
            additions,
            changes,
            of,
            sample: sample
                .map_err(|_| SnapshotError::Unknown("sample of held users"))?
                .unwrap_or_default(),
        };
        Ok((held.count() > 0).then_some(held))
    }
}

/// The fields of `--json` that tell more than the numbers.
impl Serialize for Held {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Held", 2)?;
        fields.serialize_field("held_percent", &((self.percent() * 10.0).round() / 10.0))?;
        fields.serialize_field("held_sample", &self.sample)?;
        fields.end()
    }
}

/// A user under the name of the identifier: `{"user_id": "u"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldUser {
    UserId(String),
    AnonymousId(String),
}

impl HeldUser {
    fn new(user: User<'_>) -> Self {
        match user.kind {
            UserKind::UserId => Self::UserId(user.id.to_owned()),
            UserKind::AnonymousId => Self::AnonymousId(user.id.to_owned()),
        }
    }
}

/// Adds a user who leaves to a sample, in order.
pub(super) fn sample(sample: &mut Vec<HeldUser>, user: User<'_>) {
    if sample.len() < SAMPLE {
        sample.push(HeldUser::new(user));
    }
}

/// What an approval covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// What was shown when it was last held.
    Shown,
    /// Up to this many held changes of one audience and stream.
    UpTo(u64),
}

/// What the last run of a feed showed as held: removals, additions, changes. Nothing, where that run held nothing. What a
/// run about single users held was shown to nobody who approves a plan about everyone.
pub(super) fn last_shown(
    connection: &Connection,
    planning: &Planning,
    stream: Option<i64>,
) -> Result<[u64; 3], SnapshotError> {
    let last = connection
        .prepare_cached(
            "SELECT held, held_added, held_changed FROM run
             WHERE audience_id = ?1 AND stream = ?2 AND outcome IS NOT 'failed' AND (?3 OR NOT only_users)
             ORDER BY number DESC LIMIT 1",
        )?
        .query_row(
            params![
                planning.computation.audience.as_str(),
                stream,
                planning.names_users()
            ],
            |row| {
                let count = |column| row.get::<_, i64>(column).map(|count| count as u64);
                Ok([count(0)?, count(1)?, count(2)?])
            },
        );
    Ok(last.optional()?.unwrap_or_default())
}
