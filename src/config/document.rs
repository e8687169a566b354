//! A TOML file as a tree whose every part knows where it stands and what to call itself in a message.
//!
//! The tree is walked by hand and not through serde: serde's messages repeat values, which may be secrets, and its
//! untagged enums forget where a value stood. Nothing here puts a value of the file into a message.

use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Location};

/// A file that has been read.
pub(super) struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display();
        let bytes = fs::read(path).map_err(|error| {
            ConfigError::new(match error.kind() {
                ErrorKind::NotFound => format!("there is no file {shown}"),
                ErrorKind::IsADirectory => format!("{shown} is a directory and not a file"),
                _ => format!("failed to read {shown}: {error}"),
            })
        })?;
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Err(ConfigError::new(format!("{shown} is UTF-16")).hint("save it as UTF-8"));
        }
        // Editors on Windows put a mark in front, which TOML lets a reader ignore.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self {
                path: path.to_owned(),
                text: text.to_owned(),
            }),
            Err(error) => Err(ConfigError::new(format!("{shown} is not UTF-8"))
                .at(locate(path, bytes, error.valid_up_to()))
                .hint("save it as UTF-8")),
        }
    }

    pub(super) fn parse(&self) -> Result<Spanned<DeTable<'_>>, ConfigError> {
        DeTable::parse(&self.text).map_err(|error| {
            // The message names rules of the grammar and no text of the file; `Display` would show the line.
            let problem = error.message();
            let syntax = ConfigError::new(format!("not valid TOML: {problem}"))
                .at(self.locate(error.span().map_or(0, |span| span.start)));
            if problem.contains("quoted") {
                syntax.hint("texts stand in double quotes")
            } else if problem.contains("key with no value") {
                syntax
                    .hint("a line is `key = value`, and a key with spaces stands in double quotes")
            } else {
                syntax
            }
        })
    }

    pub(super) fn root<'a>(&'a self, tree: &'a Spanned<DeTable<'a>>) -> Table<'a> {
        Table {
            document: self,
            name: String::new(),
            at: 0,
            entries: tree.get_ref(),
        }
    }

    fn locate(&self, offset: usize) -> Location {
        locate(&self.path, self.text.as_bytes(), offset)
    }
}

fn locate(file: &Path, bytes: &[u8], offset: usize) -> Location {
    let before = &bytes[..offset.min(bytes.len())];
    let line_start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let begins_a_character = |byte: &&u8| **byte & 0xc0 != 0x80;
    Location {
        file: file.to_owned(),
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        column: before[line_start..]
            .iter()
            .filter(begins_a_character)
            .count()
            + 1,
    }
}

/// Text of the file as a message shows it.
pub(super) fn shown(text: &str) -> impl Display {
    text.escape_debug()
}

/// A table, with the name that messages give it.
pub(super) struct Table<'a> {
    document: &'a Document,
    /// Such as `[destination.main]`; empty for the whole file.
    name: String,
    at: usize,
    entries: &'a DeTable<'a>,
}

impl<'a> Table<'a> {
    /// The entries in the order of the file.
    pub(super) fn items(&self) -> Vec<(&'a str, Item<'a>)> {
        let mut items: Vec<_> = self
            .entries
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), self.item(key, value)))
            .collect();
        items.sort_by_key(|(_, item)| item.key_at);
        items
    }

    fn item<K: AsRef<str>>(&self, key: &Spanned<K>, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        let word = shown(key.get_ref().as_ref());
        Item {
            document: self.document,
            what: match self.name.as_str() {
                "" => format!("`{word}`"),
                name => format!("`{word}` in {name}"),
            },
            key_at: key.span().start,
            at: value.span().start,
            value: value.get_ref(),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Item<'a>> {
        let (key, value) = self
            .entries
            .iter()
            .find(|(known, _)| known.get_ref().as_ref() == key)?;
        Some(self.item(key, value))
    }

    pub(super) fn require(&self, key: &str) -> Result<Item<'a>, ConfigError> {
        self.get(key)
            .ok_or_else(|| self.error(format!("`{key}` is missing in {}", self.name)))
    }

    /// Refuses every key but these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        let unknown = self
            .items()
            .into_iter()
            .find(|(key, _)| !known.contains(key));
        unknown.map_or(Ok(()), |(key, item)| {
            Err(ConfigError::new(format!("unknown key {}", item.what))
                .at(item.location())
                .hint_nearest(key, known.iter().copied()))
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::new(message).at(self.location())
    }

    pub(super) fn location(&self) -> Location {
        self.document.locate(self.at)
    }
}

