//! A line that has landed, read back: one of our own records, or somebody else's.
//!
//! The inverse of [`Identify`](super::Identify). Streams are shared, so a line of somebody else's is no error; one of
//! ours that cannot be understood is, for whoever passed over it would know less than was delivered.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::Computation;
use super::call::position_only;
use super::pick::pick;
use crate::audience::{
    Action, AudienceId, Change, Class, Key, Member, User, UserKind, Value, ValueBuf, traits_hash,
};
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};

/// A line of a delivery stream.
#[derive(Debug)]
pub enum Landed<'l> {
    Ours(Statement<'l>),
    /// Any other JSON object, by its `messageId` where it has one.
    Foreign(Option<Cow<'l, str>>),
}

/// What one of our records says about a user.
pub struct Statement<'l> {
    pub audience: Cow<'l, str>,
    pub key: Cow<'l, str>,
    pub class: Class,
    pub run: RunId,
    /// The timestamp of the record.
    pub at: Timestamp,
    pub message_id: Cow<'l, str>,
    /// Which identifier the user is known by.
    pub kind: UserKind,
    /// The identifier itself.
    pub id: Cow<'l, str>,
    /// Carried along with a user id.
    pub anonymous_id: Option<Cow<'l, str>>,
    /// `None` for one who has left.
    pub value: Option<ValueBuf>,
    /// The value and extra traits, as JSON.
    traits: &'l RawValue,
}

/// Why a line is not understood. The line itself is never repeated: it holds personal data.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("not a JSON object: {0}")]
    NotJson(String),
    #[error("its `computation_class` is neither audience nor trait")]
    Class,
    #[error("its `computation_run_id` is not a UUID")]
    Run,
    #[error("its `timestamp` is not a time")]
    Timestamp,
    #[error("its `messageId` is missing or not a text")]
    MessageId,
    #[error("neither `userId` nor `anonymousId` names a user")]
    User,
    #[error("the trait that its `computation_key` names has no value that is ever sent")]
    Value,
}

impl<'l> Landed<'l> {
    /// Reads a line without its newline.
    pub fn parse(line: &'l str) -> Result<Self, StatementError> {
        let fields = [
            "type",
            "context",
            "userId",
            "anonymousId",
            "traits",
            "messageId",
            "timestamp",
        ];
        let [
            call,
            context,
            user_id,
            anonymous_id,
            traits,
            message_id,
            timestamp,
        ] = pick(line, fields).map_err(|error| StatementError::NotJson(position_only(&error)))?;
        let message_id = message_id.and_then(text).filter(|id| !id.is_empty());
        let Some(personas) = Personas::of(call, context) else {
            return Ok(Self::Foreign(message_id));
        };
        let class = Class::parse(&personas.class).ok_or(StatementError::Class)?;
        let (kind, id, anonymous_id) = match (id(user_id)?, id(anonymous_id)?) {
            (Some(user_id), anonymous_id) => (UserKind::UserId, user_id, anonymous_id),
            (None, Some(anonymous_id)) => (UserKind::AnonymousId, anonymous_id, None),
            (None, None) => return Err(StatementError::User),
        };
        Ok(Self::Ours(Statement {
            class,
            run: RunId::parse(&personas.run).ok_or(StatementError::Run)?,
            at: timestamp
                .and_then(text)
                .and_then(|time| Timestamp::parse(&time))
                .ok_or(StatementError::Timestamp)?,
            message_id: message_id.ok_or(StatementError::MessageId)?,
            value: traits
                .and_then(|traits| value(class, traits, &personas.key))
                .ok_or(StatementError::Value)?,
            traits: traits.ok_or(StatementError::Value)?,
            kind,
            id,
            anonymous_id,
            audience: personas.audience,
            key: personas.key,
        }))
    }
}

