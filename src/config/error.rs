//! Why a configuration cannot be used: what is wrong, where it stands, and the way out.
//!
//! A struct and not an enum, because recovery is always the same: a person edits a file. No message shows a line of
//! the file, since any line could hold a secret.

use std::fmt;
use std::path::PathBuf;

/// A place in a file; lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// What is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    pub message: String,
    /// `None` where no file could be read.
    pub at: Option<Location>,
    pub hint: Option<String>,
}

impl ConfigError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            at: None,
            hint: None,
        }
    }

    pub(super) fn at(self, at: Location) -> Self {
        Self {
            at: Some(at),
            ..self
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Hints at the known word that is meant, or lists them all.
    pub(super) fn hint_nearest<'a>(
        self,
        word: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        let hint = match nearest(word, known.clone()) {
            Some(near) => format!("did you mean `{}`?", near.escape_debug()),
            None => format!("known: {}", list(known)),
        };
        self.hint(hint)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(at) = &self.at {
            write!(f, "\n  --> {at}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The word that was probably meant, if one is close enough: a third of its letters may be wrong.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The distance takes time and memory for each pair of letters, and nothing that long is a slip of the finger.
    if word.len() > 100 {
        return None;
    }
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).max(1);
    known
        .map(|known| (strsim::osa_distance(&word, &known.to_lowercase()), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// `` `a`, `b` ``
fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = words
        .map(|word| format!("`{}`", word.escape_debug()))
        .collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_close_or_there_is_none() {
        let check = |word: &str, expected: Option<&str>| {
            let known = ["region", "role_address", "env", "Europe/Berlin"];
            assert_eq!(nearest(word, known.into_iter()), expected, "{word:?}");
        };
        check("regoin", Some("region"));
        check("role-adress", Some("role_address"));
        check("evn", Some("env"));
        check("europe/berlin", Some("Europe/Berlin"));
        check("value", None);
        check("", None);
        check(&"region".repeat(1000), None);
    }

    #[test]
    fn an_error_says_what_then_where_then_the_way_out() {
        let error = ConfigError::new("it is wrong").at(Location {
            file: "a.toml".into(),
            line: 3,
            column: 7,
        });
        assert_eq!(error.to_string(), "it is wrong\n  --> a.toml:3:7");
        assert_eq!(
            error.hint("right it").to_string(),
            "it is wrong\n  --> a.toml:3:7\n\nhint: right it"
        );
    }
}
