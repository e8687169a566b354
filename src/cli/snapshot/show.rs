//! `snapshot show`: the members that each stream has accepted.

use serde::Serialize;

use super::{JsonValue, RUN, TIME, UserFields, View, kind_of_user, widest};
use crate::audience::{Class, DestinationName};
use crate::cli::output::{Column, Lines, printable};
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};
use crate::snapshot::{FeedSummary, MemberSummary};

impl View<'_> {
    pub(super) fn show(&self, word: &str) -> anyhow::Result<()> {
        let id = self.find(word)?;
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let mut feeds = snapshot.feeds()?;
        feeds.retain(|feed| feed.id == id);
        if feeds.is_empty() {
            self.note_unsynced(&id);
            return Ok(());
        }
        let mut lines = Lines::new();
        let columns = member_columns(&feeds);
        let mut members: u64 = 0;
        for feed in &feeds {
            snapshot.each_member(&id, &feed.stream, |member| {
                if self.output.json {
                    lines.object(&MemberLine::of(&member, feed))?;
                } else {
                    if members == 0 {
                        lines.header(&columns)?;
                    }
                    lines.row(&columns, &member_row(&member, &columns, feed))?;
                }
                members += 1;
                anyhow::Ok(())
            })?;
        }
        lines.finish()?;
        if members == 0 {
            self.output.note(format_args!(
                "no stream has accepted members of `{}`, or all of them have left",
                feeds[0].key
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
    stream: &'a StreamName,
    since: Timestamp,
    run: RunId,
}

impl<'a> MemberLine<'a> {
    fn of(member: &'a MemberSummary<'_>, feed: &'a FeedSummary) -> Self {
        Self {
            user: UserFields::of(member.user),
            value: JsonValue(member.value.as_value()),
            destination: &feed.destination,
            stream: &feed.stream.name,
            since: member.since,
            run: member.run,
        }
    }
}

/// The id comes last: only it can have any length.
fn member_columns(feeds: &[FeedSummary]) -> Vec<Column> {
    let mut columns = vec![Column::text("since", TIME), Column::text("run", RUN)];
    if feeds.len() > 1 {
        let destinations = || feeds.iter().map(|feed| feed.destination.as_str());
        // Streams of one name may be in several places.
        if destinations().any(|name| name != feeds[0].destination.as_str()) {
            columns.push(Column::text("destination", widest(destinations())));
        }
        let streams = feeds.iter().map(|feed| feed.stream.name.as_str());
        columns.push(Column::text("stream", widest(streams)));
    }
    if feeds.iter().any(|feed| feed.class == Class::Trait) {
        columns.push(Column::text("value", 12));
    }
    columns.push(Column::text("known by", "anonymous_id".len()));
    columns.push(Column::text("user", 0));
    columns
}

fn member_row(member: &MemberSummary<'_>, columns: &[Column], feed: &FeedSummary) -> Vec<String> {
    columns
        .iter()
        .map(|column| match column.name {
            "since" => member.since.to_string(),
            "run" => member.run.to_string(),
            "destination" => printable(feed.destination.as_str()).into_owned(),
            "stream" => feed.stream.name.to_string(),
            "value" => printable(&JsonValue(member.value.as_value()).printed()).into_owned(),
            "known by" => kind_of_user(member.user.kind).to_owned(),
            _ => printable(member.user.id).into_owned(),
        })
        .collect()
}
