//! What a query may do: read the database that it is given, and nothing else.
//!
//! SQLite asks while it compiles a statement, so rows cost nothing. That the file is opened read-only is not enough: a
//! query could attach another one. <https://sqlite.org/c3ref/set_authorizer.html>

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::pure::Uses;

/// What a query that is refused hears: SQLite only says "not authorized".
pub(super) const ONLY_READS: &str = "it does more than read: a query may not create anything, attach a database, \
                                     change a setting or load an extension";

/// Lets every later statement only read, and says what it uses.
pub(super) fn only_read(connection: &mut Connection) -> rusqlite::Result<Uses> {
    // Nor may the schema of a file that somebody else has made call what a query could not.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let uses = Uses::default();
    let noted = uses.clone();
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        noted.note(&context);
        if reads(&context.action) {
            Authorization::Allow
        } else {
            Authorization::Deny
        }
    }))?;
    Ok(uses)
}

fn reads(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        // Ours. One in a query is no SELECT.
        AuthAction::Transaction { .. } => true,
        // An R-Tree compiles its own when it is only read. A query that writes is refused as a whole, by `not_a_query`;
        // the file is open for reading only, and `query_only` is on.
        AuthAction::Insert { .. } | AuthAction::Update { .. } | AuthAction::Delete { .. } => true,
        AuthAction::Function { function_name } => {
            !function_name.eq_ignore_ascii_case("load_extension")
        }
        AuthAction::Pragma { pragma_name, .. } => {
            let mut known = READ_PRAGMAS.iter();
            known.any(|known| known.eq_ignore_ascii_case(pragma_name))
        }
        _ => false,
    }
}

/// The pragmas that only tell. A query reaches them as tables, such as `pragma_table_info('orders')`; FTS5, R-Tree and
/// FTS3 ask some of them themselves. <https://sqlite.org/pragma.html#pragfunc>
const READ_PRAGMAS: [&str; 16] = [
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "encoding",
    "foreign_key_list",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "module_list",
    "page_size",
    "pragma_list",
    "table_info",
    "table_list",
    "table_xinfo",
];
