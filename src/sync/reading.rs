//! Reads a source into the plans of an audience's feeds, or finds that there is no need to.

use super::planning::PlanError;
use crate::audience::{Audience, Changes, Member, User, Value};
use crate::causes::in_one_line;
use crate::diff::{self, Follower, Members, Membership, Scope, Tally};
use crate::progress::Progress;
use crate::run::{RunKind, Timestamp};
use crate::snapshot::{
    Decided, Delivered, Journal, LastPlan, Left, Planning, Reported, Snapshot, SnapshotError,
    Watermark,
};
use crate::source::{Fingerprint, Interrupt, MembersAhead, Question, Skipped, Source, SourceError};
use crate::stop::Stop;

/// How many members are read between two looks at the clock and the signals.
const LOOK_EVERY: u64 = 4_096;

/// Reads a source into plans.
pub(super) struct Reading {
    pub(super) source: Source,
    pub(super) audience: Audience,
    pub(super) progress: Progress,
    pub(super) stop: Stop,
    pub(super) interrupt: Interrupt,
    pub(super) strategy: Strategy,
}

/// What a source comes to at first.
pub(super) enum Found {
    /// It was not modified: its members are those of the last plans, one of each feed.
    AsBefore(Vec<LastPlan>),
    /// It is being read.
    Members(Box<Begun>),
}

/// A source that is being read.
pub(super) struct Begun {
    members: MembersAhead,
    /// When that began. The time of its run may be in a time to come, where a clock was set back.
    at: Timestamp,
}

/// How the plans come to know who is in an audience.
pub(super) enum Strategy {
    /// The source was not modified: its members are those of the last plans, one of each feed.
    NotModified(Vec<LastPlan>),
    /// The source is asked whether it was modified. If it was, all of it is read.
    AskFirst(Vec<LastPlan>),
    /// The change query reports who may have entered or left since.
    Changes(Timestamp),
    /// All of it is read.
    Everyone,
    /// The same, and it is compared with what the change query reports since.
    Reconcile(Timestamp),
}

/// For how long a server's word is taken for it that nothing was modified.
const TRUST_MILLIS: i64 = 24 * 60 * 60 * 1_000;

/// What was stamped before the last plan may have been committed after it.
const OVERLAP_MILLIS: i64 = 60_000;

/// Of an audience with a change query, and why.
fn by_changes(last: &[LastPlan], left: Left, changes: &Changes) -> (Strategy, String) {
    let now = Timestamp::now();
    // Where a clock was set back, nothing is known of when that was.
    let at = last.iter().map(|last| last.at.filter(|at| *at <= now));
    let reconciled_at = last.iter().map(|last| last.reconciled_at);
    // Nothing is known where one feed knows nothing: `None` is the least.
    let Some((at, reconciled_at)) = at.min().flatten().zip(reconciled_at.min().flatten()) else {
        let why = "everyone is read, since it is not known when the change query was asked last";
        return (Strategy::Everyone, why.to_owned());
    };
    let since = Timestamp::from_millis(at.millis() - OVERLAP_MILLIS);
    let age = u128::try_from(now.millis() - reconciled_at.millis());
    let is_trusted = age.is_ok_and(|age| age < changes.reconcile.as_millis());
    let (strategy, why) = match left {
        Left::Nothing if is_trusted => (Strategy::Changes(since), "the change query is asked"),
        Left::Nothing => (
            Strategy::Reconcile(since),
            "everyone is read, to see whether the change query reports everything",
        ),
        Left::Held | Left::More => (
            Strategy::Reconcile(since),
            "everyone is read, since the guard held something in the last run",
        ),
    };
    (strategy, why.to_owned())
}

impl Reading {
    /// The cheapest strategy that leads to the same plans. Whatever is in doubt is read.
    pub(super) fn choose(
        &self,
        snapshot: &Snapshot,
        plannings: &[Planning],
    ) -> Result<Strategy, SnapshotError> {
        let (strategy, why) = self.choose_and_tell(snapshot, plannings)?;
        tracing::debug!(audience = %self.audience.id, "{why}");
        Ok(strategy)
    }

