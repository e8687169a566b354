//! The records that landed, in a temporary database: as they come, and then in the order of users and time.

use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension, params};

use super::RebuildError;
use super::user_history::Record;
use crate::audience::{AudienceId, Class, Key, User};
use crate::event::Statement;
use crate::run::{RunId, Timestamp};
use crate::snapshot::SnapshotError;
use crate::snapshot::members::{SqlUser, SqlValue, SqlValueBuf, user};
use crate::snapshot::scratch::scratch;
use crate::stream::Stream;

const TABLES: &str = "
    CREATE TABLE run (
        number     INTEGER PRIMARY KEY,
        id         TEXT NOT NULL UNIQUE,
        audience   INTEGER NOT NULL,
        started_at INTEGER NOT NULL,
        entered    INTEGER NOT NULL DEFAULT 0,
        changed    INTEGER NOT NULL DEFAULT 0,
        repeated   INTEGER NOT NULL DEFAULT 0,
        removed    INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE record (
        audience     INTEGER NOT NULL,
        user         ANY NOT NULL,
        at           INTEGER NOT NULL,
        run          INTEGER NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        is_member    INTEGER NOT NULL,
        traits_hash  INTEGER
    ) STRICT;
    -- The number that a run is going to have: runs are numbered in the order of time.
    CREATE TABLE place (run INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE) STRICT;";

/// An audience at a stream, under one key.
pub(super) struct Audience {
    pub(super) id: AudienceId,
    pub(super) stream: Stream,
    pub(super) key: Key,
    pub(super) class: Class,
    pub(super) last_at: Timestamp,
    /// Whether the audience goes by this key. One that was begun anew may have had another one.
    is_current: bool,
}

/// The run of the record that came last.
struct Current {
    id: RunId,
    number: i64,
    audience: usize,
    started_at: Timestamp,
}

pub(super) struct Gathered {
    connection: Connection,
    pub(super) audiences: Vec<Audience>,
    /// What each audience goes by, once that is settled.
    keys: HashMap<AudienceId, (Key, Class)>,
    current: Option<Current>,
}

/// What a run did, by its records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub(super) entered: i64,
    pub(super) changed: i64,
    pub(super) repeated: i64,
    pub(super) removed: i64,
}

/// A run that was found.
pub(super) struct Run {
    /// By its place in time.
    pub(super) number: i64,
    pub(super) id: String,
    pub(super) audience: usize,
    pub(super) started_at: i64,
    pub(super) counted: Counted,
}

/// Counts of runs that are not written yet: few at a time, since there may be a great many runs.
const MAX_UNWRITTEN: usize = 4_096;

impl Gathered {
    pub(super) fn new() -> Result<Self, SnapshotError> {
        Ok(Self {
            connection: scratch(TABLES).map_err(SnapshotError::Scratch)?,
            audiences: Vec::new(),
            keys: HashMap::new(),
            current: None,
        })
    }