impl Statement<'_> {
    /// The change that it was rendered from, as far as it says.
    pub fn change(&self) -> Change<'_> {
        Change {
            action: match self.value {
                Some(_) => Action::Enter,
                None => Action::Leave,
            },
            member: Member {
                user: User {
                    kind: self.kind,
                    id: &self.id,
                },
                anonymous_id: self.anonymous_id.as_deref(),
                value: self.value.as_ref().map_or(Value::True, ValueBuf::as_value),
                traits: "",
            },
        }
    }

    /// Tells its extra traits from others, as the snapshot does.
    pub fn traits_hash(&self) -> i64 {
        let traits: BTreeMap<String, &RawValue> =
            serde_json::from_str(self.traits.get()).expect("its value was found among them");
        let extra = traits.iter().filter(|(name, _)| **name != self.key);
        let written = extra.map(|(name, value)| format!(",{}:{value}", json!(name)));
        traits_hash(&written.collect::<String>())
    }

    /// When its run began.
    pub fn started_at(&self) -> Timestamp {
        match self.value {
            Some(_) => Timestamp::from_millis(self.at.millis() - 1),
            None => self.at,
        }
    }

    /// What it has in common with the other records of its run, when it was made for this stream; but for the space,
    /// which no message id depends on.
    pub fn computation(&self, stream: &StreamName) -> Computation {
        Computation {
            audience: AudienceId::new(&*self.audience),
            key: Key::new(&*self.key),
            class: self.class,
            stream: stream.clone(),
            run: self.run,
            started_at: self.started_at(),
            space_id: None,
        }
    }

    /// Whether it is of the same run as the record that this was taken from.
    pub fn is_of(&self, computation: &Computation) -> bool {
        self.run == computation.run
            && self.started_at() == computation.started_at
            && self.class == computation.class
            && self.audience == computation.audience.as_str()
            && self.key == computation.key.as_str()
    }
}

impl fmt::Debug for Statement<'_> {
    /// Values are personal: only the id is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement")
            .field("message_id", &self.message_id)
            .finish_non_exhaustive()
    }
}

/// What tells a record of ours from others.
struct Personas<'l> {
    class: Cow<'l, str>,
    audience: Cow<'l, str>,
    key: Cow<'l, str>,
    run: Cow<'l, str>,
}

impl<'l> Personas<'l> {
    fn of(call: Option<&'l RawValue>, context: Option<&'l RawValue>) -> Option<Self> {
        text(call?).filter(|call| call == "identify")?;
        let [library, personas] = pick(context?.get(), ["library", "personas"]).ok()?;
        let [library] = pick(library?.get(), ["name"]).ok()?;
        text(library?).filter(|name| name == "audience-sync")?;
        Self::read(personas?)
    }

    fn read(personas: &'l RawValue) -> Option<Self> {
        let fields = [
            "computation_class",
            "computation_id",
            "computation_key",
            "computation_run_id",
        ];
        let [class, audience, key, run] = pick(personas.get(), fields).ok()?;
        Some(Self {
            class: text(class?)?,
            audience: text(audience?)?,
            key: text(key?)?,
            run: text(run?)?,
        })
    }
}

/// An id, which may be missing or null.
fn id(field: Option<&RawValue>) -> Result<Option<Cow<'_, str>>, StatementError> {
    match field.filter(|field| field.get() != "null") {
        None => Ok(None),
        Some(field) => {
            let id = text(field).filter(|id| !id.is_empty());
            id.map(Some).ok_or(StatementError::User)
        }
    }
}

/// The value of the trait, and `Some(None)` where it says that the user has left.
fn value(class: Class, traits: &RawValue, key: &str) -> Option<Option<ValueBuf>> {
    let [value] = pick(traits.get(), [key]).ok()?;
    let value = value?;
    match (class, value.get()) {
        (Class::Audience, "true") => Some(Some(ValueBuf::True)),
        (Class::Audience, "false") | (Class::Trait, "null") => Some(None),
        (Class::Trait, json) if json.starts_with('"') => {
            Some(Some(ValueBuf::Text(text(value)?.into_owned())))
        }
        (Class::Trait, json) => number(json).map(Some),
        _ => None,
    }
}

/// A number as it is written: serde_json's own reading of reals may be off by a bit.
fn number(json: &str) -> Option<ValueBuf> {
    if !json.contains(['.', 'e', 'E']) {
        return json.parse().ok().map(ValueBuf::Integer);
    }
    let real: f64 = json.parse().ok()?;
    real.is_finite().then_some(ValueBuf::Real(real))
}

