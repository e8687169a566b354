//! What can be seen of a SQLite file without reading it, by which it says that it has not changed.
//!
//! The change counter in its header is not enough: in WAL mode a transaction that leaves the first page alone does not
//! raise it, and no checkpoint makes up for that. So the times of the file and of its log are part of it. They move in
//! ticks: of what changed a moment ago, a second change may leave no trace. It is in doubt, as a file is to git:
//! <https://git-scm.com/docs/racy-git>. Whoever is in doubt reads.

use std::ffi::OsString;
use std::io::{ErrorKind, Read as _};
use std::iter;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::handles::Handle;
use crate::disk;
use crate::source::stamp::Stamp;
use crate::source::{Doubt, Fingerprint, digest};

/// The header has the change counter and what it was valid for: <https://sqlite.org/fileformat.html#the_database_header>.
const HEADER: u64 = 100;

/// That of a log has the salts, which change when it is begun anew: <https://sqlite.org/fileformat.html#walformat>.
const LOG_HEADER: u64 = 32;

/// That of a rollback journal: <https://sqlite.org/fileformat.html#the_rollback_journal>.
const JOURNAL_HEADER: u64 = 28;

/// A file as it is at one moment, and the log beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    file: Seen,
    /// `None` where there is none, or one with nothing in it, as whoever only reads leaves it.
    log: Option<Seen>,
}

impl State {
    pub(super) fn of(path: &Path) -> Result<Self, Doubt> {
        Self::at(path, SystemTime::now())
    }

    fn at(path: &Path, now: SystemTime) -> Result<Self, Doubt> {
        // What SQLite keeps beside a file is beside the one that a link leads to.
        let path = disk::target(path);
        if !has_ended(&beside(&path, "-journal")) {
            return Err(Doubt::Journal);
        }
        let state = Self::seen(&path).ok_or(Doubt::Unseen)?;
        match state.is_old(now) {
            true => Ok(state),
            false => Err(Doubt::Young),
        }
    }

    fn seen(path: &Path) -> Option<Self> {
        let log = beside(path, "-wal");
        let has_log = match log.metadata() {
            Ok(log) => log.len() > 0,
            Err(_) => !is_missing(&log),
        };
        Some(Self {
            file: Seen::of(path, HEADER)?,
            log: match has_log {
                true => Some(Seen::of_log(&log)?),
                false => None,
            },
        })
    }

    fn is_old(&self, now: SystemTime) -> bool {
        let mut seen = iter::once(&self.file).chain(&self.log);
        seen.all(|seen| seen.stamp.is_old(now))
    }

    /// All of it in one word.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        let seen = iter::once(&self.file).chain(&self.log);
        Fingerprint(digest(seen.flat_map(Seen::parts)))
    }
}

/// Whether whoever writes to a file has to wait for those who read it: so it is unless both versions in its header say
/// WAL. <https://sqlite.org/fileformat.html#file_format_version_numbers>
pub(super) fn keeps_writers_waiting(path: &Path) -> bool {
    const VERSIONS: std::ops::Range<usize> = 18..20;

    let mut header = [0; HEADER as usize];
    let read = Handle::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_err() || header[VERSIONS] != [2, 2]
}

/// Whether the transaction that a journal is of has ended, so that nobody needs it: it is gone, or empty, or its header
/// is zeros, by the file's journal mode. SQLite looks at the first byte only. <https://sqlite.org/pragma.html#pragma_journal_mode>
fn has_ended(journal: &Path) -> bool {
    is_missing(journal)
        || start_of(journal).is_some_and(|start| start.iter().all(|byte| *byte == 0))
}

fn start_of(journal: &Path) -> Option<Vec<u8>> {
    let is_file = journal.metadata().is_ok_and(|journal| journal.is_file());
    let mut journal = is_file.then(|| Handle::open(journal).ok())??;
    let mut start = Vec::new();
    let mut header = journal.by_ref().take(JOURNAL_HEADER);
    header.read_to_end(&mut start).ok()?;
    Some(start)
}

fn is_missing(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// What the system and the header say of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    stamp: Stamp,
    header: Vec<u8>,
}

