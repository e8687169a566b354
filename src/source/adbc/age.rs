//! How old a warehouse is, by the query that tells.

use adbc_core::error::Error;
use adbc_core::{Connection as _, Statement as _};
use adbc_driver_manager::ManagedConnection;
use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::driver::{is_postgresql, only_read};
use super::query::{not_a_query, statement};
use super::words::Words;
use super::{Adbc, watch};
use crate::audience::Audience;
use crate::run::Timestamp;
use crate::source::arrow::Batch;
use crate::source::expect::{NO_TIME, time_of};
use crate::source::row::Row as _;
use crate::source::{Interrupt, SourceError};

/// What a driver says is wrong, before there are rows or while they come.
enum Wrong {
    Query(Error),
    Rows(ArrowError),
}

impl Adbc {
    /// What the audience's `updated_at` says.
    pub(in crate::source) fn updated_at(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
    ) -> Result<Timestamp, SourceError> {
        let query = audience.expect.updated_at.as_deref().unwrap_or_default();
        let unexpected = |problem: String| {
            SourceError::unexpected(&self.name, format!("`updated_at` {problem}"))
        };
        if let Some(reason) = not_a_query(query) {
            return Err(unexpected(format!("cannot run: {reason}")));
        }
        // Goes after the rows do, and the driver with it.
        let mut connection = self.connect()?;
        let batch = first_rows(&mut connection, query, interrupt).map_err(|wrong| {
            if interrupt.is_requested() {
                return self.interrupted();
            }
            let said = match wrong {
                Wrong::Query(error) => Words::of(self, &error),
                Wrong::Rows(error) => Words::of_rows(self, &error),
            };
            unexpected(format!("cannot run: {}", said.text))
        })?;
        let batch = batch.map(|batch| Batch::of(&batch));
        let row = batch.as_ref().and_then(|batch| batch.row(0));
        row.and_then(|row| time_of(row.cell(0)))
            .ok_or_else(|| unexpected(NO_TIME.to_owned()))
    }
}

fn first_rows(
    connection: &mut ManagedConnection,
    query: &str,
    interrupt: &Interrupt,
) -> Result<Option<RecordBatch>, Wrong> {
    if is_postgresql(connection) {
        only_read(connection).map_err(Wrong::Query)?;
    }
    let mut asked = connection.new_statement().map_err(Wrong::Query)?;
    watch(interrupt, asked.get_cancel_handle());
    let rows = asked
        .set_sql_query(statement(query))
        .and_then(|()| asked.execute());
    let first = rows.map_err(Wrong::Query)?.next();
    first.transpose().map_err(Wrong::Rows)
}
