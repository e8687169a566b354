//! `schedules/*.toml`: when to run, and the audiences and computed traits to run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use chrono_tz::{TZ_VARIANTS, Tz};

use super::cron::{self, Cron};
use super::destination::Destination;
use super::document::{Document, Item, Table, shown};
use super::error::{ConfigError, Location};
use super::{Source, read_some_time, source};
use crate::audience::keys::DIFFER;
use crate::audience::{
    Audience, AudienceId, Changes, Class, DestinationName, Expect, Guard, Key, SourceName,
};
use crate::source::{ADD_FORMAT, SINCE};

/// One file of the schedules directory.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The name of the file without `.toml`.
    pub name: String,
    pub path: PathBuf,
    /// `None` runs by command only.
    pub cron: Option<Cron>,
    pub timezone: Tz,
    /// In the order of the file.
    pub audiences: Vec<Configured>,
}

/// An audience or computed trait, and where it is written down.
#[derive(Debug, Clone)]
pub struct Configured {
    pub audience: Audience,
    pub schedule: String,
    /// The `query` key.
    pub query_at: Location,
    /// The `changes` key, where there is one.
    pub changes_at: Option<Location>,
    /// The `name` key.
    pub at: Location,
}

/// What a schedule may refer to.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) sources: &'a BTreeMap<SourceName, Source>,
    pub(super) destinations: &'a BTreeMap<DestinationName, Destination>,
}

/// The `*.toml` of a directory, sorted by name; hidden ones are left out, as editors leave their copies there.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden && path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Schedule {
    pub(super) fn load(path: PathBuf, known: Known<'_>) -> Result<Self, ConfigError> {
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .map(str::to_owned);
        let Some(name) = name else {
            return Err(ConfigError::new(format!(
                "the name of {} is not UTF-8",
                path.display()
            )));
        };
        let document = Document::read(&path)?;
        let tree = document.parse()?;
        let table = document.root(&tree);
        table.only(&["cron", "timezone", "audience", "computed_trait"])?;
        let cron = table.get("cron").map(|item| read_cron(&item)).transpose()?;
        let timezone = table
            .get("timezone")
            .map_or(Ok(Tz::UTC), |item| read_timezone(&item))?;
        let mut audiences = Vec::new();
        for (key, class) in [
            ("audience", Class::Audience),
            ("computed_trait", Class::Trait),
        ] {
            let Some(item) = table.get(key) else { continue };
            for table in tables(key, &item)? {
                audiences.push(Configured::read(&table, class, &name, known)?);
            }
        }
        if audiences.is_empty() {
            let empty = table.error(format!(
                "{} has no audience and no computed trait",
                path.display()
            ));
            return Err(empty.hint(
                "add an [[audience]] with a name, a source and a query, or remove the file",
            ));
        }
        audiences.sort_by_key(|configured| (configured.at.line, configured.at.column));
        Ok(Self {
            name,
            path,
            cron,
            timezone,
            audiences,
        })
    }
}

/// The tables under `[[key]]`.
fn tables<'a>(key: &str, item: &Item<'a>) -> Result<Vec<Table<'a>>, ConfigError> {
    let name = format!("[[{key}]]");
    let hint = format!("each one begins with a line {name}, in two brackets");
    let elements = item
        .elements()
        .ok_or_else(|| item.must_be("a list of tables").hint(hint.as_str()))?;
    let table = |element: &Item<'a>| element.table(name.as_str());
    let tables: Result<Vec<_>, _> = elements.iter().map(table).collect();
    tables.map_err(|error| error.hint(hint))
}

fn read_cron(item: &Item<'_>) -> Result<Cron, ConfigError> {
    Cron::parse(item.text()?).map_err(|error| item.error(error).hint(cron::FORM))
}

fn read_timezone(item: &Item<'_>) -> Result<Tz, ConfigError> {
    let text = item.text()?;
    text.parse().map_err(|_| {
        let unknown = item.error(format!("is not a time zone: `{}`", shown(text)));
        match super::error::nearest(text, TZ_VARIANTS.iter().map(|zone| zone.name())) {
            Some(near) => unknown.hint(format!("did you mean `{near}`?")),
            None => unknown.hint("a time zone has an IANA name, such as Europe/Berlin"),
        }
    })
}

