//! Rows of Parquet: only the columns that are used, page by page.
//!
//! The footer says how many rows there are, and so many must come. What is damaged is found out by a reader that may
//! panic over it; then it has failed, and nothing else.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, DataType, Field, Fields, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use parquet::arrow::{
    ProjectionMask, parquet_to_arrow_field_levels, parquet_to_arrow_schema,
    parquet_to_arrow_schema_by_columns,
};
use parquet::basic::CompressionCodec;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;

use super::{Problem, Taker};
use crate::source::arrow::{Batch, Fetched, fetch};
use crate::source::row::Columns;

/// How many rows are decoded at once.
const BATCH_ROWS: usize = 4_096;

/// How many columns an error names.
const NAMED: usize = 20;

const NAME_IT: &str = "name it: columns = { user_id = \"...\" }";

/// What stands at both ends of a file,
const MAGIC: &[u8] = b"PAR1";
/// and at those of one that nobody can read without its key.
const MAGIC_OF_ENCRYPTED: &[u8] = b"PARE";

pub(super) fn read(file: &File, taker: &mut Taker<'_>) -> Result<(), Problem> {
    see_ends(file)?;
    let file = file.try_clone()?;
    let file: Arc<dyn FileReader> = Arc::new(contained(|| Ok(SerializedFileReader::new(file)?))?);
    let names = contained(|| Ok(names(file.metadata())))?;
    let columns = taker.find(&names, &shown(&names), NAME_IT)?;
    taker.declare(&columns, types(file.metadata()));
    let places = columns.places();
    let batches = contained(|| open(&file, &names, &places))?;
    let columns = columns.among(&places);
    thread::scope(|scope| take_all(fetch(scope, batches), &columns, taker))?;
    let rows = file.metadata().file_metadata().num_rows();
    match u64::try_from(rows) == Ok(taker.rows) {
        true => Ok(()),
        false => Err(unreadable(format!(
            "it has {} rows, and its footer says {rows}",
            taker.rows
        ))),
    }
}

fn take_all(
    fetched: Receiver<Fetched>,
    columns: &Columns,
    taker: &mut Taker<'_>,
) -> Result<(), Problem> {
    for fetched in fetched {
        let batch = match fetched {
            Fetched::Batch(batch) => Batch::of(&batch),
            Fetched::Failed(error) => {
                taker.count()?;
                return Err(error.into());
            }
            Fetched::End => break,
        };
        for row in (0..).map_while(|row| batch.row(row)) {
            taker.count()?;
            taker.take(columns, &row)?;
        }
    }
    Ok(())
}

