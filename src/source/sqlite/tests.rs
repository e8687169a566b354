use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::audience::{AudienceId, Changes, Class, DestinationName, Key, Member, UserKind, Value};
use crate::diff::{Members as _, Membership};
use crate::source::Answer as _;

/// A query with a column `value` is a computed trait; its column `email` or `age` is an extra trait.
fn audience(query: &str) -> Audience {
    let is_trait = query.contains("AS value");
    let traits = ["email", "age"]
        .into_iter()
        .filter(|name| query.contains(name));
    Audience {
        id: AudienceId::new("members"),
        key: Key::new("members"),
        key_is_explicit: false,
        name: "Members".to_owned(),
        class: if is_trait {
            Class::Trait
        } else {
            Class::Audience
        },
        source: SourceName::new("shop"),
        query: query.to_owned(),
        files: None,
        url: None,
        columns: Default::default(),
        destinations: vec![DestinationName::new("main")],
        guard: None,
        // Not the order of the columns.
        traits: traits.rev().map(str::to_owned).collect(),
        changes: None,
        expect: Default::default(),
        refresh: false,
    }
}

struct Shop {
    folder: TempDir,
}

impl Shop {
    fn new(setup: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shop = Self { folder };
        shop.connection().execute_batch(setup).unwrap();
        // Without a table there is no file yet.
        shop.connection()
            .pragma_update(None, "user_version", 1)
            .unwrap();
        shop
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("shop.sqlite")
    }

