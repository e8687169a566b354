//! From the configuration to what runs work with: secrets read, queries checked, destinations made.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::args::Args;
use super::{Exit, Refusal, streams};
use crate::audience::keys::{self, Known};
use crate::audience::{Audience, DestinationName, SourceName};
use crate::bill::PRICE_PER_GB;
use crate::config::{
    Aws as AwsConfiguration, Config, ConfigError, Configured, Destination as Configuration,
    DestinationKind, Location,
};
use crate::firehose::{Aws, AwsSettings, Destination, Directory, Quota, Role};
use crate::run::Timestamp;
use crate::snapshot::{Busy, RunLock, Snapshot, SnapshotError};
use crate::source::{Source, SourceError, check_syntax, check_syntax_of_changes};
use crate::sync::{Keyed, Outlet, Project, Streams};

/// Loads the configuration that the command line names.
pub(super) fn load(args: &Args) -> anyhow::Result<Config> {
    let config = Config::load(&args.config)?;
    let is_sqlite = |it: &&Configured| {
        let source = &config.sources[&it.audience.source];
        matches!(source, Source::Sqlite(_))
    };
    for configured in config.audiences().filter(is_sqlite) {
        if let Some(reason) = check_syntax(&configured.audience.query) {
            let hint = "a query is one SELECT with a column `user_id` or `anonymous_id`";
            let at = Some(configured.query_at.clone());
            return Err(query_error(configured, at, "query", &reason, hint).into());
        }
        let changes = configured.audience.changes.as_ref();
        if let Some(reason) = changes.and_then(|changes| check_syntax_of_changes(&changes.query)) {
            let hint = "a change query is one SELECT with `:since`, and the columns of the query and `is_member`";
            let at = configured.changes_at.clone();
            return Err(query_error(configured, at, "change query", &reason, hint).into());
        }
    }
    Ok(config)
}

fn query_error(
    configured: &Configured,
    at: Option<Location>,
    query: &str,
    reason: &str,
    hint: &str,
) -> ConfigError {
    let (reason, own_hint) = split_hint(reason);
    ConfigError {
        message: format!(
            "the {query} of {:?} is not one that SQLite understands: {reason}",
            configured.audience.name
        ),
        at,
        hint: Some(own_hint.unwrap_or_else(|| hint.to_owned())),
    }
}

/// Makes everything that runs need. Nothing is connected to, and no file is written.
pub(super) fn open(config: &Config) -> anyhow::Result<Project> {
    let mut places = streams::places(config)?;
    for warning in streams::must_differ(config, &places)? {
        tracing::warn!("{warning}");
    }
    let outlets = config.destinations.iter().map(|(name, destination)| {
        let outlet = Outlet {
            deliver_for: config.deliver_for,
            ..Outlet::new(
                ready_destination(name, destination)?,
                places.remove(name).expect("each destination has a place"),
                destination.mapping.clone(),
            )
        };
        Ok((name.clone(), outlet))
    });
    Ok(Project {
        sources: sources(config)?,
        destinations: outlets.collect::<Result<BTreeMap<_, _>, ConfigError>>()?,
        audiences: config.audiences().map(|it| it.audience.clone()).collect(),
        space_id: config.space_id.clone(),
        history: config.history,
    })
}

/// With what the configuration says of a secret in its place.
fn sources(config: &Config) -> Result<BTreeMap<SourceName, Source>, ConfigError> {
    let mut sources = config.sources.clone();
    for (name, secrets) in &config.secrets {
        let places = match sources.get_mut(name) {
            Some(Source::Adbc(adbc)) => &mut adbc.secrets,
            Some(Source::Http(http)) => &mut http.secrets,
            _ => continue,
        };
        for (place, secret) in secrets {
            places.insert(place.clone(), secret.resolve()?);
        }
    }
    Ok(sources)
}

fn ready_destination(
    name: &DestinationName,
    configured: &Configuration,
) -> Result<Destination, ConfigError> {
    let Configuration { pack, kind, .. } = configured;
    Ok(match kind {
        DestinationKind::Directory(path) => {
            Destination::directory(name.clone(), *pack, Directory::new(path.clone()))
        }
        DestinationKind::Firehose(aws) => {
            let external_id = aws
                .secret
                .as_ref()
                .map(|secret| secret.resolve())
                .transpose()?;
            if aws.role.is_none() && external_id.is_some() {
                tracing::warn!(
                    "destination `{name}` has a `secret_id` and no `role_address`, so it is never used"
                );
            }
            let role = aws.role.as_ref().zip(external_id);
            let settings = AwsSettings {
                region: aws.region.as_str().to_owned(),
                role: role.map(|(arn, external_id)| Role {
                    arn: arn.as_str().to_owned(),
                    external_id,
                }),
                endpoint_url: aws.endpoint_url.clone(),
                sts_endpoint_url: aws.sts_endpoint_url.clone(),
                api: aws.api,
                quota: quota(aws),
            };
            Destination::firehose(name.clone(), *pack, Aws::new(settings))
                .priced(aws.price_per_gb.unwrap_or(PRICE_PER_GB))
        }
    })
}

