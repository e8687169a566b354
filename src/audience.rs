//! Who is in an audience, and the names by which audiences, users and runs are known.
//!
//! Plain data and pure rules. A [`Member`] borrows everything, because ten million of them pass through a
//! merge and none of them is kept.

pub mod keys;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use heck::ToSnakeCase;
use serde::Serialize;

/// A text that means one thing only, so that an id cannot be passed where a key belongs.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

names! {
    /// What the snapshot knows an audience by; it outlives every rename.
    AudienceId;
    /// The trait that carries the membership downstream, such as `order_completed_last_30days`.
    Key;
    /// A `[source.NAME]` of the configuration.
    SourceName;
    /// A `[destination.NAME]` of the configuration.
    DestinationName;
}

impl Key {
    /// The snake_case of a name, as `heck` has it: digits are not split from letters, and letters beyond ASCII stay.
    /// `None` where nothing is left.
    pub fn from_name(name: &str) -> Option<Self> {
        let key = name.to_snake_case();
        (!key.is_empty()).then_some(Self(key))
    }
}

/// Segment's `computation_class`: what the value of the trait says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// `true` for a member, `false` for one who left.
    Audience,
    /// The query's value, or `null` for a user who is no longer in the result.
    Trait,
}

impl Class {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audience => "audience",
            Self::Trait => "trait",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let known = [Self::Audience, Self::Trait];
        known.into_iter().find(|class| class.as_str() == text)
    }

    /// What it is called in a schedule and in messages.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Audience => "audience",
            Self::Trait => "computed trait",
        }
    }
}

/// An audience or computed trait as the configuration describes it.
#[derive(Debug, Clone)]
pub struct Audience {
    pub id: AudienceId,
    /// The key as configured or derived from the name; the snapshot may have frozen another one.
    pub key: Key,
    /// Whether the schedule spells the key out, so that one which differs from the frozen key is refused.
    pub key_is_explicit: bool,
    pub name: String,
    pub class: Class,
    pub source: SourceName,
    /// Empty where the source is not asked by one.
    pub query: String,
    /// In place of the files of its source, relative to them.
    pub files: Option<String>,
    /// In place of the address of its source, relative to it. `{key}` and `{id}` stand for those of the audience.
    pub url: Option<String>,
    /// By column of the result: the column of the source that is it. Where it says nothing, the source does.
    pub columns: BTreeMap<String, String>,
    pub destinations: Vec<DestinationName>,
    /// `None` where it is switched off.
    pub guard: Option<Guard>,
    /// Further columns of the query, sent beside the value.
    pub traits: Vec<String>,
    /// A way to hear of changes without reading everyone.
    pub changes: Option<Changes>,
    pub expect: Expect,
}

/// What must be true of a source before anything is decided from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    pub min_members: u64,
    /// How long ago it may have been brought up to date.
    pub max_age: Option<Duration>,
    /// The query that tells when that was; without one the files themselves do.
    pub updated_at: Option<String>,
}

/// What a source says of those who have entered or left since a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    pub query: String,
    /// How long it is trusted until everyone is read again.
    pub reconcile: Duration,
}

impl Audience {
    /// Whether a word of the command line means this audience: its key, its id or its name.
    pub fn is_called(&self, word: &str) -> bool {
        self.key.as_str() == word || self.id.as_str() == word || self.name == word
    }
}

/// When removals wait for a yes instead of being sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    pub max_removed_percent: f64,
    pub min_removed: u64,
    pub allow_empty: bool,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            max_removed_percent: 30.0,
            min_removed: 100,
            allow_empty: false,
        }
    }
}

impl Guard {
    /// Whether a plan that removes `removed` of the `delivered` members, and leaves `members`, must not remove anyone.
    pub fn holds(&self, removed: u64, delivered: u64, members: u64) -> bool {
        let emptied = members == 0 && removed > 0 && !self.allow_empty;
        let percent = removed as f64 * 100.0 / delivered.max(1) as f64;
        emptied
            || (removed > 0 && removed >= self.min_removed && percent > self.max_removed_percent)
    }
}

/// Which of Segment's two identifiers a user is known by. Users sort before anonymous ones, as SQLite sorts text
/// before blobs: the snapshot stores them so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum UserKind {
    #[default]
    UserId,
    AnonymousId,
}

