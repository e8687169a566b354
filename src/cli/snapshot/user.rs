//! `snapshot user`: everything that was decided about one user, and why.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{JsonValue, UserFields, View, kind_of_user};
use crate::audience::{AudienceId, Class, DestinationName, Key, User};
use crate::cli::output::{printable, table};
use crate::mapping::StreamName;
use crate::run::{RunId, RunKind, Timestamp};
use crate::snapshot::{ChangeEntry, ChangeState, UserMembership};

impl View<'_> {
    pub(super) fn user(&self, user: &str) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let memberships = snapshot.memberships(user)?;
        let changes = snapshot.changes_of(user)?;
        if memberships.is_empty() && changes.is_empty() {
            self.output.note(format_args!(
                "nothing was ever decided about a user {user:?}\n\nhint: ids are compared byte by byte"
            ));
        } else if self.output.json {
            for change in &changes {
                self.output
                    .line(&ChangeLine::of(user, change, &memberships)?)?;
            }
        } else {
            self.print_memberships(&memberships)?;
            self.output.text("\nHistory\n")?;
            let rows = changes.iter().map(change_row).collect();
            self.output.text(table(&HISTORY, &[], rows))?;
        }
        Ok(())
    }

    fn print_memberships(&self, memberships: &[UserMembership]) -> anyhow::Result<()> {
        if memberships.is_empty() {
            self.output.text("Accepted now: nothing")?;
            return Ok(());
        }
        let rows = memberships.iter().map(membership_row).collect();
        self.output.text("Accepted now\n")?;
        self.output.text(table(&ACCEPTED, &[], rows))?;
        Ok(())
    }
}

const ACCEPTED: [&str; 7] = [
    "audience",
    "kind",
    "destination",
    "stream",
    "known by",
    "value",
    "since",
];

fn membership_row(membership: &UserMembership) -> Vec<String> {
    vec![
        printable(membership.key.as_str()).into_owned(),
        membership.class.as_str().to_owned(),
        printable(membership.destination.as_str()).into_owned(),
        membership.stream.name.to_string(),
        kind_of_user(membership.user).to_owned(),
        printable(&JsonValue(membership.value.as_value()).printed()).into_owned(),
        membership.since.to_string(),
    ]
}

/// The fields of `snapshot user --json`.
#[derive(Serialize)]
struct ChangeLine<'a> {
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
    stream: &'a StreamName,
    #[serde(rename = "messageId")]
    message_id: &'a str,
    state: &'static str,
    delivered_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Whether this is the change by which the user is a member, or has the value, now.
    current: bool,
}

impl<'a> ChangeLine<'a> {
    fn of(
        user: &'a str,
        change: &'a ChangeEntry,
        memberships: &[UserMembership],
    ) -> Result<Self, serde_json::Error> {
        let (state, delivered_at, reason) = state(change);
        let is_current = |membership: &UserMembership| {
            membership.run == change.run
                && membership.user == change.user
                && membership.audience == change.audience
                && membership.stream == change.stream
        };
        Ok(Self {
            audience: &change.key,
            id: &change.audience,
            destination: &change.destination,
            kind: change.class,
            user: UserFields::of(User {
                kind: change.user,
                id: user,
            }),
            value: serde_json::from_str(&change.value)?,
            run: change.run,
            run_kind: change.kind,
            decided_at: change.decided_at,
            stream: &change.stream.name,
            message_id: change.message_id.as_str(),
            state,
            delivered_at,
            reason,
            current: memberships.iter().any(is_current),
        })
    }
}

fn state(change: &ChangeEntry) -> (&'static str, Option<Timestamp>, Option<&str>) {
    match &change.state {
        ChangeState::Delivered(at) => ("delivered", *at, None),
        ChangeState::Waiting => ("waiting", None, None),
        ChangeState::Dead(reason) => ("dead", None, Some(reason)),
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
    "stream",
    "messageId",
    "run",
];

fn change_row(change: &ChangeEntry) -> Vec<String> {
    let (state, _, reason) = state(change);
    vec![
        change.decided_at.to_string(),
        printable(change.key.as_str()).into_owned(),
        printable(change.destination.as_str()).into_owned(),
        kind_of_user(change.user).to_owned(),
        printable(&change.value).into_owned(),
        change.kind.as_str().to_owned(),
        match reason {
            Some(reason) => format!("{state}: {}", printable(reason)),
            None => state.to_owned(),
        },
        change.stream.name.to_string(),
        change.message_id.to_string(),
        change.run.to_string(),
    ]
}
