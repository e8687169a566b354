//! What a file can have wrong within.

use super::*;
use crate::source::rows::Text;

const NOT_CLOSED: &str =
    "\n\nhint: a quote before it may not be closed; quote = \"...\" names another one";

fn named<const N: usize>(mut exports: Exports, columns: [(&str, &str); N]) -> Exports {
    let columns = columns.map(|(column, name)| (column.to_owned(), name.to_owned()));
    exports.source.columns.extend(columns);
    exports
}

fn with_traits<const N: usize>(mut exports: Exports, traits: [&str; N]) -> Exports {
    exports.audience.traits = traits.map(str::to_owned).to_vec();
    exports
}

fn computed(mut exports: Exports) -> Exports {
    exports.audience.class = Class::Trait;
    exports
}

#[test]
fn a_quote_that_is_not_closed_swallows_no_rows() {
    let broken = format!("a line break stands in its id{NOT_CLOSED}");
    csv("user_id\na\n\"b\nc\nd\"\n").fails(&format!("a.csv, row 2: {broken}"));
    csv("x,anonymous_id\n1,\"a\rb\"\n").fails(&format!("a.csv, row 1: {broken}"));
    // Before it is found too long, and skipped as such.
    let many = "x\n".repeat(2_000);
    csv(format!("user_id\n\"{many}\"\n")).fails(&format!("a.csv, row 1: {broken}"));
    // In a column that nobody asks for: up to a quote that opens another field.
    let open = format!("a quoted field goes on behind its quote{NOT_CLOSED}");
    let text = "user_id,name\n1,\"Bob\n2,Al\n3,\"Jim\"\n4,Ed\n";
    csv(text).fails(&format!("a.csv, row 1: {open}"));
    // Wherever a row is cut by what is read at once.
    for padding in 0..40 {
        let long = "x".repeat(BUFFER - padding);
        csv(format!("user_id,name\n0,{long}\n{}", &text[13..]))
            .fails(&format!("a.csv, row 2: {open}"));
    }
    csv("user_id,name\na,1\" pipe\nb,\"2\"\" pipe\n,\"\n").gives(&["UserId \"a\"", "UserId \"b\""]);
}

#[test]
fn a_second_header_is_no_member() {
    let second = "its id is the name of its column, as in a header\n\nhint: join files without their headers, or let a pattern name them all";
    csv("user_id,x\na,1\nuser_id,x\nb,2\n").fails(&format!("a.csv, row 2: {second}"));
    csv("Id,x\na,1\n\u{feff}Id,x\nb,2\n").fails("a.csv: it has no column `user_id` or `anonymous_id` among its 2\n\nhint: name it: columns = { user_id = \"...\" }; without a header, header = false and columns = { user_id = \"1\" }");
    let joined = csv("Id,x\na,1\n\u{feff}Id,x\nb,2\n");
    named(joined, [("user_id", "Id")]).fails(&format!("a.csv, row 2: {second}"));
    csv("x,anonymous_id\n1,a\nx,anonymous_id\n").fails(&format!("a.csv, row 2: {second}"));
    // Another name for it is an id like any other.
    csv("user_id\nUSER_ID\n").gives(&["UserId \"USER_ID\""]);
    let mut numbered = named(csv("1,a\n2,b\n"), [("user_id", "1")]);
    numbered.source.dialect.has_header = false;
    numbered.gives(&["UserId \"1\"", "UserId \"2\""]);
}

#[test]
fn a_name_in_columns_is_looked_for_as_it_is_written() {
    let files = [
        csv("customer_id,user_id,email\nc,u,e\n"),
        jsonl("{\"customer_id\":\"c\",\"user_id\":\"u\",\"email\":\"e\"}\n"),
    ];
    for file in files {
        let with = |columns: &[(&str, &str)], traits: &[&str]| {
            let mut source = file.source.clone();
            let columns = columns.iter();
            let columns = columns.map(|(column, name)| (column.to_string(), name.to_string()));
            source.columns.extend(columns);
            let mut audience = file.audience.clone();
            audience.traits = traits.iter().map(|name| name.to_string()).collect();
            let folder = tempfile::tempdir().unwrap();
            let name = source.pattern.clone();
            fs::copy(source.root.join(&name), folder.path().join(&name)).unwrap();
            source.root = folder.path().to_owned();
            Exports {
                folder,
                source,
                audience,
            }
        };
        // One column may be several things.
        with(&[("user_id", "email")], &["email"]).gives(&["UserId \"e\",\"email\":\"e\""]);
        // What it says goes before what a column is called.
        with(&[("user_id", "customer_id")], &[]).gives(&["UserId \"c\""]);
        let swapped = [("user_id", "customer_id"), ("customer_id", "user_id")];
        with(&swapped, &["customer_id"]).gives(&["UserId \"c\",\"customer_id\":\"u\""]);
        // Exactly; what an audience does not ask for need not be there.
        let error = with(&[("user_id", "CUSTOMER_ID")], &[]).read().unwrap_err();
        assert!(error.to_string().contains("`CUSTOMER_ID`"), "{error}");
        with(&[("value", "total"), ("plan", "tier")], &["EMAIL"])
            .gives(&["UserId \"u\",\"EMAIL\":\"e\""]);
    }
    let twice = csv("id,id\na,b\n");
    named(twice, [("user_id", "id")]).fails("a.csv: it has two columns `id`\n\nhint: rename one");
    let differ = csv("USER_ID,user_id\na,b\n");
    named(differ, [("user_id", "user_id")]).gives(&["UserId \"b\""]);
}