/// A file that is cut off has no end, whatever it begins with.
fn see_ends(mut file: &File) -> Result<(), Problem> {
    let bytes = file.metadata()?.len();
    if bytes == 0 {
        return Err(Problem::Empty);
    }
    let (mut first, mut last) = ([0; 4], [0; 4]);
    file.seek(SeekFrom::Start(0))?;
    // What is shorter is something else, too.
    let read = file.take(4).read(&mut first)?;
    if read < 4 || (first != MAGIC && first != MAGIC_OF_ENCRYPTED) {
        return Err(Problem::Here(
            "it is no Parquet: it does not begin with `PAR1`\n\nhint: set format where another ending is right"
                .to_owned(),
        ));
    }
    file.seek(SeekFrom::End(-4))?;
    file.read_exact(&mut last)?;
    match &last[..] {
        MAGIC if bytes > 8 => Ok(()),
        MAGIC_OF_ENCRYPTED => Err(Problem::Here(
            "it is encrypted\n\nhint: export it without encryption".to_owned(),
        )),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

/// Those of the outermost columns.
fn names(metadata: &ParquetMetaData) -> Vec<String> {
    let root = metadata.file_metadata().schema_descr().root_schema();
    let columns = root.get_fields().iter();
    columns.map(|column| column.name().to_owned()).collect()
}

/// What Arrow calls the types of the outermost columns, where it knows all of them.
fn types(metadata: &ParquetMetaData) -> impl Fn(usize) -> Option<String> {
    let schema = metadata.file_metadata().schema_descr();
    let schema = contained(|| Ok(parquet_to_arrow_schema(schema, None)?)).ok();
    move |place| Some(schema.as_ref()?.field(place).data_type().to_string())
}

/// As an error tells them.
fn shown(names: &[String]) -> String {
    let first = names.iter().take(NAMED);
    let mut shown: Vec<String> = first
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    if names.len() > NAMED {
        shown.push(format!("{} more", names.len() - NAMED));
    }
    shown.join(", ")
}

/// Rows of the columns in these places, and of no other.
fn open(
    file: &Arc<dyn FileReader>,
    names: &[String],
    places: &[usize],
) -> Result<Contained, Problem> {
    let schema = file.metadata().file_metadata().schema_descr();
    let used = ProjectionMask::roots(schema, places.iter().copied());
    let of_used = parquet_to_arrow_schema_by_columns(schema, used.clone(), None)?;
    is_flat(&of_used)?;
    // Where Arrow knows no type for some other column, texts are copied.
    let all = parquet_to_arrow_schema(schema, None);
    let hint = all.map(|all| in_pieces(&all.fields)).ok();
    let levels = parquet_to_arrow_field_levels(schema, used.clone(), hint.as_ref())?;
    let leaves = (0..schema.num_columns()).filter(|leaf| used.leaf_included(*leaf));
    for leaf in leaves {
        is_whole(
            file.metadata(),
            leaf,
            &names[schema.get_column_root_idx(leaf)],
        )?;
    }
    let batches =
        ParquetRecordBatchReader::try_new_with_row_groups(&levels, file, BATCH_ROWS, None)?;
    Ok(Contained(batches))
}

/// Texts stay in the page that they came in.
fn in_pieces(fields: &Fields) -> Fields {
    let in_pieces = |field: &Arc<Field>| {
        let in_pieces = match field.data_type() {
            DataType::Utf8 => DataType::Utf8View,
            DataType::Binary => DataType::BinaryView,
            _ => return field.clone(),
        };
        Arc::new(field.as_ref().clone().with_data_type(in_pieces))
    };
    fields.iter().map(in_pieces).collect()
}

fn is_flat(schema: &Schema) -> Result<(), Problem> {
    let mut fields = schema.fields.iter();
    match fields.find(|field| field.data_type().is_nested()) {
        None => Ok(()),
        Some(field) => Err(Problem::Here(format!(
            "column `{}` has parts of its own, and takes text or numbers\n\n\
             hint: write the part that is needed to a column by itself",
            field.name().escape_debug()
        ))),
    }
}

/// Whether a column has every row, in a way that can be read.
fn is_whole(metadata: &ParquetMetaData, leaf: usize, name: &str) -> Result<(), Problem> {
    let name = name.escape_debug();
    for group in metadata.row_groups() {
        let column = group.column(leaf);
        if column.compression_codec() == CompressionCodec::LZO {
            return Err(Problem::Here(format!(
                "column `{name}` is compressed by LZO, which cannot be read\n\n\
                 hint: write it with snappy, zstd, gzip, lz4, brotli or none"
            )));
        }
        let (values, rows) = (column.num_values(), group.num_rows());
        if values != rows {
            let problem = format!("column `{name}` has {values} values in {rows} rows");
            return Err(unreadable(problem));
        }
    }
    Ok(())
}

/// Batches until the first failure.
struct Contained(ParquetRecordBatchReader);

impl Iterator for Contained {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let panicked = |_| Some(Err(ArrowError::ParquetError(PANICKED.to_owned())));
        catch_unwind(AssertUnwindSafe(|| self.0.next())).unwrap_or_else(panicked)
    }
}

/// Nothing of what it has touched when it panics is used again. What it panics with is on standard error.
fn contained<T>(read: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    let panicked = |_| Err(unreadable(PANICKED.to_owned()));
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(panicked)
}

const PANICKED: &str = "what reads it has panicked";

impl From<ParquetError> for Problem {
    fn from(error: ParquetError) -> Self {
        ArrowError::from(error).into()
    }
}

impl From<ArrowError> for Problem {
    fn from(error: ArrowError) -> Self {
        let problem = match error {
            ArrowError::ParquetError(problem) => problem,
            other => other.to_string(),
        };
        let problem = problem.strip_prefix("Parquet error: ").unwrap_or(&problem);
        unreadable(problem.to_owned())
    }
}

fn unreadable(problem: String) -> Problem {
    Problem::Here(format!(
        "it cannot be read: {problem}\n\nhint: export or copy it again; encrypted columns are not read"
    ))
}
