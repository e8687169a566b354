//! Members from files: one, or all that a pattern fits, one after another.
//!
//! They come in any order and are sorted on disk. What changes while it is read, or ends inside a row, decides nothing. That
//! goes for all of them together, too: half of one export and half of the next are none.

mod listing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use super::peek::{Look, Order};
use super::rows::{BUFFER, Dialect, Format, Problem, Taker, columns_of};
use super::stamp::Stamp;
use super::{Doubt, Fingerprint, Interrupt, SourceError, UseMembers, digest};
use crate::audience::{Audience, SourceName};
use crate::causes::printable;
use crate::run::Timestamp;
use listing::{WILDCARDS, explained, is_plain};

pub(crate) use listing::{BadPattern, check as check_pattern};

/// Files of one format, only ever read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub name: SourceName,
    /// The folder that a relative pattern starts from.
    pub root: PathBuf,
    /// A path, in which `*`, `?` and `[...]` stand for any that fit.
    pub pattern: PathBuf,
    /// `None` where each file's ending says it.
    pub format: Option<Format>,
    pub dialect: Dialect,
    /// By column of the result: the column of the files that is it.
    pub columns: BTreeMap<String, String>,
}

/// A file as it was seen, before a row of it is read and after.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Where the system tells.
    stamp: Option<Stamp>,
}

impl State {
    fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            stamp: Stamp::of(metadata),
        }
    }
}

/// How rows become members. Another number makes all files be read again.
const READS_ROWS_AS: &[u8] = b"1";

