//! What `rebuild` and `verify` begin with: folders with what landed, and the streams it may have been for.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::audience::DestinationName;
use crate::cli::args::LandingArgs;
use crate::cli::output::{Output, count};
use crate::cli::{Refusal, progress, project, runtime, streams};
use crate::config::Config;
use crate::event::{Landed, Origins, Statement};
use crate::landed::{self, Found};
use crate::mapping::StreamName;
use crate::progress::Progress;
use crate::stream::{Place, Stream};
use crate::sync::Streams;

/// How many records are read between two looks at the clock.
const SHOW_EVERY: u64 = 4_096;

pub(super) struct Landing<'a> {
    folders: &'a [PathBuf],
    /// The destination whose place it is.
    pub destination: DestinationName,
    place: Place,
    /// Its streams that are asked for.
    pub streams: Vec<Stream>,
    pub only: Option<StreamName>,
}

/// Where a line was found, and what it is.
pub(super) struct Sorted<'f> {
    pub line: &'f str,
    pub whose: Whose<'f>,
}

pub(super) enum Whose<'f> {
    /// Delivered to a stream that is asked for.
    Ours(Statement<'f>, Stream),
    /// Of audience-sync, and delivered to none of the streams, as far as its id tells.
    Unknown(Statement<'f>),
    /// Delivered to a stream that is not asked for.
    Elsewhere,
    /// Not of audience-sync; by its message id.
    Foreign(Option<Cow<'f, str>>),
}

/// What was passed over.
#[derive(Default)]
pub(super) struct Passed {
    pub foreign: u64,
    pub elsewhere: u64,
    pub unknown: u64,
}

impl<'a> Landing<'a> {
    /// `remembered` are the streams that a snapshot knows, which may not be mapped any more.
    pub(super) fn new(
        config: &Config,
        args: &'a LandingArgs,
        remembered: &[Stream],
    ) -> anyhow::Result<Self> {
        for folder in &args.from {
            if let Err(error) = std::fs::read_dir(folder) {
                let message = format!("cannot read {}: {error}", folder.display());
                return Err(Refusal::usage(message).into());
            }
        }
        let destinations = project::destinations(config, args.destination.as_deref())?;
        let [destination] = &destinations[..] else {
            let names: Vec<_> = destinations.iter().map(DestinationName::as_str).collect();
            return Err(Refusal::usage(format!(
                "there are several destinations, and the records do not tell which one they were delivered to\n\n\
                 hint: add --destination with one of {}",
                names.join(", ")
            ))
            .into());
        };
        let places = streams::places(config)?;
        let streams = Streams::of(streams::configured(config, &places), remembered)
            .map_err(|error| Refusal::usage(error.to_string()))?;
        let own = streams.all().filter(|(name, _)| *name == destination);
        let mut streams: BTreeSet<Stream> = own.map(|(_, stream)| stream.clone()).collect();
        let place = match streams.first() {
            Some(stream) => stream.place.clone(),
            None => places[destination].clone(),
        };
        let same_place = remembered.iter().filter(|stream| stream.place == place);
        streams.extend(same_place.cloned());
        let only = only(args, &streams)?;
        Ok(Self {
            folders: &args.from,
            destination: destination.clone(),
            place,
            streams: streams.into_iter().collect(),
            only,
        })
    }

    /// Hands on every record, and shows how far it is.
    pub(super) fn read(
        &self,
        mut each: impl FnMut(Sorted<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let runtime = runtime()?;
        let _runtime = runtime.enter();
        let shown = Progress::default();
        let _bar = progress::show(shown.clone());
        let names = self.streams.iter().map(|stream| stream.name.clone());
        let mut origins = Origins::new(names);
        let mut read = 0;
        landed::read(self.folders, self.only.as_ref(), |found| {
            read += 1;
            if read % SHOW_EVERY == 0 {
                shown.landed(read);
            }
            let Found {
                stream,
                line,
                landed,
            } = found;
            let whose = match landed {
                Landed::Foreign(message_id) => Whose::Foreign(message_id),
                Landed::Ours(statement) => {
                    if let Some(stream) = stream {
                        // One that is not mapped any more is known by its files.
                        origins.add(stream);
                    }
                    self.sort(statement, &mut origins)
                }
            };
            each(Sorted { line, whose })
        })
    }

    fn sort<'f>(&self, statement: Statement<'f>, origins: &mut Origins) -> Whose<'f> {
        match origins.find(&statement) {
            None => Whose::Unknown(statement),
            Some(name) if self.only.as_ref().is_none_or(|only| only == name) => {
                let known = self.streams.iter().find(|stream| stream.name == *name);
                let stream = known.cloned().unwrap_or_else(|| Stream {
                    place: self.place.clone(),
                    name: name.clone(),
                });
                Whose::Ours(statement, stream)
            }
            Some(_) => Whose::Elsewhere,
        }
    }

    /// The streams that are asked for.
    pub(super) fn asked(&self) -> Vec<Stream> {
        let mut streams = self.streams.clone();
        streams.retain(|stream| self.only.as_ref().is_none_or(|only| *only == stream.name));
        streams
    }

    /// The folders, as they were named.
    pub(super) fn named(&self) -> String {
        let folders = self
            .folders
            .iter()
            .map(|folder| folder.display().to_string());
        folders.collect::<Vec<_>>().join(", ")
    }

    /// Tells what was passed over.
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
                "\npassed over {} records that were delivered to another stream",
                count(elsewhere)
            ));
        }
        if unknown > 0 {
            output.note(format_args!(
                "\npassed over {} records of audience-sync that were delivered to no stream of {}, or changed since",
                count(unknown),
                self.destination
            ));
        }
    }
}

/// The stream of the name that is asked for, where the mapping or the snapshot has it.
fn only(args: &LandingArgs, streams: &BTreeSet<Stream>) -> anyhow::Result<Option<StreamName>> {
    let Some(word) = &args.stream else {
        return Ok(None);
    };
    let mut names = streams.iter().map(|stream| &stream.name);
    match names.find(|name| name.as_str() == word) {
        Some(name) => Ok(Some(name.clone())),
        None => {
            let names: Vec<_> = streams.iter().map(|stream| stream.name.as_str()).collect();
            let message = format!(
                "no stream is called {word:?}\n\nhint: there are {}",
                names.join(", ")
            );
            Err(Refusal::usage(message).into())
        }
    }
}
