//! Rows as members: checked, each once, in order.

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Row, Rows};

use super::Sqlite;
use super::layout::Layout;
use super::state::State;
use crate::audience::{Audience, MAX_ID_BYTES, Member, MemberBuf, User, UserKind, ValueBuf};
use crate::diff::{Members, Presence};
use crate::source::{Doubt, Fingerprint, Question, Skipped, SourceError, is_greater};

/// The members of one audience, each once.
pub struct SqliteMembers<'s> {
    source: &'s Sqlite,
    audience: &'s Audience,
    question: Question,
    columns: Columns<'s>,
    rows: Rows<'s>,
    current: Read,
    /// One row ahead, to see whether it is the same user again.
    next: Read,
    has_next: bool,
    /// Some ids are integers. They sort before text, so the first member tells.
    pub(super) has_numbers: bool,
    /// What the file was before it was read, where the same file gives the same members.
    before: Result<&'s State, Doubt>,
    pub skipped: Skipped,
}

/// What a row says.
#[derive(Default)]
struct Read {
    member: MemberBuf,
    presence: Presence,
}

impl Read {
    fn user(&self) -> User<'_> {
        self.member.user()
    }
}

/// Which column of the sorted result is what, worked out once and not for every row.
struct Columns<'s> {
    user_id: Option<usize>,
    anonymous_id: Option<usize>,
    value: Option<usize>,
    is_member: Option<usize>,
    traits: Vec<(usize, &'s str)>,
}

impl<'s> Columns<'s> {
    /// Ids come first, then the value or what is in its place, then the traits.
    fn of(layout: &'s Layout) -> Self {
        let ids = layout.id_columns().len();
        let first_trait = ids + layout.value.iter().chain(&layout.is_member).count();
        let names = layout.traits.iter().map(|(name, _)| name.as_str());
        Self {
            user_id: layout.user_id.map(|_| 0),
            anonymous_id: layout.anonymous_id.map(|_| ids - 1),
            value: layout.value.map(|_| ids),
            is_member: layout.is_member.map(|_| ids),
            traits: (first_trait..).zip(names).collect(),
        }
    }
}

/// What a column of ids held.
enum Id {
    Present,
    Null,
    Unusable(Reason),
}

/// Why an id cannot be used.
enum Reason {
    Empty,
    TooLong,
    HoldsNul,
    NotUtf8,
}

impl<'s> SqliteMembers<'s> {
    pub(super) fn new(
        source: &'s Sqlite,
        audience: &'s Audience,
        layout: &'s Layout,
        rows: Rows<'s>,
        before: Result<&'s State, Doubt>,
    ) -> Self {
        Self {
            source,
            audience,
            question: layout.question,
            columns: Columns::of(layout),
            rows,
            current: Read::default(),
            next: Read::default(),
            has_next: false,
            has_numbers: false,
            before,
            skipped: Skipped::default(),
        }
    }

    /// Moves up to the first member, without which [`advance`](Members::advance) finds none.
    pub(super) fn start(&mut self) -> Result<(), SourceError> {
        self.has_next = self.read_next()?;
        Ok(())
    }

    /// What the file is of which all members are read by now; `None` where that is in doubt.
    pub(in crate::source) fn read_from(&self) -> Option<Fingerprint> {
        let is_same = |before: &&State| State::of(&self.source.path).as_ref() == Ok(*before);
        let whole = |before: &'s State| Some(before).filter(is_same).ok_or(Doubt::Written);
        match self.before.and_then(whole) {
            Ok(before) => Some(before.fingerprint()),
            Err(doubt) => {
                if self.question == Question::Members {
                    let name = &self.audience.name;
                    tracing::debug!(
                        "{name:?}: what the source was when it was read is not known: {doubt}"
                    );
                }
                None
            }
        }
    }

