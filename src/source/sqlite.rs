//! Members from a query on a SQLite file.
//!
//! The query is wrapped, so that the engine sorts: from an index where there is one, else on disk. Ids compare as
//! bytes. Text sorts so by itself; integers become decimal text and are then sorted as that, which costs a sort.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Rows, Statement};

use super::{Skipped, SourceError, is_greater};
use crate::audience::{
    Audience, Class, MAX_ID_BYTES, Member, MemberBuf, SourceName, UserKind, ValueBuf,
};
use crate::diff::Members;

/// SQLite's own collation: the bytes of the file's encoding.
const BINARY: &str = "BINARY";

/// How long another process may keep the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5_000 });

/// A SQLite file, only ever read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sqlite {
    pub name: SourceName,
    pub path: PathBuf,
}

/// Sees what can be seen of a query without its database: the reason why it can never be one.
pub fn check_syntax(query: &str) -> Option<String> {
    let connection = Connection::open_in_memory().ok()?;
    let prepared = connection.prepare(query);
    match prepared {
        Ok(statement) => not_a_query(&statement).map(str::to_owned),
        Err(error) => Some(message(&error)).filter(|reason| is_syntax(reason)),
    }
}

/// SQLite has one code for every mistake in a statement; only the text tells a mistyped word from a missing table.
fn is_syntax(reason: &str) -> bool {
    [
        "syntax error",
        "incomplete input",
        "unrecognized token",
        "more than one statement",
    ]
    .iter()
    .any(|mistake| reason.contains(mistake))
}

fn not_a_query(statement: &Statement<'_>) -> Option<&'static str> {
    if statement.column_count() == 0 {
        Some("it is not a SELECT")
    } else if !statement.readonly() {
        Some("it writes to the database")
    } else if statement.parameter_count() > 0 {
        Some("it has a parameter, and nothing to put in its place")
    } else {
        None
    }
}

/// SQLite's words for an error, without rusqlite's around them.
fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::MultipleStatement => "it is more than one statement".to_owned(),
        other => other.to_string(),
    }
}

