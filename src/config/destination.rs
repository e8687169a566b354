//! `[destination.NAME]`: where identifies go, and which stream takes what.

use std::path::PathBuf;

use super::aws::{self, Aws, RoleArn};
use super::document::{Item, Table, shown};
use super::error::{ConfigError, Location};
use super::{Root, table_name};
use crate::audience::DestinationName;
use crate::event::CallType;
use crate::mapping::{Mapping, Match, Pattern, StreamName};
use crate::stream::{BadEndpoint, Place};

/// Somewhere to deliver to.
#[derive(Debug, Clone)]
pub struct Destination {
    pub name: DestinationName,
    pub mapping: Mapping,
    /// Whether several lines may share a Firehose record.
    pub pack: bool,
    pub kind: DestinationKind,
    pub at: Location,
    /// The directory as it is written; empty where it is none.
    directory: PathBuf,
}

#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a project has a handful of destinations"
)]
pub enum DestinationKind {
    Firehose(Aws),
    /// Files in a directory, laid out as Firehose lays them out in S3.
    Directory(PathBuf),
}

impl Destination {
    pub(super) fn read(name: &str, item: &Item<'_>, root: &Root) -> Result<Self, ConfigError> {
        let table = item.table(table_name("destination", name))?;
        let known: Vec<_> = ["directory", "mapping", "match", "pack"]
            .into_iter()
            .chain(aws::KEYS)
            .collect();
        table.only(&known)?;
        let mut written = PathBuf::new();
        let kind = match table.get("directory") {
            Some(directory) => {
                if let Some(foreign) = aws::KEYS.into_iter().find_map(|key| table.get(key)) {
                    return Err(ConfigError::new(format!(
                        "{} is for AWS, but `directory` makes a destination of files",
                        foreign.what()
                    ))
                    .at(foreign.location())
                    .hint("remove one of the two"));
                }
                written = directory.path()?.to_owned();
                DestinationKind::Directory(root.join(&written))
            }
            None => DestinationKind::Firehose(Aws::read(&table, root)?),
        };
        Ok(Self {
            name: DestinationName::new(name),
            mapping: read_mapping(name, &table)?,
            pack: table.get("pack").map_or(Ok(false), |item| item.boolean())?,
            kind,
            at: table.location(),
            directory: written,
        })
    }

    /// Where its streams are. `endpoint` is the one that holds where the file names none: that of the environment or
    /// of the profile.
    pub fn place(&self, endpoint: Option<&str>) -> Result<Place, BadEndpoint> {
        match &self.kind {
            DestinationKind::Directory(_) => Ok(Place::directory(&self.directory)),
            DestinationKind::Firehose(aws) => Place::firehose(
                aws.region.as_str(),
                aws.endpoint_url.as_deref().or(endpoint),
                aws.role.as_ref().map(RoleArn::account),
            ),
        }
    }

    /// Refuses a mapping through which nothing of an audience would ever arrive.
    pub(super) fn must_take_identifies(&self, audience: &str) -> Result<(), ConfigError> {
        if !self.mapping.streams(CallType::Identify, None).is_empty() {
            return Ok(());
        }
        let table = table_name("destination", self.name.as_str());
        Err(ConfigError::new(format!(
            "no row of the mapping of {table} fits an identify, so nothing of `{}` would arrive",
            shown(audience)
        ))
        .at(self.at.clone())
        .hint("add a row identify = \"stream\" to the mapping"))
    }
}

fn read_mapping(destination: &str, table: &Table<'_>) -> Result<Mapping, ConfigError> {
    let matching = match table.get("match") {
        Some(item) => read_match(&item)?,
        None => Match::default(),
    };
    let name = table_name("destination", destination);
    let name = format!("{}.mapping]", name.trim_end_matches(']'));
    let example = "add a row such as \"*\" = \"stream\"";
    let mapping = table
        .get("mapping")
        .ok_or_else(|| table.error(format!("{name} is missing")).hint(example))?
        .table(name.as_str())?;
    if mapping.is_empty() {
        return Err(mapping.error(format!("{name} has no row")).hint(example));
    }
    let mut rows: Vec<(Pattern, Vec<StreamName>)> = Vec::new();
    for (left, item) in mapping.items() {
        let at_left = |problem: String| ConfigError::new(problem).at(item.location());
        let pattern = Pattern::parse(left);
        if left.trim().is_empty()
            || matches!(&pattern, Pattern::Event(name) if name.trim().is_empty())
        {
            return Err(at_left(format!("{name} has a row without an event"))
                .hint("the left side is an event name, an event type or \"*\""));
        }
        if rows.iter().any(|(earlier, _)| *earlier == pattern) {
            return Err(at_left(format!("{} is there already", item.what()))
                .hint("the left side ignores case; list several streams in one row"));
        }
        rows.push((pattern, read_streams(&item)?));
    }
    Ok(Mapping { rows, matching })
}

fn read_match(item: &Item<'_>) -> Result<Match, ConfigError> {
    match item.text()? {
        "first" => Ok(Match::First),
        "all" => Ok(Match::All),
        other => Err(item
            .error(format!(
                "must be \"first\" or \"all\", not `{}`",
                shown(other)
            ))
            .hint_nearest(other, ["first", "all"].into_iter())),
    }
}

/// The right side of a row: a stream or a list of streams.
fn read_streams(item: &Item<'_>) -> Result<Vec<StreamName>, ConfigError> {
    if item.value().is_str() {
        return Ok(vec![read_stream(item.text()?, item)?]);
    }
    if !item.value().is_array() {
        let problem = item.must_be("a delivery stream or a list of them");
        return Err(problem.hint("a name with a dot or a space stands in double quotes"));
    }
    let streams = item.texts()?;
    if streams.is_empty() {
        return Err(item.error("must name a delivery stream"));
    }
    streams
        .iter()
        .map(|(name, item)| read_stream(name, item))
        .collect()
}

fn read_stream(name: &str, item: &Item<'_>) -> Result<StreamName, ConfigError> {
    StreamName::parse(name).ok_or_else(|| {
        item.error(format!(
            "is no name that a delivery stream can have: `{}`",
            shown(name)
        ))
        .hint("a name is 1 to 64 of a-z A-Z 0-9 _ . -")
    })
}
