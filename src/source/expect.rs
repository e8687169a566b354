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

    /// The same, where it is known when it was brought up to date.
    pub fn must_be_as_new(
        audience: &Audience,
        updated_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), SourceError> {
        let Some(max_age) = audience.expect.max_age else {
            return Ok(());
        };
        let age = u64::try_from(now.millis() - updated_at.millis()).unwrap_or_default();
        if u128::from(age) <= max_age.as_millis() {
            return Ok(());
        }
        let [age, max_age] =
            [Duration::from_secs(age / 1_000), max_age].map(humantime::format_duration);
        Err(SourceError::Unexpected {
            source_name: audience.source.clone(),
            problem: format!("it was brought up to date {age} ago, and `max_age` is {max_age}"),
        })
    }

    /// Refuses one that has fewer members than an audience expects.
    pub fn must_have(audience: &Audience, members: u64) -> Result<(), SourceError> {
        let min_members = audience.expect.min_members;
        if members >= min_members {
            return Ok(());
        }
        Err(SourceError::Unexpected {
            source_name: audience.source.clone(),
            problem: format!(
                "{:?} has {members} members there, and `min_members` is {min_members}",
                audience.name
            ),
        })
    }
}

pub(super) const NO_TIME: &str =
    "tells no time: it is one in UTC such as 2026-11-24 10:00:00, or seconds since 1970";

/// A time as databases write it: in UTC unless it says otherwise, or in seconds since 1970.
pub(super) fn time_of(told: Cell<'_>) -> Option<Timestamp> {
    match told {
        Cell::Integer(seconds) => seconds.checked_mul(1_000).map(Timestamp::from_millis),
        Cell::Real(seconds) if seconds.is_finite() => {
            Some(Timestamp::from_millis((seconds * 1_000.0) as i64))
        }
        Cell::Text(text) => written(std::str::from_utf8(text).ok()?.trim()),
        _ => None,
    }
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
