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
    names: Vec<Wish>,
    pub(super) columns: Columns,
}

/// A name that is looked for: as `columns` writes it, or as the result does, ignoring case.
struct Wish {
    name: String,
    is_exact: bool,
}

impl Wish {
    fn is(&self, name: &str) -> bool {
        match self.is_exact {
            true => self.name == name,
            false => self.name.eq_ignore_ascii_case(name),
        }
    }
}

impl Wanted {
    /// With other names for some columns of the result.
    pub(super) fn of(audience: &Audience, columns: &BTreeMap<String, String>) -> Self {
        let mut wanted = Self {
            names: Vec::new(),
            columns: Columns::default(),
        };
        let mut want = |column: &str| {
            let name = columns.get(column);
            wanted.names.push(Wish {
                is_exact: name.is_some(),
                name: name.map_or(column, String::as_str).to_owned(),
            });
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

    /// One member may be several columns.
    fn places_of(&self, name: &str) -> impl Iterator<Item = usize> {
        let names = self.names.iter().enumerate();
        names.filter_map(move |(place, wish)| wish.is(name).then_some(place))
    }

    fn is_id(&self, place: usize) -> bool {
        [self.columns.user_id, self.columns.anonymous_id].contains(&Some(place))
    }

    /// Puts what was found where it belongs; `false` where something is.
    fn put<'j>(&self, cells: &mut [Option<Found<'j>>], place: usize, found: Found<'j>) -> bool {
        let found = match self.is_id(place) {
            true => found.into_id(),
            false => found,
        };
        cells[place].replace(found).is_none()
    }

    /// Sees whether what is wanted was in any of many objects. What is odd, and no mistake, is told.
    pub(super) fn must_be_met(&self, met: &[bool]) -> Result<Option<String>, String> {
        if let Some(value) = self.columns.value
            && !met[value]
        {
            let Wish { name, is_exact } = &self.names[value];
            let why = match is_exact {
                true => ", which `columns` names",
                false => "\n\nhint: name it: columns = { value = \"...\" }",
            };
            return Err(format!("no object in it has a member `{name}`{why}"));
        }
        let traits = self.columns.traits.iter();
        let missing: Vec<_> = traits
            .filter(|(place, _)| !met[*place])
            .map(|(place, _)| format!("`{}`", self.names[*place].name))
            .collect();
        Ok((!missing.is_empty()).then(|| {
            format!(
                "no object in it has a member {}, so that trait is null for everyone there",
                missing.join(" or ")
            )
        }))
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

#[derive(Clone)]
pub(super) enum Found<'j> {
    Null,
    Boolean(bool),
    Integer(i64),
    /// Larger than any integer that SQLite knows.
    Large(u64),
    Real(f64),
    Text(Cow<'j, str>),
    Other(&'static str),
}

impl JsonRow<'_> {
    /// Keeps in mind what was there.
    pub(super) fn meet(&self, met: &mut Vec<bool>) {
        met.resize(self.0.len(), false);
        for (met, found) in met.iter_mut().zip(&self.0) {
            *met |= found.is_some();
        }
    }
}

impl Row for JsonRow<'_> {
    /// What is not there is as NULL.
    fn cell(&self, column: usize) -> Cell<'_> {
        match &self.0[column] {
            None | Some(Found::Null) => Cell::Null,
            Some(Found::Boolean(boolean)) => Cell::Boolean(*boolean),
            Some(Found::Integer(integer)) => Cell::Integer(*integer),
            Some(Found::Large(number)) => Cell::Real(*number as f64),
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
        self.0
            .put(&mut cells, self.0.columns.user_id.unwrap_or_default(), id);
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
        Ok(self.id(Found::Large(id)))
    }

    fn visit_map<A: MapAccess<'j>>(self, mut object: A) -> Result<JsonRow<'j>, A::Error> {
        let mut cells: Vec<Option<Found<'j>>> = self.0.names.iter().map(|_| None).collect();
        let mut others = 0;
        while let Some(Name(name)) = object.next_key()? {
            let mut places = self.0.places_of(&name);
            let Some(first) = places.next() else {
                object.next_value::<IgnoredAny>()?;
                others += 1;
                continue;
            };
            let found: Found<'j> = object.next_value()?;
            let mut is_new = true;
            for place in places {
                is_new &= self.0.put(&mut cells, place, found.clone());
            }
            is_new &= self.0.put(&mut cells, first, found);
            if !is_new {
                return Err(A::Error::custom(format!("it has two members `{name}`")));
            }
        }
        if !self.0.has_id(&cells) {
            return Err(A::Error::custom(format!(
                "it has no member `{}` or `{}` among its {others}",
                self.0.names[0].name, self.0.names[1].name,
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
    /// An id may be larger than any integer, and is no less exact for that.
    fn into_id(self) -> Self {
        match self {
            Self::Large(number) => match i64::try_from(number) {
                Ok(integer) => Self::Integer(integer),
                Err(_) => Self::Text(Cow::Owned(number.to_string())),
            },
            other => other,
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
        Ok(i64::try_from(number).map_or(Found::Large(number), Found::Integer))
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
