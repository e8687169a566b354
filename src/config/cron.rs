//! When a schedule runs: a crontab line, read in a time zone.
//!
//! `croner` knows which times on a clock's face fit. What a change of the clock does to them is decided here, as
//! cron(8) decides it: a run whose hour and minute are given happens once on every day that has it, just after the
//! gap when the clock skips it; a run with a `*` among them is about the time in between, so a skipped one is left out
//! and a repeated one repeats. `croner` itself, asked during a repeated hour, can answer with a time that has passed.

use chrono::{DateTime, Datelike, LocalResult, NaiveDateTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::{GapInfo, Tz};
use croner::parser::{CronParser, Seconds, Year};

pub(super) const FORM: &str = "the form is \"minute hour day-of-month month day-of-week\", such as \"0 */2 * * *\"; a sixth field in front is the second";

const FIELDS: [&str; 6] = [
    "second",
    "minute",
    "hour",
    "day-of-month",
    "month",
    "day-of-week",
];

/// A crontab line: 5 fields, or 6 with seconds. A day fits when either day field does, as in crontab.
#[derive(Debug, Clone)]
pub struct Cron {
    text: String,
    pattern: croner::Cron,
    /// Whether it names its time of day and so happens once a day, whatever the clock does.
    is_fixed: bool,
}

/// Why a text is no time to run at.
#[derive(Debug, thiserror::Error)]
pub enum CronError {
    #[error("must have 5 or 6 fields, not {0}")]
    Fields(usize),
    #[error("has a wrong {0}")]
    Field(&'static str),
    #[error("cannot be read")]
    Other,
    #[error("would never run, since no year has such a day")]
    Never,
}

impl Cron {
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let mut fields: Vec<_> = text.split_whitespace().collect();
        if !(5..=6).contains(&fields.len()) {
            return Err(CronError::Fields(fields.len()));
        }
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        let unreadable = |(index, field): (usize, &&str)| {
            let mut alone = ["*"; FIELDS.len()];
            alone[index] = field;
            parse(&alone.join(" ")).is_none().then_some(FIELDS[index])
        };
        if let Some(field) = fields.iter().enumerate().find_map(unreadable) {
            return Err(CronError::Field(field));
        }
        let pattern = parse(&fields.join(" ")).ok_or(CronError::Other)?;
        let cron = Self {
            text: text.to_owned(),
            pattern,
            is_fixed: !fields[..3].iter().any(|field| field.contains('*')),
        };
        // Without a year among the fields, what fits at all fits again and again.
        match cron
            .pattern
            .find_next_occurrence(&DateTime::UNIX_EPOCH, true)
        {
            Ok(_) => Ok(cron),
            Err(_) => Err(CronError::Never),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first run after this moment. `None` only at the far end of the calendar.
    pub fn next_after(&self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let face = Face::of(now, zone)?;
        let mut next: Option<DateTime<Utc>> = None;
        // Later times on the face have later first moments, so the search ends with the first that has not passed;
        // but the second moment of an earlier one may come before it.
        let mut time = face.earliest;
        loop {
            time = self
                .pattern
                .find_next_occurrence(&time.and_utc(), false)
                .ok()?
                .naive_utc();
            let moments = self.moments(time, zone);
            next = moments
                .iter()
                .flatten()
                .copied()
                .filter(|at| *at > now)
                .chain(next)
                .min();
            if moments[0].is_some_and(|first| first > now) {
                return next;
            }
        }
    }

    /// The last run at or before this moment.
    pub fn previous_before_or_at(&self, now: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let face = Face::of(now, zone)?;
        let mut previous: Option<DateTime<Utc>> = None;
        let mut time = face.latest + TimeDelta::seconds(1);
        loop {
            time = self
                .pattern
                .find_previous_occurrence(&time.and_utc(), false)
                .ok()?
                .naive_utc();
            let moments = self.moments(time, zone);
            let passed = moments.iter().flatten().copied().filter(|at| *at <= now);
            previous = passed.chain(previous).max();
            if moments
                .iter()
                .flatten()
                .last()
                .is_some_and(|last| *last <= now)
            {
                return previous;
            }
        }
    }

    /// The moments at which a clock that shows this time starts a run, in order.
    fn moments(&self, time: NaiveDateTime, zone: Tz) -> [Option<DateTime<Utc>>; 2] {
        let utc = |at: DateTime<Tz>| at.with_timezone(&Utc);
        match zone.from_local_datetime(&time) {
            LocalResult::Single(at) => [Some(utc(at)), None],
            LocalResult::Ambiguous(first, _) if self.is_fixed => [Some(utc(first)), None],
            LocalResult::Ambiguous(first, second) => [Some(utc(first)), Some(utc(second))],
            LocalResult::None if self.is_fixed => {
                let end = GapInfo::new(&time, &zone).and_then(|gap| gap.end);
                [end.map(utc), None]
            }
            LocalResult::None => [None, None],
        }
    }
}

/// What a clock shows at a moment, widened to all that it may show again while an hour repeats.
struct Face {
    earliest: NaiveDateTime,
    latest: NaiveDateTime,
}

impl Face {
    fn of(now: DateTime<Utc>, zone: Tz) -> Option<Self> {
        // `croner` ends at the year 5000, and a local time at the ends of the calendar cannot be told.
        if !(1900..4900).contains(&now.year()) {
            return None;
        }
        let time = now.with_timezone(&zone).naive_local().with_nanosecond(0)?;
        let repeated = match zone.from_local_datetime(&time) {
            LocalResult::Ambiguous(first, second) => second - first,
            LocalResult::Single(_) | LocalResult::None => TimeDelta::zero(),
        };
        Some(Self {
            earliest: time - repeated,
            latest: time + repeated,
        })
    }
}

fn parse(text: &str) -> Option<croner::Cron> {
    // No number in a crontab line has more than two digits.
    let digits = text
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max();
    if digits > Some(2)
        || text
            .split(' ')
            .any(|field| field.split(',').any(str::is_empty))
    {
        return None;
    }
    CronParser::builder()
        .seconds(Seconds::Required)
        .year(Year::Disallowed)
        .dom_and_dow(false)
        .build()
        .parse(text)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn check_refused(text: &str, expected: &str) {
        assert_eq!(
            Cron::parse(text).unwrap_err().to_string(),
            expected,
            "{text}"
        );
    }

    #[test]
    fn a_field_that_cannot_be_read_is_named() {
        check_refused("", "must have 5 or 6 fields, not 0");
        check_refused("@daily", "must have 5 or 6 fields, not 1");
        check_refused("* * * *", "must have 5 or 6 fields, not 4");
        check_refused("* * * * * * *", "must have 5 or 6 fields, not 7");
        check_refused("60 * * * *", "has a wrong minute");
        check_refused("0 24 * * *", "has a wrong hour");
        check_refused("0 0 32 * *", "has a wrong day-of-month");
        check_refused("0 0 * 13 *", "has a wrong month");
        check_refused("0 0 * * MOO", "has a wrong day-of-week");
        check_refused("61 0 0 * * *", "has a wrong second");
        check_refused("*/0 * * * *", "has a wrong minute");
        check_refused("*/99999 * * * *", "has a wrong minute");
        check_refused("1,,2 * * * *", "has a wrong minute");
        check_refused("ß 5- -5 , é", "has a wrong minute");
        check_refused(
            "0 0 31 2 *",
            "would never run, since no year has such a day",
        );
    }

    /// Every run in `zone` from a moment until another one, and the same backwards.
    fn check(cron: &str, zone: Tz, from: &str, until: &str, expected: &[&str]) {
        let cron = Cron::parse(cron).unwrap();
        let mut runs = Vec::new();
        let mut now = at(from);
        while let Some(next) = cron.next_after(now, zone).filter(|next| *next <= at(until)) {
            assert!(next > now);
            runs.push(next);
            now = next;
        }
        let expected: Vec<_> = expected.iter().map(|time| at(time)).collect();
        assert_eq!(runs, expected, "forwards");

        let mut runs = Vec::new();
        let mut now = at(until);
        while let Some(previous) = cron
            .previous_before_or_at(now, zone)
            .filter(|previous| *previous > at(from))
        {
            assert!(previous <= now);
            runs.push(previous);
            now = previous - TimeDelta::nanoseconds(1);
        }
        runs.reverse();
        assert_eq!(runs, expected, "backwards");
    }

    #[test]
    fn runs_are_strictly_after_and_at_or_before() {
        check(
            "0 */2 * * *",
            Tz::UTC,
            "2026-11-23T10:00:00Z",
            "2026-11-23T14:00:00Z",
            &["2026-11-23T12:00:00Z", "2026-11-23T14:00:00Z"],
        );
        check(
            "*/20 0 10 * * *",
            Tz::UTC,
            "2026-11-23T09:59:59.5Z",
            "2026-11-23T10:00:39.999Z",
            &["2026-11-23T10:00:00Z", "2026-11-23T10:00:20Z"],
        );
    }

    #[test]
    fn a_day_fits_by_month_or_by_week_as_in_crontab() {
        check(
            "0 0 13 * FRI",
            Tz::UTC,
            "2026-11-09T00:00:00Z",
            "2026-11-27T00:00:00Z",
            &[
                "2026-11-13T00:00:00Z",
                "2026-11-20T00:00:00Z",
                "2026-11-27T00:00:00Z",
            ],
        );
        check(
            "0 0 24 * FRI",
            Tz::UTC,
            "2026-11-21T00:00:00Z",
            "2026-11-27T00:00:00Z",
            &["2026-11-24T00:00:00Z", "2026-11-27T00:00:00Z"],
        );
    }

    // Berlin goes from 02:00 to 03:00 on 2026-03-29 and from 03:00 back to 02:00 on 2026-10-25, both at 01:00 UTC.

    #[test]
    fn a_daily_run_in_the_skipped_hour_happens_once_just_after_it() {
        for cron in ["30 2 * * *", "0,30 2 * * *", "0 2,3 * * *"] {
            let parsed = Cron::parse(cron).unwrap();
            let berlin = Tz::Europe__Berlin;
            assert_eq!(
                parsed.next_after(at("2026-03-28T12:00:00Z"), berlin),
                Some(at("2026-03-29T01:00:00Z")),
                "{cron}"
            );
            assert_eq!(
                parsed.previous_before_or_at(at("2026-03-29T12:00:00Z"), berlin),
                Some(at("2026-03-29T01:00:00Z")),
                "{cron}"
            );
        }
        check(
            "30 2 * * *",
            Tz::Europe__Berlin,
            "2026-03-28T00:00:00Z",
            "2026-03-30T12:00:00Z",
            &[
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z",
            ],
        );
        check(
            "0,30 2 * * *",
            Tz::Europe__Berlin,
            "2026-03-28T12:00:00Z",
            "2026-03-29T12:00:00Z",
            &["2026-03-29T01:00:00Z"],
        );
    }

    #[test]
    fn a_daily_run_in_the_repeated_hour_happens_once() {
        check(
            "30 2 * * *",
            Tz::Europe__Berlin,
            "2026-10-24T12:00:00Z",
            "2026-10-26T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check(
            "0,30 2 * * *",
            Tz::Europe__Berlin,
            "2026-10-24T12:00:00Z",
            "2026-10-25T12:00:00Z",
            &["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z"],
        );
    }

    #[test]
    fn an_hourly_run_keeps_to_the_hour_through_both_changes() {
        check(
            "0 * * * *",
            Tz::Europe__Berlin,
            "2026-03-28T23:30:00Z",
            "2026-03-29T02:30:00Z",
            &[
                "2026-03-29T00:00:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T02:00:00Z",
            ],
        );
        check(
            "0 * * * *",
            Tz::Europe__Berlin,
            "2026-10-24T23:30:00Z",
            "2026-10-25T03:30:00Z",
            &[
                "2026-10-25T00:00:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T02:00:00Z",
                "2026-10-25T03:00:00Z",
            ],
        );
        check(
            "*/30 * * * *",
            Tz::Europe__Berlin,
            "2026-10-25T00:10:00Z",
            "2026-10-25T02:10:00Z",
            &[
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:00:00Z",
            ],
        );
        // Lord Howe's clock changes by half an hour.
        check(
            "0 * * * *",
            Tz::Australia__Lord_Howe,
            "2026-04-04T12:30:00Z",
            "2026-04-04T17:00:00Z",
            &[
                "2026-04-04T13:00:00Z",
                "2026-04-04T14:00:00Z",
                "2026-04-04T15:30:00Z",
                "2026-04-04T16:30:00Z",
            ],
        );
    }

    #[test]
    fn every_second_is_a_time_too_and_the_end_of_the_calendar_is_none() {
        check(
            "* * * * * *",
            Tz::Europe__Berlin,
            "2026-10-25T00:59:58Z",
            "2026-10-25T01:00:01Z",
            &[
                "2026-10-25T00:59:59Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:00:01Z",
            ],
        );
        let cron = Cron::parse("* * * * *").unwrap();
        for far in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            assert_eq!(cron.next_after(far, Tz::Europe__Berlin), None);
            assert_eq!(cron.previous_before_or_at(far, Tz::Europe__Berlin), None);
        }
    }
}
