//! The tables of the snapshot file, as a list of migrations. One that has shipped is never edited.

use rusqlite::{Connection, TransactionBehavior};

use super::SnapshotError;

/// "ASyn": tells a snapshot from any other SQLite file.
const APPLICATION_ID: i32 = 0x4153_796e;

/// `user_version` is how many of these a file has seen.
const MIGRATIONS: &[&str] = &[
    // A delivered chunk is not updated: its BLOB would be written twice. What became of it stands beside it.
    "
    CREATE TABLE audience (
        number      INTEGER PRIMARY KEY,
        id          TEXT NOT NULL,
        destination TEXT NOT NULL,
        key         TEXT NOT NULL,
        class       TEXT NOT NULL,
        name        TEXT NOT NULL,
        UNIQUE (id, destination)
    ) STRICT;

    -- What Firehose has accepted. `user` is TEXT for a user id and a BLOB for an anonymous id; `value` is NULL for
    -- an audience; `since` is the number of the run that the member entered by, or that changed the value.
    CREATE TABLE member (
        audience     INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        since        INTEGER NOT NULL,
        PRIMARY KEY (audience, user)
    ) WITHOUT ROWID, STRICT;

    -- `audience` is NULL for a run of `send`. `planned` changes are in the chunks: some of them `delivered`, some
    -- `dead`, the rest still in the journal. Times are milliseconds since 1970, `streams` is a JSON array.
    CREATE TABLE run (
        number       INTEGER PRIMARY KEY,
        id           TEXT NOT NULL UNIQUE,
        audience     INTEGER REFERENCES audience (number),
        audience_id  TEXT,
        destination  TEXT NOT NULL,
        kind         TEXT NOT NULL,
        started_at   INTEGER NOT NULL,
        finished_at  INTEGER,
        outcome      TEXT,
        error        TEXT,
        space_id     TEXT,
        streams      TEXT NOT NULL,
        members      INTEGER NOT NULL DEFAULT 0,
        added        INTEGER NOT NULL DEFAULT 0,
        removed      INTEGER NOT NULL DEFAULT 0,
        changed      INTEGER NOT NULL DEFAULT 0,
        held         INTEGER NOT NULL DEFAULT 0,
        skipped_rows INTEGER NOT NULL DEFAULT 0,
        planned      INTEGER NOT NULL DEFAULT 0,
        delivered    INTEGER NOT NULL DEFAULT 0,
        dead         INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX run_by_audience ON run (audience_id, destination, number);
    CREATE INDEX run_in_journal ON run (number) WHERE planned > delivered + dead;

    -- Journal and history: as many changes as one Put call carries, in the order of users within a run and kind.
    CREATE TABLE chunk (
        run        INTEGER NOT NULL REFERENCES run (number),
        seq        INTEGER NOT NULL,
        kind       TEXT NOT NULL CHECK (kind IN ('entering', 'leaving', 'calls')),
        count      INTEGER NOT NULL,
        first_user ANY,
        last_user  ANY,
        entries    BLOB NOT NULL,
        PRIMARY KEY (run, seq)
    ) STRICT;

    -- A chunk leaves the journal by a row here.
    CREATE TABLE delivered (
        run INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        at  INTEGER NOT NULL,
        PRIMARY KEY (run, seq)
    ) WITHOUT ROWID, STRICT;

    -- Which entries of a chunk a stream has accepted, where a run ended before it had accepted all: one byte an entry.
    CREATE TABLE partly_delivered (
        run      INTEGER NOT NULL,
        seq      INTEGER NOT NULL,
        stream   INTEGER NOT NULL,
        accepted BLOB NOT NULL,
        PRIMARY KEY (run, seq, stream)
    ) WITHOUT ROWID, STRICT;

    -- Entries that can never be delivered.
    CREATE TABLE dead (
        run      INTEGER NOT NULL,
        seq      INTEGER NOT NULL,
        position INTEGER NOT NULL,
        reason   TEXT NOT NULL,
        PRIMARY KEY (run, seq, position)
    ) WITHOUT ROWID, STRICT;
    ",
    "
    -- What the guard held back: of how many members, a few of the users as a JSON array, and a digest of them all.
    ALTER TABLE run ADD COLUMN held_of INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE run ADD COLUMN held_sample TEXT;
    ALTER TABLE run ADD COLUMN held_digest BLOB;

    -- Dead letters: since when, which of the run's streams refused it (NULL: no stream may be given it), whether the
    -- chunk still holds all of it, and the later run that decided about its user anew.
    ALTER TABLE dead ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dead ADD COLUMN stream INTEGER;
    ALTER TABLE dead ADD COLUMN is_whole INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE dead ADD COLUMN superseded_by INTEGER;
    ",
    "
    -- Users whom a stream may have been told something else than the members say: of a dead letter, one stream has
    -- accepted what another refuses. They are decided about anew by every plan, until all streams have the same.
    CREATE TABLE unsettled (
        audience     INTEGER NOT NULL,
        user         ANY NOT NULL,
        stream       TEXT NOT NULL,
        anonymous_id TEXT,
        PRIMARY KEY (audience, user, stream)
    ) WITHOUT ROWID, STRICT;
    ",
    "
    -- Who has entered, changed or left since `member` was last brought up to date: changes lie apart from each other,
    -- and each would rewrite a page of a large table. `since` is NULL for who has left.
    CREATE TABLE moved (
        audience     INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        since        INTEGER,
        PRIMARY KEY (audience, user)
    ) WITHOUT ROWID, STRICT;

    -- Both together: what Firehose has accepted.
    CREATE VIEW membership AS
    SELECT audience, user, anonymous_id, value, since FROM member
    WHERE NOT EXISTS (SELECT 1 FROM moved WHERE moved.audience = member.audience AND moved.user = member.user)
    UNION ALL
    SELECT audience, user, anonymous_id, value, since FROM moved WHERE since IS NOT NULL;

    -- How many there are, so that nobody has to count them,
    ALTER TABLE audience ADD COLUMN members INTEGER NOT NULL DEFAULT 0;
    UPDATE audience SET members = (SELECT count(*) FROM member WHERE member.audience = audience.number);
    -- what the source was when a plan last read it to its end,
    ALTER TABLE audience ADD COLUMN planned_from TEXT;
    -- and when that plan, and the last one that read everyone, began.
    ALTER TABLE audience ADD COLUMN planned_at INTEGER;
    ALTER TABLE audience ADD COLUMN reconciled_at INTEGER;

    -- The first of the runs whose changes to one user go in one record; NULL where each has its own.
    ALTER TABLE run ADD COLUMN together INTEGER;

    -- How the source was asked by the plan that `planned_from` is of.
    ALTER TABLE audience ADD COLUMN planned_by TEXT;
    ",
    "
    -- Entries that go in a record of their own for ever, since one that they shared was refused.
    CREATE TABLE apart (
        run      INTEGER NOT NULL,
        seq      INTEGER NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (run, seq, position)
    ) WITHOUT ROWID, STRICT;
    INSERT INTO apart
    SELECT dead.run, seq, position FROM dead JOIN run ON run.number = dead.run WHERE together IS NOT NULL;
    ",
];

/// Brings a file up to this version, or says why it cannot be used.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), SnapshotError> {
    let found = version(connection)?;
    if found == MIGRATIONS.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    for migration in MIGRATIONS.iter().skip(version(&transaction)?) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    transaction.commit()?;
    Ok(())
}