impl Seen {
    fn of(path: &Path, header_bytes: u64) -> Option<Self> {
        let mut file = Handle::open(path).ok()?;
        let stamp = Stamp::of(&file.metadata().ok()?)?;
        let mut header = Vec::new();
        let mut start = file.by_ref().take(header_bytes);
        start.read_to_end(&mut header).ok()?;
        Some(Self { stamp, header })
    }

    /// SQLite gives a log to the owner of the file whenever root opens it.
    fn of_log(path: &Path) -> Option<Self> {
        let mut seen = Self::of(path, LOG_HEADER)?;
        seen.stamp.changed = None;
        Some(seen)
    }

    fn parts(&self) -> [String; 2] {
        [self.stamp.text(), format!("{:x?}", self.header)]
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs::{self, File, FileTimes};
    use std::os::unix::fs::{FileExt as _, symlink};

    use rusqlite::Connection;
    use tempfile::TempDir;

    use std::time::Duration;

    use super::*;
    use crate::source::stamp::YOUNG;

    struct Shop(TempDir);

    impl Shop {
        fn new(journal_mode: &str) -> Self {
            let shop = Self(tempfile::tempdir().unwrap());
            let connection = shop.connection();
            connection
                .pragma_update(None, "journal_mode", journal_mode)
                .unwrap();
            connection
                .execute_batch(
                    "CREATE TABLE users (id TEXT); INSERT INTO users VALUES ('a'), ('b')",
                )
                .unwrap();
            shop
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn connection(&self) -> Connection {
            Connection::open(self.path("shop.sqlite")).unwrap()
        }

        /// As it will be when nothing is young any more.
        fn state(&self) -> Result<State, Doubt> {
            State::at(&self.path("shop.sqlite"), later())
        }

        /// Does something and sees by what it is told.
        #[track_caller]
        fn tells(&self, deed: impl FnOnce(&Self), expected: &[&str]) {
            let before = self.state().unwrap();
            // Within a tick, times would tell nothing.
            std::thread::sleep(Duration::from_millis(20));
            deed(self);
            let after = self.state().unwrap();
            let file = differing(&before.file, &after.file).into_iter();
            let mut found: Vec<String> = file.map(str::to_owned).collect();
            match (&before.log, &after.log) {
                (Some(before), Some(after)) => {
                    let log = differing(before, after).into_iter();
                    found.extend(log.map(|what| format!("log's {what}")));
                }
                (None, None) => {}
                _ => found.push("log".to_owned()),
            }
            assert_eq!(found, expected);
            let is_same = before.fingerprint() == after.fingerprint();
            assert_eq!(is_same, expected.is_empty());
        }

        fn set_modified(&self, at: SystemTime) {
            let file = File::options()
                .write(true)
                .open(self.path("shop.sqlite"))
                .unwrap();
            file.set_times(FileTimes::new().set_modified(at)).unwrap();
        }

        fn modified(&self) -> SystemTime {
            self.path("shop.sqlite")
                .metadata()
                .unwrap()
                .modified()
                .unwrap()
        }
    }

    fn differing(before: &Seen, after: &Seen) -> Vec<&'static str> {
        let parts = [
            ("identity", before.stamp.identity == after.stamp.identity),
            ("modified", before.stamp.modified == after.stamp.modified),
            ("changed", before.stamp.changed == after.stamp.changed),
            ("header", before.header == after.header),
        ];
        let differing = parts.into_iter().filter(|(_, is_same)| !is_same);
        differing.map(|(what, _)| what).collect()
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3_600)
    }

    #[test]
    fn writers_wait_for_readers_unless_there_is_a_log() {
        let check = |journal_mode, expected| {
            let shop = Shop::new(journal_mode);
            let waits = keeps_writers_waiting(&shop.path("shop.sqlite"));
            assert_eq!(waits, expected, "{journal_mode}");
            // As SQLite has it: a commit needs everyone else to be gone.
            let (reader, writer) = (shop.connection(), shop.connection());
            let mut statement = reader.prepare("SELECT id FROM users").unwrap();
            let mut rows = statement.query([]).unwrap();
            rows.next().unwrap();
            writer.busy_timeout(Duration::ZERO).unwrap();
            let written = writer.execute("INSERT INTO users VALUES ('c')", []);
            assert_eq!(written.is_err(), expected, "{journal_mode}");
        };
        check("delete", true);
        check("truncate", true);
        check("wal", false);
        assert!(keeps_writers_waiting(Path::new("no such file")));
    }

