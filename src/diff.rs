//! Decides what to send from two facts: who is in the audience, and what each stream has accepted.
//!
//! One pass over cursors in the same order, whatever their size: the source is read once, and met by every stream's
//! members. Pure, so that "why was this person sent twice?" can be answered by a test instead of a log.

mod named;

use std::cmp::Ordering;
use std::sync::Arc;

use crate::audience::{Action, Change, Guard, Member, MemberBuf, User, Value};
use named::Named;
pub use named::UserIds;

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

    /// Whether the stream may have been told something else about the user.
    fn agreement(&self) -> Agreement {
        Agreement::Known
    }

    /// Whether the source has other extra traits of the user now than the stream was last told, where that matters.
    fn has_other_traits(&self, _now: &impl Members) -> bool
    where
        Self: Sized,
    {
        false
    }

    /// Whether the user is a member: a change query also reports users who are not.
    fn membership(&self) -> Membership {
        Membership::Member
    }
}

/// What a change query reports about a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Membership {
    #[default]
    Member,
    Gone,
}

/// How well the snapshot knows what the stream was told about a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// The stream was told what the snapshot holds.
    Known,
    /// A member, and the stream may have been told something else.
    InDoubt,
    /// Not a member, and the stream may have been told that the user is one.
    Phantom,
}

/// Which users a plan decides about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Users who entered, changed or left.
    #[default]
    Changes,
    /// Also every member who stays.
    Everyone,
    /// The same, but only these users.
    Users(Arc<UserIds>),
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
    /// Sent again unchanged: by a resync, or since the stream may have been told something else.
    pub repeated: u64,
    /// Ids in the scope that are neither in the source nor in the snapshot; `None` where the scope names no users.
    pub unknown: Option<u64>,
}

impl Tally {
    /// Counts one decided change.
    const fn count(&mut self, action: Action) {
        match action {
            Action::Enter => self.added += 1,
            Action::Change => self.changed += 1,
            Action::Repeat => self.repeated += 1,
            Action::Leave => self.removed += 1,
        }
    }

    /// What the guard keeps from being sent.
    pub fn held_by(&self, guard: &Guard) -> Holds {
        let percent = |count: u64| count as f64 * 100.0 / self.delivered.max(1) as f64;
        let is_over = |count: u64, most: Option<f64>| {
            self.delivered > 0 && most.is_some_and(|most| percent(count) > most)
        };
        let emptied = self.members == 0 && self.removed > 0 && !guard.allow_empty;
        let is_large = self.removed > 0
            && self.removed >= guard.min_removed
            && percent(self.removed) > guard.max_removed_percent;
        Holds {
            removals: emptied || is_large,
            additions: is_over(self.added, guard.max_added_percent),
            changes: is_over(self.changed, guard.max_changed_percent),
        }
    }

    /// All changes that were decided.
    pub const fn decided(&self) -> u64 {
        self.added + self.changed + self.repeated + self.removed
    }
}

/// Which changes of a plan the guard holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holds {
    pub removals: bool,
    pub additions: bool,
    pub changes: bool,
}

/// One feed in a merge: what its stream has accepted, and how far the merge has come in it.
pub struct Follower<K> {
    members: K,
    /// Members who stay are sent again.
    repeats: bool,
    /// `None` where every user is decided about.
    named: Option<Named>,
    /// Whether `members` stands on a member that the source has not reached yet.
    has_next: bool,
    tally: Tally,
}

impl<K: Members> Follower<K> {
    /// Starts at the first member.
    pub fn new(mut members: K, scope: Scope) -> Result<Self, K::Error> {
        let has_next = members.advance()?;
        let repeats = scope != Scope::Changes;
        let named = match scope {
            Scope::Users(ids) => Some(Named::new(ids)),
            Scope::Changes | Scope::Everyone => None,
        };
        Ok(Self {
            members,
            repeats,
            named,
            has_next,
            tally: Tally::default(),
        })
    }

    fn next(&mut self) -> Result<(), K::Error> {
        self.has_next = self.members.advance()?;
        Ok(())
    }

