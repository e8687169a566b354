//! The end of an audience: what waits for its streams is withdrawn, and every user who was told something leaves.
//!
//! A line that was surely never accepted is dropped. A line that may have been accepted leaves a doubt, so that its user
//! is told to leave as well.

use rusqlite::{Connection, params};

use super::doubt::Doubts;
use super::journal::{Credit, take, unreadable};
use super::streams::{STREAM, stream_from};
use super::watermark::Watermark;
use super::{
    Decided, Delivered, Journal, JournaledRun, Plan, Planning, Snapshot, SnapshotError, chunk,
    class,
};
use crate::audience::keys::Known;
use crate::audience::{AudienceId, DestinationName, Key};
use crate::diff::{self, Follower, Scope};
use crate::run::{Outcome, RunKind, Timestamp};
use crate::stream::Stream;

/// A feed, and whether its stream may have been told that a user is a member.
#[derive(Debug, Clone)]
pub struct FeedAudience {
    pub audience: Known,
    /// What the destination was called at the last plan.
    pub destination: DestinationName,
    pub stream: Stream,
    pub members: u64,
    /// Whether a line about further users may have been accepted without an answer.
    pub has_doubts: bool,
    /// Whether a run waits that retires it.
    pub is_retiring: bool,
}

impl FeedAudience {
    /// Whether the stream takes no user for a member.
    pub const fn is_empty(&self) -> bool {
        self.members == 0 && !self.has_doubts && !self.is_retiring
    }
}

/// What a feed that is retired has to deliver.
#[derive(Debug)]
pub enum Retired {
    /// What an earlier command decided, and did not deliver.
    Left(Box<JournaledRun>),
    Planned(Box<Plan>),
}

impl Snapshot {
    /// Every feed that was ever planned, in the order of keys.
    pub fn feed_audiences(&self) -> Result<Vec<FeedAudience>, SnapshotError> {
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT audience.id, audience.key, audience.class, audience.name, audience.retired_at IS NOT NULL,
                    feed.destination, feed.members,
                    EXISTS (SELECT 1 FROM doubt WHERE doubt.feed = feed.number)
                    OR EXISTS (SELECT 1 FROM run WHERE run.feed = feed.number AND planned > delivered + dead
                        AND (was_interrupted OR outcome IS NULL OR EXISTS (SELECT 1 FROM chunk
                            WHERE chunk.run = run.number AND delivered_at IS NULL AND maybe_accepted IS NOT NULL))),
                    EXISTS (SELECT 1 FROM run WHERE run.feed = feed.number AND planned > delivered + dead AND kind = ?1),
                    {STREAM}
             FROM feed JOIN audience ON audience.number = feed.audience JOIN stream ON stream.number = feed.stream
             ORDER BY audience.key, audience.number, stream.number"
        ))?;
        let mut rows = select.query([RunKind::Retire.as_str()])?;
        let mut feeds = Vec::new();
        while let Some(row) = rows.next()? {
            feeds.push(FeedAudience {
                audience: Known {
                    id: AudienceId::new(row.get::<_, String>(0)?),
                    key: Key::new(row.get::<_, String>(1)?),
                    class: class(&row.get::<_, String>(2)?)?,
                    name: row.get(3)?,
                    retired: row.get(4)?,
                },
                destination: DestinationName::new(row.get::<_, String>(5)?),
                members: row.get::<_, i64>(6)? as u64,
                has_doubts: row.get(7)?,
                is_retiring: row.get(8)?,
                stream: stream_from(row, 9)?,
            });
        }
        Ok(feeds)
    }

    /// Retires feeds of one audience, all or none: withdraws what waits, and plans that every user leaves who is a
    /// member or in doubt. Where an earlier command has retired a feed and that still waits, the feed goes on with those bytes.
    /// `ends` refuses the audience's key from now on.
    pub fn retire(
        &mut self,
        plannings: &[Planning],
        ends: Option<&AudienceId>,
    ) -> Result<Vec<Retired>, SnapshotError> {
        self.together(|snapshot| {
            let waiting = snapshot.waiting()?;
            let retire = |planning| snapshot.retire_feed(planning, &waiting);
            let retired = plannings.iter().map(retire).collect::<Result<_, _>>()?;
            if let Some(audience) = ends {
                snapshot.connection.execute(
                    "UPDATE audience SET retired_at = ifnull(retired_at, ?2) WHERE id = ?1",
                    params![audience.as_str(), Timestamp::now().millis()],
                )?;
            }
            Ok(retired)
        })
    }

    fn retire_feed(
        &mut self,
        planning: &Planning,
        waiting: &[JournaledRun],
    ) -> Result<Retired, SnapshotError> {
        let audience = &planning.computation.audience;
        let is_of_feed = |run: &&JournaledRun| run.is_of(audience) && run.stream == planning.stream;
        let waiting: Vec<&JournaledRun> = waiting.iter().filter(is_of_feed).collect();
        if let Some(run) = waiting.iter().find(|run| run.kind == RunKind::Retire) {
            return Ok(Retired::Left(Box::new(JournaledRun::clone(run))));
        }
        for run in waiting {
            withdraw(&self.connection, run)?;
        }
        let plan = self
            .plan(std::slice::from_ref(planning), everyone_leaves)?
            .remove(0);
        if let Some(feed) = plan.run.feed {
            // If the audience comes back, its source is read, modified or not.
            Watermark::note(None, &self.connection, feed, true)?;
        }
        Ok(Retired::Planned(Box::new(plan)))
    }

    /// Refuses the key of an audience no longer.
    pub fn undo_retire(&mut self, audience: &AudienceId) -> Result<(), SnapshotError> {
        let transaction = self.begin()?;
        transaction.execute(
            "UPDATE audience SET retired_at = NULL WHERE id = ?1",
            [audience.as_str()],
        )?;
        Ok(transaction.commit()?)
    }
}

