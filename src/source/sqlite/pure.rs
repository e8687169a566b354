//! Whether a query is a function of its file: asked again of the same file, it gives the same rows.
//!
//! SQLite names each table and function to its authorizer while it compiles a statement, in views too. What is on no
//! list here may be anything, and is in doubt. So are the functions for dates, whatever they are given: that one of them
//! is asked for `now` is not said.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext};

/// What statements use, as far as they were compiled since somebody asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Uses(Arc<Mutex<Used>>);

#[derive(Debug, Default)]
struct Used {
    /// In small letters: SQLite compares so.
    tables: BTreeSet<String>,
    is_in_doubt: bool,
}

impl Uses {
    /// Forgets earlier statements.
    pub(super) fn begin(&self) {
        *self.used() = Used::default();
    }

    pub(super) fn note(&self, context: &AuthContext<'_>) {
        let mut used = self.used();
        match context.action {
            AuthAction::Select | AuthAction::Recursive => {}
            AuthAction::Read { table_name, .. }
                if context.database_name.is_none_or(|name| name == "main") =>
            {
                used.tables.insert(table_name.to_ascii_lowercase());
            }
            AuthAction::Function { function_name } if is_pure(function_name) => {}
            _ => used.is_in_doubt = true,
        }
    }

    /// Whether they use nothing but ordinary tables, views, and functions that give the same for the same.
    pub(super) fn only_the_file(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let used = std::mem::take(&mut *self.used());
        if used.is_in_doubt {
            return Ok(false);
        }
        let mut known = connection.prepare(
            "SELECT lower(name) FROM sqlite_schema WHERE type = 'view' OR type = 'table' AND rootpage > 0",
        )?;
        let known = known.query_map([], |row| row.get::<_, String>(0))?;
        let known = known.collect::<Result<BTreeSet<_>, _>>()?;
        Ok(used.tables.is_subset(&known))
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_pure(function: &str) -> bool {
    PURE.iter()
        .any(|known| known.eq_ignore_ascii_case(function))
}

/// SQLite's own functions that give the same for the same: <https://sqlite.org/lang_corefunc.html>, and the pages for
/// aggregates, windows, mathematics and JSON.
#[rustfmt::skip]
const PURE: &[&str] = &[
    "->", "->>", "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "avg", "ceil", "ceiling", "char",
    "coalesce", "concat", "concat_ws", "cos", "cosh", "count", "cume_dist", "degrees", "dense_rank", "exp",
    "first_value", "floor", "format", "glob", "group_concat", "hex", "if", "ifnull", "iif", "instr", "json",
    "json_array", "json_array_insert", "json_array_length", "json_error_position", "json_extract", "json_group_array",
    "json_group_object", "json_insert", "json_object", "json_patch", "json_pretty", "json_quote", "json_remove",
    "json_replace", "json_set", "json_type", "json_valid", "jsonb", "jsonb_array", "jsonb_array_insert",
    "jsonb_extract", "jsonb_group_array", "jsonb_group_object", "jsonb_insert", "jsonb_object", "jsonb_patch",
    "jsonb_remove", "jsonb_replace", "jsonb_set", "lag", "last_value", "lead", "length", "like", "likelihood",
    "likely", "ln", "log", "log10", "log2", "lower", "ltrim", "max", "min", "mod", "nth_value", "ntile", "nullif",
    "octet_length", "percent_rank", "pi", "pow", "power", "printf", "quote", "radians", "rank", "replace", "round",
    "row_number", "rtrim", "sign", "sin", "sinh", "soundex", "sqrt", "string_agg", "substr", "substring", "sum", "tan",
    "tanh", "total", "trim", "trunc", "typeof", "unhex", "unicode", "unistr", "unistr_quote", "unlikely", "upper",
    "zeroblob",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::sqlite::access;

    const SCHEMA: &str = "
        CREATE TABLE users (id TEXT PRIMARY KEY, at TEXT, age INTEGER, tags TEXT, small TEXT AS (lower(id)),
                            made_at TEXT DEFAULT current_timestamp, CHECK (length(id) > 0));
        CREATE INDEX by_upper ON users (upper(id)) WHERE age > 3;
        CREATE INDEX by_day ON users (date(at));
        CREATE TABLE \"Odd Name\" (id TEXT);
        CREATE TABLE dated (id TEXT, day TEXT AS (date(at)), at TEXT);
        CREATE VIEW adults AS SELECT id FROM users WHERE age >= 18;
        CREATE VIEW recent AS SELECT id FROM users WHERE at > date('now', '-30 days');
        CREATE VIEW recent_adults AS SELECT id FROM adults WHERE id IN (SELECT id FROM recent);
        CREATE VIRTUAL TABLE texts USING fts5 (body);";

    fn is_pure_query(query: &str) -> bool {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let uses = access::only_read(&mut connection).unwrap();
        // What was compiled before is no part of it.
        connection.prepare("SELECT random()").unwrap();
        uses.begin();
        connection.prepare(query).expect(query);
        uses.only_the_file(&connection).unwrap()
    }

    #[test]
    fn a_query_on_tables_is_a_function_of_the_file() {
        for query in [
            "SELECT id FROM users",
            "SELECT ID FROM main.USERS",
            "SELECT id FROM \"odd name\"",
            "SELECT 'a'",
            "VALUES ('a'), ('b')",
            "SELECT count(*) FROM users",
            "SELECT DISTINCT id FROM users WHERE id LIKE 'a%' AND id GLOB 'a*' AND age BETWEEN 1 AND abs(-3)",
            "SELECT id, sum(age) AS value FROM users GROUP BY id HAVING max(at) > '1997-01-01' ORDER BY 1 LIMIT 3",
            "SELECT id, row_number() OVER (PARTITION BY age ORDER BY at) FROM users",
            "SELECT id, coalesce(tags ->> '$.a', iif(age IS NULL, 'x', CAST(age AS TEXT))) FROM users",
            "SELECT upper(id), group_concat(at, ','), json_group_array(age) FROM users",
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n",
            "SELECT users.id FROM users JOIN adults USING (id) WHERE EXISTS (SELECT 1 FROM adults)",
            "SELECT id FROM adults",
            // What is generated or indexed is a function of its row, or SQLite has none of it.
            "SELECT small FROM users WHERE upper(id) = 'A' AND age > 3",
        ] {
            assert!(is_pure_query(query), "{query}");
        }
    }

    #[test]
    fn what_may_give_something_else_tomorrow_is_in_doubt() {
        for query in [
            "SELECT id FROM users WHERE at > date('now', '-30 days')",
            "SELECT id FROM users WHERE at > DATETIME()",
            "SELECT id FROM users WHERE at > CURRENT_DATE",
            "SELECT id FROM users WHERE at > current_timestamp",
            "SELECT id FROM users WHERE at > current_time",
            "SELECT id FROM users WHERE unixepoch() > 3 OR julianday() > 3",
            "SELECT id FROM users WHERE strftime('%s') > 3 OR timediff('now', at) > '+0001'",
            // Nobody says what it is given.
            "SELECT id FROM users WHERE date(at) > '1997-01-01'",
            "SELECT id FROM users ORDER BY random() LIMIT 10",
            "SELECT hex(randomblob(3)) FROM users",
            "SELECT id FROM users WHERE changes() = 0 AND total_changes() = 0",
            "SELECT id FROM users WHERE last_insert_rowid() = 0",
            "SELECT sqlite_version()",
            "SELECT id FROM users WHERE EXISTS (SELECT 1 FROM users WHERE at > date())",
            "SELECT id FROM recent",
            "SELECT count(*) FROM recent",
            "SELECT id FROM recent_adults",
            "WITH soon AS (SELECT date('now') AS day) SELECT id FROM users, soon WHERE at > day",
            "SELECT id, count(*) FILTER (WHERE at > date('now')) FROM users GROUP BY id",
            "SELECT id FROM users WHERE age > 3 AND at > (SELECT max(at) FROM users WHERE at < time('now'))",
        ] {
            assert!(!is_pure_query(query), "{query}");
        }
    }

    #[test]
    fn what_is_no_table_of_the_file_is_in_doubt() {
        for query in [
            "SELECT body FROM texts",
            "SELECT count(*) FROM texts",
            "SELECT value FROM json_each('[1]')",
            "SELECT users.id FROM users, json_each(users.tags)",
            "SELECT name FROM pragma_table_info('users')",
            "SELECT name FROM sqlite_schema",
            "SELECT name FROM pragma_database_list",
            "SELECT name FROM dbstat",
        ] {
            assert!(!is_pure_query(query), "{query}");
        }
    }

    /// A column may be generated by a function for dates only where it is given no clock: SQLite refuses the row else.
    #[test]
    fn no_generated_column_and_no_index_reads_the_clock() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE users (id TEXT, day TEXT AS (date(id)) STORED); CREATE INDEX i ON users (time(id))")
            .unwrap();
        let refused = connection.execute("INSERT INTO users VALUES ('now')", []);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("non-deterministic")
        );
        assert!(is_pure_query("SELECT day FROM dated"));
        for clock in ["current_timestamp", "random()", "(SELECT 1)"] {
            let made = connection.execute_batch(&format!("CREATE TABLE t (id, x AS ({clock}))"));
            assert!(made.is_err(), "{clock}");
        }
    }

    #[test]
    fn every_function_on_the_list_is_one_that_sqlite_calls_deterministic() {
        const DETERMINISTIC: i64 = 0x800;

        let connection = Connection::open_in_memory().unwrap();
        let mut functions = connection
            .prepare("SELECT DISTINCT name, flags FROM pragma_function_list WHERE builtin AND type = 's'")
            .unwrap();
        let functions: Vec<(String, i64)> = functions
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let known: Vec<_> = functions.iter().filter(|(name, _)| is_pure(name)).collect();
        assert!(known.len() > 50, "{known:?}");
        for (name, flags) in known {
            assert_ne!(flags & DETERMINISTIC, 0, "{name}");
        }
    }
}
