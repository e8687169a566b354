//! Members from a query on any database that has an ADBC driver, as Arrow batches.
//!
//! A driver is a library that is loaded when it is needed. PostgreSQL is asked for the order of bytes, `COLLATE "C"`,
//! which an index may give for nothing, and its rows go straight into the merge. Nobody else is: what an engine sorts
//! by is its own affair, and asking for it costs a sort there for one that is cheap here. Their rows are sorted on disk.
//!
//! Only PostgreSQL can be held to reading, by its transaction. Elsewhere a statement must begin as one that reads,
//! and the role should be one that may do no more.

mod age;
mod driver;
mod members;
mod peek;
mod query;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use adbc_core::error::{Error, Status};
use adbc_core::options::{OptionStatement, OptionValue};
use adbc_core::{CancelHandle, Connection as _, Optionable as _, Statement as _};
use adbc_driver_manager::{ManagedConnection, ManagedStatement};
use arrow_schema::Schema;

use super::arrow::fetch;
use super::row::Columns;
use super::sort::Sorter;
use super::{Interrupt, Question, SourceError, UseMembers, digest};
use crate::audience::{Audience, SourceName};
use crate::secret::Secret;
use driver::{is_postgresql, only_read};
use members::{OrderedMembers, Rows};
use query::{in_order, not_a_query, statement};
use words::{Words, hidden_in};

pub(crate) use words::{has_password, is_password};

/// A database behind an ADBC driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adbc {
    pub name: SourceName,
    /// By name, path or manifest.
    pub driver: String,
    /// The driver's own, `uri` among them where it is no secret.
    pub options: BTreeMap<String, String>,
    /// Further ones.
    pub secrets: BTreeMap<String, Secret>,
}

/// How rows become members.
const READS_ROWS_AS: &[u8] = b"1";

/// What sorting may take of memory.
const SORT_BYTES: usize = 64 << 20;

/// How much comes from PostgreSQL at once.
const BATCH_BYTES: i64 = 1 << 20;

/// Bytes of other encodings have another order.
const IS_UTF8: &str = "SELECT current_setting('server_encoding') = 'UTF8' AS is_utf8";

impl Adbc {
    /// Sees whether there is a driver, and a query that reads. Nothing is connected to.
    pub(super) fn check(&self, audience: &Audience) -> Result<(), SourceError> {
        if let Some(reason) = not_a_query(&audience.query) {
            return Err(self.query_error(audience, reason));
        }
        self.load()?;
        Ok(())
    }

    pub(super) fn definition(&self, audience: &Audience) -> String {
        let texts = [
            READS_ROWS_AS,
            self.name.as_str().as_bytes(),
            self.driver.as_bytes(),
            audience.class.as_str().as_bytes(),
            audience.query.as_bytes(),
        ];
        digest(
            texts
                .into_iter()
                .chain(audience.traits.iter().map(String::as_bytes)),
        )
    }

    pub(super) fn ask(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        use_members: &mut UseMembers<'_>,
    ) -> Result<(), SourceError> {
        Asked::begin(self, audience, interrupt)?.answer(use_members)
    }

    fn interrupted(&self) -> SourceError {
        SourceError::interrupted(&self.name)
    }

    fn broken(&self, place: String, problem: String) -> SourceError {
        SourceError::broken(&self.name, place, problem)
    }

    /// A query that may be right, and failed.
    fn failed(&self, audience: &Audience, said: Words) -> SourceError {
        self.broken(
            format!("the query of {:?} failed", audience.name),
            said.text,
        )
    }

    fn query_error(&self, audience: &Audience, reason: impl Into<String>) -> SourceError {
        SourceError::Query {
            question: Question::Members,
            audience: audience.name.clone(),
            source_name: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// A text of the driver's with every secret blotted out.
    fn redact(&self, text: &str) -> String {
        let hidden = self.secrets.values().flat_map(hidden_in);
        hidden.fold(text.to_owned(), |text, secret| secret.redact(&text))
    }
}

/// A question that is being answered.
struct Asked<'a> {
    adbc: &'a Adbc,
    audience: &'a Audience,
    interrupt: &'a Interrupt,
    connection: ManagedConnection,
}

impl<'a> Asked<'a> {
    /// Connects.
    fn begin(
        adbc: &'a Adbc,
        audience: &'a Audience,
        interrupt: &'a Interrupt,
    ) -> Result<Self, SourceError> {
        if let Some(reason) = not_a_query(&audience.query) {
            return Err(adbc.query_error(audience, reason));
        }
        let connection = adbc.connect()?;
        if interrupt.is_requested() {
            return Err(adbc.interrupted());
        }
        Ok(Self {
            adbc,
            audience,
            interrupt,
            connection,
        })
    }

