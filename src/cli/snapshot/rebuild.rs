//! `snapshot rebuild`: a lost snapshot, made anew from the records that were delivered, one destination after the other.

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde::Serialize;

use super::landing::{Landing, Passed, Whose};
use crate::audience::{Audience, AudienceId, Class, DestinationName, Key};
use crate::cli::args::RebuildArgs;
use crate::cli::output::{Output, count, printable, table};
use crate::cli::{Exit, Refusal, project, streams};
use crate::config::Config;
use crate::disk;
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::snapshot::{
    Rebuild, RebuildError, Rebuilt, Restored, RunLock, Snapshot, SnapshotError, Unsaid, in_the_way,
};
use crate::stream::{self, Stream};
use crate::sync::Streams;

pub(super) fn run(config: &Config, output: &Output, args: &RebuildArgs) -> anyhow::Result<Exit> {
    let lock = project::lock(config, "snapshot rebuild", args.wait)?;
    let existing = existing(config, &lock)?;
    let landing = match &existing {
        None => Landing::new(config, &args.landing, &[])?,
        Some(snapshot) => landing_beside(config, args, snapshot)?,
    };
    let is_new = existing.is_none();
    // It is opened again once all is read.
    drop(existing);
    let mut rebuild = Rebuild::new()?;
    let mut passed = Passed::default();
    landing.read(|found| {
        match found.whose {
            Whose::Ours(statement, stream) => rebuild.push(&stream, &statement)?,
            Whose::Unknown(_) => passed.unknown += 1,
            Whose::Elsewhere => passed.elsewhere += 1,
            Whose::Foreign(_) => passed.foreign += 1,
        }
        Ok(())
    })?;
    if rebuild.is_empty() {
        return Err(nothing(&landing, &passed));
    }
    let unsaid = unsaid(config, &landing, lock.last_run());
    let rebuilt = match is_new {
        true => rebuild.write(&config.snapshot, &unsaid),
        false => {
            let mut snapshot = project::open_snapshot(config, lock, false)?;
            rebuild.add(&mut snapshot, &unsaid)
        }
    };
    let Rebuilt { feeds, former_keys } =
        rebuilt.map_err(|error| explain_error(config, &landing, error))?;
    print(output, &landing.destination, &feeds)?;
    landing.explain(output, &passed);
    for (key, former) in &former_keys {
        let key = printable(key.as_str());
        output.note(format_args!(
            "\n{key}: it went by the key `{former}` once; what was delivered under that stays as it is downstream"
        ));
    }
    explain_missing(config, output, &landing)?;
    Ok(Exit::Success)
}

/// The snapshot that is there, to be added to. An older copy does not know all that it should.
fn existing(config: &Config, lock: &RunLock) -> anyhow::Result<Option<Snapshot>> {
    let Some(file) = in_the_way(&config.snapshot) else {
        return Ok(None);
    };
    let is_snapshot = file == disk::target(&config.snapshot) && !file.is_dir();
    let snapshot = match is_snapshot {
        true => project::inspect(config)?,
        false => None,
    };
    // What is there is the memory of what was sent: it is not for a command to throw it away.
    let snapshot = snapshot.ok_or_else(|| {
        Refusal::usage(format!(
            "there is something at {} already, which a new snapshot would take the place of\n\n\
             hint: if the snapshot is really lost, move it away",
            file.display()
        ))
    })?;
    project::must_know_the_last_run(config, &snapshot, lock)?;
    Ok(Some(snapshot))
}

/// What is asked for, unless the snapshot knows some of it. All the rest is found only once everything is read.
fn landing_beside<'a>(
    config: &Config,
    args: &'a RebuildArgs,
    snapshot: &Snapshot,
) -> anyhow::Result<Landing<'a>> {
    let unusable = || project::unusable(&config.snapshot);
    let remembered = snapshot.streams().with_context(unusable)?;
    let landing = Landing::new(config, &args.landing, &remembered)?;
    let known = snapshot
        .with_feeds(&landing.asked())
        .with_context(unusable)?;
    match known.is_empty() {
        true => Ok(landing),
        false => Err(explain_error(
            config,
            &landing,
            RebuildError::KnownStreams(known),
        )),
    }
}

fn explain_error(config: &Config, landing: &Landing<'_>, error: RebuildError) -> anyhow::Error {
    match error {
        RebuildError::KnownStreams(known) => already_known(config, landing, &known).into(),
        error @ (RebuildError::KnownRun { .. } | RebuildError::OtherKey { .. }) => {
            Refusal::usage(error.to_string()).into()
        }
        RebuildError::Snapshot(error) if !matches!(error, SnapshotError::Scratch(_)) => {
            let what = format!("the snapshot {} cannot be made", config.snapshot.display());
            anyhow::Error::from(error).context(what)
        }
        error => error.into(),
    }
}

fn nothing(landing: &Landing<'_>, passed: &Passed) -> anyhow::Error {
    match passed.unknown + passed.elsewhere {
        0 => anyhow::anyhow!(
            "{} holds no record of audience-sync\n\nhint: name the folder that a destination delivers to, or one with what S3 holds of its streams",
            landing.named()
        ),
        records => anyhow::anyhow!(
            "the {} records of audience-sync in {} were delivered to no stream of {}\n\n\
             hint: a record is known by the name that its stream had; name it in the mapping",
            count(records),
            landing.named(),
            landing.destination
        ),
    }
}

fn unsaid(config: &Config, landing: &Landing<'_>, last_run: Option<i64>) -> Unsaid {
    let audiences = || config.audiences().map(|configured| &configured.audience);
    Unsaid {
        names: audiences()
            .map(|audience| (audience.id.clone(), audience.name.clone()))
            .collect(),
        refreshed: audiences()
            .filter(|audience| audience.refresh)
            .map(|audience| audience.id.clone())
            .collect(),
        destination: Some(landing.destination.clone()),
        last_run: last_run.unwrap_or_default(),
    }
}

