//! A Segment call that somebody else made, as one line of JSON.
//!
//! Only what the mapping and Segment's spec need is looked at; every other field is passed on as it was written,
//! digit by digit. <https://segment.com/docs/connections/spec/common/>

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::run::Timestamp;

/// The calls of Segment's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallType {
    Identify,
    Track,
    Page,
    Screen,
    Group,
    Alias,
}

impl CallType {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Identify, "identify"),
        (Self::Track, "track"),
        (Self::Page, "page"),
        (Self::Screen, "screen"),
        (Self::Group, "group"),
        (Self::Alias, "alias"),
    ];

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, known)| *known == name)
            .map(|(call, _)| call)
    }

    /// The fields that must hold a text for a call to mean anything, beside the user.
    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Track => &["event"],
            Self::Group => &["groupId"],
            Self::Alias => &["previousId", "userId"],
            Self::Identify | Self::Page | Self::Screen => &[],
        }
    }
}

/// Why a line is not a Segment call. The line itself is never repeated: it may hold personal data.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("not a JSON object: {0}")]
    NotJson(String),
    #[error("`type` is missing")]
    NoType,
    #[error("`type` is not one of identify, track, page, screen, group, alias")]
    UnknownType,
    #[error("`{0}` is missing or not a text")]
    Missing(&'static str),
    #[error("`{0}` is not a text")]
    NotText(&'static str),
    #[error("neither `userId` nor `anonymousId` names a user")]
    NoUser,
    #[error("`messageId` is over 100 bytes")] // Segment drops such calls silently.
    LongMessageId,
}

/// A valid call, complete with message id and timestamps.
#[derive(Debug)]
pub struct Call {
    pub call: CallType,
    /// The name of a Track event.
    pub event: Option<String>,
    /// JSON and a newline.
    pub line: Vec<u8>,
}

impl Call {
    /// Checks a line and fills in what is missing: `messageId` and the four timestamps.
    pub fn parse(
        line: &str,
        now: Timestamp,
        new_message_id: impl FnOnce() -> String,
    ) -> Result<Self, CallError> {
        let mut fields: IndexMap<String, Box<RawValue>> = serde_json::from_str(line)
            .map_err(|error| CallError::NotJson(position_only(&error)))?;
        let name = text(&fields, "type")?.ok_or(CallError::NoType)?;
        let call = CallType::parse(&name).ok_or(CallError::UnknownType)?;
        for field in call.required() {
            text(&fields, field)?
                .filter(|value| !value.is_empty())
                .ok_or(CallError::Missing(field))?;
        }
        let named =
            |field| Ok::<_, CallError>(text(&fields, field)?.is_some_and(|id| !id.is_empty()));
        if !(named("userId")? | named("anonymousId")?) {
            return Err(CallError::NoUser);
        }
        let event = text(&fields, "event")?;

        match text(&fields, "messageId")?.filter(|id| !id.is_empty()) {
            Some(id) if id.len() > 100 => return Err(CallError::LongMessageId),
            Some(_) => {}
            None => set(&mut fields, "messageId", new_message_id()),
        }
        let now = to_raw_value(&now.to_string()).expect("text is JSON");
        let original = given(&fields, "originalTimestamp")?;
        let timestamp = given(&fields, "timestamp")?;
        let either = original.or(timestamp).unwrap_or(&now).to_owned();
        for (field, value) in [
            ("originalTimestamp", &either),
            ("timestamp", &either),
            ("receivedAt", &now),
            ("sentAt", &now),
        ] {
            if given(&fields, field)?.is_none() {
                fields.insert(field.to_owned(), value.clone());
            }
        }
        let mut line = serde_json::to_vec(&fields).expect("raw JSON is JSON");
        line.push(b'\n');
        Ok(Self {
            call,
            event: event.filter(|_| call == CallType::Track),
            line,
        })
    }
}

/// The field as a text; `None` where it is missing or null.
fn text(
    fields: &IndexMap<String, Box<RawValue>>,
    name: &'static str,
) -> Result<Option<String>, CallError> {
    let Some(raw) = fields.get(name) else {
        return Ok(None);
    };
    serde_json::from_str(raw.get()).map_err(|_| CallError::NotText(name))
}

/// The field as it was written, where it is a text.
fn given<'f>(
    fields: &'f IndexMap<String, Box<RawValue>>,
    name: &'static str,
) -> Result<Option<&'f RawValue>, CallError> {
    let is_given = text(fields, name)?.is_some();
    Ok(fields.get(name).map(AsRef::as_ref).filter(|_| is_given))
}

