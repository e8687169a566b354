//! Reads a source into a plan, or sees that there is no need to.

use super::planning::PlanError;
use crate::audience::{Audience, Changes, Member, User, Value};
use crate::causes::in_one_line;
use crate::diff::{self, Members, Presence, Scope, Tally};
use crate::event::Computation;
use crate::progress::Progress;
use crate::run::{RunKind, Timestamp};
use crate::snapshot::{
    Delivered, Grounds, Journal, LastPlan, Left, Planning, Snapshot, SnapshotError, Told,
};
use crate::source::{Fingerprint, Interrupt, MembersAhead, Question, Skipped, Source, SourceError};
use crate::stop::Stop;

/// How many members are read between two looks at the clock and the signals.
const LOOK_EVERY: u64 = 4_096;

/// Reads a source into a plan, on the snapshot's thread.
pub(super) struct Reading {
    /// When its run began.
    pub(super) started_at: Timestamp,
    pub(super) source: Source,
    pub(super) audience: Audience,
    pub(super) scope: Scope,
    pub(super) progress: Progress,
    pub(super) stop: Stop,
    pub(super) interrupt: Interrupt,
    pub(super) way: Way,
    /// What is read already, before it is its turn.
    pub(super) begun: Option<Begun>,
}

/// A source that is being read.
pub(super) struct Begun {
    members: MembersAhead,
    /// When its run began, and no later than it is read: where a clock was set back, a start is in a time to come.
    at: Timestamp,
}

/// How a plan comes to know who is in an audience.
pub(super) enum Way {
    /// The source is what it was: so are its members.
    AsBefore(LastPlan),
    /// The source is asked whether it is what it was. If it is not, all of it is read.
    Ask(LastPlan),
    /// The change query tells who may have entered or left since.
    Changes(Timestamp),
    /// All of it is read.
    Everyone,
    /// The same, and it is seen whether the change query tells what has changed since.
    Reconcile(Timestamp),
}

/// For how long a server's word is taken for it that nothing has changed.
const TRUST_MILLIS: i64 = 24 * 60 * 60 * 1_000;

/// What was stamped before the last plan may have been committed after it.
const OVERLAP_MILLIS: i64 = 60_000;