/// The fields of `snapshot rebuild --json`.
#[derive(Serialize)]
struct Line<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    destination: &'a DestinationName,
    stream: &'a StreamName,
    kind: Class,
    members: u64,
    runs: u64,
    records: u64,
    left: u64,
}

const HEADER: [&str; 7] = [
    "audience", "kind", "stream", "members", "runs", "records", "left",
];

fn print(
    output: &Output,
    destination: &DestinationName,
    restored: &[Restored],
) -> anyhow::Result<()> {
    if !output.json {
        let rows = restored.iter().map(row).collect();
        output.text(table(&HEADER, &HEADER[3..], rows))?;
        return Ok(());
    }
    for restored in restored {
        output.line(&Line {
            audience: &restored.key,
            id: &restored.id,
            destination,
            stream: &restored.stream.name,
            kind: restored.class,
            members: restored.members,
            runs: restored.runs,
            records: restored.records,
            left: restored.left,
        })?;
    }
    Ok(())
}

fn row(restored: &Restored) -> Vec<String> {
    vec![
        printable(restored.key.as_str()).into_owned(),
        restored.class.as_str().to_owned(),
        restored.stream.name.to_string(),
        count(restored.members),
        count(restored.runs),
        count(restored.records),
        count(restored.left),
    ]
}

/// Names what the snapshot does not know, though it is configured: it begins with a first sync.
fn explain_missing(config: &Config, output: &Output, landing: &Landing<'_>) -> anyhow::Result<()> {
    let snapshot = project::inspect(config)?.ok_or_else(|| project::absent(config))?;
    let unusable = || project::unusable(&config.snapshot);
    let remembered = snapshot.streams().with_context(unusable)?;
    let known = snapshot.known_feeds().with_context(unusable)?;
    let streams = Streams::of(
        streams::configured(config, &streams::places(config)?),
        &remembered,
    )?;
    for destination in config.destinations.keys() {
        let audiences = config.audiences().map(|configured| &configured.audience);
        let audiences: Vec<_> = audiences
            .filter(|audience| audience.destinations.contains(destination))
            .collect();
        if audiences.is_empty() {
            continue;
        }
        let all = told(config, destination);
        let is_known = |name: &&StreamName| {
            let stream = streams.get(destination, name);
            known.iter().any(|(_, known)| known == stream)
        };
        let (those, unknown): (Vec<_>, Vec<_>) = all.iter().partition(is_known);
        if !unknown.is_empty() {
            explain_unknown(config, output, destination, &unknown, those.is_empty());
        }
        if *destination == landing.destination {
            for name in those {
                let stream = streams.get(destination, name);
                explain_absent(output, &audiences, stream, &known);
            }
        }
    }
    Ok(())
}

/// Nothing is known of these streams, or of a whole destination.
fn explain_unknown(
    config: &Config,
    output: &Output,
    destination: &DestinationName,
    unknown: &[&StreamName],
    is_all: bool,
) {
    let names: Vec<_> = unknown.iter().map(|name| name.as_str()).collect();
    let (what, only) = match is_all {
        true => (format!("`{destination}`"), &[][..]),
        false => (format!("{} of `{destination}`", names.join(", ")), unknown),
    };
    let command = project::rebuild_command(config, destination);
    let commands = match only.is_empty() {
        true => vec![command],
        false => only
            .iter()
            .map(|stream| format!("{command} --stream {stream}"))
            .collect(),
    };
    output.note(format_args!(
        "\nthe snapshot does not know what {what} was told: the next sync there is a first one, and users who have left \
         are not told so\n\n\
         hint: if anything was delivered there, add it before that sync:\n  {}",
        commands.join("\n  ")
    ));
}

/// Audiences of which nothing has landed in a stream that others have records of.
fn explain_absent(
    output: &Output,
    audiences: &[&Audience],
    stream: &Stream,
    known: &BTreeSet<(AudienceId, Stream)>,
) {
    let is_absent = |audience: &&&Audience| !known.contains(&(audience.id.clone(), stream.clone()));
    let absent = audiences.iter().filter(is_absent);
    let keys: Vec<_> = absent
        .map(|audience| printable(audience.key.as_str()))
        .collect();
    if !keys.is_empty() {
        output.note(format_args!(
            "\nnothing of {} has landed in {}: the next sync there is a first one\n\n\
             hint: if something was delivered, files are missing: move the snapshot away, and begin again with all of them",
            keys.join(", "),
            stream.name
        ));
    }
}

/// The streams of a destination that audiences go to.
fn told(config: &Config, destination: &DestinationName) -> Vec<StreamName> {
    let mapping = &config.destinations[destination].mapping;
    mapping.streams(CallType::Identify, None)
}

fn already_known(config: &Config, landing: &Landing<'_>, known: &[Stream]) -> Refusal {
    let is_known = |name: &StreamName| known.iter().any(|stream| stream.name == *name);
    let mut others = told(config, &landing.destination);
    others.retain(|name| landing.only.is_none() && !is_known(name));
    let hint = match &others[..] {
        [] => "if it is lost or wrong, move the snapshot away, and make all of it anew".to_owned(),
        others => {
            let others = others.iter().map(|name| format!("`--stream {name}`"));
            let others: Vec<_> = others.collect();
            format!(
                "{} adds only what was told there; to make all of it anew, move the snapshot away",
                others.join(" or ")
            )
        }
    };
    Refusal::usage(format!(
        "the snapshot {} already knows what was told to {}\n\nhint: {hint}",
        config.snapshot.display(),
        stream::list(known)
    ))
}
