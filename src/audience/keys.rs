//! Which key an audience goes by: the one it had at its first sync, whatever it is called now.
//!
//! A key that is used again for somebody else would mix two audiences in every profile downstream, so it never is.
//! Downstream a key is often a column, and columns ignore case: keys, and the extra traits beside them, must differ by
//! more than that, of all audiences that reach one stream.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;

use super::{Audience, AudienceId, Class, Key};

/// An audience as the snapshot knows it.
#[derive(Debug, Clone)]
pub struct Known {
    pub id: AudienceId,
    /// Frozen at the first sync.
    pub key: Key,
    pub class: Class,
    pub name: String,
    /// Its key is refused for good.
    pub retired: bool,
}

/// Why an audience cannot have the key it asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error(
        "the key of {name:?} has been `{frozen}` since its first sync, and cannot become `{key}`\n\nhint: remove `key`, or give it a new `id` to begin another audience"
    )]
    Frozen { name: String, frozen: Key, key: Key },
    #[error(
        "the key `{key}` of {name:?} belongs to the audience with id `{owner}`\n\nhint: if it is that audience under a new name, set `id = \"{owner}\"`; if it is another one, give it a `key` that differs by more than case"
    )]
    Taken {
        name: String,
        key: Key,
        owner: AudienceId,
    },
    #[error(
        "the key `{key}` of {name:?} was retired, so it is refused for good\n\nhint: remove it from its schedule; a new audience needs another `key` and `id`; or take that back with `audience-sync retire --undo {key}`"
    )]
    Retired { name: String, key: Key },
    #[error(
        "{first:?} and {second:?} have one key, `{key}`\n\nhint: give one of them another `key`"
    )]
    Shared {
        first: String,
        second: String,
        key: Key,
    },
    #[error(
        "the key of {name:?} has been `{key}` since its first sync, and `traits` lists a column of that name\n\nhint: give the column another name"
    )]
    AlsoTrait { name: String, key: Key },
    #[error(
        "the {one} of {first:?} and the {other} of {second:?} are one column downstream\n\nhint: {DIFFER}"
    )]
    OneColumn {
        first: String,
        one: String,
        second: String,
        other: String,
    },
    #[error("{name:?} was synced as {was} and cannot become {now}\n\nhint: give it a new `id` and `key`", was = was.noun(), now = now.noun())]
    OtherClass {
        name: String,
        was: Class,
        now: Class,
    },
}

/// The way out of names that are one column.
pub const DIFFER: &str = "columns ignore case, so keys and traits in one stream must differ by more; give one of the two another name";

/// A name that goes into the records of an audience: its key, or one of its traits.
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    pub audience: &'a Audience,
    pub name: &'a str,
    pub is_key: bool,
}

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_key { "key" } else { "trait" };
        write!(f, "{kind} `{}`", self.name.escape_debug())
    }
}

/// The first two names that would be one column of a stream. An extra trait may be shared, but not written in two ways.
pub fn one_column<'a, S: Clone + Eq + Hash>(
    audiences: impl IntoIterator<Item = (&'a Audience, &'a Key)>,
    streams_of: impl Fn(&Audience) -> Vec<S>,
) -> Option<(Column<'a>, Column<'a>)> {
    let mut seen: HashMap<(S, String), Column<'a>> = HashMap::new();
    for (audience, key) in audiences {
        let traits = audience.traits.iter().map(|name| (name.as_str(), false));
        let names: Vec<_> = std::iter::once((key.as_str(), true))
            .chain(traits)
            .collect();
        for stream in streams_of(audience) {
            for &(name, is_key) in &names {
                let column = Column {
                    audience,
                    name,
                    is_key,
                };
                let place = (stream.clone(), name.to_lowercase());
                let first = *seen.entry(place).or_insert(column);
                let is_itself = std::ptr::eq(first.audience, audience) && first.is_key == is_key;
                let is_shared = !is_key && !first.is_key;
                if first.name != name || !(is_itself || is_shared) {
                    return Some((first, column));
                }
            }
        }
    }
    None
}

/// The key that an audience has, and the name it had when it was last synced if that was another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    pub key: Key,
    pub renamed_from: Option<String>,
}

