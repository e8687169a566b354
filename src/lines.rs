//! Lines of other people's, none of them longer than a record may be.

use std::io::{self, BufRead, Read as _};

use crate::batch::MAX_RECORD_BYTES;

/// A line that was read, or why it could not be.
pub type Line = Result<String, LineError>;

/// Why a line is no line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("longer than a record may be ({MAX_RECORD_BYTES} bytes)")]
    TooLong,
    #[error("not UTF-8")]
    NotUtf8,
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// What a line ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    Newline,
    /// The input ended first.
    Input,
}

/// Puts the next line into `line`, without its end; `None` when there is none. One that is too long is read to its end
/// and not kept.
pub fn read_line(
    input: &mut impl BufRead,
    line: &mut Vec<u8>,
) -> Result<Option<LineEnd>, LineError> {
    line.clear();
    let longest = MAX_RECORD_BYTES as u64 + 1;
    let read = input.by_ref().take(longest).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(LineEnd::Newline));
    }
    if line.len() > MAX_RECORD_BYTES {
        input.skip_until(b'\n')?;
        return Err(LineError::TooLong);
    }
    Ok((read > 0).then_some(LineEnd::Input))
}

/// The next line as text of its own.
pub fn next_line(input: &mut impl BufRead) -> Option<Line> {
    let mut line = Vec::new();
    match read_line(input, &mut line) {
        Ok(None) => None,
        Ok(Some(_)) => Some(String::from_utf8(line).map_err(|_| LineError::NotUtf8)),
        Err(error) => Some(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn check(input: &[u8], expected: &[Result<&str, &str>]) {
        // A small buffer, so that lines come in parts.
        let mut input = BufReader::with_capacity(3, input);
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut input)).collect();
        let lines: Vec<_> = lines
            .iter()
            .map(|line| line.as_deref().map_err(|error| error.to_string()))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|line| line.map_err(str::to_owned))
            .collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn lines_are_read_whole_or_refused_by_name() {
        check(b"", &[]);
        check(b"one\n\ntwo", &[Ok("one"), Ok(""), Ok("two")]);
        check(b"\xff\nok\n", &[Err("not UTF-8"), Ok("ok")]);
        let mut long = vec![b'x'; MAX_RECORD_BYTES];
        let fits = String::from_utf8(long.clone()).unwrap();
        check(&long, &[Ok(&fits)]);
        long.push(b'\n');
        check(&long, &[Ok(&fits)]);
        long.insert(0, b'x');
        long.extend(b"next");
        check(
            &long,
            &[
                Err("longer than a record may be (1024000 bytes)"),
                Ok("next"),
            ],
        );
    }

    #[test]
    fn a_line_that_the_input_cuts_off_is_told_from_a_whole_one() {
        let mut input = b"whole\nha".as_slice();
        let mut line = Vec::new();
        for (end, text) in [
            (Some(LineEnd::Newline), b"whole".as_slice()),
            (Some(LineEnd::Input), b"ha"),
            (None, b""),
        ] {
            assert_eq!(read_line(&mut input, &mut line).unwrap(), end);
            assert_eq!(line, text);
        }
    }
}
