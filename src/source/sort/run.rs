//! Members in order in a temporary file.
//!
//! They are in blocks, each with its length and a checksum, and how many there are is known beside the file: what is
//! missing or damaged is an error, and never somebody who has left.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::path::Path;

use flate2::Crc;

use super::{Shares, SortError};

/// A run while it is written.
pub(super) struct Run {
    file: File,
    shares: Shares,
    blocks: u64,
    longest: usize,
    ends: Option<Ends>,
    /// How often its members were merged before.
    pub(super) passes: u32,
}

/// The first and the last key of members in order.
#[derive(Clone)]
pub(super) struct Ends {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
}

impl Ends {
    pub(super) fn of_all<'e>(ends: impl Iterator<Item = &'e Self>) -> Option<Self> {
        ends.cloned().reduce(|all, ends| Self {
            first: all.first.min(ends.first),
            last: all.last.max(ends.last),
        })
    }

    /// How many bytes all keys between them begin with.
    pub(super) fn common(&self) -> usize {
        shared(&self.first, &self.last)
    }
}

/// How many bytes two keys begin with that are the same.
pub(super) fn shared(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

impl Run {
    pub(super) fn create(folder: &Path, shares: Shares, passes: u32) -> io::Result<Self> {
        Ok(Self {
            file: temporary(folder)?,
            shares,
            blocks: 0,
            longest: 0,
            ends: None,
            passes,
        })
    }

    /// Whether members that begin with this key may follow.
    pub(super) fn goes_on_with(&self, first: &[u8]) -> bool {
        self.ends
            .as_ref()
            .is_none_or(|ends| ends.last.as_slice() <= first)
    }

    /// Says between which keys the blocks are that are written next.
    pub(super) fn go_on(&mut self, next: Ends) {
        match &mut self.ends {
            Some(ends) => ends.last = next.last,
            None => self.ends = Some(next),
        }
    }

    /// Adds a block.
    pub(super) fn write(&mut self, block: &[u8]) -> io::Result<()> {
        self.file.write_all(&(block.len() as u64).to_le_bytes())?;
        let sum = checksum(self.blocks, block);
        self.file.write_all(&sum.to_le_bytes())?;
        self.file.write_all(block)?;
        self.blocks += 1;
        self.longest = self.longest.max(block.len());
        Ok(())
    }

    /// The bytes of its longest block.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn ends(&self) -> Option<&Ends> {
        self.ends.as_ref()
    }

    pub(super) fn read(mut self) -> Result<RunReader, SortError> {
        self.file.rewind().map_err(SortError::Unreadable)?;
        Ok(RunReader { run: self, read: 0 })
    }
}

/// A file without a name: nobody else opens it, and it goes with the process.
fn temporary(folder: &Path) -> io::Result<File> {
    let file = tempfile::tempfile_in(folder)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(file)
}

/// A run while it is read.
pub(super) struct RunReader {
    run: Run,
    /// How many blocks of it.
    read: u64,
}

impl RunReader {
    /// Reads the next block; `false` at the end.
    pub(super) fn fill(&mut self, block: &mut Vec<u8>) -> Result<bool, SortError> {
        if self.read == self.run.blocks {
            return Ok(false);
        }
        match self.read_block(block) {
            Ok(true) => {
                self.read += 1;
                Ok(true)
            }
            Ok(false) => Err(SortError::Damaged),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(SortError::Damaged),
            Err(error) => Err(SortError::Unreadable(error)),
        }
    }

    /// Whether it is what was written.
    fn read_block(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        let length = u64::from_le_bytes(self.read_bytes()?);
        let sum = u32::from_le_bytes(self.read_bytes()?);
        let Some(length) = usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.run.longest)
        else {
            return Ok(false);
        };
        self.run.shares.empty(block, length);
        block.resize(length, 0);
        self.run.file.read_exact(block)?;
        Ok(sum == checksum(self.read, block))
    }

    fn read_bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.run.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Of a block and of its place, so that none is taken for another one.
fn checksum(number: u64, block: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(&number.to_le_bytes());
    crc.update(block);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: [&[u8]; 3] = [b"first", b"other", b"the last"];
    /// Of the first block, and the numbers before it.
    const FIRST: usize = 12 + 5;

    fn written() -> Run {
        let shares = Shares::of(1 << 20);
        let mut run = Run::create(&std::env::temp_dir(), shares, 0).unwrap();
        BLOCKS.iter().for_each(|block| run.write(block).unwrap());
        run
    }

    fn read(run: Run) -> Result<Vec<Vec<u8>>, SortError> {
        let (mut reader, mut block) = (run.read()?, Vec::new());
        let mut blocks = Vec::new();
        while reader.fill(&mut block)? {
            blocks.push(block.clone());
        }
        Ok(blocks)
    }

    #[track_caller]
    fn check_damaged(damage: impl FnOnce(&mut Vec<u8>)) {
        let mut run = written();
        let mut bytes = Vec::new();
        run.file.rewind().unwrap();
        run.file.read_to_end(&mut bytes).unwrap();
        damage(&mut bytes);
        run.file.set_len(0).unwrap();
        run.file.rewind().unwrap();
        run.file.write_all(&bytes).unwrap();
        assert!(matches!(read(run), Err(SortError::Damaged)));
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(written()).unwrap(), BLOCKS);
    }

    #[test]
    fn a_run_that_is_not_what_was_written_is_an_error() {
        check_damaged(|bytes| bytes.clear());
        check_damaged(|bytes| bytes.truncate(bytes.len() - 1));
        // Between two blocks.
        check_damaged(|bytes| bytes.truncate(2 * FIRST));
        check_damaged(|bytes| *bytes.last_mut().unwrap() ^= 1);
        check_damaged(|bytes| bytes[..FIRST].fill(0));
        check_damaged(|bytes| bytes.copy_within(..FIRST, FIRST));
        // A length beyond all memory.
        check_damaged(|bytes| bytes[..8].fill(0xff));
    }

    #[cfg(unix)]
    #[test]
    fn a_run_has_no_name_and_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let run = Run::create(folder.path(), Shares::of(1 << 20), 0).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let mode = run.file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
