//! Rows of JSON lines: an object each, or an id by itself.

use std::io::{BufRead as _, BufReader, Read};

use serde::de::DeserializeSeed as _;

use super::{BUFFER, MAX_ROW_BYTES, Problem, Taker};
use crate::source::json::{Wanted, without_values};

pub(super) fn read(input: &mut dyn Read, taker: &mut Taker<'_>) -> Result<(), Problem> {
    let wanted = Wanted::of(taker.audience, taker.columns);
    taker.declare(&wanted.columns, |_| None);
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut line = Vec::new();
    loop {
        taker.count()?;
        line.clear();
        let mut rest = input.by_ref().take(MAX_ROW_BYTES as u64 + 1);
        rest.read_until(b'\n', &mut line)?;
        let text = match line.strip_suffix(b"\n") {
            Some(text) => text,
            None if line.is_empty() => return Ok(()),
            None if line.len() > MAX_ROW_BYTES => return Err(Problem::too_long()),
            None if taker.end_is_certain => &line,
            None => return Err(Problem::CutOff),
        };
        // A mark that editors on Windows put in front of a file.
        let text = match taker.rows {
            1 => text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            _ => text,
        };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let row = (&wanted)
            .deserialize(&mut json)
            .and_then(|row| json.end().map(|()| row))
            .map_err(|error| {
                let error = within_a_line(&error);
                Problem::Here(format!("it is no JSON that names a member: {error}"))
            })?;
        taker.take_json(&wanted, &row)?;
    }
}

/// What serde says of a row: to it, each is the first line.
fn within_a_line(error: &serde_json::Error) -> String {
    let said = without_values(error);
    let place = format!(" at line {} column {}", error.line(), error.column());
    match said.strip_suffix(&place) {
        Some(said) if error.is_data() => said.to_owned(),
        Some(said) => format!("{said} at column {}", error.column()),
        None => said,
    }
}
