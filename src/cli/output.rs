//! What people and programs read: tables or JSON lines on standard output, words on standard error.

use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::args::LogFormat;
use crate::causes::in_one_line;

pub(super) use crate::causes::printable;

/// Where a command writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub json: bool,
    /// Words on standard error are logs too, for whoever collects them.
    logs_json: bool,
}

impl Output {
    pub(super) fn new(json: bool, log_format: LogFormat) -> Self {
        Self {
            json,
            logs_json: log_format == LogFormat::Json,
        }
    }

    /// One object, on one line.
    pub(super) fn line(&self, object: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(object)?;
        line.push(b'\n');
        io::stdout().lock().write_all(&line)
    }

    /// Text for people on standard output, with a newline.
    pub(super) fn text(&self, text: impl std::fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Something to know beside the data, on standard error.
    pub(super) fn note(&self, text: impl std::fmt::Display) {
        if self.logs_json {
            tracing::info!("{}", text.to_string().trim());
            return;
        }
        // Other people's names are in it. Its own lines stay.
        let text = text.to_string();
        let lines: Vec<_> = text.split('\n').map(printable).collect();
        // Where standard error is gone there is nobody to tell.
        drop(writeln!(io::stderr(), "{}", lines.join("\n")));
    }

    /// An error and its causes: `error: what: why`, then the hint if there is one.
    pub(super) fn error(&self, error: &anyhow::Error) {
        let text = in_one_line(&**error);
        if self.logs_json {
            tracing::error!("{text}");
            return;
        }
        self.note(format_args!("error: {text}"));
    }
}

/// A table without lines, its columns apart. Those named in `right` hold numbers.
pub(super) fn table(header: &[&str], right: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows);
    for (index, name) in header.iter().enumerate() {
        let column = table
            .column_mut(index)
            .expect("the header has as many columns as the table");
        column.set_padding((0, 2));
        if right.contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Lines on standard output of which there may be millions: written as they come, many at a time.
pub(super) struct Lines(BufWriter<StdoutLock<'static>>);

impl Lines {
    pub(super) fn new() -> Self {
        Self(BufWriter::with_capacity(1 << 16, io::stdout().lock()))
    }

    /// One object, on one line.
    pub(super) fn object(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, object)?;
        self.0.write_all(b"\n")
    }

    /// The names of the columns above them.
    pub(super) fn header(&mut self, columns: &[Column]) -> io::Result<()> {
        let names: Vec<String> = columns
            .iter()
            .map(|column| column.name.to_uppercase())
            .collect();
        self.row(columns, &names)
    }

    /// One row of a table whose widths are set beforehand: a longer cell only shifts what follows it.
    pub(super) fn row(&mut self, columns: &[Column], cells: &[String]) -> io::Result<()> {
        let mut line = String::new();
        for (column, cell) in columns.iter().zip(cells) {
            let width = column.width.max(column.name.len());
            let padded = if column.is_number {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
            padded.expect("a String takes any text");
        }
        writeln!(self.0, "{}", line.trim_end())
    }

    /// Writes what is left. Dropped without it, an error would be lost.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A column of a table that is printed row by row.
pub(super) struct Column {
    pub name: &'static str,
    /// In characters; the name is never cut off.
    pub width: usize,
    pub is_number: bool,
}

impl Column {
    pub(super) const fn text(name: &'static str, width: usize) -> Self {
        Self {
            name,
            width,
            is_number: false,
        }
    }

    pub(super) const fn number(name: &'static str) -> Self {
        Self {
            name,
            width: "1,000,000".len(),
            is_number: true,
        }
    }
}

/// A number with a separator between thousands: `1,204`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves a whole one: `5.9 MiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{size:.1} {unit}")
    }
}

/// Whether a person watches standard error.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn sizes_have_one_decimal() {
        assert_eq!(
            [12, 1_024, 6_164_480].map(bytes),
            ["12 B", "1.0 KiB", "5.9 MiB"]
        );
    }
}
