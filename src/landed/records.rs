//! The records of one file: unzipped where it is zipped, line by line.

use std::io::{self, BufRead, BufReader};

use flate2::bufread::MultiGzDecoder;

use crate::event::{Landed, StatementError};
use crate::lines::{LineEnd, LineError, read_line};

/// The first byte of a gzip file, with which no line of JSON begins.
const GZIP: u8 = 0x1f;

/// Why a line is no record.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Line(#[from] LineError),
    #[error("the file ends inside it")]
    CutOff,
    #[error(transparent)]
    Statement(#[from] StatementError),
}

/// Reads records from bytes of which nothing is known.
pub struct Records<'r> {
    input: Box<dyn BufRead + 'r>,
    line: Vec<u8>,
    number: u64,
}

impl<'r> Records<'r> {
    pub fn new(mut input: impl BufRead + 'r) -> io::Result<Self> {
        let is_gzip = input.fill_buf()?.first() == Some(&GZIP);
        let input: Box<dyn BufRead + 'r> = if is_gzip {
            Box::new(BufReader::with_capacity(
                1 << 16,
                MultiGzDecoder::new(input),
            ))
        } else {
            Box::new(input)
        };
        Ok(Self {
            input,
            line: Vec::new(),
            number: 0,
        })
    }

    /// The line that was read last, or could not be: the first one is 1.
    pub fn line_number(&self) -> u64 {
        self.number
    }

    /// The next record and the line that it stands on. Blank lines are passed over: they come from a delimiter of
    /// Firehose's beside ours.
    pub fn read(&mut self) -> Result<Option<(&str, Landed<'_>)>, Fault> {
        loop {
            self.number += 1;
            let Some(end) = read_line(&mut self.input, &mut self.line)? else {
                return Ok(None);
            };
            if self.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if end == LineEnd::Input {
                return Err(Fault::CutOff);
            }
            break;
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| LineError::NotUtf8)?;
        Ok(Some((line, Landed::parse(line)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// The numbers of the lines that hold records, and the fault at the end if there is one.
    fn read(input: &[u8]) -> (Vec<u64>, Option<String>) {
        // A small buffer, so that everything comes in parts.
        let mut records = Records::new(BufReader::with_capacity(5, input)).unwrap();
        let mut numbers = Vec::new();
        loop {
            match records.read() {
                Ok(Some(_)) => {}
                Ok(None) => return (numbers, None),
                Err(fault) => return (numbers, Some(fault.to_string())),
            }
            numbers.push(records.line_number());
        }
    }

    #[track_caller]
    fn check(input: &[u8], numbers: &[u64], fault: Option<&str>) {
        let (found, why) = read(input);
        assert_eq!(found, numbers);
        match fault {
            Some(fault) => assert!(
                why.as_deref().unwrap_or_default().contains(fault),
                "{why:?}"
            ),
            None => assert_eq!(why, None),
        }
    }

    #[test]
    fn lines_are_records_and_blank_ones_are_not() {
        check(b"", &[], None);
        check(b"{}\n\n{}\n \r\n", &[1, 3], None);
        check(b"{}\n\n{}", &[1], Some("the file ends inside it"));
        check(b"{}\n\xff{}\n", &[1], Some("not UTF-8"));
        check(b"{}\nnonsense\n", &[1], Some("not a JSON object"));
        let long = [b"{}\n".as_slice(), &[b'x'; 1_024_001], b"\n"].concat();
        check(&long, &[1], Some("longer than a record may be"));
    }

    #[test]
    fn zipped_files_are_known_by_their_bytes_and_may_have_several_parts() {
        let zipped = gzip(b"{}\n{}\n");
        check(&zipped, &[1, 2], None);
        check(&[zipped.clone(), gzip(b"{}\n")].concat(), &[1, 2, 3], None);
        for length in 1..zipped.len() {
            let (_, fault) = read(&zipped[..length]);
            assert!(fault.is_some(), "cut off at {length}");
        }
        let mut damaged = zipped.clone();
        let end = damaged.len() - 6;
        damaged[end] ^= 1;
        check(&damaged, &[1, 2], Some("cannot be read"));
        check(
            &[&zipped, b"{}\n".as_slice()].concat(),
            &[1, 2],
            Some("cannot be read"),
        );
        check(&gzip(b"{}\n{}"), &[1], Some("the file ends inside it"));
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, cut: prop::sample::Index) {
            drop(read(&bytes));
            let zipped = gzip(&bytes);
            drop(read(&zipped[..cut.index(zipped.len())]));
        }
    }
}
