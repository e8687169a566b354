//! The configuration: `audience-sync.toml` and the schedules beside it, as typed values that can be relied on.
//!
//! Everything is checked here, once, so that whatever is wrong is said before anything is read or sent, with the file
//! and the line it stands on. No database is opened and no secret is read: a [`Config`] can be printed. What is not in
//! the contract is an unknown key, never ignored.

mod aws;
mod cron;
mod destination;
mod document;
mod error;
#[cfg(test)]
mod laws;
mod schedule;
mod secret;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use aws::{Aws, Quota, Region, RoleArn};
pub use cron::{Cron, CronError};
pub use destination::{Destination, DestinationKind};
pub use error::{ConfigError, Location};
pub use schedule::{Configured, Schedule};
pub use secret::{SecretRef, SecretSource};

use crate::audience::keys::{self, Column};
use crate::audience::{Audience, DestinationName, SourceName};
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::source::Source;
use document::{Document, Item, Table, shown};
use schedule::Known;

/// A project: everything that its files say.
#[derive(Debug, Clone)]
pub struct Config {
    /// `audience-sync.toml`, as given.
    pub path: PathBuf,
    /// Its directory. Every other path here is joined to it already.
    pub root: PathBuf,
    pub snapshot: PathBuf,
    pub space_id: Option<String>,
    /// How long delivered changes are kept to be explained.
    pub history: Duration,
    /// How long one command or tick may deliver; what is left then stays in the journal.
    pub deliver_for: Option<Duration>,
    /// Without what nobody may see.
    pub sources: BTreeMap<SourceName, Source>,
    /// Where that is, by option of a source.
    pub secrets: BTreeMap<SourceName, BTreeMap<String, SecretRef>>,
    /// At least one.
    pub destinations: BTreeMap<DestinationName, Destination>,
    /// By name of the file.
    pub schedules: Vec<Schedule>,
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let document = Document::read(path).map_err(|error| {
            let hint = "`audience-sync init` makes one, and `--config PATH` names another";
            if error.hint.is_none() && !path.exists() {
                error.hint(hint)
            } else {
                error
            }
        })?;
        let tree = document.parse()?;
        let table = document.root(&tree);
        table.only(&[
            "snapshot",
            "schedules",
            "space_id",
            "history",
            "deliver_for",
            "source",
            "destination",
        ])?;

        let root = Root::of(path);
        let snapshot = table
            .get("snapshot")
            .map_or(Ok(Path::new("snapshot.sqlite")), |item| item.path())?;
        let space_id = table
            .get("space_id")
            .map(|item| item.some_text())
            .transpose()?;
        let history = table
            .get("history")
            .map_or(Ok(DEFAULT_HISTORY), |item| read_duration(&item, "90d"))?;
        let deliver_for = table
            .get("deliver_for")
            .map(|item| {
                read_some_time(
                    &item,
                    "1h",
                    "leave it out to deliver for as long as it takes",
                )
            })
            .transpose()?;
        let (mut sources, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        for (name, item) in named(&table, "source")? {
            let read = source::read(name, &item, &root)?;
            sources.insert(SourceName::new(name), read.source);
            secrets.insert(SourceName::new(name), read.secrets);
        }
        let destinations: BTreeMap<_, _> = named(&table, "destination")?
            .into_iter()
            .map(|(name, item)| {
                Ok((
                    DestinationName::new(name),
                    Destination::read(name, &item, &root)?,
                ))
            })
            .collect::<Result<_, _>>()?;
        if destinations.is_empty() {
            return Err(table
                .error(format!("{} has no destination", path.display()))
                .hint("add [destination.main] and [destination.main.mapping]; `audience-sync init` shows how"));
        }
        let known = Known {
            sources: &sources,
            destinations: &destinations,
        };
        let schedules = load_schedules(&table, &root, known)?;
        for (name, item) in named(&table, "source")? {
            let audiences = schedules.iter().flat_map(|schedule| &schedule.audiences);
            source::must_be_columns_of(name, &item, audiences.map(|it| &it.audience))?;
        }
        Ok(Self {
            path: path.to_owned(),
            snapshot: root.join(snapshot),
            space_id: space_id.map(str::to_owned),
            history,
            deliver_for,
            root: root.0,
            sources,
            secrets,
            destinations,
            schedules,
        })
    }

    /// Every audience and computed trait of every schedule.
    pub fn audiences(&self) -> impl Iterator<Item = &Configured> {
        self.schedules
            .iter()
            .flat_map(|schedule| &schedule.audiences)
    }

    /// The streams that an audience reaches, each by its name and that of its destination.
    pub fn streams_of(&self, audience: &Audience) -> Vec<(DestinationName, StreamName)> {
        streams_of(&self.destinations, audience)
    }
}

fn streams_of(
    destinations: &BTreeMap<DestinationName, Destination>,
    audience: &Audience,
) -> Vec<(DestinationName, StreamName)> {
    let names = audience.destinations.iter();
    let streams = names.flat_map(|name| {
        let mapping = &destinations[name].mapping;
        let streams = mapping.streams(CallType::Identify, None).into_iter();
        streams.map(|stream| (name.clone(), stream))
    });
    streams.collect()
}

const DEFAULT_HISTORY: Duration = Duration::from_secs(90 * 24 * 60 * 60);

