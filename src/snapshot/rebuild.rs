//! A lost snapshot, made anew from the records that were delivered: they are its backup.
//!
//! What landed is gathered in a temporary database, sorted there by user and time, and told user by user, so memory
//! does not grow with it. The new file is written beside its place and moved into it whole: a crash leaves none or all.

mod gathered;
mod story;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use super::journal::json;
use super::members::{SqlUser, SqlValue};
use super::{SnapshotError, create, schema, set_up};
use crate::audience::{Action, AudienceId, Class, DestinationName, Key, MemberBuf, User};
use crate::disk;
use crate::event::Statement;
use crate::mapping::StreamName;
use crate::run::{Outcome, RunKind};
use gathered::{Deeds, Gathered, Run, Tallies};
use story::Story;

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Somebody has changed a record, or made one up.
    #[error(
        "the records of run {run} do not agree on {what}\n\nhint: one of them is not as it was delivered; search the files for that run"
    )]
    Contradiction { run: String, what: &'static str },
}

/// What a snapshot keeps that no record says.
#[derive(Debug, Default)]
pub struct Unsaid {
    pub names: HashMap<AudienceId, String>,
    /// Where identifies go now.
    pub streams: BTreeMap<DestinationName, Vec<StreamName>>,
}

/// One audience at one destination, as it was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub id: AudienceId,
    pub destination: DestinationName,
    pub key: Key,
    pub class: Class,
    pub members: u64,
    pub runs: u64,
    /// Without repeats, and once for all streams.
    pub records: u64,
    /// Users who were members, and are none now.
    pub left: u64,
    /// Users of whom some stream lacks the last record.
    pub disagreeing: u64,
    /// Streams of the mapping in which nothing of it has landed.
    pub silent: Vec<StreamName>,
    /// Keys that it had before an earlier loss. What was delivered under them is not restored.
    pub former_keys: Vec<Key>,
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

    /// Takes a record that was delivered to this destination, and landed in a stream if that is known. In any order.
    pub fn push(
        &mut self,
        destination: &DestinationName,
        stream: Option<&StreamName>,
        statement: &Statement<'_>,
    ) -> Result<(), RebuildError> {
        self.gathered.push(destination, stream, statement)
    }

    /// Whether there is nothing to make a snapshot of.
    pub fn is_empty(&self) -> bool {
        self.gathered.audiences.is_empty()
    }

    /// Writes the snapshot, in order of key. Whoever calls this holds the lock, and has seen that nothing is in the way.
    pub fn write(self, path: &Path, unsaid: &Unsaid) -> Result<Vec<Restored>, RebuildError> {
        // The file that a link leads to is made, and the link stays.
        let path = disk::target(path);
        let temporary = beside(&path);
        // One that a crash has left.
        remove(&temporary).map_err(SnapshotError::Create)?;
        let restored = self.fill(&temporary, unsaid);
        let placed = restored.and_then(|restored| {
            put(&temporary, &path).map_err(SnapshotError::Create)?;
            Ok(restored)
        });
        if placed.is_err() {
            // What matters is the first error, and the next rebuild replaces it.
            drop(remove(&temporary));
        }
        placed
    }

    fn fill(&self, temporary: &Path, unsaid: &Unsaid) -> Result<Vec<Restored>, RebuildError> {
        let connection = open_new(temporary)?;
        let transaction = connection
            .unchecked_transaction()
            .map_err(SnapshotError::from)?;
        self.gathered.place_runs()?;
        let writer = Writer {
            gathered: &self.gathered,
            unsaid,
            connection: &transaction,
        };
        let mut restored = writer.audiences()?;
        writer.members(&mut restored)?;
        writer.runs(&mut restored)?;
        transaction.commit().map_err(SnapshotError::from)?;
        connection
            .close()
            .map_err(|(_, error)| SnapshotError::from(error))?;
        let mut restored: Vec<_> = restored.into_values().collect();
        restored.sort_by(|a, b| (&a.key, &a.destination).cmp(&(&b.key, &b.destination)));
        Ok(restored)
    }
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

