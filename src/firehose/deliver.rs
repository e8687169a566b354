//! Sends records until each is delivered, or until there is a reason to stop.

use std::time::Duration;

use tokio::time::Instant;

use super::credentials::NOT_ACCEPTED_HINT;
use super::{Destination, Meter, Parked, Pulse, Refusal};
use crate::batch::{Record, calls};
use crate::mapping::StreamName;
use crate::stop::Stop;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What became of the records of a chunk at one stream.
#[derive(Debug)]
pub struct Delivery {
    pub delivered: Vec<Record>,
    /// Why not all of them are.
    pub ended_by: Option<Ended>,
}

/// Why a delivery ended before all was delivered.
#[derive(Debug, Clone)]
pub enum Ended {
    /// Somebody must act first.
    Parked(Parked),
    /// Nothing at all was accepted for too long; the last reason that was given.
    GaveUp(String),
    /// The run was asked to stop.
    Stopped,
}

impl Destination {
    /// Sends records, in calls within AWS's limits, until all are delivered or there is a reason to end.
    ///
    /// Asked to stop, it finishes the call that is in flight and tells what that delivered.
    pub async fn deliver(
        &self,
        stream: &StreamName,
        records: Vec<Record>,
        meter: &Meter,
        pulse: &Pulse,
        stop: &Stop,
    ) -> Delivery {
        let mut delivered = Vec::with_capacity(records.len());
        let ranges: Vec<_> = calls(&records).collect();
        for range in ranges {
            let call = self
                .deliver_call(stream, records[range].to_vec(), meter, pulse, stop)
                .await;
            delivered.extend(call.delivered);
            if call.ended_by.is_some() {
                return Delivery {
                    delivered,
                    ended_by: call.ended_by,
                };
            }
        }
        Delivery {
            delivered,
            ended_by: None,
        }
    }

    async fn deliver_call(
        &self,
        stream: &StreamName,
        mut waiting: Vec<Record>,
        meter: &Meter,
        pulse: &Pulse,
        stop: &Stop,
    ) -> Delivery {
        let mut delivered = Vec::with_capacity(waiting.len());
        let mut backoff = Backoff::default();
        loop {
            tokio::select! {
                () = self.pace(stream, &waiting) => {}
                () = stop.requested() => {}
            }
            // Nothing is begun after that.
            if stop.is_requested() {
                return Delivery {
                    delivered,
                    ended_by: Some(Ended::Stopped),
                };
            }
            let began = Instant::now();
            let receipt = self.put(stream, &waiting, meter).await;
            tracing::debug!(
                %stream,
                records = waiting.len(),
                delivered = receipt.delivered.len(),
                millis = began.elapsed().as_millis(),
                "put"
            );
            if !receipt.delivered.is_empty() {
                pulse.beat();
                backoff = Backoff::default();
                let mut accepted = vec![false; waiting.len()];
                receipt
                    .delivered
                    .iter()
                    .for_each(|record| accepted[*record] = true);
                let mut accepted = accepted.into_iter();
                let (done, rest): (Vec<_>, Vec<_>) = waiting
                    .into_iter()
                    .partition(|_| accepted.next().unwrap_or_default());
                done.iter().for_each(|record| meter.delivered(record));
                delivered.extend(done);
                waiting = rest;
            }
            let end = |ended_by| Delivery {
                delivered: Vec::new(),
                ended_by,
            };
            let ended = match receipt.refusal {
                _ if waiting.is_empty() => end(None),
                Some(Refusal::Park(parked)) => end(Some(Ended::Parked(parked))),
                Some(Refusal::Refresh { reason, refused }) => {
                    if stop.is_requested() {
                        end(Some(Ended::Stopped))
                    } else if self.refresh(refused).await {
                        meter.retry();
                        continue;
                    } else {
                        let problem = format!(
                            "the credentials are not accepted, nor are new ones ({reason})"
                        );
                        end(Some(Ended::Parked(Parked {
                            problem,
                            hint: Some(NOT_ACCEPTED_HINT.to_owned()),
                        })))
                    }
                }
                Some(Refusal::Retry(reason)) => {
                    tracing::debug!(%stream, records = waiting.len(), reason, "not accepted yet");
                    match backoff.wait(pulse, stop).await {
                        Waited::Enough => {
                            meter.retry();
                            continue;
                        }
                        Waited::Stopped => end(Some(Ended::Stopped)),
                        Waited::InVain => end(Some(Ended::GaveUp(reason))),
                    }
                }
                None => unreachable!("a receipt says why something is not delivered"),
            };
            return Delivery { delivered, ..ended };
        }
    }
}

