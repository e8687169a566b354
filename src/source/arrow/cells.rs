//! What comes as Arrow, column by column, as cells of rows.
//!
//! Texts are only ever looked at as bytes: nobody has seen whether a driver's are UTF-8. Numbers stay numbers where
//! nothing of them is lost, and are texts otherwise. Times are texts as ISO 8601 writes them.

use std::fmt::Display;

use arrow_array::cast::AsArray as _;
use arrow_array::temporal_conversions::{as_date, as_datetime, as_time};
use arrow_array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DecimalType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, BinaryViewArray, BooleanArray, Float64Array,
    Int64Array, LargeBinaryArray, RecordBatch,
};
use arrow_schema::{DataType, Field, TimeUnit};
use chrono::NaiveDateTime;
use uuid::Uuid;

use crate::source::row::{Cell, Row};

/// Some rows, one after another.
pub(in crate::source) struct Batch {
    columns: Vec<Column>,
    rows: usize,
}

/// One of them.
pub(in crate::source) struct BatchRow<'b> {
    batch: &'b Batch,
    row: usize,
}

impl Batch {
    pub(in crate::source) fn of(batch: &RecordBatch) -> Self {
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns());
        Self {
            columns: columns
                .map(|(field, array)| Column::of(field, array))
                .collect(),
            rows: batch.num_rows(),
        }
    }

    pub(in crate::source) fn row(&self, row: usize) -> Option<BatchRow<'_>> {
        (row < self.rows).then_some(BatchRow { batch: self, row })
    }
}

impl Row for BatchRow<'_> {
    fn cell(&self, column: usize) -> Cell<'_> {
        self.batch.columns[column].cell(self.row)
    }
}

enum Column {
    Booleans(BooleanArray),
    Integers(Int64Array),
    Reals(Float64Array),
    /// Written out, since not all of them fit into a number.
    Numbers(BinaryArray),
    Texts(BinaryArray),
    LongTexts(LargeBinaryArray),
    TextsInPieces(BinaryViewArray),
    /// Each row is a place among few values.
    Keyed(Box<Column>, Vec<Option<usize>>),
    /// What can be neither id nor value, by its name.
    Other(ArrayRef, &'static str),
}

impl Column {
    fn of(field: &Field, array: &ArrayRef) -> Self {
        match array.data_type() {
            DataType::Boolean => Self::Booleans(array.as_boolean().clone()),
            DataType::Int8 => integers::<Int8Type>(array),
            DataType::Int16 => integers::<Int16Type>(array),
            DataType::Int32 => integers::<Int32Type>(array),
            DataType::Int64 => Self::Integers(array.as_primitive().clone()),
            DataType::UInt8 => integers::<UInt8Type>(array),
            DataType::UInt16 => integers::<UInt16Type>(array),
            DataType::UInt32 => integers::<UInt32Type>(array),
            DataType::UInt64 => {
                let integers = array.as_primitive::<UInt64Type>();
                Self::Numbers(written(array, |row| integers.value(row)))
            }
            DataType::Float16 => reals::<Float16Type>(array),
            DataType::Float32 => reals::<Float32Type>(array),
            DataType::Float64 => Self::Reals(array.as_primitive::<Float64Type>().clone()),
            DataType::Decimal32(..) => decimals::<Decimal32Type>(array),
            DataType::Decimal64(..) => decimals::<Decimal64Type>(array),
            DataType::Decimal128(..) => decimals::<Decimal128Type>(array),
            DataType::Decimal256(..) => decimals::<Decimal256Type>(array),
            DataType::Utf8 if is_numeric(field) => {
                Self::Numbers(array.as_string::<i32>().clone().into())
            }
            DataType::Utf8 => Self::Texts(array.as_string::<i32>().clone().into()),
            DataType::LargeUtf8 => Self::LongTexts(array.as_string::<i64>().clone().into()),
            DataType::Utf8View => {
                Self::TextsInPieces(array.as_string_view().clone().to_binary_view())
            }
            DataType::Dictionary(..) => keyed(field, array),
            DataType::FixedSizeBinary(16) if is_uuid(field) => uuids(array),
            _ => times(array).unwrap_or_else(|| Self::Other(array.clone(), name(array))),
        }
    }