    pub(super) fn push(
        &mut self,
        stream: &Stream,
        statement: &Statement<'_>,
    ) -> Result<(), RebuildError> {
        let audience = self.audience(stream, statement);
        let run = self.run(audience, statement)?;
        let change = statement.change();
        let value = statement.value.as_ref().map(|value| value.as_value());
        let insert = || {
            self.connection
                .prepare_cached("INSERT INTO record VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
                .execute(params![
                    audience as i64,
                    SqlUser(change.member.user),
                    statement.at.millis(),
                    run,
                    change.member.anonymous_id,
                    value.map(SqlValue),
                    value.is_some(),
                    value.map(|_| statement.traits_hash())
                ])
        };
        insert().map_err(SnapshotError::Scratch)?;
        Ok(())
    }

    fn audience(&mut self, stream: &Stream, statement: &Statement<'_>) -> usize {
        let is_it = |audience: &Audience| {
            audience.id.as_str() == statement.audience
                && audience.key.as_str() == statement.key
                && audience.class == statement.class
                && audience.stream == *stream
        };
        let last = self.current.as_ref().map(|current| current.audience);
        let known = last
            .filter(|last| is_it(&self.audiences[*last]))
            .or_else(|| self.audiences.iter().position(is_it));
        let number = known.unwrap_or_else(|| {
            self.audiences.push(Audience {
                id: AudienceId::new(&*statement.audience),
                stream: stream.clone(),
                key: Key::new(&*statement.key),
                class: statement.class,
                last_at: statement.at,
                is_current: true,
            });
            self.audiences.len() - 1
        });
        let audience = &mut self.audiences[number];
        audience.last_at = audience.last_at.max(statement.at);
        number
    }

    /// The run of a record. A run is of one audience and one time.
    fn run(&mut self, audience: usize, statement: &Statement<'_>) -> Result<i64, RebuildError> {
        if self
            .current
            .as_ref()
            .is_none_or(|run| run.id != statement.run)
        {
            let found = self.find_run(audience, statement);
            self.current = Some(found.map_err(SnapshotError::Scratch)?);
        }
        let run = self.current.as_ref().expect("it was just found");
        if run.audience != audience || run.started_at != statement.started_at() {
            return Err(RebuildError::Contradiction {
                run: statement.run.to_string(),
                what: "their audience and their time",
            });
        }
        Ok(run.number)
    }

    fn find_run(&self, audience: usize, statement: &Statement<'_>) -> rusqlite::Result<Current> {
        let id = statement.run.to_string();
        let known = self
            .connection
            .prepare_cached("SELECT number, audience, started_at FROM run WHERE id = ?1")?
            .query_row([&id], |row| {
                Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get(2)?))
            })
            .optional()?;
        if let Some((number, audience, at)) = known {
            return Ok(Current {
                id: statement.run,
                number,
                audience: audience as usize,
                started_at: Timestamp::from_millis(at),
            });
        }
        self.connection
            .prepare_cached("INSERT INTO run (id, audience, started_at) VALUES (?1, ?2, ?3)")?
            .execute(params![
                id,
                audience as i64,
                statement.started_at().millis()
            ])?;
        Ok(Current {
            id: statement.run,
            number: self.connection.last_insert_rowid(),
            audience,
            started_at: statement.started_at(),
        })
    }

    /// Gives runs their places after a number, in the order of time. Those of an audience under a key that it does not
    /// have any more have none, and neither have their records.
    pub(super) fn place_runs(&self, after: i64) -> Result<(), SnapshotError> {
        let place = || {
            let mut select = self
                .connection
                .prepare("SELECT number, audience FROM run ORDER BY started_at, id")?;
            let mut insert = self
                .connection
                .prepare("INSERT INTO place VALUES (?1, ?2)")?;
            let mut rows = select.query([])?;
            let mut number = after;
            while let Some(row) = rows.next()? {
                let (run, audience): (i64, i64) = (row.get(0)?, row.get(1)?);
                if self.is_current(audience as usize) {
                    number += 1;
                    insert.execute(params![run, number])?;
                }
            }
            Ok(())
        };
        place().map_err(SnapshotError::Scratch)
    }

    /// Decides which key each audience goes by, in all of its streams: the one that `frozen` has, or the latest.
    pub(super) fn settle_keys(
        &mut self,
        frozen: impl Fn(&Audience) -> Result<Option<(Key, Class)>, RebuildError>,
    ) -> Result<(), RebuildError> {
        let mut by_time: Vec<&Audience> = self.audiences.iter().collect();
        by_time.sort_by_key(|audience| audience.last_at);
        let latest: HashMap<_, _> = by_time.into_iter().map(|it| (&it.id, it)).collect();
        let mut keys = HashMap::new();
        for (id, latest) in latest {
            let key = frozen(latest)?.unwrap_or_else(|| (latest.key.clone(), latest.class));
            keys.insert(id.clone(), key);
        }
        for audience in &mut self.audiences {
            let (key, class) = &keys[&audience.id];
            audience.is_current = audience.key == *key && audience.class == *class;
        }
        self.keys = keys;
        Ok(())
    }

    pub(super) fn is_current(&self, audience: usize) -> bool {
        self.audiences[audience].is_current
    }

    /// The streams of which something is restored.
    pub(super) fn streams(&self) -> BTreeSet<&Stream> {
        let current = self.audiences.iter().filter(|it| it.is_current);
        current.map(|audience| &audience.stream).collect()
    }

    /// The key of each audience with one that it had before.
    pub(super) fn former_keys(&self) -> BTreeSet<(Key, Key)> {
        let former = self.audiences.iter().filter(|it| !it.is_current);
        let keys = former.map(|former| (self.keys[&former.id].0.clone(), former.key.clone()));
        keys.collect()
    }

    /// Hands on each record, in the order of audiences, users and time. The runs are known by their places.
    pub(super) fn each_record(
        &self,
        mut each: impl FnMut(usize, User<'_>, Record) -> Result<(), RebuildError>,
    ) -> Result<(), RebuildError> {
        let sql = SnapshotError::Scratch;
        let mut statement = self
            .connection
            .prepare(
                "SELECT audience, user, anonymous_id, value, is_member, at, place.number, traits_hash
                 FROM record CROSS JOIN place ON place.run = record.run ORDER BY audience, user, at, record.run",
            )
            .map_err(sql)?;
        let mut rows = statement.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let (kind, id) = user(row.get_ref(1).map_err(sql)?)?;
            let record = || {
                let is_member: bool = row.get(4)?;
                let value = is_member
                    .then(|| row.get::<_, SqlValueBuf>(3))
                    .transpose()?;
                Ok(Record {
                    at: row.get(5)?,
                    run: row.get(6)?,
                    value: value.map(|value| value.0),
                    anonymous_id: row.get(2)?,
                    traits_hash: row.get(7)?,
                })
            };
            let audience: i64 = row.get(0).map_err(sql)?;
            each(audience as usize, User { kind, id }, record().map_err(sql)?)?;
        }
        Ok(())
    }

    /// The id of a run by its place.
    pub(super) fn run_id(&self, number: i64) -> Result<String, SnapshotError> {
        let id = self.connection.query_row(
            "SELECT id FROM run WHERE number = (SELECT run FROM place WHERE number = ?1)",
            [number],
            |row| row.get(0),
        );
        id.map_err(SnapshotError::Scratch)
    }

    /// Hands on each run that has a place, in that order.
    pub(super) fn each_run<E: From<SnapshotError>>(
        &self,
        mut each: impl FnMut(Run) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = SnapshotError::Scratch;
        let mut runs = self
            .connection
            .prepare(
                "SELECT place.number, id, audience, started_at, entered, changed, repeated, removed
                 FROM run JOIN place ON place.run = run.number ORDER BY place.number",
            )
            .map_err(sql)?;
        let mut rows = runs.query([]).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let run = || {
                Ok(Run {
                    number: row.get(0)?,
                    id: row.get(1)?,
                    audience: row.get::<_, i64>(2)? as usize,
                    started_at: row.get(3)?,
                    counted: Counted {
                        entered: row.get(4)?,
                        changed: row.get(5)?,
                        repeated: row.get(6)?,
                        removed: row.get(7)?,
                    },
                })
            };
            each(run().map_err(sql)?)?;
        }
        Ok(())
    }
}

