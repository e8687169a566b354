//! Sends records until each is delivered, or until there is a reason to stop.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::credentials::NOT_ACCEPTED_HINT;
use super::pacing::{Admitted, Pace, Said};
use super::{Destination, Meters, Parked, Pulse, Receipt, Refusal};
use crate::batch::{Record, calls};
use crate::mapping::StreamName;
use crate::stop::Stop;

/// What became of the records of a chunk at one stream.
#[derive(Debug, Default)]
pub struct Delivery {
    pub delivered: Vec<Record>,
    /// Single lines that Firehose will not have, whatever is done.
    pub blamed: Vec<Blamed>,
    /// Why not all of the others are delivered.
    pub ended_by: Option<Ended>,
}

/// A line whose content Firehose refuses.
#[derive(Debug, Clone)]
pub struct Blamed {
    pub record: Record,
    /// AWS's code, such as `ValidationException`,
    pub code: String,
    /// and its words, which may repeat what it was sent.
    pub message: String,
    /// An earlier call for it had no answer, and may have been accepted.
    pub is_doubtful: bool,
}

/// Why a delivery ended before all was delivered.
#[derive(Debug, Clone)]
pub enum Ended {
    /// Somebody must act first.
    Parked(Parked),
    /// The same: the stream has refused so many lines by themselves that it is to blame, and not they.
    Hopeless(Parked),
    /// Nothing at all was accepted for too long; the last reason that was given.
    GaveUp(String),
    /// The time that deliveries may take is over.
    TimeUp,
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
        meters: &Meters,
        pulse: &Pulse,
        stop: &Stop,
    ) -> Delivery {
        let count = records.len();
        let sending = Sending {
            destination: self,
            stream,
            pace: self.pacing.of(stream),
            meters,
            pulse,
            stop,
            batches: batches(records),
            refused_for: None,
            strange: BTreeMap::new(),
            delivery: Delivery {
                delivered: Vec::with_capacity(count),
                ..Delivery::default()
            },
        };
        sending.finish().await
    }
}

/// One for each call, the first one last.
fn batches(mut records: Vec<Record>) -> Vec<Batch> {
    let mut starts: Vec<usize> = calls(&records).map(|call| call.start).collect();
    starts.reverse();
    let batch = |start: usize| Batch {
        records: records.split_off(start),
        is_tried: false,
        is_doubtful: false,
    };
    starts.into_iter().map(batch).collect()
}

/// Records for one call.
#[derive(Debug)]
struct Batch {
    records: Vec<Record>,
    /// A call has been made for them,
    is_tried: bool,
    /// and one had no answer, so that they may have been accepted.
    is_doubtful: bool,
}

/// So often a record is refused with a code that AWS does not document, before its content is to blame.
const STRANGE_TRIES: u32 = 10;

/// A delivery that is under way.
struct Sending<'a> {
    destination: &'a Destination,
    stream: &'a StreamName,
    pace: Arc<Pace>,
    meters: &'a Meters,
    pulse: &'a Pulse,
    stop: &'a Stop,
    /// What is yet to be delivered; the next one is the last.
    batches: Vec<Batch>,
    /// Why a call was refused the last time.
    refused_for: Option<String>,
    /// How often a record, by its first line, was refused with a code that AWS does not document.
    strange: BTreeMap<usize, u32>,
    delivery: Delivery,
}

