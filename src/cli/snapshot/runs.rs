//! `snapshot runs`: the history of runs.

use serde::Serialize;

use super::{RUN, TIME, View, widest};
use crate::audience::keys::Known;
use crate::audience::{AudienceId, DestinationName, Key};
use crate::cli::output::{Column, Lines, count, printable};
use crate::mapping::StreamName;
use crate::run::{Outcome, RunId, RunKind, Timestamp};
use crate::snapshot::RunSummary;

impl View<'_> {
    pub(super) fn runs(&self, word: Option<&str>, limit: u64) -> anyhow::Result<()> {
        let id = word.map(|word| self.find(word)).transpose()?;
        let Some(snapshot) = self.snapshot() else {
            return Ok(());
        };
        let known = snapshot.known()?;
        let columns = run_columns(&known);
        let mut lines = Lines::new();
        let mut runs: u64 = 0;
        snapshot.each_run(id.as_ref(), limit, |run| {
            let key = run.key.clone().or_else(|| self.configured_key(&run));
            if self.output.json {
                lines.object(&RunLine::of(&run, key.as_ref()))?;
            } else {
                if runs == 0 {
                    lines.header(&columns)?;
                }
                lines.row(&columns, &run_row(&run, key.as_ref()))?;
            }
            runs += 1;
            anyhow::Ok(())
        })?;
        lines.finish()?;
        if runs == limit {
            self.output.note(format_args!(
                "\nhint: these are the newest {}; `--limit N` shows more",
                count(limit)
            ));
        }
        match (&id, runs) {
            (Some(id), 0) => self.note_unsynced(id),
            (None, 0) => self.output.note("nothing has run yet"),
            _ => {}
        }
        Ok(())
    }

    /// What the schedules call an audience whose runs have all failed so far.
    fn configured_key(&self, run: &RunSummary) -> Option<Key> {
        let id = run.audience.as_ref()?;
        let mut configured = self.config.audiences();
        let configured = configured.find(|configured| configured.audience.id == *id);
        configured.map(|configured| configured.audience.key.clone())
    }
}

/// The fields of `snapshot runs --json`.
#[derive(Serialize)]
struct RunLine<'a> {
    run: RunId,
    audience: Option<&'a Key>,
    id: Option<&'a AudienceId>,
    destination: &'a DestinationName,
    stream: &'a StreamName,
    kind: RunKind,
    outcome: &'a str,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    members: u64,
    added: u64,
    removed: u64,
    changed: u64,
    held: u64,
    held_added: u64,
    held_changed: u64,
    skipped_rows: u64,
    delivered: u64,
    pending: u64,
    dead: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> RunLine<'a> {
    fn of(run: &'a RunSummary, key: Option<&'a Key>) -> Self {
        Self {
            run: run.id,
            audience: key,
            id: run.audience.as_ref(),
            destination: &run.destination,
            stream: &run.stream.name,
            kind: run.kind,
            outcome: outcome(run),
            started_at: run.started_at,
            finished_at: run.finished_at,
            members: run.members,
            added: run.added,
            removed: run.removed,
            changed: run.changed,
            held: run.held,
            held_added: run.held_added,
            held_changed: run.held_changed,
            skipped_rows: run.skipped_rows,
            delivered: run.delivered,
            pending: run.pending,
            dead: run.dead,
            error: run.error.as_deref(),
        }
    }
}

/// A run without an outcome goes on now, or was interrupted: while changes wait it is unfinished, and the next sync
/// finishes it. Where none wait, all that was missing was the last note, so the counts tell the outcome.
fn outcome(run: &RunSummary) -> &str {
    let by_counts = if run.pending > 0 {
        return run.outcome.as_deref().unwrap_or("unfinished");
    } else if run.dead > 0 {
        Outcome::Undelivered
    } else if held(run) > 0 {
        Outcome::Held
    } else if run.delivered > 0 {
        Outcome::Delivered
    } else {
        Outcome::Unchanged
    };
    run.outcome.as_deref().unwrap_or(by_counts.as_str())
}

/// Everything that the guard kept back.
const fn held(run: &RunSummary) -> u64 {
    run.held + run.held_added + run.held_changed
}

fn run_columns(known: &[Known]) -> [Column; 15] {
    let keys = known.iter().map(|known| known.key.as_str());
    [
        Column::text("run", RUN),
        Column::text("audience", widest(keys)),
        Column::text("stream", 12),
        Column::text("kind", "resync".len()),
        Column::text("outcome", "undelivered".len()),
        Column::text("started at", TIME),
        Column::number("members"),
        Column::number("added"),
        Column::number("removed"),
        Column::number("changed"),
        Column::number("held"),
        Column::number("delivered"),
        Column::number("pending"),
        Column::number("dead"),
        Column::text("error", 0),
    ]
}

fn run_row(run: &RunSummary, key: Option<&Key>) -> [String; 15] {
    let audience = match (key, &run.audience) {
        (Some(key), _) => printable(key.as_str()).into_owned(),
        (None, Some(id)) => printable(id.as_str()).into_owned(),
        (None, None) => "(send)".to_owned(),
    };
    // The rest of an error is its hint.
    let error = run.error.as_deref().and_then(|error| error.lines().next());
    [
        run.id.to_string(),
        audience,
        run.stream.name.to_string(),
        run.kind.as_str().to_owned(),
        outcome(run).to_owned(),
        run.started_at.to_string(),
        count(run.members),
        count(run.added),
        count(run.removed),
        count(run.changed),
        count(held(run)),
        count(run.delivered),
        count(run.pending),
        count(run.dead),
        printable(error.unwrap_or_default()).into_owned(),
    ]
}
