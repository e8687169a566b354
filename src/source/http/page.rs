//! A page that is one JSON document: its members are taken as they pass, and what it says of the next page and of the
//! total is kept. Nothing else of it is.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};

use serde::de::{
    Deserialize as _, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};

use super::pointer::Pointer;
use crate::source::json::{Found, JsonRow, Name, Wanted, without_values};
use crate::source::rows::{MAX_ROW_BYTES, Problem, Taker};

/// Where in a page what is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'l> {
    pub(super) items: &'l Pointer,
    pub(super) next: Option<&'l Pointer>,
    pub(super) total: Option<&'l Pointer>,
}

/// What a page says beside its members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Whether there was anything where the next page should be named, be it null.
    pub(super) has_next: bool,
    pub(super) next: Option<String>,
    pub(super) total: Option<u64>,
}

/// Reads a page to its end, which JSON tells by itself.
pub(super) fn read(
    input: impl Read,
    layout: Layout<'_>,
    taker: &mut Taker<'_>,
) -> Result<Said, Problem> {
    taker.rows = 0;
    let room = Cell::new(MAX_ROW_BYTES);
    let wanted = Wanted::of(taker.audience, taker.columns);
    let mut page = Page {
        taker,
        wanted,
        room: &room,
        has_items: false,
        said: Said::default(),
        problem: None,
    };
    let input = Bounded { input, room: &room };
    let mut json = serde_json::Deserializer::from_reader(input);
    let ahead = Ahead {
        items: Some(layout.items.names()),
        next: layout.next.map(Pointer::names),
        total: layout.total.map(Pointer::names),
    };
    let read = Part {
        page: &mut page,
        ahead,
    }
    .deserialize(&mut json);
    let read = read.and_then(|()| json.end());
    let no_list = || {
        Problem::Overall(format!(
            "it has no list at {}\n\nhint: items = \"/...\" names the list of members",
            layout.items
        ))
    };
    match (page.problem, read) {
        (Some(problem), _) => Err(problem),
        // Something else is there.
        (None, Err(error)) if error.is_data() && !page.has_items => Err(no_list()),
        (None, Err(error)) => Err(problem_of(&error)),
        (None, Ok(())) if !page.has_items => Err(no_list()),
        (None, Ok(())) => Ok(page.said),
    }
}

fn problem_of(error: &serde_json::Error) -> Problem {
    if error.is_eof() {
        return Problem::CutOff;
    }
    match error.io_error_kind() {
        Some(io::ErrorKind::FileTooLarge) => Problem::too_long(),
        Some(kind) => Problem::Io(kind.into()),
        None => Problem::Here(format!(
            "it is no JSON that names members: {}",
            without_values(error)
        )),
    }
}

/// Lets through as many bytes as there is room for: a text is held in memory as a whole.
struct Bounded<'r, R> {
    input: R,
    room: &'r Cell<usize>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let room = self.room.get().checked_sub(read);
        self.room.set(room.ok_or(io::ErrorKind::FileTooLarge)?);
        Ok(read)
    }
}

struct Page<'p, 't> {
    taker: &'p mut Taker<'t>,
    wanted: Wanted,
    room: &'p Cell<usize>,
    has_items: bool,
    said: Said,
    /// What serde's errors have no place for.
    problem: Option<Problem>,
}

/// What is left of the ways to the parts that are wanted; `None` where a way leads elsewhere.
#[derive(Clone, Copy)]
struct Ahead<'l> {
    items: Option<&'l [String]>,
    next: Option<&'l [String]>,
    total: Option<&'l [String]>,
}

impl<'l> Ahead<'l> {
    fn into(self, name: &str) -> Self {
        let step = |way: Option<&'l [String]>| match way?.split_first() {
            Some((first, rest)) if first == name => Some(rest),
            _ => None,
        };
        Self {
            items: step(self.items),
            next: step(self.next),
            total: step(self.total),
        }
    }

    fn leads_nowhere(self) -> bool {
        self.items.is_none() && self.next.is_none() && self.total.is_none()
    }
}

impl Page<'_, '_> {
    fn stop<E: Error>(&mut self, problem: Problem) -> E {
        self.problem = Some(problem);
        E::custom("it cannot be used")
    }

    fn take<E: Error>(&mut self, row: &JsonRow<'_>) -> Result<(), E> {
        let taken = self.taker.take_json(&self.wanted, row);
        taken.map_err(|problem| self.stop(problem))
    }

