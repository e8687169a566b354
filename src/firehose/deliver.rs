//! Sends records until each line is delivered or waits for its retry, or until there is a reason to end.

mod batch;
mod failed;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::credentials::NOT_ACCEPTED_HINT;
use super::rate_limiter::{Feedback, Permit};
use super::streams::StreamState;
use super::{Blocked, Cause, Destination, Failure, Meters, Receipt, Refusal, Suspect};
use crate::batch::Record;
use crate::mapping::StreamName;
use crate::stop::Stop;
use batch::Batch;
use failed::{Failed, Scope};

/// What became of records at one stream.
#[derive(Debug, Default)]
pub struct Delivery {
    pub delivered: Vec<Record>,
    /// Lines that wait for [`Destination::retry`], each a record of one line. Empty after `retry`.
    pub suspects: Vec<Suspect>,
    /// Lines that can never be delivered. Only `retry` finds them.
    pub dead: Vec<Rejected>,
    /// Positions of lines that are not delivered, and that the stream may have accepted all the same: dead lines,
    /// suspects and others.
    pub maybe_accepted: BTreeSet<usize>,
    /// Why not all others are delivered.
    pub ended_by: Option<Ended>,
}

/// A line that can never be delivered.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// Of one line.
    pub record: Record,
    /// AWS's code, such as `ValidationException`.
    pub code: String,
    /// AWS's words, which may repeat what it was sent.
    pub message: String,
}

/// Why a delivery ended before all was delivered.
#[derive(Debug, Clone)]
pub enum Ended {
    /// An operator must act first.
    Blocked(Blocked),
    /// The stream accepts nothing, and refused calls that have nothing in common.
    RefusesEverything(Blocked),
    /// The stream accepted nothing for too long; the last reason that it gave.
    Stalled(String),
    /// The time that deliveries may take is over.
    TimeUp,
    /// The run was asked to stop.
    Stopped,
}

impl Ended {
    pub(super) fn refuses_everything(stream: &StreamName, code: &str) -> Self {
        Self::RefusesEverything(Blocked {
            problem: format!("stream `{stream}` refuses every record that it is given ({code})"),
            hint: Some("see that the stream takes direct puts; `-v` shows its words".to_owned()),
        })
    }
}

impl Destination {
    /// Sends records, in calls within AWS's limits, until each line is delivered or is suspect, or the delivery ends.
    ///
    /// Suspects are lines that failed alone. It does not wait for them: give them to [`retry`](Self::retry), beside
    /// further deliveries to the stream. `has_accepted`: the stream accepted some line before this command. Asked to stop,
    /// it finishes the call that is in flight and tells what that delivered.
    pub async fn deliver(
        &self,
        stream: &StreamName,
        records: Vec<Record>,
        meters: &Meters,
        has_accepted: bool,
        stop: &Stop,
    ) -> Delivery {
        let state = self.streams.of(stream);
        state.evidence().note_accepted_before(has_accepted);
        let _counting = self.time_limit.start();
        let _delivering = state.stall.start();
        let mut offering = Offering::new(&state);
        let context = Context {
            destination: self,
            stream,
            state: &state,
            meters,
            stop,
        };
        let delivery = Sending::new(context, records).finish().await;
        offering.is_all = delivery.ended_by.is_none();
        delivery
    }
}

/// Notes that a delivery has lines to offer, until it ends in whatever way.
struct Offering<'a> {
    state: &'a StreamState,
    is_all: bool,
}

impl<'a> Offering<'a> {
    fn new(state: &'a StreamState) -> Self {
        state.evidence().begin_offering();
        Self {
            state,
            is_all: false,
        }
    }
}

impl Drop for Offering<'_> {
    fn drop(&mut self) {
        self.state.evidence().end_offering(self.is_all);
    }
}

/// Where calls go, and what may end them.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) destination: &'a Destination,
    pub(super) stream: &'a StreamName,
    pub(super) state: &'a Arc<StreamState>,
    pub(super) meters: &'a Meters,
    pub(super) stop: &'a Stop,
}

