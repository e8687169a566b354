//! A lost snapshot, made anew from the records that were delivered: they are its backup.
//!
//! What landed is gathered in a temporary database, sorted there by user and time, and told user by user, so memory
//! does not grow with it. A new file is written beside its place and moved into it whole; what is added to a snapshot is
//! added in one transaction. So a crash leaves none or all.
//!
//! A record does not tell its destination. So what landed is taken from one destination at a time, and added to the
//! snapshot where that knows nothing of the same streams.

mod gathered;
#[cfg(test)]
mod tests;
mod user_history;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::members::{SqlUser, SqlValue};
use super::streams::{STREAM, stream_from};
use super::{Snapshot, SnapshotError, class, create, schema, set_up, streams};
use crate::audience::{Action, AudienceId, Class, DestinationName, Key, MemberBuf};
use crate::disk;
use crate::event::Statement;
use crate::run::{Outcome, RunKind};
use crate::stream::{self, Stream};
use gathered::{Audience, Counted, Gathered, Run, Tallies};
use user_history::UserHistory;

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Somebody has changed a record, or made one up.
    #[error(
        "the records of run {run} do not agree on {what}\n\nhint: one of them is not as it was delivered; search the files for that run"
    )]
    Contradiction { run: String, what: &'static str },
    /// Their users would be known twice.
    #[error("the snapshot knows what was told to {} already", stream::list(.0))]
    KnownStreams(Vec<Stream>),
    /// What landed at one destination was named as what landed at another one.
    #[error(
        "the snapshot knows run {run} already, as one that told {stream}\n\nhint: a record does not tell its destination; name only folders of the destination that is asked for"
    )]
    KnownRun { run: String, stream: Box<Stream> },
    #[error(
        "the snapshot knows the {was} `{id}` by the key `{frozen}`, and what landed later is of the {now} `{id}` with the key `{key}`\n\nhint: move the snapshot away, make one from these records first, and add the others to it",
        was = was.noun(),
        now = now.noun()
    )]
    OtherKey {
        id: AudienceId,
        was: Class,
        frozen: Key,
        now: Class,
        key: Key,
    },
}

/// What a snapshot keeps that no record says.
#[derive(Debug, Default)]
pub struct Unsaid {
    pub names: HashMap<AudienceId, String>,
    /// Audiences that send a member again when an extra trait has changed: what was told of the traits is kept for those.
    pub refreshed: HashSet<AudienceId>,
    /// What the destination is called now.
    pub destination: Option<DestinationName>,
    /// The last run that the lock file names: numbers go on from it.
    pub last_run: i64,
}

/// What was restored.
#[derive(Debug)]
pub struct Rebuilt {
    /// In order of key.
    pub feeds: Vec<Restored>,
    /// Keys, each with one that its audience had before an earlier loss. What was delivered under that is not restored.
    pub former_keys: BTreeSet<(Key, Key)>,
}

/// One audience at one stream, as it was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub id: AudienceId,
    pub stream: Stream,
    pub key: Key,
    pub class: Class,
    pub members: u64,
    pub runs: u64,
    /// Without repeats.
    pub records: u64,
    /// Users who were members, and are none now.
    pub left: u64,
    /// The number of the feed.
    number: i64,
}

/// Takes in records, and makes a snapshot of them.
pub struct Rebuild {
    gathered: Gathered,
}

impl Rebuild {
    pub fn new() -> Result<Self, SnapshotError> {
        Ok(Self {
            gathered: Gathered::new()?,
        })
    }

    /// Takes a record that was delivered to this stream. In any order.
    pub fn push(&mut self, stream: &Stream, statement: &Statement<'_>) -> Result<(), RebuildError> {
        self.gathered.push(stream, statement)
    }

    /// Whether there is nothing to make a snapshot of.
    pub fn is_empty(&self) -> bool {
        self.gathered.audiences.is_empty()
    }

    /// Adds to a snapshot that knows nothing of these streams; all or nothing.
    pub fn add(
        mut self,
        snapshot: &mut Snapshot,
        unsaid: &Unsaid,
    ) -> Result<Rebuilt, RebuildError> {
        let transaction = snapshot.begin()?;
        let rebuilt = self.fill(&transaction, unsaid)?;
        transaction.commit().map_err(SnapshotError::from)?;
        Ok(rebuilt)
    }