#[test]
fn a_value_that_no_object_has_is_no_trait_without_members() {
    let text = "{\"user_id\":\"a\",\"total\":1}\n{\"user_id\":\"b\",\"total\":2}\n";
    computed(jsonl(text)).fails(
        "a.jsonl: no object in it has a member `value`\n\nhint: name it: columns = { value = \"...\" }",
    );
    let missing = "no object in it has a member `sum`, which `columns` names";
    named(computed(jsonl(text)), [("value", "sum")]).fails(&format!("a.jsonl: {missing}"));
    computed(jsonl("\"a\"\n")).fails(
        "a.jsonl: no object in it has a member `value`\n\nhint: name it: columns = { value = \"...\" }",
    );
    named(computed(jsonl(text)), [("value", "total")])
        .gives(&["UserId \"a\" Integer(1)", "UserId \"b\" Integer(2)"]);
    // In each file: the next one may be written otherwise.
    let two = Exports::new("*.jsonl")
        .with("a.jsonl", "{\"user_id\":\"a\",\"value\":1}\n")
        .with("b.jsonl", "{\"user_id\":\"b\",\"val\":1}\n");
    computed(two).fails(
        "b.jsonl: no object in it has a member `value`\n\nhint: name it: columns = { value = \"...\" }",
    );
    let some = "{\"user_id\":\"a\"}\n{\"user_id\":\"b\",\"value\":null}\n";
    computed(jsonl(some)).gives(&[]);
    computed(jsonl("")).gives(&[]);
    // Writers leave out what is null.
    with_traits(jsonl("{\"user_id\":\"a\"}\n"), ["email"]).gives(&["UserId \"a\",\"email\":null"]);
}

#[test]
fn only_ids_are_texts_where_numbers_are_large() {
    let text = "{\"user_id\":18446744073709551615,\"value\":18446744073709551615,\"n\":9223372036854775808}\n";
    with_traits(computed(jsonl(text)), ["n"]).gives(&[
        "UserId \"18446744073709551615\" Real(1.8446744073709552e19),\"n\":9.223372036854776e+18",
    ]);
    // As in CSV.
    let text = "user_id,value\n18446744073709551615,18446744073709551615\n";
    computed(csv(text)).gives(&["UserId \"18446744073709551615\" Real(1.8446744073709552e19)"]);
}

#[test]
fn what_is_no_id_is_an_error_that_does_not_show_it() {
    let check = |line: &str, expected: &str| {
        jsonl(format!("\"ok\"\n{line}\n")).fails(&format!("a.jsonl, row 2: {expected}"));
    };
    for (id, found) in [
        ("true", "true or false"),
        ("{\"secret\":1}", "an object"),
        ("[\"secret\"]", "a list"),
        ("77.5", "a real number"),
        ("99999999999999999999", "a real number"),
    ] {
        let found = format!("column `user_id` holds {found}, and takes text or integers");
        check(&format!("{{\"user_id\":{id}}}"), &found);
    }
    let no_member = "it is no JSON that names a member: ";
    let type_error =
        |kind: &str| format!("{no_member}invalid type: {kind}, expected an object or an id");
    check("77.5", &type_error("floating point"));
    check("true", &type_error("boolean"));
    check("[\"secret\"]", &type_error("sequence"));
    check("null", &type_error("null"));
    check(
        "{\"user_id\":\"a\"",
        &format!("{no_member}EOF while parsing an object at column 14"),
    );
    check(
        "{\"user_id\":\"a\"} x",
        &format!("{no_member}trailing characters at column 17"),
    );
    // Where serde stops within these is its own affair.
    for line in [
        b"{\"user_id\":1e400}".as_slice(),
        b"{\"user_id\":\"\\ud800\"}",
        b"{\"user_id\":\"\xff\"}",
        b"<html>",
    ] {
        let error = jsonl([b"\"ok\"\n", line, b"\n"].concat()).read();
        let error = error.unwrap_err().to_string();
        let says = error.contains(&format!("a.jsonl, row 2: {no_member}"));
        assert!(says && !error.contains("line 1"), "{error}");
        assert!(
            ["1e400", "ud800", "html"]
                .iter()
                .all(|id| !error.contains(id)),
            "{error}"
        );
    }
}

#[test]
fn endless_blank_lines_hear_an_interrupt() {
    struct Blank;
    impl Read for Blank {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(b'\n');
            Ok(buffer.len())
        }
    }
    let exports = csv("");
    let (columns, interrupt) = (BTreeMap::new(), Interrupt::default());
    interrupt.interrupt();
    for format in [Text::Csv, Text::JsonLines] {
        let mut taker = Taker::new(&exports.audience, &columns, &interrupt);
        let read = taker.read(format, &Dialect::default(), &mut Blank);
        assert!(matches!(read, Err(Problem::Stopped)));
    }
}