impl Context<'_> {
    /// Waits for something, or for a reason to end.
    pub(super) async fn wait<T>(&self, awaited: impl Future<Output = T>) -> Result<T, Ended> {
        let time_limit = &self.destination.time_limit;
        let awaited = tokio::select! {
            awaited = awaited => awaited,
            () = self.stop.requested() => return Err(Ended::Stopped),
            () = time_limit.up() => return Err(Ended::TimeUp),
        };
        // Nothing is begun after that.
        match (self.stop.is_requested(), time_limit.is_up()) {
            (true, _) => Err(Ended::Stopped),
            (false, true) => Err(Ended::TimeUp),
            (false, false) => Ok(awaited),
        }
    }

    /// Makes one call.
    pub(super) async fn put(&self, records: &[Record]) -> Receipt {
        let began = Instant::now();
        let receipt = self
            .destination
            .put(self.stream, records, self.meters)
            .await;
        tracing::debug!(
            stream = %self.stream,
            records = records.len(),
            delivered = receipt.delivered.len(),
            millis = began.elapsed().as_millis(),
            "put"
        );
        receipt
    }

    pub(super) async fn refresh(&self, reason: &str, refused: u64) -> Result<(), Ended> {
        if self.stop.is_requested() {
            return Err(Ended::Stopped);
        }
        if self.destination.refresh(refused).await {
            return Ok(());
        }
        Err(Ended::Blocked(Blocked {
            problem: format!("the credentials are not accepted, nor are new ones ({reason})"),
            hint: Some(NOT_ACCEPTED_HINT.to_owned()),
        }))
    }

    /// Ends because of the stall timeout. Later deliveries try once.
    pub(super) fn stalled(&self, reason: String) -> Ended {
        self.state.stall.give_up();
        Ended::Stalled(reason)
    }
}

/// A batch is taken apart after this many fruitless calls in a row: one of its lines may be the reason.
const FRUITLESS_CALLS: u32 = 3;
/// The same where the stream has no room, and accepts nothing else: smaller calls are more calls.
const THROTTLED_CALLS: u32 = 8;

/// A delivery that is under way.
struct Sending<'a> {
    context: Context<'a>,
    /// What is yet to be delivered. What failed goes to the end: all else is offered first.
    batches: VecDeque<Batch>,
    /// Why the last call accepted nothing. `None` at first, and when something was accepted.
    reason: Option<String>,
    /// The last code that means rejected content.
    rejected_with: Option<String>,
    delivery: Delivery,
}

impl<'a> Sending<'a> {
    fn new(context: Context<'a>, records: Vec<Record>) -> Self {
        Self {
            context,
            delivery: Delivery {
                delivered: Vec::with_capacity(records.len()),
                ..Delivery::default()
            },
            batches: Batch::all(records),
            reason: None,
            rejected_with: None,
        }
    }

    async fn finish(mut self) -> Delivery {
        while let Some(batch) = self.batches.pop_front() {
            if let Err(ended) = self.attempt(batch).await {
                self.delivery.ended_by = Some(ended);
                break;
            }
        }
        let maybe_accepted = &self.delivery.maybe_accepted;
        for suspect in &mut self.delivery.suspects {
            suspect.is_maybe_accepted = maybe_accepted.contains(&suspect.record.lines.start);
        }
        self.delivery
    }

    /// Makes one call, with as many of the records as may go now, and sees to what it does not deliver.
    async fn attempt(&mut self, mut batch: Batch) -> Result<(), Ended> {
        let Context { state, meters, .. } = self.context;
        let permit = self.permit(&batch.records).await?;
        let later = batch.records.split_off(permit.records);
        if !later.is_empty() {
            self.batches.push_front(batch.with(later));
        }
        if batch.is_tried {
            meters.retry(&batch.records);
        }
        let is_one_line = batch.is_one_line();
        let is_about_lines = self.is_about_lines(&batch);
        let receipt = self.context.put(&batch.records).await;
        let is_accepted = !receipt.delivered.is_empty();
        let answer = state.answered(is_accepted);
        let (done, failed) = Failed::split(std::mem::take(&mut batch.records), receipt);
        let bytes = done.iter().map(|record| record.data.len()).sum();
        let feedback = failed.feedback(is_one_line, is_about_lines);
        state
            .limiter
            .observe(&permit, feedback, bytes, batch.failures);
        drop(permit);
        self.take_delivered(done);
        if failed.is_empty() {
            return Ok(());
        }
        let reason = failed.reason();
        tracing::debug!(stream = %self.context.stream, reason, "not accepted");
        state.stall.failed(&reason);
        self.reason = Some(reason);
        batch.is_tried = true;
        batch.first_refused.get_or_insert(answer);
        let last_refused = batch.last_refused.replace(answer);
        batch.failures = match feedback {
            _ if is_accepted => 0,
            Feedback::Enough => batch.failures,
            _ => batch.failures + 1,
        };
        // What others took had no room for this one.
        if is_accepted || failed.is_call_too_many() && self.has_accepted_since(last_refused) {
            batch.fruitless = 0;
        }
        self.handle(&batch, failed).await
    }

