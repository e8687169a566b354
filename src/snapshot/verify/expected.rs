//! What the snapshot says was delivered: by the chunks of its history, and where they are gone, by the members.

use std::collections::HashMap;

use rusqlite::params;
use rusqlite::types::ValueRef;

use super::Verify;
use super::tables::{Row, Says, Side};
use crate::audience::{Action, Change, Member, User, Value};
use crate::event::{Identify, Landed};
use crate::run::Timestamp;
use crate::snapshot::journal::{self, JournaledRun, TOO_LONG, flags, unreadable};
use crate::snapshot::members::{SqlValueBuf, user};
use crate::snapshot::{SnapshotError, chunk};

/// What the records of a run have in common.
struct Common {
    /// Whom they are counted for.
    subject: usize,
    /// As it is numbered in the tables.
    run: i64,
    started_at: Timestamp,
}

/// What became of the entries of a chunk.
struct States {
    is_delivered: bool,
    /// Which entries the stream has accepted of a chunk that is in the journal. Empty where none.
    accepted: Vec<bool>,
    /// Those that can never be delivered, with whether they can still be rendered as they were.
    dead: HashMap<usize, bool>,
}

impl States {
    fn side(&self, position: usize) -> Side {
        let is_accepted = self.is_delivered || self.accepted.get(position) == Some(&true);
        // A dead one may have been accepted without an answer.
        match is_accepted && !self.dead.contains_key(&position) {
            true => Side::Must,
            false => Side::May,
        }
    }

    fn is_whole(&self, position: usize) -> bool {
        self.dead.get(&position).copied().unwrap_or(true)
    }
}

