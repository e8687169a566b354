//! `snapshot`: what Firehose has accepted, and why. Looking only ever reads: neither a file nor a secret is needed or
//! made.

mod dead;
mod landing;
mod rebuild;
mod verify;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::args::{Args, SnapshotCommand};
use super::output::{Column, Lines, Output, count, printable, table};
use super::{Exit, Refusal, held, project};
use crate::audience::keys::Known;
use crate::audience::{AudienceId, Class, DestinationName, Key, User, UserKind, Value};
use crate::config::Config;
use crate::run::{Outcome, RunId, RunKind, Timestamp};
use crate::snapshot::{
    AudienceSummary, Deed, DeedState, Held, MemberSummary, Membership, RunSummary, Snapshot,
    SnapshotError,
};

const TIME: usize = "2026-11-23T10:00:00.000Z".len();
const RUN: usize = 36;
const NONE: &str = "-";

pub(super) fn run(args: &Args, output: &Output, command: &SnapshotCommand) -> anyhow::Result<Exit> {
    if let SnapshotCommand::Dead(dead) = command
        && dead.retry
    {
        return dead::retry(args, output, dead);
    }
    // Not `project::load`: a mistake in a query hides nothing that was delivered.
    let config = Config::load(&args.config)?;
    match command {
        SnapshotCommand::List => look(&config, output, |view| view.list()),
        SnapshotCommand::Show { audience } => look(&config, output, |view| view.show(audience)),
        SnapshotCommand::User { user } => look(&config, output, |view| view.user(user)),
        SnapshotCommand::Runs { audience } => {
            look(&config, output, |view| view.runs(audience.as_deref()))
        }
        SnapshotCommand::Dead(_) => look(&config, output, |view| view.dead()),
        SnapshotCommand::Rebuild(rebuild) => rebuild::run(&config, output, rebuild),
        SnapshotCommand::Verify(verify) => verify::run(&config, output, verify),
    }
}