impl Sending<'_> {
    async fn finish(mut self) -> Delivery {
        while let Some(batch) = self.batches.pop() {
            if let Err(ended) = self.attempt(batch).await {
                self.delivery.ended_by = Some(ended);
                break;
            }
        }
        self.delivery
    }

    /// Makes one call, with as many of the records as may go now, and sees to what it does not deliver.
    async fn attempt(&mut self, mut batch: Batch) -> Result<(), Ended> {
        let admitted = self.admit(&batch.records).await?;
        let later = batch.records.split_off(admitted.records);
        let Batch {
            is_tried,
            is_doubtful,
            ..
        } = batch;
        self.put_back(later, is_tried, is_doubtful);
        if is_tried {
            self.meters.retry(&batch.records);
        }
        let began = Instant::now();
        let receipt = self
            .destination
            .put(self.stream, &batch.records, self.meters)
            .await;
        tracing::debug!(
            stream = %self.stream,
            records = batch.records.len(),
            delivered = receipt.delivered.len(),
            millis = began.elapsed().as_millis(),
            "put"
        );
        let tried = batch.records.len();
        let (rest, bytes) = self.take_delivered(batch.records, &receipt);
        self.pace.hear(&admitted, said(&receipt, tried), bytes);
        drop(admitted);
        let is_doubtful = is_doubtful || receipt.is_lost;
        self.see_to(rest, receipt, is_doubtful).await
    }

    /// Waits for the right to make a call, or for a reason to make none.
    async fn admit(&self, records: &[Record]) -> Result<Admitted, Ended> {
        let singly = self.destination.sends_singly(self.stream);
        let is_first = self.refused_for.is_none();
        let admitted = tokio::select! {
            admitted = self.pace.admit(records, singly, is_first, self.pulse) => admitted,
            () = self.stop.requested() => return Err(Ended::Stopped),
            () = self.pulse.time_is_up() => return Err(Ended::TimeUp),
        };
        // Nothing is begun after that.
        if self.stop.is_requested() {
            return Err(Ended::Stopped);
        }
        if self.pulse.is_time_up() {
            return Err(Ended::TimeUp);
        }
        admitted.ok_or_else(|| {
            self.pulse.give_up();
            Ended::GaveUp(self.refused_for.clone().unwrap_or_default())
        })
    }

    fn put_back(&mut self, records: Vec<Record>, is_tried: bool, is_doubtful: bool) {
        if !records.is_empty() {
            self.batches.push(Batch {
                records,
                is_tried,
                is_doubtful,
            });
        }
    }

    /// Sets aside what was delivered; returns the other records, and how many bytes were delivered.
    fn take_delivered(&mut self, records: Vec<Record>, receipt: &Receipt) -> (Vec<Record>, usize) {
        if receipt.delivered.is_empty() {
            return (records, 0);
        }
        self.pulse.beat();
        self.refused_for = None;
        let (done, rest) = parted(records, &receipt.delivered);
        self.meters.delivered(&done);
        let bytes = done.iter().map(|record| record.data.len()).sum();
        self.delivery.delivered.extend(done);
        (rest, bytes)
    }

    /// Does about the records of a call what the refusal says.
    async fn see_to(
        &mut self,
        rest: Vec<Record>,
        receipt: Receipt,
        is_doubtful: bool,
    ) -> Result<(), Ended> {
        if rest.is_empty() {
            return Ok(());
        }
        match receipt
            .refusal
            .expect("a receipt says why something is not delivered")
        {
            Refusal::Park(parked) => Err(Ended::Parked(parked)),
            Refusal::Retry(reason) => {
                tracing::debug!(stream = %self.stream, records = rest.len(), reason, "not accepted yet");
                self.refused_for = Some(reason);
                let rest = self.take_strange(rest, &receipt.strange, is_doubtful)?;
                self.put_back(rest, true, is_doubtful);
                Ok(())
            }
            Refusal::Refresh { reason, refused } => {
                self.refresh(&reason, refused).await?;
                self.put_back(rest, true, is_doubtful);
                Ok(())
            }
            Refusal::Bisect { code, message } => self.bisect(rest, &code, &message, is_doubtful),
        }
    }

    async fn refresh(&self, reason: &str, refused: u64) -> Result<(), Ended> {
        if self.stop.is_requested() {
            return Err(Ended::Stopped);
        }
        if self.destination.refresh(refused).await {
            return Ok(());
        }
        Err(Ended::Parked(Parked {
            problem: format!("the credentials are not accepted, nor are new ones ({reason})"),
            hint: Some(NOT_ACCEPTED_HINT.to_owned()),
        }))
    }

    /// Takes the records out that were refused with a strange code again and again, while others went.
    fn take_strange(
        &mut self,
        rest: Vec<Record>,
        strange: &[(usize, String)],
        is_doubtful: bool,
    ) -> Result<Vec<Record>, Ended> {
        let mut waiting = Vec::with_capacity(rest.len());
        for record in rest {
            let first = record.lines.start;
            let code = strange.iter().find(|(line, _)| *line == first);
            let tries = code.map_or(0, |_| {
                let tries = self.strange.entry(first).or_default();
                *tries += 1;
                *tries
            });
            match code {
                Some((_, code)) if tries >= STRANGE_TRIES => {
                    let message = format!("refused {tries} times");
                    self.bisect(vec![record], code, &message, is_doubtful)?;
                }
                _ => waiting.push(record),
            }
        }
        Ok(waiting)
    }

    /// Halves a call until the line that is to blame stands alone. The others are delivered on the way.
    fn bisect(
        &mut self,
        rest: Vec<Record>,
        code: &str,
        message: &str,
        is_doubtful: bool,
    ) -> Result<(), Ended> {
        if let Some((first, second)) = halves(&rest) {
            self.put_back(second, true, is_doubtful);
            self.put_back(first, true, is_doubtful);
            return Ok(());
        }
        tracing::debug!(stream = %self.stream, code, message, "a line is refused by itself");
        self.delivery
            .blamed
            .extend(rest.into_iter().map(|record| Blamed {
                record,
                code: code.to_owned(),
                message: message.to_owned(),
                is_doubtful,
            }));
        if !self.pace.refused_alone() {
            return Ok(());
        }
        Err(Ended::Hopeless(Parked {
            problem: format!(
                "stream `{}` refuses every record that it is given ({code})",
                self.stream
            ),
            hint: Some("see that the stream takes direct puts; `-v` shows its words".to_owned()),
        }))
    }
}