    #[test]
    fn what_nobody_touches_is_the_same() {
        for journal_mode in ["delete", "wal"] {
            let shop = Shop::new(journal_mode);
            let before = shop.state().unwrap();
            let read = |connection: &Connection| {
                connection.query_row("SELECT count(*) FROM users", [], |row| row.get::<_, i64>(0))
            };
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let reader = Connection::open_with_flags(shop.path("shop.sqlite"), flags).unwrap();
            assert_eq!(read(&reader), Ok(2));
            assert_eq!(shop.state().unwrap(), before);
            drop(reader);
            assert_eq!(shop.state().unwrap(), before);
            assert_eq!(shop.state().unwrap().fingerprint(), before.fingerprint());
            // What whoever only reads leaves behind.
            assert_eq!(shop.path("shop.sqlite-wal").exists(), journal_mode == "wal");
        }
    }

    #[test]
    fn a_change_is_told_by_the_file() {
        let shop = Shop::new("delete");
        shop.tells(|_| {}, &[]);
        let update = |shop: &Shop| {
            let connection = shop.connection();
            connection
                .execute_batch("UPDATE users SET id = 'c'")
                .unwrap();
        };
        shop.tells(update, &["modified", "changed", "header"]);
        // By no SQLite at all.
        let write = |shop: &Shop| {
            let file = File::options()
                .write(true)
                .open(shop.path("shop.sqlite"))
                .unwrap();
            file.write_all_at(b"x", file.metadata().unwrap().len() - 1)
                .unwrap();
        };
        shop.tells(write, &["modified", "changed"]);
        let write_and_hide = |shop: &Shop| {
            let modified = shop.modified();
            write(shop);
            shop.set_modified(modified);
        };
        shop.tells(write_and_hide, &["changed"]);
        let put_in_its_place = |shop: &Shop| {
            let modified = shop.modified();
            fs::copy(shop.path("shop.sqlite"), shop.path("copy")).unwrap();
            fs::rename(shop.path("copy"), shop.path("shop.sqlite")).unwrap();
            shop.set_modified(modified);
        };
        shop.tells(put_in_its_place, &["identity", "changed"]);
    }

