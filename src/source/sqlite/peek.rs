//! A look at the first rows of a query, asked as a run asks it. A change query is asked by itself and not sorted: since
//! 1970 it may tell of everyone.

use std::collections::BTreeMap;

use rusqlite::{Statement, StatementStatus};

use super::layout::Layout;
use super::{Opened, Sqlite};
use crate::audience::Audience;
use crate::source::peek::{Look, Order};
use crate::source::row::Columns;
use crate::source::{Interrupt, Question, SourceError};

impl Sqlite {
    pub(in crate::source) fn peek(
        &self,
        audience: &Audience,
        question: Question,
        interrupt: &Interrupt,
        look: &mut Look,
    ) -> Result<(), SourceError> {
        look.reads(self.path.display().to_string());
        let reader = self.begin(interrupt)?;
        let opened = &reader.opened;
        let mut layout = self.layout(opened, audience, question)?;
        let mut by_itself = self.prepare_by_itself(opened, audience, &layout)?;
        declare(&by_itself, &layout, look);
        if question != Question::Members {
            let (columns, is_enough) = (&layout.found, &|_: &Look| false);
            return self.look_at(&mut by_itself, audience, question, columns, look, is_enough);
        }
        let columns = layout.sorted_columns();
        loop {
            let mut statement = self.prepare(opened, audience, &layout)?;
            look.comes(Order::Given);
            // As a run does: numbers are found by the first of them, and asked for as text.
            let is_enough = |look: &Look| look.has_numbers && !layout.as_text;
            self.look_at(
                &mut statement,
                audience,
                question,
                &columns,
                look,
                &is_enough,
            )?;
            if !is_enough(look) {
                if statement.get_status(StatementStatus::Sort) > 0 {
                    look.comes(Order::Sorted);
                }
                return Ok(());
            }
            layout.as_text = true;
            look.again();
        }
    }

    fn prepare_by_itself<'c>(
        &self,
        opened: &'c Opened,
        audience: &Audience,
        layout: &Layout,
    ) -> Result<Statement<'c>, SourceError> {
        let prepared = opened.connection.prepare(&layout.query);
        prepared.map_err(|error| self.prepare_error(audience, layout.question, error))
    }

    fn look_at(
        &self,
        statement: &mut Statement<'_>,
        audience: &Audience,
        question: Question,
        columns: &Columns,
        look: &mut Look,
        is_enough: &dyn Fn(&Look) -> bool,
    ) -> Result<(), SourceError> {
        let unreadable = |error| self.unreadable(error);
        let mut rows = statement.query([]).map_err(unreadable)?;
        while let Some(row) = rows.next().map_err(unreadable)? {
            if !look.take_of(audience, question, columns, row)? || is_enough(look) {
                break;
            }
        }
        Ok(())
    }
}

/// SQLite knows no more than what a table says of its columns, and nothing of expressions.
fn declare(by_itself: &Statement<'_>, layout: &Layout, look: &mut Look) {
    let declared: Vec<Option<String>> = by_itself
        .columns()
        .map(|column| column.decl_type().map(str::to_owned))
        .collect();
    look.declare(
        &layout.found,
        |place| declared[place].clone(),
        &BTreeMap::new(),
    );
}
