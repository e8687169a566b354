//! What a change query reported, kept on disk while everyone is read: memory does not grow with it.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::members::SqlUser;
use super::scratch::scratch;
use crate::audience::{Action, Change, User};
use crate::diff::Membership;

const TABLES: &str = "
    CREATE TABLE reported (user ANY NOT NULL PRIMARY KEY, is_member INTEGER NOT NULL) WITHOUT ROWID, STRICT";

/// The disk that the temporary file lies on may be full.
#[derive(Debug, thiserror::Error)]
#[error(
    "what the change query of {audience:?} reports cannot be kept in a temporary file\n\nhint: make room where TMPDIR is"
)]
pub struct ReportedError {
    audience: String,
    #[source]
    cause: rusqlite::Error,
}

/// Users, and whether each is a member now.
pub struct Reported {
    connection: Connection,
    audience: String,
}

impl Reported {
    /// For an audience of this name.
    pub fn new(audience: &str) -> Result<Self, ReportedError> {
        let audience = audience.to_owned();
        match scratch(TABLES) {
            Ok(connection) => Ok(Self {
                connection,
                audience,
            }),
            Err(cause) => Err(ReportedError { audience, cause }),
        }
    }

    /// In any order, each user once.
    pub fn push(&mut self, user: User<'_>, membership: Membership) -> Result<(), ReportedError> {
        let insert = || {
            self.connection
                .prepare_cached("INSERT INTO reported VALUES (?1, ?2)")?
                .execute(params![SqlUser(user), membership == Membership::Member])
        };
        insert().map_err(|cause| self.error(cause))?;
        Ok(())
    }

    /// Whether the change query alone would have led to the same decision.
    pub fn has(&self, change: &Change<'_>) -> Result<bool, ReportedError> {
        let find = || {
            self.connection
                .prepare_cached("SELECT is_member FROM reported WHERE user = ?1")?
                .query_row([SqlUser(change.member.user)], |row| row.get(0))
                .optional()
        };
        let is_member: Option<bool> = find().map_err(|cause| self.error(cause))?;
        Ok(is_member == Some(change.action != Action::Leave))
    }

    fn error(&self, cause: rusqlite::Error) -> ReportedError {
        ReportedError {
            audience: self.audience.clone(),
            cause,
        }
    }
}
