mod changed;
mod faults;
mod listing;
mod parquet;

use std::fs;
use std::io::Write as _;

use tempfile::TempDir;

use super::*;
use crate::audience::{AudienceId, Class, Key, Value};
use crate::diff::Members as _;
use crate::source::Source;
use crate::source::rows::MAX_ROW_BYTES;

struct Exports {
    folder: TempDir,
    source: Files,
    audience: Audience,
}

impl Exports {
    fn new(pattern: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Files {
            name: SourceName::new("exports"),
            root: folder.path().to_owned(),
            pattern: pattern.into(),
            format: None,
            dialect: Dialect::default(),
            columns: BTreeMap::new(),
        };
        let audience = Audience {
            id: AudienceId::new("members"),
            key: Key::new("members"),
            key_is_explicit: false,
            name: "Members".to_owned(),
            class: Class::Audience,
            source: SourceName::new("exports"),
            query: String::new(),
            files: None,
            url: None,
            columns: BTreeMap::new(),
            destinations: Vec::new(),
            guard: None,
            traits: Vec::new(),
            changes: None,
            expect: Default::default(),
            refresh: false,
        };
        Self {
            folder,
            source,
            audience,
        }
    }

    fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Members as `kind id beside value traits`, and what was skipped.
    fn read(&self) -> Result<Vec<String>, SourceError> {
        let source = Source::Files(self.source.clone());
        source.read(&self.audience, &Interrupt::default(), |members| {
            let mut found = Vec::new();
            while members.advance()? {
                let member = members.current();
                let mut text = format!("{:?} {:?}", member.user.kind, member.user.id);
                if let Some(id) = member.anonymous_id {
                    text.push_str(&format!(" {id:?}"));
                }
                if member.value != Value::True {
                    text.push_str(&format!(" {:?}", member.value));
                }
                found.push(text + member.traits);
            }
            if members.skipped.total() > 0 {
                found.push(format!("({})", members.skipped.explain()));
            }
            Ok(found)
        })
    }

    #[track_caller]
    fn gives(&self, expected: &[&str]) {
        assert_eq!(self.read().unwrap(), expected);
    }

    /// Fails, with these words after the path of the folder.
    #[track_caller]
    fn fails(&self, expected: &str) {
        let error = self.read().expect_err(expected).to_string();
        let folder = format!("{}/", self.folder.path().display());
        assert_eq!(
            error.replace(&folder, ""),
            format!("source `exports`: {expected}")
        );
    }
}

fn csv(text: impl AsRef<[u8]>) -> Exports {
    Exports::new("a.csv").with("a.csv", text)
}

fn jsonl(text: impl AsRef<[u8]>) -> Exports {
    Exports::new("a.jsonl").with("a.jsonl", text)
}

#[test]
fn members_come_in_order_and_once_from_all_files_that_fit() {
    Exports::new("*.csv")
        .with("b.csv", "user_id\nc\na\n")
        .with("a.csv", "user_id\nb\na\n")
        .with("a.txt", "user_id\nz\n")
        .gives(&["UserId \"a\"", "UserId \"b\"", "UserId \"c\""]);
    let both = "user_id,anonymous_id\n,x\nu,y\n,a\n";
    csv(both).gives(&[
        "UserId \"u\" \"y\"",
        "AnonymousId \"a\"",
        "AnonymousId \"x\"",
    ]);
}

#[test]
fn csv_is_read_as_it_is_written_everywhere() {
    let ab = ["UserId \"a\"", "UserId \"b\""];
    csv("user_id\na\nb\n").gives(&ab);
    csv("\u{feff}user_id\r\na\r\nb\r\n").gives(&ab);
    csv("user_id\n\na\n\n\nb\n").gives(&ab);
    csv("x,\"USER_ID\"\n1,a\n2,\"b\"\n").gives(&ab);
    csv("user_id,x\n\"a,b\",1\n\"a\"\"b\",\"one\r\n\"\"two\"\"\"\n")
        .gives(&["UserId \"a\\\"b\"", "UserId \"a,b\""]);
    csv("user_id\n007\n7\n").gives(&["UserId \"007\"", "UserId \"7\""]);
    csv("user_id\n").gives(&[]);

    let mut other = csv("a;'x;y'\nb;z\n");
    other.source.dialect = Dialect {
        delimiter: Some(b';'),
        quote: b'\'',
        has_header: false,
    };
    other
        .source
        .columns
        .insert("user_id".to_owned(), "2".to_owned());
    other.gives(&["UserId \"x;y\"", "UserId \"z\""]);
    Exports::new("a.tsv")
        .with("a.tsv", "x\tuser_id\n1\ta\n")
        .gives(&["UserId \"a\""]);
}