    /// Makes a snapshot. Whoever calls this holds the lock, and has seen that nothing is in the way.
    pub fn write(mut self, path: &Path, unsaid: &Unsaid) -> Result<Rebuilt, RebuildError> {
        // The file that a link leads to is made, and the link stays.
        let path = disk::target(path);
        let temporary = beside(&path);
        // One that a crash has left.
        remove(&temporary).map_err(SnapshotError::Create)?;
        let rebuilt = self.fill_new(&temporary, unsaid);
        let placed = rebuilt.and_then(|rebuilt| {
            put(&temporary, &path).map_err(SnapshotError::Create)?;
            Ok(rebuilt)
        });
        if placed.is_err() {
            // What matters is the first error, and the next rebuild replaces it.
            drop(remove(&temporary));
        }
        placed
    }

    fn fill_new(&mut self, temporary: &Path, unsaid: &Unsaid) -> Result<Rebuilt, RebuildError> {
        let connection = open_new(temporary)?;
        let transaction = connection
            .unchecked_transaction()
            .map_err(SnapshotError::from)?;
        let rebuilt = self.fill(&transaction, unsaid)?;
        transaction.commit().map_err(SnapshotError::from)?;
        connection
            .close()
            .map_err(|(_, error)| SnapshotError::from(error))?;
        Ok(rebuilt)
    }

    fn fill(&mut self, connection: &Connection, unsaid: &Unsaid) -> Result<Rebuilt, RebuildError> {
        self.gathered
            .settle_keys(|latest| frozen(connection, latest))?;
        let known = with_feeds(connection, self.gathered.streams())?;
        if !known.is_empty() {
            return Err(RebuildError::KnownStreams(known));
        }
        self.gathered.place_runs(last_run(connection)?)?;
        must_be_new(connection, &self.gathered)?;
        let writer = Writer {
            gathered: &self.gathered,
            unsaid,
            connection,
        };
        let mut restored = writer.audiences()?;
        writer.members(&mut restored)?;
        writer.runs(&mut restored)?;
        connection
            .execute(
                "UPDATE life SET last_run = max(last_run, ?1)",
                [unsaid.last_run],
            )
            .map_err(SnapshotError::from)?;
        let mut feeds: Vec<_> = restored.into_values().collect();
        feeds.sort_by(|a, b| (&a.key, &a.stream).cmp(&(&b.key, &b.stream)));
        Ok(Rebuilt {
            feeds,
            former_keys: self.gathered.former_keys(),
        })
    }
}

impl Snapshot {
    /// Those of some streams that it knows something of.
    pub fn with_feeds(&self, streams: &[Stream]) -> Result<Vec<Stream>, SnapshotError> {
        with_feeds(&self.connection, streams)
    }
}

fn with_feeds<'s>(
    connection: &Connection,
    streams: impl IntoIterator<Item = &'s Stream>,
) -> Result<Vec<Stream>, SnapshotError> {
    let mut known = Vec::new();
    for stream in streams {
        let number = streams::find(connection, stream)?;
        let has_feed: bool = connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM feed WHERE stream = ?1)")?
            .query_row([number], |row| row.get(0))?;
        if has_feed {
            known.push(stream.clone());
        }
    }
    Ok(known)
}

/// The key by which a snapshot knows an audience. One that landed later is refused: the audience has it now.
fn frozen(
    connection: &Connection,
    latest: &Audience,
) -> Result<Option<(Key, Class)>, RebuildError> {
    let find = || {
        connection
            .prepare_cached(
                "SELECT key, class, (SELECT max(started_at) FROM run WHERE audience_id = audience.id)
                 FROM audience WHERE id = ?1",
            )?
            .query_row([latest.id.as_str()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?))
            })
            .optional()
    };
    let known: Option<(String, String, Option<i64>)> = find().map_err(SnapshotError::from)?;
    let Some((key, was, last_at)) = known else {
        return Ok(None);
    };
    let (key, was) = (Key::new(key), class(&was)?);
    let is_same = key == latest.key && was == latest.class;
    if !is_same && last_at.is_none_or(|last_at| last_at < latest.last_at.millis()) {
        return Err(RebuildError::OtherKey {
            id: latest.id.clone(),
            was,
            frozen: key,
            now: latest.class,
            key: latest.key.clone(),
        });
    }
    Ok(Some((key, was)))
}

fn last_run(connection: &Connection) -> Result<i64, SnapshotError> {
    let select = "SELECT last_run FROM life";
    Ok(connection.query_row(select, [], |row| row.get(0))?)
}

