//! `snapshot verify`: whether what landed is what the snapshot says was delivered.

use anyhow::Context as _;
use serde::Serialize;

use super::landing::{Landing, Passed, Whose};
use super::{NONE, UserFields, kind_of_user, note_absent};
use crate::audience::{AudienceId, DestinationName, Key, User};
use crate::cli::args::VerifyArgs;
use crate::cli::output::{Output, count, printable, table};
use crate::cli::{Exit, project};
use crate::config::Config;
use crate::mapping::StreamName;
use crate::snapshot::{Comparison, Difference, Sample, Scope, Snapshot, SnapshotError, Verified};

pub(super) fn run(config: &Config, output: &Output, args: &VerifyArgs) -> anyhow::Result<Exit> {
    let Some(snapshot) = project::inspect(config)? else {
        // Nothing was compared, so nothing is in order.
        note_absent(config, output);
        return Ok(Exit::Failed);
    };
    let remembered = snapshot
        .streams()
        .with_context(|| project::unusable(&config.snapshot))?;
    let landing = Landing::new(config, &args.landing, &remembered)?;
    let scope = Scope {
        streams: landing.asked(),
    };
    let mut passed = Passed::default();
    let compared = compare(config, &snapshot, scope, &landing, &mut passed);
    let comparison = compared.map_err(|error| explain_error(config, error))?;
    print(output, &landing.destination, &comparison.verified)?;
    passed.foreign = comparison.foreign;
    passed.unknown = comparison.unknown;
    landing.explain(output, &passed);
    comparison
        .verified
        .iter()
        .for_each(|it| explain(output, it));
    let is_clean = comparison.verified.iter().all(Verified::is_clean);
    Ok(if is_clean {
        Exit::Success
    } else {
        Exit::Failed
    })
}

fn compare(
    config: &Config,
    snapshot: &Snapshot,
    scope: Scope,
    landing: &Landing<'_>,
    passed: &mut Passed,
) -> anyhow::Result<Comparison> {
    let mut verify = snapshot.verify(scope)?;
    landing.read(|found| {
        match found.whose {
            Whose::Ours(statement, stream) => verify.land(&stream, &statement, found.line)?,
            Whose::Unknown(statement) => verify.land_unknown(&statement, found.line)?,
            Whose::Foreign(message_id) => {
                verify.land_foreign(message_id.as_deref(), found.line)?;
            }
            Whose::Elsewhere => passed.elsewhere += 1,
        }
        Ok(())
    })?;
    let now = project::inspect_again(config)?;
    Ok(verify.finish(|run| now.as_ref().map_or(Ok(false), |now| now.knows(run)))?)
}

fn explain_error(config: &Config, error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<SnapshotError>() {
        None | Some(SnapshotError::Scratch(_)) => error,
        Some(_) => error.context(project::unusable(&config.snapshot)),
    }
}

/// The fields of `snapshot verify --json`.
#[derive(Serialize)]
struct Line<'a> {
    audience: Option<&'a Key>,
    id: Option<&'a AudienceId>,
    destination: &'a DestinationName,
    stream: &'a StreamName,
    records: u64,
    missing: u64,
    extra: u64,
    wrong: u64,
    duplicated: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing_sample: Vec<SampleLine<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extra_sample: Vec<SampleLine<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong_sample: Vec<SampleLine<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    duplicated_sample: Vec<SampleLine<'a>>,
}

/// One record that differs. What is not known of it is left out.
#[derive(Serialize)]
struct SampleLine<'a> {
    #[serde(flatten)]
    user: Option<UserFields<'a>>,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
}

impl<'a> SampleLine<'a> {
    fn of(sample: &'a Sample) -> Self {
        let user = sample.user.as_ref();
        Self {
            user: user.map(|(kind, id)| UserFields::of(User { kind: *kind, id })),
            message_id: &sample.message_id,
            run: sample.run.as_deref(),
        }
    }

    fn all(difference: &'a Difference) -> Vec<Self> {
        difference.sample.iter().map(Self::of).collect()
    }
}

