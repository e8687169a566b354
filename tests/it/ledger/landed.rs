//! What streams have accepted, as files: what a lost snapshot is made anew of.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

use super::STREAMS;
use crate::support::endpoint::Ledger;

pub(super) struct Landed {
    pub folder: PathBuf,
}

impl Landed {
    pub(super) fn new(folder: PathBuf) -> Self {
        fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    /// One file for each stream, by the name that Firehose would give it.
    pub(super) fn append(&self, arrived: &Ledger) {
        for stream in STREAMS {
            let records = arrived.accepted_by(stream);
            if records.is_empty() {
                continue;
            }
            let name = format!("{stream}-1-2026-11-23-10-00-00-0195f3c2");
            let mut options = OpenOptions::new();
            let mut file = options
                .create(true)
                .append(true)
                .open(self.folder.join(name))
                .unwrap();
            file.write_all(&records.concat()).unwrap();
        }
    }
}