    fn cell(&self, row: usize) -> Cell<'_> {
        if self.is_null(row) {
            return Cell::Null;
        }
        match self {
            Self::Booleans(array) => Cell::Boolean(array.value(row)),
            Self::Integers(array) => Cell::Integer(array.value(row)),
            Self::Reals(array) => Cell::Real(array.value(row)),
            Self::Numbers(array) => number(array.value(row)),
            Self::Texts(array) => Cell::Text(array.value(row)),
            Self::LongTexts(array) => Cell::Text(array.value(row)),
            Self::TextsInPieces(array) => Cell::Text(array.value(row)),
            Self::Keyed(values, places) => {
                places[row].map_or(Cell::Null, |place| values.cell(place))
            }
            Self::Other(_, name) => Cell::Other(name),
        }
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Booleans(array) => array.is_null(row),
            Self::Integers(array) => array.is_null(row),
            Self::Reals(array) => array.is_null(row),
            Self::Numbers(array) | Self::Texts(array) => array.is_null(row),
            Self::LongTexts(array) => array.is_null(row),
            Self::TextsInPieces(array) => array.is_null(row),
            Self::Keyed(..) => false,
            Self::Other(array, _) => array.is_null(row) || *array.data_type() == DataType::Null,
        }
    }
}

fn integers<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef) -> Column {
    let array = array.as_primitive::<T>();
    Column::Integers(array.unary::<_, Int64Type>(Into::into))
}

/// By the shortest text of each: 0.1 of 32 bits is 0.1, and not 0.10000000149011612.
fn reals<T: ArrowPrimitiveType<Native: Display>>(array: &ArrayRef) -> Column {
    let array = array.as_primitive::<T>();
    let shortest = |real: T::Native| real.to_string().parse().unwrap_or(f64::NAN);
    Column::Reals(array.unary::<_, Float64Type>(shortest))
}

fn decimals<T: DecimalType>(array: &ArrayRef) -> Column {
    let decimals = array.as_primitive::<T>();
    Column::Numbers(written(array, |row| decimals.value_as_string(row)))
}

/// Each value of an array as a text.
fn written<T: ToString>(array: &ArrayRef, value: impl Fn(usize) -> T) -> BinaryArray {
    let texts = (0..array.len()).map(|row| (!array.is_null(row)).then(|| value(row).to_string()));
    texts.collect()
}

fn keyed(field: &Field, array: &ArrayRef) -> Column {
    let dictionary = array.as_any_dictionary();
    let values = dictionary.values();
    let places = match values.is_empty() {
        // Nobody has a value then, and there is no place to look at.
        true => vec![None; array.len()],
        false => {
            let places = dictionary.normalized_keys().into_iter().enumerate();
            let place = |(row, place)| (!array.is_null(row)).then_some(place);
            places.map(place).collect()
        }
    };
    let field = Field::new(field.name(), values.data_type().clone(), true)
        .with_metadata(field.metadata().clone());
    Column::Keyed(Box::new(Column::of(&field, values)), places)
}

fn uuids(array: &ArrayRef) -> Column {
    let bytes = array.as_fixed_size_binary();
    let uuid = |row| Uuid::from_slice(bytes.value(row)).unwrap_or_default();
    Column::Texts(written(array, uuid))
}

/// `None` where they are none.
fn times(array: &ArrayRef) -> Option<Column> {
    Some(match array.data_type() {
        DataType::Date32 => times_of::<Date32Type, _>(array, as_date::<Date32Type>),
        DataType::Date64 => times_of::<Date64Type, _>(array, as_date::<Date64Type>),
        DataType::Time32(TimeUnit::Second) => hours::<Time32SecondType>(array),
        DataType::Time32(_) => hours::<Time32MillisecondType>(array),
        DataType::Time64(TimeUnit::Microsecond) => hours::<Time64MicrosecondType>(array),
        DataType::Time64(_) => hours::<Time64NanosecondType>(array),
        DataType::Timestamp(unit, zone) => {
            // With a zone they are in UTC.
            let zone = zone.as_ref().map_or("", |_| "Z");
            match unit {
                TimeUnit::Second => moments::<TimestampSecondType>(array, zone),
                TimeUnit::Millisecond => moments::<TimestampMillisecondType>(array, zone),
                TimeUnit::Microsecond => moments::<TimestampMicrosecondType>(array, zone),
                TimeUnit::Nanosecond => moments::<TimestampNanosecondType>(array, zone),
            }
        }
        _ => return None,
    })
}

