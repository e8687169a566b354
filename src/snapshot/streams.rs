//! The streams that the snapshot knows, each by its place.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Snapshot, SnapshotError};
use crate::audience::AudienceId;
use crate::mapping::StreamName;
use crate::stream::{Place, Stream};

impl Snapshot {
    /// Every stream that a run went to, in the order in which they were first used.
    pub fn streams(&self) -> Result<Vec<Stream>, SnapshotError> {
        let mut select = self
            .connection
            .prepare_cached(&format!("SELECT {STREAM} FROM stream ORDER BY number"))?;
        let mut rows = select.query([])?;
        let mut streams = Vec::new();
        while let Some(row) = rows.next()? {
            streams.push(stream_from(row, 0)?);
        }
        Ok(streams)
    }

    /// Every feed that was ever planned.
    pub fn known_feeds(&self) -> Result<BTreeSet<(AudienceId, Stream)>, SnapshotError> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT audience.id, {STREAM} FROM feed JOIN audience ON audience.number = feed.audience
             JOIN stream ON stream.number = feed.stream"
        ))?;
        let mut rows = select.query([])?;
        let mut feeds = BTreeSet::new();
        while let Some(row) = rows.next()? {
            feeds.insert((
                AudienceId::new(row.get::<_, String>(0)?),
                stream_from(row, 1)?,
            ));
        }
        Ok(feeds)
    }

    /// Notes the account of a stream that was not known until now.
    pub fn note_account(&mut self, stream: &Stream, account: &str) -> Result<(), SnapshotError> {
        if let Some(number) = find(&self.connection, stream)? {
            self.connection.execute(
                "UPDATE stream SET account = ?2 WHERE number = ?1",
                params![number, account],
            )?;
        }
        Ok(())
    }
}

/// The columns of a stream, for [`stream_from`].
pub(super) const STREAM: &str =
    "stream.region, stream.endpoint, stream.account, stream.directory, stream.name";

/// Reads a stream from five columns, the first of them at an index.
pub(super) fn stream_from(row: &Row<'_>, first: usize) -> Result<Stream, SnapshotError> {
    let directory: Option<String> = row.get(first + 3)?;
    let place = match directory {
        Some(path) => Place::Directory(path.into()),
        None => Place::Firehose {
            region: row.get(first)?,
            endpoint: row.get(first + 1)?,
            account: row.get(first + 2)?,
        },
    };
    let name: String = row.get(first + 4)?;
    let name = StreamName::parse(&name).ok_or(SnapshotError::Unknown("name of a stream"))?;
    Ok(Stream { place, name })
}

/// The number of a stream, if it is known by exactly this place.
pub(super) fn find(connection: &Connection, stream: &Stream) -> Result<Option<i64>, SnapshotError> {
    let number = connection
        .prepare_cached(
            "SELECT number FROM stream WHERE region IS ?1 AND endpoint IS ?2 AND account IS ?3 AND directory IS ?4 AND name = ?5",
        )?
        .query_row(columns(stream), |row| row.get(0));
    Ok(number.optional()?)
}

/// The number of a stream, which is known from now on.
pub(super) fn number_of(connection: &Connection, stream: &Stream) -> Result<i64, SnapshotError> {
    if let Some(number) = find(connection, stream)? {
        return Ok(number);
    }
    connection
        .prepare_cached(
            "INSERT INTO stream (region, endpoint, account, directory, name) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(columns(stream))?;
    Ok(connection.last_insert_rowid())
}

type Columns<'s> = (
    Option<&'s str>,
    Option<&'s str>,
    Option<&'s str>,
    Option<Cow<'s, str>>,
    &'s str,
);

fn columns(stream: &Stream) -> Columns<'_> {
    let name = stream.name.as_str();
    match &stream.place {
        Place::Directory(path) => (None, None, None, Some(path.to_string_lossy()), name),
        Place::Firehose {
            region,
            endpoint,
            account,
        } => (
            Some(region),
            endpoint.as_deref(),
            account.as_deref(),
            None,
            name,
        ),
    }
}
