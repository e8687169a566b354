//! What the records about one user come to, told in the order of time.
//!
//! The same steps that the snapshot took when they were accepted: who enters is known by the identifiers and the run
//! that they entered with, and a record that repeats what is known changes nothing.

use crate::audience::{Action, ValueBuf};

/// One record about the user, in one stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    pub(super) at: i64,
    pub(super) run: i64,
    /// `None` for one who has left.
    pub(super) value: Option<ValueBuf>,
    pub(super) anonymous_id: Option<String>,
    /// `None` where nobody knows the stream, and then it counts for all.
    pub(super) stream: Option<usize>,
}

/// What is remembered of a member.
#[derive(Debug, PartialEq)]
pub(super) struct Remembered {
    pub(super) value: ValueBuf,
    pub(super) anonymous_id: Option<String>,
    pub(super) since: i64,
}

/// Two records of one time that say different things.
#[derive(Debug, PartialEq)]
pub(super) struct Contradiction;

/// A user at one audience.
pub(super) struct Story {
    /// The streams that must agree.
    streams: Vec<usize>,
    /// For each of them: whether it says that the user is a member,
    says_member: Vec<bool>,
    /// and whether it has the last record.
    has_last: Vec<bool>,
    last: Option<Told>,
    member: Option<Remembered>,
}

impl Story {
    pub(super) fn new(streams: Vec<usize>) -> Self {
        Self {
            says_member: vec![false; streams.len()],
            has_last: vec![false; streams.len()],
            streams,
            last: None,
            member: None,
        }
    }

    /// Another user of the same audience.
    pub(super) fn begin(&mut self) {
        self.says_member.fill(false);
        self.has_last.fill(false);
        self.last = None;
        self.member = None;
    }

    /// Takes the next record and says what it did; `None` where it was told already, in another stream or twice.
    pub(super) fn tell(&mut self, told: Told) -> Result<Option<Action>, Contradiction> {
        let last = self.last.as_ref().filter(|last| last.at == told.at);
        if last.is_some_and(|last| last.value != told.value) {
            return Err(Contradiction);
        }
        let is_new = last.is_none_or(|last| last.run != told.run);
        if is_new {
            self.has_last.fill(false);
        }
        for (place, stream) in self.streams.iter().enumerate() {
            if told.stream.is_none_or(|told| told == *stream) {
                self.says_member[place] = told.value.is_some();
                self.has_last[place] = true;
            }
        }
        let action = self.apply(&told);
        self.last = Some(told);
        Ok(is_new.then_some(action))
    }

    fn apply(&mut self, told: &Told) -> Action {
        let Some(value) = &told.value else {
            // Whom one stream still has for a member stays one: a resync can then tell all streams that they left.
            if !self.says_member.contains(&true) {
                self.member = None;
            }
            return Action::Leave;
        };
        match &mut self.member {
            Some(member) if member.value == *value => Action::Repeat,
            Some(member) => {
                member.value = value.clone();
                member.since = told.run;
                Action::Change
            }
            None => {
                self.member = Some(Remembered {
                    value: value.clone(),
                    anonymous_id: told.anonymous_id.clone(),
                    since: told.run,
                });
                Action::Enter
            }
        }
    }

    pub(super) const fn member(&self) -> Option<&Remembered> {
        self.member.as_ref()
    }

