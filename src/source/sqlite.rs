//! Members from a query on a SQLite file.
//!
//! The query is wrapped, so that the engine sorts: from an index where there is one, else on disk. Ids compare as
//! bytes. Text sorts so by itself; integers become decimal text and are then sorted as that, which costs a sort.

mod access;
mod handles;
#[cfg(test)]
mod laws;
mod layout;
mod peek;
mod pure;
mod rows;
mod state;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Statement};

use super::expect::{NO_TIME, time_of};
use super::row::Row as _;
use super::{Doubt, Fingerprint, Interrupt, Question, SINCE, SourceError, UseMembers, digest};
use crate::audience::{Audience, SourceName};
use crate::disk::cut_off_at;
use crate::run::Timestamp;
use access::ONLY_READS;
use handles::{Connected, Handle};
use layout::{BINARY, Layout};
use pure::Uses;
use rows::SqliteMembers;
use state::{State, keeps_writers_waiting};

/// How long another process may keep the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5_000 });

/// How rows become members. Another number makes every source be read again.
const READS_ROWS_AS: &[u8] = b"1";

/// A SQLite file, only ever read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sqlite {
    pub name: SourceName,
    pub path: PathBuf,
}

/// Sees what can be seen of a query without its database: the reason why it can never be one.
pub fn check_syntax(query: &str) -> Option<String> {
    syntax(query, Question::Members)
}

/// The same of a change query.
pub fn check_syntax_of_changes(query: &str) -> Option<String> {
    syntax(query, Question::ANY_CHANGES)
}