    /// Waits for the right to make a call, or for a reason to make none.
    async fn permit(&self, records: &[Record]) -> Result<Permit, Ended> {
        let Context { state, .. } = self.context;
        let singly = self.context.destination.sends_singly(self.context.stream);
        let is_first = self.reason.is_none();
        let permit = state
            .limiter
            .permit(records, singly, is_first, &state.stall);
        let permit = self.context.wait(permit).await?;
        permit.ok_or_else(|| {
            let reason = self.reason.clone().unwrap_or_default();
            self.context.stalled(reason)
        })
    }

    fn take_delivered(&mut self, done: Vec<Record>) {
        if done.is_empty() {
            return;
        }
        self.reason = None;
        self.context.meters.delivered(&done);
        let maybe_accepted = &mut self.delivery.maybe_accepted;
        if !maybe_accepted.is_empty() {
            for line in done.iter().flat_map(|record| record.lines.clone()) {
                maybe_accepted.remove(&line);
            }
        }
        self.delivery.delivered.extend(done);
    }

    fn note_maybe_accepted(&mut self, record: &Record) {
        let lines = record.lines.clone();
        self.delivery.maybe_accepted.extend(lines);
    }

    /// Does about the records that a call did not deliver what their failures say.
    async fn handle(&mut self, batch: &Batch, failed: Failed) -> Result<(), Ended> {
        let Failed {
            call,
            is_accepted,
            one_by_one,
            rest,
            refusal,
        } = failed;
        let mut together: Vec<Record> = Vec::new();
        let mut shared: Option<Failure> = None;
        for (record, failure) in one_by_one {
            if failure.is_maybe_accepted {
                self.note_maybe_accepted(&record);
            }
            if failure.cause == Cause::Content {
                self.reject(batch.with(vec![record]), failure)?;
            } else {
                together.push(record);
                // A stream that has no room is no reason to look for a line.
                if shared.is_none() || failure.cause == Cause::Throttled {
                    shared = Some(failure);
                }
            }
        }
        if let Some(failure) = shared {
            let fruitless = batch.fruitless + u32::from(!is_accepted);
            let batch = Batch {
                fruitless,
                ..batch.with(together)
            };
            let scope = if call == 1 {
                Scope::OnlyRecord
            } else {
                Scope::SomeRecords
            };
            self.fail(batch, failure, scope);
        }
        if rest.is_empty() {
            return Ok(());
        }
        let mut rest = batch.with(rest);
        match refusal.expect("a receipt says why something is not delivered") {
            Refusal::Retry(_) => self.batches.push_back(rest),
            Refusal::Failed(failure) => {
                if failure.is_maybe_accepted {
                    rest.records
                        .iter()
                        .for_each(|record| self.note_maybe_accepted(record));
                }
                rest.fruitless += u32::from(!is_accepted);
                let scope = if is_accepted {
                    Scope::SomeRecords
                } else {
                    Scope::Call
                };
                self.fail(rest, failure, scope);
            }
            Refusal::Refresh { reason, refused } => {
                self.context.refresh(&reason, refused).await?;
                self.batches.push_front(rest);
            }
            Refusal::Blocked(blocked) => return Err(Ended::Blocked(blocked)),
            Refusal::Rejected { code, message } => {
                self.reject(rest, Failure::of_content(code, message))?;
            }
        }
        Ok(())
    }

