//! Rows of CSV, by `csv_core`: it quotes as everyone does, and tells whether a row has come to its end.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::{BUFFER, MAX_ROW_BYTES, Problem, Taker};
use crate::source::row::{Cell, Columns, Row};

/// What differs between one CSV and another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    pub delimiter: u8,
    pub quote: u8,
    /// Without one, columns go by their numbers: `1`, `2` and so on.
    pub has_header: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            delimiter: b',',
            quote: b'"',
            has_header: true,
        }
    }
}

impl Dialect {
    /// As TSV is written, unless something else was asked for.
    pub(super) fn with_tabs(&self) -> Self {
        let delimiter = match self.delimiter {
            b',' => b'\t',
            other => other,
        };
        Self {
            delimiter,
            ..self.clone()
        }
    }
}

/// One row: its fields one after another, and where each ends.
struct Fields<'f> {
    bytes: &'f [u8],
    ends: &'f [usize],
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
    let number = match field {
        [b'0'..=b'9' | b'-', ..] => serde_json::from_slice::<serde_json::Number>(field).ok(),
        _ => None,
    };
    let integer = number.as_ref().and_then(serde_json::Number::as_i64);
    let real = number.as_ref().and_then(serde_json::Number::as_f64);
    match (integer, real) {
        (Some(integer), _) => Cell::Integer(integer),
        (None, Some(real)) => Cell::Real(real),
        (None, None) => Cell::Text(field),
    }
}

pub(super) fn read(
    input: &mut dyn Read,
    dialect: &Dialect,
    taker: &mut Taker<'_>,
) -> Result<(), Problem> {
    let mut rows = Rows::new(input, dialect, taker.end_is_certain);
    let Some(first) = rows.next()? else {
        return Err(Problem::Empty);
    };
    if first.bytes.starts_with(b"\xff\xfe") || first.bytes.starts_with(b"\xfe\xff") {
        return Err(Problem::Here(
            "it is UTF-16\n\nhint: save it as UTF-8".to_owned(),
        ));
    }
    let count = first.ends.len();
    let names: Vec<String> = match dialect.has_header {
        true => (0..count)
            .map(|place| {
                String::from_utf8_lossy(first.field(place))
                    .trim()
                    .to_owned()
            })
            .collect(),
        false => (1..=count).map(|number| number.to_string()).collect(),
    };
    // Where the header is missing, names are ids: they are not shown.
    let columns = taker.find(&names, &format!("its {count}"), NAME_IT)?;
    taker.declare(&columns, |_| None);
    if !dialect.has_header {
        taker.count()?;
        taker.take(
            &columns,
            &CsvRow {
                fields: first,
                columns: &columns,
            },
        )?;
    }
    loop {
        taker.count()?;
        let Some(fields) = rows.next()? else { break };
        if fields.ends.len() != count {
            let (found, noun) = (
                fields.ends.len(),
                if dialect.has_header {
                    "header"
                } else {
                    "first row"
                },
            );
            return Err(Problem::Here(format!(
                "it has {found} fields, and the {noun} has {count}"
            )));
        }
        taker.take(
            &columns,
            &CsvRow {
                fields,
                columns: &columns,
            },
        )?;
    }
    Ok(())
}

const NAME_IT: &str = "name it: columns = { user_id = \"...\" }; without a header, header = false and columns = { user_id = \"1\" }";

/// No table has as many.
const MAX_COLUMNS: usize = 1 << 16;

/// Splits what is read into rows.
struct Rows<'i> {
    input: &'i mut dyn Read,
    reader: Reader,
    buffer: Vec<u8>,
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
    fn new(input: &'i mut dyn Read, dialect: &Dialect, end_is_certain: bool) -> Self {
        Self {
            input,
            reader: ReaderBuilder::new()
                .delimiter(dialect.delimiter)
                .quote(dialect.quote)
                .build(),
            buffer: vec![0; BUFFER],
            from: 0,
            to: 0,
            fields: vec![0; 1 << 10],
            ends: vec![0; 16],
            is_open: false,
            end_is_certain,
        }
    }

    /// The next row that is not blank. The last one must end with a newline, unless the end is certain: without it, nobody
    /// can tell it from one that was cut off.
    fn next(&mut self) -> Result<Option<Fields<'_>>, Problem> {
        let (mut filled, mut ended) = (0, 0);
        loop {
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
                    return Ok(Some(Fields {
                        bytes: &self.fields[..filled],
                        ends: &self.ends[..ended],
                    }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn fill(&mut self) -> io::Result<bool> {
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
