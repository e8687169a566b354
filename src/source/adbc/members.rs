//! Rows of a driver as members: in the order in which they come, each once.

use std::sync::mpsc::Receiver;

use super::Adbc;
use super::words::Words;
use crate::audience::{Audience, Member};
use crate::diff::Members;
use crate::source::arrow::{Batch, BatchRow, Fetched};
use crate::source::row::{Cell, Columns, Read, Row as _, RowReader};
use crate::source::sort::{Sorted, Sorter};
use crate::source::{Answer, Fingerprint, Interrupt, Question, Skipped, SourceError, is_greater};

/// How many rows are read between two looks at whether to go on.
const LOOK_EVERY: usize = 4_096;

/// What a row may hold beside ids. More is more than any record takes.
const MAX_ROW_BYTES: usize = 4 << 20;

/// The rows of a query that can be used.
pub(super) struct Rows<'a> {
    adbc: &'a Adbc,
    audience: &'a Audience,
    columns: Columns,
    interrupt: &'a Interrupt,
    fetched: Receiver<Fetched>,
    batch: Option<Batch>,
    /// The row of the batch that comes next.
    next: usize,
    skipped: Skipped,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        adbc: &'a Adbc,
        audience: &'a Audience,
        columns: Columns,
        interrupt: &'a Interrupt,
        fetched: Receiver<Fetched>,
    ) -> Self {
        Self {
            adbc,
            audience,
            columns,
            interrupt,
            fetched,
            batch: None,
            next: 0,
            skipped: Skipped::default(),
        }
    }

    /// Reads on to the next row that is a member; `false` at the end.
    fn read(&mut self, read: &mut Read) -> Result<bool, SourceError> {
        loop {
            let row = self.batch.as_ref().and_then(|batch| batch.row(self.next));
            let Some(row) = row else {
                if !self.fetch()? {
                    return Ok(false);
                }
                continue;
            };
            self.next += 1;
            if self.next.is_multiple_of(LOOK_EVERY) && self.interrupt.is_requested() {
                return Err(self.adbc.interrupted());
            }
            if self.is_too_long(&row) {
                return Err(self.too_long());
            }
            let mut reader = RowReader {
                columns: &self.columns,
                skipped: &mut self.skipped,
                has_numbers: &mut false,
                row: &row,
            };
            let is_usable = reader.read(read);
            if is_usable.map_err(|wrong| SourceError::WrongType {
                question: Question::Members,
                audience: self.audience.name.clone(),
                column: wrong.column,
                found: wrong.found,
                expected: wrong.expected,
            })? {
                return Ok(true);
            }
        }
    }

    fn is_too_long(&self, row: &BatchRow<'_>) -> bool {
        let traits = self.columns.traits.iter().map(|(column, _)| *column);
        let bytes = self.columns.value.into_iter().chain(traits).map(|column| {
            let Cell::Text(text) = row.cell(column) else {
                return 0;
            };
            text.len()
        });
        bytes.sum::<usize>() > MAX_ROW_BYTES
    }

    fn too_long(&self) -> SourceError {
        let problem = "a row holds more than 4 MiB beside its ids\n\nhint: no record takes as much; let the query cut it";
        let place = format!("the query of {:?}", self.audience.name);
        self.adbc.broken(place, problem.to_owned())
    }

    /// Asks for more rows; `false` where all have come.
    fn fetch(&mut self) -> Result<bool, SourceError> {
        // What was read goes first: two of them need not be held.
        self.batch = None;
        self.next = 0;
        let fetched = self.fetched.recv();
        match fetched.expect("the thread that takes rows says how it ended") {
            Fetched::End => Ok(false),
            Fetched::Batch(batch) => {
                self.batch = Some(Batch::of(&batch));
                Ok(true)
            }
            Fetched::Failed(_) if self.interrupt.is_requested() => Err(self.adbc.interrupted()),
            Fetched::Failed(error) => {
                let said = Words::of_rows(self.adbc, &error);
                Err(self.adbc.failed(self.audience, said))
            }
        }
    }

    /// All of them, brought into order here.
    pub(super) fn sorted(mut self, mut sorter: Sorter) -> Result<SortedMembers, SourceError> {
        let mut read = Read::default();
        while self.read(&mut read)? {
            sorter.push(&read.member.as_member())?;
        }
        Ok(SortedMembers {
            sorted: sorter.finish()?,
            skipped: self.skipped,
        })
    }
}

/// Members in the order of the database.
pub(super) struct OrderedMembers<'a> {
    rows: Rows<'a>,
    current: Read,
    /// One row ahead, to see whether it is the same user again.
    next: Read,
    has_next: bool,
}

impl<'a> OrderedMembers<'a> {
    /// Moves up to the first member.
    pub(super) fn start(rows: Rows<'a>) -> Result<Self, SourceError> {
        let mut members = Self {
            rows,
            current: Read::default(),
            next: Read::default(),
            has_next: false,
        };
        members.has_next = members.rows.read(&mut members.next)?;
        Ok(members)
    }
}

impl Members for OrderedMembers<'_> {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        if !self.has_next {
            return Ok(false);
        }
        std::mem::swap(&mut self.current, &mut self.next);
        self.has_next = self.rows.read(&mut self.next)?;
        while self.has_next && self.next.user() <= self.current.user() {
            if self.next.user() < self.current.user() {
                return Err(SourceError::OutOfOrder {
                    source_name: self.rows.adbc.name.clone(),
                });
            }
            if is_greater(&self.next.member, &self.current.member) {
                std::mem::swap(&mut self.current, &mut self.next);
            }
            self.has_next = self.rows.read(&mut self.next)?;
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.member.as_member()
    }
}

impl Answer for OrderedMembers<'_> {
    fn skipped(&self) -> Skipped {
        self.rows.skipped
    }

    fn read_from(&self) -> Option<Fingerprint> {
        None
    }
}

/// Members that were brought into order here.
pub(super) struct SortedMembers {
    sorted: Sorted,
    skipped: Skipped,
}

impl Members for SortedMembers {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        Ok(self.sorted.advance()?)
    }

    fn current(&self) -> Member<'_> {
        self.sorted.current()
    }
}

impl Answer for SortedMembers {
    fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn read_from(&self) -> Option<Fingerprint> {
        None
    }
}
