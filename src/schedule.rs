//! Calls at the times that crontab lines name, in their time zones.
//!
//! tokio-cron-scheduler keeps the time. It is given one occurrence after another instead of the line itself: it takes
//! a zone's offset once, when a job is made, and would be an hour off after the next change of the clock.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
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

/// What is done when a timetable, given by its position, is due. It must not block.
type Due = dyn Fn(usize) + Send + Sync;

/// Calls `due` at each occurrence of each timetable until asked to stop.
pub async fn keep(
    timetables: Vec<Timetable>,
    stop: &Stop,
    due: impl Fn(usize) + Send + Sync + 'static,
) -> Result<(), JobSchedulerError> {
    let mut scheduler = JobScheduler::new().await?;
    scheduler.start().await?;
    let due: Arc<Due> = Arc::new(due);
    for (position, timetable) in timetables.into_iter().enumerate() {
        let alarm = Alarm {
            scheduler: scheduler.clone(),
            timetable,
            position,
            due: Arc::clone(&due),
        };
        alarm.set(Utc::now()).await?;
    }
    stop.requested().await;
    scheduler.shutdown().await
}

/// One timetable's next occurrence.
#[derive(Clone)]
struct Alarm {
    scheduler: JobScheduler,
    timetable: Timetable,
    position: usize,
    due: Arc<Due>,
}

impl Alarm {
    /// Waits for the next occurrence after a time, and then for the one after that. Boxed, since it comes back to itself.
    fn set(
        self,
        after: DateTime<Utc>,
    ) -> Pin<Box<dyn Future<Output = Result<(), JobSchedulerError>> + Send>> {
        Box::pin(async move {
            let Timetable { cron, timezone } = &self.timetable;
            let Some(at) = cron.next_after(after, *timezone) else {
                return Ok(());
            };
            // The scheduler counts whole seconds from the second it is.
            let wait = at.timestamp().saturating_sub(Utc::now().timestamp());
            let wait = Duration::from_secs(u64::try_from(wait).unwrap_or_default());
            let scheduler = self.scheduler.clone();
            let rung = AtomicBool::new(false);
            let job = Job::new_one_shot_async(wait, move |_, _| {
                let (alarm, is_first) = (self.clone(), !rung.swap(true, Ordering::Relaxed));
                Box::pin(async move {
                    if is_first {
                        alarm.ring(at).await;
                    }
                })
            })?;
            scheduler.add(job).await.map(drop)
        })
    }

    async fn ring(self, at: DateTime<Utc>) {
        (self.due)(self.position);
        let position = self.position;
        // After a machine has slept, what it slept through is one run and not many.
        if let Err(error) = self.set(at.max(Utc::now())).await {
            tracing::error!(
                "the scheduler does not take the next run of schedule {position}: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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

    #[tokio::test]
    async fn every_occurrence_is_called_once_until_asked_to_stop() {
        let stop = Stop::new();
        let called = Arc::new(AtomicUsize::new(0));
        let (count, end) = (Arc::clone(&called), stop.clone());
        let started = Utc::now();
        keep(vec![timetable("* * * * * *")], &stop, move |position| {
            assert_eq!(position, 0);
            if count.fetch_add(1, Ordering::Relaxed) == 2 {
                end.request();
            }
        })
        .await
        .unwrap();
        // Three different seconds have begun, no earlier than they could.
        assert_eq!(called.load(Ordering::Relaxed), 3);
        assert!(Utc::now() - started >= chrono::TimeDelta::seconds(2));
    }
}