#[test]
fn values_and_traits_are_taken_by_their_columns() {
    let text = "id,total,email,plan\nu2,1.50,a@x,\nu1,12,,gold\nu3,,b@x,x\nu4,012,c@x,y\nu5,1e400,d@x,y\nu6,-01e400,,\n";
    let mut exports = csv(text);
    exports.audience.class = Class::Trait;
    exports.audience.traits = vec!["plan".to_owned(), "email".to_owned()];
    for (column, name) in [("user_id", "id"), ("value", "total")] {
        exports
            .source
            .columns
            .insert(column.to_owned(), name.to_owned());
    }
    exports.gives(&[
        "UserId \"u1\" Integer(12),\"email\":null,\"plan\":\"gold\"",
        "UserId \"u2\" Real(1.5),\"email\":\"a@x\",\"plan\":null",
        "UserId \"u4\" Text(\"012\"),\"email\":\"c@x\",\"plan\":\"y\"",
        "UserId \"u6\" Text(\"-01e400\"),\"email\":null,\"plan\":null",
        "(1 with an infinite number)",
    ]);
    // The audience knows better.
    exports
        .audience
        .columns
        .insert("value".to_owned(), "plan".to_owned());
    exports.audience.traits.clear();
    assert_eq!(exports.read().unwrap()[0], "UserId \"u1\" Text(\"gold\")");

    let mut exports = jsonl(
        "{\"user_id\":\"u\",\"value\":1,\"email\":\"a\",\"vip\":true}\n{\"value\":2.5,\"user_id\":7,\"x\":[{}]}\n",
    );
    exports.audience.class = Class::Trait;
    exports.audience.traits = vec!["email".to_owned(), "vip".to_owned()];
    exports.gives(&[
        "UserId \"7\" Real(2.5),\"email\":null,\"vip\":null",
        "UserId \"u\" Integer(1),\"email\":\"a\",\"vip\":true",
    ]);
}

#[test]
fn json_lines_are_objects_or_ids() {
    jsonl("\u{feff}{\"user_id\":\"b\"}\r\n\n\"a\\u0041\"\n18446744073709551615\n-1\n").gives(&[
        "UserId \"-1\"",
        "UserId \"18446744073709551615\"",
        "UserId \"aA\"",
        "UserId \"b\"",
    ]);
    jsonl("{\"user_id\":null,\"anonymous_id\":\"x\"}\n{\"user_id\":null}\n{\"user_id\":\"\"}\n")
        .gives(&[
            "AnonymousId \"x\"",
            "(1 with a NULL id, 1 with an empty id)",
        ]);
}

