//! Extra traits, told apart by a number.

use sha2::{Digest as _, Sha256};

/// A hash of extra traits, written as a [`Member`](super::Member) has them. The columns of a query may change places, and
/// that changes no trait: their order does not count.
pub fn traits_hash(traits: &str) -> i64 {
    let hash = |written: &str| {
        let digest = Sha256::digest(written);
        i64::from_le_bytes(digest[..8].try_into().expect("the first 8 of 32 bytes"))
    };
    each(traits).map(hash).fold(0, i64::wrapping_add)
}

/// `"name":value` of each. Values are texts, numbers, booleans and null.
fn each(traits: &str) -> impl Iterator<Item = &str> {
    let (mut is_in_text, mut is_escaped) = (false, false);
    let is_between = move |c| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => is_in_text = !is_in_text,
            _ => {}
        }
        c == ',' && !is_in_text
    };
    traits.split(is_between).filter(|each| !each.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Snapshots hold these numbers. Other ones would send every member again.
    #[test]
    fn the_hash_is_frozen() {
        assert_eq!(traits_hash(""), 0);
        assert_eq!(traits_hash(r#","email":"a@x""#), -3_083_896_288_147_600_960);
        assert_eq!(
            traits_hash(r#","email":"a@x","age":null"#),
            7_609_172_197_405_413_224
        );
    }

    #[test]
    fn the_order_of_traits_does_not_count_and_everything_else_does() {
        let traits = traits_hash(r#","a":"x,\\\",\"b\":1","b":-1.5,"c":null"#);
        let other_order = traits_hash(r#","c":null,"a":"x,\\\",\"b\":1","b":-1.5"#);
        assert_eq!(traits, other_order);
        for others in [
            r#","a":"x,\\\",\"b\":1","b":-1.5"#,
            r#","a":"x,\\\",\"b\":1","b":-1.5,"c":"null""#,
            r#","a":"x,\\\",\"b\":1","b":1.5,"c":null"#,
            r#","a":null,"b":-1.5,"c":"x,\\\",\"b\":1""#,
        ] {
            assert_ne!(traits, traits_hash(others), "{others}");
        }
        let parts: Vec<&str> = each(r#","a":"x,\\\",\"b\":1","b":-1.5,"c":null"#).collect();
        assert_eq!(
            parts,
            [r#""a":"x,\\\",\"b\":1""#, r#""b":-1.5"#, r#""c":null"#]
        );
    }
}
