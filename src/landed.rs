//! What landed: the files of a directory destination, or objects of S3 that were copied to disk.
//!
//! Everything below the folders counts, so that nothing is decided from half: a file that is cut off, or that nobody
//! delivered, is an error that names it. Names that begin with a dot are passed over, for they are still being written.

mod name;
mod records;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use crate::event::Landed;
use crate::mapping::StreamName;

pub use name::stream_of;
pub use records::{Fault, Records};

/// Why what landed cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum LandedError {
    #[error("cannot read {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// A pipe would never end, and a link to a folder may lead in a circle.
    #[error(
        "{} is neither a file nor a folder\n\nhint: what was delivered is files; take it out of the folder",
        path.display()
    )]
    Neither { path: PathBuf },
    #[error(
        "{} holds no record\n\nhint: copy it again, or take it out of the folder if nobody delivered it",
        path.display()
    )]
    Empty { path: PathBuf },
    #[error(
        "line {line} of {}: {fault}\n\nhint: copy the file again, or take it out of the folder if nobody delivered it",
        path.display()
    )]
    Line {
        path: PathBuf,
        line: u64,
        fault: Fault,
    },
}

/// One line, where it was found.
pub struct Found<'f> {
    /// `None` where the name of the file does not tell.
    pub stream: Option<&'f StreamName>,
    /// Without its newline.
    pub line: &'f str,
    pub landed: Landed<'f>,
}

/// Hands on every record below the folders, file by file in the order of their names. With `only`, files that are
/// known to be of another stream are passed over.
pub fn read<E: From<LandedError>>(
    folders: &[PathBuf],
    only: Option<&StreamName>,
    mut each: impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for folder in folders {
        visit(folder, &mut |file| read_file(file, only, &mut each))?;
    }
    Ok(())
}

fn visit<E: From<LandedError>>(
    folder: &Path,
    each: &mut impl FnMut(&Path) -> Result<(), E>,
) -> Result<(), E> {
    for name in names(folder).map_err(|error| unreadable(folder, error))? {
        let path = folder.join(name);
        let kind = fs::symlink_metadata(&path).map_err(|error| unreadable(&path, error))?;
        if kind.is_dir() {
            visit(&path, each)?;
        } else if path.is_file() {
            each(&path)?;
        } else {
            return Err(LandedError::Neither { path }.into());
        }
    }
    Ok(())
}

/// The names in a folder, sorted, without those of files that are still being written.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name()));
    let mut names: Vec<OsString> = names.collect::<io::Result<_>>()?;
    names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
    names.sort();
    Ok(names)
}

fn read_file<E: From<LandedError>>(
    path: &Path,
    only: Option<&StreamName>,
    each: &mut impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let name = path.file_name().unwrap_or_default();
    let stream = stream_of(&name.to_string_lossy());
    if stream.is_some() && only.is_some() && stream.as_ref() != only {
        return Ok(());
    }
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    let records = Records::new(BufReader::with_capacity(1 << 16, file));
    let mut records = records.map_err(|error| unreadable(path, error))?;
    let mut is_empty = true;
    let fault = loop {
        match records.read() {
            Ok(Some((line, landed))) => each(Found {
                stream: stream.as_ref(),
                line,
                landed,
            })?,
            Ok(None) => break None,
            Err(fault) => break Some(fault),
        }
        is_empty = false;
    };
    let path = path.to_owned();
    match fault {
        Some(fault) => Err(LandedError::Line {
            path,
            line: records.line_number(),
            fault,
        }
        .into()),
        None if is_empty => Err(LandedError::Empty { path }.into()),
        None => Ok(()),
    }
}

fn unreadable(path: &Path, source: io::Error) -> LandedError {
    LandedError::Unreadable {
        path: path.to_owned(),
        source,
    }
}