#[test]
fn rows_that_name_nobody_are_skipped_and_counted() {
    let long = "x".repeat(1_025);
    csv(format!("user_id,x\n,1\n{long},2\na\0b,3\nok,4\n")).gives(&[
        "UserId \"ok\"",
        "(1 with an empty id, 1 with an id over 1024 bytes, 1 with a NUL in the id)",
    ]);
    csv(b"user_id\n\xff\nok\n").gives(&["UserId \"ok\"", "(1 with text that is not UTF-8)"]);
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_files_are_read_to_their_end() {
    let text = "user_id\nb\na\n";
    let zstandard = zstd::encode_all(text.as_bytes(), 0).unwrap();
    let ab = ["UserId \"a\"", "UserId \"b\""];
    Exports::new("a.csv.gz")
        .with("a.csv.gz", gzip(text))
        .gives(&ab);
    // As `cat` puts them together.
    let two = [gzip("user_id\nb\n"), gzip("a\n")].concat();
    Exports::new("a.csv.gz").with("a.csv.gz", two).gives(&ab);
    Exports::new("a.CSV.zst")
        .with("a.CSV.zst", &zstandard)
        .gives(&ab);
    let half = |bytes: &[u8]| bytes[..bytes.len() - 9].to_vec();
    Exports::new("a.csv.gz")
        .with("a.csv.gz", half(&gzip(text)))
        .fails("a.csv.gz, row 3: the file is cut off\n\nhint: export or copy it again");
    Exports::new("a.csv.zst")
        .with("a.csv.zst", half(&zstandard))
        .fails("a.csv.zst: the file is cut off\n\nhint: export or copy it again");
    let two = ["user_id\nb\n", "a\n"].map(|text| zstd::encode_all(text.as_bytes(), 0).unwrap());
    Exports::new("a.csv.zst")
        .with("a.csv.zst", two.concat())
        .gives(&ab);
}

#[test]
fn a_file_that_does_not_unpack_decides_nothing() {
    let way_out = "\n\nhint: see whether it is what its ending says, and export or copy it again";
    let text = "user_id\nb\na\n";
    let mut gzip = gzip(text);
    // Of the checksum.
    let place = gzip.len() - 8;
    gzip[place] ^= 1;
    Exports::new("a.csv.gz")
        .with("a.csv.gz", gzip)
        .fails(&format!(
            "a.csv.gz, row 3: corrupt gzip stream does not have a matching checksum{way_out}"
        ));
    Exports::new("a.csv.gz")
        .with("a.csv.gz", text)
        .fails(&format!("a.csv.gz: invalid gzip header{way_out}"));
    Exports::new("a.csv.zst")
        .with("a.csv.zst", text)
        .fails(&format!("a.csv.zst: Unknown frame descriptor{way_out}"));
}

#[test]
fn a_file_that_ends_inside_a_row_decides_nothing() {
    let cut_off =
        "the file ends inside it\n\nhint: export it again; the last row ends with a newline, too";
    csv("user_id\na\nuser_").fails(&format!("a.csv, row 2: {cut_off}"));
    csv("user_id,x\na,1\nb,").fails(&format!("a.csv, row 2: {cut_off}"));
    csv("user_id\na\n\"b\n").fails(&format!("a.csv, row 2: {cut_off}"));
    csv("user_id\na\n\"").fails(&format!("a.csv, row 2: {cut_off}"));
    jsonl("\"a\"\n12").fails(&format!("a.jsonl, row 2: {cut_off}"));
    csv("").fails("a.csv: the file is empty");
    // Each file is whole by itself.
    Exports::new("*.csv")
        .with("a.csv", "user_id\na")
        .with("b.csv", "user_id\nb\n")
        .fails(&format!("a.csv, row 1: {cut_off}"));
}

#[test]
fn what_cannot_be_read_as_members_says_where_and_what_to_do() {
    csv("id,name\na,b\n").fails(
        "a.csv: it has no column `user_id` or `anonymous_id` among its 2\n\nhint: name it: columns = { user_id = \"...\" }; without a header, header = false and columns = { user_id = \"1\" }",
    );
    // A header that is missing would be a member who is.
    let error = csv("user_1\nuser_2\n").read().unwrap_err().to_string();
    assert!(
        error.contains("among its 1") && !error.contains("user_1"),
        "{error}"
    );
    csv("user_id,x,USER_ID\na,b,c\n").fails(
        "a.csv: it has two columns `user_id`\n\nhint: rename one; where they differ in case, columns = { user_id = \"...\" } names one of them",
    );
    csv("user_id,x\na,1\nb\n").fails(
        "a.csv, row 2: it has 1 fields, and the header has 2\n\nhint: a field that holds the delimiter stands in quotes; delimiter = \"...\" names another one",
    );
    let mut named = csv("user_id\na\n");
    named
        .source
        .columns
        .insert("user_id".to_owned(), "id".to_owned());
    named.fails("a.csv: it has no column `id`, which `columns` names, among its 1");
    csv([b"\xff\xfeu\0s\0".as_slice(), b"\n\0"].concat())
        .fails("a.csv: it is UTF-16\n\nhint: save it as UTF-8");
    jsonl("{\"user_id\":1.5}\n")
        .fails("a.jsonl, row 1: column `user_id` holds a real number, and takes text or integers");
    jsonl("{\"id\":\"a\"}\n").fails(
        "a.jsonl, row 1: it is no JSON that names a member: it has no member `user_id` or `anonymous_id` among its 1",
    );
    jsonl("{\"user_id\":\"a\",\"user_id\":\"b\"}\n")
        .fails("a.jsonl, row 1: it is no JSON that names a member: it has two members `user_id`");
    jsonl("<html>\n")
        .fails("a.jsonl, row 1: it is no JSON that names a member: expected value at column 1");
    Exports::new("a.xlsx").with("a.xlsx", "x").fails(
        "a.xlsx: its ending names no format\n\nhint: add format = \"csv\", \"tsv\", \"jsonl\" or \"parquet\" to the source",
    );
    Exports::new("no-*.csv").fails("no-*.csv: there is no such file");
}

#[test]
fn a_row_without_end_takes_no_memory_without_end() {
    let long = "x".repeat(MAX_ROW_BYTES * 3);
    let too_long = "row 1: it is over 4194304 bytes long\n\nhint: each row ends with a newline; a quote that is not closed makes one of many";
    csv(format!("user_id\n{long}\n")).fails(&format!("a.csv, {too_long}"));
    let wide = ",".repeat(1 << 17);
    csv(format!("user_id\n{wide}\n")).fails("a.csv, row 1: it has over 65536 fields");
    jsonl(format!("\"{long}\"\n")).fails(&format!("a.jsonl, {too_long}"));
}

#[test]
fn an_audience_has_files_of_its_own_beside_those_of_its_source() {
    let check = |pattern: &str, own: &str, expected: &str| {
        let mut exports = Exports::new(pattern);
        exports.audience.files = Some(own.to_owned());
        let found = exports.source.pattern_of(&exports.audience);
        assert_eq!(found, Path::new(expected));
    };
    check("exports/*.csv", "vip.csv", "exports/vip.csv");
    check("exports/all.csv", "vip/*.csv", "exports/vip/*.csv");
    check("*/all.csv", "vip.csv", "vip.csv");
    // By its name alone, whatever lies there.
    check("exports/2026", "vip.csv", "exports/2026/vip.csv");
    check("exports/v1.2", "vip.csv", "exports/vip.csv");
    check("exports/../all", "vip.csv", "exports/../all/vip.csv");
    check("a.csv", "/elsewhere/b.csv", "/elsewhere/b.csv");
}

#[test]
fn brackets_in_the_folder_of_a_project_stand_for_themselves() {
    let mut exports = Exports::new("*.csv");
    exports.source.root = exports.folder.path().join("shop [old]");
    fs::create_dir(&exports.source.root).unwrap();
    fs::write(exports.source.root.join("a.csv"), "user_id\na\n").unwrap();
    exports.gives(&["UserId \"a\""]);
}

#[test]
fn what_a_set_of_files_is_changes_with_each_of_them() {
    let exports = Exports::new("*.csv").with("a.csv", "user_id\na\n");
    let now = || loop {
        match exports.source.fingerprint(&exports.audience) {
            Err(Doubt::Young) => std::thread::sleep(std::time::Duration::from_millis(5)),
            fingerprint => return fingerprint.unwrap(),
        }
    };
    let first = now();
    assert_eq!(now(), first);
    fs::write(exports.folder.path().join("b.csv"), "user_id\nb\n").unwrap();
    let second = now();
    assert_ne!(second, first);
    fs::rename(
        exports.folder.path().join("b.csv"),
        exports.folder.path().join("c.csv"),
    )
    .unwrap();
    assert_ne!(now(), second);
    fs::remove_file(exports.folder.path().join("c.csv")).unwrap();
    assert_eq!(now(), first);
}
