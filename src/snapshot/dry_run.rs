//! A dry run: the same decisions as a plan, and nothing written.
//!
//! Another process may be delivering meanwhile, for hours. So this only reads, in one deferred transaction: it keeps
//! no other process from writing and waits for none. What waits in the journal is laid over the members in a temporary
//! table.

use rusqlite::{Connection, params};

use super::held::last_shown;
use super::journal::{Credit, take, unreadable};
use super::members::{SelectMembers, SqlUser, SqlValue};
use super::plan::{Decided, feed_of};
use super::writer::is_full;
use super::{
    Delivered, Held, Journal, JournaledRun, Plan, Planning, Snapshot, SnapshotError, chunk, streams,
};
use crate::audience::{Action, Change, traits_hash};
use crate::batch::{LineBuffer, Lines};
use crate::bill::Foreseen;
use crate::diff::Tally;

const PENDING: &str = "
    CREATE TEMP TABLE IF NOT EXISTS pending (
        feed         INTEGER NOT NULL,
        user         ANY NOT NULL,
        anonymous_id TEXT,
        value        ANY,
        is_member    INTEGER NOT NULL,
        traits_hash  INTEGER,
        PRIMARY KEY (feed, user)
    ) WITHOUT ROWID, STRICT";

const ORDERED_WITH_PENDING: &str = "
    SELECT user, anonymous_id, value, traits_hash FROM membership
    WHERE feed = ?1 AND NOT EXISTS
        (SELECT 1 FROM pending WHERE pending.feed = ?1 AND pending.user = membership.user)
    UNION ALL
    SELECT user, anonymous_id, value, traits_hash FROM pending WHERE feed = ?1 AND is_member
    ORDER BY user";

impl Snapshot {
    /// Decides runs as if all that waits in the journal had been delivered, and forgets them again. Each chunk that they
    /// would write is weighed by the estimate of its feed.
    pub fn dry_run<E: From<SnapshotError>>(
        &mut self,
        plannings: &[Planning],
        estimates: &[Estimate<'_>],
        decide: impl FnOnce(Vec<Delivered<'_>>, &mut [Journal<'_>]) -> Result<Decided, E>,
    ) -> Result<Vec<Plan>, E> {
        // Otherwise not even a temporary table may be written.
        self.connection
            .pragma_update(None, "query_only", false)
            .map_err(SnapshotError::from)?;
        // It ends without a commit.
        let transaction = self
            .connection
            .unchecked_transaction()
            .map_err(SnapshotError::from)?;
        let waiting = self.waiting()?;
        let mut feeds = Vec::new();
        let mut selects = Vec::new();
        let mut journals = Vec::new();
        for (planning, estimate) in plannings.iter().zip(estimates) {
            let audience = &planning.computation.audience;
            let stream = streams::find(&transaction, &planning.stream)?;
            let feed = feed_of(&transaction, audience, stream)?;
            let waiting: Vec<&JournaledRun> = waiting
                .iter()
                .filter(|run| feed.is_some() && run.feed == feed)
                .collect();
            let (class, refresh) = (planning.computation.class, planning.refresh);
            selects.push(match waiting.is_empty() {
                true => SelectMembers::of(&transaction, feed, class, refresh)?,
                false => {
                    lay_over(&transaction, feed, &waiting, refresh)?;
                    SelectMembers::from_query(&transaction, feed, ORDERED_WITH_PENDING, refresh)?
                }
            });
            journals.push(Journal::estimate(planning, *estimate));
            feeds.push((feed, last_shown(&transaction, planning, stream)?));
        }
        let delivered = selects.iter_mut().map(SelectMembers::read);
        let decided = decide(delivered.collect::<Result<_, _>>()?, &mut journals)?;
        let mut plans = Vec::new();
        let feeds = plannings
            .iter()
            .zip(feeds)
            .zip(journals)
            .zip(&decided.tallies);
        for (((planning, (feed, shown)), mut journal), tally) in feeds {
            let held = journal.held(planning, tally, shown);
            let estimate = journal.close(held.as_ref())?;
            plans.push(Plan {
                run: would_be(planning, feed, tally, held.as_ref()),
                tally: *tally,
                held,
                skipped_rows: decided.skipped_rows,
                missed: decided.watermark.missed(),
                estimate,
            });
        }
        Ok(plans)
    }
}

/// Tells what the lines of a chunk come to at a stream.
pub type Estimate<'w> = &'w (dyn Fn(&Lines) -> Foreseen + Sync);

/// Renders chunks and weighs them in place of writing them.
pub(super) struct Estimator<'w> {
    estimate: Estimate<'w>,
    lines: LineBuffer,
    count: u64,
    bytes: usize,
    sum: Foreseen,
}

impl<'w> Estimator<'w> {
    pub(super) fn new(estimate: Estimate<'w>) -> Self {
        Self {
            estimate,
            lines: LineBuffer::default(),
            count: 0,
            bytes: 0,
            sum: Foreseen::default(),
        }
    }

    /// Adds an entry whose line takes at most `bytes`.
    pub(super) fn push(&mut self, bytes: usize, render: impl FnOnce(&mut Vec<u8>)) {
        if is_full(self.count, self.bytes, bytes) {
            self.flush();
        }
        self.lines.push(render);
        self.count += 1;
        self.bytes += bytes;
    }

    fn flush(&mut self) {
        let next = LineBuffer::with_capacity(self.bytes);
        let lines = std::mem::replace(&mut self.lines, next).finish();
        self.sum += (self.estimate)(&lines);
        (self.count, self.bytes) = (0, 0);
    }

    pub(super) fn finish(mut self) -> Foreseen {
        self.flush();
        self.sum
    }
}

/// The run as it would be. It has no number, for it is in no journal.
fn would_be(
    planning: &Planning,
    feed: Option<i64>,
    tally: &Tally,
    held: Option<&Held>,
) -> JournaledRun {
    let computation = &planning.computation;
    let held = held.map_or(0, Held::count);
    let planned = tally.decided() - held;
    JournaledRun {
        number: 0,
        id: computation.run,
        kind: planning.kind,
        destination: planning.destination.clone(),
        stream: planning.stream.clone(),
        has_accepted: false,
        computation: Some(computation.clone()),
        feed,
        stream_number: 0,
        members: tally.members,
        held,
        planned,
        waiting: planned,
        after: -1,
        was_interrupted: false,
        keeps_traits: false,
    }
}

/// Notes what the members of a feed will be when every waiting change is delivered.
fn lay_over(
    connection: &Connection,
    feed: Option<i64>,
    waiting: &[&JournaledRun],
    refresh: bool,
) -> Result<(), SnapshotError> {
    connection.execute_batch(PENDING)?;
    let mut put =
        connection.prepare("INSERT OR REPLACE INTO pending VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for run in waiting {
        let mut after = -1;
        while let Some(chunk) = take(connection, run, after, Credit::ONE)?.pop() {
            for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
                let Change { action, member } = change.map_err(|_| unreadable(run, chunk.seq))?;
                // It will not be delivered, and is decided anew.
                if chunk.dead.contains(&entry) {
                    continue;
                }
                let is_member = match action {
                    Action::Enter | Action::Change => true,
                    // A member already, who stays one.
                    Action::Repeat if !refresh => continue,
                    Action::Repeat => true,
                    Action::Leave => false,
                };
                put.execute(params![
                    feed,
                    SqlUser(member.user),
                    member.anonymous_id,
                    SqlValue(member.value),
                    is_member,
                    refresh.then(|| traits_hash(member.traits))
                ])?;
            }
            after = chunk.seq;
        }
    }
    Ok(())
}
