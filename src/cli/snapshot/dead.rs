//! `snapshot dead`: what a stream will not accept, and why. `--retry` sends again what can be sent again, `--drop` forgets
//! all of it.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{RUN, TIME, UserFields, View, kind_of_user};
use crate::audience::{AudienceId, DestinationName, Key, User};
use crate::cli::args::{Args, DeadArgs};
use crate::cli::output::{Column, Lines, Output, count, printable};
use crate::cli::sync::{Reports, Selection, deliver_selection};
use crate::cli::{Exit, project};
use crate::config::Config;
use crate::event::Identify;
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};
use crate::snapshot::{DeadLetter, LetterContent};
use crate::sync::{Left, Request};

impl View<'_> {
    pub(super) fn dead(&self) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let columns = columns();
        let mut lines = Lines::new();
        let mut letters: u64 = 0;
        let mut kept: u64 = 0;
        snapshot.each_dead_letter(|letter| {
            if self.output.json {
                lines.object(&LetterLine::of(&letter)?)?;
            } else {
                if letters == 0 {
                    lines.header(&columns)?;
                }
                lines.row(&columns, &row(&letter)?)?;
            }
            letters += 1;
            kept += u64::from(letter.is_kept);
            anyhow::Ok(())
        })?;
        lines.finish()?;
        if letters == 0 {
            self.output.note("there are no dead letters");
        } else if kept > 0 {
            self.output.note(format_args!(
                "\nhint: once the reason is mended, `audience-sync snapshot dead --retry` sends {} of them again",
                count(kept)
            ));
        }
        Ok(())
    }
}

/// Puts the letters back into the journal, and delivers what is there.
pub(super) fn retry(args: &Args, output: &Output, dead: &DeadArgs) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    let project = project::open(&config)?;
    if project::inspect(&config)?.is_none() {
        output.note("there are no dead letters");
        return Ok(Exit::Success);
    }
    let lock = project::lock(&config, "snapshot dead --retry", dead.wait)?;
    let mut snapshot = project::open_snapshot(&config, lock, false)?;
    let requeued = snapshot
        .requeue_dead_letters()
        .with_context(|| project::unusable(&config.snapshot))?;
    let mut reports = Reports::new(*output);
    if requeued == 0 {
        output.note("there are no dead letters that can be sent again");
        return Ok(reports.close());
    }
    let selection = Selection {
        left: Left::All,
        keyed: Vec::new(),
    };
    let request = Request::default();
    let delivered = deliver_selection(
        &config,
        &project,
        snapshot,
        &selection,
        &request,
        &mut reports,
    );
    let exit = reports.close();
    delivered.map(|()| exit)
}

/// Forgets the letters.
pub(super) fn drop_all(args: &Args, output: &Output, dead: &DeadArgs) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    let lock = project::lock(&config, "snapshot dead --drop", dead.wait)?;
    let mut snapshot = project::open_snapshot(&config, lock, false)?;
    let dropped = snapshot
        .drop_dead_letters()
        .with_context(|| project::unusable(&config.snapshot))?;
    output.note(format_args!("dead letters dropped: {}", count(dropped)));
    Ok(Exit::Success)
}

/// The fields of `snapshot dead --json`.
#[derive(Serialize)]
struct LetterLine<'a> {
    /// `null` for a line of `send`.
    audience: Option<&'a Key>,
    id: Option<&'a AudienceId>,
    destination: &'a DestinationName,
    stream: &'a StreamName,
    kind: &'static str,
    #[serde(flatten)]
    user: Option<UserFields<'a>>,
    value: Option<Box<RawValue>>,
    run: RunId,
    decided_at: Option<Timestamp>,
    #[serde(rename = "messageId")]
    message_id: Option<String>,
    died_at: Timestamp,
    reason: &'a str,
    retryable: bool,
}

impl<'a> LetterLine<'a> {
    fn of(letter: &'a DeadLetter<'_>) -> anyhow::Result<Self> {
        let mut line = Self {
            audience: None,
            id: None,
            destination: &letter.run.destination,
            stream: &letter.run.stream.name,
            kind: "call",
            user: None,
            value: None,
            run: letter.run.id,
            decided_at: None,
            message_id: None,
            died_at: letter.died_at,
            reason: letter.reason,
            retryable: letter.is_kept,
        };
        match &letter.content {
            LetterContent::Change(computation, change) => {
                let identify = Identify::new(computation);
                line.audience = Some(&computation.key);
                line.id = Some(&computation.audience);
                line.kind = computation.class.as_str();
                line.user = Some(UserFields::of(change.member.user));
                line.value = Some(serde_json::from_slice(&identify.value(change))?);
                line.decided_at = Some(computation.started_at);
                line.message_id = Some(identify.message_id(change).to_string());
            }
            LetterContent::Call(call) => {
                let call: CallFields<'a> = serde_json::from_slice(call)?;
                line.message_id = Some(serde_json::from_str(call.message_id.get())?);
            }
        }
        Ok(line)
    }
}

/// What is shown of a call. It was checked when it was given to `send`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallFields<'a> {
    #[serde(borrow)]
    message_id: &'a RawValue,
}

/// The reason comes last: only it can have any length.
fn columns() -> [Column; 7] {
    [
        Column::text("died at", TIME),
        Column::text("run", RUN),
        Column::text("audience", 20),
        Column::text("stream", 12),
        Column::text("known by", "anonymous_id".len()),
        Column::text("user", 20),
        Column::text("reason", 0),
    ]
}

fn row(letter: &DeadLetter<'_>) -> anyhow::Result<[String; 7]> {
    let line = LetterLine::of(letter)?;
    let audience = line.audience.map_or("(send)", Key::as_str);
    let user = match &letter.content {
        LetterContent::Change(_, change) => Some(change.member.user),
        LetterContent::Call(_) => None,
    };
    // A call may have both ids or a long event; its message id finds it.
    let (known_by, user) = match user {
        Some(User { kind, id }) => (kind_of_user(kind), id.to_owned()),
        None => ("messageId", line.message_id.unwrap_or_default()),
    };
    Ok([
        letter.died_at.to_string(),
        letter.run.id.to_string(),
        printable(audience).into_owned(),
        letter.run.stream.name.to_string(),
        known_by.to_owned(),
        printable(&user).into_owned(),
        printable(letter.reason).into_owned(),
    ])
}
