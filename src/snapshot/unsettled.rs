//! Users whom the streams have been told different things.
//!
//! Of a change that one stream accepts and another refuses for its content, the members keep what all streams had
//! before. If the source then changes back, a merge would see no change, and the first stream would be wrong for ever.
//! So every plan decides about these users anew, until all streams have the same.

use rusqlite::{Connection, OptionalExtension, params};

use super::SnapshotError;
use super::journal::Dead;
use super::members::{SqlUser, SqlValueBuf, has_unsettled};
use crate::audience::{Action, Change, User, ValueBuf};
use crate::mapping::StreamName;

/// Those of one audience at one destination.
pub(super) struct Unsettled<'c> {
    connection: &'c Connection,
    audience: i64,
    /// Seldom, and then nothing is looked up.
    is_empty: bool,
}

impl<'c> Unsettled<'c> {
    pub(super) fn of(connection: &'c Connection, audience: i64) -> Result<Self, SnapshotError> {
        Ok(Self {
            connection,
            audience,
            is_empty: !has_unsettled(connection, Some(audience))?,
        })
    }

    /// Every stream has accepted a change.
    pub(super) fn all_have(&self, change: &Change<'_>) -> Result<(), SnapshotError> {
        if self.is_empty {
            return Ok(());
        }
        self.connection
            .prepare_cached("DELETE FROM unsettled WHERE audience = ?1 AND user = ?2")?
            .execute(params![self.audience, SqlUser(change.member.user)])?;
        Ok(())
    }

    /// A change has become a dead letter, which some streams have.
    pub(super) fn some_have(
        &mut self,
        change: &Change<'_>,
        streams: &[StreamName],
        has: impl Fn(usize) -> bool,
        letter: &Dead,
    ) -> Result<(), SnapshotError> {
        let is_so = self.is_what_the_members_say(change)?;
        for (position, stream) in streams.iter().enumerate() {
            // A resync that was refused has yet to be made up for.
            let is_owed = change.action == Action::Repeat || letter.doubtful.contains(&position);
            match has(position) {
                true if is_so => self.forget(change.member.user, stream)?,
                true => self.note(change, stream)?,
                false if is_owed => self.note(change, stream)?,
                false => {}
            }
        }
        Ok(())
    }

    fn note(&mut self, change: &Change<'_>, stream: &StreamName) -> Result<(), SnapshotError> {
        self.is_empty = false;
        self.connection
            .prepare_cached(
                "INSERT INTO unsettled (audience, user, stream, anonymous_id) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                self.audience,
                SqlUser(change.member.user),
                stream.as_str(),
                change.member.anonymous_id
            ])?;
        Ok(())
    }

    fn forget(&self, user: User<'_>, stream: &StreamName) -> Result<(), SnapshotError> {
        self.connection
            .prepare_cached(
                "DELETE FROM unsettled WHERE audience = ?1 AND user = ?2 AND stream = ?3",
            )?
            .execute(params![self.audience, SqlUser(user), stream.as_str()])?;
        Ok(())
    }

    /// Whether whoever has the change was told what the members say.
    fn is_what_the_members_say(&self, change: &Change<'_>) -> Result<bool, SnapshotError> {
        let value = self
            .connection
            .prepare_cached("SELECT value FROM membership WHERE audience = ?1 AND user = ?2")?
            .query_row(params![self.audience, SqlUser(change.member.user)], |row| {
                row.get::<_, SqlValueBuf>(0)
            })
            .optional()?;
        let value: Option<ValueBuf> = value.map(|value| value.0);
        Ok(match (change.action, value) {
            (Action::Leave, value) => value.is_none(),
            (_, None) => false,
            (_, Some(value)) => value.as_value() == change.member.value,
        })
    }
}
