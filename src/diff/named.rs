//! The users that a plan is limited to.

use std::fmt;
use std::sync::Arc;

use crate::audience::{User, UserKind};

/// Ids that somebody typed. Each may be a user id or an anonymous id.
#[derive(Clone, PartialEq, Eq)]
pub struct UserIds(pub(super) Vec<Box<str>>);

impl UserIds {
    /// In any order, and also several times.
    pub fn new(mut ids: Vec<Box<str>>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Self(ids)
    }

    pub fn contains(&self, user: User<'_>) -> bool {
        self.0.binary_search_by(|id| (**id).cmp(user.id)).is_ok()
    }
}

impl fmt::Debug for UserIds {
    /// Ids do not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserIds({})", self.0.len())
    }
}

/// Finds them in a pass over users in ascending order.
pub(super) struct Named {
    ids: Arc<UserIds>,
    kind: UserKind,
    /// The first id that the pass has not gone beyond.
    next: usize,
    found: Vec<bool>,
}

impl Named {
    pub(super) fn new(ids: Arc<UserIds>) -> Self {
        Self {
            found: vec![false; ids.0.len()],
            ids,
            kind: UserKind::default(),
            next: 0,
        }
    }

    /// Whether the user that the pass has come to is one of them.
    pub(super) fn has(&mut self, user: User<'_>) -> bool {
        // Anonymous ids come after all user ids, and any id may be one.
        if user.kind != self.kind {
            (self.kind, self.next) = (user.kind, 0);
        }
        let ids = &self.ids.0;
        while ids.get(self.next).is_some_and(|id| **id < *user.id) {
            self.next += 1;
        }
        let is_named = ids.get(self.next).is_some_and(|id| **id == *user.id);
        if is_named {
            self.found[self.next] = true;
        }
        is_named
    }

    /// How many ids are of no user that was asked about.
    pub(super) fn not_found(&self) -> u64 {
        self.found.iter().filter(|is_found| !**is_found).count() as u64
    }
}
