//! What the records about one user in one stream come to, in the order of time.
//!
//! The same steps that the snapshot took when they were accepted: a user leaves by the identifiers of the last record, and
//! a record that repeats what is known changes nothing else.

use crate::audience::{Action, ValueBuf};

/// One record about the user.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) at: i64,
    pub(super) run: i64,
    /// `None` for a user who has left.
    pub(super) value: Option<ValueBuf>,
    pub(super) anonymous_id: Option<String>,
    pub(super) traits_hash: Option<i64>,
}

/// What is remembered of a member.
#[derive(Debug, PartialEq)]
pub(super) struct Remembered {
    pub(super) value: ValueBuf,
    pub(super) anonymous_id: Option<String>,
    pub(super) traits_hash: Option<i64>,
    pub(super) since: i64,
}

/// Two records of one time that hold different values.
#[derive(Debug, PartialEq)]
pub(super) struct Contradiction;

/// A user of one audience at one stream.
#[derive(Default)]
pub(super) struct UserHistory {
    last: Option<Record>,
    member: Option<Remembered>,
}

impl UserHistory {
    /// Takes the next record and tells what it did; `None` where it landed before.
    pub(super) fn take(&mut self, record: Record) -> Result<Option<Action>, Contradiction> {
        let last = self.last.as_ref().filter(|last| last.at == record.at);
        if last.is_some_and(|last| last.value != record.value) {
            return Err(Contradiction);
        }
        let is_new = last.is_none_or(|last| last.run != record.run);
        let action = self.apply(&record);
        self.last = Some(record);
        Ok(is_new.then_some(action))
    }

    fn apply(&mut self, record: &Record) -> Action {
        let Some(value) = &record.value else {
            self.member = None;
            return Action::Leave;
        };
        let (action, since) = match &self.member {
            Some(member) if member.value == *value => (Action::Repeat, member.since),
            Some(_) => (Action::Change, record.run),
            None => (Action::Enter, record.run),
        };
        self.member = Some(Remembered {
            value: value.clone(),
            anonymous_id: record.anonymous_id.clone(),
            traits_hash: record.traits_hash,
            since,
        });
        action
    }

    pub(super) const fn member(&self) -> Option<&Remembered> {
        self.member.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as `(run, value)`, where `-` is leaving. Expected: what each did, and the member as `value since run`.
    #[track_caller]
    fn check(records: &[(i64, &str)], actions: &[Action], member: &str) {
        let mut history = UserHistory::default();
        let mut found = Vec::new();
        for (run, value) in records {
            let record = Record {
                at: *run,
                run: *run,
                value: (*value != "-").then(|| ValueBuf::Text((*value).to_owned())),
                anonymous_id: Some(format!("anonymous {run}")),
                traits_hash: None,
            };
            found.extend(history.take(record).unwrap());
        }
        assert_eq!(found, actions);
        let remembered = history.member().map(|member| {
            let ValueBuf::Text(value) = &member.value else {
                panic!("{member:?}");
            };
            format!("{value} since {}", member.since)
        });
        assert_eq!(remembered.as_deref().unwrap_or("none"), member);
    }

    use Action::{Change, Enter, Leave, Repeat};

    #[test]
    fn the_latest_record_is_the_truth() {
        check(&[(1, "a")], &[Enter], "a since 1");
        check(&[(1, "a"), (2, "b")], &[Enter, Change], "b since 2");
        check(&[(1, "a"), (2, "-")], &[Enter, Leave], "none");
        check(
            &[(1, "a"), (2, "-"), (3, "a")],
            &[Enter, Leave, Enter],
            "a since 3",
        );
        check(&[(1, "-")], &[Leave], "none");
    }

    #[test]
    fn a_repeat_changes_no_value() {
        check(&[(1, "a"), (2, "a")], &[Enter, Repeat], "a since 1");
        // The same record twice.
        check(&[(1, "a"), (1, "a")], &[Enter], "a since 1");
    }

    #[test]
    fn two_values_at_one_time_are_a_contradiction() {
        let record = |value: &str, run| Record {
            run,
            value: Some(ValueBuf::Text(value.to_owned())),
            ..Record::default()
        };
        let mut history = UserHistory::default();
        assert_eq!(history.take(record("a", 1)), Ok(Some(Enter)));
        assert_eq!(history.take(record("a", 2)), Ok(Some(Repeat)));
        assert_eq!(history.take(record("b", 1)), Err(Contradiction));
    }

    #[test]
    fn a_member_is_known_by_the_ids_and_traits_of_the_last_record() {
        let mut history = UserHistory::default();
        for (run, value) in [(1, 5), (2, 6), (3, 6)] {
            let record = Record {
                at: run,
                run,
                value: Some(ValueBuf::Integer(value)),
                anonymous_id: Some(format!("anonymous {run}")),
                traits_hash: Some(run),
            };
            assert!(history.take(record).is_ok());
        }
        let expected = Remembered {
            value: ValueBuf::Integer(6),
            anonymous_id: Some("anonymous 3".to_owned()),
            traits_hash: Some(3),
            since: 2,
        };
        assert_eq!(history.member(), Some(&expected));
    }
}
