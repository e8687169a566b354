//! `snapshot rebuild`: a lost snapshot, made anew from the records that were delivered.

use std::collections::BTreeSet;

use serde::Serialize;

use super::landing::{Landing, Passed, Whose};
use crate::audience::{AudienceId, Class, DestinationName, Key};
use crate::cli::args::RebuildArgs;
use crate::cli::output::{Output, count, printable, table};
use crate::cli::{Exit, Refusal, project};
use crate::config::Config;
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::snapshot::{Rebuild, RebuildError, Restored, SnapshotError, Unsaid, in_the_way};

pub(super) fn run(config: &Config, output: &Output, args: &RebuildArgs) -> anyhow::Result<Exit> {
    let landing = Landing::new(config, &args.landing, &[])?;
    let lock = project::lock(config, "snapshot rebuild", args.wait)?;
    refuse_existing(config)?;
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
    let restored = rebuild.write(&config.snapshot, &unsaid);
    let restored = restored.map_err(|error| explain_error(config, error))?;
    print(output, &landing.destination, &restored)?;
    landing.explain(output, &passed);
    restored
        .iter()
        .for_each(|restored| explain(output, restored));
    explain_missing(config, output, &landing, &restored);
    Ok(Exit::Success)
}

/// What is there is the memory of what was sent: it is not for a command to throw it away.
fn refuse_existing(config: &Config) -> Result<(), Refusal> {
    let Some(file) = in_the_way(&config.snapshot) else {
        return Ok(());
    };
    Err(Refusal::usage(format!(
        "there is something at {} already, which a new snapshot would take the place of\n\n\
         hint: if the snapshot is really lost, move it away",
        file.display()
    )))
}

fn explain_error(config: &Config, error: RebuildError) -> anyhow::Error {
    match error {
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

fn explain(output: &Output, restored: &Restored) {
    let key = printable(restored.key.as_str());
    for former in &restored.former_keys {
        output.note(format_args!(
            "\n{key}: it went by the key `{former}` once; what was delivered under that stays as it is downstream"
        ));
    }
}

/// Names the audiences and streams that are configured and not in the new snapshot: they begin with a first sync.
fn explain_missing(config: &Config, output: &Output, landing: &Landing<'_>, restored: &[Restored]) {
    let audiences = || config.audiences().map(|configured| &configured.audience);
    let elsewhere: BTreeSet<&DestinationName> = audiences()
        .flat_map(|audience| &audience.destinations)
        .filter(|destination| **destination != landing.destination)
        .collect();
    for destination in elsewhere {
        output.note(format_args!(
            "\nwhat {destination} was told is not in the new snapshot: each next sync there is a first one, and users who \
             have left since are not told so"
        ));
    }
    for audience in audiences() {
        if !audience.destinations.contains(&landing.destination) {
            continue;
        }
        let mapping = &config.destinations[&landing.destination].mapping;
        for stream in mapping.streams(CallType::Identify, None) {
            let is_it =
                |restored: &Restored| restored.id == audience.id && restored.stream.name == stream;
            if !restored.iter().any(is_it) {
                output.note(format_args!(
                    "\nnothing of `{}` has landed in {stream}: its next sync there is its first\n\n\
                     hint: if what landed there is not among these files, begin again with all of them",
                    audience.key
                ));
            }
        }
    }
}