/// A new file that nobody else knows of: it needs no journal, for it counts only once it is whole.
fn open_new(temporary: &Path) -> Result<Connection, SnapshotError> {
    create(temporary).map_err(SnapshotError::Create)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(temporary, flags)?;
    set_up(&connection)?;
    connection.pragma_update(None, "journal_mode", "off")?;
    connection.pragma_update(None, "synchronous", "off")?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

/// Moves the file into its place: first its bytes are on disk, then its name is.
fn put(temporary: &Path, path: &Path) -> io::Result<()> {
    File::open(temporary)?.sync_all()?;
    fs::rename(temporary, path)?;
    disk::sync_folder(disk::above(path))
}

/// Writes into the new file, by the numbers that audiences were found under.
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
            self.connection.execute(
                "INSERT INTO audience (number, id, destination, key, class, name) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    number as i64 + 1,
                    audience.id.as_str(),
                    audience.destination.as_str(),
                    audience.key.as_str(),
                    audience.class.as_str(),
                    name.map_or(audience.key.as_str(), String::as_str)
                ],
            )?;
            let silent = |stream: &&StreamName| {
                let number = self.number_of(stream);
                number.is_none_or(|number| !audience.streams.contains(&number))
            };
            let mapped = self.mapped(&audience.destination);
            // Where no file tells its stream, neither can be said to lack anything.
            let told = !audience.streams.is_empty();
            restored.insert(
                number,
                Restored {
                    id: audience.id.clone(),
                    destination: audience.destination.clone(),
                    key: audience.key.clone(),
                    class: audience.class,
                    members: 0,
                    runs: 0,
                    records: 0,
                    left: 0,
                    disagreeing: 0,
                    silent: mapped
                        .iter()
                        .filter(|_| told)
                        .filter(silent)
                        .cloned()
                        .collect(),
                    former_keys: self.gathered.former_keys(number),
                },
            );
        }
        Ok(restored)
    }

    fn members(&self, restored: &mut BTreeMap<usize, Restored>) -> Result<(), RebuildError> {
        let mut insert = self
            .connection
            .prepare("INSERT INTO member (audience, user, anonymous_id, value, since) VALUES (?1, ?2, ?3, ?4, ?5)")
            .map_err(SnapshotError::from)?;
        let mut tallies = Tallies::new(self.gathered);
        let mut current: Option<(usize, MemberBuf, Story)> = None;
        let mut close = |(audience, user, story): &(usize, MemberBuf, Story)| {
            let restored = restored
                .get_mut(audience)
                .expect("only current audiences have records");
            restored.disagreeing += u64::from(story.disagrees());
            let Some(member) = story.member() else {
                restored.left += 1;
                return Ok(());
            };
            restored.members += 1;
            let inserted = insert.execute(params![
                *audience as i64 + 1,
                SqlUser(user.user()),
                member.anonymous_id,
                SqlValue(member.value.as_value()),
                member.since
            ]);
            inserted.map(|_| ()).map_err(SnapshotError::from)
        };
        self.gathered.each_record(|audience, user, told| {
            let story = match &mut current {
                Some((same, known, story)) if *same == audience && known.user() == user => story,
                _ => {
                    let ended = current.take();
                    if let Some(ended) = &ended {
                        close(ended)?;
                    }
                    let next = self.next(ended, audience, user);
                    &mut current.insert(next).2
                }
            };
            let run = told.run;
            match story.tell(told) {
                Ok(Some(action)) => count(tallies.of(run)?, action),
                Ok(None) => {}
                Err(story::Contradiction) => {
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
        for (number, restored) in restored.iter() {
            let members = [*number as i64 + 1, restored.members as i64];
            self.connection
                .execute(
                    "UPDATE audience SET members = ?2 WHERE number = ?1",
                    members,
                )
                .map_err(SnapshotError::from)?;
        }
        Ok(tallies.write()?)
    }

    /// The story of the next user, in the place of one that has ended.
    fn next(
        &self,
        ended: Option<(usize, MemberBuf, Story)>,
        audience: usize,
        user: User<'_>,
    ) -> (usize, MemberBuf, Story) {
        let (mut buffer, story) = match ended {
            Some((same, buffer, story)) if same == audience => (buffer, Some(story)),
            Some((_, buffer, _)) => (buffer, None),
            None => (MemberBuf::default(), None),
        };
        buffer.kind = user.kind;
        buffer.id.clear();
        buffer.id.push_str(user.id);
        let mut story = story.unwrap_or_else(|| Story::new(self.must_agree(audience)));
        story.begin();
        (audience, buffer, story)
    }

    /// The streams that must agree about an audience: those of the mapping in which something of it has landed.
    fn must_agree(&self, audience: usize) -> Vec<usize> {
        let audience = &self.gathered.audiences[audience];
        let mapped = self.mapped(&audience.destination);
        let mapped = mapped.iter().filter_map(|stream| self.number_of(stream));
        mapped
            .filter(|stream| audience.streams.contains(stream))
            .collect()
    }

    fn mapped(&self, destination: &DestinationName) -> &[StreamName] {
        let streams = self.unsaid.streams.get(destination);
        streams.map_or(&[], Vec::as_slice)
    }

    fn number_of(&self, stream: &StreamName) -> Option<usize> {
        self.gathered
            .streams
            .iter()
            .position(|known| known == stream)
    }

    fn runs(&self, restored: &mut BTreeMap<usize, Restored>) -> Result<(), SnapshotError> {
        let mut members: HashMap<usize, i64> = HashMap::new();
        let mut insert = self.connection.prepare(
            "INSERT INTO run (number, id, audience, audience_id, destination, kind, started_at, finished_at, outcome, streams,
                              members, added, removed, changed, planned, delivered)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14)",
        )?;
        self.gathered.each_run(|run| {
            let restored = restored
                .get_mut(&run.audience)
                .expect("only current audiences have runs with a place");
            let Deeds {
                entered,
                changed,
                repeated,
                removed,
            } = run.deeds;
            let records = entered + changed + repeated + removed;
            let members = members.entry(run.audience).or_default();
            *members = (*members + entered - removed).max(0);
            restored.runs += 1;
            restored.records += records as u64;
            insert.execute(params![
                run.number,
                run.id,
                run.audience as i64 + 1,
                restored.id.as_str(),
                restored.destination.as_str(),
                kind(&run, restored.runs == 1).as_str(),
                run.started_at,
                Outcome::Delivered.as_str(),
                json(&self.streams_of(&run, &restored.destination)),
                *members,
                entered,
                removed,
                changed,
                records
            ])?;
            Ok(())
        })
    }

    /// Where a run was delivered to: where it landed, as far as the files tell.
    fn streams_of(&self, run: &Run, destination: &DestinationName) -> Vec<StreamName> {
        if run.streams.is_empty() {
            return self.mapped(destination).to_vec();
        }
        let name = |number: &usize| self.gathered.streams[*number].clone();
        run.streams.iter().map(name).collect()
    }
}

/// Only a resync says what is known already.
fn kind(run: &Run, is_first: bool) -> RunKind {
    match run.deeds.repeated {
        _ if is_first => RunKind::First,
        0 => RunKind::Delta,
        _ => RunKind::Resync,
    }
}

fn count(deeds: &mut Deeds, action: Action) {
    let counter = match action {
        Action::Enter => &mut deeds.entered,
        Action::Change => &mut deeds.changed,
        Action::Repeat => &mut deeds.repeated,
        Action::Leave => &mut deeds.removed,
    };
    *counter += 1;
}
