//! One run at a time for a snapshot, across processes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::disk;
use crate::run::Timestamp;

/// The right to run, held until it is dropped. The kernel drops it too, at a `kill -9`: there are no stale locks.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

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
                // A full disk is for whoever writes what matters to report.
                if let Err(error) = introduce(&mut file, command) {
                    tracing::warn!("cannot write to {}: {error}", path.display());
                }
                Ok(Self { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(unusable)?;
                let holder = match holder.trim() {
                    "" => "it has not said who it is".to_owned(),
                    text => text.to_owned(),
                };
                Err(Busy::Held { holder })
            }
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }
}

/// One lock for one file, by whatever links it is reached.
fn beside(snapshot: &Path) -> PathBuf {
    let target = disk::target(snapshot);
    let snapshot = fs::canonicalize(&target).unwrap_or(target);
    let mut name = snapshot.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    snapshot.with_file_name(name)
}

/// Says who holds the lock and since when, for the one who finds it held.
fn introduce(file: &mut File, command: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(
        file,
        "`audience-sync {command}`, process {}, since {}",
        std::process::id(),
        Timestamp::now()
    )
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
