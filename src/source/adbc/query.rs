//! The query of an audience, as it is asked.

use crate::source::arrow::compares_as_text;
use crate::source::row::Columns;
use arrow_schema::Schema;

/// Words that a statement begins with which only reads.
const READING: [&str; 5] = ["select", "with", "values", "table", "from"];

/// Why a text can never be a query that reads. Whoever means harm gets past it: a role that may only read stops them.
pub(super) fn not_a_query(query: &str) -> Option<&'static str> {
    let word: String = begin(query)
        .chars()
        .take_while(|letter| letter.is_ascii_alphabetic())
        .collect();
    let reads = READING
        .iter()
        .any(|known| known.eq_ignore_ascii_case(&word));
    if !reads {
        return Some("it is not a SELECT");
    }
    has_another(query).then_some("it is more than one statement")
}

/// Of several statements SQLite's driver runs the first one, and DuckDB's all of them; neither says so.
fn has_another(query: &str) -> bool {
    let mut rest = query;
    while let Some((opening, behind)) = next(rest) {
        rest = behind;
        if opening == ";" {
            rest = begin(behind);
            if !rest.is_empty() && !rest.starts_with(';') {
                return true;
            }
        }
    }
    false
}

/// What goes on up to an end of its own, in which a semicolon ends nothing.
const CLOSED: [(&str, &str); 5] = [
    ("'", "'"),
    ("\"", "\""),
    ("`", "`"),
    ("--", "\n"),
    ("/*", "*/"),
];

/// The next semicolon, or the next text that is closed in itself, and what stands behind it.
fn next(query: &str) -> Option<(&str, &str)> {
    let openings = CLOSED.iter().map(|(opening, end)| (*opening, *end));
    let all = openings.chain([(";", ""), ("$", "$")]);
    let found = all.filter_map(|(opening, end)| Some((query.find(opening)?, opening, end)));
    let (place, opening, end) = found.min()?;
    let behind = &query[place + opening.len()..];
    match opening {
        ";" => Some((opening, behind)),
        "$" => Some((opening, behind_dollars(behind))),
        _ => Some((opening, behind.split_once(end).map_or("", |(_, rest)| rest))),
    }
}

/// What stands behind a text of PostgreSQL's in dollars, such as `$a$text$a$`; a dollar may also be a part of a name.
fn behind_dollars(query: &str) -> &str {
    let is_tag = |tag: &str| tag.chars().all(|c| c.is_alphanumeric() || c == '_');
    let text = query.split_once('$').filter(|(tag, _)| is_tag(tag));
    let closed = text.and_then(|(tag, text)| text.split_once(&format!("${tag}$")));
    closed.map_or(query, |(_, rest)| rest)
}

/// Where a statement begins, behind comments and brackets.
fn begin(mut query: &str) -> &str {
    loop {
        query = query.trim_start_matches(|c: char| c.is_whitespace() || c == '(');
        let end = if query.starts_with("--") {
            "\n"
        } else if query.starts_with("/*") {
            "*/"
        } else {
            return query;
        };
        query = query.split_once(end).map_or("", |(_, rest)| rest);
    }
}

/// One statement, without its semicolon. Drivers write a bracket behind it, so it ends with a line of its own: its last
/// one may be a comment.
pub(super) fn statement(query: &str) -> String {
    format!(
        "{}\n",
        query.trim_end_matches(|c: char| c.is_whitespace() || c == ';')
    )
}

/// The same in the order of its users, as PostgreSQL understands it; `None` where there is no such order, since users
/// have two ids, or ids that are written otherwise here.
pub(super) fn in_order(statement: &str, schema: &Schema, columns: &Columns) -> Option<String> {
    let id = match (columns.user_id, columns.anonymous_id) {
        (Some(id), None) | (None, Some(id)) => schema.field(id),
        _ => return None,
    };
    let name = id.name().replace('"', "\"\"");
    compares_as_text(id).then(|| {
        format!("SELECT q.* FROM (\n{statement}) AS q ORDER BY (q.\"{name}\")::text COLLATE \"C\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_reads() {
        let fine = [
            "SELECT 1",
            " \n-- who\n/* is\n a member */ select user_id FROM members",
            "((SELECT 1) UNION (SELECT 2))",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "VALUES (1)",
            "FROM members",
        ];
        for query in fine {
            assert_eq!(not_a_query(query), None, "{query}");
        }
        let others = [
            "",
            "-- SELECT 1",
            "DELETE FROM members",
            "SELECTED",
            "/* SELECT",
        ];
        for query in others {
            assert!(not_a_query(query).is_some(), "{query}");
        }
    }

    #[test]
    fn a_query_is_one_statement() {
        let one = [
            "SELECT 1;",
            "SELECT 1 ;\n; -- done; really\n ;",
            "SELECT ';', \"a;\" /* ; */ FROM `b;` -- ;\n WHERE c = 'it''s;'",
            "SELECT $$;$$, $a$ ';$ $a$, b$c FROM d",
        ];
        for query in one {
            assert_eq!(not_a_query(query), None, "{query}");
        }
        let several = [
            "SELECT 1; SELECT 2",
            "SELECT ''; DELETE FROM a",
            "SELECT 1;/**/\n;DROP TABLE a;",
            "SELECT $a$;$a$; SELECT a$",
        ];
        for query in several {
            let reason = Some("it is more than one statement");
            assert_eq!(not_a_query(query), reason, "{query}");
        }
    }

    #[test]
    fn a_statement_ends_where_nothing_swallows_what_follows() {
        assert_eq!(statement("SELECT 1 ; \n"), "SELECT 1\n");
        assert_eq!(statement("SELECT 1 -- one"), "SELECT 1 -- one\n");
    }
}