/// Decides that every user leaves. The source is not read.
fn everyone_leaves(
    delivered: Vec<Delivered<'_>>,
    journals: &mut [Journal<'_>],
) -> Result<Decided, SnapshotError> {
    let follow = |delivered| Follower::new(delivered, Scope::Changes);
    let mut followers: Vec<_> = delivered
        .into_iter()
        .map(follow)
        .collect::<Result<_, _>>()?;
    let tallies = diff::leave(&mut followers, |feed, change| journals[feed].push(&change))?;
    Ok(Decided {
        tallies,
        skipped_rows: 0,
        watermark: Watermark::NotModified,
    })
}

/// Takes what waits of a run out of the journal. A line that was surely never accepted is dropped; of one that may have
/// been, a doubt is left. A run that decides about the whole feed must follow in the same transaction.
fn withdraw(connection: &Connection, run: &JournaledRun) -> Result<(), SnapshotError> {
    let Some(feed) = run.feed else { return Ok(()) };
    let now = Timestamp::now().millis();
    let mut doubts = Doubts::of(connection, feed)?;
    let (mut dropped, mut dead) = (0, 0);
    let mut after = -1;
    while let Some(chunk) = take(connection, run, after, Credit::ONE)?.pop() {
        after = chunk.seq;
        let mut withdrawn = Vec::new();
        let mut has_doubts = false;
        for (entry, change) in chunk::changes(&chunk.entries).enumerate() {
            let change = change.map_err(|_| unreadable(run, chunk.seq))?;
            let has = |flags: &[bool]| flags.get(entry).copied().unwrap_or(false);
            if has(&chunk.accepted) || chunk.dead.binary_search(&entry).is_ok() {
                continue;
            }
            if run.was_interrupted || has(&chunk.maybe_accepted) {
                doubts.note(&change.member)?;
                has_doubts = true;
            }
            withdrawn.push(entry);
        }
        if withdrawn.len() == chunk.count && !has_doubts {
            drop_chunk(connection, run.number, chunk.seq)?;
            dropped += chunk.count as i64;
        } else {
            // What was accepted, or may have been, stays in the history.
            note_withdrawn(connection, run.number, chunk.seq, &withdrawn, now)?;
            dead += withdrawn.len() as i64;
        }
    }
    connection
        .prepare_cached(
            "UPDATE run SET planned = planned - ?2, dead = dead + ?3, finished_at = ?4, outcome = ?5 WHERE number = ?1",
        )?
        .execute(params![
            run.number,
            dropped,
            dead,
            now,
            Outcome::Undelivered.as_str()
        ])?;
    Ok(())
}

fn drop_chunk(connection: &Connection, run: i64, seq: i64) -> Result<(), SnapshotError> {
    for delete in [
        "DELETE FROM bytes WHERE id = (SELECT bytes FROM chunk WHERE run = ?1 AND seq = ?2)",
        "DELETE FROM chunk WHERE run = ?1 AND seq = ?2",
    ] {
        connection.prepare_cached(delete)?.execute([run, seq])?;
    }
    Ok(())
}

/// Entries that were withdrawn are dead, and a letter of none: the run that follows decides about their users anew.
fn note_withdrawn(
    connection: &Connection,
    run: i64,
    seq: i64,
    entries: &[usize],
    now: i64,
) -> Result<(), SnapshotError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO dead (run, seq, position, at, code, reason) VALUES (?1, ?2, ?3, ?4, 'Withdrawn', ?5)",
    )?;
    for entry in entries {
        let reason = "withdrawn when its audience was retired";
        insert.execute(params![run, seq, *entry as i64, now, reason])?;
    }
    connection
        .prepare_cached(
            "UPDATE chunk SET delivered_at = ?3, accepted = NULL, maybe_accepted = NULL WHERE run = ?1 AND seq = ?2",
        )?
        .execute(params![run, seq, now])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{
        ALL, members_of, plan, plan_for, planning_for, settle_all, settled, with_a_letter,
    };
    use super::super::{ChangeState, Settled};
    use super::*;
    use crate::audience::Action;

    fn retiring(millis: i64, stream: &str) -> Planning {
        Planning {
            kind: RunKind::Retire,
            guard: None,
            ..planning_for(millis, stream)
        }
    }

    fn retire(snapshot: &mut Snapshot, millis: i64) -> JournaledRun {
        let retired = snapshot.retire(&[retiring(millis, "s")], None);
        match retired.unwrap().remove(0) {
            Retired::Planned(plan) => plan.run,
            Retired::Left(run) => panic!("{run:?}"),
        }
    }

    /// A run that has ended with a record ID for `a`, and without an answer for `b`. `c` was not sent.
    fn half_delivered(snapshot: &mut Snapshot) -> JournaledRun {
        let run = plan(snapshot, 1, &[("a", 1), ("b", 2), ("c", 3)]).run;
        let chunk = snapshot.settle(&run, &[], -1, ALL).unwrap().remove(0);
        let settled = Settled {
            maybe_accepted: vec![false, true, false],
            ..settled(chunk, &[true, false, false], &[])
        };
        snapshot.settle(&run, &[settled], -1, ALL).unwrap();
        snapshot.finish(&run, Outcome::Undelivered).unwrap();
        run
    }

    /// Who leaves, by what waits of a run.
    fn leaving(snapshot: &mut Snapshot, run: &JournaledRun) -> Vec<String> {
        let chunks = snapshot.settle(run, &[], -1, ALL).unwrap();
        let entries = chunks.iter().map(|chunk| &chunk.entries);
        let changes = entries.flat_map(|entries| chunk::changes(entries));
        let user = |change: Result<crate::audience::Change<'_>, chunk::Unreadable>| {
            let change = change.unwrap();
            assert_eq!(change.action, Action::Leave);
            change.member.user.id.to_owned()
        };
        changes.map(user).collect()
    }

    fn waiting(snapshot: &Snapshot) -> Vec<(RunKind, u64)> {
        let waiting = snapshot.waiting().unwrap();
        waiting.iter().map(|run| (run.kind, run.waiting)).collect()
    }

    fn is_empty(snapshot: &Snapshot) -> bool {
        snapshot.feed_audiences().unwrap()[0].is_empty()
    }

    fn states(snapshot: &Snapshot, user: &str) -> Vec<(RunKind, &'static str)> {
        let changes = snapshot.changes_of(user).unwrap();
        let state = |state: &ChangeState| match state {
            ChangeState::Delivered(_) => "delivered",
            ChangeState::Waiting => "waits",
            ChangeState::Dead(_) => "dead",
        };
        let changes = changes.iter();
        changes
            .map(|change| (change.kind, state(&change.state)))
            .collect()
    }

    fn count(snapshot: &Snapshot, what: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {what}");
        let counted = snapshot.connection.query_row(&count, [], |row| row.get(0));
        counted.unwrap()
    }

    #[test]
    fn what_was_never_sent_is_dropped() {
        let mut snapshot = Snapshot::empty().unwrap();
        let run = plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]).run;
        snapshot.finish(&run, Outcome::Undelivered).unwrap();
        assert!(is_empty(&snapshot));
        let retired = retire(&mut snapshot, 3);
        assert_eq!(retired.waiting, 0);
        assert_eq!(waiting(&snapshot), []);
        let left = ["chunk", "bytes", "dead", "doubt", "membership"];
        assert_eq!(left.map(|table| count(&snapshot, table)), [0; 5]);
        let run = snapshot.run(run.number).unwrap();
        assert_eq!((run.planned, run.waiting), (0, 0));
    }

    #[test]
    fn everyone_leaves_who_was_told_or_may_have_been() {
        let mut snapshot = Snapshot::empty().unwrap();
        let first = half_delivered(&mut snapshot);
        assert!(!is_empty(&snapshot));
        let retired = retire(&mut snapshot, 3);
        assert_eq!(leaving(&mut snapshot, &retired), ["a", "b"]);
        assert_eq!(waiting(&snapshot), [(RunKind::Retire, 2)]);
        settle_all(&mut snapshot, &retired);
        assert_eq!(members_of(&snapshot, 1), Vec::<String>::new());
        assert!(is_empty(&snapshot));
        let first = snapshot.run(first.number).unwrap();
        assert_eq!((first.planned, first.waiting), (3, 0));
        // What was withdrawn is no letter that could be sent again.
        assert_eq!(snapshot.requeue_dead_letters().unwrap(), 0);
        let told = [
            (RunKind::Delta, "delivered"),
            (RunKind::Retire, "delivered"),
        ];
        assert_eq!(states(&snapshot, "a"), told);
        let told = [(RunKind::Delta, "dead"), (RunKind::Retire, "delivered")];
        assert_eq!(states(&snapshot, "b"), told);
        assert_eq!(states(&snapshot, "c"), [(RunKind::Delta, "dead")]);
    }

    /// A process that died may have sent any line.
    #[test]
    fn everyone_leaves_of_a_run_that_was_interrupted() {
        let mut snapshot = Snapshot::empty().unwrap();
        plan(&mut snapshot, 1, &[("a", 1), ("b", 2)]);
        assert!(!is_empty(&snapshot));
        let retired = retire(&mut snapshot, 3);
        assert_eq!(leaving(&mut snapshot, &retired), ["a", "b"]);
        settle_all(&mut snapshot, &retired);
        assert!(is_empty(&snapshot));
        let members: i64 = count(&snapshot, "feed WHERE members = 0");
        assert_eq!(members, 1);
    }

    #[test]
    fn a_user_who_was_about_to_leave_leaves_once() {
        let mut snapshot = Snapshot::empty().unwrap();
        let first = plan(&mut snapshot, 1, &[("a", 1), ("b", 2), ("c", 3)]).run;
        settle_all(&mut snapshot, &first);
        let second = plan(&mut snapshot, 3, &[("a", 1), ("b", 5), ("d", 1)]).run;
        snapshot.finish(&second, Outcome::Undelivered).unwrap();
        let retired = retire(&mut snapshot, 5);
        assert_eq!(leaving(&mut snapshot, &retired), ["a", "b", "c"]);
        assert_eq!(waiting(&snapshot), [(RunKind::Retire, 3)]);
    }

    #[test]
    fn a_line_that_was_refused_for_good_is_not_told_and_not_sent_again() {
        let mut snapshot = Snapshot::empty().unwrap();
        let run = with_a_letter(&mut snapshot);
        snapshot.finish(&run, Outcome::Undelivered).unwrap();
        // It waits again, in a chunk of its own.
        assert_eq!(snapshot.requeue_dead_letters().unwrap(), 1);
        let retired = retire(&mut snapshot, 3);
        assert_eq!(leaving(&mut snapshot, &retired), ["a"]);
        assert_eq!(waiting(&snapshot), [(RunKind::Retire, 1)]);
        assert_eq!(snapshot.requeue_dead_letters().unwrap(), 0);
    }

    #[test]
    fn a_feed_that_is_being_retired_goes_on_with_the_same_run() {
        let mut snapshot = Snapshot::empty().unwrap();
        half_delivered(&mut snapshot);
        let first = retire(&mut snapshot, 3);
        let again = snapshot.retire(&[retiring(5, "s")], None).unwrap();
        let [Retired::Left(run)] = &again[..] else {
            panic!("{again:?}");
        };
        assert_eq!((run.number, run.id), (first.number, first.id));
        assert_eq!(waiting(&snapshot), [(RunKind::Retire, 2)]);
    }

    #[test]
    fn what_waits_for_another_stream_waits_on() {
        let mut snapshot = Snapshot::empty().unwrap();
        let members = [("a", 1), ("b", 2)];
        for plan in plan_for(&mut snapshot, 1, &["s", "t"], &members) {
            snapshot.finish(&plan.run, Outcome::Undelivered).unwrap();
        }
        retire(&mut snapshot, 5);
        assert_eq!(waiting(&snapshot), [(RunKind::Delta, 2)]);
        assert_eq!(snapshot.waiting().unwrap()[0].stream.name.as_str(), "t");
    }

    #[test]
    fn a_key_is_refused_with_its_last_run_or_not_at_all() {
        let mut snapshot = Snapshot::empty().unwrap();
        half_delivered(&mut snapshot);
        let id = AudienceId::new("members");
        let is_retired = |snapshot: &Snapshot| snapshot.known().unwrap()[0].retired;
        let broken = "UPDATE bytes SET entries = CAST(x'09' || substr(entries, 2) AS BLOB)";
        let whole = "UPDATE bytes SET entries = CAST(x'01' || substr(entries, 2) AS BLOB)";
        snapshot.connection.execute(broken, []).unwrap();
        let failed = snapshot.retire(&[retiring(3, "s")], Some(&id));
        assert!(
            matches!(failed, Err(SnapshotError::UnreadableChunk { seq: 0, .. })),
            "{failed:?}"
        );
        assert!(!is_retired(&snapshot));
        assert_eq!(waiting(&snapshot), [(RunKind::Delta, 2)]);
        snapshot.connection.execute(whole, []).unwrap();
        snapshot.retire(&[retiring(5, "s")], Some(&id)).unwrap();
        assert!(is_retired(&snapshot));
        snapshot.undo_retire(&id).unwrap();
        assert!(!is_retired(&snapshot));
    }

    /// The source may be unmodified since the last plan.
    #[test]
    fn an_audience_that_comes_back_is_read_anew() {
        let mut snapshot = Snapshot::empty().unwrap();
        let run = plan(&mut snapshot, 1, &[("a", 1)]).run;
        settle_all(&mut snapshot, &run);
        let known = "UPDATE feed SET planned_by = 'query', planned_from = 'file', planned_at = 1";
        snapshot.connection.execute(known, []).unwrap();
        let (id, stream) = (AudienceId::new("members"), planning_for(3, "s").stream);
        assert!(snapshot.last_plan(&id, &stream).unwrap().is_some());
        let retired = retire(&mut snapshot, 3);
        settle_all(&mut snapshot, &retired);
        assert_eq!(snapshot.last_plan(&id, &stream).unwrap(), None);
        assert_eq!(plan(&mut snapshot, 5, &[("a", 1)]).tally.added, 1);
    }
}
