//! A database for what is too much for memory and is forgotten afterwards.

use rusqlite::Connection;

/// Opens one with these tables.
pub(super) fn scratch(tables: &str) -> rusqlite::Result<Connection> {
    let connection = temporary()?;
    connection.execute_batch(tables)?;
    // One transaction for all of it: it ends with the connection.
    connection.execute_batch("BEGIN")?;
    Ok(connection)
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
