//! `snapshot list`: every audience at every destination.

use serde::Serialize;

use super::{View, optional};
use crate::audience::{AudienceId, Class, DestinationName, Key};
use crate::cli::held;
use crate::cli::output::{count, printable, table};
use crate::run::{RunId, Timestamp};
use crate::snapshot::{AudienceSummary, Held};

impl View<'_> {
    pub(super) fn list(&self) -> anyhow::Result<()> {
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
