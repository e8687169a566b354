//! The comparison itself: both sides in one order, met one after another.

use rusqlite::types::{Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use super::group::{Expected, Group, Landed, Verdict};
use super::tables::{Knowledge, Run, Side, Tables};
use super::{Comparison, Difference, Sample, Verified, Verify};
use crate::snapshot::SnapshotError;
use crate::snapshot::members::user;

/// A few records are enough to look for the cause.
const MAX_SAMPLE: usize = 5;

type Kind = fn(&mut Verified) -> &mut Difference;

const MISSING: Kind = |subject| &mut subject.missing;
const EXTRA: Kind = |subject| &mut subject.extra;
const WRONG: Kind = |subject| &mut subject.wrong;
const DUPLICATED: Kind = |subject| &mut subject.duplicated;

impl Verify<'_> {
    /// Compares. `is_known_now` tells whether a run is known that was not when this began.
    pub fn finish(
        mut self,
        is_known_now: impl FnMut(&str) -> Result<bool, SnapshotError>,
    ) -> Result<Comparison, SnapshotError> {
        self.expect_all()?;
        let mut findings = Findings {
            subjects: std::mem::take(&mut self.subjects),
            tables: &self.tables,
            foreign: self.foreign,
            unknown: self.unknown,
            run: None,
        };
        if findings.compare_ids(is_known_now)? {
            findings.compare_users(&self.view)?;
        }
        let mut verified = findings.subjects;
        let order = |it: &Verified| {
            (
                it.audience.is_none(),
                it.audience.clone(),
                it.stream.clone(),
            )
        };
        verified.sort_by_cached_key(order);
        Ok(Comparison {
            verified,
            foreign: findings.foreign,
            unknown: findings.unknown,
        })
    }
}

struct Findings<'v> {
    tables: &'v Tables,
    subjects: Vec<Verified>,
    foreign: u64,
    unknown: u64,
    /// The one that was looked up last.
    run: Option<Run>,
}

/// A line that landed, as far as it is compared by its message id.
#[derive(Clone, Copy)]
struct Line {
    landed: Landed,
    subject: Option<usize>,
    run: Option<i64>,
    row: i64,
}

impl Line {
    fn read(row: &SqlRow<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            landed: Landed {
                bytes: row.get(2)?,
                is_authentic: row.get(3)?,
            },
            subject: optional(row, 4)?,
            run: row.get(5)?,
            row: row.get(6)?,
        })
    }

    fn repeats(&self, before: &Self) -> bool {
        self.landed.bytes == before.landed.bytes
    }
}

fn optional(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Option<usize>> {
    let number: Option<i64> = row.get(column)?;
    Ok(number.map(|number| number as usize))
}

/// By message ids.
impl Findings<'_> {
    /// Tells whether there are records of runs of which the snapshot knows the outcome only.
    fn compare_ids(
        &mut self,
        mut is_known_now: impl FnMut(&str) -> Result<bool, SnapshotError>,
    ) -> Result<bool, SnapshotError> {
        let sql = SnapshotError::Scratch;
        let connection = &self.tables.connection;
        let mut select = connection
            .prepare(
                "SELECT message_id, side, bytes, is_authentic, subject, run, rowid FROM record
                 ORDER BY message_id, side, bytes",
            )
            .map_err(sql)?;
        let mut rows = select.query([]).map_err(sql)?;
        let mut message_id = String::new();
        let mut group = Group::default();
        let mut before: Option<Line> = None;
        let mut has_outcomes = false;
        while let Some(row) = rows.next().map_err(sql)? {
            let id = text(row.get_ref(0).map_err(sql)?)?;
            if id != message_id {
                self.close(&mut group)?;
                id.clone_into(&mut message_id);
                before = None;
            }
            if row.get::<_, i64>(1).map_err(sql)? < Side::Landed as i64 {
                let expected = expected(row).map_err(sql)?;
                self.subjects[expected.subject].records += u64::from(expected.must);
                group.expect(expected);
                continue;
            }
            let line = Line::read(row).map_err(sql)?;
            match group.land(&line.landed) {
                Verdict::Expected => {}
                Verdict::Duplicated(subject) => self.note(DUPLICATED, subject, line.row)?,
                Verdict::Wrong(subject) => self.note(WRONG, subject, line.row)?,
                Verdict::Unexpected => {
                    let repeats = before.is_some_and(|before| line.repeats(&before));
                    has_outcomes |= self.unexpected(&line, repeats, &mut is_known_now)?;
                }
            }
            before = Some(line);
        }
        self.close(&mut group)?;
        Ok(has_outcomes)
    }

    fn close(&mut self, group: &mut Group) -> Result<(), SnapshotError> {
        for missing in group.missing() {
            self.note(MISSING, missing.subject, missing.row)?;
        }
        group.begin();
        Ok(())
    }

    /// Judges a line that no record is expected for; tells whether its user must be looked at.
    fn unexpected(
        &mut self,
        line: &Line,
        repeats: bool,
        is_known_now: &mut impl FnMut(&str) -> Result<bool, SnapshotError>,
    ) -> Result<bool, SnapshotError> {
        let Some(run) = line.run else {
            self.foreign += 1;
            return Ok(false);
        };
        let run = self.run(run)?;
        let subject = line.subject.or(run.subject);
        match (run.known, subject) {
            (Knowledge::Unknown, _) if is_known_now(&run.id)? => {}
            (Knowledge::Unknown | Knowledge::Whole, Some(subject)) => {
                self.note(EXTRA, subject, line.row)?;
            }
            (Knowledge::Outcome, Some(subject)) if !line.landed.is_authentic => {
                self.note(EXTRA, subject, line.row)?;
            }
            (Knowledge::Outcome, Some(subject)) if repeats => {
                self.note(DUPLICATED, subject, line.row)?;
            }
            (Knowledge::Outcome, Some(_)) => return Ok(true),
            (Knowledge::Elsewhere, _) | (_, None) => self.unknown += 1,
        }
        Ok(false)
    }

    fn run(&mut self, number: i64) -> Result<Run, SnapshotError> {
        if let Some(run) = self.run.as_ref().filter(|run| run.number == number) {
            return Ok(run.clone());
        }
        let run = self.tables.run_by_number(number)?;
        let run = run.ok_or(SnapshotError::Unknown("run"))?;
        Ok(self.run.insert(run).clone())
    }

    fn note(&mut self, kind: Kind, subject: usize, row: i64) -> Result<(), SnapshotError> {
        let subject = &mut self.subjects[subject];
        let difference = kind(subject);
        difference.count += 1;
        if difference.sample.len() < MAX_SAMPLE {
            difference.sample.push(sample(self.tables, row)?);
        }
        Ok(())
    }
}

