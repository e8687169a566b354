//! Reads a source into a plan, or sees that there is no need to.

use super::planning::PlanError;
use crate::audience::{Audience, Member, User, Value};
use crate::diff::{self, Members, Presence, Scope, Tally};
use crate::event::Computation;
use crate::progress::Progress;
use crate::run::{RunKind, Timestamp};
use crate::snapshot::{
    Delivered, Grounds, Journal, LastPlan, Planning, Snapshot, SnapshotError, Told,
};
use crate::source::{Fingerprint, Interrupt, MembersAhead, Question, Skipped, Source, SourceError};
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
    pub(super) way: Way,
    /// What is read already, before it is its turn.
    pub(super) ahead: Option<MembersAhead>,
}

/// How a plan comes to know who is in an audience.
pub(super) enum Way {
    /// The source is what it was: so are its members.
    AsBefore(LastPlan),
    /// The change query tells who may have entered or left since.
    Changes(Timestamp),
    /// All of it is read. It is seen whether the change query tells what has changed since, where there is a time.
    Everyone(Option<Timestamp>),
}

/// What was stamped before the last plan may have been committed after it.
const OVERLAP_MILLIS: i64 = 60_000;

impl Reading {
    /// The shortest way that leads to the same plan. Whatever is in doubt is read.
    pub(super) fn shortest_way(
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
        let everyone = |why| Ok((Way::Everyone(None), why));
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
        let Some(changes) = &self.audience.changes else {
            return everyone("everyone is read, since the source may have changed");
        };
        let now = Timestamp::now();
        // Where a clock was set back, nobody knows when that was.
        let (Some(at), Some(reconciled_at)) = (last.at.filter(|at| *at <= now), last.reconciled_at)
        else {
            return everyone("everyone is read, since it is not known when that was done last");
        };
        let since = Timestamp::from_millis(at.millis() - OVERLAP_MILLIS);
        let age = now.millis() - reconciled_at.millis();
        Ok(match u128::try_from(age) {
            Ok(age) if age < changes.reconcile.as_millis() => {
                (Way::Changes(since), "the change query is asked")
            }
            _ => (
                Way::Everyone(Some(since)),
                "everyone is read, to see whether the change query tells everything",
            ),
        })
    }

    /// Begins to read before it is its turn, if there is something to read.
    pub(super) fn begin(&mut self) {
        if !matches!(self.way, Way::AsBefore(_)) {
            self.ahead = Some(self.start());
        }
    }

    fn start(&self) -> MembersAhead {
        let changes = |since| Question::Changes { since };
        let questions = match self.way {
            Way::AsBefore(_) => vec![],
            Way::Changes(since) => vec![changes(since)],
            Way::Everyone(None) => vec![Question::Members],
            Way::Everyone(Some(since)) => vec![changes(since), Question::Members],
        };
        self.source
            .start(&self.audience, &questions, &self.interrupt)
    }

    pub(super) fn go(
        mut self,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, u64), PlanError> {
        if let Way::AsBefore(last) = &self.way {
            return Ok(self.find_as_before(last, journal));
        }
        let mut members = self.ahead.take().unwrap_or_else(|| self.start());
        let (tally, grounds) = match self.way {
            Way::Changes(_) => self.follow(&mut members, delivered, journal)?,
            Way::Everyone(Some(_)) => self.reconcile(&mut members, delivered, journal)?,
            _ => self.merge(&mut members, delivered, journal)?,
        };
        journal.rest_on(grounds);
        self.warn_of(&members.skipped);
        Ok((tally, members.skipped.total()))
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

    /// Looks those up whom the change query tells of.
    fn follow(
        &self,
        members: &mut MembersAhead,
        delivered: &Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let count = delivered.count()?;
        let find = |user: User<'_>| delivered.find(user).map_err(PlanError::from);
        let tally = diff::follow(&mut Watched::new(self, members), count, find, |change| {
            journal.push(&change).map_err(PlanError::from)
        })?;
        let by = self.source.definition(&self.audience);
        Ok((tally, Grounds::Changes { by }))
    }

    /// Merges, and sees of which changes the change query does not tell, both asked of one moment.
    fn reconcile(
        &self,
        members: &mut MembersAhead,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let mut told = Told::new(&self.audience.name)?;
        let mut watched = Watched::new(self, members);
        while watched.advance()? {
            told.push(watched.user(), watched.presence())?;
        }
        let mut missed = 0;
        let tally = diff::merge(
            &mut Watched::new(self, members),
            delivered,
            self.scope,
            |change| {
                missed += u64::from(!told.has(&change)?);
                journal.push(&change).map_err(PlanError::from)
            },
        )?;
        if missed > 0 {
            tracing::warn!(
                "{:?}: the change query did not tell of {missed} changes; reading everyone found them. \
                 hint: it must also tell of rows that are deleted, or that only the time changes",
                self.audience.name
            );
        }
        Ok((tally, self.everyone(members, Some(missed))))
    }

    fn merge(
        &self,
        members: &mut MembersAhead,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let mut watched = Watched::new(self, members);
        let tally = diff::merge(&mut watched, delivered, self.scope, |change| {
            journal.push(&change).map_err(PlanError::from)
        })?;
        Ok((tally, self.everyone(members, None)))
    }

    /// What a plan rests on for which everyone was read.
    fn everyone(&self, members: &mut MembersAhead, missed: Option<u64>) -> Grounds {
        Grounds::Everyone {
            by: self.source.definition(&self.audience),
            from: members.read_from.take().map(Fingerprint::into_text),
            missed,
        }
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

impl<'r, M> Watched<'r, M> {
    const fn new(reading: &'r Reading, members: &'r mut M) -> Self {
        Self {
            members,
            read: 0,
            reading,
        }
    }
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

    fn user(&self) -> User<'_> {
        self.members.user()
    }

    fn value(&self) -> Value<'_> {
        self.members.value()
    }

    fn presence(&self) -> Presence {
        self.members.presence()
    }
}
