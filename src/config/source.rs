//! `[source.NAME]`: where members come from.

pub(super) mod http;

use std::collections::BTreeMap;
use std::path::Path;

use super::document::{Item, Table, shown};
use super::error::ConfigError;
use super::secret::SecretRef;
use super::{Root, table_name};
use crate::audience::{Audience, SourceName};
use crate::source::{
    Adbc, BadPattern, Dialect, Files, Format, Source, Sqlite, check_pattern, has_password,
    is_password,
};

/// What makes a source one of a kind, with the settings of that kind.
const KINDS: [(&str, &[&str]); 4] = [
    ("sqlite", &["sqlite"]),
    (
        "files",
        &["files", "format", "columns", "delimiter", "quote", "header"],
    ),
    ("url", http::KEYS),
    ("adbc", &["adbc", "uri", "options"]),
];

/// What stands under an audience.
const OF_AUDIENCES: [&str; 5] = ["expect", "traits", "query", "changes", "guard"];

/// A source, and which of its options are where, since nobody may see them.
pub(super) struct Read {
    pub(super) source: Source,
    pub(super) secrets: BTreeMap<String, SecretRef>,
}

pub(super) fn read(name: &str, item: &Item<'_>, root: &Root) -> Result<Read, ConfigError> {
    let table = item.table(table_name("source", name))?;
    let mut kinds = KINDS.iter().filter(|(kind, _)| table.get(kind).is_some());
    let (kind, known) = match (kinds.next(), kinds.next()) {
        (Some(only), None) => *only,
        (None, _) => {
            let all: Vec<&str> = KINDS
                .iter()
                .flat_map(|(_, known)| *known)
                .copied()
                .collect();
            table.only(&all)?;
            return Err(table
                .error(format!("`sqlite`, `files`, `url` or `adbc` is missing in {}", table_name("source", name)))
                .hint("sqlite = \"PATH\" names a database, files = \"PATTERN\" one or several exports, url = \"https://...\" a server, adbc = \"DRIVER\" a warehouse"));
        }
        (Some((one, _)), Some((other, _))) => {
            return Err(table
                .error(format!(
                    "{} has both `{one}` and `{other}`",
                    table_name("source", name)
                ))
                .hint("make two sources of it"));
        }
    };
    if let Some(item) = OF_AUDIENCES.iter().find_map(|key| table.get(key)) {
        return Err(ConfigError::new(format!("unknown key {}", item.what()))
            .at(item.location())
            .hint("it stands under an audience, in a schedule"));
    }
    table.only(known)?;
    let item = table.require(kind)?;
    let name = SourceName::new(name);
    let source = match kind {
        "adbc" => return read_adbc(name, &item, &table, root),
        "url" => return http::read(name, &item, &table, root),
        "sqlite" => Source::Sqlite(Sqlite {
            name,
            path: root.join(item.path()?),
        }),
        _ => {
            let known = Format::ALL.map(|(name, _)| name);
            let format = read_format(&table, Format::parse, &known)?;
            Source::Files(Files {
                name,
                root: root.join(Path::new("")),
                pattern: read_pattern(&item)?.to_owned(),
                format,
                dialect: read_dialect(&table, format.is_none_or(Format::is_csv))?,
                columns: read_columns(&table)?,
            })
        }
    };
    Ok(Read {
        source,
        secrets: BTreeMap::new(),
    })
}

fn read_adbc(
    name: SourceName,
    item: &Item<'_>,
    table: &Table<'_>,
    root: &Root,
) -> Result<Read, ConfigError> {
    let driver = item.some_text()?;
    // A name is looked for where drivers are; a path starts where all of them do.
    let is_path = driver.contains(['/', '\\']) || driver.ends_with(".toml");
    let driver = match is_path {
        true => root.join(item.path()?).display().to_string(),
        false => driver.to_owned(),
    };
    let mut options = Vec::new();
    if let Some(item) = table.get("options") {
        options = item.table(item.what())?.items();
        if let Some((_, item)) = options.iter().find(|(key, _)| *key == "uri") {
            return Err(item.error("stands beside `options`, not in it"));
        }
    }
    options.extend(table.get("uri").map(|item| ("uri", item)));
    let (mut texts, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    for (key, item) in options {
        let is_secret = |text: &str| is_password(key) || has_password(text);
        if item.value().is_table() || item.value().as_str().is_some_and(is_secret) {
            secrets.insert(key.to_owned(), SecretRef::read(&item, root)?);
        } else {
            texts.insert(key.to_owned(), item.text()?.to_owned());
        }
    }
    let source = Source::Adbc(Adbc {
        name,
        driver,
        options: texts,
        secrets: BTreeMap::new(),
    });
    Ok(Read { source, secrets })
}

/// A format of those that a kind of source has.
fn read_format<F>(
    table: &Table<'_>,
    parse: impl Fn(&str) -> Option<F>,
    known: &[&str],
) -> Result<Option<F>, ConfigError> {
    let Some(item) = table.get("format") else {
        return Ok(None);
    };
    let text = item.some_text()?;
    parse(text).map(Some).ok_or_else(|| {
        item.error(format!("is an unknown format: `{}`", shown(text)))
            .hint_nearest(text, known.iter().copied())
    })
}

/// A path in which some characters stand for any.
pub(super) fn read_pattern<'a>(item: &Item<'a>) -> Result<&'a Path, ConfigError> {
    let path = item.path()?;
    check_pattern(path).map_err(|bad| {
        item.error(format!("is no pattern: {bad}")).hint(match bad {
            BadPattern::Recursive => "`*` stands for the folders of one: a/*/*.csv",
            BadPattern::Syntax(_) => "[[] stands for a bracket",
        })
    })?;
    Ok(path)
}

