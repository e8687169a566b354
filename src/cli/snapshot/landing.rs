//! What `rebuild` and `verify` begin with: folders with what landed, and the destinations it may have been for.

use std::path::PathBuf;

use crate::audience::DestinationName;
use crate::cli::args::LandingArgs;
use crate::cli::output::{Output, count};
use crate::cli::{Refusal, progress, project, runtime};
use crate::config::Config;
use crate::event::{Landed, Origins, Statement};
use crate::landed::{self, Found};
use crate::mapping::StreamName;
use crate::progress::Progress;

/// How many records are read between two looks at the clock.
const SHOW_EVERY: u64 = 4_096;

pub(super) struct Landing<'a> {
    folders: &'a [PathBuf],
    /// Those that are asked for.
    pub destinations: Vec<DestinationName>,
    all: Vec<DestinationName>,
}

/// Where a statement was found, and whose it is.
pub(super) struct Sorted<'f> {
    pub stream: Option<&'f StreamName>,
    pub line: &'f str,
    pub whose: Whose<'f>,
}

pub(super) enum Whose<'f> {
    /// Delivered to a destination that is asked for.
    Ours(Statement<'f>, &'f DestinationName),
    /// Of audience-sync, and delivered to none of the destinations that there are, as far as its id tells.
    Unknown(Statement<'f>),
    /// Delivered to a destination that is not asked for.
    Elsewhere,
    /// Of somebody else, by its message id.
    Foreign(Option<std::borrow::Cow<'f, str>>),
}

/// What was passed over.
#[derive(Default)]
pub(super) struct Passed {
    pub foreign: u64,
    pub elsewhere: u64,
    pub unknown: u64,
}

impl<'a> Landing<'a> {
    pub(super) fn new(config: &Config, args: &'a LandingArgs) -> anyhow::Result<Self> {
        for folder in &args.from {
            if let Err(error) = std::fs::read_dir(folder) {
                let message = format!("cannot read {}: {error}", folder.display());
                return Err(Refusal::usage(message).into());
            }
        }
        Ok(Self {
            folders: &args.from,
            destinations: project::destinations(config, args.destination.as_deref())?,
            all: config.destinations.keys().cloned().collect(),
        })
    }

    /// Hands on every record, and shows how far it is.
    pub(super) fn read(
        &self,
        only: Option<&StreamName>,
        mut each: impl FnMut(Sorted<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let runtime = runtime()?;
        let _runtime = runtime.enter();
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let mut origins = Origins::new(self.all.iter().cloned());
        let mut read = 0;
        landed::read(self.folders, only, |found| {
            read += 1;
            if read % SHOW_EVERY == 0 {
                shown.landed(read);
            }
            let Found {
                stream,
                line,
                landed,
            } = found;
            let mut each = |whose: Whose<'_>| {
                each(Sorted {
                    stream,
                    line,
                    whose,
                })
            };
            match landed {
                Landed::Foreign(message_id) => each(Whose::Foreign(message_id)),
                Landed::Ours(statement) => each(self.sort(statement, &mut origins)),
            }
        })
    }

    fn sort<'f>(&self, statement: Statement<'f>, origins: &'f mut Origins) -> Whose<'f> {
        match origins.find(&statement) {
            None => Whose::Unknown(statement),
            Some(name) if self.destinations.contains(name) => Whose::Ours(statement, name),
            Some(_) => Whose::Elsewhere,
        }
    }

    /// The folders, as they were named.
    pub(super) fn named(&self) -> String {
        let folders = self
            .folders
            .iter()
            .map(|folder| folder.display().to_string());
        folders.collect::<Vec<_>>().join(", ")
    }

    /// Says what was passed over.
    pub(super) fn explain(&self, output: &Output, passed: &Passed) {
        let Passed {
            foreign,
            elsewhere,
            unknown,
        } = *passed;
        if foreign > 0 {
            output.note(format_args!(
                "\npassed over {} records that are not of audience-sync",
                count(foreign)
            ));
        }
        if elsewhere > 0 {
            output.note(format_args!(
                "\npassed over {} records that were delivered to another destination than {}",
                count(elsewhere),
                self.destinations[0]
            ));
        }
        if unknown > 0 {
            output.note(format_args!(
                "\npassed over {} records of audience-sync that were delivered to no destination of this project, or changed since",
                count(unknown)
            ));
        }
    }
}
