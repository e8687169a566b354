//! Which delivery streams a Segment call goes to: by event name, by event type, or `*`.
//!
//! One table for identifies and for every other call, as in the settings of Segment's own destination. The order of
//! precedence is RudderStack's, the only published one: event name, then type, then `*`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::CallType;

/// The name of a delivery stream, exactly as it is in AWS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamName(String);

impl StreamName {
    /// 1 to 64 of `a-z A-Z 0-9 _ . -`.
    /// <https://docs.aws.amazon.com/firehose/latest/APIReference/API_CreateDeliveryStream.html>
    pub fn parse(name: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        ((1..=64).contains(&name.len()) && name.bytes().all(fits)).then(|| Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The left side of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// The name of a Track event, in lower case.
    Event(String),
    Type(CallType),
    Any,
}

impl Pattern {
    /// A type's name means the type; `track:Page` means a Track event named Page. Case is ignored.
    pub fn parse(left: &str) -> Self {
        let lower = left.to_lowercase();
        if lower == "*" {
            return Self::Any;
        }
        if let Some(name) = lower.strip_prefix("track:") {
            return Self::Event(name.to_owned());
        }
        CallType::parse(&lower).map_or(Self::Event(lower), Self::Type)
    }
}

/// How many rows an event may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Match {
    /// The first row that fits.
    #[default]
    First,
    /// Every row that fits, each stream once.
    All,
}

/// The rows of one destination.
#[derive(Debug, Clone, Default)]
pub struct Mapping {
    pub rows: Vec<(Pattern, Vec<StreamName>)>,
    pub matching: Match,
}

impl Mapping {
    /// The streams for an event, without repeats; empty where no row fits. `event` is the name of a Track event.
    pub fn streams(&self, call: CallType, event: Option<&str>) -> Vec<StreamName> {
        let event = event
            .filter(|_| call == CallType::Track)
            .map(str::to_lowercase);
        let by_event = event.map(Pattern::Event);
        let fitting = by_event
            .into_iter()
            .chain([Pattern::Type(call), Pattern::Any]);
        let rows =
            fitting.filter_map(|pattern| self.rows.iter().find(|(left, _)| *left == pattern));
        let rows = rows.take(match self.matching {
            Match::First => 1,
            Match::All => usize::MAX,
        });
        let mut streams = Vec::new();
        for stream in rows.flat_map(|(_, streams)| streams) {
            if !streams.contains(stream) {
                streams.push(stream.clone());
            }
        }
        streams
    }

    /// Every stream that is named, once, in order of name.
    pub fn all_streams(&self) -> Vec<StreamName> {
        let mut streams: Vec<_> = self
            .rows
            .iter()
            .flat_map(|(_, streams)| streams.clone())
            .collect();
        streams.sort();
        streams.dedup();
        streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        rows: &[(&str, &[&str])],
        matching: Match,
        call: CallType,
        event: Option<&str>,
        expected: &[&str],
    ) {
        let rows = rows
            .iter()
            .map(|(left, right)| {
                (
                    Pattern::parse(left),
                    right
                        .iter()
                        .map(|name| StreamName::parse(name).unwrap())
                        .collect(),
                )
            })
            .collect();
        let streams = Mapping { rows, matching }.streams(call, event);
        assert_eq!(
            streams.iter().map(StreamName::as_str).collect::<Vec<_>>(),
            expected
        );
    }

    const ROWS: &[(&str, &[&str])] = &[
        ("*", &["everything"]),
        ("track", &["tracks"]),
        ("User Registered", &["new_users", "tracks"]),
    ];

    #[test]
    fn the_event_name_comes_before_the_type_and_the_type_before_the_rest() {
        check(
            ROWS,
            Match::First,
            CallType::Track,
            Some("User Registered"),
            &["new_users", "tracks"],
        );
        check(
            ROWS,
            Match::First,
            CallType::Track,
            Some("Other"),
            &["tracks"],
        );
        check(ROWS, Match::First, CallType::Page, None, &["everything"]);
    }

    #[test]
    fn match_all_delivers_to_every_row_and_to_each_stream_once() {
        check(
            ROWS,
            Match::All,
            CallType::Track,
            Some("User Registered"),
            &["new_users", "tracks", "everything"],
        );
        check(ROWS, Match::All, CallType::Identify, None, &["everything"]);
    }

    #[test]
    fn the_left_side_ignores_case() {
        check(
            &[("user REGISTERED", &["s"])],
            Match::First,
            CallType::Track,
            Some("User Registered"),
            &["s"],
        );
        check(
            &[("PAGE", &["s"])],
            Match::First,
            CallType::Page,
            None,
            &["s"],
        );
        check(
            &[("ÜBERWEISUNG", &["s"])],
            Match::First,
            CallType::Track,
            Some("Überweisung"),
            &["s"],
        );
    }