fn look(
    config: &Config,
    output: &Output,
    show: impl FnOnce(&View<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Exit> {
    let snapshot = project::inspect(config)?;
    let view = View {
        config,
        snapshot: snapshot.as_ref(),
        output,
    };
    match show(&view) {
        Ok(()) => Ok(Exit::Success),
        Err(error) if error.is::<SnapshotError>() => {
            Err(error.context(project::unusable(&config.snapshot)))
        }
        Err(error) => Err(error),
    }
}

struct View<'a> {
    config: &'a Config,
    /// `None` before the first sync.
    snapshot: Option<&'a Snapshot>,
    output: &'a Output,
}

impl View<'_> {
    fn list(&self) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let audiences = snapshot.audiences()?;
        if audiences.is_empty() {
            self.output.note(
                "the snapshot knows no audience yet\n\nhint: `audience-sync sync` syncs them",
            );
        } else if self.output.json {
            for audience in &audiences {
                self.output.line(&AudienceLine::of(audience))?;
            }
        } else {
            let rows = audiences.iter().map(audience_row).collect();
            self.output
                .text(table(&LIST, &["members", "pending", "held"], rows))?;
            for audience in &audiences {
                if let Some(held) = &audience.hold {
                    let (key, destination) = (&audience.key, &audience.destination);
                    let sample = held::sample(key.as_str(), destination.as_str(), held);
                    self.output.text(sample)?;
                }
            }
        }
        Ok(())
    }

    fn show(&self, word: &str) -> anyhow::Result<()> {
        let id = self.find(word)?;
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let mut known = snapshot.known()?;
        known.retain(|known| known.id == id);
        if known.is_empty() {
            self.note_unsynced(&id);
            return Ok(());
        }
        let mut lines = Lines::new();
        let columns = member_columns(&known);
        let mut members: u64 = 0;
        for at in &known {
            snapshot.each_member(&id, &at.destination, |member| {
                if self.output.json {
                    lines.object(&MemberLine::of(&member, &at.destination))?;
                } else {
                    if members == 0 {
                        lines.header(&columns)?;
                    }
                    lines.row(&columns, &member_row(&member, &columns, at))?;
                }
                members += 1;
                anyhow::Ok(())
            })?;
        }
        lines.finish()?;
        if members == 0 {
            self.output.note(format_args!(
                "Firehose has accepted no members of `{}`, or all of them have left",
                known[0].key
            ));
        }
        Ok(())
    }

    fn user(&self, user: &str) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let memberships = snapshot.memberships(user)?;
        let deeds = snapshot.deeds(user)?;
        if memberships.is_empty() && deeds.is_empty() {
            self.output.note(format_args!(
                "nothing was ever decided about a user {user:?}\n\nhint: ids are compared byte by byte"
            ));
        } else if self.output.json {
            for deed in &deeds {
                self.output.line(&DeedLine::of(user, deed, &memberships)?)?;
            }
        } else {
            self.print_memberships(&memberships)?;
            self.output.text("\nHistory\n")?;
            let rows = deeds.iter().map(deed_row).collect();
            self.output.text(table(&HISTORY, &[], rows))?;
        }
        Ok(())
    }

    fn print_memberships(&self, memberships: &[Membership]) -> anyhow::Result<()> {
        if memberships.is_empty() {
            self.output.text("Accepted now: nothing")?;
            return Ok(());
        }
        let rows = memberships.iter().map(membership_row).collect();
        self.output.text("Accepted now\n")?;
        self.output.text(table(&ACCEPTED, &[], rows))?;
        Ok(())
    }

    fn runs(&self, word: Option<&str>) -> anyhow::Result<()> {
        let id = word.map(|word| self.find(word)).transpose()?;
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let known = snapshot.known()?;
        let columns = run_columns(&known);
        let mut lines = Lines::new();
        let mut runs: u64 = 0;
        snapshot.each_run(id.as_ref(), |run| {
            let key = run.key.clone().or_else(|| self.configured_key(&run));
            if self.output.json {
                lines.object(&RunLine::of(&run, key.as_ref()))?;
            } else {
                if runs == 0 {
                    lines.header(&columns)?;
                }
                lines.row(&columns, &run_row(&run, key.as_ref()))?;
            }
            runs += 1;
            anyhow::Ok(())
        })?;
        lines.finish()?;
        match (&id, runs) {
            (Some(id), 0) => self.note_unsynced(id),
            (None, 0) => self.output.note("nothing has run yet"),
            _ => {}
        }
        Ok(())
    }

    /// The snapshot, or a word about why there is nothing to see.
    fn snapshot(&self) -> Option<&Snapshot> {
        if self.snapshot.is_none() {
            note_absent(self.config, self.output);
        }
        self.snapshot
    }

    /// The audience that a word means. Ids and keys come before names, which may have moved to another audience.
    fn find(&self, word: &str) -> anyhow::Result<AudienceId> {
        let known = match self.snapshot {
            Some(snapshot) => snapshot.known()?,
            None => Vec::new(),
        };
        let by_key = known
            .iter()
            .find(|known| known.id.as_str() == word || known.key.as_str() == word);
        let by_name = known.iter().find(|known| known.name == word);
        let configured = self
            .config
            .audiences()
            .map(|configured| &configured.audience)
            .find(|audience| audience.is_called(word));
        let found = by_key
            .map(|known| &known.id)
            .or(configured.map(|audience| &audience.id))
            .or(by_name.map(|known| &known.id));
        match found {
            Some(id) => Ok(id.clone()),
            None => Err(self.stranger(word, &known).into()),
        }
    }

    fn stranger(&self, word: &str, known: &[Known]) -> Refusal {
        let mut keys: Vec<&str> = known.iter().map(|known| known.key.as_str()).collect();
        for configured in self.config.audiences() {
            let audience = &configured.audience;
            if !known.iter().any(|known| known.id == audience.id) {
                keys.push(audience.key.as_str());
            }
        }
        keys.sort_unstable();
        keys.dedup();
        let hint = match keys.is_empty() {
            true => "neither the snapshot nor a schedule names any".to_owned(),
            false => format!("known: {}", keys.join(", ")),
        };
        Refusal::usage(format!("no audience is called {word:?}\n\nhint: {hint}"))
    }

    fn note_unsynced(&self, id: &AudienceId) {
        self.output.note(format_args!(
            "`{id}` has not been synced yet\n\nhint: `audience-sync sync {id}` does it"
        ));
    }

    /// What the schedules call an audience whose runs have all failed so far.
    fn configured_key(&self, run: &RunSummary) -> Option<Key> {
        let id = run.audience.as_ref()?;
        let mut configured = self.config.audiences();
        let configured = configured.find(|configured| configured.audience.id == *id);
        configured.map(|configured| configured.audience.key.clone())
    }
}

