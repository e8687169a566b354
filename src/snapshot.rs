//! What each stream has accepted, and what it has yet to accept: one SQLite file.
//!
//! Members are the snapshot, undelivered chunks the journal, delivered ones the history. Each belongs to a *feed*: one
//! audience at one stream. Plain synchronous code over one connection; async code reaches it through a [`Handle`], and
//! only one process at a time holds the [`RunLock`].
//!
//! A run is planned in one transaction: either the whole plan is on disk or none of it. A chunk leaves the journal
//! and its changes reach the members in one transaction too, so the snapshot never says more than Firehose did.
//!
//! `schema` has the tables. `plan` writes runs, `journal` hands out their chunks and takes back the answers, `apply` and
//! `overlay` change the members, `dead` and `doubt` keep what was given up. `lock` and `life` say who may write, and which
//! run was the last. `prune` drops what is old. `history`, `verify` and `dry_run` only read, and `rebuild` makes a lost
//! file anew.

mod apply;
pub mod chunk;
mod dead;
mod doubt;
mod dry_run;
mod handle;
mod held;
mod history;
mod journal;
mod life;
mod lock;
mod members;
mod overlay;
mod plan;
mod prune;
mod rebuild;
mod reported;
mod retire;
mod schema;
mod scratch;
mod streams;
mod transaction;
mod verify;
mod watermark;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::audience::keys::Known;
use crate::audience::{AudienceId, Class, Key};
use crate::disk;

pub use dead::{DeadLetter, LetterContent};
pub use dry_run::Estimate;
pub use handle::Handle;
pub use held::{Approval, Held, HeldUser};
pub use history::{
    ChangeEntry, ChangeState, FeedSummary, MemberSummary, RunSummary, UserMembership,
};
pub use journal::{Chunk, Credit, Dead, FeedId, JournaledRun, Settled};
pub use lock::{Busy, RunLock};
pub use members::Delivered;
pub use plan::{Decided, Journal, Plan, Planning};
pub use rebuild::{Rebuild, RebuildError, Rebuilt, Restored, Unsaid, in_the_way};
pub use reported::{Reported, ReportedError};
pub use retire::{FeedAudience, Retired};
pub use verify::{Comparison, Difference, Sample, Scope, Verified, Verify};
pub use watermark::{LastPlan, Left, Watermark};

