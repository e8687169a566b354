//! The bytes of a chunk: what is needed to render the same records again, by this version or a later one.
//!
//! The first byte is the format. Then the entries, each a byte of flags and the texts it announces, every text with
//! its length before it (LEB128). Ids are not compressed: a chunk is read as often as it is written.

use crate::audience::{Action, Change, Member, User, UserKind, Value};

const CHANGES: u8 = 1;
const CALLS: u8 = 2;

/// Bits 0 and 1: the action.
const ACTIONS: [Action; 4] = [Action::Enter, Action::Change, Action::Repeat, Action::Leave];
const ANONYMOUS: u8 = 1 << 2;
const HAS_ANONYMOUS_ID: u8 = 1 << 3;
/// Bits 4 and 5: the kind of value.
const TEXT: u8 = 1 << 4;
const INTEGER: u8 = 2 << 4;
const REAL: u8 = 3 << 4;
const VALUE: u8 = 3 << 4;
const HAS_TRAITS: u8 = 1 << 6;

/// Bytes that are not entries of a format this version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entries of a chunk cannot be read")]
pub struct Unreadable;

/// Appends a change; the first one opens the chunk.
pub fn push_change(entries: &mut Vec<u8>, change: &Change<'_>) {
    if entries.is_empty() {
        entries.push(CHANGES);
    }
    let Change { action, member } = change;
    let leaving = *action == Action::Leave;
    let traits = if leaving { "" } else { member.traits };
    let value = if leaving { Value::True } else { member.value };
    let mut flags = ACTIONS
        .iter()
        .position(|known| known == action)
        .expect("every action is listed") as u8;
    if member.user.kind == UserKind::AnonymousId {
        flags |= ANONYMOUS;
    }
    if member.anonymous_id.is_some() {
        flags |= HAS_ANONYMOUS_ID;
    }
    flags |= match value {
        Value::True => 0,
        Value::Text(_) => TEXT,
        Value::Integer(_) => INTEGER,
        Value::Real(_) => REAL,
    };
    if !traits.is_empty() {
        flags |= HAS_TRAITS;
    }
    entries.push(flags);
    push_bytes(entries, member.user.id.as_bytes());
    if let Some(id) = member.anonymous_id {
        push_bytes(entries, id.as_bytes());
    }
    match value {
        Value::True => {}
        Value::Text(text) => push_bytes(entries, text.as_bytes()),
        Value::Integer(integer) => entries.extend(integer.to_le_bytes()),
        Value::Real(real) => entries.extend(real.to_le_bytes()),
    }
    if !traits.is_empty() {
        push_bytes(entries, traits.as_bytes());
    }
}

/// Appends the line of a Segment call, newline included.
pub fn push_call(entries: &mut Vec<u8>, line: &[u8]) {
    if entries.is_empty() {
        entries.push(CALLS);
    }
    push_bytes(entries, line);
}

fn push_bytes(entries: &mut Vec<u8>, bytes: &[u8]) {
    let mut length = bytes.len();
    while length >= 0x80 {
        entries.push(length as u8 | 0x80);
        length >>= 7;
    }
    entries.push(length as u8);
    entries.extend(bytes);
}

/// The changes of a chunk, in the order of users.
pub fn changes(entries: &[u8]) -> impl Iterator<Item = Result<Change<'_>, Unreadable>> {
    let mut reader = Reader::of(entries, CHANGES);
    std::iter::from_fn(move || reader.next(Reader::change))
}

/// Where each change of a chunk begins, for [`change_at`].
pub fn starts(entries: &[u8]) -> Result<Vec<usize>, Unreadable> {
    let mut reader = Reader::of(entries, CHANGES);
    let mut starts = Vec::new();
    loop {
        let start = entries.len() - reader.rest?.len();
        match reader.next(Reader::change) {
            Some(change) => change.map(|_| starts.push(start))?,
            None => return Ok(starts),
        }
    }
}

/// The change that begins there.
pub fn change_at(entries: &[u8], start: usize) -> Result<Change<'_>, Unreadable> {
    let rest = entries.get(start..).ok_or(Unreadable);
    Reader { rest }.change()
}

/// The lines of a chunk of calls.
pub fn calls(entries: &[u8]) -> impl Iterator<Item = Result<&[u8], Unreadable>> {
    let mut reader = Reader::of(entries, CALLS);
    std::iter::from_fn(move || reader.next(Reader::bytes))
}

struct Reader<'a> {
    rest: Result<&'a [u8], Unreadable>,
}

