//! One message id: what the snapshot says was delivered under it, and what landed.
//!
//! Pure. What is expected comes first, then what landed; where a stream is not known, last.

/// A record that may land, or must have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Whom it is counted for.
    pub(super) subject: usize,
    pub(super) stream: usize,
    /// A hash of the line; `None` where the snapshot does not know its bytes any more.
    pub(super) bytes: Option<i64>,
    /// Whether the snapshot says that it was delivered. One that waits in the journal may be there already.
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
    /// `None` where nobody knows.
    pub(super) stream: Option<usize>,
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
    /// Another one is expected there under this id.
    Wrong(usize),
    /// Nothing is known of it.
    Unexpected,
}

#[derive(Default)]
pub(super) struct Group {
    /// Each with whether it has landed.
    expected: Vec<(Expected, bool)>,
    /// The streams of wrong lines, each of which stands for one that is missing.
    wrong: Vec<Option<usize>>,
}

impl Group {
    /// Another message id.
    pub(super) fn begin(&mut self) {
        self.expected.clear();
        self.wrong.clear();
    }

    pub(super) fn expect(&mut self, expected: Expected) {
        self.expected.push((expected, false));
    }

    /// Takes a line that landed.
    pub(super) fn land(&mut self, landed: &Landed) -> Verdict {
        let stream = landed.stream;
        let is_there = |expected: &Expected| stream.is_none_or(|stream| stream == expected.stream);
        let fitting = self
            .expected
            .iter_mut()
            .filter(|(expected, _)| is_there(expected) && expected.fits(landed))
            // What must have landed is looked for first.
            .min_by_key(|(expected, has_landed)| (*has_landed, !expected.must));
        match fitting {
            Some((_, has_landed)) if !*has_landed => {
                *has_landed = true;
                Verdict::Expected
            }
            Some((expected, _)) => Verdict::Duplicated(expected.subject),
            None => {
                let there = self
                    .expected
                    .iter()
                    .find(|(expected, _)| is_there(expected));
                let Some((expected, _)) = there else {
                    return Verdict::Unexpected;
                };
                let subject = expected.subject;
                if self.wrong.len() < self.expected.len() {
                    self.wrong.push(stream);
                }
                Verdict::Wrong(subject)
            }
        }
    }

    /// What must have landed, and has not: neither as it was nor in another form.
    pub(super) fn missing(&mut self) -> impl Iterator<Item = Expected> {
        let Self { expected, wrong } = self;
        expected.iter().filter_map(|(expected, has_landed)| {
            if *has_landed || !expected.must {
                return None;
            }
            let stands_for = |stream: &Option<usize>| stream.is_none_or(|it| it == expected.stream);
            if let Some(place) = wrong.iter().position(stands_for) {
                wrong.swap_remove(place);
                return None;
            }
            Some(*expected)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Duplicated, Unexpected, Wrong};

    /// Expected as `(stream, bytes, must)`, landed as `(stream, bytes, is authentic)`.
    #[track_caller]
    fn check(
        expected: &[(usize, Option<i64>, bool)],
        landed: &[(Option<usize>, i64, bool)],
        verdicts: &[Verdict],
        missing: &[usize],
    ) {
        let mut group = Group::default();
        for (stream, bytes, must) in expected {
            group.expect(Expected {
                subject: 7,
                stream: *stream,
                bytes: *bytes,
                must: *must,
                row: 0,
            });
        }
        let found: Vec<_> = landed
            .iter()
            .map(|(stream, bytes, is_authentic)| {
                group.land(&Landed {
                    stream: *stream,
                    bytes: *bytes,
                    is_authentic: *is_authentic,
                })
            })
            .collect();
        assert_eq!(found, verdicts);
        let streams: Vec<_> = group.missing().map(|expected| expected.stream).collect();
        assert_eq!(streams, missing);
    }

    const OK: Verdict = Verdict::Expected;
    const A: Option<usize> = Some(0);
    const B: Option<usize> = Some(1);

    #[test]
    fn what_was_delivered_must_have_landed_in_each_stream() {
        let both = [(0, Some(5), true), (1, Some(5), true)];
        check(&both, &[(A, 5, true), (B, 5, true)], &[OK, OK], &[]);
        check(&both, &[(B, 5, true)], &[OK], &[0]);
        check(&both, &[], &[], &[0, 1]);
        check(&both, &[(None, 5, true), (None, 5, true)], &[OK, OK], &[]);
        check(&both, &[(A, 5, true), (None, 5, true)], &[OK, OK], &[]);
    }

    #[test]
    fn what_waits_may_have_landed() {
        let waiting = [(0, Some(5), false)];
        check(&waiting, &[], &[], &[]);
        check(&waiting, &[(A, 5, true)], &[OK], &[]);
        let partly = [(0, Some(5), false), (1, Some(5), true)];
        check(&partly, &[(None, 5, true)], &[OK], &[]);
    }

    #[test]
    fn repeats_are_counted_and_other_bytes_are_wrong() {
        let one = [(0, Some(5), true)];
        check(
            &one,
            &[(A, 5, true); 3],
            &[OK, Duplicated(7), Duplicated(7)],
            &[],
        );
        check(&one, &[(A, 6, true)], &[Wrong(7)], &[]);
        check(&one, &[(A, 6, true), (A, 5, true)], &[Wrong(7), OK], &[]);
        let two = [(0, Some(5), true), (1, Some(5), true)];
        check(&two, &[(A, 6, true)], &[Wrong(7)], &[1]);
        check(
            &two,
            &[(A, 6, true), (A, 7, true)],
            &[Wrong(7), Wrong(7)],
            &[1],
        );
    }

    #[test]
    fn where_the_bytes_are_not_known_the_id_tells() {
        let one = [(0, None, true)];
        check(&one, &[(A, 5, true)], &[OK], &[]);
        check(&one, &[(A, 5, false)], &[Wrong(7)], &[]);
    }

    #[test]
    fn what_is_expected_elsewhere_or_nowhere_is_unexpected() {
        check(&[], &[(A, 5, true)], &[Unexpected], &[]);
        check(&[(0, Some(5), true)], &[(B, 5, true)], &[Unexpected], &[0]);
    }

    #[test]
    fn calls_may_share_an_id() {
        let twice = [(0, Some(5), true), (0, Some(5), true), (0, Some(6), true)];
        check(&twice, &[(A, 5, false), (A, 6, false)], &[OK, OK], &[0]);
        check(
            &twice,
            &[(A, 5, false), (A, 5, false), (A, 6, false)],
            &[OK, OK, OK],
            &[],
        );
    }
}
