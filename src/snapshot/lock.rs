//! One run at a time for a snapshot, across processes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::disk;
use crate::run::Timestamp;

/// The right to run, held until it is dropped. The kernel drops it too, at a `kill -9`: there are no stale locks.
///
/// The file also holds the number of the last run that has sent something. It outlives a snapshot that is deleted or
/// replaced, and tells that what is there now does not know everything.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
    last_run: i64,
}

/// What stands before the number of the last run, in a line of its own. The number has a fixed width: it is written in
/// place.
const LAST_RUN: &str = "last run ";
const WIDTH: usize = 19;
const FIRST_LINE: u64 = (LAST_RUN.len() + WIDTH + 1) as u64;

/// Why there is no right to run.
#[derive(Debug, thiserror::Error)]
pub enum Busy {
    /// Somebody else runs; `holder` is what they wrote about themselves.
    #[error("another run holds the snapshot: {holder}\n\nhint: wait for it to end, or use --wait")]
    Held { holder: String },
    #[error(
        "cannot lock {}\n\nhint: a run makes this file beside the snapshot, and must be able to write to it",
        path.display()
    )]
    Unusable { path: PathBuf, source: io::Error },
}

impl RunLock {
    /// Takes the lock beside a snapshot, or says who holds it.
    pub fn take(snapshot: &Path, command: &str) -> Result<Self, Busy> {
        let path = beside(snapshot);
        let unusable = |source| Busy::Unusable {
            path: path.clone(),
            source,
        };
        // The snapshot may be in a folder that its first run has yet to make.
        disk::create_folder(disk::above(&path)).map_err(unusable)?;
        let mut options = disk::private();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {
                let last_run = last_run(&mut file).map_err(unusable)?;
                let mut lock = Self {
                    file,
                    path: path.clone(),
                    last_run,
                };
                // A full disk is for the writer of the snapshot to report.
                if let Err(error) = lock.introduce(command) {
                    tracing::warn!("cannot write to {}: {error}", path.display());
                }
                Ok(lock)
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(unusable)?;
                let mut lines = holder.lines();
                let holder = lines.rfind(|line| !line.starts_with(LAST_RUN));
                let holder = match holder.unwrap_or_default().trim() {
                    "" => "it has not said who it is".to_owned(),
                    text => text.to_owned(),
                };
                Err(Busy::Held { holder })
            }
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// The number of the last run that has sent something, as far as the file proves it.
    pub fn last_run(&self) -> Option<i64> {
        (self.last_run > 0).then_some(self.last_run)
    }

    /// Writes down the number of the last run, on disk when this returns. It never falls.
    pub(super) fn note_run(&mut self, run: i64) -> io::Result<()> {
        if run <= self.last_run {
            return Ok(());
        }
        self.last_run = run;
        self.write_last_run()?;
        self.file.sync_data()
    }

    /// Whether the file at the path is still the one that is locked.
    pub(super) fn is_in_place(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let identity = |file: fs::Metadata| (file.dev(), file.ino());
            let ours = self.file.metadata().map(identity);
            let there = fs::metadata(&self.path).map(identity);
            matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
        }
        #[cfg(not(unix))]
        {
            self.path.exists()
        }
    }

    /// Tells who holds the lock and since when, for the program that finds it held.
    fn introduce(&mut self, command: &str) -> io::Result<()> {
        self.write_last_run()?;
        self.file.set_len(FIRST_LINE)?;
        self.file.seek(SeekFrom::Start(FIRST_LINE))?;
        writeln!(
            self.file,
            "`audience-sync {command}`, process {}, since {}",
            std::process::id(),
            Timestamp::now()
        )
    }

    fn write_last_run(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        writeln!(self.file, "{LAST_RUN}{:0WIDTH$}", self.last_run)
    }
}

/// What the file holds of it; 0 where that is nothing.
fn last_run(file: &mut File) -> io::Result<i64> {
    let mut text = Vec::new();
    file.take(FIRST_LINE).read_to_end(&mut text)?;
    let line = String::from_utf8(text).unwrap_or_default();
    let number = line
        .strip_prefix(LAST_RUN)
        .and_then(|line| line.strip_suffix('\n'));
    Ok(number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default())
}

/// One lock for one file, by whatever links it is reached.
fn beside(snapshot: &Path) -> PathBuf {
    let target = disk::target(snapshot);
    let snapshot = fs::canonicalize(&target).unwrap_or(target);
    let mut name = snapshot.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    snapshot.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("state/snapshot.sqlite");
        let first = RunLock::take(&snapshot, "sync").unwrap();
        let refused = RunLock::take(&snapshot, "resync").unwrap_err().to_string();
        assert!(
            refused.contains("`audience-sync sync`, process "),
            "{refused}"
        );
        drop(first);
        RunLock::take(&snapshot, "resync").unwrap();
    }

    #[test]
    fn the_number_of_the_last_run_stays_and_never_falls() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshot.sqlite");
        let file = folder.path().join("snapshot.sqlite.lock");
        let take = || RunLock::take(&snapshot, "sync").unwrap();
        assert_eq!(take().last_run(), None);
        for (noted, expected) in [(7, 7), (3, 7), (1_000, 1_000)] {
            take().note_run(noted).unwrap();
            assert_eq!(take().last_run(), Some(expected));
        }
        // What cannot be read proves nothing.
        for text in [
            "",
            "last run 12",
            "`audience-sync sync`, process 7\n",
            "\u{fffd}",
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(take().last_run(), None, "{text:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_file_that_was_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("snapshot.sqlite");
        let file = folder.path().join("snapshot.sqlite.lock");
        let first = RunLock::take(&snapshot, "sync").unwrap();
        assert!(first.is_in_place());
        std::fs::remove_file(&file).unwrap();
        assert!(!first.is_in_place());
        let second = RunLock::take(&snapshot, "sync").unwrap();
        assert!(second.is_in_place() && !first.is_in_place());
    }

    #[cfg(unix)]
    #[test]
    fn there_is_one_lock_for_a_file_that_a_link_leads_to_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("snapshot.sqlite");
        let file = folder.path().join("state/snapshot.sqlite");
        std::os::unix::fs::symlink("state/snapshot.sqlite", &link).unwrap();
        let _first = RunLock::take(&link, "sync").unwrap();
        let check = || {
            for path in [&link, &file] {
                let refused = RunLock::take(path, "resync");
                assert!(matches!(refused, Err(Busy::Held { .. })), "{refused:?}");
            }
        };
        check();
        std::fs::write(&file, "").unwrap();
        check();
    }
}