/// Why the snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Some other file: it is left alone.
    #[error(
        "the file is a SQLite database, but not a snapshot of audience-sync\n\nhint: `snapshot` in audience-sync.toml names it; give it a file of its own"
    )]
    NotASnapshot,
    /// Written by another version of this program.
    #[error(
        "the snapshot is of version {found}, and this audience-sync reads version {known}\n\nhint: use the audience-sync that wrote it"
    )]
    OtherVersion { found: i64, known: i64 },
    /// A copy that broke off.
    #[error("the file is cut off after {0} bytes\n\nhint: {DAMAGED}")]
    CutOff(u64),
    /// The file is damaged, or was written by something else.
    #[error("chunk {seq} of run {run} cannot be read\n\nhint: {DAMAGED}")]
    UnreadableChunk { run: i64, seq: i64 },
    /// The file is damaged.
    #[error("the snapshot gave its members out of order\n\nhint: {DAMAGED}")]
    OutOfOrder,
    /// A column holds what this program never writes.
    #[error("the snapshot holds an unknown {0}\n\nhint: {DAMAGED}")]
    Unknown(&'static str),
    /// The lock file was removed or replaced while it was held.
    #[error(
        "another run has taken over the snapshot: its lock file is not the one that this run holds\n\n\
         hint: leave the file `*.lock` beside the snapshot alone; what is in the journal is sent by the next run"
    )]
    TakenOver,
    #[error("cannot write to the lock file beside the snapshot")]
    LockFile(#[source] std::io::Error),
    #[error("cannot create the file")]
    Create(#[source] std::io::Error),
    /// The disk that it lies on may be full.
    #[error("what landed cannot be kept in a temporary file, for which TMPDIR names the folder")]
    Scratch(#[source] rusqlite::Error),
    #[error("{}", in_words(.0))]
    Sqlite(#[from] rusqlite::Error),
}

/// The way out of a file that is damaged.
const DAMAGED: &str = "move it away and make it anew from what was delivered: `audience-sync snapshot rebuild --from DIR`, \
                       with `--destination NAME` for each destination if there are several; a backup does not know what \
                       was told since";

/// What happened; SQLite's own words follow as the cause.
fn in_words(error: &rusqlite::Error) -> String {
    let Some(failure) = error.sqlite_error() else {
        return error.to_string();
    };
    match failure.code {
        _ if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => FULL.to_owned(),
        ErrorCode::DiskFull => FULL.to_owned(),
        ErrorCode::ReadOnly => {
            "it is read-only\n\nhint: whoever runs audience-sync must be able to write to the file and to its directory"
                .to_owned()
        }
        ErrorCode::CannotOpen => "the file cannot be opened".to_owned(),
        ErrorCode::DatabaseCorrupt => format!("the file is damaged\n\nhint: {DAMAGED}"),
        ErrorCode::NotADatabase => {
            format!("the file is damaged, or was never a snapshot\n\nhint: {DAMAGED}")
        }
        ErrorCode::SystemIoFailure => "the disk fails to read or write it".to_owned(),
        _ => error.to_string(),
    }
}

const FULL: &str = "the disk is full\n\nhint: make room; nothing that was decided is lost, and the next run goes on";

/// The open file.
pub struct Snapshot {
    connection: Connection,
    /// What is written now is undone as a whole when any of it fails.
    is_all_or_nothing: bool,
    /// Writers that share the transaction that is open.
    sharing: usize,
    /// The feeds of which something was settled since the file was opened.
    settled: BTreeSet<i64>,
    /// Released last.
    holder: Option<life::Holder>,
}

impl From<Connection> for Snapshot {
    fn from(connection: Connection) -> Self {
        Self {
            connection,
            is_all_or_nothing: false,
            sharing: 0,
            settled: BTreeSet::new(),
            holder: None,
        }
    }
}

impl Snapshot {
    /// Makes an empty snapshot, readable for its owner only. Nobody was told anything yet.
    pub fn create(path: &Path) -> Result<Self, SnapshotError> {
        // What SQLite keeps beside a file is beside the one that a link leads to.
        let path = &disk::target(path);
        if in_the_way(path).is_none() {
            rebuild::make_empty(path)?;
        }
        let mut connection = Self::connect(path)?;
        schema::create(&mut connection)?;
        Ok(connection.into())
    }

    /// Opens an existing file to write to it; `None` where there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, SnapshotError> {
        let path = &disk::target(path);
        if !path.exists() {
            return Ok(None);
        }
        #[cfg(unix)]
        warn_of_readers(path);
        must_be_whole(path)?;
        let connection = Self::connect(path)?;
        Ok(schema::is_made(&connection)?.then(|| connection.into()))
    }

    fn connect(path: &Path) -> Result<Connection, SnapshotError> {
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        set_up(&connection)?;
        // Before anything is changed: a file of another program, or of another version, stays as it is.
        schema::is_made(&connection)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        Ok(connection)
    }

    /// Opens an existing file to look at it; `None` where there is none. Nothing is created or changed.
    pub fn inspect(path: &Path) -> Result<Option<Self>, SnapshotError> {
        if disk::target(path).exists() {
            must_be_whole(&disk::target(path))?;
        }
        Self::inspect_again(path)
    }

    /// The same while this process has the file open already: to close another handle on it would drop SQLite's locks.
    pub fn inspect_again(path: &Path) -> Result<Option<Self>, SnapshotError> {
        let path = &disk::target(path);
        if !path.exists() {
            return Ok(None);
        }
        let has_log = has_log(path);
        match Self::look(path, OpenFlags::SQLITE_OPEN_READ_WRITE, has_log) {
            // Where nothing may be written beside it and no log is left, the file alone is all there is. A file that is
            // busy is another matter: it changes while it is read.
            Err(SnapshotError::Sqlite(error)) if !has_log && is_write_protected(&error) => {
                Self::look(&immutable(path), OpenFlags::SQLITE_OPEN_READ_ONLY, false)
            }
            looked => looked,
        }
    }

    /// SQLite needs the right to write for its own files beside the snapshot, which it takes away again.
    fn look(path: &Path, access: OpenFlags, has_log: bool) -> Result<Option<Self>, SnapshotError> {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(path, flags)?;
        // What a crash left in the log is not ours to move into the file.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, has_log)?;
        set_up(&connection)?;
        if !schema::is_made(&connection)? {
            return Ok(None);
        }
        connection.pragma_update(None, "query_only", true)?;
        Ok(Some(connection.into()))
    }

    /// A snapshot that knows nothing and is kept nowhere, for a dry run before the first sync.
    pub fn empty() -> Result<Self, SnapshotError> {
        let mut connection = Connection::open_in_memory()?;
        schema::create(&mut connection)?;
        Ok(connection.into())
    }

    /// Every audience that was ever synced, in order of key.
    pub fn known(&self) -> Result<Vec<Known>, SnapshotError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, key, class, name, retired_at IS NOT NULL FROM audience ORDER BY key, id",
        )?;
        let mut rows = statement.query([])?;
        let mut known = Vec::new();
        while let Some(row) = rows.next()? {
            known.push(Known {
                id: AudienceId::new(row.get::<_, String>(0)?),
                key: Key::new(row.get::<_, String>(1)?),
                class: class(&row.get::<_, String>(2)?)?,
                name: row.get(3)?,
                retired: row.get(4)?,
            });
        }
        Ok(known)
    }
}