    /// Puts records back that may be accepted later. If it was in vain again and again, it takes them apart.
    fn fail(&mut self, mut batch: Batch, failure: Failure, scope: Scope) {
        batch.is_one_by_one = scope != Scope::Call;
        if scope != Scope::SomeRecords && batch.is_one_line() {
            self.suspect_alone(batch, failure);
            return;
        }
        let most = match (failure.cause, scope, batch.parted) {
            // A call too many says nothing about its records.
            _ if scope != Scope::Call && self.is_about_lines(&batch) => 1,
            (Cause::Throttled, _, Some((_, Cause::Throttled))) => FRUITLESS_CALLS,
            (Cause::Throttled, ..) => THROTTLED_CALLS,
            _ if self.is_about_lines(&batch) => 1,
            _ => FRUITLESS_CALLS,
        };
        // Refused one by one, again and again, by a stream that accepts others: it is about these lines.
        let is_suspect =
            scope == Scope::SomeRecords && self.has_accepted_since(batch.first_refused);
        // Those were taken apart for nothing if an answer was lost meanwhile.
        let in_vain = match is_suspect {
            true => batch.failures,
            false => batch.fruitless,
        };
        if in_vain < most {
            self.put_back(batch);
            return;
        }
        if is_suspect {
            let first_refused = batch.first_refused.unwrap_or_default();
            let suspect = |line| Suspect::new(line, first_refused, failure.clone(), Instant::now());
            let lines = batch.into_lines();
            self.delivery.suspects.extend(lines.map(suspect));
            return;
        }
        let answers = self.context.state.evidence().answers();
        // Records with answers of their own need no calls of their own.
        let is_packed = batch.records.iter().any(|record| record.lines.len() > 1);
        if batch.is_one_by_one && is_packed {
            self.batches
                .extend(batch.halved_records(answers, failure.cause));
            return;
        }
        match batch.halves(answers, failure.cause) {
            Some(halves) => self.batches.extend(halves),
            None => self.batches.push_back(batch),
        }
    }

    /// Offers records again, in one call with others that were refused one by one: however many calls they came from,
    /// the stream's backoff is waited for once.
    fn put_back(&mut self, batch: Batch) {
        let last = self.batches.back_mut();
        let last = last.filter(|last| last.is_one_by_one && batch.is_one_by_one);
        let apart = match last {
            Some(last) => last.join(batch),
            None => Some(batch),
        };
        self.batches.extend(apart);
    }

    fn has_accepted_since(&self, answer: Option<u64>) -> bool {
        let evidence = self.context.state.evidence();
        answer.is_some_and(|answer| evidence.has_accepted_since(answer))
    }

    /// Whether others that they were taken apart from were accepted since: then records fail because of what they are.
    fn is_about_lines(&self, batch: &Batch) -> bool {
        self.has_accepted_since(batch.parted.map(|(answers, _)| answers))
    }

    /// Halves records whose content is rejected, until the line that is to blame stands alone.
    fn reject(&mut self, batch: Batch, failure: Failure) -> Result<(), Ended> {
        self.rejected_with = Some(failure.code.clone());
        let answers = self.context.state.evidence().answers();
        match batch.halves(answers, failure.cause) {
            Some(halves) => self.batches.extend(halves),
            None => self.suspect_alone(batch, failure),
        }
        self.verdict_on_stream()
    }

    fn verdict_on_stream(&self) -> Result<(), Ended> {
        let Context { state, stream, .. } = self.context;
        match &self.rejected_with {
            Some(code) if state.evidence().rejects_everything() => {
                Err(Ended::refuses_everything(stream, code))
            }
            _ => Ok(()),
        }
    }

    /// Sets a line aside that failed alone.
    fn suspect_alone(&mut self, batch: Batch, failure: Failure) {
        let Context { state, stream, .. } = self.context;
        let Failure { code, message, .. } = &failure;
        tracing::debug!(%stream, code, message, "a line failed alone");
        let (now, first_refused) = (Instant::now(), batch.first_refused.unwrap_or_default());
        for line in batch.records {
            let mut suspect = Suspect::new(line, first_refused, failure.clone(), now);
            suspect.fail(failure.clone(), &mut state.evidence(), now);
            self.delivery.suspects.push(suspect);
        }
    }
}

#[cfg(test)]
mod tests;