impl Sqlite {
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        let connection = self.open()?;
        let layout = self.layout(&connection, audience)?;
        self.prepare(&connection, audience, &layout)?;
        Ok(())
    }

    pub(super) fn read<T, E: From<SourceError>>(
        &self,
        audience: &Audience,
        read: impl FnOnce(&mut SqliteMembers<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.open()?;
        // One transaction for all that is read: the query may have to be asked twice.
        connection
            .execute_batch("BEGIN")
            .map_err(|error| self.unreadable(error))?;
        let mut layout = self.layout(&connection, audience)?;
        if !layout.as_text {
            let mut statement = self.prepare(&connection, audience, &layout)?;
            let mut members = self.members(&mut statement, audience, &layout)?;
            if !members.has_numbers {
                return read(&mut members);
            }
        }
        layout.as_text = true;
        let mut statement = self.prepare(&connection, audience, &layout)?;
        read(&mut self.members(&mut statement, audience, &layout)?)
    }

    /// Asks the query, up to its first member.
    fn members<'s>(
        &'s self,
        statement: &'s mut Statement<'_>,
        audience: &'s Audience,
        layout: &'s Layout,
    ) -> Result<SqliteMembers<'s>, SourceError> {
        let rows = statement
            .query([])
            .map_err(|error| self.unreadable(error))?;
        let mut members = SqliteMembers::new(self, audience, layout, rows);
        members.has_next = members.read_next()?;
        Ok(members)
    }

    fn open(&self) -> Result<Connection, SourceError> {
        if !self.path.is_file() {
            return Err(SourceError::Missing {
                source_name: self.name.clone(),
                path: self.path.clone(),
            });
        }
        if self.path.metadata().is_ok_and(|file| file.len() == 0) {
            return Err(SourceError::Empty {
                source_name: self.name.clone(),
                path: self.path.clone(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)
            .map_err(|error| self.unreadable(error))?;
        connection
            .busy_timeout(BUSY_TIMEOUT)
            .and_then(|()| connection.pragma_update(None, "query_only", true))
            .map_err(|error| self.unreadable(error))?;
        Ok(connection)
    }

    fn unreadable(&self, cause: rusqlite::Error) -> SourceError {
        SourceError::Unreadable {
            source_name: self.name.clone(),
            path: self.path.clone(),
            cause,
        }
    }

    fn query_error(&self, audience: &Audience, reason: impl Into<String>) -> SourceError {
        SourceError::Query {
            audience: audience.name.clone(),
            source_name: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// A statement that does not compile is a mistake in the query, unless the file is the trouble.
    fn prepare_error(&self, audience: &Audience, error: rusqlite::Error) -> SourceError {
        match error.sqlite_error_code() {
            Some(ErrorCode::Unknown) | None => self.query_error(audience, message(&error)),
            Some(_) => self.unreadable(error),
        }
    }

    fn prepare<'c>(
        &self,
        connection: &'c Connection,
        audience: &Audience,
        layout: &Layout,
    ) -> Result<Statement<'c>, SourceError> {
        let sorted = connection
            .prepare(&layout.sorted())
            .map_err(|error| self.prepare_error(audience, error))?;
        if layout.as_text || !self.compares_bytes(connection, layout) {
            return Ok(sorted);
        }
        // This is no SQL where the query ends with an ORDER BY or LIMIT of its own.
        let by_itself = connection.prepare(&layout.sorted_by_itself());
        Ok(by_itself.unwrap_or(sorted))
    }

    fn compares_bytes(&self, connection: &Connection, layout: &Layout) -> bool {
        let texts = connection.query_row(&layout.collation_probe(), [], |row| row.get(0));
        layout.collation == BINARY && texts == Ok(3_i64)
    }

    fn layout(&self, connection: &Connection, audience: &Audience) -> Result<Layout, SourceError> {
        let statement = connection
            .prepare(&audience.query)
            .map_err(|error| self.prepare_error(audience, error))?;
        if let Some(reason) = not_a_query(&statement) {
            return Err(self.query_error(audience, reason));
        }
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let layout =
            Layout::of(&names, audience).map_err(|reason| self.query_error(audience, reason))?;
        let id = layout.id_columns()[0];
        // Only a guess, and only about speed: a column may hold what its declaration does not say.
        let declared = statement
            .columns()
            .nth(id)
            .and_then(|column| column.decl_type().map(str::to_ascii_lowercase))
            .unwrap_or_default();
        let as_text = layout.both_ids() || declared.contains("int");
        // SQLite's own words for the statement end where it does: no comment follows its semicolon.
        let query = statement
            .expanded_sql()
            .unwrap_or_else(|| audience.query.clone());
        let query = query.trim_end_matches(';').to_owned();
        let collation = self.collation(connection)?;
        Ok(Layout {
            query,
            as_text,
            collation,
            ..layout
        })
    }

    /// The collation by which text sorts as its bytes in UTF-8 do. A file may be in
    /// UTF-16.
    fn collation(&self, connection: &Connection) -> Result<&'static str, SourceError> {
        let encoding: String = connection
            .pragma_query_value(None, "encoding", |row| row.get(0))
            .map_err(|error| self.unreadable(error))?;
        if encoding == "UTF-8" {
            return Ok(BINARY);
        }
        connection
            .create_collation("utf_8", |a: &str, b: &str| a.cmp(b))
            .map_err(|error| self.unreadable(error))?;
        Ok("utf_8")
    }
}

/// Which column of the result is what.
struct Layout {
    /// One statement, without a semicolon.
    query: String,
    columns: usize,
    user_id: Option<usize>,
    anonymous_id: Option<usize>,
    value: Option<usize>,
    traits: Vec<(String, usize)>,
    /// Sort ids by their decimal text instead of as they are.
    as_text: bool,
    collation: &'static str,
}

impl Layout {
    fn of(names: &[String], audience: &Audience) -> Result<Self, String> {
        let find = |wanted: &str| {
            let mut places =
                (0..names.len()).filter(|place| names[*place].eq_ignore_ascii_case(wanted));
            match (places.next(), places.next()) {
                (_, Some(_)) => Err(format!("it has two columns `{wanted}`")),
                (place, None) => Ok(place),
            }
        };
        let (mut user_id, anonymous_id) = (find("user_id")?, find("anonymous_id")?);
        let value = find("value")?;
        if names.len() == 1 && anonymous_id.is_none() {
            user_id = Some(0);
        }
        if user_id.is_none() && anonymous_id.is_none() {
            let columns = names.join("`, `");
            return Err(format!(
                "it has no column `user_id` or `anonymous_id`, only `{columns}`\n\nhint: write `... AS user_id`"
            ));
        }
        if audience.class == Class::Trait && (value.is_none() || names.len() == 1) {
            return Err(
                "a computed trait needs a column `value`\n\nhint: write `... AS value`".to_owned(),
            );
        }
        let value = value.filter(|_| audience.class == Class::Trait);
        let mut traits = Vec::new();
        for name in &audience.traits {
            let place = find(name)?
                .ok_or_else(|| format!("it has no column `{name}`, which `traits` names"))?;
            traits.push((name.clone(), place));
        }
        // Extra traits go out in the order of the query's columns.
        traits.sort_by_key(|(_, place)| *place);
        Ok(Self {
            query: String::new(),
            columns: names.len(),
            user_id,
            anonymous_id,
            value,
            traits,
            as_text: false,
            collation: BINARY,
        })
    }

    fn both_ids(&self) -> bool {
        self.user_id.is_some() && self.anonymous_id.is_some()
    }

    fn id_columns(&self) -> Vec<usize> {
        self.user_id.into_iter().chain(self.anonymous_id).collect()
    }

    /// The query as a table `audience` with columns `c0`, `c1` and so on.
    fn named(&self, query: &str) -> String {
        let names: Vec<String> = (0..self.columns).map(|place| format!("c{place}")).collect();
        // A line of its own: the query may end with a comment.
        format!("WITH audience ({}) AS (\n{query}\n)", names.join(", "))
    }

    /// The query with its columns in our order: ids first, then the value, then the traits.
    fn wrap(&self, query: &str) -> String {
        let wanted = self
            .id_columns()
            .into_iter()
            .chain(self.value)
            .chain(self.traits.iter().map(|(_, place)| *place));
        let wanted: Vec<String> = wanted.map(|place| format!("c{place}")).collect();
        let (audience, wanted) = (self.named(query), wanted.join(", "));
        format!("{audience} SELECT {wanted} FROM audience")
    }

    /// The query, its result sorted.
    fn sorted(&self) -> String {
        let ids = self.id_columns();
        let by_bytes = |place: &usize| match self.as_text {
            true => format!("CAST(c{place} AS TEXT) COLLATE {}", self.collation),
            false => format!("c{place} COLLATE {}", self.collation),
        };
        let mut order: Vec<String> = ids.iter().map(by_bytes).collect();
        if self.both_ids() {
            // Users before those who have only an anonymous id.
            order.insert(0, format!("c{} IS NULL", ids[0]));
        }
        format!("{} ORDER BY {}", self.wrap(&self.query), order.join(", "))
    }

    /// The query, told to sort: with DISTINCT and GROUP BY only this takes the order of an index, and does not sort
    /// what comes ordered. For one column that compares as its bytes.
    fn sorted_by_itself(&self) -> String {
        let id = self.id_columns()[0] + 1;
        self.wrap(&format!("{}\nORDER BY {id}", self.query))
    }

    /// Counts to 3 where ids compare as bytes: a UNION takes its collation from its first SELECT, which gives no row.
    fn collation_probe(&self) -> String {
        let (audience, id) = (self.named(&self.query), self.id_columns()[0]);
        format!(
            "SELECT count(*) FROM ({audience} SELECT c{id} FROM audience WHERE false
             UNION VALUES ('a'), ('A'), ('a '))"
        )
    }
}

