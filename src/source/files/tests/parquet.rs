use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, DictionaryArray,
    FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, ListArray,
    RecordBatch, StringArray, StringViewArray, TimestampMicrosecondArray, UInt64Array,
    types::Int8Type, types::Int32Type,
};

use super::*;

type Columns<'c> = &'c [(&'c str, ArrayRef)];

fn array(array: impl arrow_array::Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn texts(texts: &[&str]) -> ArrayRef {
    array(StringArray::from(texts.to_vec()))
}

fn written_with(properties: WriterPropertiesBuilder, columns: Columns<'_>) -> Vec<u8> {
    let columns = columns.iter();
    let batch = columns.map(|(name, array)| (*name, array.clone(), true));
    let batch = RecordBatch::try_from_iter_with_nullable(batch).unwrap();
    let mut file = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut file, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file
}

fn written(columns: Columns<'_>) -> Vec<u8> {
    written_with(WriterProperties::builder(), columns)
}

fn parquet(file: impl AsRef<[u8]>) -> Exports {
    Exports::new("a.parquet").with("a.parquet", file)
}

const AB: [&str; 2] = ["UserId \"a\"", "UserId \"b\""];

#[test]
fn members_come_in_order_from_all_files_that_fit() {
    let file = |ids: &[&str]| written(&[("x", texts(ids)), ("User_Id", texts(ids))]);
    Exports::new("*.parquet")
        .with("b.parquet", file(&["c", "a"]))
        .with("a.parquet", file(&["b", "a"]))
        .gives(&["UserId \"a\"", "UserId \"b\"", "UserId \"c\""]);
    let both = [
        ("anonymous_id", texts(&["x", "y", "a"])),
        ("user_id", texts(&["", "u", ""])),
    ];
    parquet(written(&both)).gives(&[
        "UserId \"u\" \"y\"",
        "AnonymousId \"a\"",
        "AnonymousId \"x\"",
    ]);
    parquet(written(&[("user_id", texts(&[]))])).gives(&[]);
    let mut named = Exports::new("a.parq").with("a.parq", file(&["b", "a"]));
    named.source.format = Some(Format::Parquet);
    named.gives(&AB);
}

#[test]
fn whatever_a_writer_chose_the_members_are_the_same() {
    let columns = [("user_id", texts(&["b", "a", "b"]))];
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        let properties = WriterProperties::builder().set_compression(codec);
        parquet(written_with(properties, &columns)).gives(&AB);
    }
    for encoding in [
        Encoding::PLAIN,
        Encoding::DELTA_LENGTH_BYTE_ARRAY,
        Encoding::DELTA_BYTE_ARRAY,
    ] {
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_encoding(encoding);
        parquet(written_with(properties, &columns)).gives(&AB);
    }
    let small = WriterProperties::builder()
        .set_max_row_group_row_count(Some(1))
        .set_writer_version(WriterVersion::PARQUET_2_0);
    parquet(written_with(small, &columns)).gives(&AB);
    // More rows than are decoded at once.
    let ids: Vec<String> = (0..10_000).map(|number| format!("u{number:05}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let members = parquet(written(&[("user_id", texts(&ids))])).read();
    let members = members.unwrap();
    assert_eq!(members.len(), 10_000);
    assert_eq!(members[9_999], "UserId \"u09999\"");
}

#[test]
fn ids_values_and_traits_are_taken_by_their_types() {
    let check = |column: ArrayRef, expected: &str| {
        let ids = texts(&["u"]);
        let mut exports = parquet(written(&[("user_id", ids), ("value", column)]));
        exports.audience.class = Class::Trait;
        exports.gives(&[&format!("UserId \"u\" {expected}")]);
    };
    check(array(Int32Array::from(vec![-7])), "Integer(-7)");
    check(
        array(UInt64Array::from(vec![u64::MAX])),
        "Text(\"18446744073709551615\")",
    );
    check(array(Float64Array::from(vec![1.5])), "Real(1.5)");
    let decimal = Decimal128Array::from(vec![1250]).with_precision_and_scale(10, 2);
    check(array(decimal.unwrap()), "Real(12.5)");
    check(
        array(Date32Array::from(vec![20_000])),
        "Text(\"2024-10-04\")",
    );
    let moment = TimestampMicrosecondArray::from(vec![1_728_000_000_250_000]);
    check(array(moment.clone()), "Text(\"2024-10-04T00:00:00.250\")");
    check(
        array(moment.with_timezone("Europe/Berlin")),
        "Text(\"2024-10-04T00:00:00.250Z\")",
    );
    check(texts(&["1.50"]), "Text(\"1.50\")");
    check(array(LargeStringArray::from(vec!["x"])), "Text(\"x\")");
    check(array(StringViewArray::from(vec!["x"])), "Text(\"x\")");
    let keyed: DictionaryArray<Int8Type> = ["x"].into_iter().collect();
    check(array(keyed), "Text(\"x\")");

    let traits = [
        ("vip", array(BooleanArray::from(vec![true, false]))),
        ("user_id", array(Int64Array::from(vec![9, 10]))),
        ("unused", array(BinaryArray::from(vec![&b"\xff"[..]; 2]))),
        ("email", array(StringArray::from(vec![None, Some("a@x")]))),
    ];
    let mut exports = parquet(written(&traits));
    exports.audience.traits = vec!["email".to_owned(), "vip".to_owned()];
    exports.gives(&[
        "UserId \"10\",\"vip\":false,\"email\":\"a@x\"",
        "UserId \"9\",\"vip\":true,\"email\":null",
    ]);
    let ids = StringArray::from(vec![None, Some(""), Some("ok")]);
    parquet(written(&[("user_id", array(ids))]))
        .gives(&["UserId \"ok\"", "(1 with a NULL id, 1 with an empty id)"]);
}

/// The file is what pyarrow 26.0.1 makes of this:
///
/// ```python
/// pq.write_table(pa.table({
///     "tags": pa.array([["x"], None, []], pa.list_(pa.string())),
///     "customer": pa.array(["zoé", "bob", "ann"]),
///     "total": pa.array([D("3.00"), D("-0.01"), D("12.50")], pa.decimal128(12, 2)),
///     "segment": pa.array(["gold", None, "gold"]).dictionary_encode(),
///     "seen": pa.array([0, 1, 2], pa.timestamp("us", tz="UTC")),
///     "uuid": pa.array([None, (1).to_bytes(16, "big"), b"\xab" * 16], pa.uuid()),
/// }), "pyarrow.parquet", compression="zstd", data_page_version="2.0", write_page_checksum=True)
/// ```
#[test]
fn what_another_writer_has_written_is_read() {
    let file = include_bytes!("pyarrow.parquet");
    let mut exports = parquet(file);
    exports.audience.class = Class::Trait;
    exports.audience.traits = vec!["uuid".to_owned(), "segment".to_owned()];
    for (column, name) in [("user_id", "customer"), ("value", "total")] {
        let columns = &mut exports.source.columns;
        columns.insert(column.to_owned(), name.to_owned());
    }
    exports.gives(&[
        "UserId \"ann\" Real(12.5),\"segment\":\"gold\",\"uuid\":\"abababab-abab-abab-abab-abababababab\"",
        "UserId \"bob\" Real(-0.01),\"segment\":null,\"uuid\":\"00000000-0000-0000-0000-000000000001\"",
        "UserId \"zoé\" Real(3.0),\"segment\":\"gold\",\"uuid\":null",
    ]);
}

#[test]
fn what_cannot_be_read_as_members_says_where_and_what_to_do() {
    let two = [("id", texts(&["a"])), ("e\u{1b}mail", texts(&["a@x"]))];
    let missing = "among `id`, `e\\u{1b}mail`";
    parquet(written(&two)).fails(&format!(
        "a.parquet: it has no column `user_id` or `anonymous_id` {missing}\n\nhint: name it: columns = {{ user_id = \"...\" }}",
    ));
    // A column by itself may be another one tomorrow.
    parquet(written(&two[..1])).fails(
        "a.parquet: it has no column `user_id` or `anonymous_id` among `id`\n\nhint: name it: columns = { user_id = \"...\" }",
    );
    let wide: Vec<String> = (0..30).map(|number| format!("c{number}")).collect();
    let wide: Vec<_> = wide.iter().map(|name| (&**name, texts(&["a"]))).collect();
    let error = parquet(written(&wide)).read().unwrap_err().to_string();
    assert!(error.contains("`c18`, `c19`, 10 more\n"), "{error}");

    let mut named = parquet(written(&two));
    let columns = &mut named.source.columns;
    columns.insert("user_id".to_owned(), "customer".to_owned());
    named.fails(&format!(
        "a.parquet: it has no column `customer`, which `columns` names, {missing}"
    ));
    let alike = [("user_id", texts(&["a"])), ("USER_ID", texts(&["b"]))];
    parquet(written(&alike)).fails("a.parquet: it has two columns `user_id`\n\nhint: rename one; where they differ in case, columns = { user_id = \"...\" } names one of them");
    let ids = [("user_id", texts(&["a"])), ("x", texts(&["b"]))];
    let mut no_value = parquet(written(&ids));
    no_value.audience.class = Class::Trait;
    no_value.fails(
        "a.parquet: a computed trait needs a column `value`\n\nhint: name it: columns = { value = \"...\" }",
    );
    let mut no_trait = parquet(written(&ids));
    no_trait.audience.traits = vec!["email".to_owned()];
    no_trait.fails("a.parquet: it has no column `email`, which `traits` names");

    let reals = Float64Array::from(vec![None, Some(1.5)]);
    parquet(written(&[("user_id", array(reals))])).fails(
        "a.parquet, row 2: column `user_id` holds a real number, and takes text or integers",
    );
    let bytes = BinaryArray::from(vec![&b"a"[..]]);
    parquet(written(&[("user_id", array(bytes))]))
        .fails("a.parquet, row 1: column `user_id` holds a BLOB, and takes text or integers");
    let bytes = FixedSizeBinaryArray::try_from_iter([[7_u8; 16]].into_iter()).unwrap();
    parquet(written(&[("user_id", array(bytes))]))
        .fails("a.parquet, row 1: column `user_id` holds a BLOB, and takes text or integers");
    // Parquet says that a text is UTF-8: what is not is no text of a bad row, but a bad file.
    let mut file = written(&[("user_id", texts(&["ann", "bob"]))]);
    let ann = file.windows(3).position(|text| text == b"ann").unwrap();
    file[ann] = 0xff;
    let error = parquet(file).read().unwrap_err().to_string();
    let words = "a.parquet, row 1: it cannot be read: ";
    assert!(
        error.contains(words) && error.contains("non UTF-8"),
        "{error}"
    );
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), Some(2)])]);
    let nested = [("tags", array(list)), ("user_id", texts(&["a"]))];
    // Nobody minds it where it is not used.
    parquet(written(&nested)).gives(&AB[..1]);
    let mut used = parquet(written(&nested));
    used.audience.traits = vec!["tags".to_owned()];
    used.fails(
        "a.parquet: column `tags` has parts of its own, and takes text or numbers\n\nhint: write the part that is needed to a column by itself",
    );
}

