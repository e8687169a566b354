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

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::{Snapshot, SnapshotError};
use crate::audience::{AudienceId, DestinationName, Key, UserKind};
use crate::event::Statement;
use crate::mapping::StreamName;
use crate::run::RunId;
use tables::{Knowledge, Row, Run, Says, Side, Tables};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Scope {
    pub destinations: Vec<DestinationName>,
    /// Only this stream, if not all of them.
    pub stream: Option<StreamName>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    /// By key and destination; calls of `send` come last.
    pub verified: Vec<Verified>,
    /// Lines of somebody else's.
    pub foreign: u64,
    /// Lines of audience-sync that are of no destination here.
    pub unknown: u64,
}

/// One audience at one destination, or the calls of `send` to it.
#[derive(Debug, Clone)]
pub struct Verified {
    pub audience: Option<Key>,
    pub id: Option<AudienceId>,
    pub destination: DestinationName,
    /// Said to be delivered, in each stream.
    pub records: u64,
    /// Said to be delivered to a stream, and not there.
    pub missing: Difference,
    /// There, and nothing is known of them.
    pub extra: Difference,
    /// There under an id that is known, with something else.
    pub wrong: Difference,
    /// There once more, with the same bytes.
    pub duplicated: Difference,
    /// The number of the audience.
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
    /// `None` where the file does not tell.
    pub stream: Option<StreamName>,
}

impl Verified {
    fn new(destination: DestinationName) -> Self {
        Self {
            audience: None,
            id: None,
            destination,
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
    streams: Vec<StreamName>,
    /// By destination, where calls of `send` are known.
    calls: HashMap<DestinationName, usize>,
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
            streams: streams(&self.connection)?.into_iter().collect(),
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

    /// Every stream that some run went to.
    pub fn streams(&self) -> Result<BTreeSet<StreamName>, SnapshotError> {
        streams(&self.connection)
    }

    /// Whether a run is known.
    pub fn knows(&self, run: &str) -> Result<bool, SnapshotError> {
        let exists = "SELECT EXISTS (SELECT 1 FROM run WHERE id = ?1)";
        Ok(self.connection.query_row(exists, [run], |row| row.get(0))?)
    }
}

impl Verify<'_> {
    fn name_subjects(&mut self) -> Result<(), SnapshotError> {
        let mut audiences = self.view.prepare(
            "SELECT number, id, destination, key FROM audience ORDER BY key, destination",
        )?;
        let mut rows = audiences.query([])?;
        while let Some(row) = rows.next()? {
            let destination = DestinationName::new(row.get::<_, String>(2)?);
            if self.scope.destinations.contains(&destination) {
                let mut subject = Verified::new(destination);
                subject.number = row.get(0)?;
                subject.id = Some(AudienceId::new(row.get::<_, String>(1)?));
                subject.audience = Some(Key::new(row.get::<_, String>(3)?));
                self.subjects.push(subject);
            }
        }
        let mut calls = self.view.prepare(
            "SELECT DISTINCT destination FROM run
             WHERE audience_id IS NULL AND EXISTS (SELECT 1 FROM chunk WHERE chunk.run = run.number) ORDER BY destination",
        )?;
        let mut rows = calls.query([])?;
        while let Some(row) = rows.next()? {
            let destination = DestinationName::new(row.get::<_, String>(0)?);
            if self.scope.destinations.contains(&destination) {
                self.calls.insert(destination.clone(), self.subjects.len());
                self.subjects.push(Verified::new(destination));
            }
        }
        Ok(())
    }

    /// Takes a record that was delivered to a destination that is asked for. In any order, like the others.
    pub fn land(
        &mut self,
        destination: &DestinationName,
        stream: Option<&StreamName>,
        statement: &Statement<'_>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        let subject = self.subject(destination, statement);
        self.push_landed(stream, statement, line, Some(subject))
    }

    /// Takes one that may never have been delivered, as its id tells.
    pub fn land_unknown(
        &mut self,
        stream: Option<&StreamName>,
        statement: &Statement<'_>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        self.push_landed(stream, statement, line, None)
    }

    /// Takes a line of somebody else's, which may be one that was given to `send`.
    pub fn land_foreign(
        &mut self,
        stream: Option<&StreamName>,
        message_id: Option<&str>,
        line: &str,
    ) -> Result<(), SnapshotError> {
        let Some(message_id) = message_id.filter(|_| !self.calls.is_empty()) else {
            self.foreign += 1;
            return Ok(());
        };
        let stream = stream.map(|stream| self.stream(stream));
        self.tables.push(&Row {
            message_id,
            side: Side::Landed,
            stream,
            bytes: Some(self.hash(line.as_bytes())),
            is_authentic: false,
            subject: None,
            run: None,
            says: None,
        })
    }

    fn push_landed(
        &mut self,
        stream: Option<&StreamName>,
        statement: &Statement<'_>,
        line: &str,
        subject: Option<usize>,
    ) -> Result<(), SnapshotError> {
        let run = self.run_of(statement.run)?;
        let stream = stream.map(|stream| self.stream(stream));
        let change = statement.change();
        self.tables.push(&Row {
            message_id: &statement.message_id,
            side: Side::Landed,
            stream,
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

    fn stream(&mut self, name: &StreamName) -> usize {
        let known = self.streams.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.streams.push(name.clone());
            self.streams.len() - 1
        })
    }

    fn subject(&mut self, destination: &DestinationName, statement: &Statement<'_>) -> usize {
        let is_it = |subject: &Verified| {
            subject
                .id
                .as_ref()
                .is_some_and(|id| id.as_str() == statement.audience)
                && subject.destination == *destination
        };
        let known = self.subjects.iter().position(is_it);
        known.unwrap_or_else(|| {
            let mut subject = Verified::new(destination.clone());
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

    /// What the snapshot knows of a run, and whose it is.
    fn look_up(&self, id: &str) -> Result<(Knowledge, Option<usize>), SnapshotError> {
        let mut select = self.view.prepare_cached(
            "SELECT destination, audience, audience_id IS NULL, EXISTS (SELECT 1 FROM chunk WHERE chunk.run = run.number)
             FROM run WHERE id = ?1",
        )?;
        let found = select.query_row([id], |row| {
            let destination = DestinationName::new(row.get::<_, String>(0)?);
            let subject: Option<i64> = row.get(1)?;
            Ok((destination, subject, row.get(2)?, row.get(3)?))
        });
        let Some((destination, audience, is_send, has_chunks)) = found.optional()? else {
            return Ok((Knowledge::Unknown, None));
        };
        if !self.scope.destinations.contains(&destination) {
            return Ok((Knowledge::Elsewhere, None));
        }
        let known = match has_chunks {
            true => Knowledge::Whole,
            false => Knowledge::Outcome,
        };
        let subject = match (is_send, audience) {
            (true, _) => self.calls.get(&destination).copied(),
            (false, number) => self
                .subjects
                .iter()
                .position(|subject| number.is_some() && subject.number == number),
        };
        Ok((known, subject))
    }
}

fn streams(connection: &Connection) -> Result<BTreeSet<StreamName>, SnapshotError> {
    let mut select = connection.prepare("SELECT DISTINCT streams FROM run")?;
    let mut rows = select.query([])?;
    let mut streams = BTreeSet::new();
    while let Some(row) = rows.next()? {
        let names: Vec<StreamName> = serde_json::from_str(&row.get::<_, String>(0)?)
            .map_err(|_| SnapshotError::Unknown("list of streams"))?;
        streams.extend(names);
    }
    Ok(streams)
}