    /// Decides about every member before `until` (about all that are left without it): they have left.
    #[inline]
    fn leave_until<E: From<K::Error>>(
        &mut self,
        until: Option<User<'_>>,
        each: &mut impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.has_next && until.is_none_or(|until| self.members.user() < until) {
            self.tally.delivered += u64::from(self.members.agreement() != Agreement::Phantom);
            if is_in_scope(&mut self.named, || self.members.user()) {
                self.tally.count(Action::Leave);
                each(Change {
                    action: Action::Leave,
                    member: self.members.current(),
                })?;
            }
            self.next()?;
        }
        Ok(())
    }

    /// Decides about the member that the source stands on.
    #[inline]
    fn meet<E: From<K::Error>>(
        &mut self,
        source: &impl Members,
        each: &mut impl FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.tally.members += 1;
        let is_known = self.has_next && {
            // Nearly every member of nearly every plan is where the source is: one comparison decides.
            match self.members.user().cmp(&source.user()) {
                Ordering::Equal => true,
                Ordering::Greater => false,
                Ordering::Less => {
                    self.leave_until(Some(source.user()), each)?;
                    self.has_next && self.members.user() == source.user()
                }
            }
        };
        let agreement = match is_known {
            true => self.members.agreement(),
            false => Agreement::Phantom,
        };
        self.tally.delivered += u64::from(agreement != Agreement::Phantom);
        let action = match agreement {
            Agreement::Phantom => Some(Action::Enter),
            _ if source.value() != self.members.value() => Some(Action::Change),
            _ if self.members.has_other_traits(source) => Some(Action::Change),
            Agreement::InDoubt => Some(Action::Repeat),
            Agreement::Known if self.repeats => Some(Action::Repeat),
            Agreement::Known => None,
        };
        if let Some(action) = action
            && is_in_scope(&mut self.named, || source.user())
        {
            self.tally.count(action);
            each(Change {
                action,
                member: source.current(),
            })?;
        }
        if is_known {
            self.next()?;
        }
        Ok(())
    }

    /// What the merge saw and decided until now.
    fn tally(&self) -> Tally {
        Tally {
            unknown: self.named.as_ref().map(Named::not_found),
            ..self.tally
        }
    }
}

/// Whether a plan decides about a user. It asks in the order of users, and about each who may be decided about.
#[inline]
fn is_in_scope<'u>(named: &mut Option<Named>, user: impl FnOnce() -> User<'u>) -> bool {
    named.as_mut().is_none_or(|named| named.has(user()))
}

