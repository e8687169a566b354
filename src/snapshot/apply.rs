//! Changes members as a stream accepts what was decided about them.

use std::sync::LazyLock;

use rusqlite::{CachedStatement, Connection, params};

use super::SnapshotError;
use super::journal::JournaledRun;
use super::members::{SqlUser, SqlValue, is_member};
use super::overlay::{has_overlay, is_large};
use crate::audience::{Action, Change, Member, User};

/// Changes the members of one feed by what a run decided; `'e` is as long as its changes are kept.
pub(super) struct Apply<'c, 'e> {
    connection: &'c Connection,
    feed: i64,
    run: i64,
    is_in_place: bool,
    put: CachedStatement<'c>,
    put_rows: CachedStatement<'c>,
    remove: CachedStatement<'c>,
    waiting: Vec<Member<'e>>,
    /// Somebody may leave who is no member: the line that told the stream so was given up.
    has_phantoms: bool,
    more: i64,
}

/// Members that one statement puts. It finds the place of each from that of the one before: half the work.
const ROWS: usize = 50;

impl<'c, 'e> Apply<'c, 'e> {
    pub(super) fn new(
        connection: &'c Connection,
        feed: i64,
        run: &JournaledRun,
        has_phantoms: bool,
    ) -> Result<Self, SnapshotError> {
        let is_in_place = is_large(run) && !has_overlay(connection, Some(feed))?;
        let remove = match is_in_place {
            true => "DELETE FROM member WHERE feed = ?1 AND user = ?2",
            false => {
                "INSERT INTO overlay (feed, user) VALUES (?1, ?2)
                 ON CONFLICT (feed, user) DO UPDATE SET anonymous_id = NULL, value = NULL, since = NULL"
            }
        };
        let [put, put_rows] = &PUT[usize::from(!is_in_place)];
        Ok(Self {
            connection,
            feed,
            run: run.number,
            is_in_place,
            put: connection.prepare_cached(put)?,
            put_rows: connection.prepare_cached(put_rows)?,
            remove: connection.prepare_cached(remove)?,
            waiting: Vec::with_capacity(ROWS),
            has_phantoms,
            more: 0,
        })
    }

    pub(super) fn apply(&mut self, change: &Change<'e>) -> Result<(), SnapshotError> {
        let member = &change.member;
        match change.action {
            Action::Enter => self.more += 1,
            Action::Change => {}
            // A member with this value already, since an earlier run.
            Action::Repeat => return self.note_identifiers(member),
            Action::Leave => return self.remove(member.user),
        }
        self.waiting.push(*member);
        if self.waiting.len() == ROWS {
            put_all(&mut self.put_rows, self.feed, self.run, &self.waiting)?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn remove(&mut self, user: User<'_>) -> Result<(), SnapshotError> {
        if !self.has_phantoms || is_member(self.connection, self.feed, user)? {
            self.more -= 1;
        }
        self.remove.execute(params![self.feed, SqlUser(user)])?;
        Ok(())
    }

    /// A user leaves by the identifiers that the stream was last told.
    fn note_identifiers(&self, member: &Member<'_>) -> Result<(), SnapshotError> {
        if member.anonymous_id.is_none() {
            return Ok(());
        }
        let note = match self.is_in_place {
            true => {
                "UPDATE member SET anonymous_id = ?3
                 WHERE feed = ?1 AND user = ?2 AND anonymous_id IS NOT ?3"
            }
            false => {
                "INSERT INTO overlay (feed, user, anonymous_id, value, since)
                 SELECT feed, user, ?3, value, since FROM membership
                 WHERE feed = ?1 AND user = ?2 AND anonymous_id IS NOT ?3
                 ON CONFLICT (feed, user) DO UPDATE SET anonymous_id = excluded.anonymous_id"
            }
        };
        self.connection.prepare_cached(note)?.execute(params![
            self.feed,
            SqlUser(member.user),
            member.anonymous_id
        ])?;
        Ok(())
    }

    /// Writes what waits, and how many members there are now.
    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        for row in self.waiting.chunks(1) {
            put_all(&mut self.put, self.feed, self.run, row)?;
        }
        if self.more != 0 {
            self.connection
                .prepare_cached("UPDATE feed SET members = members + ?2 WHERE number = ?1")?
                .execute([self.feed, self.more])?;
        }
        Ok(())
    }
}

/// Puts members in their place and in the overlay, one by one and several by one statement.
static PUT: LazyLock<[[String; 2]; 2]> =
    LazyLock::new(|| ["member", "overlay"].map(|table| [1, ROWS].map(|rows| put(table, rows))));

fn put(table: &str, rows: usize) -> String {
    let rows: Vec<String> = (0..rows)
        .map(|row| FIRST_OF_ROW + row * PARAMETERS_OF_ROW)
        .map(|first| format!("(?1, ?{first}, ?{}, ?{}, ?2)", first + 1, first + 2))
        .collect();
    format!(
        "INSERT INTO {table} (feed, user, anonymous_id, value, since) VALUES {}
         ON CONFLICT (feed, user) DO UPDATE
         SET anonymous_id = excluded.anonymous_id, value = excluded.value, since = excluded.since",
        rows.join(", ")
    )
}

const FIRST_OF_ROW: usize = 3;
const PARAMETERS_OF_ROW: usize = 3;

fn put_all(
    put: &mut CachedStatement<'_>,
    feed: i64,
    run: i64,
    rows: &[Member<'_>],
) -> Result<(), SnapshotError> {
    put.raw_bind_parameter(1, feed)?;
    put.raw_bind_parameter(2, run)?;
    for (row, member) in rows.iter().enumerate() {
        let first = FIRST_OF_ROW + row * PARAMETERS_OF_ROW;
        put.raw_bind_parameter(first, SqlUser(member.user))?;
        put.raw_bind_parameter(first + 1, member.anonymous_id)?;
        put.raw_bind_parameter(first + 2, SqlValue(member.value))?;
    }
    put.raw_execute()?;
    Ok(())
}