fn note_absent(config: &Config, output: &Output) {
    output.note(format_args!(
        "there is no snapshot at {} yet\n\nhint: `audience-sync sync` makes it",
        config.snapshot.display()
    ));
}

const LIST: [&str; 7] = [
    "audience",
    "kind",
    "destination",
    "members",
    "last sync",
    "pending",
    "held",
];

/// The fields of `snapshot list --json`.
#[derive(Serialize)]
struct AudienceLine<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    name: &'a str,
    destination: &'a DestinationName,
    kind: Class,
    members: u64,
    last_run: Option<RunId>,
    last_synced_at: Option<Timestamp>,
    pending: u64,
    held: u64,
    #[serde(flatten)]
    hold: Option<&'a Held>,
}

impl<'a> AudienceLine<'a> {
    fn of(audience: &'a AudienceSummary) -> Self {
        Self {
            audience: &audience.key,
            id: &audience.id,
            name: &audience.name,
            destination: &audience.destination,
            kind: audience.class,
            members: audience.members,
            last_run: audience.last_run,
            last_synced_at: audience.last_synced_at,
            pending: audience.pending,
            held: audience.held,
            hold: audience.hold.as_ref(),
        }
    }
}

fn audience_row(audience: &AudienceSummary) -> Vec<String> {
    vec![
        printable(audience.key.as_str()).into_owned(),
        audience.class.as_str().to_owned(),
        printable(audience.destination.as_str()).into_owned(),
        count(audience.members),
        optional(audience.last_synced_at),
        count(audience.pending),
        audience
            .hold
            .as_ref()
            .map_or_else(|| count(audience.held), held::part),
    ]
}

/// The fields of `snapshot show --json`.
#[derive(Serialize)]
struct MemberLine<'a> {
    #[serde(flatten)]
    user: UserFields<'a>,
    value: JsonValue<'a>,
    destination: &'a DestinationName,
    since: Timestamp,
    run: RunId,
}

impl<'a> MemberLine<'a> {
    fn of(member: &'a MemberSummary<'_>, destination: &'a DestinationName) -> Self {
        Self {
            user: UserFields::of(member.user),
            value: JsonValue(member.value.as_value()),
            destination,
            since: member.since,
            run: member.run,
        }
    }
}

/// The identifier that a user is known by, under its name.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum UserFields<'a> {
    UserId(&'a str),
    AnonymousId(&'a str),
}

impl<'a> UserFields<'a> {
    fn of(user: User<'a>) -> Self {
        match user.kind {
            UserKind::UserId => Self::UserId(user.id),
            UserKind::AnonymousId => Self::AnonymousId(user.id),
        }
    }
}

/// A value as it stands in the record.
struct JsonValue<'a>(Value<'a>);

impl Serialize for JsonValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::True => serializer.serialize_bool(true),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Integer(integer) => serializer.serialize_i64(integer),
            Value::Real(real) => serializer.serialize_f64(real),
        }
    }
}

impl JsonValue<'_> {
    fn printed(&self) -> String {
        serde_json::to_string(self).expect("text and finite numbers are JSON")
    }
}

