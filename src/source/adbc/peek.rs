//! A look at the first rows of a query, asked as a run asks it. The rest of its answer is cancelled.

use std::collections::BTreeMap;

use adbc_core::Statement as _;
use arrow_array::RecordBatchReader;
use arrow_schema::Schema;

use super::cells::Batch;
use super::words::Words;
use super::{Adbc, Asked, driver};
use crate::audience::Audience;
use crate::source::peek::{Look, Order};
use crate::source::{Interrupt, Question, SourceError};

/// How much comes from PostgreSQL at once: whoever waits for few rows waits for no more.
const BATCH_BYTES: i64 = 16 << 10;

impl Adbc {
    pub(in crate::source) fn peek(
        &self,
        audience: &Audience,
        interrupt: &Interrupt,
        look: &mut Look,
    ) -> Result<(), SourceError> {
        Asked::begin(self, audience, interrupt)?.peek(look)
    }
}

impl Asked<'_> {
    fn peek(mut self, look: &mut Look) -> Result<(), SourceError> {
        look.reads(self.adbc.redact(&driver::about(&self.connection)));
        let (mut statement, is_ordered) = self.prepare(BATCH_BYTES)?;
        look.comes(if is_ordered {
            Order::Asked
        } else {
            Order::Here
        });
        let cancel = statement.get_cancel_handle();
        let mut rows = statement.execute().map_err(|error| self.failed(&error))?;
        if !self.look_at(&mut *rows, look)? {
            // The database need not go on. One that cannot be told so is not waited for.
            drop(cancel.try_cancel());
        }
        Ok(())
    }

    /// Whether it has seen all.
    fn look_at(
        &self,
        rows: &mut dyn RecordBatchReader,
        look: &mut Look,
    ) -> Result<bool, SourceError> {
        let schema: &Schema = &rows.schema();
        let columns = self.columns(schema)?;
        let type_of = |place: usize| Some(schema.field(place).data_type().to_string());
        look.declare(&columns, type_of, &BTreeMap::new());
        for batch in rows {
            let batch = batch.map_err(|error| {
                self.adbc
                    .failed(self.audience, Words::of_rows(self.adbc, &error))
            })?;
            let batch = Batch::of(&batch);
            let all = (0..).map_while(|place| batch.row(place));
            for row in all {
                if !look.take_of(self.audience, Question::Members, &columns, &row)? {
                    return Ok(false);
                }
            }
            if self.interrupt.is_requested() {
                return Err(self.adbc.interrupted());
            }
        }
        Ok(true)
    }
}
