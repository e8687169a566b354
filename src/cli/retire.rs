//! `retire`: ends an audience, or its feed at one stream. Also the warnings that lead to it.

use std::collections::BTreeSet;

use anyhow::Context as _;

use super::args::{Args, RetireArgs};
use super::output::{Output, count};
use super::sync::{Reports, is_busy, with_runner};
use super::{Exit, Refusal, project};
use crate::audience::keys::Known;
use crate::audience::{AudienceId, Class};
use crate::config::{Config, Configured};
use crate::run::{Outcome, RunKind};
use crate::snapshot::{FeedAudience, Snapshot, SnapshotError};
use crate::stream::{Place, Stream};
use crate::sync::{Project, Report, Retirement, Streams};

pub(super) fn run(args: &Args, output: &Output, retire: &RetireArgs) -> anyhow::Result<Exit> {
    // Not `project::load`: no query is asked.
    let config = Config::load(&args.config)?;
    if retire.undo {
        return undo(&config, output, retire);
    }
    let project = project::open(&config)?;
    // What is refused changes nothing.
    let snapshot = project::inspect(&config)?.ok_or_else(|| project::absent(&config))?;
    let retirement = decide(&config, &project, &snapshot, retire)?;
    drop(snapshot);
    let mut reports = Reports::new(*output);
    let lock = match project::lock(&config, "retire", retire.wait) {
        Ok(lock) => lock,
        Err(error) => {
            if output.json && is_busy(&error) {
                report_busy(&mut reports, &retirement);
            }
            return Err(error);
        }
    };
    let mut snapshot = project::open_snapshot(&config, lock, retire.accept_old_snapshot)?;
    // The run that was waited for may have changed it.
    let retirement = decide(&config, &project, &snapshot, retire)?;
    let streams = project::streams(&project, &mut snapshot)?;
    let mut is_done_before = false;
    let retired = with_runner(&config, &project, snapshot, &streams, async |runner| {
        for outlet in project.destinations.values() {
            outlet.destination.begin(outlet.deliver_for);
        }
        let mut done = Vec::new();
        let retired = runner.retire(&retirement, &mut done).await;
        is_done_before = done.iter().all(|it| it.outcome == Outcome::Unchanged);
        done.into_iter().for_each(|report| reports.add(report));
        retired?;
        Ok(runner.prune().await?)
    });
    let exit = reports.close();
    retired?;
    let audience = &retirement.audience;
    if is_done_before {
        output.note(format_args!(
            "\n{}: nobody has {} there any more, so nothing more is to do",
            audience.key,
            value(audience.class)
        ));
    }
    if retirement.is_whole
        && let Some(configured) = configured(&config, &audience.id)
    {
        tracing::warn!(
            "the schedule still has {:?} at {}, and its key is refused from now on. hint: remove it there before the next sync",
            audience.name,
            configured.at
        );
    }
    Ok(exit)
}

fn report_busy(reports: &mut Reports, retirement: &Retirement) {
    for (destination, stream) in &retirement.feeds {
        reports.add(Report::new(
            Some(retirement.audience.key.clone()),
            destination.clone(),
            stream.name.clone(),
            RunKind::Retire,
            Outcome::Busy,
        ));
    }
}

fn undo(config: &Config, output: &Output, retire: &RetireArgs) -> anyhow::Result<Exit> {
    let snapshot = project::inspect(config)?.ok_or_else(|| project::absent(config))?;
    let known = known(config, &snapshot)?;
    drop(snapshot);
    let Known {
        id, key, retired, ..
    } = find(config, &known, &retire.audience)?;
    if !retired {
        let message = format!("`{key}` was not retired, so there is nothing to undo");
        return Err(Refusal::usage(message).into());
    }
    let lock = project::lock(config, "retire --undo", retire.wait)?;
    let mut snapshot = project::open_snapshot(config, lock, retire.accept_old_snapshot)?;
    snapshot
        .undo_retire(id)
        .with_context(|| project::unusable(&config.snapshot))?;
    output.note(format_args!(
        "`{key}` is not retired any more; if a schedule names it, the next sync tells its members again"
    ));
    Ok(Exit::Success)
}

fn known(config: &Config, snapshot: &Snapshot) -> anyhow::Result<Vec<Known>> {
    snapshot
        .known()
        .with_context(|| project::unusable(&config.snapshot))
}

