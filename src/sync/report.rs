//! What a run reports.

use serde::{Serialize, Serializer};

use crate::audience::{DestinationName, Key};
use crate::bill::{Bill, Foreseen};
use crate::firehose::Destination;
use crate::mapping::StreamName;
use crate::run::{Counts, Outcome, RunId, RunKind};
use crate::snapshot::Held;

/// What came of one run of one feed. The fields of `sync --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The key; `null` for calls that `send` left in the journal.
    pub audience: Option<Key>,
    pub destination: DestinationName,
    pub stream: StreamName,
    pub run: Option<RunId>,
    pub kind: RunKind,
    pub outcome: Outcome,
    /// In the source now; `None` where the run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<u64>,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    /// Removals that the guard holds.
    pub held: u64,
    /// Additions that the guard holds.
    pub held_added: u64,
    /// Changes that the guard holds.
    pub held_changed: u64,
    /// More about what the guard holds.
    #[serde(flatten)]
    pub hold: Option<Held>,
    /// Changes that the stream has accepted.
    pub delivered: u64,
    /// Changes that are still in the journal, or dead.
    pub undelivered: u64,
    /// Those of them that are dead: the next run decides them anew.
    #[serde(skip)]
    pub dead: u64,
    pub skipped_rows: u64,
    /// Changes that the change query had not reported, where everyone was read to see that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// Users who were asked for and are in neither the source nor the snapshot; `None` where none were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_users: Option<u64>,
    #[serde(flatten)]
    pub counts: Counts,
    /// Of a dry run: both ways to send it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bill: Option<Bill>,
    #[serde(serialize_with = "hundredths")]
    pub seconds: f64,
    /// Why it failed, or why something is not delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The configuration is at fault, and not the run.
    #[serde(skip)]
    pub misconfigured: bool,
}

fn hundredths<S: Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 100.0).round() / 100.0)
}

impl Report {
    /// A report that says nothing yet.
    pub fn new(
        audience: Option<Key>,
        destination: DestinationName,
        stream: StreamName,
        kind: RunKind,
        outcome: Outcome,
    ) -> Self {
        Self {
            audience,
            destination,
            stream,
            run: None,
            kind,
            outcome,
            members: None,
            added: 0,
            removed: 0,
            changed: 0,
            held: 0,
            held_added: 0,
            held_changed: 0,
            hold: None,
            delivered: 0,
            undelivered: 0,
            dead: 0,
            skipped_rows: 0,
            missed: None,
            unknown_users: None,
            counts: Counts::default(),
            bill: None,
            seconds: 0.0,
            error: None,
            misconfigured: false,
        }
    }

    /// Tells what would be counted.
    pub(super) fn estimate(&mut self, destination: &Destination, estimate: Foreseen) {
        self.counts += estimate.counts(destination.pack);
        self.bill = Some(destination.bill(&[estimate]));
    }

    /// Notes what the guard holds.
    pub(super) fn hold(&mut self, held: Option<Held>) {
        if let Some(held) = &held {
            self.held = held.removals;
            self.held_added = held.additions;
            self.held_changed = held.changes;
        }
        self.hold = held;
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        self.audience.as_ref().map_or("send", Key::as_str)
    }
}