fn syntax(query: &str, question: Question) -> Option<String> {
    let mut connection = Connection::open_in_memory().ok()?;
    access::only_read(&mut connection).ok()?;
    let prepared = connection.prepare(query);
    match prepared {
        Ok(statement) => not_a_query(&statement, question).map(str::to_owned),
        Err(error) if is_refused(&error) => Some(ONLY_READS.to_owned()),
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

fn is_refused(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::AuthorizationForStatementDenied)
}

fn not_a_query(statement: &Statement<'_>, question: Question) -> Option<&'static str> {
    let parameters = statement.parameter_count();
    if statement.column_count() == 0 {
        Some("it is not a SELECT")
    } else if !statement.readonly() {
        Some("it writes to the database")
    } else {
        match question {
            Question::Members if parameters > 0 => {
                Some("it has a parameter, and nothing to put in its place")
            }
            Question::Changes { .. } if statement.parameter_name(1) != Some(SINCE) => {
                Some("it has no parameter `:since`, the time that it is asked about")
            }
            Question::Changes { .. } if parameters > 1 => {
                Some("it has another parameter than `:since`, and nothing to put in its place")
            }
            _ => None,
        }
    }
}

/// A time as SQLite's `CURRENT_TIMESTAMP` writes it.
fn in_sql(since: Timestamp) -> String {
    since.to_datetime().format("%Y-%m-%d %H:%M:%S").to_string()
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

/// A connection to a source.
struct Opened {
    connection: Connection,
    uses: Uses,
    /// Dropped after the connection, as it stands below it.
    _connected: Connected,
}

/// One transaction on a source.
pub(super) struct Reader<'s> {
    sqlite: &'s Sqlite,
    opened: Opened,
    /// What the file was before it.
    before: Result<State, Doubt>,
}

impl Reader<'_> {
    fn ask<T, E: From<SourceError>>(
        &self,
        audience: &Audience,
        question: Question,
        read: impl FnOnce(&mut SqliteMembers<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (sqlite, opened) = (self.sqlite, &self.opened);
        let mut layout = sqlite.layout(opened, audience, question)?;
        // The query may have to be asked twice.
        if !layout.as_text {
            let mut statement = sqlite.prepare(opened, audience, &layout)?;
            let mut members = self.members(&mut statement, audience, &layout)?;
            if !members.has_numbers {
                return read(&mut members);
            }
        }
        layout.as_text = true;
        let mut statement = sqlite.prepare(opened, audience, &layout)?;
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
            .map_err(|error| self.sqlite.unreadable(error))?;
        let before = match layout.is_pure {
            true => self.before.as_ref().map_err(|doubt| *doubt),
            false => Err(Doubt::NotOfTheFile),
        };
        let mut members = SqliteMembers::new(self.sqlite, audience, layout, rows, before);
        members.start()?;
        Ok(members)
    }
}

impl Sqlite {
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        let opened = self.open()?;
        let changes = audience.changes.iter().map(|_| Question::ANY_CHANGES);
        for question in [Question::Members].into_iter().chain(changes) {
            let layout = self.layout(&opened, audience, question)?;
            self.prepare(&opened, audience, &layout)?;
        }
        Ok(())
    }

    /// By itself and not sorted: since 1970 it may tell of everyone.
    pub(super) fn tells_of_anybody(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
    ) -> Result<bool, SourceError> {
        let opened = self.open()?;
        interrupt.watch(&opened.connection);
        let query = self.layout(&opened, audience, Question::ANY_CHANGES)?.query;
        let mut statement = opened
            .connection
            .prepare(&query)
            .map_err(|error| self.prepare_error(audience, Question::ANY_CHANGES, error))?;
        statement
            .query([])
            .and_then(|mut rows| Ok(rows.next()?.is_some()))
            .map_err(|error| self.unreadable(error))
    }

    /// What the audience's `updated_at` says.
    pub(super) fn updated_at(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
    ) -> Result<Timestamp, SourceError> {
        let query = audience.expect.updated_at.as_deref().unwrap_or_default();
        let unexpected = |problem: String| {
            SourceError::unexpected(&self.name, format!("`updated_at` {problem}"))
        };
        let opened = self.open()?;
        interrupt.watch(&opened.connection);
        let told = opened.connection.query_row(query, [], |row| {
            row.get_ref(0)?;
            Ok(time_of(row.cell(0)))
        });
        told.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::Unknown) | None => {
                unexpected(format!("cannot run: {}", message(&error)))
            }
            Some(_) => self.unreadable(error),
        })?
        .ok_or_else(|| unexpected(NO_TIME.to_owned()))
    }

    /// What the file is now.
    pub(super) fn fingerprint(&self) -> Result<Fingerprint, Doubt> {
        State::of(&self.path).map(|state| state.fingerprint())
    }

    pub(super) fn keeps_writers_waiting(&self) -> bool {
        keeps_writers_waiting(&self.path)
    }

    pub(super) fn definition(&self, audience: &Audience) -> String {
        self.definition_in(rusqlite::version(), audience)
    }

    fn definition_in(&self, version: &str, audience: &Audience) -> String {
        let path = std::path::absolute(&self.path);
        let path = path.as_deref().unwrap_or(&self.path).as_os_str();
        let changes = audience.changes.as_ref();
        let texts = [
            READS_ROWS_AS,
            version.as_bytes(),
            self.name.as_str().as_bytes(),
            path.as_encoded_bytes(),
            audience.class.as_str().as_bytes(),
            audience.query.as_bytes(),
            // So that a trait cannot be taken for a change query.
            &[u8::from(changes.is_some())],
        ];
        let changes = changes.map(|changes| changes.query.as_bytes());
        let traits = audience.traits.iter().map(String::as_bytes);
        digest(texts.into_iter().chain(changes).chain(traits))
    }

    pub(super) fn ask(
        &self,
        audience: &Audience,
        questions: &[Question],
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<(), SourceError> {
        let reader = self.begin(interrupt)?;
        for question in questions {
            if !reader.ask(audience, *question, |members| use_members(members))? {
                break;
            }
        }
        Ok(())
    }

    /// Begins to read: all that is asked is of one moment.
    pub(super) fn begin(&self, interrupt: &Interrupt) -> Result<Reader<'_>, SourceError> {
        // What was before anything is read: somebody may write at any moment.
        let before = State::of(&self.path);
        let opened = self.open()?;
        interrupt.watch(&opened.connection);
        opened
            .connection
            .execute_batch("BEGIN")
            .map_err(|error| self.unreadable(error))?;
        Ok(Reader {
            sqlite: self,
            opened,
            before,
        })
    }

    fn open(&self) -> Result<Opened, SourceError> {
        if !self.path.is_file() {
            return Err(SourceError::Missing {
                source_name: self.name.clone(),
                path: self.path.clone(),
            });
        }
        let (source_name, path) = (self.name.clone(), self.path.clone());
        let connected = Connected::new();
        let cut_off = Handle::open(&path)
            .ok()
            .and_then(|mut file| cut_off_at(&mut file));
        match cut_off {
            None => {}
            Some(0) => return Err(SourceError::Empty { source_name, path }),
            Some(bytes) => {
                return Err(SourceError::CutOff {
                    source_name,
                    path,
                    bytes,
                });
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)
            .map_err(|error| self.unreadable(error))?;
        let uses = connection
            .busy_timeout(BUSY_TIMEOUT)
            .and_then(|()| connection.pragma_update(None, "query_only", true))
            .and_then(|()| access::only_read(&mut connection))
            .map_err(|error| self.unreadable(error))?;
        Ok(Opened {
            connection,
            uses,
            _connected: connected,
        })
    }

    fn unreadable(&self, cause: rusqlite::Error) -> SourceError {
        SourceError::Unreadable {
            source_name: self.name.clone(),
            path: self.path.clone(),
            cause,
        }
    }

    fn query_error(
        &self,
        audience: &Audience,
        question: Question,
        reason: impl Into<String>,
    ) -> SourceError {
        SourceError::Query {
            question,
            audience: audience.name.clone(),
            source_name: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// A statement that does not compile is a mistake in the query, unless the file is the trouble.
    fn prepare_error(
        &self,
        audience: &Audience,
        question: Question,
        error: rusqlite::Error,
    ) -> SourceError {
        match error.sqlite_error_code() {
            _ if is_refused(&error) => self.query_error(audience, question, ONLY_READS),
            Some(ErrorCode::Unknown) | None => {
                self.query_error(audience, question, message(&error))
            }
            Some(_) => self.unreadable(error),
        }
    }

    fn prepare<'c>(
        &self,
        opened: &'c Opened,
        audience: &Audience,
        layout: &Layout,
    ) -> Result<Statement<'c>, SourceError> {
        let connection = &opened.connection;
        let sorted = connection
            .prepare(&layout.sorted())
            .map_err(|error| self.prepare_error(audience, layout.question, error))?;
        let is_found_in_order = !layout.as_text && layout.question == Question::Members;
        if !is_found_in_order || !self.compares_bytes(connection, layout) {
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

    /// How a question is asked. A change query must know people by the ids that the query knows them by.
    fn layout(
        &self,
        opened: &Opened,
        audience: &Audience,
        question: Question,
    ) -> Result<Layout, SourceError> {
        let layout = self.layout_by_itself(opened, audience, question)?;
        if question == Question::Members {
            return Ok(layout);
        }
        let members = self.layout_by_itself(opened, audience, Question::Members)?;
        match members.has_other_ids(&layout) {
            None => Ok(layout),
            Some(reason) => Err(self.query_error(audience, question, reason)),
        }
    }

    fn layout_by_itself(
        &self,
        opened: &Opened,
        audience: &Audience,
        question: Question,
    ) -> Result<Layout, SourceError> {
        let Opened {
            connection, uses, ..
        } = opened;
        let query = match (question, &audience.changes) {
            (Question::Changes { .. }, Some(changes)) => &changes.query,
            _ => &audience.query,
        };
        uses.begin();
        let mut statement = connection
            .prepare(query)
            .map_err(|error| self.prepare_error(audience, question, error))?;
        let is_pure = uses
            .only_the_file(connection)
            .map_err(|error| self.unreadable(error))?;
        if let Some(reason) = not_a_query(&statement, question) {
            return Err(self.query_error(audience, question, reason));
        }
        if let Question::Changes { since } = question {
            statement
                .raw_bind_parameter(1, in_sql(since))
                .map_err(|error| self.unreadable(error))?;
        }
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let layout = Layout::of(&names, audience, question)
            .map_err(|reason| self.query_error(audience, question, reason))?;
        let id = layout.id_columns()[0];
        // Only a guess, and only about speed: a column may hold what its declaration does not say.
        let declared = statement
            .columns()
            .nth(id)
            .and_then(|column| column.decl_type().map(str::to_ascii_lowercase))
            .unwrap_or_default();
        let as_text = layout.both_ids() || declared.contains("int");
        // SQLite's own words for the statement end where it does, with the time in its place: no comment follows its
        // semicolon.
        let query = statement.expanded_sql().unwrap_or_else(|| query.clone());
        let query = query.trim_end_matches(';').to_owned();
        let collation = self.collation(connection)?;
        Ok(Layout {
            query,
            as_text,
            collation,
            is_pure,
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