enum Waited {
    Enough,
    Stopped,
    /// Nothing at all was accepted meanwhile, for too long.
    InVain,
}

/// Exponential, with full jitter: <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            ceiling: FIRST_BACKOFF,
        }
    }
}

impl Backoff {
    async fn wait(&mut self, pulse: &Pulse, stop: &Stop) -> Waited {
        let until = Instant::now() + self.ceiling.mul_f64(fastrand::f64());
        self.ceiling = LONGEST_BACKOFF.min(self.ceiling * 2);
        tokio::select! {
            () = tokio::time::sleep_until(until.min(pulse.deadline())) => {}
            () = stop.requested() => return Waited::Stopped,
        }
        if Instant::now() < pulse.deadline() {
            return Waited::Enough;
        }
        pulse.give_up();
        Waited::InVain
    }
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::sync::Arc;

    use bytes::Bytes;
    use tempfile::TempDir;

    use super::super::Directory;
    use super::*;
    use crate::audience::DestinationName;

    /// A destination that never takes anything, for a reason that might pass: no file system takes names so long.
    struct OutOfReach {
        destination: Destination,
        meter: Meter,
        pulse: Arc<Pulse>,
        stop: Stop,
        _folder: TempDir,
    }

    impl OutOfReach {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let root: String = iter::repeat_n('x', 300).collect();
            let directory = Directory::new(folder.path().join(root));
            Self {
                destination: Destination::directory(DestinationName::new("main"), false, directory),
                meter: Meter::default(),
                pulse: Arc::default(),
                stop: Stop::new(),
                _folder: folder,
            }
        }

        /// How long a delivery took, how many calls it made, and how it ended.
        async fn deliver(&self) -> (Duration, u64, Ended) {
            let record = Record {
                data: Bytes::from("a\n"),
                lines: 0..1,
            };
            let stream = StreamName::parse("members").unwrap();
            let (started, calls) = (Instant::now(), self.meter.counts().requests);
            self.pulse.start();
            let delivery = self
                .destination
                .deliver(&stream, vec![record], &self.meter, &self.pulse, &self.stop)
                .await;
            assert!(delivery.delivered.is_empty());
            let calls = self.meter.counts().requests - calls;
            (started.elapsed(), calls, delivery.ended_by.unwrap())
        }
    }

    /// The clock of a paused runtime counts in milliseconds.
    fn seconds(time: Duration) -> u64 {
        (time.as_millis() as f64 / 1_000.0).round() as u64
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_is_given_up_when_nothing_is_accepted_for_90_seconds() {
        let out_of_reach = OutOfReach::new();
        let (time, calls, ended) = out_of_reach.deliver().await;
        assert!(matches!(ended, Ended::GaveUp(_)), "{ended:?}");
        assert_eq!(seconds(time), 90);
        // It backs off, to 10 s at most.
        assert!((9..100).contains(&calls), "{calls}");
        assert_eq!(out_of_reach.meter.counts().retries, calls - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_one_was_given_up_the_next_tries_once() {
        let out_of_reach = OutOfReach::new();
        out_of_reach.deliver().await;
        let (time, calls, ended) = out_of_reach.deliver().await;
        assert!(matches!(ended, Ended::GaveUp(_)), "{ended:?}");
        assert_eq!((seconds(time), calls), (0, 1));

        // Something was accepted elsewhere, so there is reason to hope again.
        out_of_reach.pulse.beat();
        let (time, _, _) = out_of_reach.deliver().await;
        assert_eq!(seconds(time), 90);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_elsewhere_gives_more_time() {
        let out_of_reach = OutOfReach::new();
        let pulse = Arc::clone(&out_of_reach.pulse);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            pulse.beat();
        });
        let (time, _, _) = out_of_reach.deliver().await;
        assert_eq!(seconds(time), 150);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_that_is_asked_to_stop_does_not_wait_for_its_next_try() {
        let out_of_reach = OutOfReach::new();
        let stop = out_of_reach.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(30)).await;
            stop.request();
        });
        let (time, calls, ended) = out_of_reach.deliver().await;
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
        assert_eq!(seconds(time), 30);
        assert!(calls > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_stop_nothing_is_begun() {
        let out_of_reach = OutOfReach::new();
        out_of_reach.stop.request();
        let (time, calls, ended) = out_of_reach.deliver().await;
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
        assert_eq!((seconds(time), calls), (0, 0));
    }
}