    fn choose_and_tell(
        &self,
        snapshot: &Snapshot,
        plannings: &[Planning],
    ) -> Result<(Strategy, String), SnapshotError> {
        let everyone = |why: &str| Ok((Strategy::Everyone, format!("everyone is read, {why}")));
        let needs_everyone =
            |planning: &Planning| planning.kind != RunKind::Delta || planning.approval.is_some();
        if plannings.iter().any(needs_everyone) {
            return everyone("as this kind of run needs it");
        }
        let mut last = Vec::with_capacity(plannings.len());
        for planning in plannings {
            match snapshot.last_plan(&self.audience.id, &planning.stream)? {
                Some(plan) => last.push(plan),
                None => return everyone("since nothing is known of when that was done last"),
            }
        }
        let definition = self.source.definition(&self.audience);
        if last.iter().any(|last| last.by != definition) {
            return everyone("since the audience is another one");
        }
        let left = last.iter().map(|last| last.left).max();
        let left = left.unwrap_or(Left::More);
        let what_differs = match left {
            Left::More => return everyone("since the last run failed, or left something open"),
            Left::Held => "since the guard held something in the last run".to_owned(),
            Left::Nothing if self.can_ask(&last) => {
                return Ok((
                    Strategy::AskFirst(last),
                    "the source is asked whether it was modified".to_owned(),
                ));
            }
            Left::Nothing => match self.what_differs(&last) {
                None => {
                    return Ok((
                        Strategy::NotModified(last),
                        "the source was not modified".to_owned(),
                    ));
                }
                Some(what) => what,
            },
        };
        match &self.audience.changes {
            None => everyone(&what_differs),
            Some(changes) => Ok(by_changes(&last, left, changes)),
        }
    }

    /// Whether the source can be asked, and was read not too long ago.
    fn can_ask(&self, last: &[LastPlan]) -> bool {
        let now = Timestamp::now().millis();
        let is_recent = |at: Timestamp| (0..TRUST_MILLIS).contains(&(now - at.millis()));
        self.source.tells_whether_it_changed()
            && last[0].from.is_some()
            && last
                .iter()
                .all(|plan| plan.from == last[0].from && plan.at.is_some_and(is_recent))
    }

    /// Why the source need not be what it was; `None` where it is.
    fn what_differs(&self, last: &[LastPlan]) -> Option<String> {
        if last.iter().any(|last| last.from.is_none()) {
            return Some(
                "since what the source was when that was done last is not known".to_owned(),
            );
        }
        match self.source.fingerprint(&self.audience) {
            Ok(now)
                if last
                    .iter()
                    .all(|last| last.from.as_deref() == Some(now.as_str())) =>
            {
                None
            }
            Ok(_) => Some("since the source was modified".to_owned()),
            Err(doubt) => Some(format!("since {doubt}")),
        }
    }

    /// Sees whether the source is fresh, and begins to read it if there is something to read. Comes back when there are
    /// members to compare, or when it is interrupted: a source may take long for that, so nothing of the snapshot is used.
    pub(super) fn begin(&self) -> Result<Found, SourceError> {
        self.source
            .must_be_fresh(&self.audience, Timestamp::now(), &self.interrupt)?;
        if let Strategy::NotModified(last) = &self.strategy {
            return Ok(Found::AsBefore(last.clone()));
        }
        let mut begun = self.start();
        begun.members.wait();
        if let Strategy::AskFirst(last) = &self.strategy
            && !self.interrupt.is_requested()
            && begun.members.is_as_before()
        {
            tracing::debug!(audience = %self.audience.key, "the source was not modified");
            return Ok(Found::AsBefore(last.clone()));
        }
        Ok(Found::Members(Box::new(begun)))
    }

    fn start(&self) -> Begun {
        let changes = |since| Question::Changes { since };
        let questions = match self.strategy {
            Strategy::NotModified(_) => vec![],
            Strategy::Changes(since) => vec![changes(since)],
            Strategy::Everyone | Strategy::AskFirst(_) => vec![Question::Members],
            Strategy::Reconcile(since) => vec![changes(since), Question::Members],
        };
        // What the source gets from now on is for the next runs.
        let at = Timestamp::now();
        let known = match &self.strategy {
            Strategy::AskFirst(last) => last[0].from.as_deref(),
            _ => None,
        };
        let members = self
            .source
            .start(&self.audience, &questions, known, &self.interrupt);
        Begun { members, at }
    }

