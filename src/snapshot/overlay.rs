//! Changes that wait beside the members until there are enough of them.
//!
//! The changes of a run lie apart from each other: where one member in a hundred changes, nearly every page of a large
//! table would be written for them. So they wait in a table of their own, which every reader lays over the members, until
//! compacting them is worth it.

use rusqlite::types::Value;
use rusqlite::{Connection, params};

use super::transaction::Writing;
use super::{JournaledRun, Snapshot, SnapshotError};

pub(super) fn has_overlay(
    connection: &Connection,
    feed: Option<i64>,
) -> Result<bool, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM overlay WHERE feed = ?1)")?;
    Ok(statement.query_row([feed], |row| row.get(0))?)
}

/// Fewer are never worth it.
const FEW: i64 = 1_000;
/// Nor are fewer than one to so many members.
const MEMBERS_TO_ONE: i64 = 8;

/// A run that changes every eighth member touches all of their pages anyway.
pub(super) const fn is_large(run: &JournaledRun) -> bool {
    run.planned * MEMBERS_TO_ONE as u64 > run.members
}

/// Users that one transaction compacts, so that the log stays short.
const SLICE: i64 = 20_000;

impl Snapshot {
    /// Compacts the feeds that have accepted something since this was opened, where that is worth it. Nothing that is read
    /// changes by it, so it may end anywhere.
    pub fn compact(&mut self, goes_on: impl Fn() -> bool) -> Result<(), SnapshotError> {
        for feed in std::mem::take(&mut self.settled) {
            if self.is_worth_compacting(feed)? {
                while goes_on() && compact_slice(self.begin()?, feed, SLICE)? {}
            }
        }
        Ok(())
    }

    fn is_worth_compacting(&self, feed: i64) -> Result<bool, SnapshotError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT count >= ?2 AND count * ?3 > members FROM feed,
                 (SELECT count(*) AS count FROM overlay WHERE feed = ?1)
             WHERE number = ?1",
        )?;
        let is_worth = statement.query_row([feed, FEW, MEMBERS_TO_ONE], |row| row.get(0));
        Ok(is_worth?)
    }

    /// Compacts before a large run is settled: it changes members in their place, so the overlay must be empty.
    pub fn make_ready_for(
        &mut self,
        run: &JournaledRun,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        if let Some(feed) = run.feed.filter(|_| is_large(run)) {
            while goes_on() && compact_slice(self.begin()?, feed, SLICE)? {}
        }
        Ok(())
    }
}

