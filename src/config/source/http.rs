//! `[source.NAME] url = "..."`: a server that gives members.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Read, read_columns, read_dialect, read_format};
use crate::audience::SourceName;
use crate::config::document::{Item, Table};
use crate::config::error::ConfigError;
use crate::config::secret::SecretRef;
use crate::config::{Root, read_some_time};
use crate::source::{
    AnswerFormat, BadAddress, Http, Pointer, Source, Template, Total, is_credential, unfit_header,
};

/// What belongs to a server.
pub(super) const KEYS: &[&str] = &[
    "url",
    "headers",
    "format",
    "items",
    "next",
    "cursor_parameter",
    "total",
    "timeout",
    "columns",
    "delimiter",
    "quote",
    "header",
];

const TIMEOUT: Duration = Duration::from_secs(60);

/// What a total begins with that is no pointer.
const HEADER: &str = "header:";

pub(super) fn read(
    name: SourceName,
    item: &Item<'_>,
    table: &Table<'_>,
    root: &Root,
) -> Result<Read, ConfigError> {
    let url = Template::parse(item.some_text()?).map_err(|bad| misaddressed(item, bad))?;
    let (headers, secrets) = read_headers(table, root)?;
    let format = read_format(table, AnswerFormat::parse, &AnswerFormat::NAMES)?;
    let http = Http {
        name,
        url,
        headers,
        secrets: BTreeMap::new(),
        format,
        dialect: read_dialect(table, format.is_none_or(AnswerFormat::is_csv))?,
        columns: read_columns(table)?,
        items: table
            .get("items")
            .map_or(Ok(Pointer::default()), |item| read_pointer(&item))?,
        next: table
            .get("next")
            .map(|item| read_pointer(&item))
            .transpose()?,
        cursor_parameter: table
            .get("cursor_parameter")
            .map(|item| item.some_text().map(str::to_owned))
            .transpose()?,
        total: table
            .get("total")
            .map(|item| read_total(&item))
            .transpose()?,
        timeout: table.get("timeout").map_or(Ok(TIMEOUT), |item| {
            read_some_time(&item, "60s", "leave it out for a minute")
        })?,
    };
    must_fit(&http, table)?;
    Ok(Read {
        source: Source::Http(http),
        secrets,
    })
}

/// What an address cannot be. It is not repeated: people put passwords into them.
pub(in crate::config) fn misaddressed(item: &Item<'_>, bad: BadAddress) -> ConfigError {
    let hint = match bad {
        BadAddress::NoAddress => {
            "one looks like https://crm.example.com/members; a password goes into `headers`"
        }
        BadAddress::Readable => "what others can read on its way they can change, too",
        BadAddress::Placeholder => {
            "{key} and {id} are those of the audience; a brace itself is written %7B or %7D"
        }
        BadAddress::OtherServer => "make another source of it",
    };
    item.error(bad).hint(hint)
}

type Headers = (BTreeMap<String, String>, BTreeMap<String, SecretRef>);

/// Which of them are secrets, and which may be seen.
fn read_headers(table: &Table<'_>, root: &Root) -> Result<Headers, ConfigError> {
    let (mut texts, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    let Some(headers) = table.get("headers") else {
        return Ok((texts, secrets));
    };
    for (name, item) in headers.table(headers.what())?.items() {
        if let Some(unfit) = unfit_header(name) {
            return Err(item.error(unfit));
        }
        let name = name.to_ascii_lowercase();
        if texts.contains_key(&name) || secrets.contains_key(&name) {
            return Err(item.error("is there twice").hint("headers ignore case"));
        }
        if item.value().is_table() || is_credential(&name) {
            secrets.insert(name, SecretRef::read(&item, root)?);
        } else {
            texts.insert(name, item.text()?.to_owned());
        }
    }
    Ok((texts, secrets))
}

fn read_pointer(item: &Item<'_>) -> Result<Pointer, ConfigError> {
    let text = item.text()?;
    Pointer::parse(text).ok_or_else(|| {
        item.error("is no JSON pointer")
            .hint("one looks like /paging/next: it begins with a slash, and ~1 stands for a slash in a name")
    })
}

fn read_total(item: &Item<'_>) -> Result<Total, ConfigError> {
    let Some(name) = item.text()?.strip_prefix(HEADER) else {
        return read_pointer(item).map(Total::At);
    };
    match unfit_header(name) {
        Some(_) => Err(item
            .error("names no header")
            .hint("it looks like header:X-Total-Count")),
        None => Ok(Total::Header(name.to_ascii_lowercase())),
    }
}

/// Refuses what would never be looked at.
fn must_fit(http: &Http, table: &Table<'_>) -> Result<(), ConfigError> {
    let only_json = ["items", "next", "cursor_parameter"];
    let points = only_json.iter().find_map(|key| table.get(key));
    let total = table
        .get("total")
        .filter(|_| matches!(http.total, Some(Total::At(_))));
    if matches!(http.format, Some(AnswerFormat::Rows(_)))
        && let Some(item) = points.or(total)
    {
        return Err(item
            .error("points into JSON documents, and `format` is something else")
            .hint("further pages are found by a Link header, and a total = \"header:NAME\""));
    }
    if http.cursor_parameter.is_some() && http.next.is_none() {
        return Err(table
            .require("cursor_parameter")?
            .error("has no cursor to take")
            .hint("add next = \"/...\", which points to the cursor of the next page"));
    }
    for (key, pointer) in [
        ("next", http.next.as_ref()),
        (
            "total",
            match &http.total {
                Some(Total::At(pointer)) => Some(pointer),
                _ => None,
            },
        ),
    ] {
        if pointer.is_some_and(|pointer| pointer.is_within(&http.items)) {
            return Err(table
                .require(key)?
                .error("points into the members")
                .hint("items = \"/...\" points to their list, beside which it stands"));
        }
    }
    Ok(())
}