/// The id comes last: only it can have any length.
fn member_columns(known: &[Known]) -> Vec<Column> {
    let mut columns = vec![Column::text("since", TIME), Column::text("run", RUN)];
    if known.len() > 1 {
        columns.push(Column::text("destination", widest_destination(known)));
    }
    if known.iter().any(|known| known.class == Class::Trait) {
        columns.push(Column::text("value", 12));
    }
    columns.push(Column::text("known by", "anonymous_id".len()));
    columns.push(Column::text("user", 0));
    columns
}

fn member_row(member: &MemberSummary<'_>, columns: &[Column], at: &Known) -> Vec<String> {
    columns
        .iter()
        .map(|column| match column.name {
            "since" => member.since.to_string(),
            "run" => member.run.to_string(),
            "destination" => printable(at.destination.as_str()).into_owned(),
            "value" => printable(&JsonValue(member.value.as_value()).printed()).into_owned(),
            "known by" => kind_of_user(member.user.kind).to_owned(),
            _ => printable(member.user.id).into_owned(),
        })
        .collect()
}

const ACCEPTED: [&str; 6] = [
    "audience",
    "kind",
    "destination",
    "known by",
    "value",
    "since",
];

fn membership_row(membership: &Membership) -> Vec<String> {
    vec![
        printable(membership.key.as_str()).into_owned(),
        membership.class.as_str().to_owned(),
        printable(membership.destination.as_str()).into_owned(),
        kind_of_user(membership.user).to_owned(),
        printable(&JsonValue(membership.value.as_value()).printed()).into_owned(),
        membership.since.to_string(),
    ]
}

/// The fields of `snapshot user --json`.
#[derive(Serialize)]
struct DeedLine<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    destination: &'a DestinationName,
    kind: Class,
    #[serde(flatten)]
    user: UserFields<'a>,
    value: &'a RawValue,
    run: RunId,
    run_kind: RunKind,
    decided_at: Timestamp,
    streams: Vec<&'a str>,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    state: &'static str,
    delivered_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Whether this is the change by which the user is a member, or has the value, now.
    current: bool,
}

impl<'a> DeedLine<'a> {
    fn of(
        user: &'a str,
        deed: &'a Deed,
        memberships: &[Membership],
    ) -> Result<Self, serde_json::Error> {
        let (state, delivered_at, reason) = state(deed);
        let is_current = |membership: &Membership| {
            membership.run == deed.run
                && membership.user == deed.user
                && membership.audience == deed.audience
                && membership.destination == deed.destination
        };
        Ok(Self {
            audience: &deed.key,
            id: &deed.audience,
            destination: &deed.destination,
            kind: deed.class,
            user: UserFields::of(User {
                kind: deed.user,
                id: user,
            }),
            value: serde_json::from_str(&deed.value)?,
            run: deed.run,
            run_kind: deed.kind,
            decided_at: deed.decided_at,
            streams: deed.streams.iter().map(|stream| stream.as_str()).collect(),
            message_id: deed.message_id.as_str(),
            state,
            delivered_at,
            reason,
            current: memberships.iter().any(is_current),
        })
    }
}

fn state(deed: &Deed) -> (&'static str, Option<Timestamp>, Option<&str>) {
    match &deed.state {
        DeedState::Delivered(at) => ("delivered", *at, None),
        DeedState::Waiting => ("waiting", None, None),
        DeedState::Dead(reason) => ("dead", None, Some(reason)),
    }
}

const HISTORY: [&str; 10] = [
    "decided at",
    "audience",
    "destination",
    "known by",
    "value",
    "run kind",
    "state",
    "streams",
    "messageId",
    "run",
];

fn deed_row(deed: &Deed) -> Vec<String> {
    let (state, _, reason) = state(deed);
    let streams: Vec<&str> = deed.streams.iter().map(|stream| stream.as_str()).collect();
    vec![
        deed.decided_at.to_string(),
        printable(deed.key.as_str()).into_owned(),
        printable(deed.destination.as_str()).into_owned(),
        kind_of_user(deed.user).to_owned(),
        printable(&deed.value).into_owned(),
        deed.kind.as_str().to_owned(),
        match reason {
            Some(reason) => format!("{state}: {}", printable(reason)),
            None => state.to_owned(),
        },
        streams.join(", "),
        deed.message_id.to_string(),
        deed.run.to_string(),
    ]
}