/// The audience that a word means: by key or id, else by the name that it has now or had at its last sync.
fn find<'k>(config: &Config, known: &'k [Known], word: &str) -> Result<&'k Known, Refusal> {
    let by_key = |known: &&Known| known.id.as_str() == word || known.key.as_str() == word;
    let by_name = |known: &&Known| {
        let configured = configured(config, &known.id);
        known.name == word || configured.is_some_and(|it| it.audience.is_called(word))
    };
    let mut found: Vec<&Known> = known.iter().filter(by_key).collect();
    if found.is_empty() {
        found = known.iter().filter(by_name).collect();
    }
    let keys = |known: &[&Known]| {
        let keys: Vec<_> = known.iter().map(|known| known.key.as_str()).collect();
        keys.join(", ")
    };
    Err(Refusal::usage(match found[..] {
        [only] => return Ok(only),
        [] if known.is_empty() => format!(
            "no audience is called {word:?}\n\nhint: the snapshot knows none, so there is nothing to retire"
        ),
        [] => format!(
            "no audience that was ever synced is called {word:?}\n\nhint: the snapshot knows {}",
            keys(&known.iter().collect::<Vec<_>>())
        ),
        [..] => format!(
            "several audiences are called {word:?}\n\nhint: name the one that is meant by its key: {}",
            keys(&found)
        ),
    }))
}

fn configured<'c>(config: &'c Config, id: &AudienceId) -> Option<&'c Configured> {
    let mut audiences = config.audiences();
    audiences.find(|configured| configured.audience.id == *id)
}

/// What is to be retired, and by which destinations.
fn decide(
    config: &Config,
    project: &Project,
    snapshot: &Snapshot,
    retire: &RetireArgs,
) -> anyhow::Result<Retirement> {
    let streams = project::look_at_streams(project, snapshot)?;
    let known = known(config, snapshot)?;
    let audience = find(config, &known, &retire.audience)?;
    let mut feeds = snapshot
        .feed_audiences()
        .with_context(|| project::unusable(&config.snapshot))?;
    feeds.retain(|feed| feed.audience.id == audience.id);
    if let Some(name) = &retire.stream {
        feeds = at_stream(config, &streams, audience, feeds, name)?;
    }
    let mut found = Vec::new();
    let mut unreachable = Vec::new();
    for feed in &feeds {
        match streams.leading_to(&feed.stream, &feed.destination) {
            Some(destination) => found.push((destination.clone(), feed.stream.clone())),
            // Nothing will be sent there.
            None if feed.is_empty() => found.push((feed.destination.clone(), feed.stream.clone())),
            None => unreachable.push(feed),
        }
    }
    if !unreachable.is_empty() {
        return Err(no_destination(&unreachable).into());
    }
    Ok(Retirement {
        audience: audience.clone(),
        feeds: found,
        is_whole: retire.stream.is_none(),
    })
}

/// The feeds at streams of a name to which the audience does not map any more.
fn at_stream(
    config: &Config,
    streams: &Streams,
    audience: &Known,
    mut feeds: Vec<FeedAudience>,
    name: &str,
) -> Result<Vec<FeedAudience>, Refusal> {
    let Known { id, key, .. } = audience;
    let names: BTreeSet<String> = feeds.iter().map(|it| it.stream.name.to_string()).collect();
    feeds.retain(|feed| feed.stream.name.as_str() == name);
    if feeds.is_empty() {
        let names: Vec<_> = names.into_iter().collect();
        return Err(Refusal::usage(format!(
            "`{key}` was never synced to a stream {name:?}\n\nhint: it was synced to {}",
            names.join(", ")
        )));
    }
    let mapped = mapped(config, streams);
    let (still, gone): (Vec<_>, Vec<_>) = feeds
        .into_iter()
        .partition(|feed| mapped.contains(&(id, &feed.stream)));
    match (&gone[..], still.first().zip(configured(config, id))) {
        ([], Some((feed, configured))) => {
            let destination = streams.leading_to(&feed.stream, &feed.destination);
            let destination = destination.unwrap_or(&feed.destination);
            Err(Refusal::usage(format!(
                "`{key}` still maps to stream {}\n\n\
                 hint: first remove `{name}` from the mapping of [destination.{destination}], or `{destination}` from the \
                 destinations of the audience at {}; `audience-sync retire {key}` ends it at every stream",
                feed.stream, configured.at
            )))
        }
        _ => Ok(gone),
    }
}