fn set(fields: &mut IndexMap<String, Box<RawValue>>, name: &str, value: impl Serialize) {
    fields.insert(name.to_owned(), to_raw_value(&value).expect("text is JSON"));
}

/// What is wrong and where, without the words of the input that serde quotes.
pub(super) fn position_only(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "it is another kind of value",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => "it is not JSON",
    };
    format!("{what} (column {})", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_428_000_000);

    fn parse(line: &str) -> Result<Call, CallError> {
        Call::parse(line, NOW, || "new-id".to_owned())
    }

    fn check(line: &str, expected: &str) {
        let call = parse(line).unwrap();
        assert_eq!(
            String::from_utf8(call.line).unwrap(),
            format!("{expected}\n")
        );
    }

    #[test]
    fn what_is_missing_is_filled_in_after_what_was_given() {
        check(
            r#"{"type":"identify","userId":"u"}"#,
            concat!(
                r#"{"type":"identify","userId":"u","messageId":"new-id","originalTimestamp":"2026-11-23T10:00:00.000Z","#,
                r#""timestamp":"2026-11-23T10:00:00.000Z","receivedAt":"2026-11-23T10:00:00.000Z","sentAt":"2026-11-23T10:00:00.000Z"}"#
            ),
        );
    }

    #[test]
    fn unknown_fields_and_their_digits_are_kept() {
        let given = concat!(
            r#"{"type":"page","anonymousId":"a","messageId":"m","originalTimestamp":"o","timestamp":"t","receivedAt":"r","#,
            r#""sentAt":"s","properties":{"n":12345678901234567890123,"e":1.50,"x":1e400},"_new":[1, 2]}"#
        );
        check(given, given);
    }

    /// Whoever signed or hashed their fields finds them again.
    #[test]
    fn fields_that_are_looked_at_are_kept_as_they_are_written() {
        let given = concat!(
            r#"{"type":"page","anonymousId":"a","messageId":"\u006d","originalTimestamp":"\/o","timestamp":"\/t","#,
            r#""receivedAt":"\/r","sentAt":"\/s"}"#
        );
        check(given, given);
    }

    #[test]
    fn a_missing_timestamp_is_taken_from_the_other_one() {
        let line = parse(r#"{"type":"page","userId":"u","timestamp":"2020-01-01T00:00:00Z"}"#)
            .unwrap()
            .line;
        let fields: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(fields["originalTimestamp"], "2020-01-01T00:00:00Z");
        assert_eq!(fields["receivedAt"], "2026-11-23T10:00:00.000Z");
    }

    #[test]
    fn only_track_events_have_a_name() {
        assert_eq!(
            parse(r#"{"type":"track","userId":"u","event":"E"}"#)
                .unwrap()
                .event
                .as_deref(),
            Some("E")
        );
        assert_eq!(
            parse(r#"{"type":"page","userId":"u","event":"E"}"#)
                .unwrap()
                .event,
            None
        );
    }

    #[test]
    fn what_is_not_a_call_is_refused_with_a_reason() {
        for (line, reason) in [
            ("nonsense", "not a JSON object: it is not JSON (column 2)"),
            (
                "[1]",
                "not a JSON object: it is another kind of value (column 0)",
            ),
            (
                r#"{"type":"identify""#,
                "not a JSON object: it ends too early (column 18)",
            ),
            (r#"{"userId":"u"}"#, "`type` is missing"),
            (
                r#"{"type":"sms","userId":"u"}"#,
                "`type` is not one of identify, track, page, screen, group, alias",
            ),
            (r#"{"type":7,"userId":"u"}"#, "`type` is not a text"),
            (
                r#"{"type":"identify"}"#,
                "neither `userId` nor `anonymousId` names a user",
            ),
            (
                r#"{"type":"identify","userId":""}"#,
                "neither `userId` nor `anonymousId` names a user",
            ),
            (
                r#"{"type":"identify","userId":5}"#,
                "`userId` is not a text",
            ),
            (
                r#"{"type":"track","userId":"u"}"#,
                "`event` is missing or not a text",
            ),
            (
                r#"{"type":"group","userId":"u"}"#,
                "`groupId` is missing or not a text",
            ),
            (
                r#"{"type":"alias","userId":"u"}"#,
                "`previousId` is missing or not a text",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), reason, "{line}");
        }
        let long = format!(
            r#"{{"type":"page","userId":"u","messageId":"{}"}}"#,
            "m".repeat(101)
        );
        assert!(matches!(parse(&long), Err(CallError::LongMessageId)));
    }
}