impl<'a> Reader<'a> {
    fn of(entries: &'a [u8], format: u8) -> Self {
        Self {
            rest: entries
                .split_first()
                .filter(|(first, _)| **first == format)
                .map(|(_, rest)| rest)
                .ok_or(Unreadable),
        }
    }

    /// The next entry; after one that cannot be read, none.
    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Unreadable>,
    ) -> Option<Result<T, Unreadable>> {
        if self.rest == Ok(&[]) {
            return None;
        }
        let entry = read(self);
        if entry.is_err() {
            self.rest = Ok(&[]);
        }
        Some(entry)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.rest?.split_at_checked(count).ok_or(Unreadable)?;
        self.rest = Ok(rest);
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        Ok(self.take(1)?[0])
    }

    fn eight(&mut self) -> Result<[u8; 8], Unreadable> {
        self.take(8)?.try_into().map_err(|_| Unreadable)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Unreadable> {
        let mut length = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return self.take(length);
            }
        }
        Err(Unreadable)
    }

    fn text(&mut self) -> Result<&'a str, Unreadable> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Unreadable)
    }

    fn change(&mut self) -> Result<Change<'a>, Unreadable> {
        let flags = self.byte()?;
        let kind = if flags & ANONYMOUS == 0 {
            UserKind::UserId
        } else {
            UserKind::AnonymousId
        };
        let user = User {
            kind,
            id: self.text()?,
        };
        let anonymous_id = if flags & HAS_ANONYMOUS_ID == 0 {
            None
        } else {
            Some(self.text()?)
        };
        let value = match flags & VALUE {
            TEXT => Value::Text(self.text()?),
            INTEGER => Value::Integer(i64::from_le_bytes(self.eight()?)),
            REAL => Value::Real(f64::from_le_bytes(self.eight()?)),
            _ => Value::True,
        };
        let traits = if flags & HAS_TRAITS == 0 {
            ""
        } else {
            self.text()?
        };
        let action = ACTIONS[usize::from(flags & 3)];
        Ok(Change {
            action,
            member: Member {
                user,
                anonymous_id,
                value,
                traits,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change<'a>(action: Action, id: &'a str, value: Value<'a>) -> Change<'a> {
        let user = User {
            kind: UserKind::UserId,
            id,
        };
        Change {
            action,
            member: Member {
                user,
                anonymous_id: None,
                value,
                traits: "",
            },
        }
    }

    fn encoded(changes: &[Change<'_>]) -> Vec<u8> {
        let mut entries = Vec::new();
        for change in changes {
            push_change(&mut entries, change);
        }
        entries
    }

    /// Snapshots that people have hold these bytes: a new format gets a new number, and this one is read for ever.
    #[test]
    fn the_bytes_of_a_chunk_are_frozen() {
        let mut anonymous = change(Action::Repeat, "a", Value::Integer(-2));
        anonymous.member.user.kind = UserKind::AnonymousId;
        let mut both = change(Action::Enter, "u", Value::True);
        both.member.anonymous_id = Some("a");
        both.member.traits = r#","x":1"#;
        let entries = encoded(&[
            change(Action::Enter, "user_1", Value::True),
            both,
            change(Action::Change, "v", Value::Text("é")),
            anonymous,
            change(Action::Change, "w", Value::Real(1.5)),
            change(Action::Leave, "x", Value::Integer(9)),
        ]);
        let frozen = [
            b"\x01".as_slice(),
            b"\x00\x06user_1",
            b"\x48\x01u\x01a\x06,\"x\":1",
            b"\x11\x01v\x02\xc3\xa9",
            b"\x26\x01a\xfe\xff\xff\xff\xff\xff\xff\xff",
            b"\x31\x01w\x00\x00\x00\x00\x00\x00\xf8\x3f",
            b"\x03\x01x",
        ]
        .concat();
        assert_eq!(entries, frozen);
        let mut calls = Vec::new();
        push_call(&mut calls, b"{}\n");
        push_call(&mut calls, &[b'x'; 300]);
        assert_eq!(calls[..7], *b"\x02\x03{}\n\xac\x02");
    }

    #[test]
    fn what_was_written_is_read() {
        let long = "x".repeat(1024);
        let mut both = change(Action::Enter, &long, Value::Text(""));
        both.member.anonymous_id = Some("");
        both.member.traits = r#","email":null"#;
        let written = [
            both,
            change(Action::Leave, "z", Value::True),
            change(Action::Change, "ü", Value::Integer(i64::MIN)),
        ];
        let entries = encoded(&written);
        let read: Vec<_> = changes(&entries).map(Result::unwrap).collect();
        assert_eq!(read, written);
        let starts = starts(&entries).unwrap();
        let read = starts.iter().map(|start| change_at(&entries, *start));
        assert_eq!(read.collect::<Result<Vec<_>, _>>().unwrap(), written);

        let mut entries = Vec::new();
        push_call(&mut entries, b"one\n");
        push_call(&mut entries, b"two\n");
        assert_eq!(
            calls(&entries).map(Result::unwrap).collect::<Vec<_>>(),
            [b"one\n", b"two\n"]
        );
    }

    #[test]
    fn damaged_bytes_are_an_error_and_never_a_panic() {
        let mut both = change(Action::Enter, "user", Value::Text("value"));
        both.member.anonymous_id = Some("anonymous");
        both.member.traits = r#","x":1"#;
        let entries = encoded(&[both]);
        for length in 0..entries.len() {
            let read: Vec<_> = changes(&entries[..length]).collect();
            assert!(
                length == 1 || read == [Err(Unreadable)],
                "{length}: {read:?}"
            );
        }
        assert_eq!(changes(b"\x09").collect::<Vec<_>>(), [Err(Unreadable)]);
        assert_eq!(
            changes(b"\x01\x00\xff\xff\xff\xff\xff\xff").collect::<Vec<_>>(),
            [Err(Unreadable)]
        );
        assert_eq!(calls(b"\x01\x00").count(), 1);
    }
}

#[cfg(test)]
mod laws {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::{cases, ids, kinds, user};

    #[derive(Debug, Clone)]
    enum Owned {
        True,
        Text(String),
        Integer(i64),
        Real(f64),
    }

    type Entry = (Action, (UserKind, String), Option<String>, Owned, String);

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let value = prop_oneof![
            Just(Owned::True),
            "\\PC{0,200}".prop_map(Owned::Text),
            any::<i64>().prop_map(Owned::Integer),
            any::<f64>().prop_map(Owned::Real),
        ];
        let traits = prop_oneof![Just(String::new()), ",\"x\":\"\\PC{0,200}\""];
        let entry = (
            prop::sample::select(&ACTIONS[..]),
            (kinds(), ids()),
            option::of(ids()),
            value,
            traits,
        );
        vec(entry, 0..20)
    }

    /// Who leaves takes nothing along but the identifiers.
    fn change<'a>(
        (action, of, anonymous_id, value, traits): &'a Entry,
        is_kept: bool,
    ) -> Change<'a> {
        let value = match value {
            Owned::Text(text) if is_kept => Value::Text(text),
            Owned::Integer(integer) if is_kept => Value::Integer(*integer),
            Owned::Real(real) if is_kept => Value::Real(*real),
            _ => Value::True,
        };
        Change {
            action: *action,
            member: Member {
                user: user(of),
                anonymous_id: anonymous_id.as_deref(),
                value,
                traits: if is_kept { traits } else { "" },
            },
        }
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in entries {
            push_change(&mut bytes, &change(entry, true));
        }
        bytes
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn what_is_written_is_read(entries in entries()) {
            let bytes = written(&entries);
            // A chunk is opened by its first entry.
            prop_assert_eq!(bytes.is_empty(), entries.is_empty());
            if entries.is_empty() {
                return Ok(());
            }
            let read: Vec<_> = changes(&bytes).map(Result::unwrap).collect();
            let expected: Vec<_> =
                entries.iter().map(|entry| change(entry, entry.0 != Action::Leave)).collect();
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn a_chunk_that_is_cut_off_tells_no_lies(entries in entries(), kept in 0.0..1.0) {
            let bytes = written(&entries);
            let cut = &bytes[..(bytes.len() as f64 * kept) as usize];
            let whole: Vec<_> = changes(&bytes).collect();
            let mut read: Vec<_> = changes(cut).collect();
            if read.last().is_some_and(Result::is_err) {
                read.pop();
            }
            prop_assert_eq!(&read[..], &whole[..read.len()]);
        }

        #[test]
        fn no_bytes_panic_or_go_on_for_ever(mut bytes in vec(any::<u8>(), 0..300), format in 0_u8..4) {
            if let Some(first) = bytes.first_mut() {
                *first = format;
            }
            let read = changes(&bytes).count().max(calls(&bytes).count());
            prop_assert!(read <= bytes.len().max(1));
        }

        #[test]
        fn lines_are_read_as_they_were_written(lines in vec(vec(any::<u8>(), 0..300), 1..20)) {
            let mut bytes = Vec::new();
            for line in &lines {
                push_call(&mut bytes, line);
            }
            let read: Vec<_> = calls(&bytes).map(Result::unwrap).collect();
            prop_assert_eq!(read, lines);
        }
    }
}