impl Verify<'_> {
    pub(super) fn expect_all(&self) -> Result<(), SnapshotError> {
        let mut select = self.view.prepare(
            "SELECT number FROM run WHERE EXISTS (SELECT 1 FROM chunk WHERE chunk.run = run.number) ORDER BY number",
        )?;
        let numbers = select.query_map([], |row| row.get(0))?;
        let numbers: Vec<i64> = numbers.collect::<Result<_, _>>()?;
        drop(select);
        for number in numbers {
            let run = journal::run(&self.view, number)?;
            if let Some(common) = self.common(&run)? {
                self.expect_chunks(&run, &common)?;
            }
        }
        self.expect_members()
    }

    /// `None` for a run that is not compared.
    fn common(&self, run: &JournaledRun) -> Result<Option<Common>, SnapshotError> {
        let subject = match run.feed {
            None => self.calls.get(&run.stream).copied(),
            number => self
                .subjects
                .iter()
                .position(|subject| subject.number == number),
        };
        let Some(subject) = subject else {
            return Ok(None);
        };
        let computation = run.computation.as_ref();
        Ok(Some(Common {
            subject,
            run: self.find_run(&run.id.to_string())?.number,
            started_at: computation.map_or(Timestamp::from_millis(0), |it| it.started_at),
        }))
    }

    fn expect_chunks(&self, run: &JournaledRun, common: &Common) -> Result<(), SnapshotError> {
        let mut select = self.view.prepare_cached(
            "SELECT seq, count, entries, delivered_at IS NOT NULL, accepted
             FROM chunk JOIN bytes ON bytes.id = chunk.bytes WHERE run = ?1 ORDER BY seq",
        )?;
        let identify = run.computation.as_ref().map(Identify::new);
        let mut rows = select.query([run.number])?;
        while let Some(row) = rows.next()? {
            let seq = row.get(0)?;
            let accepted = flags(row.get(4)?, row.get::<_, i64>(1)? as usize);
            let states = States {
                is_delivered: row.get(3)?,
                accepted: accepted.ok_or_else(|| unreadable(run, seq))?,
                dead: self.dead(run, seq)?,
            };
            let ValueRef::Blob(entries) = row.get_ref(2)? else {
                return Err(unreadable(run, seq));
            };
            match &identify {
                Some(identify) => {
                    for (position, change) in chunk::changes(entries).enumerate() {
                        let change = change.map_err(|_| unreadable(run, seq))?;
                        self.expect_change(common, identify, &change, position, &states)?;
                    }
                }
                None => {
                    for (position, line) in chunk::calls(entries).enumerate() {
                        let line = line.map_err(|_| unreadable(run, seq))?;
                        self.expect_call(common, line, position, &states)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn dead(&self, run: &JournaledRun, seq: i64) -> Result<HashMap<usize, bool>, SnapshotError> {
        let mut select = self
            .view
            .prepare_cached("SELECT position, code <> ?3 FROM dead WHERE run = ?1 AND seq = ?2")?;
        let dead = select.query_map(params![run.number, seq, TOO_LONG], |row| {
            Ok((row.get::<_, i64>(0)? as usize, row.get(1)?))
        })?;
        Ok(dead.collect::<Result<_, _>>()?)
    }

    fn expect_change(
        &self,
        common: &Common,
        identify: &Identify,
        change: &Change<'_>,
        position: usize,
        states: &States,
    ) -> Result<(), SnapshotError> {
        let mut line = Vec::with_capacity(512);
        identify.render(change, &mut line);
        let says = Says {
            user: change.member.user,
            at: time_of(common, change.action),
            value: (change.action != Action::Leave).then_some(change.member.value),
        };
        let message_id = identify.message_id(change);
        self.expect(
            common,
            message_id.as_str(),
            &line,
            Some(says),
            position,
            states,
        )
    }

    fn expect_call(
        &self,
        common: &Common,
        line: &[u8],
        position: usize,
        states: &States,
    ) -> Result<(), SnapshotError> {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let message_id = match Landed::parse(text) {
            Ok(Landed::Ours(statement)) => Some(statement.message_id),
            Ok(Landed::Foreign(message_id)) => message_id,
            // Nor can it be read where it landed.
            Err(_) => None,
        };
        match message_id {
            Some(id) => self.expect(common, &id, line, None, position, states),
            None => Ok(()),
        }
    }

    /// Expects a line, which ends with a newline.
    fn expect(
        &self,
        common: &Common,
        message_id: &str,
        line: &[u8],
        says: Option<Says<'_>>,
        position: usize,
        states: &States,
    ) -> Result<(), SnapshotError> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let bytes = states.is_whole(position).then(|| self.hash(line));
        self.tables.push(&Row {
            message_id,
            side: states.side(position),
            bytes,
            is_authentic: true,
            subject: Some(common.subject),
            run: Some(common.run),
            says,
        })
    }

    /// The records by which those are members whose run has no chunks any more: their ids and values are known, and so
    /// are the message ids.
    fn expect_members(&self) -> Result<(), SnapshotError> {
        let mut select = self.view.prepare(
            "SELECT user, value, since FROM membership
             WHERE NOT EXISTS (SELECT 1 FROM chunk WHERE chunk.run = since) ORDER BY since",
        )?;
        let mut rows = select.query([])?;
        let mut current = None;
        while let Some(row) = rows.next()? {
            let since: i64 = row.get(2)?;
            if current.as_ref().is_none_or(|(run, _)| *run != since) {
                current = Some((since, self.common_of_members(since)?));
            }
            let Some((_, Some((common, identify)))) = &current else {
                continue;
            };
            let (kind, id) = user(row.get_ref(0)?)?;
            let value = row.get::<_, SqlValueBuf>(1)?.0;
            let user = User { kind, id };
            self.expect_member(common, identify, user, value.as_value())?;
        }
        Ok(())
    }

    fn common_of_members(&self, run: i64) -> Result<Option<(Common, Identify)>, SnapshotError> {
        let run = journal::run(&self.view, run)?;
        let identify = run.computation.as_ref().map(Identify::new);
        Ok(self.common(&run)?.zip(identify))
    }

    fn expect_member(
        &self,
        common: &Common,
        identify: &Identify,
        user: User<'_>,
        value: Value<'_>,
    ) -> Result<(), SnapshotError> {
        let member = Member {
            user,
            anonymous_id: None,
            value,
            traits: "",
        };
        let message_id = identify.message_id(&Change {
            action: Action::Enter,
            member,
        });
        self.tables.push(&Row {
            message_id: message_id.as_str(),
            side: Side::Must,
            bytes: None,
            is_authentic: true,
            subject: Some(common.subject),
            run: Some(common.run),
            says: Some(Says {
                user,
                at: time_of(common, Action::Enter),
                value: Some(value),
            }),
        })
    }
}

/// The timestamp of a record.
fn time_of(common: &Common, action: Action) -> i64 {
    match action {
        Action::Leave => common.started_at.millis(),
        Action::Enter | Action::Change | Action::Repeat => common.started_at.of_entering().millis(),
    }
}
