//! Fills chunks and writes them, so that each carries what one call of Firehose does.

use rusqlite::{CachedStatement, Connection, params};

use super::SnapshotError;
use super::members::SqlUser;
use crate::audience::{Change, MemberBuf};
use crate::batch::{MAX_CALL_BYTES, MAX_CALL_RECORDS};

/// A chunk holds what one PutRecordBatch carries.
const MAX_CHUNK_ENTRIES: u64 = MAX_CALL_RECORDS as u64;
const MAX_CHUNK_BYTES: usize = MAX_CALL_BYTES;

/// Whether a chunk of so many entries, whose lines take at most `bytes`, has no room for a line of at most `more`.
pub(super) const fn is_full(count: u64, bytes: usize, more: usize) -> bool {
    count == MAX_CHUNK_ENTRIES || count > 0 && bytes + more > MAX_CHUNK_BYTES
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkKind {
    /// Users who enter. Where the guard holds nothing of the kind, those who change or are repeated are among them.
    Entering,
    /// Apart from the others, so that the guard can take them back.
    Changing,
    Repeating,
    Leaving,
    /// Lines given to `send`.
    Calls,
}

impl ChunkKind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Entering => "entering",
            Self::Changing => "changing",
            Self::Repeating => "repeating",
            Self::Leaving => "leaving",
            Self::Calls => "calls",
        }
    }
}

/// Fills chunks of one kind and inserts each as it is full.
pub(super) struct ChunkWriter<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    insert_bytes: CachedStatement<'c>,
    run: i64,
    kind: ChunkKind,
    next_seq: i64,
    step: i64,
    entries: Vec<u8>,
    count: u64,
    bytes: usize,
    first: Option<MemberBuf>,
    last: Option<MemberBuf>,
}

impl<'c> ChunkWriter<'c> {
    pub(super) fn new(
        connection: &'c Connection,
        run: i64,
        kind: ChunkKind,
        first_seq: i64,
        step: i64,
    ) -> Result<Self, SnapshotError> {
        let insert = connection.prepare_cached(
            "INSERT INTO chunk (run, seq, kind, count, first_user, last_user, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        Ok(Self {
            connection,
            insert,
            insert_bytes: connection.prepare_cached("INSERT INTO bytes (entries) VALUES (?1)")?,
            run,
            kind,
            next_seq: first_seq,
            step,
            entries: Vec::new(),
            count: 0,
            bytes: 0,
            first: None,
            last: None,
        })
    }

    /// Adds an entry whose line takes at most `bytes`.
    pub(super) fn push(
        &mut self,
        change: Option<&Change<'_>>,
        bytes: usize,
        append: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), SnapshotError> {
        if is_full(self.count, self.bytes, bytes) {
            self.flush()?;
        }
        append(&mut self.entries);
        self.count += 1;
        self.bytes += bytes;
        if let Some(change) = change {
            if self.count == 1 {
                keep(&mut self.first, change);
            }
            keep(&mut self.last, change);
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.count == 0 {
            return Ok(());
        }
        self.insert_bytes.execute([&self.entries])?;
        self.insert.execute(params![
            self.run,
            self.next_seq,
            self.kind.as_str(),
            self.count as i64,
            self.first.as_ref().map(|member| SqlUser(member.user())),
            self.last.as_ref().map(|member| SqlUser(member.user())),
            self.connection.last_insert_rowid()
        ])?;
        self.next_seq += self.step;
        self.entries.clear();
        self.count = 0;
        self.bytes = 0;
        Ok(())
    }

    /// Takes back everything that it has written.
    pub(super) fn drop_all(&self) -> Result<(), SnapshotError> {
        for delete in [
            "DELETE FROM bytes WHERE id IN (SELECT bytes FROM chunk WHERE run = ?1 AND kind = ?2)",
            "DELETE FROM chunk WHERE run = ?1 AND kind = ?2",
        ] {
            self.connection
                .execute(delete, params![self.run, self.kind.as_str()])?;
        }
        Ok(())
    }
}

fn keep(place: &mut Option<MemberBuf>, change: &Change<'_>) {
    let member = place.get_or_insert_default();
    member.kind = change.member.user.kind;
    member.id.clear();
    member.id.push_str(change.member.user.id);
}
