//! What an audience expects of its source, so that one that is stale or short decides nothing.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

use super::row::Cell;
use super::{Interrupt, Source, SourceError};
use crate::audience::Audience;
use crate::run::Timestamp;

impl Source {
    /// Refuses a source that is older than an audience expects.
    pub fn must_be_fresh(
        &self,
        audience: &Audience,
        now: Timestamp,
        interrupt: &Interrupt,
    ) -> Result<(), SourceError> {
        match audience.expect.max_age {
            Some(_) => {
                let updated_at = self.updated_at(audience, interrupt)?;
                Self::must_be_as_new(audience, updated_at, now)
            }
            None => Ok(()),
        }
    }

    /// The same, where it is known when it was brought up to date. What is yet to come is no such time: it would be fresh
    /// for as long.
    pub fn must_be_as_new(
        audience: &Audience,
        updated_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), SourceError> {
        let Some(max_age) = audience.expect.max_age else {
            return Ok(());
        };
        let unexpected = |problem: String| SourceError::unexpected(&audience.source, problem);
        let age = now.millis().saturating_sub(updated_at.millis());
        let apart = Duration::from_millis(age.unsigned_abs());
        let shown =
            |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
        if age < 0 && apart > CLOCKS_DIFFER {
            return Err(unexpected(format!(
                "it was brought up to date {} from now: milliseconds since 1970 in place of seconds, or a local time in \
                 place of UTC?",
                shown(apart)
            )));
        }
        if age > 0 && apart > max_age {
            return Err(unexpected(format!(
                "it was brought up to date {} ago, and `max_age` is {}",
                shown(apart),
                humantime::format_duration(max_age)
            )));
        }
        Ok(())
    }

    /// Refuses one that has fewer members than an audience expects.
    pub fn must_have(audience: &Audience, members: u64) -> Result<(), SourceError> {
        let min_members = audience.expect.min_members;
        if members >= min_members {
            return Ok(());
        }
        let problem = format!(
            "{:?} has {members} members there, and `min_members` is {min_members}",
            audience.name
        );
        Err(SourceError::unexpected(&audience.source, problem))
    }
}

/// By so much two machines may disagree.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

pub(super) const NO_TIME: &str =
    "tells no time: it is one in UTC such as 2026-11-24 10:00:00, or seconds since 1970";

/// A time as databases write it: in UTC unless it says otherwise, or in seconds since 1970. Beyond all calendars there is
/// none.
pub(super) fn time_of(told: Cell<'_>) -> Option<Timestamp> {
    let millis = match told {
        Cell::Integer(seconds) => seconds.checked_mul(1_000)?,
        Cell::Real(seconds) => (seconds * 1_000.0) as i64,
        Cell::Text(text) => return written(std::str::from_utf8(text).ok()?.trim()),
        _ => return None,
    };
    DateTime::from_timestamp_millis(millis)?;
    Some(Timestamp::from_millis(millis))
}

fn written(text: &str) -> Option<Timestamp> {
    // PostgreSQL's text has no more than the hours of a zone.
    let zoned = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"))
        .map(|at| at.to_utc());
    let formats = [
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M",
    ];
    let mut formats = formats.into_iter();
    let at = formats.find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let at = at.or(day.map(|day| day.and_time(NaiveTime::MIN)));
    let at = zoned.ok().or(at.map(|at| at.and_utc()))?;
    Some(Timestamp::from_millis(at.timestamp_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_databases_write_it() {
        let check = |told: Cell<'_>, expected: Option<&str>| {
            let found = time_of(told).map(|at| at.to_string());
            assert_eq!(found.as_deref(), expected, "{told:?}");
        };
        let at = Some("2026-11-24T10:00:00.000Z");
        check(Cell::Integer(1_795_514_400), at);
        check(Cell::Real(1_795_514_400.0), at);
        for text in [
            "2026-11-24 10:00:00",
            " 2026-11-24 10:00 ",
            "2026-11-24 12:00:00+02",
            "2026-11-24T12:00:00+02:00",
        ] {
            check(Cell::Text(text.as_bytes()), at);
        }
        // Beyond all calendars.
        for told in [
            Cell::Real(-1e300),
            Cell::Real(1e300),
            Cell::Real(f64::INFINITY),
            Cell::Integer(i64::MAX / 1_000),
            Cell::Integer(i64::MIN / 1_000),
            Cell::Integer(i64::MAX),
            Cell::Text(b"soon"),
            Cell::Text(b"\xff"),
            Cell::Null,
        ] {
            check(told, None);
        }
    }
}
