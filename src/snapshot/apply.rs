//! Changes members as Firehose accepts what was decided about them.

use std::borrow::Cow;
use std::sync::LazyLock;

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::SnapshotError;
use super::journal::JournaledRun;
use super::members::{SqlUser, SqlValue, is_member};
use super::moved::{has_moved, is_large};
use crate::audience::{Action, Change, User, Value};

/// Changes the members of one audience by what a run decided; `'e` is as long as its changes are kept.
pub(super) struct Apply<'c, 'e> {
    connection: &'c Connection,
    audience: i64,
    run: i64,
    is_in_place: bool,
    put: CachedStatement<'c>,
    put_rows: CachedStatement<'c>,
    remove: CachedStatement<'c>,
    waiting: Vec<Put<'e>>,
    /// Somebody may leave who is no member.
    has_strangers: bool,
    more: i64,
}

/// Who is a member with a value from now on.
struct Put<'e> {
    user: User<'e>,
    anonymous_id: Option<Cow<'e, str>>,
    value: Value<'e>,
}

/// So many are put by one statement, which finds the place of each from that of the one before: half the work.
const ROWS: usize = 50;

impl<'c, 'e> Apply<'c, 'e> {
    pub(super) fn new(
        connection: &'c Connection,
        audience: i64,
        run: &JournaledRun,
        has_strangers: bool,
    ) -> Result<Self, SnapshotError> {
        let is_in_place = is_large(run) && !has_moved(connection, Some(audience))?;
        let remove = match is_in_place {
            true => "DELETE FROM member WHERE audience = ?1 AND user = ?2",
            false => {
                "INSERT INTO moved (audience, user) VALUES (?1, ?2)
                 ON CONFLICT (audience, user) DO UPDATE SET anonymous_id = NULL, value = NULL, since = NULL"
            }
        };
        let [put, put_rows] = &PUT[usize::from(!is_in_place)];
        Ok(Self {
            connection,
            audience,
            run: run.number,
            is_in_place,
            put: connection.prepare_cached(put)?,
            put_rows: connection.prepare_cached(put_rows)?,
            remove: connection.prepare_cached(remove)?,
            waiting: Vec::with_capacity(ROWS),
            has_strangers,
            more: 0,
        })
    }

    pub(super) fn apply(&mut self, change: &Change<'e>) -> Result<(), SnapshotError> {
        let member = &change.member;
        self.more += i64::from(change.action == Action::Enter);
        let entered_with = match change.action {
            Action::Enter => member.anonymous_id.map(Cow::Borrowed),
            Action::Change if self.is_in_place => member.anonymous_id.map(Cow::Borrowed),
            Action::Change => self.anonymous_id_of(member.user)?.map(Cow::Owned),
            // They are members with this value already, since an earlier run.
            Action::Repeat => return Ok(()),
            Action::Leave => return self.remove(member.user),
        };
        self.waiting.push(Put {
            user: member.user,
            anonymous_id: entered_with,
            value: member.value,
        });
        if self.waiting.len() == ROWS {
            put_all(&mut self.put_rows, self.audience, self.run, &self.waiting)?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn remove(&mut self, user: User<'_>) -> Result<(), SnapshotError> {
        if !self.has_strangers || is_member(self.connection, self.audience, user)? {
            self.more -= 1;
        }
        self.remove.execute(params![self.audience, SqlUser(user)])?;
        Ok(())
    }

    /// The anonymous id that a member entered with.
    fn anonymous_id_of(&self, user: User<'_>) -> Result<Option<String>, SnapshotError> {
        let found = self
            .connection
            .prepare_cached(
                "SELECT anonymous_id FROM membership WHERE audience = ?1 AND user = ?2",
            )?
            .query_row(params![self.audience, SqlUser(user)], |row| row.get(0))
            .optional()?;
        Ok(found.flatten())
    }

    /// Writes what waits, and how many members there are now.
    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        for row in self.waiting.chunks(1) {
            put_all(&mut self.put, self.audience, self.run, row)?;
        }
        if self.more != 0 {
            self.connection
                .prepare_cached("UPDATE audience SET members = members + ?2 WHERE number = ?1")?
                .execute([self.audience, self.more])?;
        }
        Ok(())
    }
}

/// Puts members in their place, one and several by one statement, and beside the others.
static PUT: LazyLock<[[String; 2]; 2]> = LazyLock::new(|| {
    // Who is a member already stays known by the identifiers that they entered with: those leave with them.
    let identifiers = "anonymous_id = excluded.anonymous_id, ";
    [("member", ""), ("moved", identifiers)]
        .map(|(table, kept)| [1, ROWS].map(|rows| put(table, kept, rows)))
});

fn put(table: &str, kept: &str, rows: usize) -> String {
    let rows: Vec<String> = (0..rows)
        .map(|row| FIRST_OF_ROW + row * PARAMETERS_OF_ROW)
        .map(|first| format!("(?1, ?{first}, ?{}, ?{}, ?2)", first + 1, first + 2))
        .collect();
    format!(
        "INSERT INTO {table} (audience, user, anonymous_id, value, since) VALUES {}
         ON CONFLICT (audience, user) DO UPDATE SET {kept}value = excluded.value, since = excluded.since",
        rows.join(", ")
    )
}

const FIRST_OF_ROW: usize = 3;
const PARAMETERS_OF_ROW: usize = 3;

fn put_all(
    put: &mut CachedStatement<'_>,
    audience: i64,
    run: i64,
    rows: &[Put<'_>],
) -> Result<(), SnapshotError> {
    put.raw_bind_parameter(1, audience)?;
    put.raw_bind_parameter(2, run)?;
    for (row, member) in rows.iter().enumerate() {
        let first = FIRST_OF_ROW + row * PARAMETERS_OF_ROW;
        put.raw_bind_parameter(first, SqlUser(member.user))?;
        put.raw_bind_parameter(first + 1, &member.anonymous_id)?;
        put.raw_bind_parameter(first + 2, SqlValue(member.value))?;
    }
    put.raw_execute()?;
    Ok(())
}