/// Whether a file has yet to see the last of the migrations.
pub(super) fn is_older(version: usize) -> bool {
    version < MIGRATIONS.len()
}

/// How many migrations the file has seen: 0 for an empty one.
pub(super) fn version(connection: &Connection) -> Result<usize, SnapshotError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 && version == 0 {
        return Ok(0);
    }
    if pragma("application_id")? != i64::from(APPLICATION_ID) {
        return Err(SnapshotError::NotASnapshot);
    }
    usize::try_from(version)
        .ok()
        .filter(|version| (1..=MIGRATIONS.len()).contains(version))
        .ok_or(SnapshotError::Newer {
            found: version,
            known: MIGRATIONS.len(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_first_version_is_brought_up_to_this_one() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        connection
            .execute_batch("INSERT INTO dead VALUES (1, 0, 3, 'too long')")
            .unwrap();
        connection
            .pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection).unwrap(), MIGRATIONS.len());
        let dead: (String, bool) = connection
            .query_row("SELECT reason, is_whole FROM dead", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(dead, ("too long".to_owned(), false));
    }

    #[test]
    fn a_letter_that_shared_a_record_shares_none_any_more() {
        let mut connection = Connection::open_in_memory().unwrap();
        MIGRATIONS[..4]
            .iter()
            .for_each(|migration| connection.execute_batch(migration).unwrap());
        connection
            .execute_batch(
                "INSERT INTO run (number, id, destination, kind, started_at, streams, together)
                 VALUES (1, 'a', 'main', 'delta', 0, '[]', NULL), (2, 'b', 'main', 'delta', 0, '[]', 2);
                 INSERT INTO dead (run, seq, position, reason) VALUES (1, 0, 3, 'bad'), (2, 1, 4, 'bad')",
            )
            .unwrap();
        let application = i64::from(APPLICATION_ID);
        connection
            .pragma_update(None, "application_id", application)
            .unwrap();
        connection.pragma_update(None, "user_version", 4).unwrap();
        migrate(&mut connection).unwrap();
        let apart: Vec<(i64, i64, i64)> = connection
            .prepare("SELECT * FROM apart")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(apart, [(2, 1, 4)]);
    }
}
