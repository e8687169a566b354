//! `snapshot user`: everything that was decided about one user, and why.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{JsonValue, UserFields, View, kind_of_user};
use crate::audience::{AudienceId, Class, DestinationName, Key, User};
use crate::cli::output::{printable, table};
use crate::run::{RunId, RunKind, Timestamp};
use crate::snapshot::{Deed, DeedState, Membership};

impl View<'_> {
    pub(super) fn user(&self, user: &str) -> anyhow::Result<()> {
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
