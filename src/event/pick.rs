//! Some fields of a JSON object that may hold anything else.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Fields of a JSON object by name, each as it is written; where a name repeats, the last.
pub(super) fn pick<'l, const N: usize>(
    json: &'l str,
    names: [&str; N],
) -> Result<[Option<&'l RawValue>; N], serde_json::Error> {
    let mut object = serde_json::Deserializer::from_str(json);
    let picked = object.deserialize_map(Pick(names))?;
    object.end()?;
    Ok(picked)
}

struct Pick<'n, const N: usize>([&'n str; N]);

impl<'l, const N: usize> Visitor<'l> for Pick<'_, N> {
    type Value = [Option<&'l RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked = [None; N];
        while let Some(position) = map.next_key_seed(Name(&self.0))? {
            match position {
                Some(position) => picked[position] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(picked)
    }
}

/// The position of a name among those that are looked for.
struct Name<'n>(&'n [&'n str]);

impl<'l> DeserializeSeed<'l> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'l>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == name))
    }
}
