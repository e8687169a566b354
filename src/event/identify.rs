//! One change as one line: the Identify that Segment's Engage would send for it.
//!
//! The same change gives the same bytes on every machine and after every restart. Nothing is read from a clock or
//! from the configuration here: what a line says was frozen when its run began.

use std::io::Write as _;

use sha2::{Digest, Sha256};

use super::message_id::{MessageId, digest};
use crate::audience::{Action, AudienceId, Change, Class, Key, User, UserKind, Value};
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};

/// What every line of a run has in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Computation {
    pub audience: AudienceId,
    pub key: Key,
    pub class: Class,
    pub stream: StreamName,
    pub run: RunId,
    pub started_at: Timestamp,
    pub space_id: Option<String>,
}

/// Renders the changes of one run.
#[derive(Debug, Clone)]
pub struct Identify {
    /// `"key":`
    key: Vec<u8>,
    /// From the end of the traits to the message id.
    context: Vec<u8>,
    /// From the message id to the newline, for users who leave.
    leaving: Vec<u8>,
    /// The same for all others.
    entering: Vec<u8>,
    /// Stream, audience and run, hashed once.
    digest: Sha256,
    class: Class,
    started_at: Timestamp,
}

impl Identify {
    pub fn new(computation: &Computation) -> Self {
        let Computation {
            audience,
            key,
            class,
            stream,
            run,
            started_at,
            space_id,
        } = computation;
        let mut context =
            br#"},"context":{"library":{"name":"audience-sync"},"personas":{"#.to_vec();
        context.extend(br#""computation_class":"#);
        json(&mut context, class.as_str());
        push_field(&mut context, "computation_id", audience.as_str());
        push_field(&mut context, "computation_key", key.as_str());
        push_field(&mut context, "computation_run_id", &run.to_string());
        if let Some(space) = space_id {
            push_field(&mut context, "namespace", space);
            push_field(&mut context, "space_id", space);
        }
        context.extend(
            br#"}},"integrations":{"All":false,"Amazon Kinesis Firehose":true},"messageId":""#,
        );
        let mut key_bytes = Vec::new();
        json(&mut key_bytes, key.as_str());
        key_bytes.push(b':');
        let run = run.to_string();
        Self {
            key: key_bytes,
            context,
            leaving: times(*started_at),
            entering: times(started_at.of_entering()),
            digest: digest(&[
                stream.as_str().as_bytes(),
                audience.as_str().as_bytes(),
                run.as_bytes(),
            ]),
            class: *class,
            started_at: *started_at,
        }
    }

    /// Appends the line for a change, newline included.
    pub fn render(&self, change: &Change<'_>, line: &mut Vec<u8>) {
        let member = &change.member;
        line.extend(br#"{"type":"identify","#);
        if member.user.kind == UserKind::UserId {
            line.extend(br#""userId":"#);
            json(line, member.user.id);
            line.push(b',');
        }
        if let Some(id) = anonymous_id(change) {
            line.extend(br#""anonymousId":"#);
            json(line, id);
            line.push(b',');
        }
        line.extend(br#""traits":{"#);
        line.extend(&self.key);
        let value_from = line.len();
        self.render_value(change, line);
        let message_id = self.message_id_of(member.user, &line[value_from..]);
        let leaves = change.action == Action::Leave;
        if !leaves {
            line.extend(member.traits.as_bytes());
        }
        line.extend(&self.context);
        line.extend(message_id.as_str().as_bytes());
        line.extend(if leaves {
            &self.leaving
        } else {
            &self.entering
        });
    }

    /// The id of the record for a change, without the record.
    pub fn message_id(&self, change: &Change<'_>) -> MessageId {
        let mut value = Vec::new();
        self.render_value(change, &mut value);
        self.message_id_of(change.member.user, &value)
    }

    /// The value of the trait as JSON.
    pub fn value(&self, change: &Change<'_>) -> Vec<u8> {
        let mut value = Vec::new();
        self.render_value(change, &mut value);
        value
    }

    /// No line is longer than this and what it holds: its id up to six times as long, when every byte needs `\u00XX`.
    pub fn longest_line(&self, change: &Change<'_>) -> usize {
        let member = &change.member;
        let text = match member.value {
            Value::Text(text) => text.len(),
            _ => 0,
        };
        let escaped = member.user.id.len() + member.anonymous_id.map_or(0, str::len) + text;
        160 + self.key.len()
            + self.context.len()
            + self.entering.len()
            + 6 * escaped
            + member.traits.len()
    }

    fn render_value(&self, change: &Change<'_>, out: &mut Vec<u8>) {
        match (change.action, self.class, change.member.value) {
            (Action::Leave, Class::Audience, _) => out.extend(b"false"),
            (Action::Leave, Class::Trait, _) => out.extend(b"null"),
            (_, _, Value::True) => out.extend(b"true"),
            (_, _, Value::Text(text)) => json(out, text),
            (_, _, Value::Integer(integer)) => {
                write!(out, "{integer}").expect("a Vec takes any bytes")
            }
            (_, _, Value::Real(real)) => json(out, real),
        }
    }

    fn message_id_of(&self, user: User<'_>, value: &[u8]) -> MessageId {
        let mut hash = self.digest.clone();
        hash.update(match user.kind {
            UserKind::UserId => b"user\0".as_slice(),
            UserKind::AnonymousId => b"anonymous\0",
        });
        hash.update(user.id.as_bytes());
        hash.update([0]);
        hash.update(value);
        hash.update([0]);
        let hash = hash.finalize();
        MessageId::new(
            self.started_at,
            hash[..16].try_into().expect("the first 16 of 32 bytes"),
        )
    }
}

/// The end of a line: all of its times are one.
fn times(at: Timestamp) -> Vec<u8> {
    format!(
        "\",\"timestamp\":\"{at}\",\"originalTimestamp\":\"{at}\",\"receivedAt\":\"{at}\",\"sentAt\":null}}\n"
    )
    .into_bytes()
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(b',');
    json(out, name);
    out.push(b':');
    json(out, value);
}

fn anonymous_id<'a>(change: &Change<'a>) -> Option<&'a str> {
    match change.member.user.kind {
        UserKind::UserId => change.member.anonymous_id,
        UserKind::AnonymousId => Some(change.member.user.id),
    }
}

/// Appends a value as JSON.
fn json(out: &mut Vec<u8>, value: impl serde::Serialize) {
    value
        .serialize(&mut serde_json::Serializer::new(out))
        .expect("text and finite numbers are JSON");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::Member;

    fn identify(class: Class, space_id: Option<&str>) -> Identify {
        Identify::new(&Computation {
            audience: AudienceId::new("order_completed_last_30days"),
            key: Key::new("order_completed_last_30days"),
            class,
            stream: StreamName::parse("members").unwrap(),
            run: RunId::parse("0195f3c2-0000-7000-8000-000000000000").unwrap(),
            started_at: Timestamp::from_millis(1_795_428_000_000),
            space_id: space_id.map(str::to_owned),
        })
    }

    fn change<'a>(action: Action, kind: UserKind, id: &'a str, value: Value<'a>) -> Change<'a> {
        Change {
            action,
            member: Member {
                user: User { kind, id },
                anonymous_id: None,
                value,
                traits: "",
            },
        }
    }

    fn line(identify: &Identify, change: &Change<'_>) -> String {
        let mut line = Vec::new();
        identify.render(change, &mut line);
        assert!(line.len() <= identify.longest_line(change));
        String::from_utf8(line).unwrap()
    }

    /// Consumers parse these bytes and deduplicate on the `messageId`: a change here breaks them, and makes what an
    /// older version left in a journal arrive under another id.
    #[test]
    fn the_bytes_of_a_record_are_frozen() {
        let entering = change(Action::Enter, UserKind::UserId, "user_1", Value::True);
        assert_eq!(
            line(&identify(Class::Audience, Some("spa_x")), &entering),
            concat!(
                r#"{"type":"identify","userId":"user_1","traits":{"order_completed_last_30days":true},"#,
                r#""context":{"library":{"name":"audience-sync"},"personas":{"computation_class":"audience","#,
                r#""computation_id":"order_completed_last_30days","computation_key":"order_completed_last_30days","#,
                r#""computation_run_id":"0195f3c2-0000-7000-8000-000000000000","namespace":"spa_x","space_id":"spa_x"}},"#,
                r#""integrations":{"All":false,"Amazon Kinesis Firehose":true},"#,
                r#""messageId":"personas_3MVFoAmr4SqmFFHNvi8EgGwV9iA","timestamp":"2026-11-23T10:00:00.001Z","#,
                r#""originalTimestamp":"2026-11-23T10:00:00.001Z","receivedAt":"2026-11-23T10:00:00.001Z","sentAt":null}"#,
                "\n"
            )
        );
    }

    /// The traits object of a line, which is where changes differ.
    fn check(class: Class, change: &Change<'_>, expected_start: &str) {
        let line = line(&identify(class, None), change);
        assert!(line.starts_with(expected_start), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["context"]["personas"].get("space_id"), None);
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn leaving_says_false_or_null() {
        let leaving = change(Action::Leave, UserKind::UserId, "u", Value::Integer(7));
        check(
            Class::Audience,
            &leaving,
            r#"{"type":"identify","userId":"u","traits":{"order_completed_last_30days":false},"#,
        );
        check(
            Class::Trait,
            &leaving,
            r#"{"type":"identify","userId":"u","traits":{"order_completed_last_30days":null},"#,
        );
    }

    #[test]
    fn values_are_written_as_the_query_gave_them() {
        for (value, json) in [
            (Value::Integer(-5), "-5"),
            (Value::Real(450.0), "450.0"),
            (Value::Real(1e300), "1e+300"),
            (Value::Text("a\"b\n"), r#""a\"b\n""#),
        ] {
            let changed = change(Action::Change, UserKind::UserId, "u", value);
            let start = format!(
                r#"{{"type":"identify","userId":"u","traits":{{"order_completed_last_30days":{json}}},"#
            );
            check(Class::Trait, &changed, &start);
        }
    }

    #[test]
    fn both_identifiers_are_carried_and_extra_traits_follow_the_value() {
        let mut entering = change(Action::Enter, UserKind::UserId, "u", Value::True);
        entering.member.anonymous_id = Some("anon");
        entering.member.traits = r#","email":"e""#;
        check(
            Class::Audience,
            &entering,
            r#"{"type":"identify","userId":"u","anonymousId":"anon","traits":{"order_completed_last_30days":true,"email":"e"},"#,
        );
        entering.action = Action::Leave;
        check(
            Class::Audience,
            &entering,
            r#"{"type":"identify","userId":"u","anonymousId":"anon","traits":{"order_completed_last_30days":false},"#,
        );
        let anonymous = change(Action::Enter, UserKind::AnonymousId, "anon", Value::True);
        check(
            Class::Audience,
            &anonymous,
            r#"{"type":"identify","anonymousId":"anon","traits":{"#,
        );
    }

    #[test]
    fn hostile_ids_stay_inside_their_line() {
        let all_escaped = "\u{1}".repeat(1024);
        for id in [
            "\"},\"userId\":\"x",
            "a\nb\r\t",
            "\u{1f600}\u{2028}",
            "\\",
            &all_escaped,
        ] {
            let entering = change(Action::Enter, UserKind::UserId, id, Value::True);
            let line = line(&identify(Class::Audience, None), &entering);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(parsed["userId"], id);
            assert_eq!(line.matches('\n').count(), 1);
        }
    }

    #[test]
    fn message_ids_differ_by_user_kind_and_value_and_by_nothing_else() {
        let identify = identify(Class::Trait, None);
        let id = |change: &Change<'_>| identify.message_id(change).to_string();
        let one = change(Action::Enter, UserKind::UserId, "u", Value::Integer(1));
        assert_eq!(
            id(&one),
            id(&Change {
                action: Action::Repeat,
                ..one
            })
        );
        for other in [
            change(Action::Enter, UserKind::AnonymousId, "u", Value::Integer(1)),
            change(Action::Enter, UserKind::UserId, "v", Value::Integer(1)),
            change(Action::Enter, UserKind::UserId, "u", Value::Integer(2)),
            change(Action::Leave, UserKind::UserId, "u", Value::Integer(1)),
        ] {
            assert_ne!(id(&one), id(&other));
        }
        assert!(line(&identify, &one).contains(&id(&one)));
    }
}
