//! What landed and what was delivered, side by side in a temporary database.

use rusqlite::{Connection, OptionalExtension, params};

use crate::audience::{User, Value};
use crate::snapshot::SnapshotError;
use crate::snapshot::members::{SqlUser, SqlValue};
use crate::snapshot::scratch::scratch;

const TABLES: &str = "
    -- `known` is how well the snapshot knows it, `subject` whom it is of.
    CREATE TABLE run (
        number  INTEGER PRIMARY KEY,
        id      TEXT NOT NULL UNIQUE,
        known   INTEGER NOT NULL,
        subject INTEGER
    ) STRICT;
    -- `side` is what it stands for. `subject` is NULL for a line of nobody known, `run` for one of somebody else's.
    CREATE TABLE record (
        message_id   TEXT NOT NULL,
        side         INTEGER NOT NULL,
        bytes        INTEGER,
        is_authentic INTEGER NOT NULL,
        subject      INTEGER,
        run          INTEGER,
        at           INTEGER,
        user         ANY,
        value        ANY,
        is_member    INTEGER
    ) STRICT;";

/// What a row stands for. What is expected sorts before what landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The snapshot says that it was delivered.
    Must = 0,
    /// It waits in the journal.
    May = 1,
    Landed = 2,
}

/// How well the snapshot knows a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    Unknown = 0,
    /// Every record of it.
    Whole = 1,
    /// What it did, but not any more by which records.
    Outcome = 2,
    /// It is of a stream that is not asked for.
    Elsewhere = 3,
}

impl Knowledge {
    fn of(number: i64) -> Self {
        match number {
            1 => Self::Whole,
            2 => Self::Outcome,
            3 => Self::Elsewhere,
            _ => Self::Unknown,
        }
    }
}

/// A run that is spoken of.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) number: i64,
    pub(super) id: String,
    pub(super) known: Knowledge,
    pub(super) subject: Option<usize>,
}

/// A row to be written.
pub(super) struct Row<'r> {
    pub(super) message_id: &'r str,
    pub(super) side: Side,
    pub(super) bytes: Option<i64>,
    pub(super) is_authentic: bool,
    pub(super) subject: Option<usize>,
    pub(super) run: Option<i64>,
    pub(super) says: Option<Says<'r>>,
}

/// What it says about whom.
#[derive(Clone, Copy)]
pub(super) struct Says<'r> {
    pub(super) user: User<'r>,
    pub(super) at: i64,
    /// `None` for one who has left.
    pub(super) value: Option<Value<'r>>,
}

pub(super) struct Tables {
    pub(super) connection: Connection,
}

impl Tables {
    pub(super) fn new() -> Result<Self, SnapshotError> {
        Ok(Self {
            connection: scratch(TABLES).map_err(SnapshotError::Scratch)?,
        })
    }

    pub(super) fn push(&self, row: &Row<'_>) -> Result<(), SnapshotError> {
        let says = row.says;
        let value = says.and_then(|says| says.value);
        let insert = || {
            self.connection
                .prepare_cached(
                    "INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                )?
                .execute(params![
                    row.message_id,
                    row.side as i64,
                    row.bytes,
                    row.is_authentic,
                    row.subject.map(|subject| subject as i64),
                    row.run,
                    says.map(|says| says.at),
                    says.map(|says| SqlUser(says.user)),
                    value.map(SqlValue),
                    value.is_some()
                ])
        };
        insert().map_err(SnapshotError::Scratch)?;
        Ok(())
    }

    pub(super) fn run_by_id(&self, id: &str) -> Result<Option<Run>, SnapshotError> {
        self.run(
            "SELECT number, id, known, subject FROM run WHERE id = ?1",
            id,
        )
    }

    pub(super) fn run_by_number(&self, number: i64) -> Result<Option<Run>, SnapshotError> {
        self.run(
            "SELECT number, id, known, subject FROM run WHERE number = ?1",
            number,
        )
    }

    fn run(&self, sql: &str, by: impl rusqlite::ToSql) -> Result<Option<Run>, SnapshotError> {
        let select = || {
            let mut select = self.connection.prepare_cached(sql)?;
            let run = select.query_row([by], |row| {
                Ok(Run {
                    number: row.get(0)?,
                    id: row.get(1)?,
                    known: Knowledge::of(row.get(2)?),
                    subject: row
                        .get::<_, Option<i64>>(3)?
                        .map(|subject| subject as usize),
                })
            });
            run.optional()
        };
        select().map_err(SnapshotError::Scratch)
    }

    pub(super) fn push_run(
        &self,
        id: &str,
        known: Knowledge,
        subject: Option<usize>,
    ) -> Result<Run, SnapshotError> {
        let insert = self
            .connection
            .prepare_cached("INSERT INTO run (id, known, subject) VALUES (?1, ?2, ?3)")
            .and_then(|mut insert| {
                let subject = subject.map(|subject| subject as i64);
                insert.execute(params![id, known as i64, subject])
            });
        insert.map_err(SnapshotError::Scratch)?;
        Ok(Run {
            number: self.connection.last_insert_rowid(),
            id: id.to_owned(),
            known,
            subject,
        })
    }
}
