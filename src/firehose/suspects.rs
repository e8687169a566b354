//! Which line can never be delivered, and which stream refuses everything.
//!
//! A line that is refused alone may be to blame, and so may the stream. What tells them apart is whether the stream
//! accepts other lines. Pure: answers and the time come in.

use std::cmp::Reverse;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Cause, Failure};
use crate::batch::{MAX_CALL_RECORDS, Record};

/// A line is dead when it was refused alone this many times.
const REFUSALS: u32 = 5;
/// If a code means throttling or an internal error, which pass, the refusals must span at least this long.
const PASSING_TIME: Duration = Duration::from_secs(30);
/// Waited after each of these refusals. Together they are [`PASSING_TIME`], and the first ones are short: most such
/// refusals are over at once.
const PASSING_GAPS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(900),
    Duration::from_secs(5),
    Duration::from_secs(24),
];
/// Waited after the first of other failures; then twice as long each time.
const FIRST_GAP: Duration = Duration::from_millis(50);
/// Waited at most.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// While a stream accepts nothing, other lines get this long to be offered to it.
const PATIENCE: Duration = Duration::from_secs(3);
/// Content of this many lines is rejected, and nothing accepted in between: then the stream rejects everything, and the
/// lines that are left need not be offered one by one. It is more than 16 full calls, which may be under way together:
/// bad lines in all of them but one keep no good line from being delivered.
const MOST_REJECTED: usize = 20 * MAX_CALL_RECORDS;

/// A line that failed alone, or always failed while others were accepted. It is tried again alone.
#[derive(Debug)]
pub struct Suspect {
    /// Of one line.
    pub record: Record,
    /// The number of the first answer that refused it, alone or not.
    first_refused: u64,
    /// How often it was refused alone, and since when.
    refusals: u32,
    refused_since: Option<Instant>,
    /// A code of a refusal meant throttling or an internal error.
    is_passing: bool,
    /// How often it was tried alone in vain.
    failures: u32,
    last: Failure,
    pub(super) is_maybe_accepted: bool,
    pub(super) next_try: Instant,
}

impl Suspect {
    /// A line that failed in calls with others. It is yet to be tried alone.
    pub(super) fn new(record: Record, first_refused: u64, last: Failure, now: Instant) -> Self {
        // Its bytes are a part of a whole chunk, which need not wait with it.
        let data = Bytes::copy_from_slice(&record.data);
        Self {
            record: Record { data, ..record },
            first_refused,
            refusals: 0,
            refused_since: None,
            is_passing: false,
            failures: 0,
            is_maybe_accepted: last.is_maybe_accepted,
            last,
            next_try: now,
        }
    }

    /// Takes in that it failed alone.
    pub(super) fn fail(&mut self, failure: Failure, evidence: &mut Evidence, now: Instant) {
        self.failures += 1;
        self.is_maybe_accepted |= failure.is_maybe_accepted;
        let is_passing = matches!(failure.cause, Cause::Throttled | Cause::InternalError);
        // Without an answer nothing was refused.
        if failure.cause != Cause::Unanswered {
            if self.refusals == 0 {
                evidence.refused_alone(is_passing);
            }
            self.refusals += 1;
            self.refused_since.get_or_insert(now);
            self.is_passing |= is_passing;
        }
        let gap = match is_passing {
            true => PASSING_GAPS
                .get(self.refusals as usize - 1)
                .copied()
                .unwrap_or(LONGEST_GAP),
            false => self.gap(),
        };
        self.next_try = now + gap;
        self.last = failure;
    }

