//! Members from files: one, or all that a pattern fits, one after another.
//!
//! They come in any order and are sorted on disk. What changes while it is read, or ends inside a row, decides nothing.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;

use super::peek::{Look, Order};
use super::rows::{BUFFER, Dialect, Format, Problem, Taker, columns_of};
use super::stamp::Stamp;
use super::{Doubt, Fingerprint, Interrupt, SourceError, UseMembers, digest};
use crate::audience::{Audience, SourceName};
use crate::run::Timestamp;

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

/// How rows become members. Another number makes all files be read again.
const READS_ROWS_AS: &[u8] = b"1";

impl Files {
    /// Sees whether there are files, and whether the first rows of the first one can be members.
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        self.expand(audience)?;
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
        let paths = self.expand(audience).map_err(|_| Doubt::Unseen)?;
        let stamps: Option<Vec<Stamp>> = paths.iter().map(|path| stamp(path)).collect();
        let stamps = stamps.ok_or(Doubt::Unseen)?;
        let now = SystemTime::now();
        if !stamps.iter().all(|stamp| stamp.is_old(now)) {
            return Err(Doubt::Young);
        }
        let paths = paths
            .iter()
            .map(|path| path.as_os_str().as_encoded_bytes().to_vec());
        let stamps = stamps.iter().map(|stamp| stamp.text().into_bytes());
        Ok(Fingerprint(digest(paths.chain(stamps))))
    }

    pub(super) fn ask(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<(), SourceError> {
        // What they were before anything is read: somebody may write at any moment.
        let before = self.fingerprint(audience);
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt);
        for path in self.expand(audience)? {
            self.read(&path, &mut taker)?;
        }
        let mut members = taker.finish(|| {
            let before = before.as_ref().ok()?;
            let is_same = self.fingerprint(audience).as_ref() == Ok(before);
            is_same.then(|| before.clone())
        })?;
        use_members(&mut members)?;
        Ok(())
    }

    /// Looks at the first rows of each file.
    pub(super) fn peek(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        look: &mut Look,
    ) -> Result<(), SourceError> {
        let paths = self.expand(audience)?;
        look.has_parts(paths.len());
        look.comes(Order::Here);
        let columns = columns_of(&self.columns, audience);
        let mut taker = Taker::new(audience, &columns, interrupt).looking(look);
        for path in paths {
            if !taker.begin(path.display().to_string(), &self.written_as(&path)) {
                break;
            }
            self.read(&path, &mut taker)?;
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
        let paths = self.expand(audience)?;
        let modified = |path: &PathBuf| {
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            modified.map_err(|error| self.broken(path.display().to_string(), error.to_string()))
        };
        let newest = paths.iter().map(modified).collect::<Result<Vec<_>, _>>()?;
        let newest = newest.into_iter().max().unwrap_or(SystemTime::UNIX_EPOCH);
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
    fn expand(&self, audience: &Audience) -> Result<Vec<PathBuf>, SourceError> {
        let pattern = self.pattern_of(audience);
        let shown = self.root.join(&pattern).display().to_string();
        let broken = |problem: String| self.broken(shown.clone(), problem);
        let (Some(root), Some(text)) = (self.root.to_str(), pattern.to_str()) else {
            return Err(broken("the path is not UTF-8".to_owned()));
        };
        // Brackets in the root stand for themselves.
        let text = PathBuf::from(glob::Pattern::escape(root)).join(text);
        let paths =
            glob::glob(&text.to_string_lossy()).map_err(|error| broken(error.msg.to_owned()))?;
        let paths: Result<Vec<PathBuf>, _> = paths.collect();
        let mut paths = paths.map_err(|error| {
            self.broken(
                error.path().display().to_string(),
                error.error().to_string(),
            )
        })?;
        paths.retain(|path| !path.is_dir());
        if paths.is_empty() {
            return Err(broken("there is no such file".to_owned()));
        }
        Ok(paths)
    }

    /// The folder in which the pattern begins to stand for several.
    fn folder(&self) -> PathBuf {
        let is_plain = |part: &std::path::Component<'_>| {
            !part.as_os_str().to_string_lossy().contains(['*', '?', '['])
        };
        let parts = self.pattern.components();
        let plain: PathBuf = parts.take_while(|part| is_plain(part)).collect();
        match plain == self.pattern && !self.root.join(&plain).is_dir() {
            true => plain.parent().unwrap_or(Path::new("")).to_owned(),
            false => plain,
        }
    }

    fn read(&self, path: &Path, taker: &mut Taker<'_>) -> Result<(), SourceError> {
        let at = |row: u64| match row {
            0 => path.display().to_string(),
            row => format!("{}, row {row}", path.display()),
        };
        let broken = |row: u64, problem: String| self.broken(at(row), problem);
        let (format, compression) = self
            .format_of(path)
            .ok_or_else(|| broken(0, UNKNOWN_FORMAT.to_owned()))?;
        if format == Format::Parquet && compression != Compression::None {
            return Err(broken(0, COMPRESSED_TWICE.to_owned()));
        }
        // Whoever opens a pipe waits for a writer.
        if !path.is_file() {
            return Err(broken(0, "it is no file".to_owned()));
        }
        let file = File::open(path).map_err(|error| broken(0, error.to_string()))?;
        let written = |file: &File| {
            file.metadata()
                .ok()
                .map(|it| (it.len(), it.modified().ok()))
        };
        let before = written(&file);
        taker.rows = 0;
        let read = match format {
            Format::Parquet => taker.read_parquet(&file),
            Format::Text(text) => file
                .try_clone()
                .and_then(|file| compression.open(file))
                .map_err(Problem::Io)
                .and_then(|mut input| taker.read(text, &self.dialect, &mut input)),
        };
        read.or_else(|problem| {
            Err(match problem {
                Problem::Enough => return Ok(()),
                Problem::Source(error) => error,
                Problem::Stopped => SourceError::Interrupted {
                    source_name: self.name.clone(),
                },
                Problem::Here(problem) => broken(taker.rows, problem),
                Problem::Overall(problem) => broken(0, problem),
                Problem::Empty => broken(0, "the file is empty".to_owned()),
                Problem::CutOff => broken(taker.rows, ENDS_INSIDE_A_ROW.to_owned()),
                Problem::Io(error) => broken(taker.rows, unread(&error)),
            })
        })?;
        if written(&file) != before {
            let problem = "it changed while it was read\n\nhint: write exports under another name and rename them when they are whole";
            return Err(broken(0, problem.to_owned()));
        }
        Ok(())
    }

    fn format_of(&self, path: &Path) -> Option<(Format, Compression)> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let (name, compression) = match name.rsplit_once('.') {
            Some((name, "gz")) => (name, Compression::Gzip),
            Some((name, "zst")) => (name, Compression::Zstandard),
            _ => (&*name, Compression::None),
        };
        let ending = name
            .rsplit_once('.')
            .and_then(|(_, ending)| Format::parse(ending));
        Some((self.format.or(ending)?, compression))
    }

    fn broken(&self, place: String, problem: String) -> SourceError {
        SourceError::Broken {
            source_name: self.name.clone(),
            place,
            problem,
        }
    }
}

const UNKNOWN_FORMAT: &str = "its ending names no format\n\nhint: add format = \"csv\", \"tsv\", \"jsonl\" or \"parquet\" to the source";

const COMPRESSED_TWICE: &str = "Parquet is read from its end, and cannot be unpacked on the way\n\n\
    hint: unpack it, or let its writer compress it inside, with zstd";

const ENDS_INSIDE_A_ROW: &str =
    "the file ends inside it\n\nhint: export it again; the last row ends with a newline, too";

fn unread(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            "the file is cut off\n\nhint: export or copy it again".to_owned()
        }
        _ => error.to_string(),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    Stamp::of(&fs::metadata(path).ok()?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstandard,
}

impl Compression {
    /// What is compressed is checked to its end: one that is cut off does not read as a shorter one.
    fn open(self, file: File) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file))),
            Self::Zstandard => Box::new(zstd::Decoder::new(file)?),
        })
    }
}