    /// Reads on to the next row that is a member; `false` at the end.
    fn read_next(&mut self) -> Result<bool, SourceError> {
        while let Some(row) = self
            .rows
            .next()
            .map_err(|error| self.source.unreadable(error))?
        {
            let mut reader = RowReader {
                columns: &self.columns,
                audience: self.audience,
                question: self.question,
                skipped: &mut self.skipped,
                has_numbers: &mut self.has_numbers,
                row,
            };
            if reader.read(&mut self.next)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Members for SqliteMembers<'_> {
    type Error = SourceError;

    fn advance(&mut self) -> Result<bool, SourceError> {
        if !self.has_next {
            return Ok(false);
        }
        std::mem::swap(&mut self.current, &mut self.next);
        self.has_next = self.read_next()?;
        while self.has_next && self.next.user() <= self.current.user() {
            if self.next.user() < self.current.user() {
                return Err(SourceError::OutOfOrder {
                    source_name: self.source.name.clone(),
                });
            }
            if self.next.presence != self.current.presence {
                return Err(SourceError::Contradiction {
                    audience: self.audience.name.clone(),
                });
            }
            if is_greater(&self.next.member, &self.current.member) {
                std::mem::swap(&mut self.current, &mut self.next);
            }
            self.has_next = self.read_next()?;
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.member.as_member()
    }

    fn presence(&self) -> Presence {
        self.current.presence
    }
}

struct RowReader<'r, 's> {
    columns: &'r Columns<'r>,
    audience: &'r Audience,
    question: Question,
    skipped: &'r mut Skipped,
    has_numbers: &'r mut bool,
    row: &'r Row<'s>,
}

impl RowReader<'_, '_> {
    /// Whether the row can be used.
    fn read(&mut self, next: &mut Read) -> Result<bool, SourceError> {
        let Read { member, presence } = next;
        let is_usable = self.read_ids(member)? && self.read_value(member)?;
        if is_usable {
            *presence = self.read_presence()?;
            self.read_traits(member)?;
        }
        Ok(is_usable)
    }

    /// The identity, and the anonymous id that may stand beside a user id.
    fn read_ids(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        member.kind = UserKind::UserId;
        let user_id = match self.columns.user_id {
            Some(column) => self.read_id(column, "user_id", &mut member.id)?,
            None => Id::Null,
        };
        let Some(column) = self.columns.anonymous_id else {
            return Ok(self.is_present(user_id));
        };
        match user_id {
            Id::Present => {
                // A second id that cannot be used is no reason to take the user for gone.
                let place = member.anonymous_id.get_or_insert_default();
                let beside = self.read_id(column, "anonymous_id", place)?;
                if !matches!(beside, Id::Present) {
                    member.anonymous_id = None;
                }
                Ok(true)
            }
            // Exports write a missing id as an empty one.
            Id::Null | Id::Unusable(Reason::Empty) => {
                member.kind = UserKind::AnonymousId;
                member.anonymous_id = None;
                let id = self.read_id(column, "anonymous_id", &mut member.id)?;
                Ok(self.is_present(id))
            }
            Id::Unusable(_) => Ok(self.is_present(user_id)),
        }
    }

    /// Whether there is an id; a row without one is skipped and counted.
    fn is_present(&mut self, id: Id) -> bool {
        let skipped = match id {
            Id::Present => return true,
            Id::Null => &mut self.skipped.null,
            Id::Unusable(Reason::Empty) => &mut self.skipped.empty,
            Id::Unusable(Reason::TooLong) => &mut self.skipped.too_long,
            Id::Unusable(Reason::HoldsNul) => &mut self.skipped.nul,
            Id::Unusable(Reason::NotUtf8) => &mut self.skipped.not_utf8,
        };
        *skipped += 1;
        false
    }

    fn read_id(
        &mut self,
        column: usize,
        name: &'static str,
        id: &mut String,
    ) -> Result<Id, SourceError> {
        use std::fmt::Write as _;

        id.clear();
        match self.row.get_ref_unwrap(column) {
            ValueRef::Null => Ok(Id::Null),
            ValueRef::Integer(integer) => {
                *self.has_numbers = true;
                write!(id, "{integer}").expect("a String takes any text");
                Ok(Id::Present)
            }
            ValueRef::Text(text) => Ok(match std::str::from_utf8(text) {
                Ok("") => Id::Unusable(Reason::Empty),
                Ok(text) if text.len() > MAX_ID_BYTES => Id::Unusable(Reason::TooLong),
                Ok(text) if text.contains('\0') => Id::Unusable(Reason::HoldsNul),
                Ok(text) => {
                    id.push_str(text);
                    Id::Present
                }
                Err(_) => Id::Unusable(Reason::NotUtf8),
            }),
            other => Err(self.wrong_type(name, other.data_type(), "text or integers")),
        }
    }

    /// Whether there is one: NULL is the same as no row.
    fn read_value(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        let Some(column) = self.columns.value else {
            return Ok(true);
        };
        member.value = match self.row.get_ref_unwrap(column) {
            ValueRef::Null => return Ok(false),
            ValueRef::Integer(integer) => ValueBuf::Integer(integer),
            ValueRef::Real(real) if real.is_finite() => ValueBuf::Real(real),
            ValueRef::Real(_) => {
                self.skipped.infinite += 1;
                return Ok(false);
            }
            ValueRef::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => ValueBuf::Text(text.to_owned()),
                Err(_) => {
                    self.skipped.not_utf8 += 1;
                    return Ok(false);
                }
            },
            ValueRef::Blob(_) => {
                return Err(self.wrong_type("value", Type::Blob, "text or numbers"));
            }
        };
        Ok(true)
    }

    /// What a change query says of the user.
    fn read_presence(&self) -> Result<Presence, SourceError> {
        let Some(column) = self.columns.is_member else {
            return Ok(Presence::Member);
        };
        match self.row.get_ref_unwrap(column) {
            ValueRef::Integer(1) => Ok(Presence::Member),
            ValueRef::Integer(0) | ValueRef::Null => Ok(Presence::Gone),
            other => Err(self.wrong_type("is_member", other.data_type(), "1 or 0")),
        }
    }

    /// The extra traits as JSON members, each with a comma before it. One that cannot be written is null: it must not
    /// make a member look gone.
    fn read_traits(&mut self, member: &mut MemberBuf) -> Result<(), SourceError> {
        member.traits.clear();
        for (column, name) in &self.columns.traits {
            let json = match self.row.get_ref_unwrap(*column) {
                ValueRef::Null => Some(serde_json::Value::Null),
                ValueRef::Integer(integer) => Some(integer.into()),
                ValueRef::Real(real) => real.is_finite().then(|| real.into()),
                ValueRef::Text(text) => std::str::from_utf8(text).ok().map(Into::into),
                ValueRef::Blob(_) => {
                    return Err(self.wrong_type(name, Type::Blob, "text or numbers"));
                }
            };
            self.skipped.traits += u64::from(json.is_none());
            let json = json.unwrap_or(serde_json::Value::Null);
            member.traits.push(',');
            member
                .traits
                .push_str(&serde_json::Value::from(*name).to_string());
            member.traits.push(':');
            member.traits.push_str(&json.to_string());
        }
        Ok(())
    }

    fn wrong_type(&self, column: &str, found: Type, expected: &'static str) -> SourceError {
        let found = match found {
            Type::Blob => "a BLOB",
            Type::Real => "a real number",
            Type::Integer => "another number",
            Type::Null | Type::Text => "another type",
        };
        SourceError::WrongType {
            question: self.question,
            audience: self.audience.name.clone(),
            column: column.to_owned(),
            found,
            expected,
        }
    }
}