/// Of an audience with a change query, and why.
fn way_by_changes(last: &LastPlan, changes: &Changes) -> (Way, String) {
    let now = Timestamp::now();
    // Where a clock was set back, nobody knows when that was.
    let at = last.at.filter(|at| *at <= now);
    let Some((at, reconciled_at)) = at.zip(last.reconciled_at) else {
        let why = "everyone is read, since it is not known when the change query was asked last";
        return (Way::Everyone, why.to_owned());
    };
    let since = Timestamp::from_millis(at.millis() - OVERLAP_MILLIS);
    let age = u128::try_from(now.millis() - reconciled_at.millis());
    let is_trusted = age.is_ok_and(|age| age < changes.reconcile.as_millis());
    let (way, why) = match last.left {
        Left::Nothing if is_trusted => (Way::Changes(since), "the change query is asked"),
        Left::Nothing => (
            Way::Reconcile(since),
            "everyone is read, to see whether the change query tells everything",
        ),
        Left::Held | Left::More => (
            Way::Reconcile(since),
            "everyone is read, since the last run held removals",
        ),
    };
    (way, why.to_owned())
}

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
    ) -> Result<(Way, String), SnapshotError> {
        let everyone = |why: &str| Ok((Way::Everyone, format!("everyone is read, {why}")));
        if planning.kind != RunKind::Delta || planning.approve {
            return everyone("as this kind of run needs it");
        }
        let Some(last) = snapshot.last_plan(&planning.computation)? else {
            return everyone("since nothing is known of when that was done last");
        };
        if last.by != self.source.definition(&self.audience) {
            return everyone("since the audience is another one");
        }
        let what_differs = match last.left {
            Left::More => return everyone("since the last run failed, or left something open"),
            Left::Held => "since the last run held removals".to_owned(),
            Left::Nothing if self.can_ask(&last) => {
                return Ok((
                    Way::Ask(last),
                    "the source is asked whether it has changed".to_owned(),
                ));
            }
            Left::Nothing => match self.what_differs(&last) {
                None => return Ok((Way::AsBefore(last), "the source has not changed".to_owned())),
                Some(what) => what,
            },
        };
        match &self.audience.changes {
            None => everyone(&what_differs),
            Some(changes) => Ok(way_by_changes(&last, changes)),
        }
    }

    /// Whether the source can be asked, and was read not too long ago.
    fn can_ask(&self, last: &LastPlan) -> bool {
        let now = Timestamp::now().millis();
        let is_recent = |at: Timestamp| (0..TRUST_MILLIS).contains(&(now - at.millis()));
        self.source.tells_whether_it_changed()
            && last.from.is_some()
            && last.at.is_some_and(is_recent)
    }

    /// Why the source need not be what it was; `None` where it is.
    fn what_differs(&self, last: &LastPlan) -> Option<String> {
        let Some(from) = &last.from else {
            return Some(
                "since what the source was when that was done last is not known".to_owned(),
            );
        };
        match self.source.fingerprint(&self.audience) {
            Ok(now) if now.as_str() == from => None,
            Ok(_) => Some("since the source has changed".to_owned()),
            Err(doubt) => Some(format!("since {doubt}")),
        }
    }

    /// Begins to read before it is its turn, if there is something to read. One reading after another would leave writers
    /// no moment in between.
    pub(super) fn begin(&mut self) {
        if !matches!(self.way, Way::AsBefore(_)) && !self.source.keeps_writers_waiting() {
            self.begun = Some(self.start());
        }
    }

    fn start(&self) -> Begun {
        let changes = |since| Question::Changes { since };
        let questions = match self.way {
            Way::AsBefore(_) => vec![],
            Way::Changes(since) => vec![changes(since)],
            Way::Everyone | Way::Ask(_) => vec![Question::Members],
            Way::Reconcile(since) => vec![changes(since), Question::Members],
        };
        // Before anything is read.
        let at = self.started_at.min(Timestamp::now());
        let known = match &self.way {
            Way::Ask(last) => last.from.as_deref(),
            _ => None,
        };
        let members = self
            .source
            .start(&self.audience, &questions, known, &self.interrupt);
        Begun { members, at }
    }

    pub(super) fn go(
        mut self,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, u64), PlanError> {
        self.source
            .must_be_fresh(&self.audience, Timestamp::now(), &self.interrupt)?;
        if let Way::AsBefore(last) = &self.way {
            return self.find_as_before(last, journal);
        }
        let mut begun = self.begun.take().unwrap_or_else(|| self.start());
        let (tally, grounds) = match &self.way {
            Way::Ask(last) if begun.members.is_as_before() => {
                tracing::debug!(audience = %self.audience.key, "the source has not changed");
                return self.find_as_before(last, journal);
            }
            Way::Changes(_) => self.follow(&mut begun, delivered, journal)?,
            Way::Reconcile(_) => self.reconcile(&mut begun, delivered, journal)?,
            Way::AsBefore(_) | Way::Ask(_) | Way::Everyone => {
                self.merge(&mut begun, delivered, journal)?
            }
        };
        Source::must_have(&self.audience, tally.members)?;
        journal.rest_on(grounds);
        let skipped = &begun.members.skipped;
        self.warn_of(skipped);
        Ok((tally, skipped.total()))
    }

    fn find_as_before(
        &self,
        last: &LastPlan,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, u64), PlanError> {
        Source::must_have(&self.audience, last.members)?;
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
        Ok((tally, last.skipped_rows))
    }

    /// Looks those up whom the change query tells of.
    fn follow(
        &self,
        begun: &mut Begun,
        delivered: &Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let count = delivered.count()?;
        let find = |user: User<'_>| delivered.find(user).map_err(PlanError::from);
        let tally = diff::follow(
            &mut Watched::new(self, &mut begun.members),
            count,
            find,
            |change| journal.push(&change).map_err(PlanError::from),
        )?;
        let by = self.source.definition(&self.audience);
        Ok((tally, Grounds::Changes { by, at: begun.at }))
    }

    /// Merges, and sees of which changes the change query does not tell, both asked of one moment.
    fn reconcile(
        &self,
        begun: &mut Begun,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let mut told = Told::new(&self.audience.name)?;
        let mut watched = Watched::new(self, &mut begun.members);
        let mut tells_of_anybody = false;
        while watched.advance()? {
            tells_of_anybody = true;
            told.push(watched.user(), watched.presence())?;
        }
        let mut missed = 0;
        let tally = diff::merge(
            &mut Watched::new(self, &mut begun.members),
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
                 hint: it must also tell of rows that are deleted, or that only the time changes, and compare a column of \
                 seconds with unixepoch(:since)",
                self.audience.name
            );
            if !tells_of_anybody {
                self.warn_of_silence();
            }
        }
        Ok((tally, self.everyone(begun, Some(missed))))
    }

    fn merge(
        &self,
        begun: &mut Begun,
        delivered: &mut Delivered<'_>,
        journal: &mut Journal<'_>,
    ) -> Result<(Tally, Grounds), PlanError> {
        let mut watched = Watched::new(self, &mut begun.members);
        let tally = diff::merge(&mut watched, delivered, self.scope, |change| {
            journal.push(&change).map_err(PlanError::from)
        })?;
        if self.audience.changes.is_some() && tally.members > 0 {
            self.warn_of_silence();
        }
        Ok((tally, self.everyone(begun, None)))
    }

    /// What a plan rests on for which everyone was read.
    fn everyone(&self, begun: &mut Begun, missed: Option<u64>) -> Grounds {
        Grounds::Everyone {
            by: self.source.definition(&self.audience),
            at: begun.at,
            from: begun.members.read_from.take().map(Fingerprint::into_text),
            missed,
        }
    }

    /// A change query that never tells of anybody looks like one of an audience that does not change.
    fn warn_of_silence(&self) {
        let name = &self.audience.name;
        match self
            .source
            .tells_of_anybody(&self.audience, &self.interrupt)
        {
            Ok(true) => {}
            // Interrupted, most likely.
            _ if self.stop.is_requested() => {}
            Ok(false) => tracing::warn!(
                "{name:?}: the change query tells of nobody, not even since 1970. hint: compare a column of seconds with \
                 unixepoch(:since); a log of changes may still be empty"
            ),
            // Everyone was read, and nothing rests on it yet.
            Err(error) => tracing::warn!("{name:?}: {}", in_one_line(&error)),
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