    /// Takes in that a try could not be made.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.failures += 1;
        self.next_try = now + self.gap();
    }

    /// Orders lines by who is tried next. Of those whose time has come it is the one that was refused most often: if the
    /// stream refuses everything, one line is enough to find out.
    pub(super) fn turn(&self, now: Instant) -> impl Ord + use<> {
        (self.next_try.max(now), Reverse(self.refusals))
    }

    fn gap(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        LONGEST_GAP.min(FIRST_GAP * (1 << doublings))
    }

    /// The code of the last failure, and its words.
    pub(super) fn reason(&self) -> (String, String) {
        let Failure { code, message, .. } = &self.last;
        let message = match message.is_empty() {
            true => format!("refused {} times", self.refusals),
            false => message.clone(),
        };
        (code.clone(), message)
    }

    /// The last failure in words, without anything of the line.
    pub(super) fn last_failure(&self) -> String {
        self.last.to_string()
    }

    /// What to do after it failed.
    pub(super) fn verdict(&self, evidence: &Evidence, now: Instant) -> Verdict {
        let Some(refused_since) = self.refused_since.filter(|_| self.refusals >= REFUSALS) else {
            return Verdict::TryAgain;
        };
        let time = now.duration_since(refused_since);
        if self.is_passing && time < PASSING_TIME {
            return Verdict::TryAgain;
        }
        if evidence.has_accepted_since(self.first_refused) {
            return Verdict::Dead;
        }
        // Others are yet to be offered, or were offered and have no answer.
        if evidence.offering > 0 || evidence.is_cut_short || time < PATIENCE {
            return Verdict::TryAgain;
        }
        // From here on, every line that was offered since is a suspect, too.
        let is_only_one = evidence.refused_alone <= 1;
        match (evidence.has_accepted(), is_only_one) {
            (true, _) => Verdict::Dead,
            (false, true) if evidence.has_accepted_before => Verdict::Dead,
            // An outage looks like this.
            (false, false) if !self.is_passing => Verdict::RefusesEverything,
            (false, _) => Verdict::TryAgain,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    TryAgain,
    /// The line can never be delivered.
    Dead,
    /// The stream also refused a call without this line, and accepts nothing.
    RefusesEverything,
}

/// What a stream did in this command or tick, as far as it tells something about suspects.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// The stream accepted some line before this command.
    has_accepted_before: bool,
    /// How many calls were answered, or given up.
    answers: u64,
    /// With which of them it last accepted something.
    accepted_at: Option<u64>,
    /// Lines that were refused alone since then.
    refused_alone: usize,
    /// Those of them whose content is rejected.
    rejected_alone: usize,
    /// Deliveries under way: not all of their lines were offered yet.
    offering: usize,
    /// A delivery ended before all of its lines were offered.
    is_cut_short: bool,
}

impl Evidence {
    pub(super) fn begin(&mut self) {
        self.accepted_at = None;
        (self.refused_alone, self.rejected_alone) = (0, 0);
        self.is_cut_short = false;
    }

