//! JSON pointers: which part of an answer is meant. <https://www.rfc-editor.org/rfc/rfc6901>

use std::fmt;

/// The names and numbers that lead from an answer to a part of it; none at all mean the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// `None` where the text is no pointer.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let names = text.strip_prefix('/')?.split('/');
        names.map(unescaped).collect::<Option<_>>().map(Self)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether it means `other`, or something within it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

/// `~1` is a slash and `~0` a tilde; no other tilde means anything.
fn unescaped(name: &str) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    let mut letters = name.chars();
    while let Some(letter) = letters.next() {
        text.push(match letter {
            '~' => match letters.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(text)
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("\"\"");
        }
        let escaped = |name: &String| name.replace('~', "~0").replace('/', "~1");
        self.0
            .iter()
            .try_for_each(|name| write!(f, "/{}", escaped(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_read_as_the_rfc_has_them() {
        let check = |text: &str, expected: Option<&[&str]>| {
            let read = Pointer::parse(text);
            let names = expected.map(|names| names.iter().map(|it| (*it).to_owned()).collect());
            assert_eq!(read.as_ref().map(|it| it.0.clone()), names, "{text}");
            if let Some(pointer) = read.filter(|it| !it.0.is_empty()) {
                assert_eq!(pointer.to_string(), text);
            }
        };
        check("", Some(&[]));
        check("/data", Some(&["data"]));
        check("/a/0/b", Some(&["a", "0", "b"]));
        check("/", Some(&[""]));
        check("/a~1b/~0~01", Some(&["a/b", "~~1"]));
        check("data", None);
        check("/a~2", None);
        check("/a~", None);
    }
}
