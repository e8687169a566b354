//! What a run is: when it started, what it was for, and what came of it.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

/// A moment in UTC, in whole milliseconds, as Segment's timestamps have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    pub const fn millis(self) -> i64 {
        self.0
    }

    pub fn now() -> Self {
        Self(Utc::now().timestamp_millis())
    }

    /// Reads what [`Display`](fmt::Display) writes, and other ways of RFC 3339.
    pub fn parse(text: &str) -> Option<Self> {
        let at = DateTime::parse_from_rfc3339(text).ok()?;
        Some(Self(at.timestamp_millis()))
    }

    /// The start of a run that begins `now`, strictly later than all timestamps of the run that began at `last`: the
    /// latest timestamp downstream is the truth even when a clock has stepped back.
    pub fn after(now: Self, last: Option<Self>) -> Self {
        last.map_or(now, |last| Self(now.0.max(last.0 + 2)))
    }

    /// The timestamp of users who enter or change in a run that began at this time. A user known by an anonymous id
    /// first and by a user id then leaves and enters in one run, and must end as a member.
    pub const fn of_entering(self) -> Self {
        Self(self.0 + 1)
    }

    /// The time that lies before this one by so long.
    pub fn before(self, age: Duration) -> Self {
        let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// Outside the years that a calendar covers, the epoch.
    pub fn to_datetime(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.0).unwrap_or_default()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            &self
                .to_datetime()
                .to_rfc3339_opts(SecondsFormat::Millis, true),
        )
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A UUIDv7 of the run's start: ids sort as runs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    pub fn at(started_at: Timestamp) -> Self {
        let millis = u64::try_from(started_at.millis()).unwrap_or_default();
        let random = Uuid::new_v4().into_bytes();
        let random: [u8; 10] = random[6..].try_into().expect("the last 10 of 16 bytes");
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    pub fn parse(text: &str) -> Option<Self> {
        Uuid::parse_str(text).ok().map(Self)
    }

    /// When the run began; `None` for an id that says nothing of it.
    pub fn started_at(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        let millis = i64::try_from(seconds).ok()?.checked_mul(1_000)?;
        Some(Timestamp(millis + i64::from(nanos / 1_000_000)))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a run was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// The first of an audience and stream: everyone.
    First,
    /// Only what has changed.
    Delta,
    /// Everyone again, and `false` for those who are gone.
    Resync,
    /// `false` for everyone, since the audience ends.
    Retire,
    /// Segment calls given to `send`.
    Send,
    /// What an earlier run left in the journal. Only reported, never stored: the changes stay with the run that decided them.
    Resume,
}

impl RunKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Delta => "delta",
            Self::Resync => "resync",
            Self::Retire => "retire",
            Self::Send => "send",
            Self::Resume => "resume",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let known = [
            Self::First,
            Self::Delta,
            Self::Resync,
            Self::Retire,
            Self::Send,
        ];
        known.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What came of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every change has its record ID.
    Delivered,
    /// There was nothing to deliver.
    Unchanged,
    /// The guard holds something; everything else is delivered.
    Held,
    /// Something is still in the journal, or can never be delivered.
    Undelivered,
    /// Nothing was decided.
    Failed,
    /// Another run holds the snapshot.
    Busy,
    /// A dry run.
    Planned,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Unchanged => "unchanged",
            Self::Held => "held",
            Self::Undelivered => "undelivered",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::Planned => "planned",
        }
    }
}

/// What a run sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Firehose records that were accepted.
    pub records: u64,
    /// Put calls, failed ones too. A directory counts files.
    pub requests: u64,
    /// Put calls made again for records that were not delivered.
    pub retries: u64,
    /// Of the accepted records, newlines included.
    pub bytes: u64,
    /// What Firehose charges for the accepted records.
    pub billed_bytes: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.requests += other.requests;
        self.retries += other.retries;
        self.bytes += other.bytes;
        self.billed_bytes += other.billed_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_starts_after_the_last_one_even_when_the_clock_stepped_back() {
        let at = Timestamp::from_millis;
        assert_eq!(Timestamp::after(at(100), None), at(100));
        assert_eq!(Timestamp::after(at(100), Some(at(90))), at(100));
        assert_eq!(Timestamp::after(at(100), Some(at(99))), at(101));
        assert_eq!(Timestamp::after(at(100), Some(at(100))), at(102));
        assert_eq!(Timestamp::after(at(100), Some(at(900))), at(902));
    }

    #[test]
    fn timestamps_are_written_as_segment_writes_them() {
        assert_eq!(
            Timestamp::from_millis(1_795_428_000_000).to_string(),
            "2026-11-23T10:00:00.000Z"
        );
    }

    #[test]
    fn a_timestamp_is_read_as_it_is_written() {
        let check = |text: &str, millis| {
            assert_eq!(
                Timestamp::parse(text).map(Timestamp::millis),
                millis,
                "{text}"
            );
        };
        check("2026-11-23T10:00:00.001Z", Some(1_795_428_000_001));
        check("2026-11-23T11:00:00+01:00", Some(1_795_428_000_000));
        check("2026-11-23", None);
        check("yesterday", None);
    }

    #[test]
    fn run_ids_sort_by_start() {
        let earlier = RunId::at(Timestamp::from_millis(1_795_428_000_000)).to_string();
        let later = RunId::at(Timestamp::from_millis(1_795_428_000_001)).to_string();
        assert!(earlier < later);
    }

    #[test]
    fn a_run_id_tells_when_the_run_began() {
        for millis in [0, 1, 1_795_428_000_129] {
            let at = Timestamp::from_millis(millis);
            assert_eq!(RunId::at(at).started_at(), Some(at));
        }
        let random = RunId(Uuid::new_v4());
        assert_eq!(random.started_at(), None);
    }
}
