//! When schedules fall due, and when what failed is tried again. Pure, but for [`keep`]: the time comes in.
//!
//! tokio-cron-scheduler has one job, each second, and the schedules are asked here which of them fell due since then.
//! A job for each of them would not do: the crate drops what more than 200 jobs send it together, and it takes a
//! zone's offset once, when a job is made, so that it would be an hour off after the next change of the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::config::Cron;
use crate::stop::Stop;

/// When something is due, time after time.
#[derive(Debug, Clone)]
pub struct Timetable {
    pub cron: Cron,
    pub timezone: Tz,
}

impl Timetable {
    /// The first occurrence after a time.
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.next_after(now, self.timezone)
    }

    /// Whether an occurrence has passed since something was `last` done, or it never was.
    pub fn is_overdue(&self, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        let previous = self.cron.previous_before_or_at(now, self.timezone);
        match (last, previous) {
            (None, _) => true,
            (Some(last), Some(previous)) => last < previous,
            (Some(_), None) => false,
        }
    }
}

/// Which timetables fell due since it was last asked.
#[derive(Debug)]
pub struct Clock {
    timetables: Vec<Timetable>,
    asked_at: DateTime<Utc>,
    /// The next occurrence of each timetable, by its position: what is not due costs nothing.
    next: BTreeSet<(DateTime<Utc>, usize)>,
}

impl Clock {
    pub fn new(timetables: Vec<Timetable>, now: DateTime<Utc>) -> Self {
        let mut clock = Self {
            timetables,
            asked_at: now,
            next: BTreeSet::new(),
        };
        clock.start_at(now);
        clock
    }

    fn start_at(&mut self, now: DateTime<Utc>) {
        let timetables = self.timetables.iter().enumerate();
        self.next = timetables
            .filter_map(|(position, timetable)| Some((timetable.next_after(now)?, position)))
            .collect();
    }

    /// The positions of the timetables with an occurrence since the last call: each once, however many occurrences
    /// there were while the machine slept. A clock that was set back starts at `now`, and an occurrence may come twice.
    pub fn due(&mut self, now: DateTime<Utc>) -> Vec<usize> {
        if now < self.asked_at {
            self.start_at(now);
        }
        self.asked_at = now;
        let mut due = Vec::new();
        while let Some((_, position)) = self.next.first().copied().filter(|(at, _)| *at <= now) {
            self.next.pop_first();
            due.push(position);
        }
        for position in &due {
            let next = self.timetables[*position].next_after(now);
            self.next.extend(next.map(|next| (next, *position)));
        }
        due
    }
}

/// The scheduler compares its job's next time with the clock. Where that was set back, it waits until the clock gets
/// there again, which may take hours; so nobody waits for it any longer than this.
const LONGEST_SILENCE: Duration = Duration::from_secs(2);

/// Calls `due` with the positions of the timetables that fall due until asked to stop. It must not block.
pub async fn keep(
    mut clock: Clock,
    stop: &Stop,
    now: impl Fn() -> DateTime<Utc>,
    due: impl Fn(usize),
) -> Result<(), JobSchedulerError> {
    let second = Arc::new(Notify::new());
    let rung = Arc::clone(&second);
    // Not a repeated job, which adds a second to its last time and stops for good once that is behind: after any
    // sleep of the machine.
    let job = Job::new_async("* * * * * *", move |_, _| {
        rung.notify_one();
        Box::pin(ready(()))
    })?;
    let mut scheduler = JobScheduler::new().await?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    loop {
        tokio::select! {
            () = stop.requested() => break,
            () = second.notified() => {}
            () = sleep(LONGEST_SILENCE) => {}
        }
        clock.due(now()).into_iter().for_each(&due);
    }
    scheduler.shutdown().await
}

/// What failed is tried again after 1, 2, 4 and at most 30 minutes.
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);

/// What is to be tried again, and when. By a clock that nobody sets.
#[derive(Debug)]
pub struct Backoff<T>(BTreeMap<T, Attempt>);

#[derive(Debug)]
struct Attempt {
    at: Instant,
    wait: Duration,
    is_due: bool,
}

