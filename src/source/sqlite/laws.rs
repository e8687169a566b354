//! Rows in any order, of any type that an id may have: each user once, in the order of bytes.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rusqlite::params;
use rusqlite::types::Value as Sql;

use super::*;
use crate::audience::{AudienceId, Class, DestinationName, Key, UserKind};
use crate::diff::Members as _;
use crate::laws::{cases, ids};

fn cells() -> impl Strategy<Value = Sql> {
    prop_oneof![
        4 => ids().prop_map(Sql::Text),
        2 => any::<i8>().prop_map(|integer| Sql::Integer(integer.into())),
        1 => Just(Sql::Text(String::new())),
        1 => Just(Sql::Null),
    ]
}

fn id(cell: &Sql) -> Option<String> {
    match cell {
        Sql::Text(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        Sql::Integer(integer) => Some(integer.to_string()),
        _ => None,
    }
}

/// Who the rows are about, by looking at each.
fn looked_at(rows: &[(Sql, Option<Sql>)]) -> BTreeSet<(UserKind, String)> {
    let user = |(user_id, anonymous_id): &(Sql, Option<Sql>)| {
        let by_user_id = id(user_id).map(|id| (UserKind::UserId, id));
        by_user_id.or_else(|| Some((UserKind::AnonymousId, id(anonymous_id.as_ref()?)?)))
    };
    rows.iter().filter_map(user).collect()
}

fn audience(query: &str) -> Audience {
    Audience {
        id: AudienceId::new("members"),
        key: Key::new("members"),
        key_is_explicit: false,
        name: "Members".to_owned(),
        class: Class::Audience,
        source: SourceName::new("shop"),
        query: query.to_owned(),
        files: None,
        url: None,
        columns: Default::default(),
        destinations: vec![DestinationName::new("main")],
        guard: None,
        traits: Vec::new(),
        changes: None,
        expect: Default::default(),
        refresh: false,
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn every_user_comes_once_and_in_order(
        rows in vec((cells(), option::of(cells())), 0..60),
        both in any::<bool>(),
        declared in prop::sample::select(&["", "TEXT", "INTEGER", "TEXT COLLATE NOCASE"][..]),
        encoding in prop::sample::select(&["UTF-8", "UTF-16le"][..]),
    ) {
        // Text that looks like a number becomes one in an INTEGER column, and a number text in a TEXT column.
        let rows: Vec<_> = rows.into_iter().map(|(user_id, other)| (user_id, other.filter(|_| both))).collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sqlite");
        let shop = Connection::open(&path).unwrap();
        shop.execute_batch(&format!(
            "PRAGMA encoding = '{encoding}'; BEGIN; CREATE TABLE users (u {declared}, a)"
        )).unwrap();
        for (user_id, anonymous_id) in &rows {
            shop.execute("INSERT INTO users VALUES (?1, ?2)", params![user_id, anonymous_id]).unwrap();
        }
        shop.execute_batch("COMMIT").unwrap();
        let query = if both {
            "SELECT u AS user_id, a AS anonymous_id FROM users"
        } else {
            "SELECT u FROM users"
        };
        let source = Sqlite { name: SourceName::new("shop"), path };
        let found = source.begin(&Interrupt::default()).unwrap().ask(&audience(query), Question::Members, |members| {
            let mut found: Vec<(UserKind, String)> = Vec::new();
            while members.advance()? {
                let user = members.current().user;
                found.push((user.kind, user.id.to_owned()));
            }
            Ok::<_, SourceError>(found)
        }).unwrap();
        prop_assert_eq!(found, looked_at(&rows).into_iter().collect::<Vec<_>>());
    }
}
