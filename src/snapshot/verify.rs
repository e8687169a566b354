//! Whether what landed is what the snapshot says was delivered.
//!
//! Both go into a temporary database, record by record, and are compared there: in the order of message ids, and where
//! the history of a run is gone, in the order of users against the members. Memory does not grow with either.
//!
//! Nothing is locked. What was delivered is read as of the beginning, so all of it can have landed; what landed and is
//! not known by then may be of a run that began meanwhile.

mod compare;
mod expected;
mod group;
mod tables;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use rusqlite::Transaction;

use super::streams::{STREAM, stream_from};
use super::{Snapshot, SnapshotError};
use crate::audience::{AudienceId, Key, UserKind};
use crate::event::Statement;
use crate::run::RunId;
use crate::stream::Stream;
use tables::{Knowledge, Row, Run, Says, Side, Tables};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Scope {
    pub streams: Vec<Stream>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// By key and stream; calls of `send` come last.
    pub verified: Vec<Verified>,
    /// Lines of somebody else's.
    pub foreign: u64,
    /// Lines of audience-sync that are of no stream here.
    pub unknown: u64,
}

/// One audience at one stream, or the calls of `send` to it.
#[derive(Debug, Clone)]
pub struct Verified {
    pub audience: Option<Key>,
    pub id: Option<AudienceId>,
    pub stream: Stream,
    /// Delivered, as the snapshot knows.
    pub records: u64,
    /// Delivered, and not there.
    pub missing: Difference,
    /// There, and nothing is known of them.
    pub extra: Difference,
    /// There under an id that is known, with something else.
    pub wrong: Difference,
    /// There once more, with the same bytes.
    pub duplicated: Difference,
    /// The number of the feed.
    number: Option<i64>,
}

/// How many records, and a few of them.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    pub count: u64,
    pub sample: Vec<Sample>,
}

#[derive(Debug, Clone)]
pub struct Sample {
    /// `None` for a call of `send`.
    pub user: Option<(UserKind, String)>,
    pub message_id: String,
    pub run: Option<String>,
}

impl Verified {
    fn new(stream: Stream) -> Self {
        Self {
            audience: None,
            id: None,
            stream,
            records: 0,
            missing: Difference::default(),
            extra: Difference::default(),
            wrong: Difference::default(),
            duplicated: Difference::default(),
            number: None,
        }
    }

    /// Whether what landed is what was delivered. Delivery is at least once, so repeats are no difference.
    pub fn is_clean(&self) -> bool {
        self.missing.count + self.extra.count + self.wrong.count == 0
    }
}

/// Takes in what landed, and compares it.
pub struct Verify<'s> {
    view: Transaction<'s>,
    scope: Scope,
    tables: Tables,
    subjects: Vec<Verified>,
    /// By stream, where calls of `send` are known.
    calls: HashMap<Stream, usize>,
    hasher: RandomState,
    run: Option<Run>,
    foreign: u64,
    unknown: u64,
}

impl Snapshot {
    /// Begins to compare; what was delivered until now is what must have landed.
    pub fn verify(&self, scope: Scope) -> Result<Verify<'_>, SnapshotError> {
        let mut verify = Verify {
            view: self.connection.unchecked_transaction()?,
            tables: Tables::new()?,
            subjects: Vec::new(),
            calls: HashMap::new(),
            hasher: RandomState::new(),
            run: None,
            foreign: 0,
            unknown: 0,
            scope,
        };
        verify.name_subjects()?;
        Ok(verify)
    }

    /// Whether a run is known.
    pub fn knows(&self, run: &str) -> Result<bool, SnapshotError> {
        let exists = "SELECT EXISTS (SELECT 1 FROM run WHERE id = ?1)";
        Ok(self.connection.query_row(exists, [run], |row| row.get(0))?)
    }
}