    /// Makes room for the next row, or says that it is time to end.
    fn begin_row<E: Error>(&mut self) -> Result<(), E> {
        self.room.set(MAX_ROW_BYTES);
        self.taker.count().map_err(|problem| self.stop(problem))
    }

    fn keep<E: Error>(&mut self, found: &Found<'_>, ahead: Ahead<'_>) -> Result<(), E> {
        if ahead.next == Some(&[]) {
            self.said.has_next = true;
            self.said.next = next_of(found).map_err(|problem| self.stop(problem))?;
        }
        if ahead.total == Some(&[]) {
            self.said.total = total_of(found).map_err(|problem| self.stop(problem))?;
        }
        Ok(())
    }
}

/// What names no next page: null, false, or a text of no letters.
fn next_of(found: &Found<'_>) -> Result<Option<String>, Problem> {
    match found {
        Found::Null | Found::Boolean(false) => Ok(None),
        Found::Text(text) if text.is_empty() => Ok(None),
        Found::Text(text) => Ok(Some(text.clone().into_owned())),
        Found::Integer(number) => Ok(Some(number.to_string())),
        Found::Large(number) => Ok(Some(number.to_string())),
        _ => Err(Problem::Overall(
            "what `next` points to is neither a text nor a whole number".to_owned(),
        )),
    }
}

fn total_of(found: &Found<'_>) -> Result<Option<u64>, Problem> {
    let total = match found {
        Found::Null => return Ok(None),
        Found::Integer(number) => u64::try_from(*number).ok(),
        Found::Large(number) => Some(*number),
        Found::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    let no_count = || Problem::Overall("what `total` points to is no count".to_owned());
    total.map(Some).ok_or_else(no_count)
}

/// A part of the page, on the way to something that is wanted.
struct Part<'s, 'p, 't, 'l> {
    page: &'s mut Page<'p, 't>,
    ahead: Ahead<'l>,
}

impl<'j> DeserializeSeed<'j> for Part<'_, '_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'j>>(self, json: D) -> Result<(), D::Error> {
        let Self { page, ahead } = self;
        if ahead.leads_nowhere() {
            // Nothing of it is kept, however long it is.
            page.room.set(usize::MAX);
            let ignored = json.deserialize_ignored_any(IgnoredAny).map(|_| ());
            page.room.set(MAX_ROW_BYTES);
            return ignored;
        }
        if ahead.items == Some(&[]) {
            let read = json.deserialize_seq(Items(page));
            page.room.set(MAX_ROW_BYTES);
            return read;
        }
        if ahead.next == Some(&[]) || ahead.total == Some(&[]) {
            let found = Found::deserialize(json)?;
            page.room.set(MAX_ROW_BYTES);
            return page.keep(&found, ahead);
        }
        json.deserialize_any(Within { page, ahead })
    }
}

/// Looks into a part.
struct Within<'s, 'p, 't, 'l> {
    page: &'s mut Page<'p, 't>,
    ahead: Ahead<'l>,
}

impl<'j> Visitor<'j> for Within<'_, '_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'j>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = object.next_key()? {
            object.next_value_seed(Part {
                page: &mut *self.page,
                ahead: self.ahead.into(&name),
            })?;
            self.page.room.set(MAX_ROW_BYTES);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut list: A) -> Result<(), A::Error> {
        for place in 0_u64.. {
            let part = Part {
                page: &mut *self.page,
                ahead: self.ahead.into(&place.to_string()),
            };
            if list.next_element_seed(part)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    // Nothing is within these.

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// The list of members.
struct Items<'s, 'p, 't>(&'s mut Page<'p, 't>);

impl<'j> Visitor<'j> for Items<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of members")
    }

    fn visit_seq<A: SeqAccess<'j>>(self, mut list: A) -> Result<(), A::Error> {
        if std::mem::replace(&mut self.0.has_items, true) {
            let twice = "it has its members twice".to_owned();
            return Err(self.0.stop(Problem::Overall(twice)));
        }
        loop {
            self.0.begin_row()?;
            let Some(row) = list.next_element_seed(&self.0.wanted)? else {
                // What is wrong after it is the page's fault and no row's.
                self.0.taker.rows = 0;
                return Ok(());
            };
            self.0.take(&row)?;
        }
    }
}