/// The identity of a member: the user id where there is one, else the anonymous id. Ordered by kind, then by bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct User<'a> {
    pub kind: UserKind,
    pub id: &'a str,
}

/// Longer ids are skipped: nothing that is an id is longer, and a record of many kilobytes is a mistake in a query.
pub const MAX_ID_BYTES: usize = 1024;

/// What a member's trait says.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// Membership of an audience.
    True,
    Text(&'a str),
    Integer(i64),
    /// Always finite.
    Real(f64),
}

impl PartialEq for Value<'_> {
    /// Values are equal when they are written alike: an integer 1 and a real 1.0 are not.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::True, Self::True) => true,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Real(a), Self::Real(b)) => a.to_bits() == b.to_bits(),
            _ => false,
        }
    }
}

/// One row of a source, or one member that Firehose has accepted.
#[derive(Clone, Copy, PartialEq)]
pub struct Member<'a> {
    pub user: User<'a>,
    /// Carried along where a row has both identifiers.
    pub anonymous_id: Option<&'a str>,
    pub value: Value<'a>,
    /// Extra traits as JSON members with a comma before each, such as `,"email":"a@example.com"`; often empty.
    pub traits: &'a str,
}

impl fmt::Debug for Member<'_> {
    /// Traits are personal: only the id is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A member that a cursor keeps, with buffers that serve one row after another.
#[derive(Default)]
pub struct MemberBuf {
    pub kind: UserKind,
    pub id: String,
    pub anonymous_id: Option<String>,
    pub value: ValueBuf,
    pub traits: String,
}

/// A value that is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ValueBuf {
    #[default]
    True,
    Text(String),
    Integer(i64),
    Real(f64),
}

impl ValueBuf {
    pub fn as_value(&self) -> Value<'_> {
        match self {
            Self::True => Value::True,
            Self::Text(text) => Value::Text(text),
            Self::Integer(integer) => Value::Integer(*integer),
            Self::Real(real) => Value::Real(*real),
        }
    }
}

impl MemberBuf {
    pub fn as_member(&self) -> Member<'_> {
        Member {
            user: self.user(),
            anonymous_id: self.anonymous_id.as_deref(),
            value: self.value.as_value(),
            traits: &self.traits,
        }
    }

    pub fn user(&self) -> User<'_> {
        User {
            kind: self.kind,
            id: &self.id,
        }
    }
}

/// Why a record about a member is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Not delivered before.
    Enter,
    /// Delivered with another value.
    Change,
    /// Delivered as it is, and sent again by a resync.
    Repeat,
    /// Delivered, and no longer in the source.
    Leave,
}

/// One thing that a plan decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change<'a> {
    pub action: Action,
    pub member: Member<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_snake_case_that_segment_shows() {
        let check = |name: &str, key: Option<&str>| {
            assert_eq!(
                Key::from_name(name).as_ref().map(Key::as_str),
                key,
                "{name:?}"
            );
        };
        check(
            "Order Completed Last 30days",
            Some("order_completed_last_30days"),
        );
        check("OrderCompleted", Some("order_completed"));
        check("Größte Käufer", Some("größte_käufer"));
        check(
            "3 Product Views in last 60 days",
            Some("3_product_views_in_last_60_days"),
        );
        check("VIP -- (EU)", Some("vip_eu"));
        check("!?", None);
    }

    #[test]
    fn the_guard_holds_only_what_is_both_many_and_a_large_part() {
        let guard = Guard::default();
        let check = |removed, delivered, members, held| {
            assert_eq!(
                guard.holds(removed, delivered, members),
                held,
                "{removed} of {delivered}, {members} left"
            );
        };
        check(99, 100, 1, false);
        check(100, 100, 1, true);
        check(100, 333, 233, true);
        check(300, 1000, 700, false);
        check(301, 1000, 699, true);
        check(1, 1, 0, true);
        check(0, 0, 0, false);
    }

    #[test]
    fn an_empty_source_may_be_allowed_and_is_then_still_bound_by_the_percentage() {
        let guard = Guard {
            allow_empty: true,
            ..Guard::default()
        };
        assert!(!guard.holds(5, 5, 0));
        assert!(guard.holds(500, 500, 0));
    }
}
