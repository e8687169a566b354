//! What Firehose has accepted, record by record, and what follows from it.
//!
//! A record that was accepted, and whose sender was told so, is an obligation: it may never be sent again, unless the
//! sender was killed before it could remember. What was accepted without a word may be sent once more, and then again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use chrono::DateTime;
use serde::Deserialize;
use serde_json::Value;

use super::STREAMS;
use super::journal::Entry;
use super::source::{AUDIENCES, Source, is_gone};
use crate::support::endpoint::Ledger;

/// A record, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'l> {
    user_id: &'l str,
    #[serde(borrow)]
    traits: BTreeMap<&'l str, Value>,
    message_id: &'l str,
    timestamp: &'l str,
    context: Context<'l>,
}

#[derive(Deserialize)]
struct Context<'l> {
    #[serde(borrow)]
    personas: Personas<'l>,
}

#[derive(Deserialize)]
struct Personas<'l> {
    computation_key: &'l str,
}

impl<'l> Line<'l> {
    /// The audience that it is of, and what it says.
    fn said(&self) -> (&'static str, &Value) {
        let key = self.context.personas.computation_key;
        assert_eq!(self.traits.len(), 1);
        let mut known = AUDIENCES.iter().map(|audience| audience.key);
        let known = known.find(|known| *known == key).unwrap();
        (known, &self.traits[key])
    }

    /// Its timestamp, in milliseconds.
    fn at(&self) -> i64 {
        let at = DateTime::parse_from_rfc3339(self.timestamp).unwrap();
        at.timestamp_millis()
    }
}

/// What is known of one record at one stream.
struct Accepted {
    times: usize,
    /// It may be sent once more: nobody was told, or who was told could not remember.
    may_come_again: bool,
    was_told: bool,
}

/// What a consumer makes of it: by stream, key and user, the latest.
type Folded = HashMap<(usize, &'static str, String), (i64, Value)>;

#[derive(Default)]
pub(super) struct Book {
    accepted: HashMap<(usize, String), Accepted>,
    folded: Folded,
    /// The bytes of each record, by its `messageId`.
    bytes: HashMap<String, u64>,
    /// Every change that was ever decided, with its round.
    decided: HashMap<String, usize>,
    /// By stream and key, the latest time of a record.
    latest: HashMap<(usize, &'static str), i64>,
    pub repeats: usize,
}

impl Book {
    /// What a round has come to: all that arrived, and then the journal that was left.
    pub(super) fn close(
        &mut self,
        arrived: &Ledger,
        left: &[Entry],
        killed: bool,
        round: usize,
        source: &Source,
    ) {
        for entry in left {
            self.decided.entry(entry.id.clone()).or_insert(round);
        }
        let mut told = HashSet::new();
        for ((stream, record), acknowledged) in arrived.accepted.iter().zip(&arrived.acknowledged) {
            let stream = position(stream);
            let key = self.enter(stream, record, *acknowledged, source);
            if *acknowledged {
                told.insert(key);
            }
        }
        for entry in left.iter().filter(|entry| !entry.is_dead) {
            let key = (entry.stream, entry.id.clone());
            match entry.waits {
                true => self.still_waits(&key, told.contains(&key), killed),
                false => self.has_left(&key),
            }
        }
    }

    /// One record that was accepted.
    fn enter(
        &mut self,
        stream: usize,
        record: &[u8],
        acknowledged: bool,
        source: &Source,
    ) -> (usize, String) {
        let line: Line<'_> = serde_json::from_slice(record).unwrap();
        let (audience, value) = line.said();
        let digest = digest(record);
        let known = self.bytes.entry(line.message_id.to_owned());
        assert!(
            *known.or_insert(digest) == digest,
            "other bytes: {}",
            text(record)
        );
        self.check_order(stream, audience, &line, record);
        let key = (stream, line.message_id.to_owned());
        if let Some(accepted) = self.accepted.get_mut(&key) {
            assert!(
                accepted.may_come_again,
                "sent {} times, and again without need: {}",
                accepted.times,
                text(record)
            );
            accepted.times += 1;
            accepted.may_come_again = !acknowledged;
            accepted.was_told |= acknowledged;
            self.repeats += 1;
            return key;
        }
        let round = self.decided.get(line.message_id);
        let round = *round.unwrap_or_else(|| panic!("not in the journal: {}", text(record)));
        // It says what was so when it was decided.
        let truth = source.said(audience, line.user_id, round);
        assert_eq!(truth, Some(value), "round {round}: {}", text(record));
        self.fold(stream, &line, audience, value);
        let accepted = Accepted {
            times: 1,
            may_come_again: !acknowledged,
            was_told: acknowledged,
        };
        self.accepted.insert(key.clone(), accepted);
        key
    }

    /// What a stream was to be told first, it is told first. Within a run, who leaves is told a millisecond earlier than who
    /// enters, in any order.
    fn check_order(
        &mut self,
        stream: usize,
        audience: &'static str,
        line: &Line<'_>,
        record: &[u8],
    ) {
        let latest = self.latest.entry((stream, audience)).or_default();
        let at = line.at();
        assert!(at >= *latest - 1, "later than {latest}: {}", text(record));
        *latest = at.max(*latest);
    }

    fn fold(&mut self, stream: usize, line: &Line<'_>, audience: &'static str, value: &Value) {
        let place = (stream, audience, line.user_id.to_owned());
        let latest = self.folded.entry(place).or_default();
        if line.at() > latest.0 {
            *latest = (line.at(), value.clone());
        }
    }

    fn still_waits(&mut self, key: &(usize, String), was_told_now: bool, killed: bool) {
        if !was_told_now {
            return;
        }
        assert!(killed, "told, not killed, and forgotten: {key:?}");
        let accepted = self.accepted.get_mut(key).unwrap();
        accepted.may_come_again = true;
    }

    fn has_left(&self, key: &(usize, String)) {
        let was_told = self.accepted.get(key).is_some_and(|record| record.was_told);
        assert!(was_told, "left the journal without a word: {key:?}");
    }

    /// At a stream, the latest that was said of each of these users is what is so.
    pub(super) fn check_truth(
        &self,
        source: &Source,
        name: &str,
        is_checked: impl Fn(&str, &str) -> bool,
    ) {
        let stream = position(name);
        for (key, user, now) in source
            .truth()
            .filter(|(key, user, _)| is_checked(key, user))
        {
            let latest = self.folded.get(&(stream, key, user.to_owned()));
            let is_true = latest.map_or(is_gone(now), |(_, value)| value == now);
            assert!(is_true, "{name}: {key} of {user} is {now}, not {latest:?}");
        }
    }

    /// The members of an audience, by what a stream has accepted.
    pub(super) fn members(&self, name: &str, key: &str) -> HashMap<Option<&str>, &Value> {
        let stream = position(name);
        let of = self.folded.iter().filter(move |((at, of, _), (_, value))| {
            (*at, *of) == (stream, key) && !is_gone(value)
        });
        of.map(|((.., user), (_, value))| (Some(user.as_str()), value))
            .collect()
    }

    /// The snapshot was lost, and made anew from what was accepted: it knows all of that, and nothing else that was decided.
    pub(super) fn begin_anew(&mut self) {
        self.decided.clear();
        for accepted in self.accepted.values_mut() {
            accepted.may_come_again = false;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }
}

fn position(stream: &str) -> usize {
    let mut known = STREAMS.iter();
    known.position(|known| *known == stream).unwrap()
}

fn digest(record: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.hash(&mut hasher);
    hasher.finish()
}

fn text(record: &[u8]) -> String {
    String::from_utf8_lossy(record).into_owned()
}