/// Finds the key of each audience, in their order, and refuses two for one. They are all audiences that are configured.
pub fn freeze<'a, S: Clone + Eq + Hash>(
    audiences: impl IntoIterator<Item = &'a Audience>,
    known: &[Known],
    streams_of: impl Fn(&Audience) -> Vec<S>,
) -> Result<Vec<Frozen>, KeyError> {
    let audiences: Vec<_> = audiences.into_iter().collect();
    let unnamed = unnamed(&audiences, known);
    let mut frozen = Vec::with_capacity(audiences.len());
    let mut owners = HashMap::new();
    for audience in &audiences {
        let found = freeze_one(audience, known, &unnamed)?;
        let (name, key) = (audience.name.clone(), found.key.clone());
        if audience.traits.iter().any(|it| key.is_same_column(it)) {
            return Err(KeyError::AlsoTrait { name, key });
        }
        if let Some(first) = owners.insert(key.clone(), name.clone()) {
            let second = name;
            return Err(KeyError::Shared { first, second, key });
        }
        frozen.push(found);
    }
    let keys = frozen.iter().map(|frozen| &frozen.key);
    if let Some((one, other)) = one_column(audiences.iter().copied().zip(keys), streams_of) {
        return Err(KeyError::OneColumn {
            first: one.audience.name.clone(),
            one: one.to_string(),
            second: other.audience.name.clone(),
            other: other.to_string(),
        });
    }
    Ok(frozen)
}

fn freeze_one(
    audience: &Audience,
    known: &[Known],
    unnamed: &[&Known],
) -> Result<Frozen, KeyError> {
    let name = audience.name.clone();
    if let Some(known) = known.iter().find(|known| known.id == audience.id) {
        if known.retired {
            let key = known.key.clone();
            return Err(KeyError::Retired { name, key });
        }
        if known.class != audience.class {
            return Err(KeyError::OtherClass {
                name,
                was: known.class,
                now: audience.class,
            });
        }
        if audience.key_is_explicit && audience.key != known.key {
            return Err(KeyError::Frozen {
                name,
                frozen: known.key.clone(),
                key: audience.key.clone(),
            });
        }
        let renamed_from = (known.name != name).then(|| known.name.clone());
        return Ok(Frozen {
            key: known.key.clone(),
            renamed_from,
        });
    }
    // The streams of an audience that is not configured are not known here, so its column is taken in all of them.
    let is_owner = |known: &&Known| known.key.is_same_column(audience.key.as_str());
    let owner = unnamed.iter().copied().find(is_owner);
    match owner.or_else(|| known.iter().find(|known| known.key == audience.key)) {
        Some(owner) if owner.retired => Err(KeyError::Retired {
            name,
            key: owner.key.clone(),
        }),
        Some(owner) => Err(KeyError::Taken {
            name,
            key: audience.key.clone(),
            owner: owner.id.clone(),
        }),
        None => Ok(Frozen {
            key: audience.key.clone(),
            renamed_from: None,
        }),
    }
}

