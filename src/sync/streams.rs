//! Which stream each destination's mapping means, by the places that the snapshot knows.

use std::collections::{BTreeMap, BTreeSet};

use super::{Feed, Keyed, Outlet, Project, Request};
use crate::audience::DestinationName;
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::run::RunKind;
use crate::snapshot::{FeedId, JournaledRun};
use crate::stream::{Place, Stream, StreamError, resolve};

/// The streams of all mappings.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    by_label: BTreeMap<(DestinationName, StreamName), Stream>,
    /// Streams whose account the snapshot does not know yet, with it.
    accounts: Vec<(Stream, String)>,
    /// Streams that no mapping names, with the destinations that lead to their place.
    unmapped: BTreeMap<Stream, Vec<DestinationName>>,
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
        let mut streams = Self::of(configured, remembered)?;
        for stream in remembered {
            if streams.find(stream).is_none() {
                let destinations = leading_to(stream, project, remembered);
                streams.unmapped.insert(stream.clone(), destinations);
            }
        }
        Ok(streams)
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

    /// The destination whose mapping names a stream; `None` where none does any more.
    pub fn find(&self, stream: &Stream) -> Option<&DestinationName> {
        let mut labels = self.by_label.iter();
        labels
            .find(|(_, known)| *known == stream)
            .map(|((destination, _), _)| destination)
    }

    /// A destination that leads to a stream, be it mapped or not; if there are several, the one with this name.
    pub fn leading_to(
        &self,
        stream: &Stream,
        preferred: &DestinationName,
    ) -> Option<&DestinationName> {
        let unmapped = self.unmapped.get(stream).map_or(&[][..], Vec::as_slice);
        let preferred = unmapped.iter().find(|name| *name == preferred);
        self.find(stream).or(preferred).or(unmapped.first())
    }

    /// Whether what waits of a run is delivered: a mapping names its stream. For a run that retires a feed, a destination
    /// that leads there is enough.
    pub fn has_way_for(&self, run: &JournaledRun) -> bool {
        match run.kind {
            RunKind::Retire => self.leading_to(&run.stream, &run.destination).is_some(),
            _ => self.find(&run.stream).is_some(),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&DestinationName, &Stream)> {
        let labels = self.by_label.iter();
        labels.map(|((destination, _), stream)| (destination, stream))
    }
}

/// The destinations at the place of a stream that no mapping names. Where an account is not known, there are none if another
/// stream may be meant.
fn leading_to(stream: &Stream, project: &Project, remembered: &[Stream]) -> Vec<DestinationName> {
    let at = |outlet: &Outlet| Stream {
        place: outlet.place.clone(),
        name: stream.name.clone(),
    };
    let leading = |leads: &dyn Fn(&Stream) -> bool| -> Vec<(&DestinationName, Stream)> {
        let outlets = project.destinations.iter();
        let outlets = outlets.map(|(name, outlet)| (name, at(outlet)));
        outlets.filter(|(_, at)| leads(at)).collect()
    };
    let mut found = leading(&|at| at == stream);
    if found.is_empty() {
        let is_only = |at: &Stream| remembered.iter().filter(|known| at.fits(known)).count() == 1;
        found = leading(&|at| at.fits(stream) && is_only(at));
        if found.iter().any(|(_, at)| *at != found[0].1) {
            found.clear();
        }
    }
    found.into_iter().map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::firehose::{Destination, Directory};
    use crate::mapping::{Mapping, Pattern};

    const ONE: &str = "874699288871";
    const OTHER: &str = "123456789012";

    fn at(region: &str, account: Option<&str>) -> Place {
        Place::firehose(region, None, account).unwrap()
    }

    fn stream(place: &Place, name: &str) -> Stream {
        Stream {
            place: place.clone(),
            name: StreamName::parse(name).unwrap(),
        }
    }

    /// With a destination at each place, named `0` and so on, whose mapping names one stream.
    fn project(places: &[&Place], mapped: &str) -> Project {
        let destinations = places.iter().enumerate().map(|(number, place)| {
            let name = DestinationName::new(number.to_string());
            let rows = vec![(Pattern::Any, vec![StreamName::parse(mapped).unwrap()])];
            let mapping = Mapping {
                rows,
                ..Mapping::default()
            };
            let directory = Directory::new("delivered".into());
            let destination = Destination::directory(name.clone(), false, directory);
            (name, Outlet::new(destination, Place::clone(place), mapping))
        });
        Project {
            sources: BTreeMap::new(),
            destinations: destinations.collect(),
            audiences: Vec::new(),
            space_id: None,
            history: Duration::MAX,
        }
    }

    #[test]
    fn a_destination_leads_to_a_stream_at_its_place_that_no_mapping_names() {
        let check = |places: &[&Place], remembered: &[&Place], expected: Option<&str>| {
            let project = project(places, "other");
            let gone = remembered.iter();
            let gone: Vec<Stream> = gone.map(|place| stream(place, "gone")).collect();
            let streams = Streams::resolve(&project, &gone).unwrap();
            let preferred = DestinationName::new("1");
            let found = streams.leading_to(&gone[0], &preferred);
            let found = found.map(DestinationName::as_str);
            assert_eq!(found, expected, "{places:?} {remembered:?}");
            assert_eq!(streams.find(&gone[0]), None);
        };
        let west = |account| at("us-west-2", account);
        let (none, one, other) = (west(None), west(Some(ONE)), west(Some(OTHER)));
        let east = at("us-east-1", None);
        check(&[&one], &[&one], Some("0"));
        check(&[&east], &[&none], None);
        check(&[&other], &[&one], None);
        // An account that is not known may be any, and a role that is removed changes nothing.
        check(&[&one], &[&none], Some("0"));
        check(&[&none], &[&one], Some("0"));
        // An equal one comes first.
        check(&[&none, &one, &other, &east], &[&one], Some("1"));
        check(&[&none, &one, &other, &east], &[&other], Some("2"));
        // It may be one of several streams.
        check(&[&none], &[&one, &other], None);
        check(&[&one, &other], &[&none], None);
        // Of several at one place, the one that was used before.
        check(&[&none, &none], &[&none], Some("1"));
        check(&[&one, &one], &[&none], Some("1"));
    }

    #[test]
    fn a_mapping_that_names_a_stream_leads_there() {
        let place = at("us-west-2", None);
        let remembered = [stream(&place, "gone")];
        let streams = Streams::resolve(&project(&[&place], "gone"), &remembered).unwrap();
        let preferred = DestinationName::new("1");
        let found = streams.leading_to(&remembered[0], &preferred);
        assert_eq!(found.map(DestinationName::as_str), Some("0"));
        assert!(streams.find(&remembered[0]).is_some());
    }
}
