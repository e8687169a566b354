//! `check`: reads everything that a run would need but the members, and prints what would run where. With `--sources` it
//! also looks at the first rows of each source.

mod shown;
mod sources;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::args::Args;
use super::output::{Output, printable, table};
use super::project::{self, QueryFault, split_hint};
use super::{Exit, Refusal, retire};
use crate::audience::{Audience, AudienceId, Class, DestinationName, Key, SourceName};
use crate::causes::in_one_line;
use crate::config::{Config, Schedule};
use crate::event::CallType;
use crate::mapping::StreamName;
use crate::run::Timestamp;
use crate::sync::{Keyed, Project};

pub(super) fn run(args: &Args, output: &Output, looks: bool) -> anyhow::Result<Exit> {
    let config = project::load(args)?;
    let project = project::open(&config)?;
    let known = project::known(&config)?;
    let keyed = project::select(&config, &[], &known)?;
    retire::warn(&config, &project)?;
    let findings = Findings::of(&config, &project, &keyed);
    let now = Utc::now();
    let mut rows = Vec::new();
    for (keyed, schedule) in keyed.iter().zip(schedules(&config)) {
        for destination in &keyed.audience.destinations {
            let outlet = &project.destinations[destination];
            let line = Line {
                audience: &keyed.key,
                id: &keyed.audience.id,
                name: &keyed.audience.name,
                kind: keyed.audience.class,
                schedule: &schedule.name,
                cron: schedule.cron.as_ref().map(|cron| cron.as_str()),
                timezone: schedule.cron.as_ref().map(|_| schedule.timezone.name()),
                next_run: next_run(schedule, now),
                source: &keyed.audience.source,
                destination,
                streams: outlet.mapping.streams(CallType::Identify, None),
                error: findings.error(keyed),
            };
            if output.json {
                output.line(&line)?;
            } else {
                rows.push(line.row(schedule));
            }
        }
    }
    if !rows.is_empty() {
        output.text(table(&HEADER, &[], rows))?;
    }
    let looks = match looks {
        true => Some(sources::look(&config, &project, &keyed, &findings)?),
        false => None,
    };
    let mut exit = findings.report(output);
    if let Some(looks) = looks {
        looks.print(output)?;
        exit = exit.or_worse(looks.report(output));
    }
    if exit == Exit::Success {
        output.note(summary(&config));
    }
    Ok(exit)
}

/// The schedule of each audience, in the order of [`Config::audiences`].
fn schedules(config: &Config) -> impl Iterator<Item = &Schedule> {
    config
        .schedules
        .iter()
        .flat_map(|schedule| std::iter::repeat_n(schedule, schedule.audiences.len()))
}

fn next_run(schedule: &Schedule, now: DateTime<Utc>) -> Option<Timestamp> {
    let next = schedule.cron.as_ref()?.next_after(now, schedule.timezone)?;
    Some(Timestamp::from_millis(next.timestamp_millis()))
}

/// The fields of `check --json`.
#[derive(Serialize)]
struct Line<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    name: &'a str,
    kind: Class,
    schedule: &'a str,
    /// `None`, like the two that follow, where it runs by command only.
    cron: Option<&'a str>,
    timezone: Option<&'a str>,
    next_run: Option<Timestamp>,
    source: &'a SourceName,
    destination: &'a DestinationName,
    streams: Vec<StreamName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

const HEADER: [&str; 8] = [
    "audience",
    "kind",
    "schedule",
    "cron",
    "next run",
    "source",
    "destination",
    "streams",
];

