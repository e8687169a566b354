//! What several runs say of one user, as one line.
//!
//! It names the first of them as its computation and has the traits of all: whoever reads traits by name needs to know
//! nothing else. Under `coalesced` it lists the computations of all, each with the message id that it would have alone.
//! Its own message id follows from these, so no line of other parts, and none of a single one, stands under it.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::super::pick::fields;
use super::{Identify, MessageId, TAIL, json, open};
use crate::audience::{Action, Change};

/// No place in the list has more bytes beside its computation.
const LISTED: usize = 80;

/// What one run says of a user.
pub struct Part<'a> {
    identify: &'a Identify,
    change: Change<'a>,
    /// Extra traits, by name.
    traits: Vec<(String, Box<RawValue>)>,
}

impl<'a> Part<'a> {
    /// Fails where the extra traits are not what a source gives.
    pub fn new(identify: &'a Identify, change: Change<'a>) -> Result<Self, serde_json::Error> {
        let traits = match change.member.traits {
            "" => Vec::new(),
            _ if change.action == Action::Leave => Vec::new(),
            // Each of them has a comma before it.
            traits => fields(&format!(r#"{{"":0{traits}}}"#))?.split_off(1),
        };
        Ok(Self {
            identify,
            change,
            traits,
        })
    }

    /// Whether it may take more than that of a line with others: its own line, and its place in the list.
    pub fn takes_more_than(&self, bytes: usize) -> bool {
        let listed = self.identify.computation.len() + LISTED;
        let takes_more = || {
            let mut line = Vec::new();
            self.identify.render(&self.change, &mut line);
            line.len() + listed > bytes
        };
        self.identify.longest_line(&self.change) + listed > bytes && takes_more()
    }

    /// Whether both are about one user, who is known by the same identifiers in both.
    pub fn has_same_ids(&self, other: &Self) -> bool {
        let [one, other] = [self, other].map(|part| &part.change.member);
        one.user == other.user && one.anonymous_id == other.anonymous_id
    }

    /// Appends the line for all of them, newline included. They are about one user; of one part, it is its own line.
    pub fn render(parts: &[Self], line: &mut Vec<u8>) {
        let Some(first) = parts.first() else { return };
        if parts.len() == 1 {
            return first.identify.render(&first.change, line);
        }
        open(&first.change, line);
        let ids = render_traits(parts, line);
        render_extra_traits(parts, line);
        let context = &first.identify.context;
        line.extend(&context[..context.len() - TAIL.len()]);
        render_list(parts, &ids, line);
        line.extend(TAIL);
        let ids = ids.iter().map(MessageId::as_str);
        let id = MessageId::of_line(first.identify.started_at, ids);
        line.extend(id.as_str().as_bytes());
        line.extend(&first.identify.times);
    }
}

fn render_traits(parts: &[Part<'_>], line: &mut Vec<u8>) -> Vec<MessageId> {
    let mut ids = Vec::with_capacity(parts.len());
    for Part {
        identify, change, ..
    } in parts
    {
        if !ids.is_empty() {
            line.push(b',');
        }
        ids.push(identify.render_trait(change, line));
    }
    ids
}

/// Each name once: what a run is about goes before any column of that name, and else the first part that has it.
fn render_extra_traits(parts: &[Part<'_>], line: &mut Vec<u8>) {
    if parts.iter().all(|part| part.traits.is_empty()) {
        return;
    }
    let keys = parts.iter().map(|part| part.identify.key.clone());
    let mut named: BTreeSet<Vec<u8>> = keys.collect();
    for (name, value) in parts.iter().flat_map(|part| &part.traits) {
        let mut key = Vec::new();
        json(&mut key, name);
        key.push(b':');
        if named.contains(&key) {
            continue;
        }
        line.push(b',');
        line.extend(&key);
        line.extend(value.get().as_bytes());
        named.insert(key);
    }
}

fn render_list(parts: &[Part<'_>], ids: &[MessageId], line: &mut Vec<u8>) {
    line.extend(br#","coalesced":["#);
    for (position, (part, id)) in parts.iter().zip(ids).enumerate() {
        if position > 0 {
            line.push(b',');
        }
        line.push(b'{');
        line.extend(&part.identify.context[part.identify.computation.clone()]);
        line.extend(br#","messageId":""#);
        line.extend(id.as_str().as_bytes());
        line.extend(br#""}"#);
    }
    line.push(b']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audience::{AudienceId, Class, DestinationName, Key, Member, User, UserKind, Value};
    use crate::event::Computation;
    use crate::laws::cases;
    use crate::run::{RunId, Timestamp};

    /// A run that began so many milliseconds after the first.
    fn identify(key: &str, class: Class, later: i64) -> Identify {
        let run = format!("0195f3c2-0000-7000-8000-{later:012}");
        Identify::new(&Computation {
            audience: AudienceId::new(key),
            key: Key::new(key),
            class,
            destination: DestinationName::new("main"),
            run: RunId::parse(&run).unwrap(),
            started_at: Timestamp::from_millis(1_795_428_000_000 + later),
            space_id: Some("spa_x".to_owned()),
        })
    }

    fn change<'a>(action: Action, value: Value<'a>, traits: &'a str) -> Change<'a> {
        let user = User {
            kind: UserKind::UserId,
            id: "user_1",
        };
        Change {
            action,
            member: Member {
                user,
                anonymous_id: None,
                value,
                traits,
            },
        }
    }

    fn line(said: &[(&Identify, Change<'_>)]) -> String {
        let parts = said
            .iter()
            .map(|(identify, change)| Part::new(identify, *change));
        let parts: Vec<Part<'_>> = parts.map(Result::unwrap).collect();
        let mut line = Vec::new();
        Part::render(&parts, &mut line);
        String::from_utf8(line).unwrap()
    }

    /// Consumers parse these bytes, and what an older version left in a journal must arrive as it was sent before.
    #[test]
    fn the_bytes_of_a_coalesced_record_are_frozen() {
        let buyers = identify("buyers", Class::Audience, 0);
        let spend = identify("spend", Class::Trait, 1);
        let vip = identify("vip", Class::Audience, 2);
        let said = [
            (
                &buyers,
                change(Action::Enter, Value::True, r#","email":"e""#),
            ),
            (&spend, change(Action::Change, Value::Real(4.5), "")),
            (&vip, change(Action::Leave, Value::True, r#","tier":1"#)),
        ];
        assert_eq!(
            line(&said),
            concat!(
                r#"{"type":"identify","userId":"user_1","traits":{"buyers":true,"spend":4.5,"vip":false,"email":"e"},"#,
                r#""context":{"library":{"name":"audience-sync"},"personas":{"computation_class":"audience","#,
                r#""computation_id":"buyers","computation_key":"buyers","#,
                r#""computation_run_id":"0195f3c2-0000-7000-8000-000000000000","namespace":"spa_x","space_id":"spa_x","#,
                r#""coalesced":[{"computation_class":"audience","computation_id":"buyers","computation_key":"buyers","#,
                r#""computation_run_id":"0195f3c2-0000-7000-8000-000000000000","messageId":"personas_3MVFoFaoQ8a3z5E1wF1y7TF6TBU"},"#,
                r#"{"computation_class":"trait","computation_id":"spend","computation_key":"spend","#,
                r#""computation_run_id":"0195f3c2-0000-7000-8000-000000000001","messageId":"personas_3MVFoH5IheH9SH9tDyySG25yNvm"},"#,
                r#"{"computation_class":"audience","computation_id":"vip","computation_key":"vip","#,
                r#""computation_run_id":"0195f3c2-0000-7000-8000-000000000002","messageId":"personas_3MVFoAOl6UYxwo0XmV6CQZsgiYx"}]}},"#,
                r#""integrations":{"All":false,"Amazon Kinesis Firehose":true},"#,
                r#""messageId":"personas_3MVFoCYHV8ArZoK7h5sliCAsEUq","timestamp":"2026-11-23T10:00:00.000Z","#,
                r#""originalTimestamp":"2026-11-23T10:00:00.000Z","receivedAt":"2026-11-23T10:00:00.000Z","sentAt":null}"#,
                "\n"
            )
        );
        // Each is known by the message id that it would have by itself, and the line by none of these.
        for (identify, change) in &said {
            let id = identify.message_id(change);
            assert_eq!(line(&said).matches(id.as_str()).count(), 1);
        }
    }

    #[test]
    fn a_line_has_an_id_of_its_own_for_just_these_parts() {
        let runs = ["a", "b", "c"].map(|key| identify(key, Class::Audience, 0));
        let id = |parts: &[usize]| {
            let entering = change(Action::Enter, Value::True, "");
            let said: Vec<_> = parts.iter().map(|part| (&runs[*part], entering)).collect();
            let line = line(&said);
            let (_, id) = line.rsplit_once(r#""messageId":""#).unwrap();
            id[..36].to_owned()
        };
        let ids = [&[0][..], &[1], &[0, 1], &[0, 2], &[1, 2], &[0, 1, 2]].map(id);
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }

    #[test]
    fn what_is_said_by_one_run_is_the_line_that_it_always_was() {
        let vip = identify("vip", Class::Audience, 0);
        let entering = change(Action::Enter, Value::True, r#","email":"e""#);
        let mut alone = Vec::new();
        vip.render(&entering, &mut alone);
        assert_eq!(line(&[(&vip, entering)]).as_bytes(), alone);
    }

    #[test]
    fn a_trait_is_named_once_and_a_key_goes_before_a_column() {
        let check = |first: &str, second: &str, expected: &str| {
            let [vip, spend] = [("vip", Class::Audience), ("spend", Class::Trait)]
                .map(|(key, class)| identify(key, class, 0));
            let line = line(&[
                (&spend, change(Action::Enter, Value::Integer(7), first)),
                (&vip, change(Action::Enter, Value::True, second)),
            ]);
            let (_, traits) = line.split_once(r#""traits":"#).unwrap();
            let (traits, _) = traits.split_once(r#","context""#).unwrap();
            assert_eq!(traits, expected);
        };
        check("", "", r#"{"spend":7,"vip":true}"#);
        check(
            r#","a":1,"b":2"#,
            r#","b":3,"c":[4]"#,
            r#"{"spend":7,"vip":true,"a":1,"b":2,"c":[4]}"#,
        );
        check(
            r#","vip":"x""#,
            r#","spend":null"#,
            r#"{"spend":7,"vip":true}"#,
        );
        check(
            r#","a\"b":"a\"b""#,
            r#","a\"b":1"#,
            r#"{"spend":7,"vip":true,"a\"b":"a\"b"}"#,
        );
        // As it is written, down to the last digit.
        check(
            r#","a":1.0"#,
            r#","b":0.1e1"#,
            r#"{"spend":7,"vip":true,"a":1.0,"b":0.1e1}"#,
        );
    }

    #[test]
    fn traits_that_cannot_be_read_are_an_error() {
        let vip = identify("vip", Class::Audience, 0);
        for traits in [
            "x",
            r#""a":1"#,
            r#","a":"#,
            r#","a":1,"#,
            r#","a":1},{"b":2"#,
        ] {
            let damaged = change(Action::Enter, Value::True, traits);
            assert!(Part::new(&vip, damaged).is_err(), "{traits}");
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// So whatever each may have of a record, all together fit into it.
        #[test]
        fn a_coalesced_line_is_no_longer_than_what_its_parts_may_take(
            said in prop::collection::vec(("\\PC{1,12}|x{900}", "\\PC{0,30}", prop::bool::ANY), 1..6),
        ) {
            let traits: Vec<String> = said.iter().map(|(_, text, _)| format!(",\"x\":{}", serde_json::json!(text))).collect();
            let runs: Vec<Identify> = said.iter().map(|(key, ..)| identify(key, Class::Trait, 0)).collect();
            let changes = said.iter().zip(&traits).map(|((_, text, enters), traits)| match enters {
                true => change(Action::Enter, Value::Text(text), traits),
                false => change(Action::Leave, Value::True, ""),
            });
            let said: Vec<_> = runs.iter().zip(changes).collect();
            let mut all = 0;
            for (identify, change) in &said {
                let takes = line(&[(*identify, *change)]).len() + identify.computation.len() + LISTED;
                let part = Part::new(identify, *change).unwrap();
                prop_assert!(!part.takes_more_than(takes) && part.takes_more_than(takes - 1));
                all += takes;
            }
            prop_assert!(line(&said).len() <= all);
        }
    }
}