    /// Whether some stream lacks the last record.
    pub(super) fn disagrees(&self) -> bool {
        self.has_last.contains(&false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as `(run, value, streams)`, where `-` is leaving and a stream `*` is unknown; two streams, 0 and 1, must
    /// agree. Expected: what each did, the member as `value since run`, and whether the streams disagree.
    #[track_caller]
    fn check(records: &[(i64, &str, &str)], actions: &[Action], member: &str, disagrees: bool) {
        let mut story = Story::new(vec![0, 1]);
        let mut found = Vec::new();
        for (run, value, streams) in records {
            for stream in streams.chars() {
                let told = Told {
                    at: *run,
                    run: *run,
                    value: (*value != "-").then(|| ValueBuf::Text((*value).to_owned())),
                    anonymous_id: Some(format!("anonymous {run}")),
                    stream: stream.to_digit(10).map(|stream| stream as usize),
                };
                found.extend(story.tell(told).unwrap());
            }
        }
        assert_eq!(found, actions);
        let remembered = story.member().map(|member| {
            let ValueBuf::Text(value) = &member.value else {
                panic!("{member:?}");
            };
            format!("{value} since {}", member.since)
        });
        assert_eq!(remembered.as_deref().unwrap_or("none"), member);
        assert_eq!(story.disagrees(), disagrees);
    }

    use Action::{Change, Enter, Leave, Repeat};

    #[test]
    fn the_latest_record_is_the_truth() {
        check(&[(1, "a", "01")], &[Enter], "a since 1", false);
        check(
            &[(1, "a", "01"), (2, "b", "01")],
            &[Enter, Change],
            "b since 2",
            false,
        );
        check(
            &[(1, "a", "01"), (2, "-", "01")],
            &[Enter, Leave],
            "none",
            false,
        );
        check(
            &[(1, "a", "01"), (2, "-", "01"), (3, "a", "01")],
            &[Enter, Leave, Enter],
            "a since 3",
            false,
        );
        check(&[(1, "-", "01")], &[Leave], "none", false);
    }

    #[test]
    fn a_repeat_changes_nothing() {
        check(
            &[(1, "a", "01"), (2, "a", "01")],
            &[Enter, Repeat],
            "a since 1",
            false,
        );
        // The same record in both streams, and twice in one.
        check(&[(1, "a", "0011")], &[Enter], "a since 1", false);
    }

    #[test]
    fn a_stream_that_lacks_the_last_record_disagrees() {
        check(&[(1, "a", "0")], &[Enter], "a since 1", true);
        check(
            &[(1, "a", "01"), (2, "b", "1")],
            &[Enter, Change],
            "b since 2",
            true,
        );
        check(
            &[(1, "a", "0"), (2, "b", "01")],
            &[Enter, Change],
            "b since 2",
            false,
        );
    }

    #[test]
    fn whom_one_stream_still_has_for_a_member_is_one() {
        check(
            &[(1, "a", "01"), (2, "-", "0")],
            &[Enter, Leave],
            "a since 1",
            true,
        );
        check(
            &[(1, "a", "01"), (2, "-", "0"), (3, "-", "1")],
            &[Enter, Leave, Leave],
            "none",
            true,
        );
        // A stream that the mapping does not name any more has no say.
        check(
            &[(1, "a", "7"), (2, "-", "01")],
            &[Enter, Leave],
            "none",
            false,
        );
    }

    #[test]
    fn a_record_whose_stream_nobody_knows_counts_for_all() {
        check(
            &[(1, "a", "*"), (2, "-", "*")],
            &[Enter, Leave],
            "none",
            false,
        );
    }

    #[test]
    fn two_things_at_one_time_are_a_contradiction() {
        let told = |value: &str, run| Told {
            run,
            value: Some(ValueBuf::Text(value.to_owned())),
            ..Told::default()
        };
        let mut story = Story::new(vec![0]);
        assert_eq!(story.tell(told("a", 1)), Ok(Some(Enter)));
        assert_eq!(story.tell(told("a", 2)), Ok(Some(Repeat)));
        assert_eq!(story.tell(told("b", 1)), Err(Contradiction));
        story.begin();
        assert_eq!(story.tell(told("b", 1)), Ok(Some(Enter)));
    }

    #[test]
    fn a_member_is_known_by_the_ids_they_entered_with() {
        let mut story = Story::new(Vec::new());
        for (run, value) in [(1, 5), (2, 6)] {
            let told = Told {
                at: run,
                run,
                value: Some(ValueBuf::Integer(value)),
                anonymous_id: Some(format!("anonymous {run}")),
                stream: None,
            };
            assert!(story.tell(told).is_ok());
        }
        let expected = Remembered {
            value: ValueBuf::Integer(6),
            anonymous_id: Some("anonymous 1".to_owned()),
            since: 2,
        };
        assert_eq!(story.member(), Some(&expected));
    }
}
