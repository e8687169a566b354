//! What the guard keeps back, so that whoever is asked for a yes knows about whom: a few of the users, and a digest of
//! them all, by which an approval tells the plan that was held from another one.

use rusqlite::{Connection, OptionalExtension, params};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::SnapshotError;
use crate::audience::{User, UserKind};
use crate::event::Computation;
use crate::run::Outcome;

/// How many users a sample names.
const SAMPLE: usize = 5;

/// Removals that wait for a yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub count: u64,
    /// The members that were delivered before.
    pub of: u64,
    /// The first of the users, in byte order.
    pub sample: Vec<HeldUser>,
}

impl Held {
    pub fn percent(&self) -> f64 {
        self.count as f64 * 100.0 / self.of.max(1) as f64
    }

    /// From the columns of a run. One of the first version of the snapshot knows no more than the number.
    pub(super) fn of_run(
        count: u64,
        of: i64,
        sample: Option<&str>,
    ) -> Result<Option<Self>, SnapshotError> {
        if count == 0 || of == 0 {
            return Ok(None);
        }
        let sample = sample.map(serde_json::from_str).transpose();
        Ok(Some(Self {
            count,
            of: of as u64,
            sample: sample
                .map_err(|_| SnapshotError::Unknown("sample of held users"))?
                .unwrap_or_default(),
        }))
    }
}

/// The fields of `--json` that say more than the number.
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

/// How the removals that were approved compare with those that were held before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Approval {
    /// Exactly the same users.
    AsHeld,
    /// The source has changed since so many were held.
    Replanned { held: u64 },
}

impl Serialize for Approval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::AsHeld => "as_held",
            Self::Replanned { .. } => "replanned",
        })
    }
}

/// Gathers those who leave, in order.
#[derive(Default)]
pub(super) struct Leavers {
    sample: Vec<HeldUser>,
    digest: Sha256,
}

impl Leavers {
    pub(super) fn push(&mut self, user: User<'_>) {
        if self.sample.len() < SAMPLE {
            self.sample.push(HeldUser::new(user));
        }
        // No id holds a NUL.
        self.digest.update([user.kind as u8]);
        self.digest.update(user.id);
        self.digest.update([0]);
    }

    pub(super) fn finish(self) -> (Vec<HeldUser>, Vec<u8>) {
        (self.sample, self.digest.finalize().to_vec())
    }
}

/// What the last run of an audience held that planned.
pub(super) struct LastHeld {
    count: u64,
    digest: Vec<u8>,
}

impl LastHeld {
    /// `None` where it held nothing: what an earlier one held says nothing about today.
    pub(super) fn find(
        connection: &Connection,
        computation: &Computation,
    ) -> Result<Option<Self>, SnapshotError> {
        let last = connection.query_row(
            "SELECT held, held_digest FROM run WHERE audience_id = ?1 AND destination = ?2 AND outcome IS NOT ?3
             ORDER BY number DESC LIMIT 1",
            params![
                computation.audience.as_str(),
                computation.destination.as_str(),
                Outcome::Failed.as_str()
            ],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Option<Vec<u8>>>(1)?)),
        );
        Ok(match last.optional()? {
            Some((count, Some(digest))) if count > 0 => Some(Self { count, digest }),
            _ => None,
        })
    }

    pub(super) fn compare(&self, digest: &[u8]) -> Approval {
        if self.digest == digest {
            Approval::AsHeld
        } else {
            Approval::Replanned { held: self.count }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(users: &[(UserKind, &str)]) -> Vec<u8> {
        let mut leavers = Leavers::default();
        for (kind, id) in users {
            leavers.push(User { kind: *kind, id });
        }
        leavers.finish().1
    }

    #[test]
    fn a_digest_tells_users_apart_by_kind_and_id() {
        use UserKind::{AnonymousId, UserId};

        let users = digest(&[(UserId, "ab"), (UserId, "c")]);
        assert_eq!(users, digest(&[(UserId, "ab"), (UserId, "c")]));
        for others in [
            &[(UserId, "a"), (UserId, "bc")] as &[_],
            &[(UserId, "ab"), (AnonymousId, "c")],
            &[(UserId, "ab")],
            &[],
        ] {
            assert_ne!(users, digest(others), "{others:?}");
        }
        let one = digest(&[(UserId, "a\u{1}b")]);
        assert_ne!(one, digest(&[(UserId, "a"), (AnonymousId, "b")]));
    }
}
