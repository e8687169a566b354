//! A look at the first rows of a source: their types, their order, how long they take, and what is wrong with them.
//!
//! Nothing is decided from it. Rows are asked for as a run asks for them, so that a run would see the same and wait as
//! long; but few are read, and none is kept or sorted here. Types, counts and row numbers are told, never what a row says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::row::{Columns, Read, Row, RowReader, WrongType};
use super::{Interrupt, Question, Skipped, Source, SourceError};
use crate::audience::Audience;

/// So many rows that can be used are looked at,
const USABLE: u64 = 1_000;
/// and so many in all: databases give those without an id first.
const ROWS: u64 = 100 * USABLE;

/// How many of the parts that were looked at are named.
const NAMED: usize = 10;

/// What was seen.
#[derive(Debug, Default)]
pub struct Peek {
    /// Such as `exports/a.csv.gz: csv, gzip`. The first few only.
    pub reads: Vec<String>,
    /// Of how many parts it is made, such as files.
    pub parts: u64,
    /// Those that members are made of.
    pub columns: Vec<Seen>,
    pub rows: u64,
    /// Whether these are all, and nothing is wrong with the source.
    pub is_complete: bool,
    pub skipped_rows: u64,
    pub faults: Vec<Fault>,
    /// `None` where rows come in none, and need none.
    pub order: Option<Order>,
    /// From the beginning, connecting included, to the first row,
    pub first_row: Option<Duration>,
    /// and to the last one that was looked at.
    pub duration: Duration,
    /// Why a run would fail.
    pub failed: Option<SourceError>,
}

/// What was seen of a column.
#[derive(Debug)]
pub struct Seen {
    /// What it is called in the result,
    pub name: String,
    /// and in the source, where that is something else.
    pub source_name: Option<String>,
    /// In the source's own words.
    pub declared: Option<String>,
    /// How many rows hold what.
    pub found: BTreeMap<&'static str, u64>,
}

/// Something that is wrong with rows, and stops nobody.
#[derive(Debug)]
pub struct Fault {
    /// Such as `with a NULL id`.
    pub reason: String,
    pub rows: u64,
    /// The first of them,
    pub first_row: u64,
    /// and of which part that is the number.
    pub first_in: Option<String>,
}

/// Who brings rows into the order of users. Where the source does, it was verified as far as rows were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Nobody has to: they come so.
    Given,
    /// The source sorts.
    Sorted,
    /// The source was asked for the order of bytes, and sorts or has an index.
    Asked,
    /// They are sorted here, in a run.
    Here,
}

impl Source {
    /// Looks at the first rows that an audience gets. An interrupted look fails as an unreadable source does.
    pub fn peek(&self, audience: &Audience, question: Question, interrupt: &Interrupt) -> Peek {
        let (key, name) = (&audience.key, &audience.source);
        tracing::debug!("{key}: source `{name}` is asked for a few rows");
        let mut look = Look::new();
        let seen = match self {
            Self::Sqlite(sqlite) => sqlite.peek(audience, question, interrupt, &mut look),
            Self::Files(files) => files.peek(audience, interrupt, &mut look),
            Self::Adbc(adbc) => adbc.peek(audience, interrupt, &mut look),
            Self::Http(http) => http.peek(audience, interrupt, &mut look),
        };
        let seen = seen.map_err(|error| match interrupt.is_requested() {
            true => SourceError::interrupted(&audience.source),
            false => error,
        });
        look.end(seen)
    }

    /// Of which kind it is.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Files(_) => "files",
            Self::Adbc(_) => "adbc",
            Self::Http(_) => "http",
        }
    }
}

/// Looks at rows as they come.
pub(super) struct Look {
    seen: Peek,
    begun: Instant,
    /// Rows that it has not looked at.
    has_more: bool,
    /// So many rows that can be used are wanted of each part.
    share: u64,
    usable: u64,
    /// The part that is being looked at, and its usable rows.
    part: Option<String>,
    usable_of_part: u64,
    /// How many parts were begun. Nobody knows beforehand how many pages there are.
    begun_parts: u64,
    /// Whether some ids are integers.
    pub(super) has_numbers: bool,
    /// Whether each user came after the one before, or was the same.
    is_in_order: bool,
    read: Read,
    previous: Read,
}

impl Look {
    fn new() -> Self {
        Self {
            seen: Peek::default(),
            begun: Instant::now(),
            has_more: false,
            share: USABLE,
            usable: 0,
            part: None,
            usable_of_part: 0,
            begun_parts: 0,
            has_numbers: false,
            is_in_order: true,
            read: Read::default(),
            previous: Read::default(),
        }
    }

    /// Looks at the rows anew, which are asked for in another way.
    pub(super) fn again(&mut self) {
        let Self { seen, begun, .. } = std::mem::replace(self, Self::new());
        self.begun = begun;
        self.seen = Peek {
            reads: seen.reads,
            parts: seen.parts,
            ..Peek::default()
        };
        for column in seen.columns {
            self.seen.columns.push(Seen {
                found: BTreeMap::new(),
                ..column
            });
        }
    }

    fn end(mut self, seen: Result<(), SourceError>) -> Peek {
        self.seen.duration = self.begun.elapsed();
        self.seen.is_complete = seen.is_ok() && !self.has_more;
        self.seen.failed = seen.err();
        self.seen
    }

    /// Says what is read, where that is one thing.
    pub(super) fn reads(&mut self, what: String) {
        self.seen.parts = 1;
        self.seen.reads = vec![what];
    }

    /// Says of how many parts it is made. Each gives as many rows.
    pub(super) fn has_parts(&mut self, parts: usize) {
        self.seen.parts = parts as u64;
        self.share = (USABLE / self.seen.parts.max(1)).max(1);
    }

