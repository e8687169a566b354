//! One message id: what the snapshot knows was delivered under it, and what landed.
//!
//! Pure. What is expected comes first, then what landed.

/// A record that may land, or must have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Whom it is counted for.
    pub(super) subject: usize,
    /// A hash of the line; `None` where the snapshot does not know its bytes any more.
    pub(super) bytes: Option<i64>,
    /// Whether the snapshot knows that it was delivered. One that waits in the journal may be there already.
    pub(super) must: bool,
    /// Where more about it is found.
    pub(super) row: i64,
}

impl Expected {
    fn fits(&self, landed: &Landed) -> bool {
        match self.bytes {
            Some(bytes) => bytes == landed.bytes,
            None => landed.is_authentic,
        }
    }
}

/// A line that landed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Landed {
    /// A hash of the line.
    pub(super) bytes: i64,
    /// Whether its id is that of what it says.
    pub(super) is_authentic: bool,
}

/// What a line that landed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Expected,
    /// The same bytes were there before. For this subject, as below.
    Duplicated(usize),
    /// Another one is expected under this id.
    Wrong(usize),
    /// Nothing is known of it.
    Unexpected,
}

#[derive(Default)]
pub(super) struct Group {
    /// Each with whether it has landed.
    expected: Vec<(Expected, bool)>,
    /// How many lines were wrong: each stands for one that is missing.
    wrong: usize,
}

impl Group {
    /// Another message id.
    pub(super) fn begin(&mut self) {
        self.expected.clear();
        self.wrong = 0;
    }

    pub(super) fn expect(&mut self, expected: Expected) {
        self.expected.push((expected, false));
    }

    /// Takes a line that landed.
    pub(super) fn land(&mut self, landed: &Landed) -> Verdict {
        let fitting = self
            .expected
            .iter_mut()
            .filter(|(expected, _)| expected.fits(landed))
            // What must have landed is looked for first.
            .min_by_key(|(expected, has_landed)| (*has_landed, !expected.must));
        match fitting {
            Some((_, has_landed)) if !*has_landed => {
                *has_landed = true;
                Verdict::Expected
            }
            Some((expected, _)) => Verdict::Duplicated(expected.subject),
            None => {
                let Some((expected, _)) = self.expected.first() else {
                    return Verdict::Unexpected;
                };
                self.wrong = (self.wrong + 1).min(self.expected.len());
                Verdict::Wrong(expected.subject)
            }
        }
    }

    /// What must have landed, and has not: neither as it was nor in another form.
    pub(super) fn missing(&self) -> impl Iterator<Item = Expected> {
        let lacking = self
            .expected
            .iter()
            .filter(|(expected, has_landed)| expected.must && !has_landed);
        lacking.map(|(expected, _)| *expected).skip(self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Duplicated, Unexpected, Wrong};

    /// Expected as `(bytes, must)`, landed as `(bytes, is authentic)`.
    #[track_caller]
    fn check(
        expected: &[(Option<i64>, bool)],
        landed: &[(i64, bool)],
        verdicts: &[Verdict],
        missing: usize,
    ) {
        let mut group = Group::default();
        for (bytes, must) in expected {
            group.expect(Expected {
                subject: 7,
                bytes: *bytes,
                must: *must,
                row: 0,
            });
        }
        let land = |(bytes, is_authentic): &(i64, bool)| {
            group.land(&Landed {
                bytes: *bytes,
                is_authentic: *is_authentic,
            })
        };
        let found: Vec<_> = landed.iter().map(land).collect();
        assert_eq!(found, verdicts);
        assert_eq!(group.missing().count(), missing);
    }

    const OK: Verdict = Verdict::Expected;

    #[test]
    fn what_was_delivered_must_have_landed() {
        check(&[(Some(5), true)], &[(5, true)], &[OK], 0);
        check(&[(Some(5), true)], &[], &[], 1);
    }

    #[test]
    fn what_waits_may_have_landed() {
        let waiting = [(Some(5), false)];
        check(&waiting, &[], &[], 0);
        check(&waiting, &[(5, true)], &[OK], 0);
    }

    #[test]
    fn repeats_are_counted_and_other_bytes_are_wrong() {
        let one = [(Some(5), true)];
        check(
            &one,
            &[(5, true); 3],
            &[OK, Duplicated(7), Duplicated(7)],
            0,
        );
        check(&one, &[(6, true)], &[Wrong(7)], 0);
        check(&one, &[(6, true), (5, true)], &[Wrong(7), OK], 0);
    }

    #[test]
    fn where_the_bytes_are_not_known_the_id_tells() {
        let one = [(None, true)];
        check(&one, &[(5, true)], &[OK], 0);
        check(&one, &[(5, false)], &[Wrong(7)], 0);
    }

    #[test]
    fn what_is_expected_nowhere_is_unexpected() {
        check(&[], &[(5, true)], &[Unexpected], 0);
    }

    #[test]
    fn calls_may_share_an_id() {
        let twice = [(Some(5), true), (Some(5), true), (Some(6), true)];
        check(&twice, &[(5, false), (6, false)], &[OK, OK], 1);
        check(
            &twice,
            &[(5, false), (5, false), (6, false)],
            &[OK, OK, OK],
            0,
        );
    }
}
