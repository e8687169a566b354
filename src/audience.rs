//! Who is in an audience, and the names by which audiences, users and runs are known.
//!
//! Plain data and pure rules. A [`Member`] borrows everything, because ten million of them pass through a
//! merge and none of them is kept.

pub mod keys;
mod traits;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use heck::ToSnakeCase;
use icu_normalizer::ComposingNormalizerBorrowed;
use icu_normalizer::properties::CanonicalCombiningClassMapBorrowed;
use serde::Serialize;

pub use traits::traits_hash;

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
    /// `None` where nothing is left. The name is composed first (Unicode's NFC), or an accent that is typed as a
    /// character of its own would be dropped.
    pub fn from_name(name: &str) -> Option<Self> {
        let key = composed(name).to_snake_case();
        (!key.is_empty()).then_some(Self(key))
    }

    /// Whether the key of a name lacks accents or vowel signs that the name has: `heck` takes a mark that belongs to no
    /// letter by itself for a space.
    pub fn drops_marks(name: &str) -> bool {
        let classes = CanonicalCombiningClassMapBorrowed::new();
        let is_dropped = |c: char| classes.get_u8(c) != 0 && !c.is_alphanumeric();
        composed(name).chars().any(is_dropped)
    }

    /// Downstream, a name is a column, and columns ignore case.
    pub fn is_same_column(&self, name: &str) -> bool {
        self.0.to_lowercase() == name.to_lowercase()
    }
}

fn composed(name: &str) -> Cow<'_, str> {
    ComposingNormalizerBorrowed::new_nfc().normalize(name)
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
    /// Whether a member is sent again when one of the traits has changed. Those who were delivered before this was switched
    /// on are sent once more, since what their stream was told of the traits is not known.
    pub refresh: bool,
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

/// When changes wait for an approval instead of being sent. Percentages are of the members that the stream has accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guard {
    pub max_removed_percent: f64,
    pub min_removed: u64,
    pub allow_empty: bool,
    /// `None` where additions are sent whatever their number. A first sync has nothing to compare them with.
    pub max_added_percent: Option<f64>,
    pub max_changed_percent: Option<f64>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            max_removed_percent: 30.0,
            min_removed: 100,
            allow_empty: false,
            max_added_percent: None,
            max_changed_percent: None,
        }
    }
}

impl Guard {
    /// Whether additions or changes may be held.
    pub const fn holds_more_than_removals(&self) -> bool {
        self.max_added_percent.is_some() || self.max_changed_percent.is_some()
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
        // An accent that is a character of its own, as macOS types it.
        check("Cafe\u{301} Ga\u{308}ste", Some("café_gäste"));
    }

    #[test]
    fn marks_that_no_letter_takes_in_are_dropped() {
        let check = |name: &str, drops| assert_eq!(Key::drops_marks(name), drops, "{name:?}");
        check("Größte Käufer", false);
        check("Cafe\u{301}", false);
        check("VIP -- (EU) ★", false);
        check("q\u{303}", true);
        // The virama.
        check("हिन्दी", true);
    }
}