/// No run may be known already: it told one stream only.
fn must_be_new(connection: &Connection, gathered: &Gathered) -> Result<(), RebuildError> {
    let mut find = connection
        .prepare(&format!(
            "SELECT {STREAM} FROM run JOIN stream ON stream.number = run.stream WHERE run.id = ?1"
        ))
        .map_err(SnapshotError::from)?;
    gathered.each_run(|run| {
        let mut rows = find.query([&run.id]).map_err(SnapshotError::from)?;
        match rows.next().map_err(SnapshotError::from)? {
            None => Ok(()),
            Some(row) => Err(RebuildError::KnownRun {
                run: run.id,
                stream: Box::new(stream_from(row, 0)?),
            }),
        }
    })
}

/// What stands where a snapshot is to be: the file, or what SQLite has left beside one and would read into another.
pub fn in_the_way(path: &Path) -> Option<PathBuf> {
    let path = disk::target(path);
    let holds_something =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|file| file.is_dir() || file.len() > 0);
    with_endings(&path).into_iter().find(holds_something)
}

/// A file and those that SQLite keeps beside it.
fn with_endings(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-journal"].map(|ending| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        name.into()
    })
}

/// The name under which a snapshot grows.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".rebuild");
    path.with_file_name(name)
}

fn remove(temporary: &Path) -> io::Result<()> {
    for file in with_endings(temporary) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes an empty snapshot where none is, whole or not at all: a file that a full disk cut short would be in the way of
/// the next attempt.
pub(super) fn make_empty(path: &Path) -> Result<(), SnapshotError> {
    let temporary = beside(path);
    remove(&temporary).map_err(SnapshotError::Create)?;
    let made = open_new(&temporary).and_then(|connection| {
        connection.close().map_err(|(_, error)| error)?;
        put(&temporary, path).map_err(SnapshotError::Create)
    });
    if made.is_err() {
        // What matters is the first error, and the next attempt replaces it.
        drop(remove(&temporary));
    }
    made
}

/// A new file that nobody else knows of: it needs no journal, for it counts only once it is whole.
fn open_new(temporary: &Path) -> Result<Connection, SnapshotError> {
    create(temporary).map_err(SnapshotError::Create)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(temporary, flags)?;
    set_up(&connection)?;
    connection.pragma_update(None, "journal_mode", "off")?;
    connection.pragma_update(None, "synchronous", "off")?;
    schema::create(&mut connection)?;
    Ok(connection)
}

/// Moves the file into its place: first its bytes are on disk, then its name is.
fn put(temporary: &Path, path: &Path) -> io::Result<()> {
    File::open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    disk::sync_folder(disk::above(path))
}

/// Writes into the snapshot, by the numbers that audiences were found under.
struct Writer<'w> {
    gathered: &'w Gathered,
    unsaid: &'w Unsaid,
    connection: &'w Connection,
}