impl Configured {
    fn read(
        table: &Table<'_>,
        class: Class,
        schedule: &str,
        known: Known<'_>,
    ) -> Result<Self, ConfigError> {
        table.only(&[
            "name",
            "source",
            "query",
            "files",
            "url",
            "columns",
            "id",
            "key",
            "destinations",
            "guard",
            "traits",
            "refresh",
            "changes",
            "reconcile",
            "expect",
        ])?;
        let name_item = table.require("name")?;
        let name = name_item.some_text()?;
        let source = read_source(table, known)?;
        let (unfit, way_out) = unfit(&known.sources[&source]);
        if let Some(item) = unfit.iter().find_map(|key| table.get(key)) {
            let unfit = item.error(format!("does not fit source `{source}`"));
            return Err(unfit.hint(way_out));
        }
        let query = match unfit.contains(&"query") {
            true => None,
            false => Some(table.require("query")?),
        };
        let explicit = table.get("key").map(|item| read_key(&item)).transpose()?;
        let key_is_explicit = explicit.is_some();
        let key = explicit.or_else(|| Key::from_name(name)).ok_or_else(|| {
            name_item
                .error("has no letter or digit to make a key of")
                .hint("add a key = \"...\", the trait that carries the membership")
        })?;
        if !key_is_explicit && Key::drops_marks(name) {
            tracing::warn!(
                "the key `{key}` lacks accents or vowel signs of the name `{}`, which stands at {}. \
                 hint: add a `key` that is spelled as you want it",
                shown(name),
                name_item.location()
            );
        }
        let id = match table.get("id") {
            Some(item) => read_id(&item)?,
            None => AudienceId::new(key.as_str()),
        };
        let destinations = read_destinations(table, known)?;
        for destination in destinations
            .iter()
            .filter_map(|name| known.destinations.get(name))
        {
            destination.must_take_identifies(name)?;
        }
        let audience = Audience {
            id,
            key_is_explicit,
            name: name.to_owned(),
            class,
            query: match &query {
                Some(query) => query.some_text()?.to_owned(),
                None => String::new(),
            },
            files: table
                .get("files")
                .map(|item| {
                    source::read_pattern(&item)
                        .and(item.some_text())
                        .map(str::to_owned)
                })
                .transpose()?,
            url: table
                .get("url")
                .map(|item| read_url(&item, &known.sources[&source]))
                .transpose()?,
            columns: source::read_columns(table)?,
            destinations,
            guard: table
                .get("guard")
                .map_or(Ok(Some(Guard::default())), |item| read_guard(&item))?,
            traits: table
                .get("traits")
                .map_or(Ok(Vec::new()), |item| read_traits(&item, &key))?,
            refresh: read_refresh(table, class)?,
            changes: read_changes(table, class)?,
            expect: table.get("expect").map_or(Ok(Expect::default()), |item| {
                read_expect(&item, &known.sources[&source])
            })?,
            source,
            key,
        };
        source::must_be_columns(table, audience.traits.iter(), "it takes")?;
        must_be_readable(&audience, &known.sources[&audience.source], table)?;
        Ok(Self {
            audience,
            schedule: schedule.to_owned(),
            query_at: query.map_or_else(|| name_item.location(), |query| query.location()),
            changes_at: table.get("changes").map(|item| item.location()),
            at: name_item.location(),
        })
    }
}

/// What means nothing to a source, and what does.
fn unfit(source: &Source) -> (&'static [&'static str], &'static str) {
    match source {
        Source::Sqlite(_) => (
            &["files", "url", "columns"],
            "a database is asked by a `query`",
        ),
        Source::Files(_) => (
            &["query", "url", "changes", "reconcile"],
            "files are read as they are: `files`, `columns` and `traits` say what is used of them",
        ),
        Source::Adbc(_) => (
            &["files", "url", "columns", "changes", "reconcile"],
            "a warehouse is asked by a `query`, each time for everyone",
        ),
        Source::Http(_) => (
            &["query", "files", "changes", "reconcile"],
            "a server is asked by its `url`; `columns` and `traits` say what is used of its answers",
        ),
    }
}

/// Refuses files that are of no format, whichever there are.
fn must_be_readable(
    audience: &Audience,
    source: &Source,
    table: &Table<'_>,
) -> Result<(), ConfigError> {
    let Source::Files(files) = source else {
        return Ok(());
    };
    if !files.is_unreadable(audience) {
        return Ok(());
    }
    Err(match table.get("files") {
        Some(item) => item
            .error("has an ending that names no format")
            .hint(ADD_FORMAT),
        None => table
            .require("source")?
            .error("is of files whose ending names no format")
            .hint(format!("{ADD_FORMAT}, or let `files` name some")),
    })
}

