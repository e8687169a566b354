//! Who has moved since the members were last brought up to date.
//!
//! The changes of a run lie apart from each other: where one member in a hundred moves, nearly every page of a large
//! table would be written for them. So they wait in a table of their own, which every reader lays over the members, until
//! they are many enough to be worth it.

use rusqlite::types::Value;
use rusqlite::{Connection, params};

use super::together::Writing;
use super::{JournaledRun, Snapshot, SnapshotError};

pub(super) fn has_moved(
    connection: &Connection,
    audience: Option<i64>,
) -> Result<bool, SnapshotError> {
    let mut statement =
        connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM moved WHERE audience = ?1)")?;
    Ok(statement.query_row([audience], |row| row.get(0))?)
}

/// Fewer are never worth it.
const FEW: i64 = 1_000;
/// Nor are fewer than one to so many members.
const MEMBERS_TO_ONE: i64 = 8;

/// A run that changes every eighth member touches all of their pages anyway.
pub(super) const fn is_large(run: &JournaledRun) -> bool {
    run.planned * MEMBERS_TO_ONE as u64 > run.members
}

/// As many are moved in one transaction, so that the log stays short.
const SLICE: i64 = 20_000;

impl Snapshot {
    /// Brings members up to date where somebody has moved since this was opened, and many have by now. Nothing that anybody
    /// reads changes by it, so that it may end anywhere.
    pub fn bring_members_up_to_date(
        &mut self,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        for audience in std::mem::take(&mut self.settled) {
            if self.have_many_moved(audience)? {
                while goes_on() && take_in(self.begin()?, audience, SLICE)? {}
            }
        }
        Ok(())
    }

    fn have_many_moved(&self, audience: i64) -> Result<bool, SnapshotError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT count >= ?2 AND count * ?3 > members FROM audience,
                 (SELECT count(*) AS count FROM moved WHERE audience = ?1)
             WHERE number = ?1",
        )?;
        let have = statement.query_row([audience, FEW, MEMBERS_TO_ONE], |row| row.get(0));
        Ok(have?)
    }

    /// Before a large run is settled: it changes members in their place, and so nobody may have moved.
    pub fn make_ready_for(
        &mut self,
        run: &JournaledRun,
        goes_on: impl Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        if let Some(audience) = run.audience.filter(|_| is_large(run)) {
            while goes_on() && take_in(self.begin()?, audience, SLICE)? {}
        }
        Ok(())
    }
}