/// Compares the source with each follower and hands on each change with the follower's position; each follower's
/// changes come in the order of users. The source is read once.
///
/// An error of a cursor, or of `each`, ends the merge: what it had decided until then is worth nothing.
pub fn merge<S, K, E>(
    source: &mut S,
    followers: &mut [Follower<K>],
    mut each: impl FnMut(usize, Change<'_>) -> Result<(), E>,
) -> Result<Vec<Tally>, E>
where
    S: Members,
    K: Members,
    E: From<S::Error> + From<K::Error>,
{
    while source.advance()? {
        for (position, follower) in followers.iter_mut().enumerate() {
            follower.meet(source, &mut |change| each(position, change))?;
        }
    }
    leave(followers, each)
}

/// Decides that every member leaves that the merge has not reached. Without a merge, that is every member.
pub fn leave<K, E>(
    followers: &mut [Follower<K>],
    mut each: impl FnMut(usize, Change<'_>) -> Result<(), E>,
) -> Result<Vec<Tally>, E>
where
    K: Members,
    E: From<K::Error>,
{
    let mut tallies = Vec::with_capacity(followers.len());
    for (position, follower) in followers.iter_mut().enumerate() {
        follower.leave_until(None, &mut |change| each(position, change))?;
        tallies.push(follower.tally());
    }
    Ok(tallies)
}

/// What the snapshot has of a user.
pub struct Found {
    pub member: MemberBuf,
    /// As [`Members::has_other_traits`].
    pub has_other_traits: bool,
}

/// Decides from what a change query reports: each reported user is looked up. About everyone else the snapshot is right.
///
/// `find` looks a reported user up in the snapshot, which has `delivered` members, none of them in doubt.
pub fn follow<S, E>(
    source: &mut S,
    delivered: &[u64],
    mut find: impl FnMut(usize, Member<'_>) -> Result<Option<Found>, E>,
    mut each: impl FnMut(usize, Change<'_>) -> Result<(), E>,
) -> Result<Vec<Tally>, E>
where
    S: Members,
    E: From<S::Error>,
{
    let tally = |delivered: &u64| Tally {
        delivered: *delivered,
        ..Tally::default()
    };
    let mut tallies: Vec<Tally> = delivered.iter().map(tally).collect();
    while source.advance()? {
        let now = source.current();
        for (position, tally) in tallies.iter_mut().enumerate() {
            let before = find(position, now)?;
            let (action, member) = match (source.membership(), &before) {
                (Membership::Member, None) => (Action::Enter, now),
                (Membership::Member, Some(before)) if before.has_other_traits => {
                    (Action::Change, now)
                }
                (Membership::Gone, Some(before)) => (Action::Leave, before.member.as_member()),
                _ => continue,
            };
            tally.count(action);
            each(position, Change { action, member })?;
        }
    }
    for tally in &mut tallies {
        tally.members = (tally.delivered + tally.added).saturating_sub(tally.removed);
    }
    Ok(tallies)
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

        /// The first character of a name tells it.
        fn agreement(&self) -> Agreement {
            match self.0[self.1 - 1].0.as_bytes()[0] {
                b'?' => Agreement::InDoubt,
                b'-' => Agreement::Phantom,
                _ => Agreement::Known,
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
        let mut followers = [Follower::new(list(snapshot), scope).unwrap()];
        let tallies = merge(&mut list(source), &mut followers, |_, change| {
            decided.push((change.action, change.member.user.id.to_owned()));
            Ok::<(), Infallible>(())
        });
        let tally = tallies.unwrap()[0];
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
        assert_eq!(tally.decided(), expected.len() as u64);
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

    /// The stream may have been told something else than the snapshot holds.
    #[test]
    fn a_user_in_doubt_is_always_decided_about() {
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
    fn a_new_stream_gets_everyone_beside_the_deltas_of_another() {
        let mut decided = Vec::new();
        let known = Follower::new(list(&[("a", 1), ("b", 1)]), Scope::Changes).unwrap();
        let new = Follower::new(list(&[]), Scope::Changes).unwrap();
        merge(
            &mut list(&[("b", 1), ("c", 1)]),
            &mut [known, new],
            |position, change| {
                decided.push((position, change.action, change.member.user.id.to_owned()));
                Ok::<(), Infallible>(())
            },
        )
        .unwrap();
        decided.sort_by_key(|(position, ..)| *position);
        let expected = [
            (0, Leave, "a"),
            (0, Enter, "c"),
            (1, Enter, "b"),
            (1, Enter, "c"),
        ];
        assert_eq!(
            decided,
            expected.map(|(position, action, id)| (position, action, id.to_owned()))
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

    fn only(ids: &[&str]) -> Scope {
        let ids = ids.iter().map(|id| (*id).into()).collect();
        Scope::Users(Arc::new(UserIds::new(ids)))
    }

    #[test]
    fn only_users_who_are_named_are_decided() {
        let source = [("a", 1), ("c", 1), ("d", 2), ("e", 1), ("f", 2)];
        let snapshot = [("b", 1), ("bb", 1), ("c", 1), ("d", 1), ("f", 1), ("g", 1)];
        let everyone = [
            (Enter, "a"),
            (Leave, "b"),
            (Leave, "bb"),
            (Repeat, "c"),
            (Changed, "d"),
            (Enter, "e"),
            (Changed, "f"),
            (Leave, "g"),
        ];
        check(&source, &snapshot, Scope::Everyone, &everyone);
        for first in 0..everyone.len() {
            for last in first..everyone.len() {
                let named = &everyone[first..=last];
                let ids: Vec<&str> = named.iter().map(|(_, id)| *id).collect();
                check(&source, &snapshot, only(&ids), named);
            }
        }
        check(&source, &snapshot, only(&["", "aa", "h"]), &[]);
    }

    #[test]
    fn a_stream_that_may_have_been_told_otherwise_is_told_only_about_those_who_are_named() {
        check(
            &[("?a", 1), ("?b", 2)],
            &[("-a", 1), ("-b", 1), ("?a", 1), ("?b", 1), ("?c", 1)],
            only(&["-b", "?a", "?c"]),
            &[(Leave, "-b"), (Repeat, "?a"), (Leave, "?c")],
        );
    }

    #[test]
    fn the_guard_holds_only_what_is_both_many_and_a_large_part() {
        let guard = Guard::default();
        let check = |removed, delivered, members, held| {
            assert_eq!(
                plan(removed, delivered, members).held_by(&guard).removals,
                held,
                "{removed} of {delivered}, {members} left"
            );
        };
        check(99, 100, 1, false);
        check(100, 100, 1, true);
        check(100, 333, 233, true);
        check(300, 1000, 700, false);
        check(301, 1000, 699, true);
        check(1, 1, 0, true);
        check(0, 0, 0, false);
    }

    #[test]
    fn an_empty_source_may_be_allowed_and_is_then_still_bound_by_the_percentage() {
        let guard = Guard {
            allow_empty: true,
            ..Guard::default()
        };
        assert!(!plan(5, 5, 0).held_by(&guard).removals);
        assert!(plan(500, 500, 0).held_by(&guard).removals);
    }

    #[test]
    fn additions_and_changes_are_held_where_the_guard_bounds_them() {
        let guard = Guard {
            max_added_percent: Some(50.0),
            max_changed_percent: Some(0.0),
            ..Guard::default()
        };
        let check = |added, changed, delivered, expected: (bool, bool)| {
            let plan = Tally {
                members: delivered + added,
                delivered,
                added,
                changed,
                ..Tally::default()
            };
            let holds = plan.held_by(&guard);
            assert_eq!((holds.additions, holds.changes), expected, "{plan:?}");
            let unbounded = plan.held_by(&Guard::default());
            assert_eq!(unbounded, Holds::default());
        };
        check(50, 0, 100, (false, false));
        check(51, 1, 100, (true, true));
        // A first sync.
        check(1_000, 0, 0, (false, false));
    }

    fn plan(removed: u64, delivered: u64, members: u64) -> Tally {
        Tally {
            members,
            delivered,
            removed,
            ..Tally::default()
        }
    }
}

#[cfg(test)]
mod laws {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::collection::vec;
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
    fn looked_up(source: &Users<i64>, snapshot: &Users<i64>, scope: &Scope) -> Vec<Decided> {
        let everyone: BTreeSet<_> = source.keys().chain(snapshot.keys()).collect();
        let decide = |of: &(UserKind, String)| {
            if let Scope::Users(ids) = scope
                && !ids.contains(user(of))
            {
                return None;
            }
            let (action, value) = match (source.get(of), snapshot.get(of)) {
                (Some(now), None) => (Action::Enter, now),
                (None, Some(before)) => (Action::Leave, before),
                (Some(now), Some(before)) if now != before => (Action::Change, now),
                (Some(now), Some(_)) if *scope != Scope::Changes => (Action::Repeat, now),
                _ => return None,
            };
            Some((of.0, of.1.clone(), action, Some(*value)))
        };
        everyone.into_iter().filter_map(decide).collect()
    }

    /// Ids in a scope that are in neither, whatever their kind.
    fn unknown(source: &Users<i64>, snapshot: &Users<i64>, scope: &Scope) -> Option<u64> {
        let Scope::Users(ids) = scope else {
            return None;
        };
        let known: BTreeSet<&str> = source
            .keys()
            .chain(snapshot.keys())
            .map(|of| &*of.1)
            .collect();
        Some(ids.0.iter().filter(|id| !known.contains(&***id)).count() as u64)
    }

    fn scopes() -> impl Strategy<Value = Scope> {
        let named = |users: Users<i64>| {
            let ids = users.into_keys().map(|(_, id)| id.into()).collect();
            Scope::Users(Arc::new(UserIds::new(ids)))
        };
        prop_oneof![
            Just(Scope::Changes),
            Just(Scope::Everyone),
            users(0..1_i64).prop_map(named)
        ]
    }

    proptest! {
        #![proptest_config(cases(512))]

        /// Each follower gets what it would get alone, by looking each user up.
        #[test]
        fn a_merge_decides_what_looking_everyone_up_decides(
            source in users(0..3_i64),
            snapshots in vec((users(0..3_i64), scopes()), 1..4),
        ) {
            let followers = snapshots.iter().map(|(snapshot, scope)| Follower::new(Listed::new(snapshot), scope.clone()));
            let mut followers = followers.collect::<Result<Vec<_>, _>>().unwrap();
            let mut decided: Vec<Vec<Decided>> = vec![Vec::new(); snapshots.len()];
            let tallies = merge(
                &mut Listed::new(&source),
                &mut followers,
                |position, Change { action, member }| {
                    let value = match member.value {
                        Value::Integer(value) => Some(value),
                        _ => None,
                    };
                    let User { kind, id } = member.user;
                    decided[position].push((kind, id.to_owned(), action, value));
                    Ok::<(), Infallible>(())
                },
            )
            .unwrap();
            for (position, (snapshot, scope)) in snapshots.iter().enumerate() {
                let expected = looked_up(&source, snapshot, scope);
                let count = |action| expected.iter().filter(|decided| decided.2 == action).count() as u64;
                prop_assert_eq!(
                    tallies[position],
                    Tally {
                        members: source.len() as u64,
                        delivered: snapshot.len() as u64,
                        added: count(Action::Enter),
                        changed: count(Action::Change),
                        removed: count(Action::Leave),
                        repeated: count(Action::Repeat),
                        unknown: unknown(&source, snapshot, scope),
                    }
                );
                prop_assert_eq!(&decided[position], &expected);
            }
        }
    }

    /// Users, and whether each is a member.
    struct Reported(Vec<((UserKind, String), bool)>, usize);

    impl Members for Reported {
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

        fn membership(&self) -> Membership {
            match self.0[self.1 - 1].1 {
                true => Membership::Member,
                false => Membership::Gone,
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

        /// For each user: whether they are in the source, in the snapshot, and reported without need.
        #[test]
        fn what_a_change_query_reports_leads_to_the_same_plan(
            users in users(any::<(bool, bool, bool)>()),
        ) {
            let among = |is_so: fn(&(bool, bool, bool)) -> bool| {
                let found = users.iter().filter(move |(_, of)| is_so(of));
                found.map(|(of, (now, ..))| (of.clone(), *now)).collect::<Vec<_>>()
            };
            let now = || Reported(among(|(now, ..)| *now), 0);
            let before = among(|(_, before, _)| *before);
            let reported = || Reported(among(|(now, before, anyway)| now != before || *anyway), 0);

            let mut merged = Vec::new();
            let snapshot = before.iter().map(|(of, _)| (of.clone(), true)).collect();
            let mut followers = [Follower::new(Reported(snapshot, 0), Scope::Changes).unwrap()];
            let by_merge = merge(&mut now(), &mut followers, |_, change| {
                merged.push((change.action, change.member.user.kind, change.member.user.id.to_owned()));
                Ok::<(), Infallible>(())
            });
            let mut followed = Vec::new();
            let find = |_, now: Member<'_>| {
                let found = before.iter().find(|(of, _)| user(of) == now.user);
                Ok(found.map(|(of, _)| Found { member: member(of), has_other_traits: false }))
            };
            let by_changes = follow(&mut reported(), &[before.len() as u64], find, |_, change| {
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
