//! Handles on a file that SQLite may have open too.
//!
//! Where a process closes any handle on a file, POSIX takes all of its locks on that file away, SQLite's too: somebody
//! could then write while a query reads. So a handle is closed when no connection is open, and serves again until then.
//! <https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>

use std::fs::{File, Metadata};
use std::io::{self, Seek as _};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

static OPEN: Mutex<Open> = Mutex::new(Open {
    connections: 0,
    set_aside: Vec::new(),
});

struct Open {
    connections: usize,
    set_aside: Vec<File>,
}

impl Open {
    fn lock() -> MutexGuard<'static, Self> {
        OPEN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&mut self, wanted: &Metadata) -> Option<File> {
        let is_wanted = |file: &File| file.metadata().is_ok_and(|own| is_same(&own, wanted));
        let position = self.set_aside.iter().position(is_wanted)?;
        Some(self.set_aside.swap_remove(position))
    }
}

#[cfg(unix)]
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Elsewhere locks belong to a handle, and nothing tells.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    false
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
            open.set_aside.clear();
        }
    }
}

/// A file that is looked at.
pub(super) struct Handle(Option<File>);

impl Handle {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let set_aside = Open::lock().take(&path.metadata()?);
        let file = set_aside.map_or_else(|| File::open(path), Ok)?;
        let mut handle = Self(Some(file));
        handle.rewind()?;
        Ok(handle)
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
            open.set_aside.extend(self.0.take());
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

    #[test]
    fn a_file_that_is_looked_at_often_has_one_handle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sqlite");
        std::fs::write(&path, "orders").unwrap();
        let open_on = |path: &Path| {
            let handles = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let targets = handles.filter_map(|handle| std::fs::read_link(handle.path()).ok());
            targets.filter(|target| target == path).count()
        };
        let connected = Connected::new();
        for _ in 0..9 {
            let mut handle = Handle::open(&path).unwrap();
            assert_eq!(std::io::read_to_string(&mut *handle).unwrap(), "orders");
        }
        assert_eq!(open_on(&path), 1);
        // Another file in its place is another file.
        std::fs::write(folder.path().join("new"), "members").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        let mut handle = Handle::open(&path).unwrap();
        assert_eq!(std::io::read_to_string(&mut *handle).unwrap(), "members");
        drop(connected);
    }
}