impl Files {
    /// Sees whether there are files. None is opened.
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        self.see(audience)?;
        Ok(())
    }

    pub(super) fn definition(&self, audience: &Audience) -> String {
        let pattern = self.root.join(self.pattern_of(audience));
        let pattern = std::path::absolute(&pattern).unwrap_or(pattern);
        let columns = columns_of(&self.columns, audience);
        let texts = [
            READS_ROWS_AS.to_vec(),
            self.name.as_str().into(),
            pattern.as_os_str().as_encoded_bytes().to_vec(),
            format!("{:?} {:?}", self.format, self.dialect).into_bytes(),
            audience.class.as_str().into(),
            format!("{columns:?}").into_bytes(),
        ];
        let traits = audience.traits.iter().map(|name| name.as_bytes().to_vec());
        digest(texts.into_iter().chain(traits))
    }

    pub(super) fn fingerprint(&self, audience: &Audience) -> Result<Fingerprint, Doubt> {
        fingerprint_of(&self.see(audience).map_err(|_| Doubt::Unseen)?)
    }

    pub(super) fn ask(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<(), SourceError> {
        let before = self.see(audience)?;
        // Before anything is read: what is young then may have been written to since, with no other time.
        let read_from = fingerprint_of(&before).ok();
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt);
        for seen in &before {
            if let Some(odd) = self.read(seen, &mut taker)? {
                tracing::warn!("source `{}`: {}: {odd}", self.name, shown(&seen.path));
            }
        }
        self.must_be_as(&before, audience)?;
        use_members(&mut taker.finish(|| read_from.clone())?)?;
        Ok(())
    }

    /// Looks at the first rows of each file.
    pub(super) fn peek(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        look: &mut Look,
    ) -> Result<(), SourceError> {
        let seen = self.see(audience)?;
        look.has_parts(seen.len());
        look.comes(Order::Here);
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt).looking(look);
        for seen in &seen {
            if !taker.begin(shown(&seen.path), &self.written_as(&seen.path)) {
                break;
            }
            self.read(seen, &mut taker)?;
        }
        Ok(())
    }

    /// Such as `csv, gzip`.
    fn written_as(&self, path: &Path) -> String {
        let Some((format, compression)) = self.format_of(path) else {
            return "unknown format".to_owned();
        };
        match compression {
            Compression::None => format.name().to_owned(),
            Compression::Gzip => format!("{}, gzip", format.name()),
            Compression::Zstandard => format!("{}, zstd", format.name()),
        }
    }

    /// The newest of the files tells: an export may come in parts that stay as they are.
    pub(super) fn updated_at(&self, audience: &Audience) -> Result<Timestamp, SourceError> {
        let seen = self.see(audience)?;
        let modified = seen.iter().filter_map(|seen| seen.state.modified);
        let newest = modified.max().unwrap_or(SystemTime::UNIX_EPOCH);
        let since = newest
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(Timestamp::from_millis(
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        ))
    }

    /// Where the members of an audience are, from the root.
    fn pattern_of(&self, audience: &Audience) -> PathBuf {
        let Some(own) = &audience.files else {
            return self.pattern.clone();
        };
        self.folder().join(own)
    }

    /// All files that fit, in the order of their names. None at all is an export that is missing, and not an empty one.
    fn see(&self, audience: &Audience) -> Result<Vec<Seen>, SourceError> {
        let pattern = self.pattern_of(audience);
        let found = listing::list(&self.root, &pattern);
        let found = found.map_err(|(path, problem)| self.broken(shown(&path), problem))?;
        if found.is_empty() {
            let pattern = shown(&self.root.join(&pattern));
            return Err(self.broken(pattern, "there is no such file".to_owned()));
        }
        let seen = |(path, metadata)| Seen {
            path,
            state: State::of(&metadata),
        };
        Ok(found.into_iter().map(seen).collect())
    }

    /// Sees whether all files are what they were, and no others.
    fn must_be_as(&self, before: &[Seen], audience: &Audience) -> Result<(), SourceError> {
        let now = self.see(audience)?;
        let mut place = 0;
        while before.get(place) == now.get(place) {
            if place == before.len() {
                return Ok(());
            }
            place += 1;
        }
        // One that has come or gone is before the one that is in its place.
        let differ = [before.get(place), now.get(place)].into_iter().flatten();
        let first = differ.map(|seen| &seen.path).min();
        Err(self.changed(first.unwrap_or(&self.root)))
    }

    fn changed(&self, path: &Path) -> SourceError {
        self.broken(shown(path), CHANGED.to_owned())
    }

    /// The folder in which the pattern begins to stand for several. Of one without wildcards, what has an ending is a file.
    fn folder(&self) -> PathBuf {
        let parts = self.pattern.components();
        let plain: PathBuf = parts.take_while(|part| is_plain(*part)).collect();
        match plain == self.pattern && plain.extension().is_some() {
            true => plain.parent().unwrap_or(Path::new("")).to_owned(),
            false => plain,
        }
    }

    /// Reads all rows of a file, and tells what is odd.
    fn read(&self, seen: &Seen, taker: &mut Taker<'_>) -> Result<Option<String>, SourceError> {
        let path = seen.path.as_path();
        let at = |row: u64| match row {
            0 => shown(path),
            row => format!("{}, row {row}", shown(path)),
        };
        let broken = |row: u64, problem: String| self.broken(at(row), problem);
        let (format, compression) = self.format_of(path).ok_or_else(|| {
            broken(
                0,
                format!("its ending names no format\n\nhint: {ADD_FORMAT}"),
            )
        })?;
        if format == Format::Parquet && compression != Compression::None {
            return Err(broken(0, COMPRESSED_TWICE.to_owned()));
        }
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.changed(path),
            _ => broken(0, explained(&error)),
        })?;
        taker.rows = 0;
        let read = match format {
            Format::Parquet => taker.read_parquet(&file),
            Format::Text(text) => file
                .try_clone()
                .and_then(|file| compression.open(file))
                .map_err(Problem::Io)
                .and_then(|mut input| taker.read(text, &self.dialect, &mut input)),
        };
        let read = read.and_then(|()| taker.end_of_objects());
        let is_stopped = matches!(read, Err(Problem::Stopped | Problem::Source(_)));
        let now = file
            .metadata()
            .map_err(|error| broken(0, explained(&error)))?;
        // Rather than what is wrong with a row that is half of one file and half of another.
        if !is_stopped && State::of(&now) != seen.state {
            return Err(self.changed(path));
        }
        read.or_else(|problem| {
            Err(match problem {
                Problem::Enough => return Ok(None),
                Problem::Source(error) => error,
                Problem::Stopped => SourceError::interrupted(&self.name),
                Problem::Here(problem) => broken(taker.rows, problem),
                Problem::Overall(problem) => broken(0, problem),
                Problem::Empty => broken(0, "the file is empty".to_owned()),
                Problem::CutOff => broken(taker.rows, ENDS_INSIDE_A_ROW.to_owned()),
                Problem::Io(error) => broken(taker.rows, unread(&error, compression)),
            })
        })
    }

    /// Whether an audience's files have an ending that is no format's, whatever else they are called.
    pub(crate) fn is_unreadable(&self, audience: &Audience) -> bool {
        let pattern = self.pattern_of(audience);
        let Some(name) = pattern.file_name() else {
            return false;
        };
        let name = name.to_string_lossy();
        let (name, _) = Compression::of(&name);
        let ending = name.rsplit('.').next().unwrap_or_default();
        self.format_of(&pattern).is_none() && !ending.contains(WILDCARDS)
    }

    fn format_of(&self, path: &Path) -> Option<(Format, Compression)> {
        let name = path.file_name()?.to_string_lossy();
        let (name, compression) = Compression::of(&name);
        let ending = name.rsplit_once('.');
        let format = ending.and_then(|(_, ending)| Format::parse(ending));
        Some((self.format.or(format)?, compression))
    }

    fn broken(&self, place: String, problem: String) -> SourceError {
        SourceError::broken(&self.name, place, problem)
    }
}

