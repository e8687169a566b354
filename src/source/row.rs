//! Rows as members: who is named, with what value and traits, and whether the row can be used at all.

use crate::audience::{Audience, Class, MAX_ID_BYTES, MemberBuf, User, UserKind, ValueBuf};
use crate::diff::Membership;
use crate::source::{Question, Skipped};

/// A row of a result, wherever it comes from.
pub(super) trait Row {
    fn cell(&self, column: usize) -> Cell<'_>;
}

/// What a column of a row holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cell<'r> {
    Null,
    Boolean(bool),
    Integer(i64),
    Real(f64),
    /// Not always UTF-8.
    Text(&'r [u8]),
    /// What is neither a text nor a number, by its name.
    Other(&'static str),
}

impl Cell<'_> {
    /// Of what type it is.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Boolean(_) => "boolean",
            Self::Integer(_) => "integer",
            Self::Real(_) => "real",
            Self::Text(_) => "text",
            Self::Other(name) => name
                .strip_prefix("a ")
                .or(name.strip_prefix("an "))
                .unwrap_or(name),
        }
    }

    /// As an error calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "true or false",
            Self::Integer(_) => "another number",
            Self::Real(_) => "a real number",
            Self::Text(_) => "a text",
            Self::Other(name) => name,
        }
    }
}

/// Which column of a row is what, worked out once and not for every row.
#[derive(Debug, Clone, Default)]
pub(super) struct Columns {
    pub(super) user_id: Option<usize>,
    pub(super) anonymous_id: Option<usize>,
    pub(super) value: Option<usize>,
    /// Of a change query.
    pub(super) is_member: Option<usize>,
    /// In the order in which they go out.
    pub(super) traits: Vec<(usize, String)>,
}

impl Columns {
    /// Their names in the result, and where they are.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, usize)> {
        let known = [
            ("user_id", self.user_id),
            ("anonymous_id", self.anonymous_id),
            ("value", self.value),
            ("is_member", self.is_member),
        ];
        let known = known
            .into_iter()
            .filter_map(|(name, place)| Some((name, place?)));
        let traits = self.traits.iter();
        known.chain(traits.map(|(place, name)| (name.as_str(), *place)))
    }

    /// Finds them by their names; `name_it` tells how a column gets a name that is missing.
    pub(super) fn find(
        names: &[String],
        audience: &Audience,
        question: Question,
        name_it: impl Fn(&str) -> String,
    ) -> Result<Self, String> {
        let find = |wanted: &str| match (names, wanted) {
            // A single column is the id, whatever it is called.
            ([only], "user_id") if !only.eq_ignore_ascii_case("anonymous_id") => Ok(Some(0)),
            ([_], "value") => Ok(None),
            _ => place_of(wanted, names),
        };
        let ids = [find("user_id")?, find("anonymous_id")?];
        if ids == [None, None] {
            let columns = names.join("`, `");
            return Err(format!(
                "it has no column `user_id` or `anonymous_id`, only `{columns}`\n\nhint: {}",
                name_it("user_id")
            ));
        }
        Self::with(ids, audience, question, find, name_it)
    }

    /// Those of ids, and all others as they are found.
    pub(super) fn with(
        [user_id, anonymous_id]: [Option<usize>; 2],
        audience: &Audience,
        question: Question,
        find: impl Fn(&str) -> Result<Option<usize>, String>,
        name_it: impl Fn(&str) -> String,
    ) -> Result<Self, String> {
        let value = match audience.class {
            Class::Audience => None,
            Class::Trait => Some(find("value")?.ok_or_else(|| {
                format!(
                    "a computed trait needs a column `value`\n\nhint: {}",
                    name_it("value")
                )
            })?),
        };
        let is_member = match question {
            Question::Members => None,
            Question::Changes { .. } => Some(find("is_member")?.ok_or_else(|| {
                format!(
                    "it has no column `is_member`\n\nhint: {}, 1 for a member and 0 for who is none",
                    name_it("is_member")
                )
            })?),
        };
        let mut traits = Vec::new();
        for name in &audience.traits {
            let place = find(name)?
                .ok_or_else(|| format!("it has no column `{name}`, which `traits` names"))?;
            traits.push((place, name.clone()));
        }
        // Extra traits go out in the order of the columns.
        traits.sort_by_key(|(place, _)| *place);
        Ok(Self {
            user_id,
            anonymous_id,
            value,
            is_member,
            traits,
        })
    }

    /// Which columns are used, in their order.
    pub(super) fn places(&self) -> Vec<usize> {
        let ids = [self.user_id, self.anonymous_id, self.value, self.is_member];
        let traits = self.traits.iter().map(|(place, _)| *place);
        let mut places: Vec<usize> = ids.into_iter().flatten().chain(traits).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Where they are when only those in these places are left.
    pub(super) fn among(&self, places: &[usize]) -> Self {
        let among = |place: usize| places.partition_point(|other| *other < place);
        let traits = self.traits.iter();
        Self {
            user_id: self.user_id.map(among),
            anonymous_id: self.anonymous_id.map(among),
            value: self.value.map(among),
            is_member: self.is_member.map(among),
            traits: traits
                .map(|(place, name)| (among(*place), name.clone()))
                .collect(),
        }
    }
}

