//! A dry run: the same decisions as a plan, and nothing written.
//!
//! Another process may be delivering meanwhile, for hours. So this only reads, in one deferred transaction: it keeps
//! nobody from writing and waits for no writer. What waits in the journal is laid over the members in a temporary table.

use rusqlite::{Connection, params};

use super::journal::{Credit, take};
use super::members::{SelectMembers, SqlUser, SqlValue};
use super::plan::{Decided, decide, last_held, number_of};
use super::writer::is_full;
use super::{Delivered, Journal, JournaledRun, Plan, Planning, Snapshot, SnapshotError, chunk};
use crate::audience::{Action, Change};
use crate::batch::{LineBuffer, Lines};
use crate::bill::Foreseen;
use crate::diff::Tally;

const OVERLAY: &str = "
    CREATE TEMP TABLE overlay (
        user         ANY NOT NULL PRIMARY KEY,
        anonymous_id TEXT,
        value        ANY,
        is_member    INTEGER NOT NULL
    ) WITHOUT ROWID, STRICT";

const ORDERED_WITH_OVERLAY: &str = "
    SELECT user, anonymous_id, value FROM membership
    WHERE audience = ?1 AND NOT EXISTS (SELECT 1 FROM overlay WHERE overlay.user = membership.user)
    UNION ALL
    SELECT user, anonymous_id, value FROM overlay WHERE is_member
    ORDER BY user";

impl Snapshot {
    /// Decides a run as if all that waits in the journal had been delivered, and forgets it again. Each chunk that it
    /// would write is weighed.
    pub fn rehearse<E: From<SnapshotError>>(
        &mut self,
        planning: &Planning,
        weigh: Weigh<'_>,
        merge: impl FnOnce(&mut Delivered<'_>, &mut Journal<'_>) -> Result<(Tally, u64), E>,
    ) -> Result<Plan, E> {
        // Otherwise not even a temporary table may be written.
        self.connection
            .pragma_update(None, "query_only", false)
            .map_err(SnapshotError::from)?;
        // It ends without a commit.
        let transaction = self
            .connection
            .unchecked_transaction()
            .map_err(SnapshotError::from)?;
        let computation = &planning.computation;
        let waiting = self.waiting_of(&computation.audience, &computation.destination)?;
        let audience = number_of(&transaction, computation)?;
        let mut members = if waiting.is_empty() {
            SelectMembers::of(&transaction, audience, computation.class)?
        } else {
            lay_over(&transaction, &waiting)?;
            SelectMembers::from_query(&transaction, ORDERED_WITH_OVERLAY)?
        };
        let delivered = members.read(audience)?;
        let decided = decide(
            planning,
            delivered,
            Journal::rehearse(planning, weigh),
            last_held(&transaction, planning)?,
            merge,
        )?;
        let run = rehearsed_run(planning, audience, &decided);
        Ok(decided.into_plan(run))
    }
}

/// Says what the lines of a chunk come to at one stream.
pub type Weigh<'w> = &'w dyn Fn(&Lines) -> Foreseen;

/// Chunks that are rendered and weighed in place of being written.
pub(super) struct Rehearsed<'w> {
    weigh: Weigh<'w>,
    lines: LineBuffer,
    count: u64,
    bytes: usize,
    foreseen: Foreseen,
}

impl<'w> Rehearsed<'w> {
    pub(super) fn new(weigh: Weigh<'w>) -> Self {
        Self {
            weigh,
            lines: LineBuffer::default(),
            count: 0,
            bytes: 0,
            foreseen: Foreseen::default(),
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
        self.foreseen += (self.weigh)(&lines);
        (self.count, self.bytes) = (0, 0);
    }

    pub(super) fn finish(mut self) -> Foreseen {
        self.flush();
        self.foreseen
    }
}

/// The run as it would be. It has no number, for it is in no journal.
fn rehearsed_run(planning: &Planning, audience: Option<i64>, decided: &Decided) -> JournaledRun {
    let computation = &planning.computation;
    JournaledRun {
        number: 0,
        id: computation.run,
        kind: planning.kind,
        destination: computation.destination.clone(),
        streams: planning.streams.clone(),
        computation: Some(computation.clone()),
        audience,
        members: decided.tally.members,
        held: decided.held_count(),
        planned: decided.planned(),
        waiting: decided.planned(),
        after: -1,
        is_resumed: false,
    }
}

/// Foresees what the members will be when every waiting change is delivered.
fn lay_over(connection: &Connection, waiting: &[JournaledRun]) -> Result<(), SnapshotError> {
    connection.execute_batch(OVERLAY)?;
    let mut put = connection.prepare("INSERT OR REPLACE INTO overlay VALUES (?1, ?2, ?3, ?4)")?;
    for run in waiting {
        let mut after = -1;
        while let Some(chunk) = take(connection, run, after, Credit::ONE)?.pop() {
            for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
                let Change { action, member } =
                    change.map_err(|_| SnapshotError::UnreadableChunk {
                        run: run.number,
                        seq: chunk.seq,
                    })?;
                // It will not be delivered, and is decided anew.
                if chunk.dead.contains(&entry) {
                    continue;
                }
                let is_member = match action {
                    Action::Enter | Action::Change => true,
                    // They are members already, and stay it.
                    Action::Repeat => continue,
                    Action::Leave => false,
                };
                put.execute(params![
                    SqlUser(member.user),
                    member.anonymous_id,
                    SqlValue(member.value),
                    is_member
                ])?;
            }
            after = chunk.seq;
        }
    }
    Ok(())
}
