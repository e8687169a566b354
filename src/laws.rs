//! What tests of laws share: how many cases, and whatever people call themselves.

use proptest::collection::btree_map;
use proptest::prelude::*;
use std::collections::BTreeMap;

use crate::audience::{User, UserKind};

/// A failure is told by its smallest case, and written to no file.
pub(crate) fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: count,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn kinds() -> impl Strategy<Value = UserKind> {
    prop_oneof![Just(UserKind::UserId), Just(UserKind::AnonymousId)]
}

/// Few enough to meet again, and such as sort in surprising ways.
pub(crate) fn ids() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[abAB]{1,2}",
        1 => "[a\u{1}\u{7f}éя\u{10ffff}' -]{1,3}",
        1 => any::<u8>().prop_map(|n| n.to_string()),
    ]
}

pub(crate) type Users<V> = BTreeMap<(UserKind, String), V>;

/// Users in order, each with something.
pub(crate) fn users<V: std::fmt::Debug>(
    values: impl Strategy<Value = V>,
) -> impl Strategy<Value = Users<V>> {
    btree_map((kinds(), ids()), values, 0..40)
}

pub(crate) fn user(of: &(UserKind, String)) -> User<'_> {
    User {
        kind: of.0,
        id: &of.1,
    }
}
