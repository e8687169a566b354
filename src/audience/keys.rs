//! Which key an audience goes by: the one it had at its first sync, whatever it is called now.
//!
//! A key that is used again for somebody else would mix two audiences in every profile downstream, so it never is.

use super::{Audience, AudienceId, Class, DestinationName, Key};

/// An audience at a destination, as the snapshot knows it.
#[derive(Debug, Clone)]
pub struct Known {
    pub id: AudienceId,
    pub destination: DestinationName,
    /// Frozen at the first sync.
    pub key: Key,
    pub class: Class,
    pub name: String,
}

/// Why an audience cannot have the key it asks for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error(
        "the key of {name:?} has been `{frozen}` since its first sync, and cannot become `{key}`\n\nhint: remove `key`, or give it a new `id` to begin another audience"
    )]
    Frozen { name: String, frozen: Key, key: Key },
    #[error(
        "the key `{key}` of {name:?} belongs to the audience with id `{owner}`\n\nhint: if it is that audience under a new name, set `id = \"{owner}\"`; if it is another one, give it another `key`"
    )]
    Taken {
        name: String,
        key: Key,
        owner: AudienceId,
    },
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
    #[error("{name:?} was synced as {was} and cannot become {now}\n\nhint: give it a new `id` and `key`", was = was.noun(), now = now.noun())]
    OtherClass {
        name: String,
        was: Class,
        now: Class,
    },
}

/// The key that an audience has, and the name it had when it was last synced if that was another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    pub key: Key,
    pub renamed_from: Option<String>,
}

/// Finds the key of each audience, in their order, and refuses two for one.
pub fn freeze<'a>(
    audiences: impl IntoIterator<Item = &'a Audience>,
    known: &[Known],
) -> Result<Vec<Frozen>, KeyError> {
    let mut frozen: Vec<(&Audience, Frozen)> = Vec::new();
    for audience in audiences {
        let found = freeze_one(audience, known)?;
        if audience
            .traits
            .iter()
            .any(|name| name == found.key.as_str())
        {
            return Err(KeyError::AlsoTrait {
                name: audience.name.clone(),
                key: found.key,
            });
        }
        if let Some((first, _)) = frozen.iter().find(|(_, other)| other.key == found.key) {
            let (first, second) = (first.name.clone(), audience.name.clone());
            return Err(KeyError::Shared {
                first,
                second,
                key: found.key,
            });
        }
        frozen.push((audience, found));
    }
    Ok(frozen.into_iter().map(|(_, frozen)| frozen).collect())
}

fn freeze_one(audience: &Audience, known: &[Known]) -> Result<Frozen, KeyError> {
    let name = audience.name.clone();
    if let Some(known) = known.iter().find(|known| known.id == audience.id) {
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
    match known.iter().find(|known| known.key == audience.key) {
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

/// What the snapshot knows and no schedule names any more.
pub fn forgotten<'k>(audiences: &[&Audience], known: &'k [Known]) -> Vec<&'k Known> {
    let is_named = |known: &Known| audiences.iter().any(|audience| audience.id == known.id);
    let mut forgotten: Vec<_> = known.iter().filter(|known| !is_named(known)).collect();
    forgotten.dedup_by(|a, b| a.id == b.id);
    forgotten
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audience::SourceName;

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
        }
    }

    fn known(id: &str, key: &str, name: &str) -> Known {
        Known {
            id: AudienceId::new(id),
            destination: DestinationName::new("main"),
            key: Key::new(key),
            class: Class::Audience,
            name: name.to_owned(),
        }
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
    fn an_audience_cannot_become_a_trait() {
        let mut changed = audience("Big Spenders", None, None);
        changed.class = Class::Trait;
        check(
            &changed,
            Err("was synced as audience and cannot become computed trait"),
        );
    }

    #[test]
    fn what_no_schedule_names_any_more_is_forgotten() {
        let snapshot = [known("a", "a", "A"), known("b", "b", "B")];
        let named = audience("A", None, None);
        let forgotten = forgotten(&[&named], &snapshot);
        assert_eq!(
            forgotten
                .iter()
                .map(|known| known.id.as_str())
                .collect::<Vec<_>>(),
            ["b"]
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
    use crate::audience::SourceName;
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
                        destination: DestinationName::new("main"),
                        key: Key::new(key),
                        class: Class::Audience,
                        name: name.to_owned(),
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
            match freeze(&audiences, &known) {
                Ok(frozen) => {
                    let keys: BTreeSet<_> = frozen.iter().map(|frozen| &frozen.key).collect();
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
                    prop_assert!(known.iter().any(|known| known.id == owner && known.key == key));
                }
                Err(KeyError::Shared { .. }) => {
                    let key = |a: &Audience| {
                        let by_id = known.iter().find(|known| known.id == a.id);
                        by_id.map_or(a.key.clone(), |known| known.key.clone())
                    };
                    let keys: BTreeSet<_> = audiences.iter().map(key).collect();
                    prop_assert!(keys.len() < audiences.len());
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
