//! Reads a source into a plan, or sees that there is no need to.

use super::planning::PlanError;
use crate::audience::{Audience, Member};
use crate::diff::{self, Members, Scope, Tally};
use crate::event::Computation;
use crate::progress::Progress;
use crate::run::RunKind;
use crate::snapshot::{Delivered, Grounds, Journal, LastPlan, Planning, Snapshot, SnapshotError};
use crate::source::{Fingerprint, Interrupt, Skipped, Source, SourceError};
use crate::stop::Stop;

/// How many members are read between two looks at the clock and the signals.
const LOOK_EVERY: u64 = 4_096;

/// Reads a source into a plan, on the snapshot's thread.
pub(super) struct Reading {
    pub(super) source: Source,
    pub(super) audience: Audience,
    pub(super) scope: Scope,
    pub(super) progress: Progress,
    pub(super) stop: Stop,
    pub(super) interrupt: Interrupt,
}

/// How a plan comes to know who is in an audience.
pub(super) enum Way {
    /// The source is what it was: so are its members.
    AsBefore(LastPlan),
    /// All of it is read.
    Everyone,
}

impl Reading {
    /// The shortest way that leads to the same plan. Whatever is in doubt is read.
    pub(super) fn way(
        &self,
        snapshot: &Snapshot,
        planning: &Planning,
    ) -> Result<Way, SnapshotError> {
        let (way, why) = self.way_and_why(snapshot, planning)?;
        let Computation {
            audience,
            destination,
            ..
        } = &planning.computation;
        tracing::debug!(%audience, %destination, "{why}");
        Ok(way)
    }

    fn way_and_why(
        &self,
        snapshot: &Snapshot,
        planning: &Planning,
    ) -> Result<(Way, &'static str), SnapshotError> {
        let everyone = |why| Ok((Way::Everyone, why));
        if planning.kind != RunKind::Delta || planning.approve {
            return everyone("everyone is read, as this kind of run needs it");
        }
        let Some(last) = snapshot.last_plan(&planning.computation)? else {
            return everyone("everyone is read, since the last run left something open");
        };
        if last.by != self.source.definition(&self.audience) {
            return everyone("everyone is read, since the audience is another one");
        }
        let now = self.source.fingerprint();
        if now.is_some() && now.as_ref().map(Fingerprint::as_str) == last.from.as_deref() {
            return Ok((Way::AsBefore(last), "the source has not changed"));
        }
        everyone("everyone is read, since the source may have changed")
    }

    pub(super) fn go(
        &self,
        way: &Way,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, u64), PlanError> {
        match way {
            Way::AsBefore(last) => Ok(self.find_as_before(last, journal)),
            Way::Everyone => self.merge(delivered, journal),
        }
    }

    fn find_as_before(&self, last: &LastPlan, journal: &mut Journal<'_>) -> (Tally, u64) {
        if last.skipped_rows > 0 {
            let (name, skipped) = (&self.audience.name, last.skipped_rows);
            tracing::warn!("{name:?}: skipped {skipped} rows, as when they were last read");
        }
        journal.rest_on(Grounds::AsBefore);
        let tally = Tally {
            members: last.members,
            delivered: last.members,
            ..Tally::default()
        };
        (tally, last.skipped_rows)
    }

    fn merge(
        &self,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, u64), PlanError> {
        self.source
            .read(&self.audience, &self.interrupt, |members| {
                let mut watched = Watched {
                    members,
                    read: 0,
                    reading: self,
                };
                let tally = diff::merge(&mut watched, delivered, self.scope, |change| {
                    journal.push(&change).map_err(PlanError::from)
                })?;
                journal.rest_on(Grounds::Everyone {
                    by: self.source.definition(&self.audience),
                    from: members.read_from.take().map(Fingerprint::into_text),
                });
                self.warn_of(&members.skipped);
                Ok((tally, members.skipped.total()))
            })
    }

    fn warn_of(&self, skipped: &Skipped) {
        let name = &self.audience.name;
        if skipped.total() > 0 {
            let (rows, reasons) = (skipped.total(), skipped.explain());
            tracing::warn!("{name:?}: skipped {rows} rows: {reasons}");
        }
        if skipped.traits > 0 {
            let traits = skipped.traits;
            tracing::warn!(
                "{name:?}: {traits} extra traits are infinite or not UTF-8, and go as null"
            );
        }
    }
}

/// Members that are counted as they pass, and that stop when asked to.
struct Watched<'r, M> {
    members: &'r mut M,
    read: u64,
    reading: &'r Reading,
}

impl<M: Members<Error = SourceError>> Members for Watched<'_, M> {
    type Error = PlanError;

    fn advance(&mut self) -> Result<bool, PlanError> {
        self.read += 1;
        if self.read.is_multiple_of(LOOK_EVERY) {
            self.reading.progress.read(self.read);
            if self.reading.stop.is_requested() {
                return Err(PlanError::Stopped);
            }
        }
        Ok(self.members.advance()?)
    }

    fn current(&self) -> Member<'_> {
        self.members.current()
    }
}