impl Verify<'_> {
    fn name_subjects(&mut self) -> Result<(), SnapshotError> {
        let mut feeds = self.view.prepare(&format!(
            "SELECT feed.number, id, key, {STREAM} FROM feed JOIN audience ON audience.number = feed.audience
             JOIN stream ON stream.number = feed.stream ORDER BY key, feed.number"
        ))?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let stream = stream_from(row, 3)?;
            if self.scope.streams.contains(&stream) {
                let mut subject = Verified::new(stream);
                subject.number = row.get(0)?;
                subject.id = Some(AudienceId::new(row.get::<_, String>(1)?));
                subject.audience = Some(Key::new(row.get::<_, String>(2)?));
                self.subjects.push(subject);
            }
        }
        let mut calls = self.view.prepare(&format!(
            "SELECT {STREAM} FROM stream WHERE EXISTS (
                 SELECT 1 FROM run WHERE run.stream = stream.number AND audience_id IS NULL
                 AND EXISTS (SELECT 1 FROM chunk WHERE chunk.run = run.number)) ORDER BY number"
        ))?;
        let mut rows = calls.query([])?;
        while let Some(row) = rows.next()? {
            let stream = stream_from(row, 0)?;
            if self.scope.streams.contains(&stream) {
                self.calls.insert(stream.clone(), self.subjects.len());
                self.subjects.push(Verified::new(stream));
            }
        }
        Ok(())
    }

    /// Takes a record that was delivered to a stream that is asked for. In any order, like the others.
    pub fn land(
        &mut self,
        stream: &Stream,
        statement: &Statement<'_>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        let subject = self.subject(stream, statement);
        self.push_landed(statement, line, Some(subject))
    }

    /// Takes one that may never have been delivered, as its id tells.
    pub fn land_unknown(
        &mut self,
        statement: &Statement<'_>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        self.push_landed(statement, line, None)
    }

    /// Takes a line that is not of audience-sync: it may be one that was given to `send`.
    pub fn land_foreign(
        &mut self,
        message_id: Option<&str>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        let Some(message_id) = message_id.filter(|_| !self.calls.is_empty()) else {
            self.foreign += 1;
            return Ok(());
        };
        self.tables.push(&Row {
            message_id,
            side: Side::Landed,
            bytes: Some(self.hash(line.as_bytes())),
            is_authentic: false,
            subject: None,
            run: None,
            says: None,
        })
    }

    fn push_landed(
        &mut self,
        statement: &Statement<'_>,
        line: &str,
        subject: Option<usize>,
    ) -> Result<(), SnapshotError> {
        let run = self.run_of(statement.run)?;
        let change = statement.change();
        self.tables.push(&Row {
            message_id: &statement.message_id,
            side: Side::Landed,
            bytes: Some(self.hash(line.as_bytes())),
            is_authentic: subject.is_some(),
            subject,
            run: Some(run),
            says: Some(Says {
                user: change.member.user,
                at: statement.at.millis(),
                value: statement.value.as_ref().map(|value| value.as_value()),
            }),
        })
    }

    fn hash(&self, line: &[u8]) -> i64 {
        self.hasher.hash_one(line).cast_signed()
    }

    fn subject(&mut self, stream: &Stream, statement: &Statement<'_>) -> usize {
        let is_it = |subject: &Verified| {
            let id = subject.id.as_ref();
            id.is_some_and(|id| id.as_str() == statement.audience) && subject.stream == *stream
        };
        let known = self.subjects.iter().position(is_it);
        known.unwrap_or_else(|| {
            let mut subject = Verified::new(stream.clone());
            subject.id = Some(AudienceId::new(&*statement.audience));
            subject.audience = Some(Key::new(&*statement.key));
            self.subjects.push(subject);
            self.subjects.len() - 1
        })
    }

    /// The number of a run that a record names.
    fn run_of(&mut self, id: RunId) -> Result<i64, SnapshotError> {
        let id = id.to_string();
        match &self.run {
            Some(run) if run.id == id => Ok(run.number),
            _ => {
                let run = self.find_run(&id)?;
                Ok(self.run.insert(run).number)
            }
        }
    }

    fn find_run(&self, id: &str) -> Result<Run, SnapshotError> {
        match self.tables.run_by_id(id)? {
            Some(run) => Ok(run),
            None => {
                let (known, subject) = self.look_up(id)?;
                self.tables.push_run(id, known, subject)
            }
        }
    }

    /// What the snapshot knows of a run, and which subject it belongs to.
    fn look_up(&self, id: &str) -> Result<(Knowledge, Option<usize>), SnapshotError> {
        // A run of which some chunks were pruned is known by its outcome only.
        let mut select = self.view.prepare_cached(&format!(
            "SELECT feed, audience_id IS NULL,
                    (SELECT ifnull(sum(count), -1) FROM chunk WHERE chunk.run = run.number) >= planned, {STREAM}
             FROM run JOIN stream ON stream.number = run.stream WHERE run.id = ?1"
        ))?;
        let mut rows = select.query([id])?;
        let Some(row) = rows.next()? else {
            return Ok((Knowledge::Unknown, None));
        };
        let stream = stream_from(row, 3)?;
        if !self.scope.streams.contains(&stream) {
            return Ok((Knowledge::Elsewhere, None));
        }
        let known = match row.get(2)? {
            true => Knowledge::Whole,
            false => Knowledge::Outcome,
        };
        let (feed, is_send): (Option<i64>, bool) = (row.get(0)?, row.get(1)?);
        let subject = match is_send {
            true => self.calls.get(&stream).copied(),
            false => self
                .subjects
                .iter()
                .position(|subject| feed.is_some() && subject.number == feed),
        };
        Ok((known, subject))
    }
}