fn expected(row: &SqlRow<'_>) -> rusqlite::Result<Expected> {
    Ok(Expected {
        subject: row.get::<_, i64>(4)? as usize,
        bytes: row.get(2)?,
        must: row.get::<_, i64>(1)? == Side::Must as i64,
        row: row.get(6)?,
    })
}

fn text(column: ValueRef<'_>) -> Result<&str, SnapshotError> {
    column
        .as_str()
        .map_err(|_| SnapshotError::Unknown("message id"))
}

fn sample(tables: &Tables, row: i64) -> Result<Sample, SnapshotError> {
    let sql = SnapshotError::Scratch;
    let mut select = tables
        .connection
        .prepare_cached(
            "SELECT user, message_id, run.id FROM record LEFT JOIN run ON run.number = record.run WHERE record.rowid = ?1",
        )
        .map_err(sql)?;
    let mut rows = select.query([row]).map_err(sql)?;
    let row = rows
        .next()
        .map_err(sql)?
        .ok_or(SnapshotError::Unknown("record"))?;
    let who = match row.get_ref(0).map_err(sql)? {
        ValueRef::Null => None,
        column => Some(user(column)?).map(|(kind, id)| (kind, id.to_owned())),
    };
    Ok(Sample {
        user: who,
        message_id: row.get(1).map_err(sql)?,
        run: row.get(2).map_err(sql)?,
    })
}

/// The last record about a user.
struct Last {
    subject: usize,
    user: SqlValue,
    /// When the last record was sent that is known to have been,
    sent_at: Option<i64>,
    /// and the last one that landed.
    landed: Option<LastLanded>,
}

struct LastLanded {
    at: i64,
    known: i64,
    is_member: bool,
    value: SqlValue,
    row: i64,
}

/// By users.
impl Findings<'_> {
    /// Where the snapshot knows only what a run came to, a record of it may still say what the members do not: that is
    /// so where nothing later is known of its user.
    fn compare_users(&mut self, view: &Connection) -> Result<(), SnapshotError> {
        let sql = SnapshotError::Scratch;
        let connection = &self.tables.connection;
        let mut select = connection
            .prepare(
                "SELECT subject, user, at, side, is_member, value, rowid,
                        (SELECT known FROM run WHERE number = record.run)
                 FROM record
                 WHERE user IS NOT NULL AND subject IS NOT NULL AND (side = 0 OR side = 2 AND is_authentic)
                 ORDER BY subject, user, at",
            )
            .map_err(sql)?;
        let mut rows = select.query([]).map_err(sql)?;
        let mut last: Option<Last> = None;
        while let Some(row) = rows.next().map_err(sql)? {
            let user = row.get_ref(1).map_err(sql)?;
            let subject = row.get::<_, i64>(0).map_err(sql)? as usize;
            let goes_on = last
                .as_ref()
                .is_some_and(|last| last.subject == subject && ValueRef::from(&last.user) == user);
            if !goes_on {
                self.judge(view, last.take())?;
            }
            if last.is_none() {
                last = Some(Last {
                    subject,
                    user: row.get(1).map_err(sql)?,
                    sent_at: None,
                    landed: None,
                });
            }
            let last = last.as_mut().expect("there is one by now");
            last.take(row).map_err(sql)?;
        }
        self.judge(view, last)
    }

    fn judge(&mut self, view: &Connection, last: Option<Last>) -> Result<(), SnapshotError> {
        let Some(Last {
            subject,
            user,
            sent_at,
            landed: Some(landed),
        }) = last
        else {
            return Ok(());
        };
        if landed.known != Knowledge::Outcome as i64 || sent_at >= Some(landed.at) {
            return Ok(());
        }
        let number = self.subjects[subject].number;
        let member = view
            .prepare_cached("SELECT value FROM membership WHERE feed = ?1 AND user = ?2")?
            .query_row(params![number, user], |row| row.get::<_, SqlValue>(0));
        let agrees = match member.optional()? {
            Some(value) => landed.is_member && is_same(&value, &landed.value),
            None => !landed.is_member,
        };
        if agrees {
            return Ok(());
        }
        self.note(EXTRA, subject, landed.row)
    }
}

impl Last {
    fn take(&mut self, row: &SqlRow<'_>) -> rusqlite::Result<()> {
        let at = row.get(2)?;
        if row.get::<_, i64>(3)? == Side::Must as i64 {
            self.sent_at = Some(at);
        } else {
            self.landed = Some(LastLanded {
                at,
                known: row.get(7)?,
                is_member: row.get(4)?,
                value: row.get(5)?,
                row: row.get(6)?,
            });
        }
        Ok(())
    }
}

fn is_same(a: &SqlValue, b: &SqlValue) -> bool {
    match (a, b) {
        (SqlValue::Real(a), SqlValue::Real(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}