/// Text that is only copied where it holds escapes.
fn text(json: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'l>(#[serde(borrow)] Cow<'l, str>);
    serde_json::from_str::<Text<'_>>(json.get())
        .ok()
        .map(|text| text.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Identify, Origins};
    use crate::laws::cases;

    fn computation(class: Class, stream: &str) -> Computation {
        Computation {
            audience: AudienceId::new("aud_1"),
            key: Key::new("the \"key\""),
            class,
            stream: StreamName::parse(stream).unwrap(),
            run: RunId::parse("0195f3c2-0000-7000-8000-000000000000").unwrap(),
            started_at: Timestamp::from_millis(1_795_428_000_123),
            space_id: Some("spa_x".to_owned()),
        }
    }

    fn line(computation: &Computation, change: &Change<'_>) -> String {
        let mut line = Vec::new();
        Identify::new(computation).render(change, &mut line);
        line.pop();
        String::from_utf8(line).unwrap()
    }

    /// What was rendered is read, with every bit of its value, and known for what it is.
    fn check_read(class: Class, change: &Change<'_>) {
        let computation = computation(class, "main");
        let line = line(&computation, change);
        let Landed::Ours(statement) = Landed::parse(&line).unwrap() else {
            panic!("{line}");
        };
        assert!(statement.is_of(&computation));
        let expected = Computation {
            space_id: None,
            ..computation.clone()
        };
        assert_eq!(statement.computation(&computation.stream), expected);
        let read = statement.change();
        assert_eq!(read.action == Action::Leave, change.action == Action::Leave);
        assert_eq!(read.member.user, change.member.user);
        assert_eq!(read.member.anonymous_id, change.member.anonymous_id);
        if change.action != Action::Leave {
            assert_eq!(read.member.value, change.member.value);
        }
        let names = ["other", "main"].map(|name| StreamName::parse(name).unwrap());
        let mut origins = Origins::new(names.clone());
        assert_eq!(origins.find(&statement), Some(&names[1]));
        assert_eq!(Origins::new([names[0].clone()]).find(&statement), None);
    }

    fn change<'a>(action: Action, id: &'a str, value: Value<'a>) -> Change<'a> {
        Change {
            action,
            member: Member {
                user: User {
                    kind: UserKind::UserId,
                    id,
                },
                anonymous_id: None,
                value,
                traits: "",
            },
        }
    }

    #[test]
    fn every_record_that_is_sent_is_read_back() {
        for action in [Action::Enter, Action::Repeat, Action::Leave] {
            check_read(Class::Audience, &change(action, "u", Value::True));
        }
        for value in [
            Value::Text("a\"b\n\u{1f600}"),
            Value::Text(""),
            Value::Integer(i64::MIN),
            Value::Real(450.0),
            Value::Real(-0.0),
            Value::Real(1e300),
            Value::Real(f64::MIN_POSITIVE / 2.0),
        ] {
            check_read(Class::Trait, &change(Action::Change, "u", value));
        }
        check_read(Class::Trait, &change(Action::Leave, "u", Value::Integer(1)));
        let mut both = change(Action::Enter, "\"},\"userId\":\"x", Value::True);
        both.member.anonymous_id = Some("a\nb");
        both.member.traits = r#","userId":"x""#;
        check_read(Class::Audience, &both);
        both.member.user.kind = UserKind::AnonymousId;
        both.member.anonymous_id = None;
        check_read(Class::Audience, &both);
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn ids_and_values_come_back_as_they_were(id in "\\PC{1,40}", other in ".{1,9}", text in ".*", bits: u64, integer: i64) {
            let real = f64::from_bits(bits);
            let real = if real.is_finite() { real } else { 0.1 };
            for value in [Value::Text(&text), Value::Real(real), Value::Integer(integer)] {
                let mut changed = change(Action::Change, &id, value);
                changed.member.anonymous_id = Some(&other);
                check_read(Class::Trait, &changed);
            }
        }

        #[test]
        fn no_line_makes_it_panic(line in ".*", position: prop::sample::Index, put in ".{0,3}") {
            drop(Landed::parse(&line));
            // One of ours, with something else in some place.
            let ours = self::line(&computation(Class::Trait, "main"), &change(Action::Enter, "u", Value::Integer(1)));
            let (before, after) = ours.split_at(position.index(ours.len()));
            drop(Landed::parse(&format!("{before}{put}{}", after.get(1..).unwrap_or_default())));
        }
    }

    /// A record of ours with one part of it replaced.
    fn spoilt(class: Class, from: &str, to: &str) -> String {
        let ours = line(
            &computation(class, "main"),
            &change(Action::Enter, "u", Value::True),
        );
        assert!(ours.contains(from), "{ours}");
        ours.replace(from, to)
    }

    #[test]
    fn what_is_not_ours_is_foreign_whatever_it_holds() {
        let check = |line: &str, id: Option<&str>| match Landed::parse(line) {
            Ok(Landed::Foreign(found)) => assert_eq!(found.as_deref(), id, "{line}"),
            other => panic!("{line}: {other:?}"),
        };
        check("{}", None);
        check(r#"{"type":"page","messageId":"m","userId":7}"#, Some("m"));
        check(r#"{"type":"identify","context":5,"messageId":""}"#, None);
        check(
            r#"{"type":"identify","context":{"library":{"name":"audience-sync"}}}"#,
            None,
        );
        check(
            r#"{"a":1,"a":2,"messageId":"x","messageId":"y"}"#,
            Some("y"),
        );
        check(
            &format!(r#"{{"deep":{}{}}}"#, "[".repeat(9999), "]".repeat(9999)),
            None,
        );
        let ours = spoilt(Class::Audience, "audience-sync", "unknown");
        assert!(matches!(Landed::parse(&ours), Ok(Landed::Foreign(Some(_)))));
        let ours = spoilt(
            Class::Audience,
            "\"type\":\"identify\"",
            "\"type\":\"track\"",
        );
        assert!(matches!(Landed::parse(&ours), Ok(Landed::Foreign(Some(_)))));
    }

    #[test]
    fn one_of_ours_that_cannot_be_understood_is_an_error() {
        let check = |line: &str, expected: &str| {
            assert_eq!(
                Landed::parse(line).unwrap_err().to_string(),
                expected,
                "{line}"
            );
        };
        check("", "not a JSON object: it ends too early (column 0)");
        check(
            "[1]",
            "not a JSON object: it is another kind of value (column 0)",
        );
        check("{} {}", "not a JSON object: it is not JSON (column 4)");
        let no_value = "the trait that its `computation_key` names has no value that is ever sent";
        for (class, value) in [
            (Class::Audience, "1"),
            (Class::Audience, "null"),
            (Class::Trait, "true"),
            (Class::Trait, "[1.5]"),
            (Class::Trait, "1e999"),
            (Class::Trait, "9223372036854775808"),
            (Class::Trait, r#""\ud800""#),
        ] {
            let from = r#""the \"key\"":true"#;
            check(
                &spoilt(class, from, &format!(r#""the \"key\"":{value}"#)),
                no_value,
            );
        }
        check(
            &spoilt(Class::Audience, r#""the \"key\"":true"#, ""),
            no_value,
        );
        let timestamp = r#""timestamp":"2026-11-23T10:00:00.124Z""#;
        check(
            &spoilt(Class::Audience, timestamp, r#""timestamp":"now""#),
            "its `timestamp` is not a time",
        );
        check(
            &spoilt(Class::Audience, r#""userId":"u""#, r#""userId":"""#),
            "neither `userId` nor `anonymousId` names a user",
        );
        check(
            &spoilt(Class::Audience, r#""userId":"u","#, ""),
            "neither `userId` nor `anonymousId` names a user",
        );
        check(
            &spoilt(
                Class::Audience,
                r#""computation_class":"audience""#,
                r#""computation_class":"x""#,
            ),
            "its `computation_class` is neither audience nor trait",
        );
        check(
            &spoilt(Class::Audience, "0195f3c2-", ""),
            "its `computation_run_id` is not a UUID",
        );
        check(
            &spoilt(Class::Audience, "\"messageId\"", "\"message\""),
            "its `messageId` is missing or not a text",
        );
    }

    #[test]
    fn a_record_that_was_changed_is_of_no_stream() {
        let names = || [StreamName::parse("main").unwrap()];
        for (from, to) in [
            (r#""userId":"u""#, r#""userId":"v""#),
            (r#""userId":"u""#, r#""anonymousId":"u""#),
            (":true}", ":false}"),
            ("T10:00:00.124Z\",\"original", "T11:00:00.124Z\",\"original"),
            ("0195f3c2-", "0195f3c3-"),
            ("aud_1", "aud_2"),
        ] {
            let line = spoilt(Class::Audience, from, to);
            let Landed::Ours(statement) = Landed::parse(&line).unwrap() else {
                panic!("{line}");
            };
            assert_eq!(Origins::new(names()).find(&statement), None, "{line}");
        }
    }
}
