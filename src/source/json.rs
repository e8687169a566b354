//! Rows that are JSON: an object each, or an id by itself.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::row::{Cell, Columns, Row};
use crate::audience::{Audience, Class};

/// What is taken of each object.
pub(super) struct Wanted {
    /// The names of its members, by column.
    names: Vec<String>,
    pub(super) columns: Columns,
}

impl Wanted {
    /// With other names for some columns of the result.
    pub(super) fn of(audience: &Audience, columns: &BTreeMap<String, String>) -> Self {
        let mut wanted = Self {
            names: Vec::new(),
            columns: Columns::default(),
        };
        let mut want = |column: &str| {
            let name = columns.get(column).map_or(column, String::as_str);
            wanted.names.push(name.to_owned());
            wanted.names.len() - 1
        };
        let (user_id, anonymous_id) = (want("user_id"), want("anonymous_id"));
        let value = (audience.class == Class::Trait).then(|| want("value"));
        let traits = audience.traits.iter();
        let traits = traits.map(|name| (want(name), name.clone())).collect();
        wanted.columns = Columns {
            user_id: Some(user_id),
            anonymous_id: Some(anonymous_id),
            value,
            is_member: None,
            traits,
        };
        wanted
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        let mut names = self.names.iter();
        names.position(|known| known.eq_ignore_ascii_case(name))
    }

    fn has_id(&self, cells: &[Option<Found<'_>>]) -> bool {
        let Columns {
            user_id,
            anonymous_id,
            ..
        } = self.columns;
        let ids = [user_id, anonymous_id].into_iter().flatten();
        ids.into_iter().any(|place| cells[place].is_some())
    }
}

/// What was found in one object.
pub(super) struct JsonRow<'j>(Vec<Option<Found<'j>>>);

pub(super) enum Found<'j> {
    Null,
    Boolean(bool),
    Integer(i64),
    Real(f64),
    Text(Cow<'j, str>),
    Other(&'static str),
}

impl Row for JsonRow<'_> {
    /// What is not there is as NULL.
    fn cell(&self, column: usize) -> Cell<'_> {
        match &self.0[column] {
            None | Some(Found::Null) => Cell::Null,
            Some(Found::Boolean(boolean)) => Cell::Boolean(*boolean),
            Some(Found::Integer(integer)) => Cell::Integer(*integer),
            Some(Found::Real(real)) => Cell::Real(*real),
            Some(Found::Text(text)) => Cell::Text(text.as_bytes()),
            Some(Found::Other(name)) => Cell::Other(name),
        }
    }
}

impl<'j> DeserializeSeed<'j> for &Wanted {
    type Value = JsonRow<'j>;

    fn deserialize<D: Deserializer<'j>>(self, deserializer: D) -> Result<JsonRow<'j>, D::Error> {
        deserializer.deserialize_any(RowVisitor(self))
    }
}

struct RowVisitor<'w>(&'w Wanted);

impl RowVisitor<'_> {
    fn id<'j>(&self, id: Found<'j>) -> JsonRow<'j> {
        let mut cells: Vec<Option<Found<'j>>> = self.0.names.iter().map(|_| None).collect();
        cells[self.0.columns.user_id.unwrap_or_default()] = Some(id);
        JsonRow(cells)
    }
}

impl<'j> Visitor<'j> for RowVisitor<'_> {
    type Value = JsonRow<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an id")
    }

    fn visit_borrowed_str<E: Error>(self, id: &'j str) -> Result<JsonRow<'j>, E> {
        Ok(self.id(Found::Text(Cow::Borrowed(id))))
    }

    fn visit_str<E: Error>(self, id: &str) -> Result<JsonRow<'j>, E> {
        Ok(self.id(Found::Text(Cow::Owned(id.to_owned()))))
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<JsonRow<'j>, E> {
        Ok(self.id(Found::Integer(id)))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<JsonRow<'j>, E> {
        Ok(self.id(Found::of_u64(id)))
    }

    fn visit_map<A: MapAccess<'j>>(self, mut object: A) -> Result<JsonRow<'j>, A::Error> {
        let mut cells: Vec<Option<Found<'j>>> = self.0.names.iter().map(|_| None).collect();
        let mut others = 0;
        while let Some(Name(name)) = object.next_key()? {
            let Some(place) = self.0.place_of(&name) else {
                object.next_value::<IgnoredAny>()?;
                others += 1;
                continue;
            };
            if cells[place].replace(object.next_value()?).is_some() {
                return Err(A::Error::custom(format!("it has two members `{name}`")));
            }
        }
        if !self.0.has_id(&cells) {
            return Err(A::Error::custom(format!(
                "it has no member `{}` or `{}` among its {others}",
                self.0.names[0], self.0.names[1],
            )));
        }
        Ok(JsonRow(cells))
    }
}

/// What serde says of a value, but for the value itself, which may be a user.
pub(super) fn without_values(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let Some(found) = said.strip_prefix(INVALID_TYPE) else {
        return said;
    };
    let kind = found.split(['`', '"', ',']).next().unwrap_or_default();
    let behind = found.rfind(", expected").map_or("", |at| &found[at..]);
    format!("{INVALID_TYPE}{}{behind}", kind.trim_end())
}

const INVALID_TYPE: &str = "invalid type: ";

/// A name that is only copied where it is written with escapes.
pub(super) struct Name<'j>(pub(super) Cow<'j, str>);

impl<'j> Deserialize<'j> for Name<'j> {
    fn deserialize<D: Deserializer<'j>>(deserializer: D) -> Result<Self, D::Error> {
        match Found::deserialize(deserializer)? {
            Found::Text(name) => Ok(Self(name)),
            _ => Err(D::Error::custom("a name is a text")),
        }
    }
}

impl Found<'_> {
    /// An id may be larger than any integer that SQLite knows.
    fn of_u64(number: u64) -> Self {
        match i64::try_from(number) {
            Ok(integer) => Self::Integer(integer),
            Err(_) => Self::Text(Cow::Owned(number.to_string())),
        }
    }
}

impl<'j> Deserialize<'j> for Found<'j> {
    fn deserialize<D: Deserializer<'j>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FoundVisitor)
    }
}

struct FoundVisitor;

impl<'j> Visitor<'j> for FoundVisitor {
    type Value = Found<'j>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Found<'j>, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Found<'j>, E> {
        Ok(Found::Boolean(boolean))
    }

    fn visit_i64<E>(self, integer: i64) -> Result<Found<'j>, E> {
        Ok(Found::Integer(integer))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Found<'j>, E> {
        Ok(Found::of_u64(number))
    }

    fn visit_f64<E>(self, real: f64) -> Result<Found<'j>, E> {
        Ok(Found::Real(real))
    }

    fn visit_borrowed_str<E>(self, text: &'j str) -> Result<Found<'j>, E> {
        Ok(Found::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'j>, E> {
        Ok(Found::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut list: A) -> Result<Found<'j>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other("a list"))
    }

    fn visit_map<A: MapAccess<'j>>(self, mut object: A) -> Result<Found<'j>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Found::Other("an object"))
    }
}