/// The stream that each mapping means, by what the snapshot remembers. What is known from now on is noted in it.
pub(super) fn streams(project: &Project, snapshot: &mut Snapshot) -> anyhow::Result<Streams> {
    let mut streams = look_at_streams(project, snapshot)?;
    for (stream, account) in streams.take_accounts() {
        snapshot.note_account(&stream, &account)?;
    }
    Ok(streams)
}

/// The same for a snapshot that is only looked at.
pub(super) fn look_at_streams(project: &Project, snapshot: &Snapshot) -> anyhow::Result<Streams> {
    Streams::resolve(project, &snapshot.streams()?)
        .map_err(|error| Refusal::usage(error.to_string()).into())
}

/// The region's quota, with what the configuration says in its place. A loopback endpoint has none of its own.
fn quota(aws: &AwsConfiguration) -> Quota {
    let default = if aws.is_loopback() {
        Quota::NONE
    } else {
        Quota::of_region(aws.region.as_str())
    };
    let Some(configured) = &aws.quota else {
        return default;
    };
    Quota {
        bytes: configured
            .mib_per_second
            .map_or(default.bytes, |mib| mib * f64::from(1 << 20)),
        records: configured
            .records_per_second
            .map_or(default.records, |records| records as f64),
        requests: configured
            .requests_per_second
            .map_or(default.requests, |requests| requests as f64),
    }
}

/// The audiences that words of the command line mean, or all of them without a word; each with its key.
pub(super) fn select(
    config: &Config,
    words: &[String],
    known: &[Known],
) -> anyhow::Result<Vec<Keyed>> {
    let all = config.audiences().map(|configured| &configured.audience);
    select_of(config, all.collect(), words, known)
}

/// All audiences but those that were retired since the schedules were read: the others go on.
pub(super) fn select_not_retired(config: &Config, known: &[Known]) -> anyhow::Result<Vec<Keyed>> {
    let is_retired = |audience: &Audience| {
        let known = known.iter().find(|known| known.id == audience.id);
        known.is_some_and(|known| known.retired)
    };
    let all = config.audiences().map(|configured| &configured.audience);
    let (retired, all): (Vec<_>, Vec<_>) = all.partition(|audience| is_retired(audience));
    for audience in retired {
        tracing::error!(
            "{:?} was retired, so it is not synced. hint: remove it from its schedule",
            audience.name
        );
    }
    select_of(config, all, &[], known)
}

fn select_of(
    config: &Config,
    all: Vec<&Audience>,
    words: &[String],
    known: &[Known],
) -> anyhow::Result<Vec<Keyed>> {
    let frozen = keys::freeze(all.iter().copied(), known, |it| config.streams_of(it))
        .map_err(|error| Refusal::usage(error.to_string()))?;
    let keyed: Vec<Keyed> = all
        .iter()
        .zip(frozen)
        .map(|(audience, frozen)| {
            if let Some(before) = &frozen.renamed_from {
                tracing::info!(
                    "{before:?} is {:?} now, and keeps the key `{}`",
                    audience.name,
                    frozen.key
                );
            }
            Keyed {
                audience: (*audience).clone(),
                key: frozen.key,
            }
        })
        .collect();
    if words.is_empty() {
        return Ok(keyed);
    }
    let is_called =
        |keyed: &Keyed, word: &String| keyed.audience.is_called(word) || keyed.key.as_str() == word;
    if let Some(stranger) = words
        .iter()
        .find(|word| !keyed.iter().any(|keyed| is_called(keyed, word)))
    {
        let known: Vec<_> = keyed.iter().map(|keyed| keyed.key.as_str()).collect();
        let message = format!(
            "no audience is called {stranger:?}\n\nhint: the schedules name {}",
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        );
        return Err(Refusal::usage(message).into());
    }
    Ok(keyed
        .into_iter()
        .filter(|keyed| words.iter().any(|word| is_called(keyed, word)))
        .collect())
}