fn read_duration(item: &Item<'_>, example: &str) -> Result<Duration, ConfigError> {
    let text = item.text()?;
    humantime::parse_duration(text).map_err(|_| {
        item.error(format!("is not a length of time: `{}`", shown(text)))
            .hint(format!("write it like \"{example}\" or \"12h\""))
    })
}

fn read_some_time(item: &Item<'_>, example: &str, way_out: &str) -> Result<Duration, ConfigError> {
    let time = read_duration(item, example)?;
    if time.is_zero() {
        return Err(item
            .error("must be longer than no time at all")
            .hint(way_out));
    }
    Ok(time)
}

/// The directory that relative paths start from.
struct Root(PathBuf);

impl Root {
    fn of(file: &Path) -> Self {
        let parent = file
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        Self(parent.unwrap_or(Path::new(".")).to_owned())
    }

    /// Paths in the working directory stay as they are written, since people read them.
    fn join(&self, path: &Path) -> PathBuf {
        if self.0 == Path::new(".") {
            path.to_owned()
        } else {
            self.0.join(path)
        }
    }
}

/// The tables under `[kind.NAME]`, by name.
fn named<'a>(table: &Table<'a>, kind: &str) -> Result<Vec<(&'a str, Item<'a>)>, ConfigError> {
    let Some(item) = table.get(kind) else {
        return Ok(Vec::new());
    };
    let named = item.table(format!("[{kind}]"))?.items();
    for (name, item) in &named {
        if name.trim().is_empty() {
            let nameless = ConfigError::new(format!("a {kind} has an empty name"));
            return Err(nameless
                .at(item.location())
                .hint(format!("write [{kind}.NAME]")));
        }
        if !item.value().is_table() {
            let problem = item.must_be("a table");
            return Err(problem.hint(format!(
                "settings stand under [{kind}.NAME], where the name is yours"
            )));
        }
    }
    Ok(named)
}

/// `[kind.name]`, as it would be written.
fn table_name(kind: &str, name: &str) -> String {
    let is_bare = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if is_bare {
        format!("[{kind}.{name}]")
    } else {
        format!("[{kind}.{name:?}]")
    }
}

fn load_schedules(
    table: &Table<'_>,
    root: &Root,
    known: Known<'_>,
) -> Result<Vec<Schedule>, ConfigError> {
    let item = table.get("schedules");
    let directory = match &item {
        Some(item) => item.path()?,
        None => Path::new("schedules"),
    };
    let directory = root.join(directory);
    let files = schedule::files(&directory).map_err(|error| {
        let shown = directory.display();
        let problem = ConfigError::new(match error.kind() {
            ErrorKind::NotFound => format!("there is no directory {shown} for the schedules"),
            ErrorKind::NotADirectory => format!("{shown} is not a directory, as the schedules need"),
            _ => format!("failed to read the directory {shown}: {error}"),
        })
        .hint("make the directory and put a file for each schedule there, or set schedules = \"PATH\"");
        item.as_ref().map(Item::location).into_iter().fold(problem, ConfigError::at)
    })?;
    let schedules = files
        .into_iter()
        .map(|path| Schedule::load(path, known))
        .collect::<Result<Vec<_>, _>>()?;
    must_differ(schedules.iter().flat_map(|schedule| &schedule.audiences))?;
    must_be_columns_of_their_own(&schedules, known)?;
    Ok(schedules)
}

/// Refuses two audiences with one key or one id: downstream, or in the snapshot, they would be the same.
fn must_differ<'a>(audiences: impl Iterator<Item = &'a Configured>) -> Result<(), ConfigError> {
    let mut seen = HashMap::new();
    for second in audiences {
        let audience = &second.audience;
        for (word, value) in [("key", audience.key.as_str()), ("id", audience.id.as_str())] {
            let Some(first) = seen.insert((word, value), second) else {
                continue;
            };
            let name = |configured: &Configured| shown(&configured.audience.name).to_string();
            return Err(ConfigError::new(format!(
                "`{}` has the same {word} as `{}`: `{}`, which stands at {}",
                name(second),
                name(first),
                shown(value),
                first.at
            ))
            .at(second.at.clone())
            .hint(format!("give one of them another `{word}`")));
        }
    }
    Ok(())
}

/// Refuses keys and traits that would be one column of a stream.
fn must_be_columns_of_their_own(
    schedules: &[Schedule],
    known: Known<'_>,
) -> Result<(), ConfigError> {
    let configured = || schedules.iter().flat_map(|schedule| &schedule.audiences);
    let named = configured().map(|it| (&it.audience, &it.audience.key));
    let found = keys::one_column(named, |it| streams_of(known.destinations, it));
    let Some((first, second)) = found else {
        return Ok(());
    };
    let at = |column: Column<'_>| {
        configured()
            .find(|it| std::ptr::eq(&it.audience, column.audience))
            .map(|it| it.at.clone())
            .expect("it is one of these")
    };
    let name = |column: Column<'_>| shown(&column.audience.name).to_string();
    Err(ConfigError::new(format!(
        "the {second} of `{}` and the {first} of `{}`, which stands at {}, are one column downstream",
        name(second),
        name(first),
        at(first)
    ))
    .at(at(second))
    .hint(keys::DIFFER))
}
