//! `[source.NAME]`: where members come from.

use std::collections::BTreeMap;
use std::path::Path;

use super::document::{Item, Table, shown};
use super::error::ConfigError;
use super::{Root, table_name};
use crate::audience::SourceName;
use crate::source::{Dialect, Files, Format, Source, Sqlite};

/// What makes a source one of a kind, with the settings of that kind.
const KINDS: [(&str, &[&str]); 2] = [
    ("sqlite", &["sqlite"]),
    (
        "files",
        &["files", "format", "columns", "delimiter", "quote", "header"],
    ),
];

pub(super) fn read(name: &str, item: &Item<'_>, root: &Root) -> Result<Source, ConfigError> {
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
                .error(format!("`sqlite` or `files` is missing in {}", table_name("source", name)))
                .hint("sqlite = \"PATH\" names a database, files = \"PATTERN\" one or several exports"));
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
    table.only(known)?;
    let path = table.require(kind)?;
    let path = path.path()?;
    let name = SourceName::new(name);
    Ok(match kind {
        "sqlite" => Source::Sqlite(Sqlite {
            name,
            path: root.join(path),
        }),
        _ => Source::Files(Files {
            name,
            root: root.join(Path::new("")),
            pattern: path.to_owned(),
            format: table
                .get("format")
                .map(|item| read_format(&item))
                .transpose()?,
            dialect: read_dialect(&table)?,
            columns: read_columns(&table)?,
        }),
    })
}

fn read_format(item: &Item<'_>) -> Result<Format, ConfigError> {
    let text = item.some_text()?;
    Format::parse(text).ok_or_else(|| {
        let known = Format::ALL.map(|(name, _)| name);
        item.error(format!("is an unknown format: `{}`", shown(text)))
            .hint_nearest(text, known.into_iter())
    })
}

fn read_dialect(table: &Table<'_>) -> Result<Dialect, ConfigError> {
    let mut dialect = Dialect::default();
    if let Some(item) = table.get("delimiter") {
        dialect.delimiter = read_byte(&item, ";")?;
    }
    if let Some(item) = table.get("quote") {
        dialect.quote = read_byte(&item, "'")?;
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
