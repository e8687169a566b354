//! Decides what to send from two facts: who is in the audience, and what Firehose has accepted.
//!
//! One pass over two cursors in the same order, whatever their size. Pure, so that "why was this person sent
//! twice?" can be answered by a test instead of a log.

use crate::audience::{Action, Change, Member, MemberBuf, User, Value};

/// Members in strictly ascending order of [`User`], one at a time.
pub trait Members {
    type Error;

    /// Moves to the next member; `false` at the end. The end is only said after everything was read without an error.
    fn advance(&mut self) -> Result<bool, Self::Error>;

    /// The member that the last `advance` moved to. Only asked for after one that returned `true`.
    fn current(&self) -> Member<'_>;

    /// Its user by itself: of nearly all members, a merge asks for nothing more.
    fn user(&self) -> User<'_> {
        self.current().user
    }

    /// Its value by itself.
    fn value(&self) -> Value<'_> {
        self.current().value
    }

    /// How far what is known of them can be relied on.
    fn standing(&self) -> Standing {
        Standing::Settled
    }

    /// Whether they are a member: a change query also tells of those who are none.
    fn presence(&self) -> Presence {
        Presence::Member
    }
}

/// What a change query says of a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Presence {
    #[default]
    Member,
    Gone,
}

/// What is known downstream of a user in the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// What the snapshot says.
    Settled,
    /// They are a member, and some stream may have been told otherwise.
    Unsettled,
    /// They are none, and some stream may have been told that they are.
    Stranger,
}

/// Whom a plan speaks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those who entered, changed or left.
    Changes,
    /// Also every member who stays.
    Everyone,
}

/// What a merge saw and decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// In the source now.
    pub members: u64,
    /// In the snapshot before.
    pub delivered: u64,
    pub added: u64,
    pub changed: u64,
    pub removed: u64,
    /// Sent again unchanged: by a resync, or since some stream may not have it.
    pub repeated: u64,
}