fn read_url(item: &Item<'_>, source: &Source) -> Result<String, ConfigError> {
    let own = item.some_text()?;
    if let Source::Http(http) = source {
        let bad = |bad| source::http::misaddressed(item, bad);
        http.url.check(own).map_err(bad)?;
    }
    Ok(own.to_owned())
}

fn read_key(item: &Item<'_>) -> Result<Key, ConfigError> {
    let text = item.some_text()?;
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(item
            .error("must not hold spaces or control characters")
            .hint("a key is written like order_completed_last_30days"));
    }
    Ok(Key::new(text))
}

fn read_id(item: &Item<'_>) -> Result<AudienceId, ConfigError> {
    let text = item.some_text()?;
    if text.chars().any(char::is_control) {
        return Err(item.error("must not hold control characters"));
    }
    Ok(AudienceId::new(text))
}

fn read_source(table: &Table<'_>, known: Known<'_>) -> Result<SourceName, ConfigError> {
    let item = table.require("source")?;
    let name = SourceName::new(item.some_text()?);
    if known.sources.contains_key(&name) {
        return Ok(name);
    }
    if known.sources.is_empty() {
        return Err(item
            .error("names a source, but none is configured")
            .hint("add [source.NAME] with sqlite = \"PATH\" to audience-sync.toml"));
    }
    let names = known.sources.keys().map(SourceName::as_str);
    Err(item
        .error(format!(
            "names an unknown source: `{}`",
            shown(name.as_str())
        ))
        .hint_nearest(name.as_str(), names))
}

fn read_destinations(
    table: &Table<'_>,
    known: Known<'_>,
) -> Result<Vec<DestinationName>, ConfigError> {
    let names = known.destinations.keys().map(DestinationName::as_str);
    let Some(item) = table.get("destinations") else {
        let mut all = known.destinations.keys();
        return match (all.next(), all.next()) {
            (Some(only), None) => Ok(vec![only.clone()]),
            _ => {
                let all: Vec<_> = names.map(|name| format!("{name:?}")).collect();
                let missing =
                    table.error("`destinations` is missing, and there are several to choose from");
                Err(missing.hint(format!(
                    "add destinations = [{}], or some of them",
                    all.join(", ")
                )))
            }
        };
    };
    let listed = item.texts()?;
    if listed.is_empty() {
        return Err(item
            .error("must name a destination")
            .hint_nearest("", names));
    }
    let known_name = |(text, item): &(&str, Item<'_>)| {
        let name = DestinationName::new(*text);
        if known.destinations.contains_key(&name) {
            return Ok(name);
        }
        Err(item
            .error(format!("names an unknown destination: `{}`", shown(text)))
            .hint_nearest(text, names.clone()))
    };
    listed.iter().map(known_name).collect()
}

fn read_guard(item: &Item<'_>) -> Result<Option<Guard>, ConfigError> {
    if let Some(switch) = item.value().as_bool() {
        return if switch {
            Err(item
                .error("must be false or a table, not true")
                .hint("leave it out for the default guard"))
        } else {
            Ok(None)
        };
    }
    if !item.value().is_table() {
        return Err(item.must_be("false or a table"));
    }
    let table = item.table(item.what())?;
    table.only(&[
        "max_removed_percent",
        "min_removed",
        "allow_empty",
        "max_added_percent",
        "max_changed_percent",
    ])?;
    let mut guard = Guard::default();
    let part = |key| {
        let part = |item: Item<'_>| {
            let percent = item.number()?;
            let fits = (0.0..=100.0).contains(&percent);
            fits.then_some(percent)
                .ok_or_else(|| item.error("must be from 0 to 100"))
        };
        table.get(key).map(part).transpose()
    };
    if let Some(percent) = part("max_removed_percent")? {
        guard.max_removed_percent = percent;
    }
    guard.max_changed_percent = part("max_changed_percent")?;
    // An audience may grow to many times its size.
    if let Some(item) = table.get("max_added_percent") {
        let percent = item.number()?;
        if !percent.is_finite() || percent < 0.0 {
            return Err(item.error("must be a finite number, 0 or more"));
        }
        guard.max_added_percent = Some(percent);
    }
    if let Some(item) = table.get("min_removed") {
        let count = item.integer()?;
        guard.min_removed = count.ok_or_else(|| item.error("must be a whole number, 0 or more"))?;
    }
    if let Some(item) = table.get("allow_empty") {
        guard.allow_empty = item.boolean()?;
    }
    Ok(Some(guard))
}