/// The destination that a word of the command line names, or all of them without a word.
pub(super) fn destinations(
    config: &Config,
    word: Option<&str>,
) -> anyhow::Result<Vec<DestinationName>> {
    let all: Vec<DestinationName> = config.destinations.keys().cloned().collect();
    let Some(word) = word else { return Ok(all) };
    let named: Vec<_> = all
        .iter()
        .filter(|name| name.as_str() == word)
        .cloned()
        .collect();
    if named.is_empty() {
        let known: Vec<_> = all.iter().map(DestinationName::as_str).collect();
        let message = format!(
            "no destination is called {word:?}\n\nhint: there are {}",
            known.join(", ")
        );
        return Err(Refusal::usage(message).into());
    }
    Ok(named)
}

/// Sees whether the query of each audience can run, where its source can be reached at all. Returns those that can,
/// and why the others cannot.
pub(super) fn check_queries(
    config: &Config,
    keyed: Vec<Keyed>,
    project: &Project,
) -> (Vec<Keyed>, Vec<(Keyed, ConfigError)>) {
    let mut refused = Vec::new();
    let mut usable = Vec::new();
    for keyed in keyed {
        match check_query(config, &keyed, project) {
            Err(QueryFault::Misconfigured(error)) => refused.push((keyed, error)),
            // A source that cannot be read is for the run to report.
            Ok(()) | Err(QueryFault::Unreadable(_)) => usable.push(keyed),
        }
    }
    (usable, refused)
}

/// Why the query of an audience would not run now.
pub(super) enum QueryFault {
    Misconfigured(ConfigError),
    /// The source is to blame, for every audience alike.
    Unreadable(SourceError),
}

/// Sees whether the query of an audience can run on its source.
pub(super) fn check_query(
    config: &Config,
    keyed: &Keyed,
    project: &Project,
) -> Result<(), QueryFault> {
    let source = &project.sources[&keyed.audience.source];
    let checked = source.check(&keyed.audience);
    checked.map_err(|error| fault_of(config, keyed, error))
}

/// Who is to blame for an error, with the place of a query that is.
pub(super) fn fault_of(config: &Config, keyed: &Keyed, error: SourceError) -> QueryFault {
    if !error.is_configuration() {
        return QueryFault::Unreadable(error);
    }
    let configured = config
        .audiences()
        .find(|configured| configured.audience.id == keyed.audience.id);
    let (message, hint) = split_hint(&error.to_string());
    let hint = hint.or_else(|| {
        Some("correct the query; `audience-sync check` compiles it without running it".to_owned())
    });
    let at = configured.and_then(|configured| match error.is_about_changes() {
        true => configured.changes_at.clone(),
        false => Some(configured.query_at.clone()),
    });
    QueryFault::Misconfigured(ConfigError { message, at, hint })
}

/// Takes the hint off a message that ends with one.
pub(super) fn split_hint(text: &str) -> (String, Option<String>) {
    match text.split_once("\n\nhint: ") {
        Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
        None => (text.to_owned(), None),
    }
}

/// The same while this process has the snapshot open already.
pub(super) fn inspect_again(config: &Config) -> anyhow::Result<Option<Snapshot>> {
    Snapshot::inspect_again(&config.snapshot).with_context(|| unusable(&config.snapshot))
}

/// Opens the snapshot to look at it, if there is one.
pub(super) fn inspect(config: &Config) -> anyhow::Result<Option<Snapshot>> {
    Snapshot::inspect(&config.snapshot).with_context(|| unusable(&config.snapshot))
}

/// What is known of audiences, by a snapshot that may not exist yet.
pub(super) fn known(config: &Config) -> anyhow::Result<Vec<Known>> {
    match inspect(config)? {
        Some(snapshot) => snapshot.known().with_context(|| unusable(&config.snapshot)),
        None => Ok(Vec::new()),
    }
}

/// Whether something waits to be delivered.
pub(super) fn has_journal(config: &Config) -> anyhow::Result<bool> {
    match inspect(config)? {
        Some(snapshot) => Ok(!snapshot
            .waiting()
            .with_context(|| unusable(&config.snapshot))?
            .is_empty()),
        None => Ok(false),
    }
}

/// Opens the snapshot to write to it, as the holder of its lock. A command that may have told somebody something before
/// does not make one, and does not go on from one that does not know all of that.
pub(super) fn open_snapshot(
    config: &Config,
    lock: RunLock,
    accept_old: bool,
) -> anyhow::Result<Snapshot> {
    let opened = Snapshot::open(&config.snapshot).with_context(|| unusable(&config.snapshot))?;
    let mut snapshot = opened.ok_or_else(|| absent(config))?;
    if !accept_old {
        must_know_the_last_run(config, &snapshot, &lock)?;
    }
    go_on(&mut snapshot, lock).with_context(|| unusable(&config.snapshot))?;
    Ok(snapshot)
}

