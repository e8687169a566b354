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
            destinations: vec![DestinationName::new("main")],
            guard: None,
            traits: Vec::new(),
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
