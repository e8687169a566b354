//! Changes members as a stream accepts what was decided about them.

use std::sync::LazyLock;

use rusqlite::{CachedStatement, Connection, params};

use super::SnapshotError;
use super::journal::JournaledRun;
use super::members::{SqlUser, SqlValue, is_member};
use super::overlay::{has_overlay, is_large};
use crate::audience::{Action, Change, Member, User, Value, traits_hash};

/// Changes the members of one feed by what a run decided; `'e` is as long as its changes are kept.
pub(super) struct Apply<'c, 'e> {
    connection: &'c Connection,
    feed: i64,
    run: i64,
    is_in_place: bool,
    keeps_traits: bool,
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
                 ON CONFLICT (feed, user) DO UPDATE
                 SET anonymous_id = NULL, value = NULL, since = NULL, traits_hash = NULL"
            }
        };
        let [put, put_rows] = &PUT[usize::from(!is_in_place)][usize::from(run.keeps_traits)];
        Ok(Self {
            connection,
            feed,
            run: run.number,
            is_in_place,
            keeps_traits: run.keeps_traits,
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
            // Of an audience, only extra traits change.
            Action::Change if member.value != Value::True => {}
            // A member with this value already, since an earlier run.
            Action::Change | Action::Repeat => return self.note_repeated(member),
            Action::Leave => return self.remove(member.user),
        }
        self.waiting.push(*member);
        if self.waiting.len() == ROWS {
            self.put_waiting()?;
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

    /// A user leaves by the identifiers that the stream was last told, and is refreshed when the traits are others.
    fn note_repeated(&self, member: &Member<'_>) -> Result<(), SnapshotError> {
        if member.anonymous_id.is_none() && !self.keeps_traits {
            return Ok(());
        }
        let note = match self.is_in_place {
            true => {
                "UPDATE member SET anonymous_id = ?3, traits_hash = ?4
                 WHERE feed = ?1 AND user = ?2 AND (anonymous_id IS NOT ?3 OR traits_hash IS NOT ?4)"
            }
            false => {
                "INSERT INTO overlay (feed, user, anonymous_id, value, since, traits_hash)
                 SELECT feed, user, ?3, value, since, ?4 FROM membership
                 WHERE feed = ?1 AND user = ?2 AND (anonymous_id IS NOT ?3 OR traits_hash IS NOT ?4)
                 ON CONFLICT (feed, user) DO UPDATE
                 SET anonymous_id = excluded.anonymous_id, traits_hash = excluded.traits_hash"
            }
        };
        self.connection.prepare_cached(note)?.execute(params![
            self.feed,
            SqlUser(member.user),
            member.anonymous_id,
            self.keeps_traits.then(|| traits_hash(member.traits))
        ])?;
        Ok(())
    }

    fn put_waiting(&mut self) -> Result<(), SnapshotError> {
        let (rows, put) = match self.waiting.len() {
            ROWS => (ROWS, &mut self.put_rows),
            _ => (1, &mut self.put),
        };
        for members in self.waiting.chunks(rows) {
            put_all(put, self.feed, self.run, self.keeps_traits, members)?;
        }
        self.waiting.clear();
        Ok(())
    }

    /// Writes what waits, and how many members there are now.
    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        self.put_waiting()?;
        if self.more != 0 {
            self.connection
                .prepare_cached("UPDATE feed SET members = members + ?2 WHERE number = ?1")?
                .execute([self.feed, self.more])?;
        }
        Ok(())
    }
}

/// Puts members in their place and in the overlay, without and with a hash of their traits, one by one and several by one
/// statement.
static PUT: LazyLock<[[[String; 2]; 2]; 2]> = LazyLock::new(|| {
    ["member", "overlay"]
        .map(|table| [false, true].map(|traits| [1, ROWS].map(|rows| put(table, traits, rows))))
});

fn put(table: &str, keeps_traits: bool, rows: usize) -> String {
    let (column, set) = match keeps_traits {
        true => (", traits_hash", ", traits_hash = excluded.traits_hash"),
        false => ("", ""),
    };
    let row = |row| {
        let first = FIRST_OF_ROW + row * parameters_of_row(keeps_traits);
        let hash = if keeps_traits {
            format!(", ?{}", first + 3)
        } else {
            String::new()
        };
        format!("(?1, ?{first}, ?{}, ?{}, ?2{hash})", first + 1, first + 2)
    };
    let rows: Vec<String> = (0..rows).map(row).collect();
    format!(
        "INSERT INTO {table} (feed, user, anonymous_id, value, since{column}) VALUES {}
         ON CONFLICT (feed, user) DO UPDATE
         SET anonymous_id = excluded.anonymous_id, value = excluded.value, since = excluded.since{set}",
        rows.join(", ")
    )
}

const FIRST_OF_ROW: usize = 3;

const fn parameters_of_row(keeps_traits: bool) -> usize {
    if keeps_traits { 4 } else { 3 }
}

fn put_all(
    put: &mut CachedStatement<'_>,
    feed: i64,
    run: i64,
    keeps_traits: bool,
    rows: &[Member<'_>],
) -> Result<(), SnapshotError> {
    put.raw_bind_parameter(1, feed)?;
    put.raw_bind_parameter(2, run)?;
    for (row, member) in rows.iter().enumerate() {
        let first = FIRST_OF_ROW + row * parameters_of_row(keeps_traits);
        put.raw_bind_parameter(first, SqlUser(member.user))?;
        put.raw_bind_parameter(first + 1, member.anonymous_id)?;
        put.raw_bind_parameter(first + 2, SqlValue(member.value))?;
        if keeps_traits {
            put.raw_bind_parameter(first + 3, traits_hash(member.traits))?;
        }
    }
    put.raw_execute()?;
    Ok(())
}