/// Takes in a slice of those who have moved, in the order of users, so that each page of the members is written once;
/// `false` where there was none.
fn take_in(transaction: Writing<'_>, audience: i64, slice: i64) -> Result<bool, SnapshotError> {
    let last = transaction
        .prepare_cached(
            "SELECT max(user) FROM (SELECT user FROM moved WHERE audience = ?1 ORDER BY user LIMIT ?2)",
        )?
        .query_row([audience, slice], |row| row.get::<_, Value>(0))?;
    if last == Value::Null {
        return Ok(false);
    }
    for step in [
        "INSERT INTO member (audience, user, anonymous_id, value, since)
         SELECT audience, user, anonymous_id, value, since FROM moved
         WHERE audience = ?1 AND user <= ?2 AND since IS NOT NULL ORDER BY user
         ON CONFLICT (audience, user) DO UPDATE
         SET anonymous_id = excluded.anonymous_id, value = excluded.value, since = excluded.since",
        "DELETE FROM member WHERE audience = ?1 AND user IN (
             SELECT user FROM moved WHERE audience = ?1 AND user <= ?2 AND since IS NULL)",
        "DELETE FROM moved WHERE audience = ?1 AND user <= ?2",
    ] {
        transaction
            .prepare_cached(step)?
            .execute(params![audience, last])?;
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
        let run = plan(snapshot, Timestamp::now().millis(), &["s"], &given).run;
        snapshot.make_ready_for(&run, || true).unwrap();
        settle_all(snapshot, &run);
        beside(snapshot)
    }

    fn beside(snapshot: &Snapshot) -> i64 {
        let count = "SELECT count(*) FROM moved";
        snapshot
            .connection
            .query_row(count, [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn members_are_brought_up_to_date_when_many_have_moved_since_it_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.sqlite");
        let mut members = members(9_000);
        let mut snapshot = Snapshot::open(&path).unwrap();
        assert_eq!(change(&mut snapshot, &mut members, 0..9_000), 0);
        assert_eq!(change(&mut snapshot, &mut members, 0..999), 999);
        snapshot.bring_members_up_to_date(|| true).unwrap();
        assert_eq!(beside(&snapshot), 999);
        assert_eq!(change(&mut snapshot, &mut members, 900..1_800), 1_800);
        let mut again = Snapshot::open(&path).unwrap();
        again.bring_members_up_to_date(|| true).unwrap();
        assert_eq!(beside(&again), 1_800);
        snapshot.bring_members_up_to_date(|| false).unwrap();
        assert_eq!(beside(&snapshot), 1_800);
        assert_eq!(change(&mut snapshot, &mut members, 0..1), 1_800);
        snapshot.bring_members_up_to_date(|| true).unwrap();
        assert_eq!(beside(&snapshot), 0);
    }

    #[test]
    fn a_large_run_changes_members_in_place_whoever_has_moved_before() {
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
    use super::super::{Chunk, Credit, Delivered, Planning, Settled};
    use super::*;
    use crate::audience::{
        AudienceId, Class, DestinationName, Key, Member, User, UserKind, Value as TraitValue,
    };
    use crate::diff::{Members, Scope, merge};
    use crate::event::Computation;
    use crate::laws::cases;
    use crate::mapping::StreamName;
    use crate::run::{RunId, RunKind, Timestamp};

    type Identity = (UserKind, String);
    /// The value and the anonymous id that a source gives.
    type Given = (i64, Option<String>);
    type Truth = BTreeMap<Identity, Given>;

    fn truths() -> impl Strategy<Value = Vec<Truth>> {
        let user = (0..200_u8).prop_map(|number| {
            let kinds = [UserKind::UserId, UserKind::AnonymousId];
            (kinds[usize::from(number % 2)], format!("{number:03}"))
        });
        let whole = btree_map(
            user,
            (0..3_i64, prop::option::weighted(0.3, "[a-c]")),
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
            let ((kind, id), (value, beside)) = self.0[self.1 - 1];
            Member {
                user: User { kind: *kind, id },
                anonymous_id: beside.as_deref().filter(|_| *kind == UserKind::UserId),
                value: TraitValue::Integer(*value),
                traits: "",
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

    fn planning(millis: i64) -> Planning {
        let started_at = Timestamp::from_millis(millis);
        Planning {
            computation: Computation {
                audience: AudienceId::new("a"),
                key: Key::new("a"),
                class: Class::Trait,
                destination: DestinationName::new("main"),
                run: RunId::at(started_at),
                started_at,
                space_id: None,
            },
            name: "A".to_owned(),
            kind: RunKind::Delta,
            streams: vec![StreamName::parse("s").unwrap()],
            guard: None,
            approve: false,
        }
    }

    fn sync(snapshot: &mut Snapshot, millis: i64, truth: &Truth) {
        let plan = snapshot.plan::<Failure>(&planning(millis), |delivered, journal| {
            let mut members = List(truth.iter().collect(), 0);
            let tally = merge(&mut members, delivered, Scope::Changes, |change| {
                journal.push(&change).map_err(Failure::from)
            })?;
            Ok((tally, 0))
        });
        let run = plan.unwrap().run;
        let credit = Credit {
            chunks: 9,
            bytes: usize::MAX,
        };
        let accept = |chunk: Chunk| Settled {
            accepted: vec![vec![true; chunk.count]],
            chunk,
            dead: Vec::new(),
        };
        let chunks = snapshot.settle(&run, &[], -1, credit).unwrap();
        let settled: Vec<_> = chunks.into_iter().map(accept).collect();
        snapshot.settle(&run, &settled, -1, Credit::NONE).unwrap();
    }

    fn list(mut delivered: Delivered<'_>) -> Truth {
        let mut members = Truth::new();
        while delivered.advance().unwrap() {
            let member = delivered.current();
            let TraitValue::Integer(value) = member.value else {
                panic!("{:?}", member.value);
            };
            let user = (member.user.kind, member.user.id.to_owned());
            members.insert(user, (value, member.anonymous_id.map(str::to_owned)));
        }
        members
    }

    /// What a plan reads, what the view tells, and what is counted are the same.
    fn check(snapshot: &Snapshot, expected: &Truth) {
        let connection = &snapshot.connection;
        let mut merged = SelectMembers::of(connection, Some(1), Class::Trait).unwrap();
        assert_eq!(&list(merged.read(Some(1)).unwrap()), expected);
        let view =
            "SELECT user, anonymous_id, value FROM membership WHERE audience = ?1 ORDER BY user";
        let mut viewed = SelectMembers::from_query(connection, view).unwrap();
        assert_eq!(&list(viewed.read(Some(1)).unwrap()), expected);
        let counted: i64 = connection
            .query_row("SELECT members FROM audience", [], |row| row.get(0))
            .unwrap();
        assert_eq!(counted, expected.len() as i64);
    }

    proptest! {
        #![proptest_config(cases(96))]

        #[test]
        fn who_has_moved_is_who_has_moved_wherever_it_is_written(
            truths in truths(),
            taken_in in vec(0..4_i64, 9),
        ) {
            let mut snapshot = Snapshot::empty().unwrap();
            let mut expected = Truth::new();
            for (number, truth) in truths.iter().enumerate() {
                sync(&mut snapshot, number as i64 + 1, truth);
                // Members stay known by what they entered with.
                expected = truth
                    .iter()
                    .map(|(user, (value, beside))| {
                        let beside = beside.clone().filter(|_| user.0 == UserKind::UserId);
                        let known = expected.get(user).map(|(_, beside)| beside.clone());
                        (user.clone(), (*value, known.unwrap_or(beside)))
                    })
                    .collect();
                check(&snapshot, &expected);
                for _ in 0..taken_in[number] {
                    take_in(snapshot.begin().unwrap(), 1, 3).unwrap();
                    check(&snapshot, &expected);
                }
            }
        }
    }
}
