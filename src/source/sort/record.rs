//! A member as bytes, in memory and in a temporary file alike.
//!
//! ```text
//! record  length of the key, twice, and one more where there is more   [length of more]   key   [more]
//! key     kind   id
//! more    what it holds   [length, anonymous id]   [length, text | eight bytes]   traits
//! ```
//!
//! Nearly all are a key of less than 64 bytes, and one byte before it. Keys compare as their users do. Nothing of this
//! outlives its process, so it has no version.

use std::cmp::Ordering;

use crate::audience::{Member, MemberBuf, User, UserKind, Value, ValueBuf};

/// What a record holds beside its key.
const HAS_ANONYMOUS_ID: u8 = 0b100;
const TRUE: u8 = 0;
const TEXT: u8 = 1;
const INTEGER: u8 = 2;
const REAL: u8 = 3;

/// Where a record is.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    key: usize,
    more: usize,
    pub(super) end: usize,
}

/// The record that begins here; `None` where none does.
#[inline]
pub(super) fn find(bytes: &[u8], at: usize) -> Option<Place> {
    let mut rest = bytes.get(at..)?;
    let number = read_number(&mut rest)?;
    let more_length = match number % 2 {
        0 => 0,
        _ => read_number(&mut rest)?,
    };
    let key = bytes.len() - rest.len();
    let more = key.checked_add(number / 2)?;
    let end = more.checked_add(more_length)?;
    (key < more && end <= bytes.len()).then_some(Place { key, more, end })
}

/// How many bytes [`write()`] adds for a member.
pub(super) fn length(member: &Member<'_>) -> usize {
    let key = 1 + member.user.id.len();
    let more = match is_plain(member) {
        true => 0,
        false => with_length(more_length(member)),
    };
    number_length(key * 2) + key + more
}

/// Adds the record of a member.
pub(super) fn write(member: &Member<'_>, into: &mut Vec<u8>) {
    let User { kind, id } = member.user;
    let has_more = !is_plain(member);
    write_number((1 + id.len()) * 2 + usize::from(has_more), into);
    if has_more {
        write_number(more_length(member), into);
    }
    into.push(kind as u8);
    into.extend_from_slice(id.as_bytes());
    if has_more {
        write_more(member, into);
    }
}

impl Place {
    /// Empty where there is no record.
    #[inline]
    pub(super) fn key(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.key..self.more]
    }

    /// Makes it a member again; `None` where it is none.
    pub(super) fn read(self, bytes: &[u8], member: &mut MemberBuf) -> Option<()> {
        let (kind, id) = self.key(bytes).split_first()?;
        member.kind = match kind {
            0 => UserKind::UserId,
            1 => UserKind::AnonymousId,
            _ => return None,
        };
        put(&mut member.id, id)?;
        member.traits.clear();
        if self.more == self.end {
            member.anonymous_id = None;
            member.value = ValueBuf::True;
            return Some(());
        }
        read_more(&bytes[self.more..self.end], member)
    }
}

/// How a key compares with the one of this user.
#[inline]
pub(super) fn compare(key: &[u8], user: User<'_>) -> Ordering {
    match key.split_first() {
        Some((kind, id)) => (*kind)
            .cmp(&(user.kind as u8))
            .then_with(|| id.cmp(user.id.as_bytes())),
        None => Ordering::Less,
    }
}

fn is_plain(member: &Member<'_>) -> bool {
    member.anonymous_id.is_none() && member.traits.is_empty() && matches!(member.value, Value::True)
}

fn more_length(member: &Member<'_>) -> usize {
    let anonymous_id = member.anonymous_id.map_or(0, |id| with_length(id.len()));
    let value = match member.value {
        Value::True => 0,
        Value::Text(text) => with_length(text.len()),
        Value::Integer(_) | Value::Real(_) => 8,
    };
    1 + anonymous_id + value + member.traits.len()
}

fn write_more(member: &Member<'_>, into: &mut Vec<u8>) {
    let holds = match member.value {
        Value::True => TRUE,
        Value::Text(_) => TEXT,
        Value::Integer(_) => INTEGER,
        Value::Real(_) => REAL,
    };
    let anonymous_id = member.anonymous_id.map_or(0, |_| HAS_ANONYMOUS_ID);
    into.push(holds | anonymous_id);
    if let Some(id) = member.anonymous_id {
        write_bytes(id.as_bytes(), into);
    }
    match member.value {
        Value::True => {}
        Value::Text(text) => write_bytes(text.as_bytes(), into),
        Value::Integer(integer) => into.extend_from_slice(&integer.to_le_bytes()),
        Value::Real(real) => into.extend_from_slice(&real.to_le_bytes()),
    }
    into.extend_from_slice(member.traits.as_bytes());
}

fn read_more(mut rest: &[u8], member: &mut MemberBuf) -> Option<()> {
    let holds = *rest.split_off_first()?;
    member.anonymous_id = match holds & HAS_ANONYMOUS_ID {
        0 => None,
        _ => Some(text(read_bytes(&mut rest)?)?.to_owned()),
    };
    member.value = match holds & !HAS_ANONYMOUS_ID {
        TRUE => ValueBuf::True,
        TEXT => ValueBuf::Text(text(read_bytes(&mut rest)?)?.to_owned()),
        INTEGER => ValueBuf::Integer(i64::from_le_bytes(read_eight(&mut rest)?)),
        REAL => ValueBuf::Real(f64::from_le_bytes(read_eight(&mut rest)?)),
        _ => return None,
    };
    put(&mut member.traits, rest)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn put(place: &mut String, bytes: &[u8]) -> Option<()> {
    place.clear();
    place.push_str(text(bytes)?);
    Some(())
}

fn read_eight(rest: &mut &[u8]) -> Option<[u8; 8]> {
    rest.split_off(..8)?.try_into().ok()
}

fn write_bytes(bytes: &[u8], into: &mut Vec<u8>) {
    write_number(bytes.len(), into);
    into.extend_from_slice(bytes);
}

fn read_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = read_number(rest)?;
    rest.split_off(..length)
}

/// Of so many bytes, and the number that says how many.
fn with_length(bytes: usize) -> usize {
    number_length(bytes) + bytes
}

fn number_length(number: usize) -> usize {
    let bits = usize::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Seven bits a byte, the lowest first; all bytes but the last have the eighth.
fn write_number(mut number: usize, into: &mut Vec<u8>) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    let mut shift = 0;
    loop {
        let byte = *rest.split_off_first()?;
        number |= usize::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(number);
        }
        shift += 7;
    }
}