fn hours<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef) -> Column {
    times_of::<T, _>(array, as_time::<T>)
}

fn moments<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef, zone: &str) -> Column {
    let text = |at: NaiveDateTime| format!("{}{zone}", at.format("%Y-%m-%dT%H:%M:%S%.f"));
    times_of::<T, _>(array, |ticks| as_datetime::<T>(ticks).map(text))
}

/// Times that no calendar has are written in PostgreSQL's words.
fn times_of<T: ArrowPrimitiveType<Native: Into<i64>>, S: ToString>(
    array: &ArrayRef,
    read: impl Fn(i64) -> Option<S>,
) -> Column {
    let all = array.as_primitive::<T>();
    Column::Texts(written(array, |row| {
        let ticks = all.value(row).into();
        let infinity = if ticks < 0 { "-infinity" } else { "infinity" };
        read(ticks).map_or_else(|| infinity.to_owned(), |time| time.to_string())
    }))
}

/// So many digits pass through 64 bits of a real number unharmed.
const REAL_DIGITS: usize = 15;

/// A number that is written out: an integer or a real where nothing of it is lost, else the text as it is.
fn number(digits: &[u8]) -> Cell<'_> {
    let as_text = Cell::Text(digits);
    let Ok(text) = std::str::from_utf8(digits) else {
        return as_text;
    };
    if let Ok(integer) = text.parse() {
        return Cell::Integer(integer);
    }
    let Ok(real) = text.parse::<f64>() else {
        return as_text;
    };
    let significant = text.trim_start_matches(['-', '+', '0', '.']);
    let count = significant.bytes().filter(u8::is_ascii_digit).count();
    let is_plain = text.contains('.') && count <= REAL_DIGITS;
    match is_plain || text.contains(['n', 'N']) {
        true => Cell::Real(real),
        false => as_text,
    }
}

/// What a driver says of a type that Arrow does not have.
fn extension<'f>(field: &'f Field, key: &str) -> Option<&'f str> {
    field.metadata().get(key).map(String::as_str)
}

const EXTENSION_NAME: &str = "ARROW:extension:name";
const EXTENSION_METADATA: &str = "ARROW:extension:metadata";

/// PostgreSQL's `numeric` has no bounds, and comes as a text that says so.
fn is_numeric(field: &Field) -> bool {
    #[derive(serde::Deserialize)]
    struct Opaque {
        type_name: String,
    }

    let is_opaque = extension(field, EXTENSION_NAME) == Some("arrow.opaque");
    let metadata = extension(field, EXTENSION_METADATA).filter(|_| is_opaque);
    let opaque = metadata.and_then(|metadata| serde_json::from_str::<Opaque>(metadata).ok());
    opaque.is_some_and(|opaque| opaque.type_name == "numeric")
}

fn is_uuid(field: &Field) -> bool {
    extension(field, EXTENSION_NAME) == Some("arrow.uuid")
}

/// Whether its ids compare here as their texts do in the database.
pub(in crate::source) fn compares_as_text(field: &Field) -> bool {
    match field.data_type() {
        DataType::Utf8 => !is_numeric(field),
        DataType::FixedSizeBinary(16) => is_uuid(field),
        other => {
            other.is_signed_integer() || matches!(other, DataType::LargeUtf8 | DataType::Utf8View)
        }
    }
}