#[test]
fn a_file_that_is_no_whole_parquet_decides_nothing() {
    let whole = written(&[("user_id", texts(&["a", "b"]))]);
    parquet("").fails("a.parquet: the file is empty");
    let other = "a.parquet: it is no Parquet: it does not begin with `PAR1`\n\nhint: set format where another ending is right";
    parquet("user_id\na\n").fails(other);
    parquet("PA").fails(other);
    for length in 4..whole.len() {
        parquet(&whole[..length])
            .fails("a.parquet: the file is cut off\n\nhint: export or copy it again");
    }
    let mut encrypted = whole.clone();
    let end = encrypted.len() - 4;
    encrypted[end..].copy_from_slice(b"PARE");
    parquet(encrypted).fails("a.parquet: it is encrypted\n\nhint: export it without encryption");
    for ending in ["gz", "zst"] {
        let name = format!("a.parquet.{ending}");
        Exports::new(&name).with(&name, &whole).fails(&format!(
            "{name}: Parquet is read from its end, and cannot be unpacked on the way\n\nhint: unpack it, or let its writer compress it inside, with zstd"
        ));
    }
    // As a file of which a piece in the middle is missing.
    let ids: Vec<String> = (0..5_000).map(|number| format!("u{number}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let large = written(&[("user_id", texts(&ids))]);
    let holed = [&large[..1_000], &large[2_000..]].concat();
    let error = parquet(holed).read().unwrap_err().to_string();
    assert!(error.contains("it cannot be read: "), "{error}");
}

#[test]
fn a_damaged_parquet_is_an_error_or_has_every_row() {
    let whole = include_bytes!("pyarrow.parquet");
    let mut exports = parquet(whole);
    let columns = &mut exports.source.columns;
    columns.insert("user_id".to_owned(), "customer".to_owned());
    exports.audience.traits = ["total", "segment", "seen", "uuid"]
        .map(String::from)
        .into();
    let path = exports.folder.path().join("a.parquet");
    let mut refused = 0;
    for place in 0..whole.len() {
        let mut damaged = *whole;
        damaged[place] ^= [1 << (place / 2 % 8), 0xff][place % 2];
        fs::write(&path, damaged).unwrap();
        match exports.read() {
            // A text that says nothing of the rows, such as who wrote them.
            Ok(members) => assert_eq!(members.len(), 3, "{place}: {members:?}"),
            Err(SourceError::Broken { .. }) => refused += 1,
            Err(error) => panic!("{place}: {error}"),
        }
    }
    assert!(refused > whole.len() / 2, "{refused}");
}

#[test]
fn a_page_that_is_not_what_its_checksum_says_decides_nothing() {
    let mut file = *include_bytes!("pyarrow.parquet");
    let bob = file.windows(3).position(|text| text == b"bob");
    file[bob.unwrap()] ^= 1;
    let mut exports = parquet(file);
    let columns = &mut exports.source.columns;
    columns.insert("user_id".to_owned(), "customer".to_owned());
    exports.fails("a.parquet, row 1: it cannot be read: Page CRC checksum mismatch\n\nhint: export or copy it again; encrypted columns are not read");
}

#[test]
fn a_footer_that_contradicts_itself_or_cannot_be_followed_decides_nothing() {
    let check = |found: &[u8], place: usize, changed: u8, expected: &str| {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        let mut file = written_with(properties, &[("user_id", texts(&["a", "b"]))]);
        let mut windows = file.windows(found.len());
        let start = windows.rposition(|window| window == found).unwrap();
        file[start + place] = changed;
        parquet(file).fails(&format!("a.parquet{expected}"));
    };
    let again = "\n\nhint: export or copy it again; encrypted columns are not read";
    // The codec, how many values there are in the column, and how many rows in the file, as Thrift writes them.
    check(
        b"user_id\x15\x02\x16\x04",
        8,
        6,
        ": column `user_id` is compressed by LZO, which cannot be read\n\nhint: write it with snappy, zstd, gzip, lz4, brotli or none",
    );
    check(
        b"user_id\x15\x02\x16\x04",
        10,
        6,
        &format!(": it cannot be read: column `user_id` has 3 values in 2 rows{again}"),
    );
    check(
        b"\x16\x04\x19\x1c",
        1,
        6,
        &format!(", row 2: it cannot be read: it has 2 rows, and its footer says 3{again}"),
    );
}
