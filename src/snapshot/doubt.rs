//! Users about whom a stream may have been told something else than the members say.
//!
//! A line was answered with an internal error, or not at all, and then it was given up. It may have been accepted. If the
//! source then changes back, a merge would see no change, and the stream would be wrong for ever. So every plan decides
//! about these users, until a record ID comes back.

use rusqlite::{Connection, params};

use super::SnapshotError;
use super::members::SqlUser;
use crate::audience::{Member, User};

/// The doubts of one feed.
pub(super) struct Doubts<'c> {
    connection: &'c Connection,
    feed: i64,
    /// There are none in nearly every feed, and then nothing is looked up.
    is_empty: bool,
}

impl<'c> Doubts<'c> {
    pub(super) fn of(connection: &'c Connection, feed: i64) -> Result<Self, SnapshotError> {
        Ok(Self {
            connection,
            feed,
            is_empty: !has_doubts(connection, Some(feed))?,
        })
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// The stream has accepted a line about a user: what it was told is known.
    pub(super) fn clear(&self, user: User<'_>) -> Result<(), SnapshotError> {
        if self.is_empty {
            return Ok(());
        }
        self.connection
            .prepare_cached("DELETE FROM doubt WHERE feed = ?1 AND user = ?2")?
            .execute(params![self.feed, SqlUser(user)])?;
        Ok(())
    }

    /// A line about a user was given up, and may have been accepted.
    pub(super) fn note(&mut self, member: &Member<'_>) -> Result<(), SnapshotError> {
        self.is_empty = false;
        self.connection
            .prepare_cached(
                "INSERT INTO doubt (feed, user, anonymous_id) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            )?
            .execute(params![self.feed, SqlUser(member.user), member.anonymous_id])?;
        Ok(())
    }
}

pub(super) fn has_doubts(
    connection: &Connection,
    feed: Option<i64>,
) -> Result<bool, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM doubt WHERE feed = ?1)")?;
    Ok(statement.query_row([feed], |row| row.get(0))?)
}
