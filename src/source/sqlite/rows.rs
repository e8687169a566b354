//! Rows as members: checked, each once, in order.

use rusqlite::Rows;
use rusqlite::types::ValueRef;

use super::Sqlite;
use super::layout::Layout;
use super::state::State;
use crate::audience::{Audience, Member};
use crate::diff::{Members, Membership};
use crate::source::row::{Cell, Columns, Read, Row, RowReader, WrongType};
use crate::source::{Answer, Doubt, Fingerprint, Question, Skipped, SourceError, is_greater};

/// The members of one audience, each once.
pub(super) struct SqliteMembers<'s> {
    source: &'s Sqlite,
    audience: &'s Audience,
    question: Question,
    columns: Columns,
    rows: Rows<'s>,
    current: Read,
    /// One row ahead, to see whether it is the same user again.
    next: Read,
    has_next: bool,
    /// Some ids are integers. They sort before text, so the first member tells.
    pub(super) has_numbers: bool,
    /// What the file was before it was read, where the same file gives the same members.
    before: Result<&'s State, Doubt>,
    skipped: Skipped,
}

impl Row for rusqlite::Row<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        match self.get_ref_unwrap(column) {
            ValueRef::Null => Cell::Null,
            ValueRef::Integer(integer) => Cell::Integer(integer),
            ValueRef::Real(real) => Cell::Real(real),
            ValueRef::Text(text) => Cell::Text(text),
            ValueRef::Blob(_) => Cell::Other("a BLOB"),
        }
    }
}

impl<'s> SqliteMembers<'s> {
    pub(super) fn new(
        source: &'s Sqlite,
        audience: &'s Audience,
        layout: &'s Layout,
        rows: Rows<'s>,
        before: Result<&'s State, Doubt>,
    ) -> Self {
        Self {
            source,
            audience,
            question: layout.question,
            columns: layout.sorted_columns(),
            rows,
            current: Read::default(),
            next: Read::default(),
            has_next: false,
            has_numbers: false,
            before,
            skipped: Skipped::default(),
        }
    }

    /// Moves up to the first member, without which [`advance`](Members::advance) finds none.
    pub(super) fn start(&mut self) -> Result<(), SourceError> {
        self.has_next = self.read_next()?;
        Ok(())
    }

    /// Reads on to the next row that is a member; `false` at the end.
    fn read_next(&mut self) -> Result<bool, SourceError> {
        while let Some(row) = self
            .rows
            .next()
            .map_err(|error| self.source.unreadable(error))?
        {
            let mut reader = RowReader {
                columns: &self.columns,
                skipped: &mut self.skipped,
                has_numbers: &mut self.has_numbers,
                row,
            };
            let is_usable = reader.read(&mut self.next);
            if is_usable.map_err(|wrong| self.wrong_type(wrong))? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl SqliteMembers<'_> {
    fn wrong_type(&self, wrong: WrongType) -> SourceError {
        SourceError::WrongType {
            question: self.question,
            audience: self.audience.name.clone(),
            column: wrong.column,
            found: wrong.found,
            expected: wrong.expected,
        }
    }
}

impl Members for SqliteMembers<'_> {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        if !self.has_next {
            return Ok(false);
        }
        std::mem::swap(&mut self.current, &mut self.next);
        self.has_next = self.read_next()?;
        while self.has_next && self.next.user() <= self.current.user() {
            if self.next.user() < self.current.user() {
                return Err(SourceError::OutOfOrder {
                    source_name: self.source.name.clone(),
                });
            }
            if self.next.membership != self.current.membership {
                return Err(SourceError::Contradiction {
                    audience: self.audience.name.clone(),
                });
            }
            if is_greater(&self.next.member, &self.current.member) {
                std::mem::swap(&mut self.current, &mut self.next);
            }
            self.has_next = self.read_next()?;
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.member.as_member()
    }

    fn membership(&self) -> Membership {
        self.current.membership
    }
}

impl Answer for SqliteMembers<'_> {
    fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn read_from(&self) -> Option<Fingerprint> {
        let is_same = |before: &State| State::of(&self.source.path).as_ref() == Ok(before);
        let whole = match self.before {
            Ok(before) if is_same(before) => Ok(before),
            Ok(_) => Err(Doubt::Written),
            Err(doubt) => Err(doubt),
        };
        match whole {
            Ok(before) => Some(before.fingerprint()),
            Err(doubt) => {
                if self.question == Question::Members {
                    let name = &self.audience.name;
                    tracing::debug!(
                        "{name:?}: what the source was when it was read is not known: {doubt}"
                    );
                }
                None
            }
        }
    }
}
