//! The embedded destination: the same bytes in files, laid out as Firehose lays them out in S3.
//!
//! A file is written beside its place and appears in it whole, already on disk. A reader never sees half of one, and
//! a crash leaves none behind that counts.

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Blocked, Cause, Failure, Meters, Receipt, Refusal};
use crate::batch::Record;
use crate::disk::{create_folder, private, sync_folder};
use crate::mapping::StreamName;

/// Files in a directory.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// Done once, before the first file.
    swept: Once,
}

/// Files that are being written. What a crash leaves here never counted as delivered.
const INCOMING: &str = ".incoming";

impl Directory {
    /// Nothing is created before the first record.
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            swept: Once::new(),
        }
    }

    pub(super) async fn put(
        &self,
        stream: &StreamName,
        records: &[Record],
        meters: &Meters,
    ) -> Receipt {
        meters.request(records);
        self.swept.call_once(|| sweep(&self.root.join(INCOMING)));
        let (root, stream, count) = (self.root.clone(), stream.clone(), records.len());
        let records = records.to_vec();
        let written =
            tokio::task::spawn_blocking(move || write(&root, &stream, &records, Utc::now())).await;
        match written.unwrap_or_else(|panic| Err(io::Error::other(panic).into())) {
            Ok(()) => Receipt::all(count),
            Err(WriteError { error, is_placed }) => Receipt::none(self.refusal(&error, is_placed)),
        }
    }

    fn refusal(&self, error: &io::Error, is_placed: bool) -> Refusal {
        let problem = format!("cannot write below {}: {error}", self.root.display());
        match error.kind() {
            // A reader may have seen it.
            _ if is_placed => Refusal::Failed(Failure {
                cause: Cause::Unanswered,
                code: String::new(),
                message: problem,
                is_maybe_accepted: true,
            }),
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::AlreadyExists => Refusal::Blocked(Blocked {
                problem,
                hint: None,
            }),
            _ => Refusal::Retry(problem),
        }
    }
}

/// A file that was not written.
#[derive(Debug)]
struct WriteError {
    error: io::Error,
    /// It is in its place all the same.
    is_placed: bool,
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self {
            error,
            is_placed: false,
        }
    }
}

/// Writes one file for one call: `<stream>/YYYY/MM/DD/HH/<stream>-<number>-<timestamp>-<uuid>`.
/// <https://docs.aws.amazon.com/firehose/latest/dev/s3-object-name.html>
fn write(
    root: &Path,
    stream: &StreamName,
    records: &[Record],
    now: DateTime<Utc>,
) -> Result<(), WriteError> {
    let folder = root
        .join(stream.as_str())
        .join(now.format("%Y/%m/%d/%H").to_string());
    let name = format!(
        "{stream}-1-{}-{}",
        now.format("%Y-%m-%d-%H-%M-%S"),
        Uuid::new_v4()
    );
    let incoming = root.join(INCOMING);
    // `..` is a name that AWS allows, and `.incoming` is ours.
    if stream.as_str().starts_with('.') {
        let problem = format!("the stream `{stream}` begins with a dot, which no folder here may");
        return Err(io::Error::new(ErrorKind::InvalidInput, problem).into());
    }
    create_folder(&folder)?;
    create_folder(&incoming)?;

    let temporary = incoming.join(&name);
    let mut file = private().write(true).create_new(true).open(&temporary)?;
    let all: Vec<u8> = records
        .iter()
        .flat_map(|record| record.data.iter().copied())
        .collect();
    let place = folder.join(&name);
    let placed = file
        .write_all(&all)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, &place))
        .and_then(|()| sync_folder(&folder));
    placed.map_err(|error| {
        // It may not exist any more; what matters is the first error.
        drop(fs::remove_file(&temporary));
        let is_placed = place.exists();
        WriteError { error, is_placed }
    })
}

/// Removes what crashes left half-written, unless it is so young that another program may be writing it.
fn sweep(incoming: &Path) {
    const OLD: Duration = Duration::from_secs(60 * 60);
    for entry in fs::read_dir(incoming).into_iter().flatten().flatten() {
        let age = entry
            .metadata()
            .and_then(|file| file.modified())
            .map(|at| at.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > OLD) {
            // It does not count as delivered, and can be removed the next time.
            drop(fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_file_lies_where_firehose_would_put_it() {
        let root = tempfile::tempdir().unwrap();
        let now = DateTime::from_timestamp(1_795_428_000, 0).unwrap();
        let record = |line: &'static str| Record {
            data: Bytes::from(line),
            lines: 0..1,
        };
        let stream = StreamName::parse("members").unwrap();
        write(root.path(), &stream, &[record("a\n"), record("b\n")], now).unwrap();

        let folder = root.path().join("members/2026/11/23/10");
        let files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        assert_eq!(files.len(), 1);
        assert_eq!(fs::read(&files[0]).unwrap(), b"a\nb\n");
        let name = files[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("members-1-2026-11-23-10-00-00-"), "{name}");
        assert_eq!(fs::read_dir(root.path().join(INCOMING)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stream_never_leads_out_of_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().join("delivered"));
        let record = Record {
            data: Bytes::from("a\n"),
            lines: 0..1,
        };
        for name in ["..", ".", ".incoming"] {
            let stream = StreamName::parse(name).unwrap();
            let receipt = directory
                .put(&stream, std::slice::from_ref(&record), &Meters::default())
                .await;
            assert!(
                matches!(receipt.refusal, Some(Refusal::Blocked(_))),
                "{name}: {receipt:?}"
            );
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_what_is_old_is_swept() {
        let incoming = tempfile::tempdir().unwrap();
        let (old, young) = (incoming.path().join("old"), incoming.path().join("young"));
        fs::write(&young, "half a li").unwrap();
        let file = fs::File::create(&old).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7_200))
            .unwrap();
        sweep(incoming.path());
        assert!(young.exists() && !old.exists());
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_delivered() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let record = Record {
            data: Bytes::from("a\n"),
            lines: 0..1,
        };
        let stream = StreamName::parse("members").unwrap();
        let receipt = Directory::new(file)
            .put(&stream, &[record], &Meters::default())
            .await;
        assert!(receipt.delivered.is_empty());
        assert!(
            matches!(receipt.refusal, Some(Refusal::Blocked(_))),
            "{:?}",
            receipt.refusal
        );
    }
}