/// The fields of `snapshot runs --json`.
#[derive(Serialize)]
struct RunLine<'a> {
    run: RunId,
    audience: Option<&'a Key>,
    id: Option<&'a AudienceId>,
    destination: &'a DestinationName,
    kind: RunKind,
    outcome: &'a str,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    members: u64,
    added: u64,
    removed: u64,
    changed: u64,
    held: u64,
    skipped_rows: u64,
    delivered: u64,
    pending: u64,
    dead: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> RunLine<'a> {
    fn of(run: &'a RunSummary, key: Option<&'a Key>) -> Self {
        Self {
            run: run.id,
            audience: key,
            id: run.audience.as_ref(),
            destination: &run.destination,
            kind: run.kind,
            outcome: outcome(run),
            started_at: run.started_at,
            finished_at: run.finished_at,
            members: run.members,
            added: run.added,
            removed: run.removed,
            changed: run.changed,
            held: run.held,
            skipped_rows: run.skipped_rows,
            delivered: run.delivered,
            pending: run.pending,
            dead: run.dead,
            error: run.error.as_deref(),
        }
    }
}

/// A run without an outcome goes on now, or was interrupted: while changes wait it is unfinished, and the next sync
/// finishes it. Where none wait, all that was missing was the last note, so the counts tell the outcome.
fn outcome(run: &RunSummary) -> &str {
    let by_counts = if run.pending > 0 {
        return run.outcome.as_deref().unwrap_or("unfinished");
    } else if run.dead > 0 {
        Outcome::Undelivered
    } else if run.held > 0 {
        Outcome::Held
    } else if run.delivered > 0 {
        Outcome::Delivered
    } else {
        Outcome::Unchanged
    };
    run.outcome.as_deref().unwrap_or(by_counts.as_str())
}

fn run_columns(known: &[Known]) -> [Column; 15] {
    let keys = known.iter().map(|known| known.key.as_str());
    [
        Column::text("run", RUN),
        Column::text("audience", widest(keys)),
        Column::text("destination", widest_destination(known)),
        Column::text("kind", "resync".len()),
        Column::text("outcome", "undelivered".len()),
        Column::text("started at", TIME),
        Column::number("members"),
        Column::number("added"),
        Column::number("removed"),
        Column::number("changed"),
        Column::number("held"),
        Column::number("delivered"),
        Column::number("pending"),
        Column::number("dead"),
        Column::text("error", 0),
    ]
}

fn run_row(run: &RunSummary, key: Option<&Key>) -> [String; 15] {
    let audience = match (key, &run.audience) {
        (Some(key), _) => printable(key.as_str()).into_owned(),
        (None, Some(id)) => printable(id.as_str()).into_owned(),
        (None, None) => "(send)".to_owned(),
    };
    // The rest of an error is its hint.
    let error = run.error.as_deref().and_then(|error| error.lines().next());
    [
        run.id.to_string(),
        audience,
        printable(run.destination.as_str()).into_owned(),
        run.kind.as_str().to_owned(),
        outcome(run).to_owned(),
        run.started_at.to_string(),
        count(run.members),
        count(run.added),
        count(run.removed),
        count(run.changed),
        count(run.held),
        count(run.delivered),
        count(run.pending),
        count(run.dead),
        printable(error.unwrap_or_default()).into_owned(),
    ]
}

const fn kind_of_user(kind: UserKind) -> &'static str {
    match kind {
        UserKind::UserId => "user_id",
        UserKind::AnonymousId => "anonymous_id",
    }
}

fn optional(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NONE.to_owned(), |time| time.to_string())
}

fn widest_destination(known: &[Known]) -> usize {
    widest(known.iter().map(|known| known.destination.as_str()))
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    let widths = texts.map(|text| printable(text).chars().count());
    widths.max().unwrap_or_default()
}