    /// Compares members with those that were delivered, on the snapshot's thread.
    pub(super) fn go(
        self,
        found: Found,
        delivered: Vec<Delivered<'_>>,
        scopes: &[Scope],
        journals: &mut [Journal<'_>],
    ) -> Result<Decided, PlanError> {
        let mut begun = match found {
            Found::AsBefore(last) => return self.find_not_modified(&last),
            Found::Members(begun) => begun,
        };
        let (tallies, watermark) = match self.strategy {
            Strategy::Changes(_) => self.follow(&mut begun, &delivered, journals)?,
            Strategy::Reconcile(_) => self.reconcile(&mut begun, delivered, scopes, journals)?,
            Strategy::NotModified(_) | Strategy::AskFirst(_) | Strategy::Everyone => {
                self.merge(&mut begun, delivered, scopes, journals)?
            }
        };
        for tally in &tallies {
            Source::must_have(&self.audience, tally.members)?;
        }
        let skipped = &begun.members.skipped;
        self.warn_of(skipped);
        Ok(Decided {
            tallies,
            skipped_rows: skipped.total(),
            watermark,
        })
    }

    fn find_not_modified(&self, last: &[LastPlan]) -> Result<Decided, PlanError> {
        let skipped_rows = last[0].skipped_rows;
        if skipped_rows > 0 {
            let name = &self.audience.name;
            tracing::warn!("{name:?}: skipped {skipped_rows} rows, as when they were last read");
        }
        let mut tallies = Vec::with_capacity(last.len());
        for last in last {
            Source::must_have(&self.audience, last.members)?;
            tallies.push(Tally {
                members: last.members,
                delivered: last.members,
                ..Tally::default()
            });
        }
        Ok(Decided {
            tallies,
            skipped_rows,
            watermark: Watermark::NotModified,
        })
    }

    /// Looks up the users that the change query reports.
    fn follow(
        &self,
        begun: &mut Begun,
        delivered: &[Delivered<'_>],
        journals: &mut [Journal<'_>],
    ) -> Result<(Vec<Tally>, Watermark), PlanError> {
        let counts = delivered.iter().map(Delivered::count);
        let counts = counts.collect::<Result<Vec<_>, _>>()?;
        let find =
            |feed: usize, now: Member<'_>| delivered[feed].find(now).map_err(PlanError::from);
        let tallies = diff::follow(
            &mut Watched::new(self, &mut begun.members),
            &counts,
            find,
            |feed, change| journals[feed].push(&change).map_err(PlanError::from),
        )?;
        let by = self.source.definition(&self.audience);
        Ok((tallies, Watermark::Changes { by, at: begun.at }))
    }

    /// Merges, and counts the changes that the change query does not report, both asked of one moment.
    fn reconcile(
        &self,
        begun: &mut Begun,
        delivered: Vec<Delivered<'_>>,
        scopes: &[Scope],
        journals: &mut [Journal<'_>],
    ) -> Result<(Vec<Tally>, Watermark), PlanError> {
        let mut reported = Reported::new(&self.audience.name)?;
        let mut watched = Watched::new(self, &mut begun.members);
        let mut reports_anyone = false;
        while watched.advance()? {
            reports_anyone = true;
            reported.push(watched.user(), watched.membership())?;
        }
        let mut missed = vec![0; journals.len()];
        let tallies = diff::merge(
            &mut Watched::new(self, &mut begun.members),
            &mut followers(delivered, scopes)?,
            |feed, change| {
                missed[feed] += u64::from(!reported.has(&change)?);
                journals[feed].push(&change).map_err(PlanError::from)
            },
        )?;
        let missed = missed.into_iter().max().unwrap_or_default();
        if missed > 0 {
            tracing::warn!(
                "{:?}: the change query did not report {missed} changes; reading everyone found them. \
                 hint: it must also report rows that are deleted, or that only the time changes, and compare a column of \
                 seconds with unixepoch(:since)",
                self.audience.name
            );
            if !reports_anyone {
                self.warn_of_silence();
            }
        }
        Ok((tallies, self.everyone(begun, Some(missed))))
    }

    fn merge(
        &self,
        begun: &mut Begun,
        delivered: Vec<Delivered<'_>>,
        scopes: &[Scope],
        journals: &mut [Journal<'_>],
    ) -> Result<(Vec<Tally>, Watermark), PlanError> {
        let mut watched = Watched::new(self, &mut begun.members);
        let tallies = diff::merge(
            &mut watched,
            &mut followers(delivered, scopes)?,
            |feed, change| journals[feed].push(&change).map_err(PlanError::from),
        )?;
        if self.audience.changes.is_some() && tallies.iter().any(|tally| tally.members > 0) {
            self.warn_of_silence();
        }
        Ok((tallies, self.everyone(begun, None)))
    }

    /// The watermark of a plan for which everyone was read.
    fn everyone(&self, begun: &mut Begun, missed: Option<u64>) -> Watermark {
        Watermark::Everyone {
            by: self.source.definition(&self.audience),
            at: begun.at,
            from: begun.members.read_from.take().map(Fingerprint::into_text),
            missed,
        }
    }

    /// A change query that never reports anyone looks like one of an audience that does not change.
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
                "{name:?}: the change query reports no user, not even since 1970. hint: compare a column of seconds with \
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

fn followers<'d>(
    delivered: Vec<Delivered<'d>>,
    scopes: &[Scope],
) -> Result<Vec<Follower<Delivered<'d>>>, SnapshotError> {
    let followers = delivered.into_iter().zip(scopes);
    followers
        .map(|(delivered, scope)| Follower::new(delivered, scope.clone()))
        .collect()
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

    fn membership(&self) -> Membership {
        self.members.membership()
    }
}