/// The members of one audience, each once.
pub struct SqliteMembers<'s> {
    source: &'s Sqlite,
    audience: &'s Audience,
    layout: &'s Layout,
    rows: Rows<'s>,
    current: MemberBuf,
    /// One row ahead, to see whether it is the same user again.
    next: MemberBuf,
    has_next: bool,
    /// Some ids are integers. They sort before text, so the first member tells.
    has_numbers: bool,
    pub skipped: Skipped,
}

/// What a column of ids held.
enum Id {
    Present,
    Null,
    /// Counted as skipped: the row is worth nothing.
    Bad,
}

impl<'s> SqliteMembers<'s> {
    fn new(source: &'s Sqlite, audience: &'s Audience, layout: &'s Layout, rows: Rows<'s>) -> Self {
        Self {
            source,
            audience,
            layout,
            rows,
            current: MemberBuf::default(),
            next: MemberBuf::default(),
            has_next: false,
            has_numbers: false,
            skipped: Skipped::default(),
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
                layout: self.layout,
                audience: self.audience,
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
            if is_greater(&self.next, &self.current) {
                std::mem::swap(&mut self.current, &mut self.next);
            }
            self.has_next = self.read_next()?;
        }
        Ok(true)
    }

    fn current(&self) -> Member<'_> {
        self.current.as_member()
    }
}

struct RowReader<'r, 's> {
    layout: &'r Layout,
    audience: &'r Audience,
    skipped: &'r mut Skipped,
    has_numbers: &'r mut bool,
    row: &'r Row<'s>,
}