fn read_refresh(table: &Table<'_>, class: Class) -> Result<bool, ConfigError> {
    let Some(item) = table.get("refresh") else {
        return Ok(false);
    };
    if class == Class::Trait {
        return Err(item
            .error("is for audiences: a computed trait is sent again whenever its value changes")
            .hint("leave it out"));
    }
    if table.get("traits").is_none() {
        return Err(item
            .error("is about `traits`, and there are none")
            .hint("leave it out, or add traits = [\"email\"]"));
    }
    item.boolean()
}

const RECONCILE: Duration = Duration::from_secs(24 * 60 * 60);

fn read_changes(table: &Table<'_>, class: Class) -> Result<Option<Changes>, ConfigError> {
    let reconcile = table.get("reconcile");
    let Some(item) = table.get("changes") else {
        let alone = reconcile.map(|item| {
            item.error("says how long `changes` is trusted, and there is none")
                .hint("leave it out: without `changes` everyone is read each time")
        });
        return alone.map_or(Ok(None), Err);
    };
    let query = item.some_text()?;
    if class == Class::Trait {
        return Err(item
            .error("is for audiences: the values of a computed trait are read each time")
            .hint("leave it out"));
    }
    if !query.contains(SINCE) {
        return Err(item
            .error(format!("has no `{SINCE}`"))
            .hint(format!("write `... WHERE changed_at > {SINCE}`, which is the time in UTC as CURRENT_TIMESTAMP writes it; a column of seconds is compared with `unixepoch({SINCE})`")));
    }
    Ok(Some(Changes {
        query: query.to_owned(),
        reconcile: reconcile.map_or(Ok(RECONCILE), |item| {
            read_some_time(
                &item,
                "24h",
                "leave `changes` out to read everyone each time",
            )
        })?,
    }))
}

fn read_expect(item: &Item<'_>, source: &Source) -> Result<Expect, ConfigError> {
    let is_asked = matches!(source, Source::Sqlite(_) | Source::Adbc(_));
    let table = item.table(item.what())?;
    table.only(&["min_members", "max_age", "updated_at"])?;
    let mut expect = Expect::default();
    if let Some(item) = table.get("min_members") {
        let count = item.integer()?;
        expect.min_members =
            count.ok_or_else(|| item.error("must be a whole number, 0 or more"))?;
    }
    if let Some(item) = table.get("max_age") {
        let way_out = "leave it out to take the source however old it is";
        if matches!(source, Source::Http(_)) {
            return Err(item
                .error("does not fit a server, which tells no time")
                .hint(way_out));
        }
        expect.max_age = Some(read_some_time(&item, "6h", way_out)?);
        if is_asked && table.get("updated_at").is_none() {
            return Err(item
                .error("needs to know how old the source is")
                .hint("add updated_at = \"SELECT max(loaded_at) FROM ...\", a time in UTC or seconds since 1970"));
        }
    }
    if let Some(item) = table.get("updated_at") {
        if !is_asked || expect.max_age.is_none() {
            return Err(item
                .error("is a query that tells how old the source is, for `max_age`")
                .hint(match is_asked {
                    true => "add max_age = \"6h\"",
                    false => "leave it out: this source is not asked by a query",
                }));
        }
        expect.updated_at = Some(item.some_text()?.to_owned());
    }
    Ok(expect)
}

fn read_traits(item: &Item<'_>, key: &Key) -> Result<Vec<String>, ConfigError> {
    let mut traits: Vec<String> = Vec::new();
    for (name, item) in item.texts()? {
        if key.is_same_column(name) {
            return Err(item.error(match name == key.as_str() {
                true => format!("lists `{}`, which is the key and sent anyway", shown(name)),
                false => format!(
                    "lists `{}`, which differs from the key only by case",
                    shown(name)
                ),
            }));
        }
        if ["user_id", "anonymous_id", "value"].contains(&name) {
            return Err(item.error(format!(
                "lists `{name}`, which means something else in a result"
            )));
        }
        let is_alike =
            |other: &&String| *other != name && other.to_lowercase() == name.to_lowercase();
        if let Some(other) = traits.iter().find(is_alike) {
            return Err(item
                .error(format!(
                    "lists `{}` beside `{}`, which differs only by case",
                    shown(name),
                    shown(other)
                ))
                .hint(DIFFER));
        }
        traits.push(name.to_owned());
    }
    Ok(traits)
}