const HEADER: [&str; 7] = [
    "audience",
    "stream",
    "records",
    "missing",
    "extra",
    "wrong",
    "duplicated",
];

const SAMPLES: [&str; 7] = [
    "difference",
    "audience",
    "stream",
    "known by",
    "user",
    "messageId",
    "run",
];

fn print(
    output: &Output,
    destination: &DestinationName,
    verified: &[Verified],
) -> anyhow::Result<()> {
    if output.json {
        for verified in verified {
            output.line(&line(destination, verified))?;
        }
        return Ok(());
    }
    let rows = verified.iter().map(row).collect();
    output.text(table(&HEADER, &HEADER[2..], rows))?;
    let samples: Vec<_> = verified.iter().flat_map(sample_rows).collect();
    if !samples.is_empty() {
        output.text("\nFor example\n")?;
        output.text(table(&SAMPLES, &[], samples))?;
    }
    Ok(())
}

fn line<'a>(destination: &'a DestinationName, verified: &'a Verified) -> Line<'a> {
    Line {
        audience: verified.audience.as_ref(),
        id: verified.id.as_ref(),
        destination,
        stream: &verified.stream.name,
        records: verified.records,
        missing: verified.missing.count,
        extra: verified.extra.count,
        wrong: verified.wrong.count,
        duplicated: verified.duplicated.count,
        missing_sample: SampleLine::all(&verified.missing),
        extra_sample: SampleLine::all(&verified.extra),
        wrong_sample: SampleLine::all(&verified.wrong),
        duplicated_sample: SampleLine::all(&verified.duplicated),
    }
}

fn name(verified: &Verified) -> String {
    let key = verified.audience.as_ref().map(Key::as_str);
    key.map_or_else(|| "(send)".to_owned(), |key| printable(key).into_owned())
}

fn row(verified: &Verified) -> Vec<String> {
    vec![
        name(verified),
        verified.stream.name.to_string(),
        count(verified.records),
        count(verified.missing.count),
        count(verified.extra.count),
        count(verified.wrong.count),
        count(verified.duplicated.count),
    ]
}

fn sample_rows(verified: &Verified) -> Vec<Vec<String>> {
    let differences = [
        ("missing", &verified.missing),
        ("extra", &verified.extra),
        ("wrong", &verified.wrong),
        ("duplicated", &verified.duplicated),
    ];
    let rows = differences.into_iter().flat_map(|(what, difference)| {
        let samples = difference.sample.iter();
        samples.map(move |sample| sample_row(what, verified, sample))
    });
    rows.collect()
}

fn sample_row(what: &str, verified: &Verified, sample: &Sample) -> Vec<String> {
    let user = sample.user.as_ref();
    vec![
        what.to_owned(),
        name(verified),
        verified.stream.name.to_string(),
        user.map_or(NONE, |(kind, _)| kind_of_user(*kind))
            .to_owned(),
        user.map_or_else(|| NONE.to_owned(), |(_, id)| printable(id).into_owned()),
        printable(&sample.message_id).into_owned(),
        sample.run.as_deref().unwrap_or(NONE).to_owned(),
    ]
}

fn explain(output: &Output, verified: &Verified) {
    let name = name(verified);
    let stream = &verified.stream.name;
    if verified.missing.count > 0 {
        let remedy = match verified.audience {
            Some(_) => format!("; `audience-sync resync {name}` sends everyone again"),
            None => String::new(),
        };
        output.note(format_args!(
            "\n{name}: {} records were accepted by {stream} and have not landed here\n\n\
             hint: Firehose may hold the latest for a quarter of an hour{remedy}",
            count(verified.missing.count)
        ));
    }
    if verified.extra.count > 0 {
        output.note(format_args!(
            "\n{name}: {} records have landed of which the snapshot knows nothing\n\n\
             hint: another snapshot may have sent them, or somebody has made them up",
            count(verified.extra.count)
        ));
    }
    if verified.wrong.count > 0 {
        output.note(format_args!(
            "\n{name}: {} records are not as they were delivered\n\n\
             hint: something has changed them on their way, or since",
            count(verified.wrong.count)
        ));
    }
}