impl<T> Default for Backoff<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Clone> Backoff<T> {
    /// Something has failed, and how long it waits now. `None` where it failed before its time came, which changes
    /// nothing.
    pub fn fail(&mut self, what: T, now: Instant) -> Option<Duration> {
        let wait = match self.0.get(&what) {
            None => FIRST_WAIT,
            Some(attempt) if attempt.is_due => LONGEST_WAIT.min(attempt.wait * 2),
            Some(_) => return None,
        };
        let attempt = Attempt {
            at: now + wait,
            wait,
            is_due: false,
        };
        self.0.insert(what, attempt);
        Some(wait)
    }

    /// Drops what need not be tried again.
    pub fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        self.0.retain(|what, _| is_kept(what));
    }

    /// What is to be tried now, of what is free. Each is then to fail again, or to be dropped.
    pub fn due(&mut self, now: Instant, is_free: impl Fn(&T) -> bool) -> Vec<T> {
        let due = self.0.iter_mut();
        let due = due.filter(|(what, attempt)| attempt.at <= now && is_free(what));
        due.map(|(what, attempt)| {
            attempt.is_due = true;
            what.clone()
        })
        .collect()
    }

    /// When something is due next, of what is free.
    pub fn next(&self, is_free: impl Fn(&T) -> bool) -> Option<Instant> {
        let free = self.0.iter().filter(|(what, _)| is_free(what));
        free.map(|(_, attempt)| attempt.at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use chrono::TimeDelta;

    use super::*;

    fn timetable(cron: &str) -> Timetable {
        Timetable {
            cron: Cron::parse(cron).unwrap(),
            timezone: Tz::Europe__Berlin,
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_never_done_or_not_since_the_last_occurrence_is_overdue() {
        let daily = timetable("0 4 * * *");
        let now = at("2026-11-23T10:00:00Z");
        assert!(daily.is_overdue(None, now));
        assert!(daily.is_overdue(Some(at("2026-11-23T02:59:59Z")), now));
        assert!(!daily.is_overdue(Some(at("2026-11-23T03:00:00Z")), now));
    }

    /// Asks about these timetables at the first time and then at each of the others; which are due at those.
    #[track_caller]
    fn check(crons: &[&str], start: &str, expected: &[(&str, &[usize])]) {
        let timetables = crons.iter().map(|cron| timetable(cron)).collect();
        let mut clock = Clock::new(timetables, at(start));
        for (now, expected) in expected {
            assert_eq!(clock.due(at(now)), *expected, "{now}");
        }
    }

    #[test]
    fn an_occurrence_is_due_once_it_has_begun_and_only_once() {
        check(
            &["*/10 * * * *", "*/5 * * * *", "0 12 * * *"],
            "2026-11-23T10:00:00Z",
            &[
                ("2026-11-23T10:00:01Z", &[]),
                ("2026-11-23T10:04:59.999Z", &[]),
                ("2026-11-23T10:05:00Z", &[1]),
                ("2026-11-23T10:05:00.5Z", &[]),
                ("2026-11-23T10:10:00.3Z", &[0, 1]),
                ("2026-11-23T10:10:01Z", &[]),
            ],
        );
    }

    #[test]
    fn what_a_machine_slept_through_is_due_once() {
        check(
            &["* * * * * *", "*/5 * * * *", "0 12 * * *"],
            "2026-11-23T03:00:00Z",
            &[
                ("2026-11-23T03:00:01Z", &[0]),
                ("2026-11-25T09:58:30Z", &[0, 1, 2]),
                ("2026-11-25T09:58:30.5Z", &[]),
                ("2026-11-25T09:58:31Z", &[0]),
                ("2026-11-25T10:00:00Z", &[0, 1]),
            ],
        );
    }

    #[test]
    fn a_clock_that_is_set_back_starts_anew_from_there() {
        check(
            &["* * * * * *", "0 * * * *"],
            "2026-11-23T10:59:59Z",
            &[
                ("2026-11-23T11:00:00Z", &[0, 1]),
                ("2026-11-23T10:00:00.2Z", &[]),
                ("2026-11-23T10:00:01Z", &[0]),
                // A second time.
                ("2026-11-23T11:00:00Z", &[0, 1]),
                // It was set to the end of the calendar and back.
                ("4950-01-01T00:00:00Z", &[0, 1]),
                ("4950-01-01T00:00:01Z", &[]),
                ("2026-11-23T11:30:00Z", &[]),
                ("2026-11-23T12:00:00Z", &[0, 1]),
            ],
        );
    }

    #[test]
    fn a_change_of_the_zone_moves_the_occurrences() {
        check(
            &["30 5 * * *"],
            "2026-10-24T00:00:00Z",
            &[
                ("2026-10-24T03:30:00Z", &[0]),
                ("2026-10-25T03:30:00Z", &[]),
                ("2026-10-25T04:30:00Z", &[0]),
            ],
        );
    }

    /// It would not end if each look computed the next occurrence of each timetable.
    #[test]
    fn ten_thousand_timetables_are_looked_at_each_second_of_a_day() {
        let noon = at("2026-11-23T11:00:00Z");
        let start = noon - TimeDelta::hours(12);
        let mut clock = Clock::new(vec![timetable("0 12 * * *"); 10_000], start);
        for second in 1..=86_400 {
            let now = start + TimeDelta::seconds(second);
            let expected = if now == noon { 10_000 } else { 0 };
            assert_eq!(clock.due(now).len(), expected, "{now}");
        }
    }

    /// Far more than the 200 that the scheduler's channels hold.
    #[tokio::test]
    async fn a_thousand_that_are_due_together_are_called_again_and_again_until_asked_to_stop() {
        let stop = Stop::new();
        let called = RefCell::new(vec![0; 1_000]);
        let started = Utc::now();
        let clock = Clock::new(vec![timetable("* * * * * *"); 1_000], started);
        keep(clock, &stop, Utc::now, |position| {
            let mut called = called.borrow_mut();
            called[position] += 1;
            if called.iter().all(|calls| *calls == 3) {
                stop.request();
            }
        })
        .await
        .unwrap();
        assert_eq!(*called.borrow(), vec![3; 1_000]);
        // Three different seconds have begun, no earlier than they could.
        assert!(Utc::now() - started >= TimeDelta::seconds(2));
    }

    /// The scheduler has the machine's clock, which stands still here: as one that was set back, it calls nobody.
    #[tokio::test(start_paused = true)]
    async fn a_scheduler_that_waits_for_its_time_to_come_again_silences_nobody() {
        let stop = Stop::new();
        let calls = RefCell::new(Vec::new());
        let (base, started) = (at("2026-11-23T10:59:00Z"), Instant::now());
        let now = || {
            let passed = started.elapsed();
            let set_back = match passed.as_secs() {
                0..120 => TimeDelta::zero(),
                _ => TimeDelta::hours(1),
            };
            base + TimeDelta::from_std(passed).unwrap() - set_back
        };
        let clock = Clock::new(vec![timetable("0 * * * *")], base);
        keep(clock, &stop, now, |_| {
            calls.borrow_mut().push(started.elapsed().as_secs() / 60);
            if calls.borrow().len() == 3 {
                stop.request();
            }
        })
        .await
        .unwrap();
        // At 11:00, at 11:00 again an hour later, and at 12:00.
        assert_eq!(*calls.borrow(), [1, 61, 121]);
    }

    /// When something that always fails is tried, in minutes since it failed first.
    #[test]
    fn what_fails_is_tried_again_after_1_2_4_and_at_most_30_minutes() {
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        backoff.fail("journal", start);
        let mut tried = Vec::new();
        while tried.len() < 8 {
            let now = backoff.next(|_| true).unwrap();
            assert_eq!(
                backoff.due(now - Duration::from_millis(1), |_| true).len(),
                0
            );
            assert_eq!(backoff.due(now, |_| true), ["journal"]);
            tried.push(now.duration_since(start).as_secs() / 60);
            backoff.fail("journal", now);
        }
        assert_eq!(tried, [1, 3, 7, 15, 31, 61, 91, 121]);
    }

    #[test]
    fn what_fails_before_its_time_waits_no_longer_and_what_is_done_starts_anew() {
        let minute = |minute: u64| Duration::from_secs(60 * minute);
        let (mut backoff, start) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.fail("journal", start), Some(minute(1)));
        assert_eq!(backoff.fail("journal", start), None);
        assert_eq!(backoff.fail("source", start + minute(1)), Some(minute(1)));
        assert_eq!(backoff.due(start + minute(1), |_| true), ["journal"]);
        assert_eq!(backoff.fail("journal", start + minute(1)), Some(minute(2)));
        assert_eq!(backoff.next(|_| true), Some(start + minute(2)));

        backoff.retain(|what| *what == "source");
        assert_eq!(backoff.fail("journal", start + minute(2)), Some(minute(1)));
        assert_eq!(
            backoff.due(start + minute(9), |_| true),
            ["journal", "source"]
        );
    }
}