    #[test]
    fn a_change_is_told_by_the_log() {
        let shop = Shop::new("wal");
        let connection = shop.connection();
        let run = |sql: &'static str| {
            let connection = &connection;
            move |_: &Shop| connection.execute_batch(sql).unwrap()
        };
        shop.tells(run("UPDATE users SET id = 'c'"), &["log"]);
        shop.tells(
            run("UPDATE users SET id = 'd'"),
            &["log's identity", "log's modified"],
        );
        // Over what was there, to no more than its size.
        run("PRAGMA wal_checkpoint(RESTART)")(&shop);
        shop.tells(
            run("UPDATE users SET id = 'e'"),
            &["log's modified", "log's header"],
        );
        run("PRAGMA wal_checkpoint(TRUNCATE)")(&shop);
        // The first page is left alone, so that no counter in the header says so, and then the log is gone.
        shop.tells(
            run("UPDATE users SET id = 'f'; PRAGMA wal_checkpoint(TRUNCATE)"),
            &["modified", "changed"],
        );
    }

    #[test]
    fn a_fingerprint_holds_every_part() {
        let shop = Shop::new("wal");
        let connection = shop.connection();
        connection
            .execute_batch("UPDATE users SET id = 'c'")
            .unwrap();
        let state = shop.state().unwrap();
        let changes: [fn(&mut State); 10] = [
            |state| state.file.stamp.identity[0] += 1,
            |state| state.file.stamp.identity[1] += 1,
            |state| state.file.stamp.identity[2] += 1,
            |state| state.file.stamp.modified += Duration::from_nanos(1),
            |state| state.file.stamp.changed = Some(state.file.stamp.modified),
            |state| state.file.header[27] ^= 1,
            |state| state.log = None,
            |state| std::mem::swap(&mut state.file, state.log.as_mut().unwrap()),
            |state| state.log.as_mut().unwrap().stamp.modified += Duration::from_nanos(1),
            |state| state.log.as_mut().unwrap().header[16] ^= 1,
        ];
        for (position, change) in changes.into_iter().enumerate() {
            let mut other = state.clone();
            other.file.stamp.changed = Some(SystemTime::UNIX_EPOCH);
            let before = other.fingerprint();
            change(&mut other);
            assert_ne!(other.fingerprint(), before, "{position}");
        }
    }

    #[test]
    fn what_changed_a_moment_ago_is_in_doubt() {
        let shop = Shop::new("wal");
        let connection = shop.connection();
        let path = shop.path("shop.sqlite");
        let at = |now| State::at(&path, now);
        connection
            .execute_batch("UPDATE users SET id = 'c'")
            .unwrap();
        let young_one = Err(Doubt::Young);
        assert_eq!(at(SystemTime::now()), young_one);
        assert!(at(SystemTime::now() + YOUNG * 2).is_ok());
        // A clock that was set back.
        assert_eq!(at(SystemTime::now() - Duration::from_secs(10)), young_one);
        // The file is old, and the log is young.
        let young = path.metadata().unwrap().modified().unwrap() + YOUNG * 2;
        connection
            .execute_batch("UPDATE users SET id = 'd'")
            .unwrap();
        let log = File::options()
            .write(true)
            .open(shop.path("shop.sqlite-wal"))
            .unwrap();
        log.set_times(FileTimes::new().set_modified(young)).unwrap();
        assert_eq!(at(young + YOUNG / 2), young_one);
        assert!(at(later()).is_ok());
        // An old time may have been given to it just now.
        let file = File::options().write(true).open(&path).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
        log.set_times(FileTimes::new().set_modified(old)).unwrap();
        assert_eq!(at(SystemTime::now()), young_one);
    }

    #[test]
    fn a_journal_beside_it_is_in_doubt_until_its_transaction_has_ended() {
        for journal_mode in ["delete", "truncate", "persist"] {
            let shop = Shop::new(journal_mode);
            let connection = shop.connection();
            let journal = shop.path("shop.sqlite-journal");
            for synchronous in ["full", "off"] {
                connection
                    .execute_batch(&format!(
                        "PRAGMA journal_mode = {journal_mode}; PRAGMA synchronous = {synchronous}"
                    ))
                    .unwrap();
                for end in ["ROLLBACK", "COMMIT"] {
                    connection
                        .execute_batch("BEGIN; UPDATE users SET id = id || 'c'")
                        .unwrap();
                    assert!(journal.exists());
                    assert_eq!(shop.state(), Err(Doubt::Journal), "{journal_mode}");
                    // A writer that died.
                    fs::copy(&journal, shop.path("hot")).unwrap();
                    connection.execute_batch(end).unwrap();
                    assert!(shop.state().is_ok(), "{journal_mode}");
                }
            }
            assert_eq!(journal.exists(), journal_mode != "delete");
            fs::copy(shop.path("hot"), &journal).unwrap();
            assert_eq!(shop.state(), Err(Doubt::Journal));
        }
    }

    #[test]
    fn what_cannot_be_read_is_in_doubt() {
        let shop = Shop::new("delete");
        let unseen = Err(Doubt::Unseen);
        assert_eq!(State::at(&shop.path("other.sqlite"), later()), unseen);
        assert_eq!(State::at(&shop.path(""), later()), unseen);
        symlink("shop.sqlite-wal", shop.path("shop.sqlite-wal")).unwrap();
        assert_eq!(shop.state(), unseen);
        for made in [
            |journal: &Path| symlink("nowhere", journal),
            |journal: &Path| fs::create_dir(journal),
        ] {
            let journal = shop.path("shop.sqlite-journal");
            made(&journal).unwrap();
            assert_eq!(shop.state(), Err(Doubt::Journal));
            fs::remove_file(&journal)
                .or_else(|_| fs::remove_dir(&journal))
                .unwrap();
        }
    }

    #[test]
    fn a_link_means_what_it_leads_to() {
        let shop = Shop::new("wal");
        fs::create_dir(shop.path("links")).unwrap();
        let link = shop.path("links/link");
        symlink("../shop.sqlite", &link).unwrap();
        let connection = shop.connection();
        let before = State::at(&link, later()).unwrap();
        assert_eq!(Ok(&before), shop.state().as_ref());
        connection
            .execute_batch("UPDATE users SET id = 'c'")
            .unwrap();
        let after = State::at(&link, later()).unwrap();
        assert!(after.log.is_some());
        assert_ne!(after, before);
    }
}