pub(crate) const ADD_FORMAT: &str =
    "add format = \"csv\", \"tsv\", \"jsonl\" or \"parquet\" to the source";

const COMPRESSED_TWICE: &str = "Parquet is read from its end, and cannot be unpacked on the way\n\n\
    hint: unpack it, or let its writer compress it inside, with zstd";

const ENDS_INSIDE_A_ROW: &str =
    "the file ends inside it\n\nhint: export it again; the last row ends with a newline, too";

const CHANGED: &str = "it changed, came or went while the source was read\n\n\
    hint: write exports under another name and rename them when they are whole; the next run reads all of them";

fn unread(error: &io::Error, compression: Compression) -> String {
    match (error.kind(), compression) {
        (io::ErrorKind::UnexpectedEof, _) => {
            "the file is cut off\n\nhint: export or copy it again".to_owned()
        }
        (_, Compression::None) => explained(error),
        _ => format!(
            "{error}\n\nhint: see whether it is what its ending says, and export or copy it again"
        ),
    }
}

/// A path as an error calls it.
fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy()).into_owned()
}

/// What files are, by their names and stamps, unless some have changed a moment ago.
fn fingerprint_of(seen: &[Seen]) -> Result<Fingerprint, Doubt> {
    let stamps: Option<Vec<&Stamp>> = seen.iter().map(|seen| seen.state.stamp.as_ref()).collect();
    let stamps = stamps.ok_or(Doubt::Unseen)?;
    let now = SystemTime::now();
    if !stamps.iter().all(|stamp| stamp.is_old(now)) {
        return Err(Doubt::Young);
    }
    let paths = seen.iter().map(|seen| seen.path.as_os_str());
    let paths = paths.map(|path| path.as_encoded_bytes().to_vec());
    let stamps = stamps.iter().map(|stamp| stamp.text().into_bytes());
    Ok(Fingerprint(digest(paths.chain(stamps))))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstandard,
}

impl Compression {
    /// By the ending of a name, and the name without it.
    fn of(name: &str) -> (&str, Self) {
        match name.rsplit_once('.') {
            Some((name, ending)) if ending.eq_ignore_ascii_case("gz") => (name, Self::Gzip),
            Some((name, ending)) if ending.eq_ignore_ascii_case("zst") => (name, Self::Zstandard),
            _ => (name, Self::None),
        }
    }

    /// What is compressed is checked to its end: one that is cut off does not read as a shorter one.
    fn open(self, file: File) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
            Self::Zstandard => Box::new(zstd::Decoder::new(file)?),
        })
    }
}
