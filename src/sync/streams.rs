//! Which stream each destination's mapping means, by the places that the snapshot knows.

use std::collections::{BTreeMap, BTreeSet};

use super::{Feed, Keyed, Project, Request};
use crate::audience::DestinationName;
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::snapshot::FeedId;
use crate::stream::{Place, Stream, StreamError, resolve};

/// The streams of all mappings.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    by_label: BTreeMap<(DestinationName, StreamName), Stream>,
    /// Streams whose account the snapshot does not know yet, with it.
    accounts: Vec<(Stream, String)>,
}

impl Streams {
    /// Finds each stream of a project among those that the snapshot remembers.
    pub fn resolve(project: &Project, remembered: &[Stream]) -> Result<Self, StreamError> {
        let mut configured = Vec::new();
        for (destination, outlet) in &project.destinations {
            for name in outlet.mapping.all_streams() {
                let place = outlet.place.clone();
                configured.push((destination.clone(), Stream { place, name }));
            }
        }
        Self::of(configured, remembered)
    }

    /// The same for configured streams with their destinations.
    pub fn of(
        configured: Vec<(DestinationName, Stream)>,
        remembered: &[Stream],
    ) -> Result<Self, StreamError> {
        let (names, configured): (Vec<_>, Vec<_>) = configured.into_iter().unzip();
        let mut streams = Self::default();
        let found = resolve(&configured, remembered)?;
        for ((destination, configured), found) in names.into_iter().zip(configured).zip(found) {
            let label = (destination, configured.name.clone());
            let stream = match found {
                None => configured,
                Some(position) => {
                    let known = &remembered[position];
                    streams.note_account(known, &configured);
                    known.clone()
                }
            };
            streams.by_label.insert(label, stream);
        }
        Ok(streams)
    }

    fn note_account(&mut self, known: &Stream, configured: &Stream) {
        if let Place::Firehose { account: None, .. } = &known.place
            && let Place::Firehose {
                account: Some(account),
                ..
            } = &configured.place
        {
            self.accounts.push((known.clone(), account.clone()));
        }
    }

    /// The accounts that are known from now on. The streams then go by them.
    pub fn take_accounts(&mut self) -> Vec<(Stream, String)> {
        let accounts = std::mem::take(&mut self.accounts);
        for (known, number) in &accounts {
            for stream in self.by_label.values_mut().filter(|it| *it == known) {
                if let Place::Firehose { account, .. } = &mut stream.place {
                    *account = Some(number.clone());
                }
            }
        }
        accounts
    }

    /// The feeds of these audiences that a request is about.
    pub fn feeds<'k>(
        &self,
        project: &Project,
        keyed: &'k [Keyed],
        request: &Request,
    ) -> Vec<Feed<'k>> {
        let mut feeds = Vec::new();
        for keyed in keyed {
            for destination in &keyed.audience.destinations {
                let mapping = &project.destinations[destination].mapping;
                for name in mapping.streams(CallType::Identify, None) {
                    let is_it = |asked: &String| asked == name.as_str();
                    if request.stream.as_ref().is_none_or(is_it) {
                        feeds.push(Feed {
                            keyed,
                            destination,
                            stream: self.get(destination, &name).clone(),
                        });
                    }
                }
            }
        }
        feeds
    }

    /// What tells all feeds of the configuration apart, and what `send` has for its streams.
    pub fn configured(&self, project: &Project) -> BTreeSet<FeedId> {
        let mut feeds = BTreeSet::new();
        for audience in &project.audiences {
            for destination in &audience.destinations {
                let mapping = &project.destinations[destination].mapping;
                for name in mapping.streams(CallType::Identify, None) {
                    let stream = self.get(destination, &name).clone();
                    feeds.insert((Some(audience.id.clone()), stream));
                }
            }
        }
        feeds.extend(self.all().map(|(_, stream)| (None, stream.clone())));
        feeds
    }

    /// The stream that a destination's mapping names.
    pub fn get(&self, destination: &DestinationName, name: &StreamName) -> &Stream {
        &self.by_label[&(destination.clone(), name.clone())]
    }

    /// A destination that leads to a stream; `None` where the configuration has none any more.
    pub fn find(&self, stream: &Stream) -> Option<&DestinationName> {
        let mut labels = self.by_label.iter();
        labels
            .find(|(_, known)| *known == stream)
            .map(|((destination, _), _)| destination)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&DestinationName, &Stream)> {
        let labels = self.by_label.iter();
        labels.map(|((destination, _), stream)| (destination, stream))
    }
}
