//! `snapshot list`: every audience and stream.

use serde::Serialize;

use super::{View, optional};
use crate::audience::{AudienceId, Class, DestinationName, Key};
use crate::cli::held;
use crate::cli::output::{count, printable, table};
use crate::mapping::StreamName;
use crate::run::{RunId, Timestamp};
use crate::snapshot::{FeedSummary, Held};

impl View<'_> {
    pub(super) fn list(&self) -> anyhow::Result<()> {
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let feeds = snapshot.feeds()?;
        if feeds.is_empty() {
            self.output.note(
                "the snapshot knows no audience yet\n\nhint: `audience-sync sync` syncs them",
            );
        } else if self.output.json {
            for feed in &feeds {
                self.output.line(&FeedLine::of(feed))?;
            }
        } else {
            let rows = feeds.iter().map(row).collect();
            self.output
                .text(table(&LIST, &["members", "pending", "dead", "held"], rows))?;
            for feed in &feeds {
                if let Some(held) = &feed.held {
                    let (key, stream) = (&feed.key, &feed.stream.name);
                    let sample = held::sample(key.as_str(), stream.as_str(), held);
                    self.output.text(sample)?;
                }
            }
        }
        Ok(())
    }
}

const LIST: [&str; 9] = [
    "audience",
    "kind",
    "destination",
    "stream",
    "members",
    "last sync",
    "pending",
    "dead",
    "held",
];

/// The fields of `snapshot list --json`.
#[derive(Serialize)]
struct FeedLine<'a> {
    audience: &'a Key,
    id: &'a AudienceId,
    name: &'a str,
    destination: &'a DestinationName,
    stream: &'a StreamName,
    kind: Class,
    /// Its key is refused.
    retired: bool,
    members: u64,
    last_run: Option<RunId>,
    last_outcome: Option<&'a str>,
    last_synced_at: Option<Timestamp>,
    pending: u64,
    /// Removals,
    held: u64,
    /// additions,
    held_added: u64,
    /// and changes that the guard holds.
    held_changed: u64,
    dead: u64,
    #[serde(flatten)]
    hold: Option<&'a Held>,
}

impl<'a> FeedLine<'a> {
    fn of(feed: &'a FeedSummary) -> Self {
        let held = |count: fn(&Held) -> u64| feed.held.as_ref().map_or(0, count);
        Self {
            audience: &feed.key,
            id: &feed.id,
            name: &feed.name,
            destination: &feed.destination,
            stream: &feed.stream.name,
            kind: feed.class,
            retired: feed.retired,
            members: feed.members,
            last_run: feed.last_run,
            last_outcome: feed.last_outcome.as_deref(),
            last_synced_at: feed.last_synced_at,
            pending: feed.pending,
            held: held(|held| held.removals),
            held_added: held(|held| held.additions),
            held_changed: held(|held| held.changes),
            dead: feed.dead,
            hold: feed.held.as_ref(),
        }
    }
}

fn row(feed: &FeedSummary) -> Vec<String> {
    let retired = if feed.retired { " (retired)" } else { "" };
    vec![
        printable(feed.key.as_str()).into_owned(),
        format!("{}{retired}", feed.class.as_str()),
        printable(feed.destination.as_str()).into_owned(),
        feed.stream.name.to_string(),
        count(feed.members),
        optional(feed.last_synced_at),
        count(feed.pending),
        count(feed.dead),
        feed.held
            .as_ref()
            .map_or_else(|| "0".to_owned(), held::words),
    ]
}
