//! The tables of the snapshot file.

use rusqlite::{Connection, TransactionBehavior};

use super::SnapshotError;

/// "ASyn": tells a snapshot from any other SQLite file.
const APPLICATION_ID: i32 = 0x4153_796e;
/// `user_version` of a file that this program wrote.
const VERSION: i64 = 1;

/// Times are milliseconds since 1970. Users are TEXT for a user id and a BLOB for an anonymous id, which SQLite sorts
/// as the merge does.
const TABLES: &str = "
    -- What is known of all runs, whatever was pruned. `holder` is the random token of the process that may write.
    CREATE TABLE life (
        only            INTEGER PRIMARY KEY CHECK (only = 1),
        last_run        INTEGER NOT NULL,
        last_started_at INTEGER,
        -- The last clock that was plausible, and one since that seemed far ahead.
        clock_seen      INTEGER,
        clock_suspected INTEGER,
        holder          BLOB
    ) STRICT;
    INSERT INTO life (only, last_run) VALUES (1, 0);

    -- An audience or computed trait. Its key is frozen at its first sync.
    CREATE TABLE audience (
        number     INTEGER PRIMARY KEY,
        id         TEXT NOT NULL UNIQUE,
        key        TEXT NOT NULL,
        class      TEXT NOT NULL,
        name       TEXT NOT NULL,
        retired_at INTEGER
    ) STRICT;

    -- Where lines go: told apart by the place, and not by the name of a destination. A directory has no region; an
    -- endpoint is NULL where it is AWS's public one, an account where it is not known yet.
    CREATE TABLE stream (
        number       INTEGER PRIMARY KEY,
        region       TEXT,
        endpoint     TEXT,
        account      TEXT,
        directory    TEXT,
        name         TEXT NOT NULL,
        has_accepted INTEGER NOT NULL DEFAULT 0,
        CHECK ((region IS NULL) <> (directory IS NULL))
    ) STRICT;

    -- One audience at one stream. Everything below belongs to one feed, and no feed knows of another.
    CREATE TABLE feed (
        number        INTEGER PRIMARY KEY,
        audience      INTEGER NOT NULL REFERENCES audience (number),
        stream        INTEGER NOT NULL REFERENCES stream (number),
        destination   TEXT NOT NULL,
        members       INTEGER NOT NULL DEFAULT 0,
        -- How the source was asked by the last plan that read it to its end, what the source was then (NULL: not known),
        -- when the last complete plan began, and the last one that read everyone beside a change query.
        planned_by    TEXT,
        planned_from  TEXT,
        planned_at    INTEGER,
        reconciled_at INTEGER,
        -- Whether `traits_hash` of its members is kept: since its audience has, or once had, `refresh`.
        keeps_traits  INTEGER NOT NULL DEFAULT 0,
        UNIQUE (audience, stream)
    ) STRICT;
    CREATE INDEX feed_by_stream ON feed (stream);

    -- What a stream has accepted. `value` is NULL for an audience; `since` is the number of the run that the member
    -- entered by, or that changed the value. `traits_hash` tells the extra traits that were last accepted (NULL: not known).
    CREATE TABLE member (
        feed         INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        since        INTEGER NOT NULL,
        traits_hash  INTEGER,
        PRIMARY KEY (feed, user)
    ) WITHOUT ROWID, STRICT;

    -- Members that entered, changed or left since `member` was last compacted: changes lie apart from each other, and
    -- each would rewrite a page of a large table. `since` is NULL for a user who has left.
    CREATE TABLE overlay (
        feed         INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        since        INTEGER,
        traits_hash  INTEGER,
        PRIMARY KEY (feed, user)
    ) WITHOUT ROWID, STRICT;

    -- Both together: what a stream has accepted.
    CREATE VIEW membership AS
    SELECT feed, user, anonymous_id, value, since, traits_hash FROM member
    WHERE NOT EXISTS (SELECT 1 FROM overlay WHERE overlay.feed = member.feed AND overlay.user = member.user)
    UNION ALL
    SELECT feed, user, anonymous_id, value, since, traits_hash FROM overlay WHERE since IS NOT NULL;

    -- Users whose stream may have been told something else than the members say: a line about them may have been
    -- accepted without an answer. Every plan decides about them, until a record ID comes back.
    CREATE TABLE doubt (
        feed         INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        PRIMARY KEY (feed, user)
    ) WITHOUT ROWID, STRICT;

    -- `audience_id` is NULL for a run of `send`, `feed` also for a run that failed before the first plan of its feed.
    -- `planned` changes are in the chunks: some `delivered`, some `dead`, the rest still in the journal. `started_at` is
    -- the time in the records, `at` the real clock when the row was written. `only_users` is 1 for a run that was asked
    -- about single users: it says nothing about the others, so it is not taken for the last run of its feed.
    CREATE TABLE run (
        number          INTEGER PRIMARY KEY,
        id              TEXT NOT NULL UNIQUE,
        feed            INTEGER REFERENCES feed (number),
        audience_id     TEXT,
        stream          INTEGER NOT NULL REFERENCES stream (number),
        destination     TEXT NOT NULL,
        kind            TEXT NOT NULL,
        started_at      INTEGER NOT NULL,
        at              INTEGER NOT NULL,
        finished_at     INTEGER,
        outcome         TEXT,
        error           TEXT,
        space_id        TEXT,
        only_users      INTEGER NOT NULL DEFAULT 0,
        members         INTEGER NOT NULL DEFAULT 0,
        added           INTEGER NOT NULL DEFAULT 0,
        removed         INTEGER NOT NULL DEFAULT 0,
        changed         INTEGER NOT NULL DEFAULT 0,
        skipped_rows    INTEGER NOT NULL DEFAULT 0,
        -- What the guard held back: removals, additions, changes; of how many members, and a few of the users who would
        -- have left, as a JSON array.
        held            INTEGER NOT NULL DEFAULT 0,
        held_added      INTEGER NOT NULL DEFAULT 0,
        held_changed    INTEGER NOT NULL DEFAULT 0,
        held_of         INTEGER NOT NULL DEFAULT 0,
        held_sample     TEXT,
        planned         INTEGER NOT NULL DEFAULT 0,
        delivered       INTEGER NOT NULL DEFAULT 0,
        dead            INTEGER NOT NULL DEFAULT 0,
        -- A process died while it delivered this run: any line that waits may have been accepted.
        was_interrupted INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX run_by_audience ON run (audience_id, stream, number);
    CREATE INDEX run_in_journal ON run (number) WHERE planned > delivered + dead;
    CREATE INDEX run_by_time ON run (started_at);
    -- For the newest runs of an audience, and for the last run of a feed that did not fail, and that delivered all:
    -- thousands of others may have followed.
    CREATE INDEX run_of_audience ON run (audience_id, started_at);
    CREATE INDEX run_planned ON run (audience_id, stream, number) WHERE outcome IS NOT 'failed';
    CREATE INDEX run_synced ON run (audience_id, stream, number) WHERE outcome IN ('delivered', 'unchanged');
    CREATE INDEX run_unchanged ON run (at) WHERE planned = 0;

    -- Journal and history: as many changes as one Put call carries, in the order of users within a run and kind; its
    -- entries are in the row of `bytes` that it names. A chunk leaves the journal with `delivered_at`. Until then
    -- `accepted` and `maybe_accepted` tell, one byte an entry, what the stream has accepted of it and what it may have
    -- accepted without an answer (NULL: nothing).
    CREATE TABLE chunk (
        run            INTEGER NOT NULL,
        seq            INTEGER NOT NULL,
        kind           TEXT NOT NULL CHECK (kind IN ('entering', 'changing', 'repeating', 'leaving', 'calls')),
        count          INTEGER NOT NULL,
        first_user     ANY,
        last_user      ANY,
        bytes          INTEGER NOT NULL,
        delivered_at   INTEGER,
        accepted       BLOB,
        maybe_accepted BLOB,
        PRIMARY KEY (run, seq)
    ) WITHOUT ROWID, STRICT;
    CREATE INDEX chunk_by_age ON chunk (delivered_at) WHERE delivered_at IS NOT NULL;

    -- The entries of a chunk, apart from it: what is written once is not written again when its chunk is updated.
    CREATE TABLE bytes (
        id      INTEGER PRIMARY KEY,
        entries BLOB NOT NULL
    ) STRICT;

    -- Entries that can never be delivered, each with its own bytes (NULL: not kept). `superseded_by` is the later run that
    -- decided about its user anew, its own run if the entry went back into the journal in another chunk, or 0 if it was
    -- dropped by hand.
    CREATE TABLE dead (
        run           INTEGER NOT NULL,
        seq           INTEGER NOT NULL,
        position      INTEGER NOT NULL,
        at            INTEGER NOT NULL,
        code          TEXT NOT NULL,
        reason        TEXT NOT NULL,
        entry         BLOB,
        superseded_by INTEGER,
        PRIMARY KEY (run, seq, position)
    ) WITHOUT ROWID, STRICT;
    CREATE INDEX dead_letter ON dead (run, seq, position) WHERE superseded_by IS NULL;
    CREATE INDEX dead_without_entry ON dead (at) WHERE entry IS NULL;";

/// Makes the tables in an empty file.
pub(super) fn create(connection: &mut Connection) -> Result<(), SnapshotError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    if !is_made(&transaction)? {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Whether the file is a snapshot of this version; `false` for an empty one.
pub(super) fn is_made(connection: &Connection) -> Result<bool, SnapshotError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let version = pragma("user_version")?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 && version == 0 {
        return Ok(false);
    }
    if pragma("application_id")? != i64::from(APPLICATION_ID) {
        return Err(SnapshotError::NotASnapshot);
    }
    match version {
        VERSION => Ok(true),
        found => Err(SnapshotError::OtherVersion {
            found,
            known: VERSION,
        }),
    }
}