/// Refuses a snapshot that does not know the last run of which the lock file tells.
pub(super) fn must_know_the_last_run(
    config: &Config,
    snapshot: &Snapshot,
    lock: &RunLock,
) -> anyhow::Result<()> {
    let known = snapshot
        .last_run()
        .with_context(|| unusable(&config.snapshot))?;
    match lock.last_run() {
        Some(last) if known < last => Err(Refusal::usage(format!(
            "the snapshot {} knows runs up to {known}, and run {last} has told people something: it is an older copy\n\n\
             hint: move it away and {}`audience-sync sync --accept-old-snapshot` goes on from the copy, and users who left \
             in between may never be told so",
            config.snapshot.display(),
            make_anew(config)
        ))
        .into()),
        _ => Ok(()),
    }
}

fn go_on(snapshot: &mut Snapshot, lock: RunLock) -> Result<(), SnapshotError> {
    if let Some(last) = lock.last_run() {
        snapshot.go_on_from(last)?;
    }
    warn_of_the_clock(snapshot.last_started_at()?, Timestamp::now());
    snapshot.hold(lock)
}

/// Makes an empty snapshot where there is none, unless the lock file names a run of one that is gone. With `anew` it makes
/// one all the same.
pub(super) fn create_snapshot(
    config: &Config,
    lock: &RunLock,
    anew: bool,
) -> anyhow::Result<Snapshot> {
    if let Some(run) = lock.last_run().filter(|_| !anew) {
        return Err(Refusal::usage(format!(
            "the snapshot at {} is gone, and run {run} of it has told people something\n\n\
             hint: {}`audience-sync snapshot create --anew` begins with nothing, and users who have left since are never \
             told so",
            config.snapshot.display(),
            make_anew(config)
        ))
        .into());
    }
    let mut snapshot =
        Snapshot::create(&config.snapshot).with_context(|| unusable(&config.snapshot))?;
    if let Some(run) = lock.last_run() {
        snapshot.go_on_from(run)?;
    }
    Ok(snapshot)
}

/// Where the clock is this far behind the last run's time, something is wrong with one of them.
const CLOCK_BEHIND: Duration = Duration::from_secs(60 * 60);

fn warn_of_the_clock(last: Option<Timestamp>, now: Timestamp) {
    if let Some(last) = last.filter(|last| now < last.before(CLOCK_BEHIND)) {
        tracing::warn!(
            "the clock says {now}, and the last run began at {last}: records go on from the later time, so that they stay in order. \
             hint: correct the clock of this machine"
        );
    }
}

/// What to do where there is no snapshot.
pub(super) fn absent(config: &Config) -> Refusal {
    Refusal::usage(format!(
        "there is no snapshot at {}\n\nhint: {}if nothing was ever delivered, begin with `audience-sync snapshot create`",
        config.snapshot.display(),
        make_anew(config)
    ))
}

/// The first way out of a snapshot that is lost, as the first half of a hint.
pub(super) fn make_anew(config: &Config) -> String {
    let commands = config.destinations.keys();
    let commands: Vec<_> = commands.map(|name| rebuild_command(config, name)).collect();
    match &commands[..] {
        [only] => format!("make it anew from what was delivered: `{only}`; "),
        commands => format!(
            "make it anew from what was delivered, one destination after the other:\n  {}\n",
            commands.join("\n  ")
        ),
    }
}

/// The command that restores what was told to a destination. Where that is a directory, it can be typed as it stands.
pub(super) fn rebuild_command(config: &Config, destination: &DestinationName) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let folder = match &config.destinations[destination].kind {
        DestinationKind::Directory(path) => path.to_str(),
        DestinationKind::Firehose(_) => None,
    };
    let folder = folder.filter(|path| path.chars().all(is_plain));
    let which = match config.destinations.len() {
        1 => String::new(),
        _ => format!(" --destination {destination}"),
    };
    let folder = folder.unwrap_or("DIR");
    format!("audience-sync snapshot rebuild{which} --from {folder}")
}

pub(super) fn unusable(snapshot: &Path) -> String {
    format!("the snapshot {} cannot be used", snapshot.display())
}

/// Takes the lock, at once or after waiting for whoever holds it.
pub(super) fn lock(config: &Config, command: &str, wait: bool) -> anyhow::Result<RunLock> {
    loop {
        match RunLock::take(&config.snapshot, command) {
            Ok(lock) => return Ok(lock),
            Err(Busy::Held { .. }) if wait => {
                std::thread::sleep(std::time::Duration::from_millis(200))
            }
            Err(busy @ Busy::Held { .. }) => {
                return Err(Refusal {
                    exit: Exit::Busy,
                    message: busy.to_string(),
                }
                .into());
            }
            Err(error @ Busy::Unusable { .. }) => return Err(error.into()),
        }
    }
}