    /// Says which part comes next; `false` where no more is wanted.
    pub(super) fn begin(&mut self, part: String, what: &str) -> bool {
        if self.has_enough() {
            self.has_more = true;
            return false;
        }
        if self.seen.reads.len() < NAMED {
            self.seen.reads.push(format!("{part}: {what}"));
        }
        self.part = Some(part);
        self.usable_of_part = 0;
        self.begun_parts += 1;
        self.seen.parts = self.seen.parts.max(self.begun_parts);
        true
    }

    const fn has_enough(&self) -> bool {
        self.usable >= USABLE || self.seen.rows >= ROWS
    }

    pub(super) fn comes(&mut self, order: Order) {
        self.seen.order = Some(order);
    }

    /// Says of what types columns are, in the source's own words, and what the source calls them.
    pub(super) fn declare(
        &mut self,
        columns: &Columns,
        type_of: impl Fn(usize) -> Option<String>,
        source_names: &BTreeMap<String, String>,
    ) {
        for (name, place) in columns.named() {
            let source_name = source_names.get(name).filter(|other| *other != name);
            let seen = self.column(name);
            seen.source_name = source_name.cloned();
            seen.declared = type_of(place);
        }
    }

    fn column(&mut self, name: &str) -> &mut Seen {
        let columns = &mut self.seen.columns;
        let place = columns.iter().position(|seen| seen.name == name);
        let place = place.unwrap_or_else(|| {
            columns.push(Seen {
                name: name.to_owned(),
                source_name: None,
                declared: None,
                found: BTreeMap::new(),
            });
            columns.len() - 1
        });
        &mut columns[place]
    }

    /// Looks at a row; `false` where it has seen enough, and does not look at it. Rows of all kinds are looked at by the
    /// same code: what reads them in a run has one caller for each kind, and is a part of it.
    pub(super) fn take(
        &mut self,
        number: u64,
        columns: &Columns,
        row: &dyn Row,
    ) -> Result<bool, WrongType> {
        if self.usable_of_part >= self.share || self.has_enough() {
            self.has_more = true;
            return Ok(false);
        }
        self.seen.rows += 1;
        let begun = self.begun;
        self.seen.first_row.get_or_insert_with(|| begun.elapsed());
        for (name, place) in columns.named() {
            let found = self.column(name).found.entry(row.cell(place).kind());
            *found.or_default() += 1;
        }
        std::mem::swap(&mut self.read, &mut self.previous);
        let mut skipped = Skipped::default();
        let mut reader = RowReader {
            columns,
            skipped: &mut skipped,
            has_numbers: &mut self.has_numbers,
            row,
        };
        if reader.read(&mut self.read)? {
            self.is_in_order &= self.usable == 0 || self.previous.user() <= self.read.user();
            self.usable += 1;
            self.usable_of_part += 1;
        } else {
            // The next one comes after the one before this.
            std::mem::swap(&mut self.read, &mut self.previous);
        }
        self.note(number, &skipped);
        Ok(true)
    }

    /// The same of a database, which gives rows in one piece and, where there is an order, in order.
    pub(super) fn take_of(
        &mut self,
        audience: &Audience,
        question: Question,
        columns: &Columns,
        row: &dyn Row,
    ) -> Result<bool, SourceError> {
        let taken = self.take(self.seen.rows + 1, columns, row);
        let taken = taken.map_err(|wrong| SourceError::WrongType {
            question,
            audience: audience.name.clone(),
            column: wrong.column,
            found: wrong.found,
            expected: wrong.expected,
        })?;
        let is_ordered = matches!(
            self.seen.order,
            Some(Order::Given | Order::Sorted | Order::Asked)
        );
        if is_ordered && !self.is_in_order {
            return Err(SourceError::OutOfOrder {
                source_name: audience.source.clone(),
            });
        }
        Ok(taken)
    }

    fn note(&mut self, number: u64, skipped: &Skipped) {
        let rows = skipped.total();
        if rows + skipped.traits == 0 {
            return;
        }
        self.seen.skipped_rows += rows;
        let as_null = "with an extra trait that goes as null".to_owned();
        let reasons = skipped.reasons().into_iter();
        for (count, reason) in reasons.chain([(skipped.traits, as_null)]) {
            if count == 0 {
                continue;
            }
            let mut faults = self.seen.faults.iter_mut();
            match faults.find(|fault| fault.reason == reason) {
                Some(fault) => fault.rows += 1,
                None => self.seen.faults.push(Fault {
                    reason,
                    rows: 1,
                    first_row: number,
                    first_in: self.part.clone(),
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::row::Cell;

    struct Id(Option<&'static str>);

    impl Row for Id {
        fn cell(&self, _: usize) -> Cell<'_> {
            self.0.map_or(Cell::Null, |id| Cell::Text(id.as_bytes()))
        }
    }

    #[test]
    fn whoever_comes_before_the_one_before_is_out_of_order() {
        let check = |ids: &[Option<&'static str>], is_in_order: bool| {
            let columns = Columns {
                user_id: Some(0),
                ..Columns::default()
            };
            let mut look = Look::new();
            for id in ids {
                assert_eq!(look.take(1, &columns, &Id(*id)), Ok(true));
            }
            assert_eq!(look.is_in_order, is_in_order, "{ids:?}");
        };
        check(&[None, Some("a"), Some("a"), None, Some("b")], true);
        check(&[Some("b"), Some("a")], false);
        // Whom nobody can use is not compared, and hides nobody.
        check(&[Some("b"), Some(""), None, Some("a")], false);
        check(&[Some("b"), Some("a"), Some("c")], false);
    }
}
