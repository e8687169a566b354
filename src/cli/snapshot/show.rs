//! `snapshot show`: the members that Firehose has accepted.

use serde::Serialize;

use super::{JsonValue, RUN, TIME, UserFields, View, kind_of_user, widest_destination};
use crate::audience::keys::Known;
use crate::audience::{Class, DestinationName};
use crate::cli::output::{Column, Lines, printable};
use crate::run::{RunId, Timestamp};
use crate::snapshot::MemberSummary;

impl View<'_> {
    pub(super) fn show(&self, word: &str) -> anyhow::Result<()> {
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