/// As an error calls a type.
fn name(array: &ArrayRef) -> &'static str {
    match array.data_type() {
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "a BLOB",
        DataType::List(_)
        | DataType::LargeList(_)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::FixedSizeList(..) => "a list",
        DataType::Struct(_) => "a structure",
        DataType::Map(..) => "a map",
        DataType::Interval(_) | DataType::Duration(_) => "a length of time",
        _ => "something of an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow_array::{
        Date32Array, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, Float32Array,
        Int8Array, LargeStringArray, NullArray, StringArray, StringViewArray,
        TimestampMicrosecondArray, UInt64Array,
    };

    use super::*;

    #[track_caller]
    fn check_as(extension: &[(&str, &str)], array: impl Array + 'static, expected: &[Cell<'_>]) {
        let array: ArrayRef = Arc::new(array);
        let entries = extension.iter();
        let metadata: HashMap<String, String> = entries
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let field = Field::new("x", array.data_type().clone(), true).with_metadata(metadata);
        let column = Column::of(&field, &array);
        let cells: Vec<Cell<'_>> = (0..array.len()).map(|row| column.cell(row)).collect();
        assert_eq!(cells, expected);
    }

    #[track_caller]
    fn check(array: impl Array + 'static, expected: &[Cell<'_>]) {
        check_as(&[], array, expected);
    }

    #[test]
    fn texts_are_the_same_in_whatever_way_they_are_kept() {
        let texts = [Some("a"), None, Some("a longer text, ä")];
        let expected = [
            Cell::Text(b"a"),
            Cell::Null,
            Cell::Text("a longer text, ä".as_bytes()),
        ];
        check(StringArray::from_iter(texts), &expected);
        check(LargeStringArray::from_iter(texts), &expected);
        check(StringViewArray::from_iter(texts), &expected);
        let keyed: DictionaryArray<Int8Type> = texts.into_iter().collect();
        check(keyed, &expected);
        let nobody: DictionaryArray<Int8Type> = [None::<&str>, None].into_iter().collect();
        check(nobody, &[Cell::Null, Cell::Null]);
        check(NullArray::new(1), &[Cell::Null]);
    }

    #[test]
    fn a_number_stays_one_where_nothing_of_it_is_lost() {
        check(
            Int8Array::from(vec![Some(-7), None]),
            &[Cell::Integer(-7), Cell::Null],
        );
        let large = UInt64Array::from(vec![7, u64::MAX]);
        let expected = [Cell::Integer(7), Cell::Text(b"18446744073709551615")];
        check(large, &expected);
        check(Float32Array::from(vec![0.1]), &[Cell::Real(0.1)]);
        let decimals = |values: Vec<i128>, scale| {
            let array = Decimal128Array::from(values);
            array.with_precision_and_scale(38, scale).unwrap()
        };
        let expected = [Cell::Integer(12), Cell::Text(b"100000000000000000000")];
        check(decimals(vec![12, 10_i128.pow(20)], 0), &expected);
        let expected = [
            Cell::Real(12.5),
            Cell::Real(-0.01),
            Cell::Text(b"1234567890123456.78"),
        ];
        check(
            decimals(vec![1250, -1, 123_456_789_012_345_678], 2),
            &expected,
        );
    }

    #[test]
    fn what_postgresql_calls_numeric_is_a_number() {
        let numeric = [
            ("ARROW:extension:name", "arrow.opaque"),
            (
                "ARROW:extension:metadata",
                r#"{"type_name": "numeric", "vendor_name": "PostgreSQL"}"#,
            ),
        ];
        check_as(
            &numeric,
            StringArray::from(vec!["12", "12.50", "0.1234567890123456789", "-inf"]),
            &[
                Cell::Integer(12),
                Cell::Real(12.5),
                Cell::Text(b"0.1234567890123456789"),
                Cell::Real(f64::NEG_INFINITY),
            ],
        );
        let other = [("ARROW:extension:name", "arrow.json")];
        check_as(&other, StringArray::from(vec!["12"]), &[Cell::Text(b"12")]);
    }

    #[test]
    fn times_and_uuids_are_texts() {
        check(
            Date32Array::from(vec![20_000]),
            &[Cell::Text(b"2024-10-04")],
        );
        let moments = vec![1_728_000_000_000_000, 1_728_000_000_250_000, i64::MAX];
        let expected: [Cell<'_>; 3] = [
            Cell::Text(b"2024-10-04T00:00:00"),
            Cell::Text(b"2024-10-04T00:00:00.250"),
            Cell::Text(b"infinity"),
        ];
        check(TimestampMicrosecondArray::from(moments.clone()), &expected);
        let in_utc = TimestampMicrosecondArray::from(vec![moments[0]]).with_timezone("UTC");
        check(in_utc, &[Cell::Text(b"2024-10-04T00:00:00Z")]);
        let bytes = || FixedSizeBinaryArray::try_from_iter([[0xab_u8; 16]].into_iter()).unwrap();
        let uuid = [("ARROW:extension:name", "arrow.uuid")];
        let expected = [Cell::Text(b"abababab-abab-abab-abab-abababababab")];
        check_as(&uuid, bytes(), &expected);
        check(bytes(), &[Cell::Other("a BLOB")]);
    }
}