    /// Counts a call, and tells its number.
    pub(super) const fn answered(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    /// How many were counted.
    pub(super) const fn answers(&self) -> u64 {
        self.answers
    }

    /// The last call that was counted was accepted, or part of it.
    pub(super) const fn accepted(&mut self) {
        self.accepted_at = Some(self.answers);
        (self.refused_alone, self.rejected_alone) = (0, 0);
    }

    pub(super) fn refused_alone(&mut self, is_passing: bool) {
        self.refused_alone += 1;
        self.rejected_alone += usize::from(!is_passing);
    }

    pub(super) const fn note_accepted_before(&mut self, has_accepted: bool) {
        self.has_accepted_before |= has_accepted;
    }

    /// A delivery begins to offer its lines.
    pub(super) const fn begin_offering(&mut self) {
        self.offering += 1;
    }

    /// A delivery ends. `is_all`: each of its lines was offered.
    pub(super) const fn end_offering(&mut self, is_all: bool) {
        self.offering -= 1;
        self.is_cut_short |= !is_all;
    }

    pub(super) const fn has_accepted(&self) -> bool {
        self.accepted_at.is_some()
    }

    /// Whether something was accepted with this answer or later.
    pub(super) fn has_accepted_since(&self, answer: u64) -> bool {
        self.accepted_at.is_some_and(|accepted| accepted >= answer)
    }

    /// Whether so much content is rejected that it is no use to offer other lines alone.
    pub(super) const fn rejects_everything(&self) -> bool {
        self.rejected_alone >= MOST_REJECTED
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    fn failure(cause: Cause) -> Failure {
        Failure {
            cause,
            code: "AsTheTestSays".to_owned(),
            message: String::new(),
            is_maybe_accepted: false,
        }
    }

    /// A line that one call with others refused.
    fn suspect(cause: Cause, evidence: &mut Evidence, now: Instant) -> Suspect {
        let record = Record {
            data: Bytes::from("a\n"),
            lines: 0..1,
        };
        Suspect::new(record, evidence.answered(), failure(cause), now)
    }

    /// A line that is refused alone, each time when it is tried; and when it was refused the last time.
    fn refused(cause: Cause, times: u32, evidence: &mut Evidence) -> (Suspect, Instant) {
        let mut now = Instant::now();
        let mut suspect = suspect(cause, evidence, now);
        for _ in 0..times {
            now = suspect.next_try;
            evidence.answered();
            suspect.fail(failure(cause), evidence, now);
        }
        (suspect, now)
    }

    #[test]
    fn a_line_is_dead_after_5_refusals_alone_and_30_seconds_where_the_code_may_pass() {
        let check = |cause, seconds: std::ops::Range<f64>| {
            let mut evidence = Evidence::default();
            let began = Instant::now();
            let mut suspect = suspect(cause, &mut evidence, began);
            evidence.accepted();
            for refusal in 1..=5 {
                let now = suspect.next_try;
                evidence.answered();
                suspect.fail(failure(cause), &mut evidence, now);
                let expected = match refusal {
                    5 => Verdict::Dead,
                    _ => Verdict::TryAgain,
                };
                assert_eq!(suspect.verdict(&evidence, now), expected, "{refusal}");
                let time = now.duration_since(began).as_secs_f64();
                assert!(refusal < 5 || seconds.contains(&time), "{time}");
            }
        };
        check(Cause::Throttled, 30.0..30.1);
        check(Cause::InternalError, 30.0..30.1);
        check(Cause::Content, 0.7..0.8);
        check(Cause::Undocumented, 0.7..0.8);
    }

    #[test]
    fn what_the_stream_did_with_other_lines_tells_who_is_to_blame() {
        use Verdict::{Dead, RefusesEverything, TryAgain};
        let check = |cause, happened: fn(&mut Evidence), expected, what: &str| {
            let mut evidence = Evidence::default();
            let (mut suspect, mut now) = refused(cause, 5, &mut evidence);
            happened(&mut evidence);
            while now < suspect.refused_since.unwrap() + PATIENCE {
                now = suspect.next_try;
                suspect.fail(failure(cause), &mut evidence, now);
            }
            assert_eq!(suspect.verdict(&evidence, now), expected, "{what}");
        };
        let accepted = |evidence: &mut Evidence| {
            evidence.answered();
            evidence.accepted();
        };
        for cause in [Cause::Content, Cause::InternalError] {
            check(cause, accepted, Dead, "others were accepted since");
            let before = |evidence: &mut Evidence| evidence.note_accepted_before(true);
            check(
                cause,
                before,
                Dead,
                "it is the only one, and others were accepted before",
            );
            check(cause, |_| {}, TryAgain, "nothing was ever accepted");
            let offering = |evidence: &mut Evidence| {
                evidence.note_accepted_before(true);
                evidence.begin_offering();
            };
            check(cause, offering, TryAgain, "others are yet to be offered");
            let cut_short = |evidence: &mut Evidence| {
                evidence.note_accepted_before(true);
                evidence.begin_offering();
                evidence.end_offering(false);
            };
            check(cause, cut_short, TryAgain, "others were never offered");
        }
        let others = |evidence: &mut Evidence| {
            evidence.note_accepted_before(true);
            evidence.refused_alone(false);
        };
        check(Cause::Content, others, RefusesEverything, "so are others");
        check(
            Cause::InternalError,
            others,
            TryAgain,
            "it may be an outage",
        );
        let known = |evidence: &mut Evidence| {
            evidence.accepted_at = Some(0);
            evidence.refused_alone(false);
        };
        check(
            Cause::Content,
            known,
            Dead,
            "the stream accepted others in this command",
        );
    }

    #[test]
    fn a_line_is_tried_again_and_again_but_not_all_the_time() {
        let mut evidence = Evidence::default();
        for cause in [Cause::Throttled, Cause::Content, Cause::Unanswered] {
            let (suspect, now) = refused(cause, 40, &mut evidence);
            assert_eq!(suspect.next_try, now + LONGEST_GAP);
        }
    }

    #[test]
    fn what_has_no_answer_was_not_refused() {
        let mut evidence = Evidence::default();
        let (suspect, now) = refused(Cause::Unanswered, 40, &mut evidence);
        evidence.accepted();
        assert_eq!(suspect.verdict(&evidence, now), Verdict::TryAgain);
        assert_eq!(evidence.refused_alone, 0);
    }

    #[test]
    fn a_stream_that_rejects_very_many_lines_and_accepts_none_rejects_everything() {
        let mut evidence = Evidence::default();
        for _ in 0..MOST_REJECTED {
            evidence.refused_alone(true);
            assert!(!evidence.rejects_everything());
        }
        for _ in 0..MOST_REJECTED {
            assert!(!evidence.rejects_everything());
            evidence.refused_alone(false);
        }
        assert!(evidence.rejects_everything());
        evidence.accepted();
        assert!(!evidence.rejects_everything());
    }

    /// What happens to a line and to the others, in any order.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Fails(Cause),
        AnotherIsAccepted,
        AnotherIsRefused,
        DeliveryBegins,
        DeliveryEnds(bool),
    }

    fn events() -> impl Strategy<Value = Event> {
        let cause = prop_oneof![
            Just(Cause::Throttled),
            Just(Cause::InternalError),
            Just(Cause::Unanswered),
            Just(Cause::Undocumented),
            Just(Cause::Content),
        ];
        prop_oneof![
            8 => cause.prop_map(Event::Fails),
            1 => Just(Event::AnotherIsAccepted),
            1 => Just(Event::AnotherIsRefused),
            1 => Just(Event::DeliveryBegins),
            1 => any::<bool>().prop_map(Event::DeliveryEnds),
        ]
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn no_line_is_dead_before_its_time(
            events in vec((events(), 0..20_000_u64), 0..40),
            has_accepted in any::<bool>(),
        ) {
            let mut evidence = Evidence::default();
            evidence.note_accepted_before(has_accepted);
            let mut now = Instant::now();
            let mut suspect = suspect(Cause::Content, &mut evidence, now);
            let mut refusals: Vec<(Instant, Cause)> = Vec::new();
            let (mut is_accepted, mut offering) = (false, 0);
            for (event, millis) in events {
                now += Duration::from_millis(millis);
                match event {
                    Event::Fails(cause) => {
                        evidence.answered();
                        suspect.fail(failure(cause), &mut evidence, now);
                        if cause != Cause::Unanswered {
                            refusals.push((now, cause));
                        }
                    }
                    Event::AnotherIsAccepted => {
                        evidence.answered();
                        evidence.accepted();
                        is_accepted = true;
                    }
                    Event::AnotherIsRefused => evidence.refused_alone(false),
                    Event::DeliveryBegins => {
                        evidence.begin_offering();
                        offering += 1;
                    }
                    Event::DeliveryEnds(is_all) if offering > 0 => {
                        evidence.end_offering(is_all);
                        offering -= 1;
                    }
                    Event::DeliveryEnds(_) => {}
                }
                match suspect.verdict(&evidence, now) {
                    Verdict::TryAgain => {}
                    Verdict::RefusesEverything => prop_assert!(!is_accepted && offering == 0),
                    Verdict::Dead => {
                        prop_assert!(refusals.len() >= 5);
                        prop_assert!(is_accepted || has_accepted && offering == 0);
                        let passes = |cause| matches!(cause, Cause::Throttled | Cause::InternalError);
                        let is_passing = refusals.iter().any(|(_, cause)| passes(*cause));
                        let time = now.duration_since(refusals[0].0);
                        prop_assert!(!is_passing || time >= Duration::from_secs(30));
                    }
                }
            }
        }
    }
}
