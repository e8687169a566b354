//! Rows of CSV, by `csv_core`: it quotes as everyone does, and tells whether a row has come to its end.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use serde::de::IgnoredAny;

use super::{BUFFER, MAX_ROW_BYTES, Problem, Taker};
use crate::source::Interrupt;
use crate::source::row::{Cell, Columns, Row};

/// What differs between one CSV and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    /// `None` where the format says it.
    pub delimiter: Option<u8>,
    pub quote: u8,
    /// Without one, columns go by their numbers: `1`, `2` and so on.
    pub has_header: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            delimiter: None,
            quote: b'"',
            has_header: true,
        }
    }
}

/// One row: its fields one after another, and where each ends.
struct Fields<'f> {
    bytes: &'f [u8],
    ends: &'f [usize],
    has_line_break: bool,
}

impl Fields<'_> {
    fn field(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[place]]
    }
}

/// A row by what its columns are for. CSV has no types and no NULL.
struct CsvRow<'f> {
    fields: Fields<'f>,
    columns: &'f Columns,
}

impl Row for CsvRow<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        let field = self.fields.field(column);
        let Columns {
            user_id,
            anonymous_id,
            value,
            ..
        } = self.columns;
        match Some(column) {
            // An empty id is counted as such.
            id if id == *user_id || id == *anonymous_id => Cell::Text(field),
            _ if field.is_empty() => Cell::Null,
            number if number == *value => number_or_text(field),
            _ => Cell::Text(field),
        }
    }
}

/// What is written as JSON writes numbers is one: `012` and `+1` are codes.
fn number_or_text(field: &[u8]) -> Cell<'_> {
    if !matches!(field, [b'0'..=b'9' | b'-', ..]) {
        return Cell::Text(field);
    }
    let number = serde_json::from_slice::<serde_json::Number>(field).ok();
    if number.is_none() && serde_json::from_slice::<IgnoredAny>(field).is_ok() {
        // It is written as one, and beyond all that are.
        return Cell::Real(f64::INFINITY);
    }
    let integer = number.as_ref().and_then(serde_json::Number::as_i64);
    let real = number.as_ref().and_then(serde_json::Number::as_f64);
    match (integer, real) {
        (Some(integer), _) => Cell::Integer(integer),
        (None, Some(real)) => Cell::Real(real),
        (None, None) => Cell::Text(field),
    }
}

/// What all rows of a file have in common.
struct Table {
    columns: Columns,
    width: usize,
    has_header: bool,
    /// The columns of ids, and what the header calls them.
    ids: Vec<(usize, Vec<u8>)>,
}

/// Reads all rows, which are delimited as is usual where nobody says otherwise.
pub(super) fn read(
    input: &mut dyn Read,
    dialect: &Dialect,
    usual: u8,
    taker: &mut Taker<'_>,
) -> Result<(), Problem> {
    let delimiter = dialect.delimiter.unwrap_or(usual);
    let quote = dialect.quote;
    let mut rows = Rows::new(input, [delimiter, quote], taker);
    let Some(first) = rows.next()? else {
        return Err(Problem::Empty);
    };
    if first.bytes.starts_with(b"\xff\xfe") || first.bytes.starts_with(b"\xfe\xff") {
        return Err(Problem::Here(
            "it is UTF-16\n\nhint: save it as UTF-8".to_owned(),
        ));
    }
    let table = Table::of(&first, dialect.has_header, taker)?;
    taker.declare(&table.columns, |_| None);
    if !dialect.has_header {
        taker.count()?;
        table.take(first, taker)?;
    }
    loop {
        taker.count()?;
        let Some(fields) = rows.next()? else { break };
        table.take(fields, taker)?;
    }
    Ok(())
}

const NAME_IT: &str = "name it: columns = { user_id = \"...\" }; without a header, header = false and columns = { user_id = \"1\" }";

impl Table {
    fn of(first: &Fields<'_>, has_header: bool, taker: &Taker<'_>) -> Result<Self, Problem> {
        let width = first.ends.len();
        let text = |place| String::from_utf8_lossy(first.field(place));
        let names: Vec<String> = match has_header {
            true => (0..width)
                .map(|place| text(place).trim().to_owned())
                .collect(),
            false => (1..=width).map(|number| number.to_string()).collect(),
        };
        // Where the header is missing, names are ids: they are not shown.
        let columns = taker.find(&names, &format!("its {width}"), NAME_IT)?;
        let ids = [columns.user_id, columns.anonymous_id]
            .into_iter()
            .flatten();
        let ids = ids.map(|place| (place, first.field(place).to_vec()));
        Ok(Self {
            ids: ids.collect(),
            columns,
            width,
            has_header,
        })
    }

    fn take(&self, fields: Fields<'_>, taker: &mut Taker<'_>) -> Result<(), Problem> {
        self.must_be_a_row(&fields).map_err(Problem::Here)?;
        let columns = &self.columns;
        taker.take(columns, &CsvRow { fields, columns })
    }