    fn connection(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn source(&self) -> Sqlite {
        Sqlite {
            name: SourceName::new("shop"),
            path: self.path(),
        }
    }

    /// The members as one line, such as `a b=5 ~anonymous c~anonymous,"age":3 (1 with an empty id)`.
    fn read(&self, query: &str) -> Result<String, SourceError> {
        self.source().begin(&Interrupt::default())?.ask(
            &audience(query),
            Question::Members,
            |members| {
                let mut line = Vec::new();
                while members.advance()? {
                    line.push(text(&members.current()));
                }
                if members.skipped().total() > 0 {
                    line.push(format!("({})", members.skipped().explain()));
                }
                Ok(line.join(" "))
            },
        )
    }

    #[track_caller]
    fn fails(&self, query: &str, words: &str) {
        let error = self.read(query).expect_err(query);
        let error = crate::causes::in_one_line(&error);
        assert!(error.contains(words), "{error}");
    }
}

fn text(member: &Member<'_>) -> String {
    let mut text = match member.user.kind {
        UserKind::UserId => member.user.id.to_owned(),
        UserKind::AnonymousId => format!("~{}", member.user.id),
    };
    if let Some(id) = member.anonymous_id {
        text.push('~');
        text.push_str(id);
    }
    match member.value {
        Value::True => {}
        Value::Text(value) => text.push_str(&format!("={value:?}")),
        Value::Integer(value) => text.push_str(&format!("={value}")),
        Value::Real(value) => text.push_str(&format!("={value:?}")),
    }
    text + member.traits
}

#[track_caller]
fn check(setup: &str, query: &str, expected: &str) {
    let found = Shop::new(setup).read(query);
    assert_eq!(found.expect(query), expected, "{query}");
}

/// The query can never run: a mistake in the configuration.
#[track_caller]
fn check_refused(query: &str, reason: &str) {
    let shop = Shop::new(USERS);
    let error = shop.source().check(&audience(query)).expect_err(query);
    assert!(error.is_configuration(), "{error}");
    assert!(error.to_string().contains(reason), "{error}");
    assert!(shop.read(query).is_err());
}

const USERS: &str = "
    CREATE TABLE users (user_id TEXT, anonymous_id TEXT, email TEXT, age, total);
    INSERT INTO users VALUES ('b', 'x', 'b@example.com', 30, 2), ('a', NULL, NULL, 1.5, 1);";

#[test]
fn ids_come_in_the_order_of_their_bytes() {
    let table = |declaration: &str| {
        format!(
            "CREATE TABLE t (id {declaration});
             INSERT INTO t VALUES ('b'), ('B'), ('a'), ('é'), ('z '), ('z'), ('{}'), ('A')",
            '\u{10000}'
        )
    };
    for declaration in ["TEXT", "TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM", ""] {
        check(
            &table(declaration),
            "SELECT id FROM t",
            "A B a b z z  é \u{10000}",
        );
        check(
            &table(declaration),
            "SELECT id FROM t GROUP BY id, rowid HAVING id > 'y'",
            "z z  é \u{10000}",
        );
    }
    // By the bytes of UTF-16, U+10000 would stand before U+FFFD, and `é` before `z`.
    for encoding in ["UTF-16le", "UTF-16be"] {
        check(
            &format!(
                "PRAGMA encoding = '{encoding}'; {}; INSERT INTO t VALUES ('\u{fffd}')",
                table("")
            ),
            "SELECT DISTINCT id FROM t",
            "A B a b z z  é \u{fffd} \u{10000}",
        );
    }
}

#[test]
fn integers_become_text_and_sort_as_it() {
    for declaration in ["INTEGER", "INTEGER PRIMARY KEY", "", "BIGINT"] {
        check(
            &format!(
                "CREATE TABLE t (id {declaration}); INSERT INTO t VALUES (9), (10), (-1), (100)"
            ),
            "SELECT id AS user_id FROM t",
            "-1 10 100 9",
        );
    }
    let mixed = "CREATE TABLE t (id, total); INSERT INTO t VALUES ('a', 1), (NULL, 1), (10, 1), ('9', 1), (9, 2), ('1', 1)";
    check(mixed, "SELECT id FROM t", "1 10 9 a (1 with a NULL id)");
    check(
        mixed,
        "SELECT id AS user_id, total AS value FROM t",
        "1=1 10=1 9=2 a=1 (1 with a NULL id)",
    );
    check(
        mixed,
        "SELECT id AS anonymous_id FROM t WHERE total > 1 UNION ALL SELECT 5",
        "~5 ~9",
    );
}

/// How SQLite reads what an audience asks.
fn steps(shop: &Shop, audience: &Audience, question: Question) -> String {
    let source = shop.source();
    let opened = source.open().unwrap();
    let layout = source.layout(&opened, audience, question).unwrap();
    let statement = source.prepare(&opened, audience, &layout).unwrap();
    let explain = format!("EXPLAIN QUERY PLAN {}", statement.expanded_sql().unwrap());
    let mut explain = opened.connection.prepare(&explain).unwrap();
    let steps = explain
        .query_map([], |row| row.get::<_, String>(3))
        .unwrap();
    steps.map(Result::unwrap).collect::<Vec<_>>().join("\n")
}

#[test]
fn changes_are_found_by_the_index_that_has_them_and_then_sorted() {
    let shop = Shop::new(
        "CREATE TABLE users (user_id TEXT PRIMARY KEY, is_member, changed_at TEXT) WITHOUT ROWID;
         CREATE INDEX by_change ON users (changed_at)",
    );
    let mut audience = audience("SELECT user_id FROM users WHERE is_member");
    audience.changes = Some(Changes {
        query: "SELECT user_id, is_member FROM users WHERE changed_at > :since".to_owned(),
        reconcile: Duration::MAX,
    });
    let steps = steps(&shop, &audience, SINCE_TEN);
    assert!(
        steps.contains("SEARCH users USING INDEX by_change (changed_at>?)"),
        "{steps}"
    );
    assert!(steps.contains("USE TEMP B-TREE FOR ORDER BY"), "{steps}");
}

/// What comes in order from an index is not sorted again: with ten million members that is most of the time.
#[test]
fn an_order_that_an_index_has_is_taken_from_it() {
    let shop = Shop::new(
        "CREATE TABLE orders (user_id TEXT, at TEXT, total REAL);
         CREATE INDEX by_user ON orders (user_id, total); CREATE INDEX by_at ON orders (at, user_id);
         CREATE TABLE members (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
         CREATE TABLE folded (user_id TEXT COLLATE NOCASE PRIMARY KEY);",
    );
    let sorts = |query: &str| {
        let steps = steps(&shop, &audience(query), Question::Members);
        steps.contains("USE TEMP B-TREE FOR ORDER BY")
    };
    for query in [
        "SELECT user_id FROM members",
        "SELECT user_id FROM orders",
        "SELECT DISTINCT user_id FROM orders",
        "SELECT DISTINCT user_id FROM orders; -- everyone",
        "SELECT user_id FROM orders WHERE at = '1997-01-01'",
        "SELECT user_id, sum(total) AS value FROM orders GROUP BY user_id",
        "SELECT user_id FROM members UNION SELECT user_id FROM orders",
    ] {
        assert!(!sorts(query), "{query}");
    }
    for query in [
        "SELECT DISTINCT user_id FROM orders WHERE at > '1997-01-01' ORDER BY at",
        "SELECT user_id FROM folded",
        "SELECT user_id, 1 AS value FROM folded GROUP BY user_id",
        "VALUES ('a')",
    ] {
        assert!(sorts(query), "{query}");
    }
}

#[test]
fn ids_that_repeat_count_once() {
    check(
        "CREATE TABLE t (user_id); INSERT INTO t VALUES ('a'), (5), ('a'), ('5'), (5)",
        "SELECT user_id FROM t",
        "5 a",
    );
    check("", "VALUES ('b'), ('a'), ('b')", "a b");
}

#[test]
fn a_query_may_give_either_id_or_both() {
    let both = "CREATE TABLE t (anonymous_id, user_id);
        INSERT INTO t VALUES ('x', 'b'), (NULL, 'a'), ('y', NULL), (NULL, NULL), ('a', NULL), (7, 10), (8, 9)";
    check(
        both,
        "SELECT * FROM t",
        "10~7 9~8 a b~x ~a ~y (1 with a NULL id)",
    );
    check(
        both,
        "SELECT anonymous_id FROM t",
        "~7 ~8 ~a ~x ~y (2 with a NULL id)",
    );
    // Of several rows for one user, the greatest.
    check(
        "",
        "SELECT 'a' AS USER_ID, 'x' AS anonymous_id UNION ALL VALUES ('a', 'z'), ('a', NULL), ('a', 'y')",
        "a~z",
    );
}

#[test]
fn a_row_with_an_unusable_id_is_skipped_and_explained() {
    let (longest, too_long) = ("x".repeat(1024), "x".repeat(1025));
    check(
        "",
        &format!(
            "VALUES ('b'), (NULL), (''), ('{longest}'), ('{too_long}'), (CAST(x'62ff' AS TEXT)),
                    (CAST(x'620062' AS TEXT)), ('a'), (NULL)"
        ),
        &format!(
            "a b {longest} (2 with a NULL id, 1 with an empty id, 1 with text that is not UTF-8, \
             1 with an id over 1024 bytes, 1 with a NUL in the id)"
        ),
    );
}

/// The query is wrapped in a table expression, whose name must not stand for a table of theirs.
#[test]
fn a_table_may_have_any_name() {
    check(
        "CREATE TABLE audience (user_id TEXT); INSERT INTO audience VALUES ('b'), ('c');
         CREATE TABLE vip (user_id TEXT); INSERT INTO vip VALUES ('a')",
        "SELECT * FROM vip UNION SELECT * FROM audience",
        "a b c",
    );
    check(
        "CREATE TABLE audience (user_id TEXT); INSERT INTO audience VALUES ('a')",
        "SELECT user_id FROM audience",
        "a",
    );
}

/// A member whose second id went bad has not left.
#[test]
fn one_good_id_is_enough() {
    check(
        "",
        "SELECT 'a' AS user_id, '' AS anonymous_id
         UNION ALL VALUES ('', 'x'), ('b', 'y'), ('c', CAST(x'ff' AS TEXT)), (NULL, 'w'), ('', ''), (NULL, '')",
        "a b~y c ~w ~x (2 with an empty id)",
    );
    check(
        "",
        "SELECT CAST(x'ff' AS TEXT) AS user_id, 'x' AS anonymous_id",
        "(1 with text that is not UTF-8)",
    );
}

#[test]
fn a_column_of_blobs_or_reals_is_the_wrong_one() {
    let shop = Shop::new(USERS);
    let reals = "gives a real number in column `user_id`, which takes text or integers";
    shop.fails("VALUES ('a'), (1.0)", reals);
    shop.fails("SELECT 1.5 AS user_id, 'x' AS anonymous_id", reals);
    shop.fails("VALUES ('a'), (x'61')", "gives a BLOB in column `user_id`");
    shop.fails(
        "SELECT 'a' AS user_id, 1.5 AS anonymous_id",
        "gives a real number in column `anonymous_id`",
    );
    shop.fails(
        "SELECT 'a' AS user_id, x'61' AS value",
        "gives a BLOB in column `value`",
    );
}

#[test]
fn the_value_of_a_computed_trait_keeps_its_type() {
    check(
        "",
        "SELECT 'a' AS user_id, 1 AS value UNION ALL VALUES
           ('b', 1.0), ('c', 'one'), ('d', ''), ('e', NULL), ('f', 9e999), ('g', -9e999),
           ('h', -9223372036854775808), ('i', 0.0 * -1)",
        "a=1 b=1.0 c=\"one\" d=\"\" h=-9223372036854775808 i=-0.0 (2 with an infinite number)",
    );
}

#[test]
fn of_several_values_the_greatest_counts_in_whatever_order_they_come() {
    let values = ["1", "2.5", "2", "'1'", "'x'", "'é'", "NULL"];
    for first in 0..values.len() {
        let mut rows: Vec<String> = values
            .iter()
            .map(|value| format!("('a', {value})"))
            .collect();
        rows.rotate_left(first);
        let query = |rows: &[String]| {
            format!(
                "SELECT '' AS user_id, NULL AS value WHERE false UNION ALL VALUES {}",
                rows.join(", ")
            )
        };
        check("", &query(&rows), "a=\"é\"");
        rows.retain(|row| !row.contains("'x'") && !row.contains("'é'") && !row.contains("'1'"));
        check("", &query(&rows), "a=2.5");
    }
}

#[test]
fn extra_traits_follow_in_the_order_of_the_columns() {
    check(
        USERS,
        "SELECT email, user_id, age FROM users",
        r#"a,"email":null,"age":1.5 b,"email":"b@example.com","age":30"#,
    );
    check(
        USERS,
        "SELECT age, user_id, total AS value, email FROM users WHERE age > 2",
        r#"b=2,"age":30,"email":"b@example.com""#,
    );
    check(
        "",
        "SELECT 'a' AS user_id, '\"\n' AS email UNION ALL VALUES ('b', 9e999)",
        r#"a,"email":"\"\n" b,"email":null"#,
    );
    Shop::new("").fails(
        "SELECT 'a' AS user_id, x'00' AS email",
        "gives a BLOB in column `email`",
    );
}

#[test]
fn a_query_is_taken_as_people_write_it() {
    for query in [
        "SELECT user_id FROM users;",
        "SELECT user_id FROM users ; \n ; ",
        "SELECT user_id FROM users -- everyone",
        "SELECT user_id FROM users; -- everyone",
        "SELECT user_id FROM users; /* everyone */",
        "-- everyone\nSELECT user_id FROM users",
        "WITH c AS (SELECT user_id FROM users) SELECT user_id FROM c",
        "SELECT user_id FROM users ORDER BY user_id DESC",
        "SELECT user_id FROM users ORDER BY user_id DESC LIMIT 9 -- the last",
        "SELECT user_id AS [;] FROM users WHERE user_id <> ';--'",
        "SELECT user_id FROM users UNION SELECT user_id FROM users",
        "SELECT user_id FROM users GROUP BY user_id HAVING count(*) = 1",
        "SELECT user_id FROM users WINDOW w AS (PARTITION BY user_id)",
    ] {
        check(USERS, query, "a b");
    }
}

#[test]
fn what_can_never_be_a_query_is_a_mistake_in_the_configuration() {
    check_refused(
        "SELECT user_id FROM users; SELECT 1",
        "more than one statement",
    );
    check_refused("SELECT user_id FROM users; nonsense", "syntax error");
    check_refused(
        "DELETE FROM users RETURNING user_id",
        "it writes to the database",
    );
    check_refused("DELETE FROM users", "it is not a SELECT");
    check_refused("ATTACH 'other.sqlite' AS other", "attach a database");
    check_refused("PRAGMA table_info(users)", "");
    check_refused("EXPLAIN SELECT user_id FROM users", "");
    check_refused(
        "SELECT user_id FROM users WHERE user_id = ?",
        "it has a parameter",
    );
    check_refused(
        "SELECT user_id FROM users WHERE user_id = :id",
        "it has a parameter",
    );
    check_refused("", "it is not a SELECT");
    check_refused("-- nothing", "it is not a SELECT");
    check_refused("SELECT user_id FROM users /* everyone", "incomplete input");
    check_refused("SELECT user_id FROM users) SELECT (1", "syntax error");
    check_refused("SELECT user_id FROM customers", "no such table: customers");
    check_refused("SELECT customer FROM users", "no such column: customer");
    check_refused(
        "SELECT email, age FROM users",
        "it has no column `user_id` or `anonymous_id`, only `email`, `age`",
    );
    check_refused(
        "SELECT user_id, user_id FROM users",
        "it has two columns `user_id`",
    );
    check_refused(
        "SELECT 1 AS value",
        "a computed trait needs a column `value`",
    );
    check_refused(
        "SELECT user_id, 'AS value' FROM users",
        "a computed trait needs a column `value`",
    );
    check_refused(
        "SELECT user_id, total FROM users WHERE email > ''",
        "it has no column `email`, which `traits` names",
    );
}

#[test]
fn a_source_in_wal_mode_is_read_with_what_is_not_checkpointed() {
    let shop = Shop::new(USERS);
    let writer = shop.connection();
    writer
        .execute_batch("PRAGMA journal_mode = wal; INSERT INTO users (user_id) VALUES ('c')")
        .unwrap();
    assert_eq!(shop.read("SELECT user_id FROM users").unwrap(), "a b c");
    // A transaction that is not committed is not there yet, and in nobody's way.
    writer
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO users (user_id) VALUES ('d')")
        .unwrap();
    assert_eq!(shop.read("SELECT user_id FROM users").unwrap(), "a b c");
}

#[test]
fn a_source_that_another_process_keeps_locked_fails() {
    let shop = Shop::new(USERS);
    let writer = shop.connection();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    shop.fails("SELECT user_id FROM users", "database is locked");
    assert!(
        !shop
            .source()
            .check(&audience("SELECT user_id FROM users"))
            .unwrap_err()
            .is_configuration()
    );
}

#[test]
fn what_is_no_database_fails() {
    let shop = Shop::new("");
    let query = "SELECT user_id FROM users";
    fs::write(shop.path(), "").unwrap();
    shop.fails(query, "shop.sqlite is empty");
    fs::write(shop.path(), "SQLite format 3\0").unwrap();
    shop.fails(query, "shop.sqlite is cut off after 16 bytes");
    fs::remove_file(shop.path()).unwrap();
    shop.fails(query, "there is no database at");
    assert!(!shop.path().exists());
    fs::write(shop.path(), "user_id\n".repeat(1000)).unwrap();
    shop.fails(query, "file is not a database");
    fs::remove_file(shop.path()).unwrap();
    fs::create_dir(shop.path()).unwrap();
    shop.fails(query, "there is no database at");
}

#[test]
fn a_source_that_is_damaged_half_way_fails() {
    let users = "CREATE TABLE users (user_id TEXT PRIMARY KEY, total) WITHOUT ROWID;
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
        INSERT INTO users SELECT printf('user_%08d', n), n FROM n";
    for query in [
        "SELECT user_id FROM users",
        "SELECT user_id, total AS value FROM users ORDER BY total",
    ] {
        let shop = Shop::new(users);
        assert!(shop.read(query).is_ok());
        let file = fs::OpenOptions::new()
            .write(true)
            .open(shop.path())
            .unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        file.write_all_at(&[0; 8192], middle).unwrap();
        shop.fails(query, "database disk image is malformed");

        let shop = Shop::new(users);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(shop.path())
            .unwrap();
        let whole = file.metadata().unwrap().len();
        file.set_len(whole - 1).unwrap();
        shop.fails(query, &format!("is cut off after {} bytes", whole - 1));
        file.set_len(whole - 4096).unwrap();
        shop.fails(query, "database disk image is malformed");
    }
}

#[test]
fn a_query_that_fails_half_way_fails() {
    let shop = Shop::new(
        "CREATE TABLE users (user_id TEXT PRIMARY KEY, json TEXT);
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 5000)
         INSERT INTO users SELECT printf('user_%08d', n), iif(n = 4000, '{', '{}') FROM n",
    );
    shop.fails(
        "SELECT user_id FROM users WHERE json_type(json) = 'object'",
        "malformed JSON",
    );
    shop.fails(
        "SELECT user_id, iif(user_id LIKE '%4000', abs(-9223372036854775807 - 1), 1) AS value FROM users",
        "integer overflow",
    );
}

#[test]
fn a_query_may_read_in_every_way_that_sqlite_knows() {
    let setup = "
        CREATE TABLE users (user_id TEXT PRIMARY KEY, at TEXT, tags TEXT, total REAL,
            domain TEXT AS (lower(substr(user_id, instr(user_id, '@') + 1))));
        INSERT INTO users VALUES ('a@X', date('now'), '[\"vip\"]', 3), ('b@Y', '2000-01-01', '[]', 5);
        CREATE INDEX by_length ON users (length(user_id));
        CREATE VIEW vips AS SELECT user_id, upper(tags) AS shout FROM users, json_each(tags) WHERE json_each.value = 'vip';
        CREATE TEMP TABLE scratch (x);
        CREATE VIRTUAL TABLE notes USING fts5 (user_id, note);
        INSERT INTO notes VALUES ('a@X', 'likes red shoes'), ('b@Y', 'likes hats');
        CREATE VIRTUAL TABLE places USING rtree (id, x0, x1);
        INSERT INTO places VALUES (1, 0, 1), (2, 5, 6);
        CREATE TABLE edges (user_id TEXT, friend TEXT);
        INSERT INTO edges VALUES ('a@X', 'b@Y');";
    for (query, expected) in [
        ("WITH rich AS (SELECT * FROM users WHERE total > 4) SELECT user_id FROM rich", "b@Y"),
        (
            "WITH RECURSIVE friends (user_id) AS (VALUES ('a@X') UNION SELECT friend FROM edges JOIN friends USING (user_id))
             SELECT user_id FROM friends",
            "a@X b@Y",
        ),
        (
            "SELECT user_id FROM (SELECT user_id, row_number() OVER (ORDER BY total DESC) AS place FROM users) WHERE place = 1",
            "b@Y",
        ),
        ("SELECT user_id FROM users, json_each(users.tags) WHERE json_each.value = 'vip'", "a@X"),
        ("SELECT name AS user_id FROM pragma_table_info('edges')", "friend user_id"),
        ("SELECT user_id FROM users WHERE at >= date('now', '-1 day')", "a@X"),
        ("SELECT user_id FROM notes WHERE notes MATCH 'shoes' ORDER BY rank", "a@X"),
        ("SELECT user_id FROM notes('likes') WHERE highlight(notes, 1, '<', '>') GLOB '*<*'", "a@X b@Y"),
        ("SELECT id AS user_id FROM places WHERE x0 <= 1", "1"),
        ("SELECT user_id FROM vips WHERE shout = '[\"VIP\"]'", "a@X"),
        ("SELECT user_id FROM users WHERE domain = 'x'", "a@X"),
        ("SELECT user_id FROM users WHERE length(user_id) = 3", "a@X b@Y"),
        ("SELECT name AS user_id FROM sqlite_schema WHERE type = 'view'", "vips"),
        ("SELECT count(*) AS user_id FROM users", "2"),
        ("VALUES ('c'), ('d')", "c d"),
    ] {
        assert_eq!(check_syntax(query), None, "{query}");
        check(setup, query, expected);
    }
}

#[test]
fn a_query_may_do_nothing_but_read() {
    let shop = Shop::new(USERS);
    let other = shop.folder.path().join("other.sqlite");
    let attach = format!("ATTACH '{}' AS other", other.display());
    let refused =
        "a query may not create anything, attach a database, change a setting or load an extension";
    let writes = "it writes to the database";
    for (query, reason) in [
        (
            "INSERT INTO users (user_id) VALUES ('z') RETURNING user_id",
            writes,
        ),
        ("UPDATE users SET user_id = 'z' RETURNING user_id", writes),
        (
            "WITH gone AS (SELECT 1) DELETE FROM users RETURNING user_id",
            writes,
        ),
        ("DELETE FROM users", "it is not a SELECT"),
        ("DROP TABLE users", refused),
        (
            "CREATE TEMP TABLE mine AS SELECT user_id FROM users",
            refused,
        ),
        ("CREATE VIRTUAL TABLE temp.mine USING fts5 (x)", refused),
        (&attach, refused),
        ("ATTACH 'a' || 'b' AS other", refused),
        ("DETACH main", refused),
        ("PRAGMA query_only = 0", refused),
        ("PRAGMA writable_schema = 1", refused),
        ("PRAGMA journal_mode = delete", refused),
        ("PRAGMA user_version = 7", refused),
        ("VACUUM INTO 'copy'", "it is not a SELECT"),
        ("BEGIN", "it is not a SELECT"),
        ("SAVEPOINT x", refused),
        ("SELECT load_extension('x') AS user_id", "load_extension"),
        (
            "SELECT user_id FROM users WHERE load_extension('x') IS NULL",
            "load_extension",
        ),
        (
            "SELECT user_id FROM users; SELECT 1",
            "more than one statement",
        ),
        ("SELECT user_id FROM users; DROP TABLE users", refused),
    ] {
        let error = shop.source().check(&audience(query)).expect_err(query);
        assert!(error.is_configuration(), "{query}: {error}");
        assert!(error.to_string().contains(reason), "{query}: {error}");
        assert!(shop.read(query).is_err(), "{query}");
    }
    assert!(!other.exists() && !shop.folder.path().join("copy").exists());
    // Without the database too, where its tables are not asked about.
    for query in [
        attach.as_str(),
        "CREATE TEMP TABLE mine (x)",
        "PRAGMA query_only = 0",
    ] {
        assert!(
            check_syntax(query).is_some_and(|reason| reason.contains(refused)),
            "{query}"
        );
    }
}

fn read_from(shop: &Shop, query: &str, meanwhile: impl FnOnce()) -> Option<Fingerprint> {
    let mut meanwhile = Some(meanwhile);
    let read = shop.source().begin(&Interrupt::default()).unwrap().ask(
        &audience(query),
        Question::Members,
        |members| {
            while members.advance()? {
                meanwhile
                    .take()
                    .into_iter()
                    .for_each(|meanwhile| meanwhile());
            }
            Ok::<_, SourceError>(members.read_from())
        },
    );
    read.unwrap()
}

fn grow_old(shop: &Shop) {
    while shop.source().fingerprint().is_err() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_fingerprint_is_of_what_was_read_and_of_nothing_later() {
    let query = "SELECT id FROM users";
    let shop = Shop::new(
        "CREATE TABLE users (id TEXT); INSERT INTO users VALUES ('a'); PRAGMA journal_mode = wal",
    );
    assert_eq!(read_from(&shop, query, || {}), None);
    grow_old(&shop);
    let read = read_from(&shop, query, || {});
    assert!(read.is_some());
    assert_eq!(read, shop.source().fingerprint().ok());
    let connection = shop.connection();
    let write = || {
        connection
            .execute_batch("INSERT INTO users VALUES ('b')")
            .unwrap();
        // Long enough ago, had it been before.
        grow_old(&shop);
    };
    assert_eq!(read_from(&shop, query, write), None);
    assert!(read_from(&shop, query, || {}).is_some());
    // Integers are asked for twice.
    connection
        .execute_batch("INSERT INTO users VALUES (1); CREATE TABLE numbers AS SELECT 1 AS id")
        .unwrap();
    grow_old(&shop);
    assert!(read_from(&shop, "SELECT id FROM numbers", || {}).is_some());
    assert_eq!(
        read_from(
            &shop,
            "SELECT id FROM users WHERE random() IS NOT NULL",
            || {}
        ),
        None
    );
}

const SINCE_TEN: Question = Question::Changes {
    since: Timestamp::from_millis(36_000_999),
};

/// What a change query says, such as `a -b`. One that ends with `age` in a comment has that extra trait.
fn changes(shop: &Shop, query: &str) -> Result<String, SourceError> {
    let mut audience = audience("SELECT id AS user_id, age FROM users");
    if query.contains("anonymous_id") {
        audience.query = "SELECT id AS anonymous_id FROM users".to_owned();
    }
    audience.traits.retain(|_| query.ends_with("-- age"));
    audience.changes = Some(Changes {
        query: query.to_owned(),
        reconcile: Duration::MAX,
    });
    let source = shop.source();
    source.check(&audience)?;
    let reader = source.begin(&Interrupt::default())?;
    reader.ask(&audience, SINCE_TEN, |members| {
        let mut line = Vec::new();
        while members.advance()? {
            let member = members.current();
            let sign = match members.membership() {
                Membership::Member => "",
                Membership::Gone => "-",
            };
            line.push(format!("{sign}{}{}", member.user.id, member.traits));
        }
        if members.skipped().total() > 0 {
            line.push(format!("({})", members.skipped().explain()));
        }
        Ok(line.join(" "))
    })
}

const STAMPED: &str = "CREATE TABLE users (id, is_member, at TEXT, age);
    INSERT INTO users VALUES ('b', 1, '1970-01-01 10:00:01', 3), ('a', 0, '1970-01-01 10:00:01', 4),
        ('c', NULL, '1970-01-01 11:00:00', 5), (NULL, 1, '1970-01-02 00:00:00', 5), ('d', 1, '1970-01-01 10:00:00', 6)";

#[test]
fn a_change_query_says_who_is_a_member_now() {
    let shop = Shop::new(STAMPED);
    let check = |query: &str, expected: &str| {
        assert_eq!(changes(&shop, query).expect(query), expected, "{query}");
    };
    check(
        "SELECT id AS user_id, is_member FROM users WHERE at > :since",
        "-a b -c (1 with a NULL id)",
    );
    check(
        "SELECT is_member, id user_id, age FROM users WHERE at > :since AND :since < at; -- age",
        "-a,\"age\":4 b,\"age\":3 -c,\"age\":5 (1 with a NULL id)",
    );
    check(
        "SELECT id AS anonymous_id, (age > 3) AS IS_MEMBER FROM users WHERE unixepoch(at) = unixepoch(:since) + 1",
        "a -b",
    );
    check(
        "SELECT :since AS user_id, 1 AS is_member",
        "1970-01-01 10:00:00",
    );
    // Integers are sorted as their text, and whoever is told of twice counts once.
    check(
        "SELECT value AS user_id, value <> 9 AS is_member FROM json_each('[9, 10, 9]') WHERE :since > ''",
        "10 -9",
    );
}

#[test]
fn a_change_query_that_can_never_be_one_is_a_mistake_in_the_configuration() {
    let shop = Shop::new(STAMPED);
    let check = |query: &str, reason: &str| {
        let error = changes(&shop, query).expect_err(query);
        assert!(
            error.is_configuration() && error.is_about_changes(),
            "{error}"
        );
        let start = "the change query of \"Members\" cannot run on source `shop`: ";
        assert_eq!(error.to_string().strip_prefix(start), Some(reason));
    };
    check(
        "SELECT id AS user_id, is_member FROM users -- :since",
        "it has no parameter `:since`, the time that it is asked about",
    );
    check(
        "SELECT id AS user_id, is_member FROM users WHERE at > @since",
        "it has no parameter `:since`, the time that it is asked about",
    );
    check(
        "SELECT id AS user_id, is_member FROM users WHERE at > :since AND at < ?",
        "it has another parameter than `:since`, and nothing to put in its place",
    );
    check(
        "SELECT id AS user_id FROM users WHERE at > :since",
        "it has no column `is_member`\n\nhint: write `... AS is_member`, 1 for a member and 0 for who is none",
    );
    check(
        "SELECT id, is_member FROM users WHERE at > :since",
        "it has no column `user_id` or `anonymous_id`, only `id`, `is_member`\n\nhint: write `... AS user_id`",
    );
    check(
        "SELECT id AS user_id, is_member FROM others WHERE at > :since",
        "no such table: others",
    );
    check(
        "DELETE FROM users WHERE at > :since RETURNING id AS user_id, 1 AS is_member",
        "it writes to the database",
    );
    let error = changes(
        &shop,
        "SELECT id AS user_id, is_member FROM users WHERE at > :since -- age",
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("it has no column `age`, which `traits` names"),
        "{error}"
    );
}

/// Whoever has both ids would else be told of by the one that the snapshot does not know them by.
#[test]
fn a_change_query_gives_the_id_columns_of_the_query() {
    let shop = Shop::new(STAMPED);
    let (one, both) = ("id AS user_id", "id AS user_id, age AS anonymous_id");
    let all = [one, "id AS anonymous_id", both];
    for query in all {
        for changes in all {
            let mut audience = audience(&format!("SELECT {query} FROM users WHERE is_member"));
            audience.changes = Some(Changes {
                query: format!("SELECT {changes}, is_member FROM users WHERE at > :since"),
                reconcile: Duration::MAX,
            });
            audience.traits.clear();
            let source = shop.source();
            let reader = source.begin(&Interrupt::default()).unwrap();
            let asked = reader.ask(&audience, SINCE_TEN, |_| Ok(()));
            for result in [source.check(&audience), asked] {
                let is_refused = result.is_err_and(|error| error.is_about_changes());
                assert_eq!(is_refused, query != changes, "{query}, {changes}");
            }
        }
    }
    let mut audience = audience("SELECT id FROM users");
    let query =
        "SELECT 1 AS is_member, id AS user_id, age AS anonymous_id FROM users WHERE at > :since";
    audience.changes = Some(Changes {
        query: query.to_owned(),
        reconcile: Duration::MAX,
    });
    assert_eq!(
        shop.source().check(&audience).unwrap_err().to_string(),
        "the change query of \"Members\" cannot run on source `shop`: it gives `user_id` and `anonymous_id`, and the \
         query gives `user_id`\n\nhint: the change query must give the id columns of the query"
    );
}

#[test]
fn a_definition_holds_whatever_decides_who_is_a_member() {
    let shop = Shop::new(STAMPED);
    let source = shop.source();
    let plain = audience("SELECT id FROM users");
    let changed = |change: fn(&mut Audience)| {
        let mut audience = plain.clone();
        change(&mut audience);
        source.definition(&audience)
    };
    let with_changes = |audience: &mut Audience| {
        audience.changes = Some(Changes {
            query: "x".to_owned(),
            reconcile: Duration::MAX,
        });
    };
    let definitions = [
        source.definition(&plain),
        source.definition_in("3.0.0", &plain),
        Sqlite {
            name: SourceName::new("other"),
            ..shop.source()
        }
        .definition(&plain),
        Sqlite {
            path: shop.folder.path().join("other.sqlite"),
            ..shop.source()
        }
        .definition(&plain),
        changed(|audience| audience.query.push(' ')),
        changed(|audience| audience.class = Class::Trait),
        changed(with_changes),
        // A trait is no change query, and two are not one.
        changed(|audience| audience.traits = vec!["x".to_owned()]),
        changed(|audience| audience.traits = vec!["x".to_owned(), "y".to_owned()]),
        changed(|audience| audience.traits = vec!["xy".to_owned()]),
    ];
    let different: BTreeSet<_> = definitions.iter().collect();
    assert_eq!(different.len(), definitions.len());
    assert_eq!(definitions[0], shop.source().definition(&plain));
}

#[test]
fn what_a_change_query_says_must_be_clear() {
    let shop = Shop::new(STAMPED);
    let check = |query: &str, words: &str| {
        let error = changes(&shop, query).expect_err(query);
        assert!(
            !error.is_configuration() && error.to_string().contains(words),
            "{error}"
        );
    };
    for (flag, found) in [
        ("'1'", "a text"),
        ("1.0", "a real number"),
        ("2", "another number"),
        ("x'01'", "a BLOB"),
    ] {
        let query =
            format!("SELECT id AS user_id, {flag} AS is_member FROM users WHERE at > :since");
        check(
            &query,
            &format!(
                "the change query of \"Members\" gives {found} in column `is_member`, which takes 1 or 0"
            ),
        );
    }
    check(
        "SELECT 'a' AS user_id, value AS is_member FROM json_each('[1, 1, 0]') WHERE :since > ''",
        "says of one user both that they are a member and that they are not",
    );
    assert_eq!(changes(&shop, "SELECT 'a' AS user_id, value AS is_member FROM json_each('[0, null, 0]') WHERE :since > ''").unwrap(), "-a");
}
