//! `snapshot rebuild`: a lost snapshot, made anew from the records that were delivered.

use serde::Serialize;

use super::landing::{Landing, Passed, Whose};
use crate::audience::{AudienceId, Class, DestinationName, Key};
use crate::cli::args::RebuildArgs;
use crate::cli::output::{Output, count, printable, table};
use crate::cli::{Exit, Refusal, project};
use crate::config::Config;
use crate::event::CallType;
use crate::snapshot::{Rebuild, RebuildError, Restored, SnapshotError, Unsaid, in_the_way};

pub(super) fn run(config: &Config, output: &Output, args: &RebuildArgs) -> anyhow::Result<Exit> {
    let landing = Landing::new(config, &args.landing)?;
    let _lock = project::lock(config, "snapshot rebuild", args.wait)?;
    refuse_existing(config)?;
    let mut rebuild = Rebuild::new()?;
    let mut passed = Passed::default();
    landing.read(None, |found| {
        match found.whose {
            Whose::Ours(statement, destination) => {
                rebuild.push(destination, found.stream, &statement)?;
            }
            Whose::Unknown(_) => passed.unknown += 1,
            Whose::Elsewhere => passed.elsewhere += 1,
            Whose::Foreign(_) => passed.foreign += 1,
        }
        Ok(())
    })?;
    if rebuild.is_empty() {
        return Err(nothing(&landing, &passed));
    }
    let restored = rebuild.write(&config.snapshot, &unsaid(config));
    let restored = restored.map_err(|error| explain_error(config, error))?;
    print(output, &restored)?;
    landing.explain(output, &passed);
    restored
        .iter()
        .for_each(|restored| explain(output, restored));
    explain_missing(config, output, &restored);
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
    let names: Vec<_> = landing
        .destinations
        .iter()
        .map(DestinationName::as_str)
        .collect();
    match passed.unknown + passed.elsewhere {
        0 => anyhow::anyhow!(
            "{} holds no record of audience-sync\n\nhint: name the folder that a destination delivers to, or one with what S3 holds of its streams",
            landing.named()
        ),
        records => anyhow::anyhow!(
            "the {} records of audience-sync in {} were delivered to another destination than {}\n\n\
             hint: a record is known by the name that its destination had then; call it so again",
            count(records),
            landing.named(),
            names.join(" or ")
        ),
    }
}

fn unsaid(config: &Config) -> Unsaid {
    let audiences = config.audiences().map(|configured| &configured.audience);
    let destinations = config.destinations.iter();
    Unsaid {
        names: audiences
            .map(|audience| (audience.id.clone(), audience.name.clone()))
            .collect(),
        streams: destinations
            .map(|(name, destination)| {
                (
                    name.clone(),
                    destination.mapping.streams(CallType::Identify, None),
                )
            })
            .collect(),
    }
}

/// The fields of `snapshot rebuild --json`.
#[derive(Serialize)]
struct Line<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    destination: &'a DestinationName,
    kind: Class,
    members: u64,
    runs: u64,
    records: u64,
    left: u64,
    disagreeing: u64,
}

const HEADER: [&str; 8] = [
    "audience",
    "kind",
    "destination",
    "members",
    "runs",
    "records",
    "left",
    "disagreeing",
];

fn print(output: &Output, restored: &[Restored]) -> anyhow::Result<()> {
    if !output.json {
        let rows = restored.iter().map(row).collect();
        output.text(table(&HEADER, &HEADER[3..], rows))?;
        return Ok(());
    }
    for restored in restored {
        output.line(&Line {
            audience: &restored.key,
            id: &restored.id,
            destination: &restored.destination,
            kind: restored.class,
            members: restored.members,
            runs: restored.runs,
            records: restored.records,
            left: restored.left,
            disagreeing: restored.disagreeing,
        })?;
    }
    Ok(())
}

fn row(restored: &Restored) -> Vec<String> {
    vec![
        printable(restored.key.as_str()).into_owned(),
        restored.class.as_str().to_owned(),
        printable(restored.destination.as_str()).into_owned(),
        count(restored.members),
        count(restored.runs),
        count(restored.records),
        count(restored.left),
        count(restored.disagreeing),
    ]
}

fn explain(output: &Output, restored: &Restored) {
    let key = printable(restored.key.as_str());
    if restored.disagreeing > 0 {
        output.note(format_args!(
            "\n{key}: some stream of {} lacks the last record of {} users\n\n\
             hint: `audience-sync resync {key}` tells every stream of everyone",
            restored.destination,
            count(restored.disagreeing)
        ));
    }
    for former in &restored.former_keys {
        output.note(format_args!(
            "\n{key}: it went by the key `{former}` once; what was delivered under that stays as it is downstream"
        ));
    }
    for stream in &restored.silent {
        output.note(format_args!(
            "\n{key}: nothing of it has landed in {stream}, to which {} delivers it now\n\n\
             hint: if what landed there is not among these files, begin again with all of them; if it is new, `audience-sync resync {key}` fills it",
            restored.destination
        ));
    }
}

/// Says which audiences the schedules name and the new snapshot does not know: they begin with a first sync.
fn explain_missing(config: &Config, output: &Output, restored: &[Restored]) {
    for configured in config.audiences() {
        let audience = &configured.audience;
        for destination in &audience.destinations {
            let is_it = |restored: &Restored| {
                restored.id == audience.id && restored.destination == *destination
            };
            if !restored.iter().any(is_it) {
                output.note(format_args!(
                    "\nnothing was found that was delivered of `{}` to {destination}: its next sync is its first",
                    audience.key
                ));
            }
        }
    }
}