/// Of rows that may be CSV, or are something else.
fn read_dialect(table: &Table<'_>, is_csv: bool) -> Result<Dialect, ConfigError> {
    let mut settings = ["delimiter", "quote", "header"].into_iter();
    if !is_csv && let Some(item) = settings.find_map(|key| table.get(key)) {
        return Err(item
            .error("is of CSV, and `format` is something else")
            .hint("remove one of the two"));
    }
    let mut dialect = Dialect::default();
    if let Some(item) = table.get("delimiter") {
        dialect.delimiter = Some(read_byte(&item, ";")?);
    }
    if let Some(item) = table.get("quote") {
        dialect.quote = read_byte(&item, "'")?;
        let delimits = match dialect.delimiter {
            Some(delimiter) => delimiter == dialect.quote,
            None => matches!(dialect.quote, b',' | b'\t'),
        };
        if delimits {
            return Err(item
                .error("is the delimiter, too")
                .hint("let one of them be another character"));
        }
    }
    if let Some(item) = table.get("header") {
        dialect.has_header = item.boolean()?;
    }
    Ok(dialect)
}

fn read_byte(item: &Item<'_>, example: &str) -> Result<u8, ConfigError> {
    match item.text()?.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'\r' | b'\n') => Ok(*byte),
        _ => Err(item
            .error("must be one ASCII character")
            .hint(format!("write it like \"{example}\", or \"\\t\" for a tab"))),
    }
}

/// Refuses names in `columns` that nobody takes anything by: members would lose what is meant.
pub(super) fn must_be_columns<'a>(
    table: &Table<'_>,
    traits: impl Iterator<Item = &'a String>,
    takes: &str,
) -> Result<(), ConfigError> {
    let Some(item) = table.get("columns") else {
        return Ok(());
    };
    let mut known = vec!["user_id", "anonymous_id", "value"];
    known.extend(traits.map(String::as_str));
    let columns = item.table(item.what())?.items();
    let unknown = columns.iter().find(|(column, _)| !known.contains(column));
    unknown.map_or(Ok(()), |(column, item)| {
        let what = item.what();
        Err(
            ConfigError::new(format!("{what} is no column that {takes}"))
                .at(item.location())
                .hint_nearest(column, known.iter().copied()),
        )
    })
}

/// The same for a source, by what its audiences take. Of one without any there is nothing to say.
pub(super) fn must_be_columns_of<'a>(
    name: &str,
    item: &Item<'_>,
    audiences: impl Iterator<Item = &'a Audience>,
) -> Result<(), ConfigError> {
    let audiences: Vec<_> = audiences
        .filter(|audience| audience.source.as_str() == name)
        .collect();
    if audiences.is_empty() {
        return Ok(());
    }
    let table = item.table(table_name("source", name))?;
    let traits = audiences.iter().flat_map(|audience| &audience.traits);
    must_be_columns(&table, traits, "an audience takes")
}

/// `{ result column = "column of the source" }`.
pub(super) fn read_columns(table: &Table<'_>) -> Result<BTreeMap<String, String>, ConfigError> {
    let Some(item) = table.get("columns") else {
        return Ok(BTreeMap::new());
    };
    let columns = item.table(item.what())?.items();
    let mut read = BTreeMap::new();
    for (column, item) in columns {
        read.insert(column.to_owned(), item.some_text()?.to_owned());
    }
    Ok(read)
}