fn unnamed<'k>(audiences: &[&Audience], known: &'k [Known]) -> Vec<&'k Known> {
    let named: HashSet<_> = audiences.iter().map(|audience| &audience.id).collect();
    known
        .iter()
        .filter(|known| !named.contains(&known.id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::{DestinationName, SourceName};

    fn audience(name: &str, id: Option<&str>, key: Option<&str>) -> Audience {
        let derived = key.map(Key::new).or_else(|| Key::from_name(name)).unwrap();
        Audience {
            id: AudienceId::new(id.unwrap_or(derived.as_str())),
            key: derived,
            key_is_explicit: key.is_some(),
            name: name.to_owned(),
            class: Class::Audience,
            source: SourceName::new("shop"),
            query: String::new(),
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

    fn known(id: &str, key: &str, name: &str) -> Known {
        Known {
            id: AudienceId::new(id),
            key: Key::new(key),
            class: Class::Audience,
            name: name.to_owned(),
            retired: false,
        }
    }

    fn freeze<'a>(
        audiences: impl IntoIterator<Item = &'a Audience>,
        known: &[Known],
    ) -> Result<Vec<Frozen>, KeyError> {
        super::freeze(audiences, known, |audience| audience.destinations.clone())
    }

    fn check(audience: &Audience, expected: Result<(&str, Option<&str>), &str>) {
        let snapshot = [known("big_spenders", "big_spenders", "Big Spenders")];
        let found = freeze([audience], &snapshot);
        match (found, expected) {
            (Ok(frozen), Ok((key, renamed_from))) => {
                assert_eq!(
                    (frozen[0].key.as_str(), frozen[0].renamed_from.as_deref()),
                    (key, renamed_from)
                );
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (found, _) => panic!("{found:?}"),
        }
    }

    #[test]
    fn a_new_audience_takes_the_key_of_its_name() {
        check(&audience("Newcomers", None, None), Ok(("newcomers", None)));
    }

    #[test]
    fn a_renamed_audience_keeps_its_key() {
        check(
            &audience("Whales", Some("big_spenders"), None),
            Ok(("big_spenders", Some("Big Spenders"))),
        );
    }

    /// The record would say two things under one name.
    #[test]
    fn no_extra_trait_has_the_name_of_the_frozen_key() {
        let mut renamed = audience("Whales", Some("big_spenders"), None);
        renamed.traits = vec!["big_spenders".to_owned()];
        check(&renamed, Err("`traits` lists a column of that name"));
    }

    #[test]
    fn another_key_for_a_known_audience_is_refused() {
        check(
            &audience("Big Spenders", Some("big_spenders"), Some("whales")),
            Err("has been `big_spenders`"),
        );
        check(
            &audience("Big Spenders", None, Some("big_spenders")),
            Ok(("big_spenders", None)),
        );
    }

    #[test]
    fn a_key_that_belongs_to_another_id_is_refused_with_the_way_out() {
        check(
            &audience("Big Spenders", Some("aud_2"), None),
            Err("set `id = \"big_spenders\"`"),
        );
    }

    #[test]
    fn two_audiences_never_share_a_frozen_key() {
        let renamed = audience("Whales", Some("aud_1"), None);
        let newcomer = audience("Whales 2", None, Some("w"));
        let snapshot = [known("aud_1", "w", "W")];
        assert!(freeze([&renamed, &newcomer], &snapshot).is_err());
    }

    #[test]
    fn names_in_one_stream_differ_by_more_than_case() {
        let with = |name: &str, traits: &[&str], destination: &str| Audience {
            traits: traits.iter().map(|name| (*name).to_owned()).collect(),
            destinations: vec![DestinationName::new(destination)],
            ..audience(name, None, Some(name))
        };
        let check = |one: &Audience, other: &Audience, expected: Option<(&str, &str)>| {
            let found = one_column([(one, &one.key), (other, &other.key)], |audience| {
                audience.destinations.clone()
            });
            let found = found.map(|(one, other)| (one.to_string(), other.to_string()));
            let expected = expected.map(|(one, other)| (one.to_owned(), other.to_owned()));
            assert_eq!(found, expected);
        };
        let vip = with("vip", &["email"], "main");
        check(&vip, &with("others", &["email", "name"], "main"), None);
        let both = Some(("key `vip`", "key `VIP`"));
        check(&vip, &with("VIP", &[], "main"), both);
        check(&vip, &with("VIP", &["EMAIL"], "other"), None);
        let as_trait = Some(("key `vip`", "trait `vip`"));
        check(&vip, &with("others", &["vip"], "main"), as_trait);
        let as_key = Some(("trait `email`", "key `Email`"));
        check(&vip, &with("Email", &[], "main"), as_key);
        let both = Some(("trait `email`", "trait `EMAIL`"));
        check(&vip, &with("others", &["EMAIL"], "main"), both);
        // Letters beyond ASCII have a case too.
        let both = Some(("key `käufer`", "trait `KÄUFER`"));
        check(
            &with("käufer", &[], "main"),
            &with("x", &["KÄUFER"], "main"),
            both,
        );
    }

    /// In the files they differ. What counts is the key that was frozen.
    #[test]
    fn a_frozen_key_differs_from_other_names_by_more_than_case() {
        let renamed = audience("Whales", Some("aud_1"), None);
        let snapshot = [known("aud_1", "vip", "Very important")];
        let mut other = audience("Others", None, None);
        other.traits = vec!["Vip".to_owned()];
        assert_eq!(
            freeze([&renamed, &other], &snapshot)
                .unwrap_err()
                .to_string(),
            "the key `vip` of \"Whales\" and the trait `Vip` of \"Others\" are one column downstream\n\n\
             hint: columns ignore case, so keys and traits in one stream must differ by more; give one of the two \
             another name"
        );
        other.destinations = vec![DestinationName::new("other")];
        assert!(freeze([&renamed, &other], &snapshot).is_ok());
        let mut own = renamed;
        own.traits = vec!["VIP".to_owned()];
        let also = freeze([&own], &snapshot);
        assert!(matches!(also, Err(KeyError::AlsoTrait { .. })), "{also:?}");
    }

    /// Where those went is not known here.
    #[test]
    fn a_new_key_is_not_that_of_an_audience_that_is_not_configured_in_another_case() {
        check(
            &audience("Others", None, Some("BIG_spenders")),
            Err("belongs to the audience with id `big_spenders`"),
        );
    }

    #[test]
    fn a_key_that_was_retired_is_refused_by_key_and_by_id() {
        let retired = Known {
            retired: true,
            ..known("aud_1", "vip", "VIP")
        };
        let check = |audience: &Audience| {
            let refused = freeze([audience], std::slice::from_ref(&retired)).unwrap_err();
            let text = refused.to_string();
            assert!(text.contains("the key `vip` of"), "{text}");
            assert!(
                text.ends_with("`audience-sync retire --undo vip`"),
                "{text}"
            );
        };
        check(&audience("VIP", None, None));
        check(&audience("Anew", None, Some("Vip")));
        check(&audience("Anew", Some("aud_1"), None));
        let other = audience("Others", None, None);
        assert!(freeze([&other], std::slice::from_ref(&retired)).is_ok());
    }

    #[test]
    fn an_audience_cannot_become_a_trait() {
        let mut changed = audience("Big Spenders", None, None);
        changed.class = Class::Trait;
        check(
            &changed,
            Err("was synced as audience and cannot become computed trait"),
        );
    }
}

#[cfg(test)]
mod laws {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::audience::{DestinationName, SourceName};
    use crate::laws::cases;

    /// Few names, ids and keys, so that they meet.
    fn words() -> impl Strategy<Value = &'static str> {
        prop::sample::select(&["a", "b", "c", "A", "B!", "a b"][..])
    }

    fn audiences() -> impl Strategy<Value = Vec<Audience>> {
        let audience = (words(), option::of(words()), option::of(words()));
        let audience = audience.prop_map(|(name, id, key)| {
            let derived = key.map(Key::new).or_else(|| Key::from_name(name)).unwrap();
            Audience {
                id: AudienceId::new(id.unwrap_or(derived.as_str())),
                key: derived,
                key_is_explicit: key.is_some(),
                name: name.to_owned(),
                class: Class::Audience,
                source: SourceName::new("shop"),
                query: String::new(),
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
        });
        vec(audience, 0..4)
    }

    /// As the snapshot keeps it: each id once, each key once.
    fn known() -> impl Strategy<Value = Vec<Known>> {
        vec((words(), words(), words()), 0..4).prop_map(|all| {
            let mut known: Vec<Known> = Vec::new();
            for (id, key, name) in all {
                if !known
                    .iter()
                    .any(|other| other.id.as_str() == id || other.key.as_str() == key)
                {
                    known.push(Known {
                        id: AudienceId::new(id),
                        key: Key::new(key),
                        class: Class::Audience,
                        name: name.to_owned(),
                        retired: false,
                    });
                }
            }
            known
        })
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn a_key_is_one_word_that_names_itself(name in "[ -~ß-ÿА-я一-丏]{0,40}") {
            let key = Key::from_name(&name);
            prop_assert_eq!(key.is_some(), name.chars().any(char::is_alphanumeric));
            let Some(key) = key else { return Ok(()) };
            prop_assert!(!key.as_str().chars().any(|c| c.is_whitespace() || c.is_uppercase()));
            prop_assert!(!key.as_str().starts_with('_') && !key.as_str().ends_with('_'));
            let again = Key::from_name(key.as_str());
            prop_assert_eq!(again.as_ref(), Some(&key));
        }

        #[test]
        fn a_key_that_is_frozen_stays_and_belongs_to_one_audience(
            audiences in audiences(),
            known in known(),
        ) {
            match freeze(&audiences, &known, |_| vec!["members"]) {
                Ok(frozen) => {
                    let keys: BTreeSet<_> = frozen.iter().map(|frozen| frozen.key.as_str().to_lowercase()).collect();
                    prop_assert_eq!(keys.len(), audiences.len());
                    for (audience, frozen) in audiences.iter().zip(&frozen) {
                        let by_id = known.iter().find(|known| known.id == audience.id);
                        let by_key = known.iter().find(|known| known.key == frozen.key);
                        // Whatever it is called now: the key it has had, or one that nobody has had.
                        prop_assert_eq!(by_id.map(|known| &known.id), by_key.map(|known| &known.id));
                        let expected = by_id.map_or(&audience.key, |known| &known.key);
                        prop_assert_eq!(&frozen.key, expected);
                        prop_assert_eq!(
                            &frozen.renamed_from,
                            &by_id.map(|known| known.name.clone()).filter(|name| *name != audience.name)
                        );
                    }
                }
                // Each refusal has its reason.
                Err(KeyError::Frozen { frozen, key, .. }) => {
                    let is_so = |a: &Audience| a.key_is_explicit && a.key == key
                        && known.iter().any(|known| known.id == a.id && known.key == frozen);
                    prop_assert!(frozen != key && audiences.iter().any(is_so));
                }
                Err(KeyError::Taken { key, owner, .. }) => {
                    let is_so = |a: &Audience| a.key == key && a.id != owner;
                    prop_assert!(audiences.iter().any(is_so));
                    let is_its = |known: &Known| known.id == owner && known.key.is_same_column(key.as_str());
                    prop_assert!(known.iter().any(is_its));
                }
                Err(KeyError::Shared { .. } | KeyError::OneColumn { .. }) => {
                    let key = |a: &Audience| {
                        let by_id = known.iter().find(|known| known.id == a.id);
                        by_id.map_or(&a.key, |known| &known.key).as_str().to_lowercase()
                    };
                    let keys: BTreeSet<_> = audiences.iter().map(key).collect();
                    prop_assert!(keys.len() < audiences.len());
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