impl Line<'_> {
    fn row(&self, schedule: &Schedule) -> Vec<String> {
        let cron = self.cron.zip(self.timezone);
        let next = self.next_run.map(|next| {
            let local = next.to_datetime().with_timezone(&schedule.timezone);
            local.format("%Y-%m-%d %H:%M:%S %Z").to_string()
        });
        let streams: Vec<_> = self.streams.iter().map(StreamName::as_str).collect();
        vec![
            printable(self.audience.as_str()).into_owned(),
            self.kind.as_str().to_owned(),
            printable(self.schedule).into_owned(),
            cron.map_or_else(
                || "by command".to_owned(),
                |(cron, zone)| format!("{} {zone}", printable(cron)),
            ),
            next.unwrap_or_else(|| "-".to_owned()),
            printable(self.source.as_str()).into_owned(),
            printable(self.destination.as_str()).into_owned(),
            streams.join(", "),
        ]
    }
}

/// What is wrong with queries and sources.
#[derive(Default)]
struct Findings {
    /// By audience: a mistake in its query.
    queries: BTreeMap<AudienceId, String>,
    /// By place: why it cannot be read, whatever the query.
    places: BTreeMap<Place, SourceFault>,
}

/// A source, and what of it an audience has for itself.
type Place = (SourceName, Option<String>);

fn place_of(audience: &Audience) -> Place {
    let own = audience.files.as_ref().or(audience.url.as_ref());
    (audience.source.clone(), own.cloned())
}

struct SourceFault {
    reason: String,
    /// The audiences that cannot run until it is put right.
    stopped: Vec<Key>,
}

impl Findings {
    fn of(config: &Config, project: &Project, keyed: &[Keyed]) -> Self {
        let mut findings = Self::default();
        for keyed in keyed {
            let place = place_of(&keyed.audience);
            // To find the same locked file once more would take as long again.
            if let Some(fault) = findings.places.get_mut(&place) {
                fault.stopped.push(keyed.key.clone());
                continue;
            }
            match project::check_query(config, keyed, project) {
                Ok(()) => {}
                Err(QueryFault::Misconfigured(error)) => {
                    let id = keyed.audience.id.clone();
                    findings.queries.insert(id, error.to_string());
                }
                Err(QueryFault::Unreadable(error)) => {
                    let fault = SourceFault {
                        reason: in_one_line(&error),
                        stopped: vec![keyed.key.clone()],
                    };
                    findings.places.insert(place, fault);
                }
            }
        }
        findings
    }

    fn error(&self, keyed: &Keyed) -> Option<&str> {
        let by_query = self.queries.get(&keyed.audience.id);
        let by_place = self.places.get(&place_of(&keyed.audience));
        by_query
            .or(by_place.map(|fault| &fault.reason))
            .map(String::as_str)
    }

    /// Says what is wrong.
    fn report(&self, output: &Output) -> Exit {
        let mut exit = Exit::Success;
        for ((source, _), SourceFault { reason, stopped }) in &self.places {
            let stopped: Vec<_> = stopped.iter().map(Key::as_str).collect();
            let (problem, way_out) = split_hint(reason);
            let way_out =
                way_out.unwrap_or_else(|| format!("look at what [source.{source}] names"));
            let error = Refusal {
                exit: Exit::Failed,
                message: format!(
                    "{problem}\n\nhint: {way_out}; until it can be read, nothing is synced for {}",
                    stopped.join(", ")
                ),
            };
            exit = exit.or_worse(error.exit);
            output.error(&error.into());
        }
        for reason in self.queries.values() {
            let error = Refusal::usage(reason.as_str());
            exit = exit.or_worse(error.exit);
            output.error(&error.into());
        }
        exit
    }
}

/// Such as `2 audiences, 1 computed trait, 1 schedule: ok`.
fn summary(config: &Config) -> String {
    let of_class = |class| {
        let audiences = config.audiences();
        audiences
            .filter(|configured| configured.audience.class == class)
            .count()
    };
    let mut parts = vec![plural(of_class(Class::Audience), Class::Audience.noun())];
    match of_class(Class::Trait) {
        0 => {}
        traits => parts.push(plural(traits, Class::Trait.noun())),
    }
    parts.push(plural(config.schedules.len(), "schedule"));
    format!("{}: ok", parts.join(", "))
}

fn plural(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
