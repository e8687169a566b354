//! `snapshot`: what each stream has accepted, and why. Looking only ever reads: neither a file nor a secret is needed or
//! made.

mod create;
mod dead;
mod landing;
mod list;
mod rebuild;
mod runs;
mod show;
mod user;
mod verify;

use serde::{Serialize, Serializer};

use super::args::{Args, SnapshotCommand};
use super::output::{Output, printable};
use super::{Exit, Refusal, project};
use crate::audience::keys::Known;
use crate::audience::{AudienceId, User, UserKind, Value};
use crate::config::Config;
use crate::run::Timestamp;
use crate::snapshot::{Snapshot, SnapshotError};

const TIME: usize = "2026-11-23T10:00:00.000Z".len();
const RUN: usize = 36;
const NONE: &str = "-";

pub(super) fn run(args: &Args, output: &Output, command: &SnapshotCommand) -> anyhow::Result<Exit> {
    match command {
        SnapshotCommand::Dead(dead) if dead.retry => return dead::retry(args, output, dead),
        SnapshotCommand::Dead(dead) if dead.drop => return dead::drop_all(args, output, dead),
        _ => {}
    }
    // Not `project::load`: a mistake in a query hides nothing that was delivered.
    let config = Config::load(&args.config)?;
    match command {
        SnapshotCommand::Create(create) => create::run(&config, output, create),
        SnapshotCommand::List => look(&config, output, |view| view.list()),
        SnapshotCommand::Show { audience } => look(&config, output, |view| view.show(audience)),
        SnapshotCommand::User { user } => look(&config, output, |view| view.user(user)),
        SnapshotCommand::Runs { audience, limit } => look(&config, output, |view| {
            view.runs(audience.as_deref(), *limit)
        }),
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
}

fn note_absent(config: &Config, output: &Output) {
    output.note(project::absent(config));
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

const fn kind_of_user(kind: UserKind) -> &'static str {
    match kind {
        UserKind::UserId => "user_id",
        UserKind::AnonymousId => "anonymous_id",
    }
}

fn optional(time: Option<Timestamp>) -> String {
    time.map_or_else(|| NONE.to_owned(), |time| time.to_string())
}

fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    let widths = texts.map(|text| printable(text).chars().count());
    widths.max().unwrap_or_default()
}