impl Writer<'_> {
    fn audiences(&self) -> Result<BTreeMap<usize, Restored>, SnapshotError> {
        let mut restored = BTreeMap::new();
        for (number, audience) in self.gathered.audiences.iter().enumerate() {
            if !self.gathered.is_current(number) {
                continue;
            }
            let name = self.unsaid.names.get(&audience.id);
            let audience_number: i64 = self.connection.query_row(
                "INSERT INTO audience (id, key, class, name) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET name = name RETURNING number",
                params![
                    audience.id.as_str(),
                    audience.key.as_str(),
                    audience.class.as_str(),
                    name.map_or(audience.key.as_str(), String::as_str)
                ],
                |row| row.get(0),
            )?;
            let stream = streams::number_of(self.connection, &audience.stream)?;
            self.connection.execute(
                "UPDATE stream SET has_accepted = 1 WHERE number = ?1",
                [stream],
            )?;
            let feed = self.connection.query_row(
                "INSERT INTO feed (audience, stream, destination, keeps_traits) VALUES (?1, ?2, ?3, ?4) RETURNING number",
                params![
                    audience_number,
                    stream,
                    self.destination(),
                    self.keeps_traits(&audience.id)
                ],
                |row| row.get(0),
            )?;
            restored.insert(
                number,
                Restored {
                    id: audience.id.clone(),
                    stream: audience.stream.clone(),
                    key: audience.key.clone(),
                    class: audience.class,
                    members: 0,
                    runs: 0,
                    records: 0,
                    left: 0,
                    number: feed,
                },
            );
        }
        Ok(restored)
    }

    fn keeps_traits(&self, audience: &AudienceId) -> bool {
        self.unsaid.refreshed.contains(audience)
    }

    fn destination(&self) -> &str {
        let name = self.unsaid.destination.as_ref();
        name.map_or("", DestinationName::as_str)
    }

    fn members(&self, restored: &mut BTreeMap<usize, Restored>) -> Result<(), RebuildError> {
        let mut insert = self
            .connection
            .prepare(
                "INSERT INTO member (feed, user, anonymous_id, value, since, traits_hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .map_err(SnapshotError::from)?;
        let mut tallies = Tallies::new(self.gathered);
        let mut current: Option<(usize, MemberBuf, UserHistory)> = None;
        let mut close = |(audience, user, history): &(usize, MemberBuf, UserHistory)| {
            let restored = restored
                .get_mut(audience)
                .expect("only current audiences have records");
            let Some(member) = history.member() else {
                restored.left += 1;
                return Ok(());
            };
            restored.members += 1;
            let inserted = insert.execute(params![
                restored.number,
                SqlUser(user.user()),
                member.anonymous_id,
                SqlValue(member.value.as_value()),
                member.since,
                member
                    .traits_hash
                    .filter(|_| self.keeps_traits(&restored.id))
            ]);
            inserted.map(|_| ()).map_err(SnapshotError::from)
        };
        self.gathered.each_record(|audience, user, record| {
            let is_same = |(same, known, _): &(usize, MemberBuf, UserHistory)| {
                *same == audience && known.user() == user
            };
            if !current.as_ref().is_some_and(is_same) {
                if let Some(ended) = &current {
                    close(ended)?;
                }
                let mut buffer = current
                    .take()
                    .map_or_else(MemberBuf::default, |(_, buffer, _)| buffer);
                buffer.kind = user.kind;
                buffer.id.clear();
                buffer.id.push_str(user.id);
                current = Some((audience, buffer, UserHistory::default()));
            }
            let (_, _, history) = current.as_mut().expect("it was just set");
            let run = record.run;
            match history.take(record) {
                Ok(Some(action)) => count(tallies.of(run)?, action),
                Ok(None) => {}
                Err(user_history::Contradiction) => {
                    return Err(RebuildError::Contradiction {
                        run: self.gathered.run_id(run)?,
                        what: "what they say about a user",
                    });
                }
            }
            Ok(())
        })?;
        if let Some(ended) = &current {
            close(ended)?;
        }
        for restored in restored.values() {
            let members = [restored.number, restored.members as i64];
            self.connection
                .execute("UPDATE feed SET members = ?2 WHERE number = ?1", members)
                .map_err(SnapshotError::from)?;
        }
        Ok(tallies.write()?)
    }

    fn runs(&self, restored: &mut BTreeMap<usize, Restored>) -> Result<(), SnapshotError> {
        let mut members: HashMap<usize, i64> = HashMap::new();
        let mut insert = self.connection.prepare(
            "INSERT INTO run (number, id, feed, audience_id, stream, destination, kind, started_at, at, finished_at, outcome,
                              members, added, removed, changed, planned, delivered)
             VALUES (?1, ?2, ?3, ?4, (SELECT stream FROM feed WHERE number = ?3), ?5, ?6, ?7, ?7, ?7, ?8, ?9, ?10, ?11, ?12,
                     ?13, ?13)",
        )?;
        let mut note_last = self.connection.prepare(
            "UPDATE life SET last_run = max(last_run, ?1), last_started_at = max(ifnull(last_started_at, ?2), ?2)",
        )?;
        self.gathered.each_run(|run| {
            let restored = restored
                .get_mut(&run.audience)
                .expect("only current audiences have runs with a place");
            let Counted {
                entered,
                changed,
                repeated,
                removed,
            } = run.counted;
            let records = entered + changed + repeated + removed;
            let members = members.entry(run.audience).or_default();
            *members = (*members + entered - removed).max(0);
            restored.runs += 1;
            restored.records += records as u64;
            insert.execute(params![
                run.number,
                run.id,
                restored.number,
                restored.id.as_str(),
                self.destination(),
                kind(&run, restored.runs == 1).as_str(),
                run.started_at,
                Outcome::Delivered.as_str(),
                *members,
                entered,
                removed,
                changed,
                records
            ])?;
            note_last.execute([run.number, run.started_at])?;
            Ok(())
        })
    }
}

/// Only a resync says what is known already.
fn kind(run: &Run, is_first: bool) -> RunKind {
    match run.counted.repeated {
        _ if is_first => RunKind::First,
        0 => RunKind::Delta,
        _ => RunKind::Resync,
    }
}

fn count(counted: &mut Counted, action: Action) {
    let counter = match action {
        Action::Enter => &mut counted.entered,
        Action::Change => &mut counted.changed,
        Action::Repeat => &mut counted.repeated,
        Action::Leave => &mut counted.removed,
    };
    *counter += 1;
}