    /// Refuses what is of another table, or several rows in one.
    fn must_be_a_row(&self, fields: &Fields<'_>) -> Result<(), String> {
        let width = fields.ends.len();
        if width != self.width {
            let hint = if fields.has_line_break {
                NOT_CLOSED
            } else {
                DELIMITED
            };
            let first = if self.has_header {
                "header"
            } else {
                "first row"
            };
            return Err(format!(
                "it has {width} fields, and the {first} has {}\n\nhint: {hint}",
                self.width
            ));
        }
        for (place, name) in &self.ids {
            let id = fields.field(*place);
            if fields.has_line_break && has_line_break(id) {
                return Err(format!(
                    "a line break stands in its id\n\nhint: {NOT_CLOSED}"
                ));
            }
            if self.has_header && id.strip_prefix(BYTE_ORDER_MARK).unwrap_or(id) == name {
                return Err(SECOND_HEADER.to_owned());
            }
        }
        Ok(())
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const NOT_CLOSED: &str = "a quote before it may not be closed; quote = \"...\" names another one";

const DELIMITED: &str =
    "a field that holds the delimiter stands in quotes; delimiter = \"...\" names another one";

const SECOND_HEADER: &str = "its id is the name of its column, as in a header\n\n\
    hint: join files without their headers, or let a pattern name them all";

/// In one pass: nearly no row has any.
fn has_line_break(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(false, |has, byte| has | matches!(byte, b'\r' | b'\n'))
}

/// Whether each quote that opens a field is closed at its end. `csv_core` lets a field go on behind it, as one does that
/// holds all rows up to the next quote.
fn is_well_quoted<'b>(row: impl Iterator<Item = &'b u8>, [delimiter, quote]: [u8; 2]) -> bool {
    #[derive(Clone, Copy)]
    enum At {
        Start,
        Plain,
        Quoted,
        Closed,
    }
    let mut at = At::Start;
    for byte in row.copied() {
        let is_end = byte == delimiter || matches!(byte, b'\r' | b'\n');
        at = match at {
            At::Quoted if byte == quote => At::Closed,
            At::Quoted => At::Quoted,
            At::Start | At::Closed if byte == quote => At::Quoted,
            _ if is_end => At::Start,
            At::Start | At::Plain => At::Plain,
            At::Closed => return false,
        };
    }
    true
}

/// No table has as many.
const MAX_COLUMNS: usize = 1 << 16;

/// Splits what is read into rows.
struct Rows<'i> {
    input: &'i mut dyn Read,
    interrupt: &'i Interrupt,
    reader: Reader,
    marks: [u8; 2],
    buffer: Vec<u8>,
    /// What of the row was in the buffer before.
    before: Vec<u8>,
    /// What of the buffer is yet to be split.
    from: usize,
    to: usize,
    /// The row: its fields, as long as they are so far, and where they end.
    fields: Vec<u8>,
    ends: Vec<usize>,
    /// Something of a row was read that has not come to its end.
    is_open: bool,
    /// The last row needs no newline.
    end_is_certain: bool,
}

impl<'i> Rows<'i> {
    /// With the delimiter and the quote.
    fn new(input: &'i mut dyn Read, marks: [u8; 2], taker: &Taker<'i>) -> Self {
        let [delimiter, quote] = marks;
        Self {
            input,
            interrupt: taker.interrupt,
            reader: ReaderBuilder::new()
                .delimiter(delimiter)
                .quote(quote)
                .build(),
            marks,
            buffer: vec![0; BUFFER],
            before: Vec::new(),
            from: 0,
            to: 0,
            fields: vec![0; 1 << 10],
            ends: vec![0; 16],
            is_open: false,
            end_is_certain: taker.end_is_certain,
        }
    }

    /// The next row that is not blank. The last one must end with a newline, unless the end is certain: without it, nobody
    /// can tell it from one that was cut off.
    fn next(&mut self) -> Result<Option<Fields<'_>>, Problem> {
        let (mut filled, mut ended) = (0, 0);
        let mut start = self.from;
        self.before.clear();
        loop {
            if self.from == self.to {
                if self.is_open {
                    self.before.extend_from_slice(&self.buffer[start..self.to]);
                }
                start = 0;
            }
            if self.from == self.to && !self.fill()? {
                if !self.is_open {
                    return Ok(None);
                }
                if !std::mem::take(&mut self.end_is_certain) {
                    return Err(Problem::CutOff);
                }
                // Inside quotes even that is no end.
                self.buffer[0] = b'\n';
                self.to = 1;
            }
            let input = &self.buffer[self.from..self.to];
            let (result, read, wrote, ends) =
                self.reader
                    .read_record(input, &mut self.fields[filled..], &mut self.ends[ended..]);
            let is_blank = input[..read]
                .iter()
                .all(|byte| matches!(byte, b'\r' | b'\n'));
            self.is_open |= !is_blank;
            self.from += read;
            filled += wrote;
            ended += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.fields.len() >= MAX_ROW_BYTES => {
                    return Err(Problem::too_long());
                }
                ReadRecordResult::OutputFull => self.fields.resize(self.fields.len() * 2, 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= MAX_COLUMNS => {
                    return Err(Problem::Here(format!("it has over {MAX_COLUMNS} fields")));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => {
                    self.is_open = false;
                    let bytes = &self.fields[..filled];
                    let has_line_break = has_line_break(bytes);
                    let raw = self.before.iter().chain(&self.buffer[start..self.from]);
                    if has_line_break && !is_well_quoted(raw, self.marks) {
                        return Err(Problem::Here(format!(
                            "a quoted field goes on behind its quote\n\nhint: {NOT_CLOSED}"
                        )));
                    }
                    return Ok(Some(Fields {
                        bytes,
                        ends: &self.ends[..ended],
                        has_line_break,
                    }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// Whether there is more.
    fn fill(&mut self) -> Result<bool, Problem> {
        // Blank lines may have no end, and are no rows.
        if self.interrupt.is_requested() {
            return Err(Problem::Stopped);
        }
        self.from = 0;
        self.to = loop {
            match self.input.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => break read?,
            }
        };
        Ok(self.to > 0)
    }
}