    #[test]
    fn a_types_name_means_the_type_and_a_prefix_means_the_event() {
        check(
            &[("page", &["pages"])],
            Match::First,
            CallType::Track,
            Some("Page"),
            &[],
        );
        check(
            &[("track:Page", &["events"])],
            Match::First,
            CallType::Track,
            Some("page"),
            &["events"],
        );
        check(
            &[("track:Page", &["events"])],
            Match::First,
            CallType::Page,
            None,
            &[],
        );
    }

    #[test]
    fn only_track_events_have_a_name() {
        check(
            &[("Home", &["s"])],
            Match::First,
            CallType::Page,
            Some("Home"),
            &[],
        );
    }

    #[test]
    fn stream_names_follow_the_rule_of_aws() {
        assert!(StreamName::parse("web-pages_2.x").is_some());
        for bad in ["", "with space", "umlaut-ü", &"x".repeat(65)] {
            assert!(StreamName::parse(bad).is_none(), "{bad:?}");
        }
    }
}

#[cfg(test)]
mod laws {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    const TYPES: [&str; 6] = ["identify", "track", "page", "screen", "group", "alias"];

    /// Words that mean a type, an event of that name, everything, or nothing special; in any case.
    fn lefts() -> impl Strategy<Value = String> {
        let word = prop::sample::select(
            &["page", "track", "identify", "user registered", "größe", "*"][..],
        );
        (option::of(Just("track:")), word, any::<bool>()).prop_map(|(prefix, word, is_upper)| {
            let left = format!("{}{word}", prefix.unwrap_or_default());
            if is_upper { left.to_uppercase() } else { left }
        })
    }

    fn rows() -> impl Strategy<Value = Vec<(String, Vec<&'static str>)>> {
        let stream = prop::sample::select(&["a", "b", "c", "d"][..]);
        vec((lefts(), vec(stream, 1..3)), 0..8)
    }

    /// The spec in other words: what a left side stands for, and then the three lefts that an event looks for.
    fn stands_for(left: &str) -> String {
        let left = left.to_lowercase();
        match left.strip_prefix("track:") {
            Some(event) => format!("event {event}"),
            None if left == "*" => left,
            None if TYPES.contains(&left.as_str()) => format!("type {left}"),
            None => format!("event {left}"),
        }
    }

    fn by_the_spec(
        rows: &[(String, Vec<&'static str>)],
        matching: Match,
        call: &str,
        event: Option<&str>,
    ) -> Vec<&'static str> {
        let by_name = event
            .filter(|_| call == "track")
            .map(|name| format!("event {}", name.to_lowercase()));
        let looked_for = by_name
            .into_iter()
            .chain([format!("type {call}"), "*".to_owned()]);
        let mut streams = Vec::new();
        for wanted in looked_for {
            let row = rows.iter().find(|(left, _)| stands_for(left) == wanted);
            for stream in row.into_iter().flat_map(|(_, streams)| streams) {
                if !streams.contains(stream) {
                    streams.push(*stream);
                }
            }
            if row.is_some() && matching == Match::First {
                break;
            }
        }
        streams
    }

    proptest! {
        #![proptest_config(cases(1_024))]

        #[test]
        fn an_event_goes_where_the_spec_says(
            rows in rows(),
            call in prop::sample::select(&TYPES[..]),
            event in option::of(lefts()),
            all in any::<bool>(),
        ) {
            let matching = if all { Match::All } else { Match::First };
            let streams = |names: &[&str]| names.iter().map(|name| StreamName::parse(name).unwrap()).collect();
            let mapping = Mapping {
                rows: rows.iter().map(|(left, right)| (Pattern::parse(left), streams(right))).collect(),
                matching,
            };
            let found = mapping.streams(CallType::parse(call).unwrap(), event.as_deref());
            let found: Vec<_> = found.iter().map(StreamName::as_str).collect();
            prop_assert_eq!(&found, &by_the_spec(&rows, matching, call, event.as_deref()));
            // What is found is a stream that the settings name.
            let all = mapping.all_streams();
            prop_assert!(found.iter().all(|name| all.iter().any(|stream| stream.as_str() == *name)));
        }

        #[test]
        fn a_stream_has_a_name_that_aws_takes(name in "\\PC{0,70}|[a-zA-Z0-9_.-]{0,70}") {
            let fits = (1..=64).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
            prop_assert_eq!(StreamName::parse(&name).is_some(), fits);
        }
    }
}