/// Decides from what a source says of those who may have entered or left: each of them is looked up. Of everyone else
/// the snapshot says what is so.
///
/// `find` tells the member that a user is in the snapshot, where everything is settled and there are `delivered` members.
pub fn follow<S, E>(
    source: &mut S,
    delivered: u64,
    mut find: impl FnMut(User<'_>) -> Result<Option<MemberBuf>, E>,
    mut each: impl FnMut(Change<'_>) -> Result<(), E>,
) -> Result<Tally, E>
where
    S: Members,
    E: From<S::Error>,
{
    let mut tally = Tally {
        delivered,
        ..Tally::default()
    };
    while source.advance()? {
        let now = source.current();
        match (source.presence(), find(now.user)?) {
            (Presence::Member, None) => {
                tally.added += 1;
                each(Change {
                    action: Action::Enter,
                    member: now,
                })?;
            }
            (Presence::Gone, Some(before)) => {
                tally.removed += 1;
                each(Change {
                    action: Action::Leave,
                    member: before.as_member(),
                })?;
            }
            _ => {}
        }
    }
    tally.members = (delivered + tally.added).saturating_sub(tally.removed);
    Ok(tally)
}

/// Compares the source with the snapshot and hands on each change, in the order of users.
///
/// An error of either cursor, or of `each`, ends the merge: what it had decided until then is then worth nothing.
pub fn merge<S, K, E>(
    source: &mut S,
    snapshot: &mut K,
    scope: Scope,
    mut each: impl FnMut(Change<'_>) -> Result<(), E>,
) -> Result<Tally, E>
where
    S: Members,
    K: Members,
    E: From<S::Error> + From<K::Error>,
{
    use std::cmp::Ordering::{Equal, Greater, Less};

    let mut tally = Tally::default();
    let mut in_source = source.advance()?;
    let mut in_snapshot = snapshot.advance()?;
    while in_source || in_snapshot {
        let order = match (in_source, in_snapshot) {
            (true, false) => Less,
            (false, _) => Greater,
            (true, true) => source.user().cmp(&snapshot.user()),
        };
        let standing = match order {
            Less => Standing::Settled,
            Greater | Equal => snapshot.standing(),
        };
        tally.members += u64::from(order != Greater);
        tally.delivered += u64::from(order != Less && standing != Standing::Stranger);
        match order {
            Greater => {
                tally.removed += 1;
                each(Change {
                    action: Action::Leave,
                    member: snapshot.current(),
                })?;
            }
            _ if order == Less || standing == Standing::Stranger => {
                tally.added += 1;
                each(Change {
                    action: Action::Enter,
                    member: source.current(),
                })?;
            }
            _ if source.value() != snapshot.value() => {
                tally.changed += 1;
                each(Change {
                    action: Action::Change,
                    member: source.current(),
                })?;
            }
            _ if scope == Scope::Everyone || standing == Standing::Unsettled => {
                tally.repeated += 1;
                each(Change {
                    action: Action::Repeat,
                    member: source.current(),
                })?;
            }
            _ => {}
        }
        if order != Greater {
            in_source = source.advance()?;
        }
        if order != Less {
            in_snapshot = snapshot.advance()?;
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::audience::UserKind;

    /// A list is a source too: the merge cannot tell it from a cursor.
    struct List(Vec<(&'static str, i64)>, usize);

    impl Members for List {
        type Error = Infallible;

        fn advance(&mut self) -> Result<bool, Infallible> {
            self.1 += 1;
            Ok(self.1 <= self.0.len())
        }

        fn current(&self) -> Member<'_> {
            let (id, value) = self.0[self.1 - 1];
            let user = User {
                kind: UserKind::UserId,
                id,
            };
            Member {
                user,
                anonymous_id: None,
                value: Value::Integer(value),
                traits: "",
            }
        }

        /// Names that begin with a sign tell it.
        fn standing(&self) -> Standing {
            match self.0[self.1 - 1].0.as_bytes()[0] {
                b'?' => Standing::Unsettled,
                b'-' => Standing::Stranger,
                _ => Standing::Settled,
            }
        }
    }

    fn list(members: &[(&'static str, i64)]) -> List {
        List(members.to_vec(), 0)
    }

    fn check(
        source: &[(&'static str, i64)],
        snapshot: &[(&'static str, i64)],
        scope: Scope,
        expected: &[(Action, &str)],
    ) {
        let mut decided = Vec::new();
        let tally = merge(&mut list(source), &mut list(snapshot), scope, |change| {
            decided.push((change.action, change.member.user.id.to_owned()));
            Ok::<(), Infallible>(())
        })
        .unwrap();
        let decided: Vec<_> = decided
            .iter()
            .map(|(action, id)| (*action, id.as_str()))
            .collect();
        assert_eq!(decided, expected);
        let delivered = snapshot.iter().filter(|(id, _)| !id.starts_with('-'));
        assert_eq!(
            (tally.members, tally.delivered),
            (source.len() as u64, delivered.count() as u64)
        );
        let counted = tally.added + tally.changed + tally.removed + tally.repeated;
        assert_eq!(counted, expected.len() as u64);
    }

    use Action::{Change as Changed, Enter, Leave, Repeat};

    #[test]
    fn a_first_plan_enters_everyone() {
        check(
            &[("a", 1), ("b", 1)],
            &[],
            Scope::Changes,
            &[(Enter, "a"), (Enter, "b")],
        );
    }

    #[test]
    fn only_those_who_entered_changed_or_left_are_decided() {
        check(
            &[("a", 1), ("c", 2), ("d", 1), ("e", 1)],
            &[("b", 1), ("c", 1), ("d", 1)],
            Scope::Changes,
            &[(Enter, "a"), (Leave, "b"), (Changed, "c"), (Enter, "e")],
        );
    }

    /// A stream may have been told otherwise than the snapshot says.
    #[test]
    fn who_is_unsettled_is_decided_about_whatever_the_snapshot_says() {
        check(
            &[("-a", 1), ("?a", 1), ("?b", 2)],
            &[("-a", 1), ("-b", 1), ("?a", 1), ("?b", 1), ("?c", 1)],
            Scope::Changes,
            &[
                (Enter, "-a"),
                (Leave, "-b"),
                (Repeat, "?a"),
                (Changed, "?b"),
                (Leave, "?c"),
            ],
        );
    }

    #[test]
    fn the_same_members_again_decide_nothing() {
        check(
            &[("a", 1), ("b", 2)],
            &[("a", 1), ("b", 2)],
            Scope::Changes,
            &[],
        );
    }

    #[test]
    fn an_empty_source_lets_everyone_leave() {
        check(
            &[],
            &[("a", 1), ("b", 1)],
            Scope::Changes,
            &[(Leave, "a"), (Leave, "b")],
        );
    }

    #[test]
    fn a_resync_also_repeats_those_who_stay() {
        check(
            &[("a", 1), ("c", 1)],
            &[("a", 1), ("b", 1)],
            Scope::Everyone,
            &[(Repeat, "a"), (Leave, "b"), (Enter, "c")],
        );
    }
}

#[cfg(test)]
mod laws {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::audience::{User, UserKind, Value};
    use crate::laws::{Users, cases, user, users};

    struct Listed<'a> {
        members: Vec<(&'a (UserKind, String), &'a i64)>,
        read: usize,
    }

    impl<'a> Listed<'a> {
        fn new(users: &'a Users<i64>) -> Self {
            Self {
                members: users.iter().collect(),
                read: 0,
            }
        }
    }

    impl Members for Listed<'_> {
        type Error = Infallible;

        fn advance(&mut self) -> Result<bool, Infallible> {
            self.read += 1;
            Ok(self.read <= self.members.len())
        }

        fn current(&self) -> Member<'_> {
            let (of, value) = self.members[self.read - 1];
            Member {
                user: user(of),
                anonymous_id: None,
                value: Value::Integer(*value),
                traits: "",
            }
        }
    }

    type Decided = (UserKind, String, Action, Option<i64>);

    /// The same by looking each user up in both sets.
    fn looked_up(source: &Users<i64>, snapshot: &Users<i64>, scope: Scope) -> Vec<Decided> {
        let everyone: BTreeSet<_> = source.keys().chain(snapshot.keys()).collect();
        let decide = |of: &(UserKind, String)| {
            let (action, value) = match (source.get(of), snapshot.get(of)) {
                (Some(now), None) => (Action::Enter, now),
                (None, Some(before)) => (Action::Leave, before),
                (Some(now), Some(before)) if now != before => (Action::Change, now),
                (Some(now), Some(_)) if scope == Scope::Everyone => (Action::Repeat, now),
                _ => return None,
            };
            Some((of.0, of.1.clone(), action, Some(*value)))
        };
        everyone.into_iter().filter_map(decide).collect()
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn a_merge_decides_what_looking_everyone_up_decides(
            source in users(0..3_i64),
            snapshot in users(0..3_i64),
            everyone in any::<bool>(),
        ) {
            let scope = if everyone { Scope::Everyone } else { Scope::Changes };
            let mut decided: Vec<Decided> = Vec::new();
            let tally = merge(
                &mut Listed::new(&source),
                &mut Listed::new(&snapshot),
                scope,
                |Change { action, member }| {
                    let value = match member.value {
                        Value::Integer(value) => Some(value),
                        _ => None,
                    };
                    let User { kind, id } = member.user;
                    decided.push((kind, id.to_owned(), action, value));
                    Ok::<(), Infallible>(())
                },
            )
            .unwrap();
            let expected = looked_up(&source, &snapshot, scope);
            let count = |action| expected.iter().filter(|decided| decided.2 == action).count() as u64;
            prop_assert_eq!(
                tally,
                Tally {
                    members: source.len() as u64,
                    delivered: snapshot.len() as u64,
                    added: count(Action::Enter),
                    changed: count(Action::Change),
                    removed: count(Action::Leave),
                    repeated: count(Action::Repeat),
                }
            );
            prop_assert_eq!(decided, expected);
        }
    }

    /// Users, and whether each is a member.
    struct Told(Vec<((UserKind, String), bool)>, usize);

    impl Members for Told {
        type Error = Infallible;

        fn advance(&mut self) -> Result<bool, Infallible> {
            self.1 += 1;
            Ok(self.1 <= self.0.len())
        }

        fn current(&self) -> Member<'_> {
            let (of, _) = &self.0[self.1 - 1];
            Member {
                user: user(of),
                anonymous_id: None,
                value: Value::True,
                traits: "",
            }
        }

        fn presence(&self) -> Presence {
            match self.0[self.1 - 1].1 {
                true => Presence::Member,
                false => Presence::Gone,
            }
        }
    }

    fn member(of: &(UserKind, String)) -> MemberBuf {
        MemberBuf {
            kind: of.0,
            id: of.1.clone(),
            ..MemberBuf::default()
        }
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// Of each user whether they are in the source, in the snapshot, and told of without need.
        #[test]
        fn what_a_change_query_tells_leads_to_the_same_plan(
            users in users(any::<(bool, bool, bool)>()),
        ) {
            let among = |is_so: fn(&(bool, bool, bool)) -> bool| {
                let found = users.iter().filter(move |(_, of)| is_so(of));
                found.map(|(of, (now, ..))| (of.clone(), *now)).collect::<Vec<_>>()
            };
            let now = || Told(among(|(now, ..)| *now), 0);
            let before = among(|(_, before, _)| *before);
            let told = || Told(among(|(now, before, anyway)| now != before || *anyway), 0);

            let mut merged = Vec::new();
            let snapshot = before.iter().map(|(of, _)| (of.clone(), true)).collect();
            let by_merge = merge(&mut now(), &mut Told(snapshot, 0), Scope::Changes, |change| {
                merged.push((change.action, change.member.user.kind, change.member.user.id.to_owned()));
                Ok::<(), Infallible>(())
            });
            let mut followed = Vec::new();
            let find = |user: User<'_>| {
                let found = before.iter().find(|(of, _)| of.0 == user.kind && of.1 == user.id);
                Ok(found.map(|(of, _)| member(of)))
            };
            let by_changes = follow(&mut told(), before.len() as u64, find, |change| {
                let is_member = change.member.value == Value::True;
                assert!(is_member, "{change:?}");
                followed.push((change.action, change.member.user.kind, change.member.user.id.to_owned()));
                Ok::<(), Infallible>(())
            });
            prop_assert_eq!(followed, merged);
            prop_assert_eq!(by_changes, by_merge);
        }
    }
}
