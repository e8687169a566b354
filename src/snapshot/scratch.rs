//! A database for what is too much for memory and is forgotten afterwards.

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};

/// Opens one with these tables.
pub(super) fn scratch(tables: &str) -> rusqlite::Result<Connection> {
    let connection = temporary()?;
    connection.execute_batch(tables)?;
    // One transaction for all of it: it ends with the connection.
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

/// A database as it stands at this moment, with what its log holds.
pub(super) fn copy(original: &Connection) -> rusqlite::Result<Connection> {
    let mut copy = temporary()?;
    // In one step, and so of one moment. Whoever writes to its log meanwhile need not wait.
    let copied = Backup::new(original, &mut copy)?.step(-1)?;
    match copied {
        StepResult::Done => Ok(copy),
        _ => Err(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_BUSY),
            None,
        )),
    }
}

/// An empty one in a temporary file of SQLite's, which only its owner may read and which has no name any more once it is
/// open: a crash leaves nothing. What is sorted in it spills to such files too.
fn temporary() -> rusqlite::Result<Connection> {
    let connection = Connection::open("")?;
    connection.pragma_update(None, "journal_mode", "off")?;
    connection.pragma_update(None, "synchronous", "off")?;
    connection.pragma_update(None, "temp_store", "file")?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    Ok(connection)
}
