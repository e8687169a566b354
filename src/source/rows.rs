//! Rows as they are read: CSV and JSON lines, from a file or from a server, and Parquet. Whoever can be used of them is
//! sorted.

mod csv;
mod json_lines;
mod parquet;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use super::json::{JsonRow, Wanted};
use super::peek::Look;
use super::row::{Columns, Read as ReadRow, Row, RowReader, place_of};
use super::sort::{Sorted, Sorter};
use super::{Answer, Fingerprint, Interrupt, Question, Skipped, SourceError};
use crate::audience::{Audience, Member, User, Value};
use crate::diff::Members;
pub use csv::Dialect;

/// How the rows of a file are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text(Text),
    /// Read from its end, and so never from a stream.
    Parquet,
}

/// Rows that come one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    Csv,
    Tsv,
    JsonLines,
}

impl Format {
    pub const ALL: [(&'static str, Self); 5] = [
        ("csv", Self::Text(Text::Csv)),
        ("tsv", Self::Text(Text::Tsv)),
        ("jsonl", Self::Text(Text::JsonLines)),
        ("ndjson", Self::Text(Text::JsonLines)),
        ("parquet", Self::Parquet),
    ];

    pub fn parse(name: &str) -> Option<Self> {
        let mut known = Self::ALL.into_iter();
        known
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, format)| format)
    }

    pub const fn is_csv(self) -> bool {
        matches!(self, Self::Text(Text::Csv | Text::Tsv))
    }

    /// The first of its names.
    pub(super) fn name(self) -> &'static str {
        let mut known = Self::ALL.into_iter();
        let named = known.find(|(_, format)| *format == self);
        named.map_or("", |(name, _)| name)
    }
}

/// What sorting may take of memory. Up to three sources are read at a time.
const SORT_BYTES: usize = 64 << 20;

/// How many rows are read between two looks at whether to go on.
const LOOK_EVERY: u64 = 4_096;

pub(super) const BUFFER: usize = 128 << 10;

/// No row of members is as long: a record of Firehose takes 1,000 KiB.
pub(super) const MAX_ROW_BYTES: usize = 4 << 20;

/// Why rows cannot be used.
pub(super) enum Problem {
    /// At the row that is being read.
    Here(String),
    /// With all of them, and no single row.
    Overall(String),
    /// There is not even a header.
    Empty,
    /// They end inside the row that is being read.
    CutOff,
    Io(io::Error),
    Source(SourceError),
    Stopped,
    /// None: whoever only looks has seen enough.
    Enough,
}

impl Problem {
    pub(super) fn too_long() -> Self {
        Self::Here(format!(
            "it is over {MAX_ROW_BYTES} bytes long\n\n\
             hint: each row ends with a newline; a quote that is not closed makes one of many"
        ))
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the audience says of columns goes before what its source does.
pub(super) fn columns_of(
    source: &BTreeMap<String, String>,
    audience: &Audience,
) -> BTreeMap<String, String> {
    let mut columns = source.clone();
    let own = audience.columns.iter();
    columns.extend(own.map(|(column, name)| (column.clone(), name.clone())));
    columns
}

/// Makes members of rows and sorts them.
pub(super) struct Taker<'t> {
    pub(super) audience: &'t Audience,
    pub(super) columns: &'t BTreeMap<String, String>,
    interrupt: &'t Interrupt,
    /// What carries the rows says itself where they end. Then the last one needs no newline.
    pub(super) end_is_certain: bool,
    sorter: Sorter,
    skipped: Skipped,
    read: ReadRow,
    /// Of this file or page so far, with the one that is being read.
    pub(super) rows: u64,
    /// Of all, whether they could be used or not.
    pub(super) taken: u64,
    /// Which members that are wanted were in some object; empty where there was none.
    met: Vec<bool>,
    has_told: bool,
    /// Gets the rows in place of the sorter.
    look: Option<&'t mut Look>,
}

impl<'t> Taker<'t> {
    pub(super) fn new(
        audience: &'t Audience,
        columns: &'t BTreeMap<String, String>,
        interrupt: &'t Interrupt,
    ) -> Self {
        Self {
            audience,
            columns,
            interrupt,
            end_is_certain: false,
            sorter: Sorter::new(SORT_BYTES, interrupt),
            skipped: Skipped::default(),
            read: ReadRow::default(),
            rows: 0,
            taken: 0,
            met: Vec::new(),
            has_told: false,
            look: None,
        }
    }

    /// Lets somebody look at rows, and keeps none.
    pub(super) fn looking(mut self, look: &'t mut Look) -> Self {
        self.look = Some(look);
        self
    }

    /// Says to whoever looks which part comes next, and how it is written; `false` where no more is wanted.
    pub(super) fn begin(&mut self, part: String, what: &str) -> bool {
        let look = self.look.as_mut();
        look.is_none_or(|look| look.begin(part, what))
    }

    /// Says to whoever looks of what types columns are, in the source's own words.
    pub(super) fn declare(&mut self, columns: &Columns, type_of: impl Fn(usize) -> Option<String>) {
        if let Some(look) = &mut self.look {
            look.declare(columns, type_of, self.columns);
        }
    }

