//! Arrow batches as rows, whoever gives them: a driver or a file.

mod cells;
mod fetch;

pub(super) use cells::{Batch, BatchRow, compares_as_text};
pub(super) use fetch::{Fetched, fetch};