fn is_write_protected(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen))
}

fn class(text: &str) -> Result<Class, SnapshotError> {
    Class::parse(text).ok_or(SnapshotError::Unknown("class of audience"))
}

/// The name by which SQLite reads a file as if nobody could change it. <https://sqlite.org/uri.html>
fn immutable(path: &Path) -> PathBuf {
    let path = path.display().to_string();
    let path = path
        .replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23");
    format!("file:{path}?immutable=1").into()
}

/// Makes the file readable for its owner only, before SQLite writes a byte: it holds people's ids.
fn create(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let folder = disk::above(path);
    disk::create_folder(folder)?;
    let mut options = disk::private();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    file.sync_all()?;
    // The name too: a snapshot that a power cut makes unheard of has forgotten what was sent.
    disk::sync_folder(folder)
}

/// Whether a crash has left something in the log, or somebody is writing.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// Refuses a copy that broke off. An empty file is one that is about to be made, and what the log holds completes it.
fn must_be_whole(path: &Path) -> Result<(), SnapshotError> {
    match disk::cut_off(path) {
        Some(bytes) if bytes > 0 && !has_log(path) => Err(SnapshotError::CutOff(bytes)),
        _ => Ok(()),
    }
}

/// A backup that was restored may have other permissions than the file had. They are for its owner to change.
#[cfg(unix)]
fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Once;

    // Once is enough for a program that stays.
    static WARNED: Once = Once::new();

    let Ok(mode) = fs::metadata(path).map(|file| file.permissions().mode()) else {
        return;
    };
    if mode & 0o077 != 0 {
        WARNED.call_once(|| {
            let (path, mode) = (path.display(), mode & 0o777);
            tracing::warn!(
                "others than its owner may open the snapshot {path} (mode {mode:04o}), and it holds people's ids. \
                 hint: chmod 600 {path}"
            );
        });
    }
}

fn set_up(connection: &Connection) -> Result<(), SnapshotError> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    // FULL: a commit is on disk when it returns. Nothing may be sent that a power cut could make us forget.
    connection.pragma_update(None, "synchronous", "full")?;
    // On macOS an fsync leaves it in the disk's own cache: <https://sqlite.org/pragma.html#pragma_fullfsync>
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    connection.pragma_update(None, "wal_autocheckpoint", 8_192)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // What is erased is gone from the file: it held people's ids.
    connection.pragma_update(None, "secure_delete", true)?;
    // Otherwise a statement is prepared anew for each value that is bound to a LIMIT or a range.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}