    /// Reads all rows of an input. Of JSON lines it may have none.
    pub(super) fn read(
        &mut self,
        text: Text,
        dialect: &Dialect,
        input: &mut dyn Read,
    ) -> Result<(), Problem> {
        self.rows = 0;
        match text {
            Text::Csv => csv::read(input, dialect, b',', self),
            Text::Tsv => csv::read(input, dialect, b'\t', self),
            Text::JsonLines => json_lines::read(input, self),
        }
    }

    /// Reads all rows of a file of Parquet.
    pub(super) fn read_parquet(&mut self, file: &File) -> Result<(), Problem> {
        self.rows = 0;
        parquet::read(file, self)
    }

    /// When all rows are read.
    pub(super) fn finish<F>(self, read_from: F) -> Result<SortedMembers<F>, SourceError> {
        Ok(SortedMembers {
            skipped: self.skipped,
            sorted: self.sorter.finish()?,
            read_from,
        })
    }

    /// Finds the columns of a file by their names in it. What `columns` names is looked for as it is written, and nothing
    /// else is then. What they have instead, and the way out, is said where ids are missing.
    fn find(&self, names: &[String], has: &str, hint: &str) -> Result<Columns, Problem> {
        let find = |column: &str| {
            match self.columns.get(column) {
            Some(name) => named(name, names, has).map(Some),
            None => place_of(column, names).map_err(|twice| {
                format!("{twice}\n\nhint: rename one; where they differ in case, columns = {{ {column} = \"...\" }} names one of them")
            }),
        }
        };
        let ids = [find("user_id"), find("anonymous_id")];
        let [user_id, anonymous_id] = ids.map(|found| found.map_err(Problem::Here));
        let ids = [user_id?, anonymous_id?];
        // Where the header is missing, names are ids: they are not shown, and the first of a single column is no name.
        if ids == [None, None] {
            return Err(Problem::Here(format!(
                "it has no column `user_id` or `anonymous_id` among {has}\n\nhint: {hint}"
            )));
        }
        let name_it = |column: &str| format!("name it: columns = {{ {column} = \"...\" }}");
        let columns = Columns::with(ids, self.audience, Question::Members, find, name_it);
        columns.map_err(Problem::Here)
    }

    /// Counts a row that is about to be read.
    pub(super) fn count(&mut self) -> Result<(), Problem> {
        self.rows += 1;
        match self.rows.is_multiple_of(LOOK_EVERY) && self.interrupt.is_requested() {
            true => Err(Problem::Stopped),
            false => Ok(()),
        }
    }

    /// Takes a row that is JSON.
    pub(super) fn take_json(&mut self, wanted: &Wanted, row: &JsonRow<'_>) -> Result<(), Problem> {
        row.meet(&mut self.met);
        self.take(&wanted.columns, row)
    }

    /// Sees whether some object had what is wanted, of those since it was seen last. A value that none has is a mistake. A
    /// trait that none has may be null for everyone, since many leave out what is: that is told, once.
    pub(super) fn end_of_objects(&mut self) -> Result<Option<String>, Problem> {
        let met = std::mem::take(&mut self.met);
        if met.is_empty() {
            return Ok(None);
        }
        let wanted = Wanted::of(self.audience, self.columns);
        let odd = wanted.must_be_met(&met).map_err(Problem::Overall)?;
        Ok(odd.filter(|_| !std::mem::replace(&mut self.has_told, true)))
    }

    pub(super) fn take(&mut self, columns: &Columns, row: &impl Row) -> Result<(), Problem> {
        self.taken += 1;
        if let Some(look) = &mut self.look {
            return match look.take(self.rows, columns, row) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Problem::Enough),
                Err(wrong) => Err(Problem::Here(wrong.to_string())),
            };
        }
        let mut reader = RowReader {
            columns,
            skipped: &mut self.skipped,
            has_numbers: &mut false,
            row,
        };
        let is_usable = reader
            .read(&mut self.read)
            .map_err(|wrong| Problem::Here(wrong.to_string()))?;
        if is_usable {
            let pushed = self.sorter.push(&self.read.member.as_member());
            pushed.map_err(|error| Problem::Source(error.into()))?;
        }
        Ok(())
    }
}

/// The only column of exactly this name, which `columns` gives.
fn named(name: &str, names: &[String], has: &str) -> Result<usize, String> {
    let mut places = (0..names.len()).filter(|place| names[*place] == name);
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(place),
        (Some(_), Some(_)) => Err(format!("it has two columns `{name}`\n\nhint: rename one")),
        (None, _) => Err(format!(
            "it has no column `{name}`, which `columns` names, among {has}"
        )),
    }
}

/// The members of all rows, in order.
pub(super) struct SortedMembers<F> {
    skipped: Skipped,
    sorted: Sorted,
    read_from: F,
}

impl<F> Members for SortedMembers<F> {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        Ok(self.sorted.advance()?)
    }

    fn current(&self) -> Member<'_> {
        self.sorted.current()
    }

    fn user(&self) -> User<'_> {
        self.sorted.user()
    }

    fn value(&self) -> Value<'_> {
        self.sorted.value()
    }
}

impl<F: Fn() -> Option<Fingerprint>> Answer for SortedMembers<F> {
    fn skipped(&self) -> Skipped {
        self.skipped
    }

    fn read_from(&self) -> Option<Fingerprint> {
        (self.read_from)()
    }
}
