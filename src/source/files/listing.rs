//! Which files a pattern fits: folder by folder, and name by name.
//!
//! What expands patterns elsewhere takes what may not be looked at for what is not there, and the members of a file that
//! is only out of reach would look gone. Here nothing is left out but what is not there.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};

/// A file, as it is now.
pub(super) type Found = (PathBuf, Metadata);

/// What is in the way, and why, in words.
pub(super) type Unlisted = (PathBuf, String);

/// Why a pattern fits nothing at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPattern {
    #[error("`**` would stand for folders within folders, which are not looked through")]
    Recursive,
    #[error("{0}")]
    Syntax(&'static str),
}

pub(super) const WILDCARDS: [char; 3] = ['*', '?', '['];

/// A part of a path.
enum Part<'p> {
    /// Stands for itself.
    Plain(Component<'p>),
    /// Stands for all that fit.
    Any(Pattern),
}

/// A hidden name fits only what begins with a dot.
const AS_SHELLS_DO: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Sees whether a pattern is one.
pub(crate) fn check(pattern: &Path) -> Result<(), BadPattern> {
    parts(pattern).map(drop)
}

pub(super) fn is_plain(part: Component<'_>) -> bool {
    !part.as_os_str().to_string_lossy().contains(WILDCARDS)
}

fn parts(pattern: &Path) -> Result<Vec<Part<'_>>, BadPattern> {
    let parts = pattern.components().map(|part| {
        let text = part.as_os_str().to_string_lossy();
        if is_plain(part) {
            return Ok(Part::Plain(part));
        }
        if text.contains("**") {
            return Err(BadPattern::Recursive);
        }
        let pattern = Pattern::new(&text);
        pattern
            .map(Part::Any)
            .map_err(|error| BadPattern::Syntax(error.msg))
    });
    parts.collect()
}

/// All files that a pattern fits, in the order of their names. It starts from a folder whose own name is no pattern.
pub(super) fn list(root: &Path, pattern: &Path) -> Result<Vec<Found>, Unlisted> {
    let parts = parts(pattern).map_err(|bad| (root.join(pattern), bad.to_string()))?;
    let mut found = Vec::new();
    walk(root, &parts, &mut found)?;
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn walk(at: &Path, parts: &[Part<'_>], found: &mut Vec<Found>) -> Result<(), Unlisted> {
    let Some((part, rest)) = parts.split_first() else {
        return Ok(());
    };
    let paths = match part {
        Part::Plain(name) => vec![at.join(name)],
        Part::Any(pattern) => fitting(at, pattern).map_err(|error| in_the_way(at, &error))?,
    };
    for path in paths {
        let Some(metadata) = look(&path)? else {
            continue;
        };
        if !rest.is_empty() {
            if metadata.is_dir() {
                walk(&path, rest, found)?;
            }
        } else if metadata.is_file() {
            found.push((path, metadata));
        } else {
            let problem = if metadata.is_dir() { FOLDER } else { NO_FILE };
            return Err((path, problem.to_owned()));
        }
    }
    Ok(())
}

/// What is in a folder and fits. A name that is not UTF-8 fits as it is shown.
fn fitting(folder: &Path, pattern: &Pattern) -> io::Result<Vec<PathBuf>> {
    let here = Path::new(".");
    let mut paths = Vec::new();
    for entry in fs::read_dir(if folder.as_os_str().is_empty() {
        here
    } else {
        folder
    })? {
        let name = entry?.file_name();
        if pattern.matches_with(&name.to_string_lossy(), AS_SHELLS_DO) {
            paths.push(folder.join(name));
        }
    }
    Ok(paths)
}

/// `None` where there is nothing.
fn look(path: &Path) -> Result<Option<Metadata>, Unlisted> {
    let is_absent =
        |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if !is_absent(&error) => Err(in_the_way(path, &error)),
        Err(_) => match fs::symlink_metadata(path) {
            Ok(_) => Err((path.to_owned(), LEADS_NOWHERE.to_owned())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(in_the_way(path, &error)),
        },
    }
}

fn in_the_way(path: &Path, error: &io::Error) -> Unlisted {
    (path.to_owned(), explained(error))
}

/// With the way out where there is one.
pub(super) fn explained(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("{error}\n\nhint: let whoever runs audience-sync read it")
        }
        _ => error.to_string(),
    }
}

const FOLDER: &str = "it is a folder\n\nhint: to read the files in it, let the pattern go on: /*";
const NO_FILE: &str =
    "it is no file\n\nhint: what comes out of a pipe is read once it is in a file";
const LEADS_NOWHERE: &str =
    "it is a link to what is not there\n\nhint: let it lead to what is, or remove it";