/// Counts what runs did, and writes it down now and then.
pub(super) struct Tallies<'g> {
    gathered: &'g Gathered,
    /// By place of the run.
    unwritten: HashMap<i64, Counted>,
}

impl<'g> Tallies<'g> {
    pub(super) fn new(gathered: &'g Gathered) -> Self {
        Self {
            gathered,
            unwritten: HashMap::new(),
        }
    }

    pub(super) fn of(&mut self, run: i64) -> Result<&mut Counted, SnapshotError> {
        if self.unwritten.len() >= MAX_UNWRITTEN {
            self.write()?;
        }
        Ok(self.unwritten.entry(run).or_default())
    }

    pub(super) fn write(&mut self) -> Result<(), SnapshotError> {
        let mut write = || {
            let mut update = self.gathered.connection.prepare_cached(
                "UPDATE run SET entered = entered + ?2, changed = changed + ?3, repeated = repeated + ?4, removed = removed + ?5
                 WHERE number = (SELECT run FROM place WHERE number = ?1)",
            )?;
            for (run, counted) in self.unwritten.drain() {
                update.execute(params![
                    run,
                    counted.entered,
                    counted.changed,
                    counted.repeated,
                    counted.removed
                ])?;
            }
            Ok(())
        };
        write().map_err(SnapshotError::Scratch)
    }
}