/// The feeds that the configuration has.
fn mapped<'s>(config: &'s Config, streams: &'s Streams) -> BTreeSet<(&'s AudienceId, &'s Stream)> {
    let of_audience = |configured: &'s Configured| {
        let audience = &configured.audience;
        let labels = config.streams_of(audience).into_iter();
        labels.map(move |(destination, name)| (&audience.id, streams.get(&destination, &name)))
    };
    config.audiences().flat_map(of_audience).collect()
}

fn no_destination(feeds: &[&FeedAudience]) -> Refusal {
    let places: Vec<String> = feeds
        .iter()
        .map(|feed| format!("stream {}, where {}", feed.stream, who(feed)))
        .collect();
    let settings: BTreeSet<String> = feeds
        .iter()
        .map(|feed| settings(&feed.stream.place))
        .collect();
    let settings: Vec<_> = settings.into_iter().collect();
    Refusal::usage(format!(
        "no destination leads to {}; nothing was changed\n\n\
         hint: put back a destination with {}; its mapping need not name the stream",
        places.join("; nor to "),
        settings.join("; and one with ")
    ))
}

/// The settings of a destination at a place.
fn settings(place: &Place) -> String {
    match place {
        Place::Directory(path) => format!("directory = {path:?}"),
        Place::Firehose {
            region,
            endpoint,
            account,
        } => {
            let mut settings = format!("region = {region:?}");
            if let Some(endpoint) = endpoint {
                settings += &format!(", endpoint_url = {endpoint:?}");
            }
            if let Some(account) = account {
                settings += &format!(", and a role_address of account {account}");
            }
            settings
        }
    }
}

/// Warns of each audience and stream that is not configured any more and still has members or doubts.
pub(super) fn warn(config: &Config, project: &Project) -> anyhow::Result<()> {
    let Some(snapshot) = project::inspect(config)? else {
        return Ok(());
    };
    let streams = project::look_at_streams(project, &snapshot)?;
    warn_by(config, &streams, &snapshot).with_context(|| project::unusable(&config.snapshot))
}

/// The same by a snapshot that is open.
pub(super) fn warn_by(
    config: &Config,
    streams: &Streams,
    snapshot: &Snapshot,
) -> Result<(), SnapshotError> {
    let mapped = mapped(config, streams);
    let mut feeds = snapshot.feed_audiences()?;
    feeds.retain(|feed| {
        let is_mapped = mapped.contains(&(&feed.audience.id, &feed.stream));
        !feed.is_empty() && (feed.audience.retired || !is_mapped)
    });
    for feeds in feeds.chunk_by(|one, next| one.audience.id == next.audience.id) {
        let Known {
            id,
            key,
            class,
            name,
            retired,
        } = &feeds[0].audience;
        let gone = match class {
            Class::Audience => "`false`",
            Class::Trait => "`null`",
        };
        let places: Vec<String> = feeds
            .iter()
            .map(|feed| format!("{} at stream {}", who(feed), feed.stream))
            .collect();
        let places = places.join(", ");
        if *retired {
            tracing::warn!(
                "{name:?} was retired, and {places}. hint: `audience-sync retire {key}` goes on with it"
            );
        } else if configured(config, id).is_none() {
            tracing::warn!(
                "no schedule names {name:?} (id `{id}`) any more, and {places}. \
                 hint: `audience-sync retire {key}` tells them {gone}; if it was renamed, set `id = \"{id}\"` on the new one"
            );
        } else {
            for feed in feeds {
                let stream = &feed.stream;
                tracing::warn!(
                    "{name:?} does not map to stream {stream} any more, and {} there. \
                     hint: `audience-sync retire {key} --stream {}` tells them {gone}",
                    who(feed),
                    stream.name
                );
            }
        }
    }
    Ok(())
}

/// Such as: 2 users have `true`.
fn who(feed: &FeedAudience) -> String {
    let value = value(feed.audience.class);
    let members = match feed.members {
        0 => return format!("some users may have {value}"),
        1 => format!("1 user has {value}"),
        members => format!("{} users have {value}", count(members)),
    };
    match feed.has_doubts {
        true => format!("{members} and others may"),
        false => members,
    }
}

const fn value(class: Class) -> &'static str {
    match class {
        Class::Audience => "`true`",
        Class::Trait => "a value",
    }
}