impl RowReader<'_, '_> {
    /// Whether the row is a member.
    fn read(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        Ok(self.read_ids(member)? && self.read_value(member)? && self.read_traits(member)?)
    }

    /// The identity, and the anonymous id that may stand beside a user id.
    fn read_ids(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        let mut column = 0;
        let mut user_id = Id::Null;
        if self.layout.user_id.is_some() {
            user_id = self.read_id(column, "user_id", &mut member.id)?;
            member.kind = UserKind::UserId;
            column += 1;
        }
        let has_user_id = match user_id {
            Id::Bad => return Ok(false),
            Id::Present => true,
            Id::Null => false,
        };
        if self.layout.anonymous_id.is_none() {
            self.skipped.null += u64::from(!has_user_id);
            return Ok(has_user_id);
        }
        let place = if has_user_id {
            member.anonymous_id.get_or_insert_default()
        } else {
            &mut member.id
        };
        match (self.read_id(column, "anonymous_id", place)?, has_user_id) {
            (Id::Present, true) => Ok(true),
            (Id::Present, false) => {
                member.kind = UserKind::AnonymousId;
                member.anonymous_id = None;
                Ok(true)
            }
            (Id::Null, true) => {
                member.anonymous_id = None;
                Ok(true)
            }
            (Id::Null, false) => {
                self.skipped.null += 1;
                Ok(false)
            }
            (Id::Bad, _) => Ok(false),
        }
    }

    fn read_id(
        &mut self,
        column: usize,
        name: &'static str,
        id: &mut String,
    ) -> Result<Id, SourceError> {
        use std::fmt::Write as _;

        id.clear();
        let reason = match self.row.get_ref_unwrap(column) {
            ValueRef::Null => return Ok(Id::Null),
            ValueRef::Integer(integer) => {
                *self.has_numbers = true;
                write!(id, "{integer}").expect("a String takes any text");
                return Ok(Id::Present);
            }
            ValueRef::Text(text) => match std::str::from_utf8(text) {
                Ok("") => &mut self.skipped.empty,
                Ok(text) if text.len() > MAX_ID_BYTES => &mut self.skipped.too_long,
                Ok(text) if text.contains('\0') => &mut self.skipped.nul,
                Ok(text) => {
                    id.push_str(text);
                    return Ok(Id::Present);
                }
                Err(_) => &mut self.skipped.not_utf8,
            },
            other => return Err(self.wrong_type(name, other.data_type(), "text or integers")),
        };
        *reason += 1;
        Ok(Id::Bad)
    }

    /// Whether there is one: NULL is the same as no row.
    fn read_value(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        if self.layout.value.is_none() {
            member.value = ValueBuf::True;
            return Ok(true);
        }
        let column = self.layout.id_columns().len();
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

    /// The extra traits as JSON members, each with a comma before it.
    fn read_traits(&mut self, member: &mut MemberBuf) -> Result<bool, SourceError> {
        member.traits.clear();
        let first = self.layout.id_columns().len() + usize::from(self.layout.value.is_some());
        for (column, (name, _)) in (first..).zip(&self.layout.traits) {
            let json = match self.row.get_ref_unwrap(column) {
                ValueRef::Null => serde_json::Value::Null,
                ValueRef::Integer(integer) => integer.into(),
                ValueRef::Real(real) if real.is_finite() => real.into(),
                ValueRef::Real(_) => {
                    self.skipped.infinite += 1;
                    return Ok(false);
                }
                ValueRef::Text(text) => match std::str::from_utf8(text) {
                    Ok(text) => text.into(),
                    Err(_) => {
                        self.skipped.not_utf8 += 1;
                        return Ok(false);
                    }
                },
                ValueRef::Blob(_) => {
                    return Err(self.wrong_type(name, Type::Blob, "text or numbers"));
                }
            };
            member.traits.push(',');
            member
                .traits
                .push_str(&serde_json::Value::from(name.as_str()).to_string());
            member.traits.push(':');
            member.traits.push_str(&json.to_string());
        }
        Ok(true)
    }

    fn wrong_type(&self, column: &str, found: Type, expected: &'static str) -> SourceError {
        let found = match found {
            Type::Blob => "a BLOB",
            Type::Real => "a real number",
            Type::Null | Type::Integer | Type::Text => "another type",
        };
        SourceError::WrongType {
            audience: self.audience.name.clone(),
            column: column.to_owned(),
            found,
            expected,
        }
    }
}