/// A value, with the name that messages give it.
pub(super) struct Item<'a> {
    document: &'a Document,
    /// Such as `` `region` in [destination.main] ``.
    what: String,
    key_at: usize,
    at: usize,
    value: &'a DeValue<'a>,
}

impl<'a> Item<'a> {
    /// An error about the value; `problem` completes a sentence that begins with its name.
    pub(super) fn error(&self, problem: impl Display) -> ConfigError {
        ConfigError::new(format!("{} {problem}", self.what)).at(self.document.locate(self.at))
    }

    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// Where the key stands.
    pub(super) fn location(&self) -> Location {
        self.document.locate(self.key_at)
    }

    pub(super) fn must_be(&self, expected: &str) -> ConfigError {
        let kind = self.value.type_str();
        let article = if matches!(kind, "integer" | "array") {
            "an"
        } else {
            "a"
        };
        self.error(format!("must be {expected}, not {article} {kind}"))
    }

    pub(super) fn value(&self) -> &'a DeValue<'a> {
        self.value
    }

    pub(super) fn text(&self) -> Result<&'a str, ConfigError> {
        self.value.as_str().ok_or_else(|| self.must_be("a string"))
    }

    /// A string with something in it.
    pub(super) fn some_text(&self) -> Result<&'a str, ConfigError> {
        let text = self.text()?;
        if text.trim().is_empty() {
            return Err(self.error("must not be empty"));
        }
        Ok(text)
    }

    pub(super) fn path(&self) -> Result<&'a Path, ConfigError> {
        let text = self.some_text()?;
        if text.contains('\0') {
            return Err(self.error("must not hold a NUL"));
        }
        Ok(Path::new(text))
    }

    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.must_be("true or false"))
    }

    /// `None` for an integer that is negative or too large.
    pub(super) fn integer(&self) -> Result<Option<u64>, ConfigError> {
        let integer = self
            .value
            .as_integer()
            .ok_or_else(|| self.must_be("an integer"))?;
        Ok(u64::from_str_radix(integer.as_str(), integer.radix()).ok())
    }

    /// An integer or a float, finite or not.
    pub(super) fn number(&self) -> Result<f64, ConfigError> {
        let number = match self.value {
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map(|n| n as f64)
                .ok(),
            DeValue::Float(float) => float.as_str().parse().ok(),
            _ => return Err(self.must_be("a number")),
        };
        number.ok_or_else(|| self.error("is out of range"))
    }

    pub(super) fn table(&self, name: impl Into<String>) -> Result<Table<'a>, ConfigError> {
        let entries = self
            .value
            .as_table()
            .ok_or_else(|| self.must_be("a table"))?;
        Ok(Table {
            document: self.document,
            name: name.into(),
            at: self.key_at,
            entries,
        })
    }

    /// The elements of a list; `None` where the value is none.
    pub(super) fn elements(&self) -> Option<Vec<Item<'a>>> {
        let elements = self.value.as_array()?.iter();
        let element = |value: &'a Spanned<DeValue<'a>>| Item {
            document: self.document,
            what: self.what.clone(),
            key_at: value.span().start,
            at: value.span().start,
            value: value.get_ref(),
        };
        Some(elements.map(element).collect())
    }

    /// A list of strings, none of them empty and none twice.
    pub(super) fn texts(&self) -> Result<Vec<(&'a str, Item<'a>)>, ConfigError> {
        let items = self
            .elements()
            .ok_or_else(|| self.must_be("a list of strings"))?;
        let mut texts: Vec<(&str, Item<'_>)> = Vec::with_capacity(items.len());
        for item in items {
            let text = item.some_text()?;
            if texts.iter().any(|(earlier, _)| *earlier == text) {
                return Err(item.error(format!("lists `{}` twice", shown(text))));
            }
            texts.push((text, item));
        }
        Ok(texts)
    }
}
