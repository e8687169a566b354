//! What a run says of itself.

use serde::{Serialize, Serializer};

use crate::audience::{DestinationName, Key};
use crate::bill::{Bill, Foreseen};
use crate::firehose::Destination;
use crate::run::{Counts, Outcome, RunId, RunKind};
use crate::snapshot::{Approval, Held};

/// What came of one run of one audience at one destination. The fields of `sync --json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The key; `null` for calls that `send` left in the journal.
    pub audience: Option<Key>,
    pub destination: DestinationName,
    pub run: Option<RunId>,
    pub kind: RunKind,
    pub outcome: Outcome,
    /// In the source now.
    pub members: u64,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    /// Removals that the guard keeps back,
    pub held: u64,
    /// and more about them.
    #[serde(flatten)]
    pub hold: Option<Held>,
    /// How the removals that were approved compare with those that an earlier run held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
    /// Changes that Firehose accepted.
    pub delivered: u64,
    /// Changes that are still in the journal, or dead.
    pub undelivered: u64,
    /// Those of them that are dead: the next run decides them anew.
    #[serde(skip)]
    pub dead: u64,
    pub skipped_rows: u64,
    /// Changes that the change query had not told of, where everyone was read to see that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
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
        kind: RunKind,
        outcome: Outcome,
    ) -> Self {
        Self {
            audience,
            destination,
            run: None,
            kind,
            outcome,
            members: 0,
            added: 0,
            removed: 0,
            changed: 0,
            held: 0,
            hold: None,
            approved: None,
            delivered: 0,
            undelivered: 0,
            dead: 0,
            skipped_rows: 0,
            missed: None,
            counts: Counts::default(),
            bill: None,
            seconds: 0.0,
            error: None,
            misconfigured: false,
        }
    }

    /// Says what would be counted, by what each stream would be sent.
    pub(super) fn foresee(&mut self, destination: &Destination, streams: &[Foreseen]) {
        for foreseen in streams {
            self.counts += foreseen.counts(destination.pack);
        }
        self.bill = Some(destination.bill(streams));
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        self.audience.as_ref().map_or("send", Key::as_str)
    }
}