/// The records at some positions, and the others.
fn parted(records: Vec<Record>, positions: &[usize]) -> (Vec<Record>, Vec<Record>) {
    // So it is of nearly every call.
    if positions.len() == records.len() {
        return (records, Vec::new());
    }
    let mut is_among = vec![false; records.len()];
    for position in positions {
        is_among[*position] = true;
    }
    let mut is_among = is_among.into_iter();
    records
        .into_iter()
        .partition(|_| is_among.next().unwrap_or_default())
}

/// What a call tells about how much the stream takes.
fn said(receipt: &Receipt, tried: usize) -> Said {
    match receipt.refusal {
        Some(Refusal::Retry(_)) if receipt.refused == 0 => {
            Said::Failed((tried - receipt.delivered.len()) as f64 / tried as f64)
        }
        Some(Refusal::Retry(_)) => Said::TooMuch(receipt.refused as f64 / tried as f64),
        _ => Said::Enough,
    }
}

/// Two halves by records, or the lines of a single one; `None` for a single line.
fn halves(records: &[Record]) -> Option<(Vec<Record>, Vec<Record>)> {
    if let [record] = records {
        let (first, second) = record.halves()?;
        return Some((vec![first], vec![second]));
    }
    let (first, second) = records.split_at(records.len() / 2);
    Some((first.to_vec(), second.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use tempfile::TempDir;

    use super::super::{Directory, Meter};
    use super::*;
    use crate::audience::DestinationName;

    /// A destination that never takes anything, for a reason that might pass: no file system takes names so long.
    struct OutOfReach {
        destination: Destination,
        meter: Arc<Meter>,
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
                meter: Arc::default(),
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
            let mut meters = Meters::default();
            meters.add(1, &self.meter);
            let _delivering = self.pulse.start();
            let delivery = self
                .destination
                .deliver(&stream, vec![record], &meters, &self.pulse, &self.stop)
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

    #[test]
    fn what_a_call_says_goes_by_what_it_did_not_deliver() {
        let check = |delivered: usize, refused, refusal, expected| {
            let receipt = Receipt {
                delivered: (0..delivered).collect(),
                refused,
                refusal,
                ..Receipt::default()
            };
            assert_eq!(said(&receipt, 500), expected);
        };
        let retry = || Some(Refusal::Retry("as the test says".to_owned()));
        check(500, 0, None, Said::Enough);
        check(400, 100, retry(), Said::TooMuch(0.2));
        check(495, 0, retry(), Said::Failed(0.01));
        check(0, 0, retry(), Said::Failed(1.0));
    }
}
