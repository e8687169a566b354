//! What a change query told, kept on disk while everyone is read: however much it is, memory does not grow with it.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::members::SqlUser;
use super::scratch::scratch;
use crate::audience::{Action, Change, User};
use crate::diff::Presence;

const TABLES: &str = "
    CREATE TABLE told (user ANY NOT NULL PRIMARY KEY, is_member INTEGER NOT NULL) WITHOUT ROWID, STRICT";

/// The disk that the temporary file lies on may be full.
#[derive(Debug, thiserror::Error)]
#[error(
    "what the change query of {audience:?} tells cannot be kept in a temporary file\n\nhint: make room where TMPDIR is"
)]
pub struct ToldError {
    audience: String,
    #[source]
    cause: rusqlite::Error,
}

/// Users, and whether each is a member now.
pub struct Told {
    connection: Connection,
    audience: String,
}

impl Told {
    /// Of an audience by this name.
    pub fn new(audience: &str) -> Result<Self, ToldError> {
        let audience = audience.to_owned();
        match scratch(TABLES) {
            Ok(connection) => Ok(Self {
                connection,
                audience,
            }),
            Err(cause) => Err(ToldError { audience, cause }),
        }
    }

    /// In any order, each user once.
    pub fn push(&mut self, user: User<'_>, presence: Presence) -> Result<(), ToldError> {
        let insert = || {
            self.connection
                .prepare_cached("INSERT INTO told VALUES (?1, ?2)")?
                .execute(params![SqlUser(user), presence == Presence::Member])
        };
        insert().map_err(|cause| self.error(cause))?;
        Ok(())
    }

    /// Whether somebody who knows no more would have decided the same.
    pub fn has(&self, change: &Change<'_>) -> Result<bool, ToldError> {
        let find = || {
            self.connection
                .prepare_cached("SELECT is_member FROM told WHERE user = ?1")?
                .query_row([SqlUser(change.member.user)], |row| row.get(0))
                .optional()
        };
        let is_member: Option<bool> = find().map_err(|cause| self.error(cause))?;
        Ok(is_member == Some(change.action != Action::Leave))
    }

    fn error(&self, cause: rusqlite::Error) -> ToldError {
        ToldError {
            audience: self.audience.clone(),
            cause,
        }
    }
}