/// Compacts a slice of the overlay, in the order of users, so that each page of the members is written once; `false`
/// where there was none.
fn compact_slice(transaction: Writing<'_>, feed: i64, slice: i64) -> Result<bool, SnapshotError> {
    let last = transaction
        .prepare_cached(
            "SELECT max(user) FROM (SELECT user FROM overlay WHERE feed = ?1 ORDER BY user LIMIT ?2)",
        )?
        .query_row([feed, slice], |row| row.get::<_, Value>(0))?;
    if last == Value::Null {
        return Ok(false);
    }
    for step in [
        "INSERT INTO member (feed, user, anonymous_id, value, since, traits_hash)
         SELECT feed, user, anonymous_id, value, since, traits_hash FROM overlay
         WHERE feed = ?1 AND user <= ?2 AND since IS NOT NULL ORDER BY user
         ON CONFLICT (feed, user) DO UPDATE
         SET anonymous_id = excluded.anonymous_id, value = excluded.value, since = excluded.since,
             traits_hash = excluded.traits_hash",
        "DELETE FROM member WHERE feed = ?1 AND user IN (
             SELECT user FROM overlay WHERE feed = ?1 AND user <= ?2 AND since IS NULL)",
        "DELETE FROM overlay WHERE feed = ?1 AND user <= ?2",
    ] {
        transaction
            .prepare_cached(step)?
            .execute(params![feed, last])?;
    }
    transaction.commit()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plan, settle_all};
    use super::*;
    use crate::run::Timestamp;

    fn members(count: usize) -> Vec<(String, i64)> {
        (0..count)
            .map(|number| (format!("u{number:05}"), 0))
            .collect()
    }

    /// Gives these members another value, and tells how many are beside the others then.
    fn change(
        snapshot: &mut Snapshot,
        members: &mut [(String, i64)],
        which: std::ops::Range<usize>,
    ) -> i64 {
        members[which].iter_mut().for_each(|(_, value)| *value += 1);
        let given: Vec<(&str, i64)> = members.iter().map(|(id, value)| (&**id, *value)).collect();
        let run = plan(snapshot, Timestamp::now().millis(), &given).run;
        snapshot.make_ready_for(&run, || true).unwrap();
        settle_all(snapshot, &run);
        beside(snapshot)
    }

    fn beside(snapshot: &Snapshot) -> i64 {
        let count = "SELECT count(*) FROM overlay";
        snapshot
            .connection
            .query_row(count, [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn members_are_compacted_when_many_have_changed_since_the_snapshot_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.sqlite");
        let mut members = members(9_000);
        let mut snapshot = Snapshot::create(&path).unwrap();
        assert_eq!(change(&mut snapshot, &mut members, 0..9_000), 0);
        assert_eq!(change(&mut snapshot, &mut members, 0..999), 999);
        snapshot.compact(|| true).unwrap();
        assert_eq!(beside(&snapshot), 999);
        assert_eq!(change(&mut snapshot, &mut members, 900..1_800), 1_800);
        let mut again = Snapshot::open(&path).unwrap().unwrap();
        again.compact(|| true).unwrap();
        assert_eq!(beside(&again), 1_800);
        snapshot.compact(|| false).unwrap();
        assert_eq!(beside(&snapshot), 1_800);
        assert_eq!(change(&mut snapshot, &mut members, 0..1), 1_800);
        snapshot.compact(|| true).unwrap();
        assert_eq!(beside(&snapshot), 0);
    }

    #[test]
    fn a_large_run_changes_members_in_place_after_the_overlay_is_compacted() {
        let mut members = members(90);
        let mut snapshot = Snapshot::empty().unwrap();
        change(&mut snapshot, &mut members, 0..90);
        assert_eq!(change(&mut snapshot, &mut members, 0..1), 1);
        assert_eq!(change(&mut snapshot, &mut members, 1..90), 0);
    }
}

#[cfg(test)]
mod laws {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::super::members::SelectMembers;
    use super::super::{Chunk, Credit, Decided, Delivered, Planning, Settled, Watermark};
    use super::*;
    use crate::audience::{
        AudienceId, Class, DestinationName, Key, Member, User, UserKind, Value as TraitValue,
    };
    use crate::diff::{Follower, Members, Scope, merge};
    use crate::event::Computation;
    use crate::laws::cases;
    use crate::mapping::StreamName;
    use crate::run::{RunId, RunKind, Timestamp};
    use crate::stream::{Place, Stream};

    type Identity = (UserKind, String);
    /// The value, the anonymous id and the extra traits that a source gives.
    type Given = (i64, Option<String>, &'static str);
    type Truth = BTreeMap<Identity, Given>;
    /// The same as a stream was last told it. Not all traits are known.
    type Told = BTreeMap<Identity, (i64, Option<String>, Option<&'static str>)>;

    const TRAITS: [&str; 3] = ["", ",\"t\":1", ",\"t\":2"];

    fn truths() -> impl Strategy<Value = Vec<Truth>> {
        let user = (0..200_u8).prop_map(|number| {
            let kinds = [UserKind::UserId, UserKind::AnonymousId];
            (kinds[usize::from(number % 2)], format!("{number:03}"))
        });
        let whole = btree_map(
            user,
            (
                0..3_i64,
                prop::option::weighted(0.3, "[a-c]"),
                prop::sample::select(TRAITS.to_vec()),
            ),
            // More than one statement puts.
            0..150,
        );
        // Each time most of them stay.
        let few = vec((whole.clone(), any::<u8>()), 1..8);
        (whole, few).prop_map(|(first, few)| {
            let mut truths = vec![first];
            for (others, pick) in few {
                let mut next = truths[truths.len() - 1].clone();
                let picked = others.into_iter().skip(usize::from(pick) % 40).take(6);
                for (number, (user, value)) in picked.enumerate() {
                    if number % 3 > 0 || next.remove(&user).is_none() {
                        next.insert(user, value);
                    }
                }
                truths.push(next);
            }
            truths
        })
    }

    struct List<'a>(Vec<(&'a Identity, &'a Given)>, usize);

    impl Members for List<'_> {
        type Error = Infallible;

        fn advance(&mut self) -> Result<bool, Infallible> {
            self.1 += 1;
            Ok(self.1 <= self.0.len())
        }

        fn current(&self) -> Member<'_> {
            let ((kind, id), (value, beside, traits)) = self.0[self.1 - 1];
            Member {
                user: User { kind: *kind, id },
                anonymous_id: beside.as_deref().filter(|_| *kind == UserKind::UserId),
                value: TraitValue::Integer(*value),
                traits,
            }
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Failure(#[from] SnapshotError);

    impl From<Infallible> for Failure {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    fn planning(millis: i64, refresh: bool) -> Planning {
        let started_at = Timestamp::from_millis(millis);
        let name = StreamName::parse("s").unwrap();
        Planning {
            computation: Computation {
                audience: AudienceId::new("a"),
                key: Key::new("a"),
                class: Class::Trait,
                stream: name.clone(),
                run: RunId::at(started_at),
                started_at,
                space_id: None,
            },
            stream: Stream {
                place: Place::Directory("delivered".into()),
                name,
            },
            destination: DestinationName::new("main"),
            name: "A".to_owned(),
            kind: RunKind::Delta,
            scope: Scope::Changes,
            refresh,
            guard: None,
            approval: None,
        }
    }

    fn sync(snapshot: &mut Snapshot, millis: i64, truth: &Truth, refresh: bool) {
        let planning = planning(millis, refresh);
        let plan = snapshot.plan::<Failure>(&[planning], |delivered, journals| {
            let mut members = List(truth.iter().collect(), 0);
            let follow = |delivered| Follower::new(delivered, Scope::Changes);
            let mut followers: Vec<_> = delivered
                .into_iter()
                .map(follow)
                .collect::<Result<_, _>>()?;
            let tallies = merge(&mut members, &mut followers, |feed, change| {
                journals[feed].push(&change).map_err(Failure::from)
            })?;
            Ok(Decided {
                tallies,
                skipped_rows: 0,
                watermark: Watermark::NotModified,
            })
        });
        let run = plan.unwrap().remove(0).run;
        let credit = Credit {
            chunks: 9,
            bytes: usize::MAX,
        };
        let accept = |chunk: Chunk| Settled {
            accepted: vec![true; chunk.count],
            maybe_accepted: Vec::new(),
            chunk,
            dead: Vec::new(),
        };
        let chunks = snapshot.settle(&run, &[], -1, credit).unwrap();
        let settled: Vec<_> = chunks.into_iter().map(accept).collect();
        snapshot.settle(&run, &settled, -1, Credit::NONE).unwrap();
    }

    fn list(mut delivered: Delivered<'_>) -> Told {
        let mut members = Told::new();
        while delivered.advance().unwrap() {
            let member = delivered.current();
            let TraitValue::Integer(value) = member.value else {
                panic!("{:?}", member.value);
            };
            let user = (member.user.kind, member.user.id.to_owned());
            let traits = TRAITS.into_iter().find(|traits| {
                let given = (value, None, *traits);
                !delivered.has_other_traits(&List(vec![(&user, &given)], 1))
            });
            let beside = member.anonymous_id.map(str::to_owned);
            members.insert(user, (value, beside, traits));
        }
        members
    }

    /// What a plan reads, what the view tells, and what is counted are the same.
    fn check(snapshot: &Snapshot, expected: &Told) {
        let connection = &snapshot.connection;
        let mut merged = SelectMembers::of(connection, Some(1), Class::Trait, true).unwrap();
        assert_eq!(&list(merged.read().unwrap()), expected);
        let view = "SELECT user, anonymous_id, value, traits_hash FROM membership WHERE feed = ?1 ORDER BY user";
        let mut viewed = SelectMembers::from_query(connection, Some(1), view, true).unwrap();
        assert_eq!(&list(viewed.read().unwrap()), expected);
        let counted: i64 = connection
            .query_row("SELECT members FROM feed", [], |row| row.get(0))
            .unwrap();
        assert_eq!(counted, expected.len() as i64);
    }

    proptest! {
        #![proptest_config(cases(96))]

        #[test]
        fn members_are_the_same_wherever_they_are_written(
            truths in truths(),
            compacted in vec(0..4_i64, 9),
            refreshes in vec(any::<bool>(), 9),
        ) {
            let mut snapshot = Snapshot::empty().unwrap();
            let mut expected = Told::new();
            for (number, truth) in truths.iter().enumerate() {
                let refresh = refreshes[number];
                sync(&mut snapshot, 2 * number as i64 + 2, truth, refresh);
                let are_kept = refreshes[..=number].contains(&true);
                // Members are known by what the stream was last told: by their last value, and what came with it.
                expected = truth
                    .iter()
                    .map(|(user, (value, beside, traits))| {
                        let beside = beside.clone().filter(|_| user.0 == UserKind::UserId);
                        let told = match expected.get(user) {
                            Some(told) if told.0 == *value && (!refresh || told.2 == Some(*traits)) => told.clone(),
                            _ => (*value, beside, are_kept.then_some(*traits)),
                        };
                        (user.clone(), told)
                    })
                    .collect();
                check(&snapshot, &expected);
                for _ in 0..compacted[number] {
                    compact_slice(snapshot.begin().unwrap(), 1, 3).unwrap();
                    check(&snapshot, &expected);
                }
            }
        }
    }
}
