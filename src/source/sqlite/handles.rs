//! Handles on a file that SQLite may have open too.
//!
//! Where a process closes any handle on a file, POSIX takes all of its locks on that file away, SQLite's too: somebody
//! could then write while a query reads. So a handle is closed when no connection is open. <https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

static OPEN: Mutex<Open> = Mutex::new(Open {
    connections: 0,
    to_close: Vec::new(),
});

struct Open {
    connections: usize,
    to_close: Vec<File>,
}

impl Open {
    fn lock() -> MutexGuard<'static, Self> {
        OPEN.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kept for as long as a connection is open, and made before it.
pub(super) struct Connected(());

impl Connected {
    pub(super) fn new() -> Self {
        Open::lock().connections += 1;
        Self(())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut open = Open::lock();
        open.connections -= 1;
        if open.connections == 0 {
            open.to_close.clear();
        }
    }
}

/// A file that is looked at.
pub(super) struct Handle(Option<File>);

impl Handle {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(|file| Self(Some(file)))
    }
}

const OPENED: &str = "a handle has its file until it is dropped";

impl Deref for Handle {
    type Target = File;

    fn deref(&self) -> &File {
        self.0.as_ref().expect(OPENED)
    }
}

impl DerefMut for Handle {
    fn deref_mut(&mut self) -> &mut File {
        self.0.as_mut().expect(OPENED)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut open = Open::lock();
        if open.connections > 0 {
            open.to_close.extend(self.0.take());
        }
        // Closed before anybody can open a connection.
        self.0 = None;
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_look_at_a_file_takes_no_lock_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sqlite");
        let connected = Connected::new();
        let shop = Connection::open(&path).unwrap();
        let end = format!(":{} ", path.metadata().unwrap().ino());
        let is_locked = || {
            std::fs::read_to_string("/proc/locks")
                .unwrap()
                .contains(&end)
        };
        assert!(!is_locked());
        shop.execute_batch("BEGIN IMMEDIATE").unwrap();
        drop(Handle::open(&path).unwrap());
        assert!(is_locked());
        // As it is without it.
        drop(File::open(&path).unwrap());
        assert!(!is_locked());
        drop(connected);
    }
}