    /// The statement that gives all rows, and whether it gives them in the order of users.
    fn prepare(&mut self, batch_bytes: i64) -> Result<(ManagedStatement, bool), SourceError> {
        let plain = statement(&self.audience.query);
        let is_postgresql = is_postgresql(&self.connection);
        let ordered = match is_postgresql {
            true => {
                let ordered = self.find_order(&plain)?;
                only_read(&mut self.connection).map_err(|error| self.failed(&error))?;
                ordered
            }
            false => None,
        };
        let mut statement = self.statement(ordered.as_deref().unwrap_or(&plain))?;
        if is_postgresql {
            in_batches_of(&mut statement, batch_bytes);
        }
        watch(self.interrupt, statement.get_cancel_handle());
        Ok((statement, ordered.is_some()))
    }

    fn answer(mut self, use_members: &mut UseMembers<'_>) -> Result<(), SourceError> {
        // Goes after the rows do: they come out of it.
        let (mut statement, is_ordered) = self.prepare(BATCH_BYTES)?;
        let reader = statement.execute().map_err(|error| self.failed(&error))?;
        let columns = self.columns(&reader.schema())?;
        thread::scope(|scope| {
            let fetched = fetch(scope, reader);
            let Self {
                adbc,
                audience,
                interrupt,
                ..
            } = self;
            let rows = Rows::new(adbc, audience, columns, interrupt, fetched);
            match is_ordered {
                true => use_members(&mut OrderedMembers::start(rows)?),
                false => use_members(&mut rows.sorted(Sorter::new(SORT_BYTES, interrupt))?),
            }
        })?;
        Ok(())
    }

    fn statement(&mut self, query: &str) -> Result<ManagedStatement, SourceError> {
        let statement = self.connection.new_statement();
        let asked = statement.and_then(|mut statement| {
            statement.set_sql_query(query)?;
            Ok(statement)
        });
        asked.map_err(|error| self.failed(&error))
    }

    /// The query in the order of its users, where the database can give it. What PostgreSQL's likes do not understand,
    /// they are not asked.
    fn find_order(&mut self, plain: &str) -> Result<Option<String>, SourceError> {
        let schema = self.statement(plain)?.execute_schema();
        let schema = schema.map_err(|error| self.failed(&error))?;
        let columns = self.columns(&schema)?;
        let Some(ordered) = in_order(plain, &schema, &columns) else {
            return Ok(None);
        };
        let is_understood = self.statement(&ordered)?.execute_schema().is_ok();
        Ok((is_understood && self.is_utf8()).then_some(ordered))
    }

    fn is_utf8(&mut self) -> bool {
        use arrow_array::cast::AsArray as _;

        let Ok(mut statement) = self.statement(IS_UTF8) else {
            return false;
        };
        let Ok(batches) = statement.execute() else {
            return false;
        };
        batches.flatten().any(|batch| {
            let column = batch.columns().first().and_then(|it| it.as_boolean_opt());
            column.is_some_and(|is_utf8| is_utf8.iter().flatten().any(|it| it))
        })
    }

    fn columns(&self, schema: &Schema) -> Result<Columns, SourceError> {
        let names: Vec<String> = schema.fields().iter().map(|it| it.name().clone()).collect();
        let name_it = |column: &str| format!("write `... AS {column}`");
        Columns::find(&names, self.audience, Question::Members, name_it)
            .map_err(|reason| self.adbc.query_error(self.audience, reason))
    }

    /// A mistake in the query, a query that failed, or an interrupt.
    fn failed(&self, error: &Error) -> SourceError {
        if self.interrupt.is_requested() {
            return self.adbc.interrupted();
        }
        let said = Words::of(self.adbc, error);
        match is_mistake(error, &said) {
            true => self.adbc.query_error(self.audience, said.text),
            false => self.adbc.failed(self.audience, said),
        }
    }
}

/// Whether a query can never work as it is written. Class 42 is what is wrong with a statement, and what its role may not
/// see; drivers that tell no class have a status for it.
fn is_mistake(error: &Error, said: &Words) -> bool {
    match said.state.as_str() {
        "" => matches!(error.status, Status::InvalidArguments | Status::NotFound),
        state => state.starts_with("42"),
    }
}

/// The driver's own size is 16 MiB, for which everyone waits. One that does not know the option is as good.
fn in_batches_of(statement: &mut ManagedStatement, bytes: i64) {
    let size = OptionStatement::from("adbc.postgresql.batch_size_hint_bytes");
    drop(statement.set_option(size, OptionValue::from(bytes)));
}

/// Lets a statement be ended. On a thread of its own, since a cancellation goes over the network and may wait; one at
/// a time is enough.
fn watch(interrupt: &Interrupt, cancel: Box<dyn CancelHandle>) {
    let cancel: Arc<dyn CancelHandle> = cancel.into();
    let is_under_way = Arc::new(AtomicBool::new(false));
    interrupt.end_by(move || {
        if is_under_way.swap(true, Ordering::Relaxed) {
            return;
        }
        let (cancel, is_under_way) = (cancel.clone(), is_under_way.clone());
        thread::spawn(move || {
            // Drivers that cannot do it are not waited for longer than a batch takes.
            drop(cancel.try_cancel());
            is_under_way.store(false, Ordering::Relaxed);
        });
    });
}