/// The only column that is called so, ignoring case.
pub(super) fn place_of(wanted: &str, names: &[String]) -> Result<Option<usize>, String> {
    let mut places = (0..names.len()).filter(|place| names[*place].eq_ignore_ascii_case(wanted));
    match (places.next(), places.next()) {
        (_, Some(_)) => Err(format!("it has two columns `{wanted}`")),
        (place, None) => Ok(place),
    }
}

/// What a row says.
#[derive(Default)]
pub(super) struct Read {
    pub(super) member: MemberBuf,
    pub(super) membership: Membership,
}

impl Read {
    pub(super) fn user(&self) -> User<'_> {
        self.member.user()
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

/// A column that holds what can never be an id or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` holds {found}, and takes {expected}")]
pub(super) struct WrongType {
    pub(super) column: String,
    pub(super) found: &'static str,
    pub(super) expected: &'static str,
}

/// Reads one row.
pub(super) struct RowReader<'r, R: ?Sized> {
    pub(super) columns: &'r Columns,
    pub(super) skipped: &'r mut Skipped,
    /// Some ids are integers.
    pub(super) has_numbers: &'r mut bool,
    pub(super) row: &'r R,
}

impl<R: Row + ?Sized> RowReader<'_, R> {
    /// Whether the row can be used. One that cannot is counted.
    pub(super) fn read(&mut self, next: &mut Read) -> Result<bool, WrongType> {
        let Read { member, membership } = next;
        let is_usable = self.read_ids(member)? && self.read_value(member)?;
        if is_usable {
            *membership = self.read_presence()?;
            self.read_traits(member)?;
        }
        Ok(is_usable)
    }

    /// The identity, and the anonymous id that may stand beside a user id.
    fn read_ids(&mut self, member: &mut MemberBuf) -> Result<bool, WrongType> {
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
                match self.read_id(column, "anonymous_id", &mut member.id)? {
                    Id::Null => Ok(self.is_present(user_id)),
                    id => Ok(self.is_present(id)),
                }
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
    ) -> Result<Id, WrongType> {
        use std::fmt::Write as _;

        id.clear();
        match self.row.cell(column) {
            Cell::Null => Ok(Id::Null),
            Cell::Integer(integer) => {
                *self.has_numbers = true;
                write!(id, "{integer}").expect("a String takes any text");
                Ok(Id::Present)
            }
            Cell::Text(text) => Ok(match std::str::from_utf8(text) {
                Ok("") => Id::Unusable(Reason::Empty),
                Ok(text) if text.len() > MAX_ID_BYTES => Id::Unusable(Reason::TooLong),
                Ok(text) if text.contains('\0') => Id::Unusable(Reason::HoldsNul),
                Ok(text) => {
                    id.push_str(text);
                    Id::Present
                }
                Err(_) => Id::Unusable(Reason::NotUtf8),
            }),
            other => Err(wrong_type(name, other, "text or integers")),
        }
    }

    /// Whether there is one: NULL is the same as no row.
    fn read_value(&mut self, member: &mut MemberBuf) -> Result<bool, WrongType> {
        let Some(column) = self.columns.value else {
            return Ok(true);
        };
        member.value = match self.row.cell(column) {
            Cell::Null => return Ok(false),
            Cell::Integer(integer) => ValueBuf::Integer(integer),
            Cell::Real(real) if real.is_finite() => ValueBuf::Real(real),
            Cell::Real(_) => {
                self.skipped.infinite += 1;
                return Ok(false);
            }
            Cell::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => ValueBuf::Text(text.to_owned()),
                Err(_) => {
                    self.skipped.not_utf8 += 1;
                    return Ok(false);
                }
            },
            other @ (Cell::Boolean(_) | Cell::Other(_)) => {
                return Err(wrong_type("value", other, "text or numbers"));
            }
        };
        Ok(true)
    }

    /// What a change query says of the user.
    fn read_presence(&self) -> Result<Membership, WrongType> {
        let Some(column) = self.columns.is_member else {
            return Ok(Membership::Member);
        };
        match self.row.cell(column) {
            Cell::Integer(1) => Ok(Membership::Member),
            Cell::Integer(0) | Cell::Null => Ok(Membership::Gone),
            other => Err(wrong_type("is_member", other, "1 or 0")),
        }
    }

    /// The extra traits as JSON members, each with a comma before it. One that cannot be written is null: it must not
    /// make a member look gone.
    fn read_traits(&mut self, member: &mut MemberBuf) -> Result<(), WrongType> {
        member.traits.clear();
        for (column, name) in &self.columns.traits {
            let json = match self.row.cell(*column) {
                Cell::Null => Some(serde_json::Value::Null),
                Cell::Integer(integer) => Some(integer.into()),
                Cell::Real(real) => real.is_finite().then(|| real.into()),
                Cell::Text(text) => std::str::from_utf8(text).ok().map(Into::into),
                other @ Cell::Other(_) => {
                    return Err(wrong_type(name, other, "text or numbers"));
                }
                Cell::Boolean(boolean) => Some(boolean.into()),
            };
            self.skipped.traits += u64::from(json.is_none());
            let json = json.unwrap_or(serde_json::Value::Null);
            member.traits.push(',');
            member
                .traits
                .push_str(&serde_json::Value::from(name.as_str()).to_string());
            member.traits.push(':');
            member.traits.push_str(&json.to_string());
        }
        Ok(())
    }
}

fn wrong_type(column: &str, found: Cell<'_>, expected: &'static str) -> WrongType {
    WrongType {
        column: column.to_owned(),
        found: found.name(),
        expected,
    }
}
