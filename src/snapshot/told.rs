//! What a change query told, kept on disk while everyone is read: however much it is, memory does not grow with it.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::SnapshotError;
use super::members::SqlUser;
use super::scratch::scratch;
use crate::audience::{Action, Change, User};
use crate::diff::Presence;

const TABLES: &str = "
    CREATE TABLE told (user ANY NOT NULL PRIMARY KEY, is_member INTEGER NOT NULL) WITHOUT ROWID, STRICT";

/// Users, and whether each is a member now.
pub struct Told(Connection);

impl Told {
    pub fn new() -> Result<Self, SnapshotError> {
        scratch(TABLES).map(Self)
    }

    /// In any order, each user once.
    pub fn push(&mut self, user: User<'_>, presence: Presence) -> Result<(), SnapshotError> {
        let mut insert = self
            .0
            .prepare_cached("INSERT INTO told VALUES (?1, ?2)")
            .map_err(SnapshotError::Scratch)?;
        insert
            .execute(params![SqlUser(user), presence == Presence::Member])
            .map_err(SnapshotError::Scratch)?;
        Ok(())
    }

    /// Whether somebody who knows no more would have decided the same.
    pub fn has(&self, change: &Change<'_>) -> Result<bool, SnapshotError> {
        let is_member = self
            .0
            .prepare_cached("SELECT is_member FROM told WHERE user = ?1")
            .and_then(|mut find| {
                let found = find.query_row([SqlUser(change.member.user)], |row| row.get(0));
                found.optional()
            })
            .map_err(SnapshotError::Scratch)?;
        Ok(is_member == Some(change.action != Action::Leave))
    }
}
