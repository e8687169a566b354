//! Tries lines again, alone, until each is delivered or dead.

use tokio::time::Instant;

use super::deliver::{Context, Delivery, Ended, Rejected};
use super::suspects::Verdict;
use super::{Destination, Failure, Meters, Receipt, Refusal, Suspect};
use crate::mapping::StreamName;
use crate::stop::Stop;

impl Destination {
    /// Tries lines again that failed alone, until each is delivered or dead, or the delivery ends.
    ///
    /// It is slow on purpose: a line with a code that may pass takes 30 s until it is dead. Further deliveries to the
    /// stream can go on beside it, and tell whether the stream accepts other lines. `has_accepted`: the stream accepted
    /// some line before this command.
    pub async fn retry(
        &self,
        stream: &StreamName,
        suspects: Vec<Suspect>,
        meters: &Meters,
        has_accepted: bool,
        stop: &Stop,
    ) -> Delivery {
        let state = self.streams.of(stream);
        state.evidence().note_accepted_before(has_accepted);
        let _counting = self.time_limit.start();
        let _delivering = state.stall.start();
        let retrying = Retrying {
            context: Context {
                destination: self,
                stream,
                state: &state,
                meters,
                stop,
            },
            waiting: suspects,
            delivery: Delivery::default(),
        };
        retrying.finish().await
    }
}

struct Retrying<'a> {
    context: Context<'a>,
    waiting: Vec<Suspect>,
    delivery: Delivery,
}

impl Retrying<'_> {
    async fn finish(mut self) -> Delivery {
        while let Some(mut suspect) = self.next() {
            let tried = self.attempt(&mut suspect).await;
            let position = suspect.record.lines.start;
            match tried {
                Ok(Fate::Delivered) => {
                    self.delivery.delivered.push(suspect.record);
                    continue;
                }
                Ok(Fate::Failed(Verdict::Dead)) => {
                    if suspect.is_maybe_accepted {
                        self.delivery.maybe_accepted.insert(position);
                    }
                    let (code, message) = suspect.reason();
                    self.delivery.dead.push(Rejected {
                        record: suspect.record,
                        code,
                        message,
                    });
                    continue;
                }
                Ok(Fate::Failed(Verdict::TryAgain)) => {}
                Ok(Fate::Failed(Verdict::RefusesEverything)) => {
                    let (code, _) = suspect.reason();
                    let ended = Ended::refuses_everything(self.context.stream, &code);
                    self.delivery.ended_by = Some(ended);
                }
                Err(ended) => self.delivery.ended_by = Some(ended),
            }
            self.waiting.push(suspect);
            if self.delivery.ended_by.is_some() {
                break;
            }
        }
        let left = self.waiting.iter().filter(|left| left.is_maybe_accepted);
        let left = left.map(|left| left.record.lines.start);
        self.delivery.maybe_accepted.extend(left);
        self.delivery
    }

    /// The one whose turn comes first.
    fn next(&mut self) -> Option<Suspect> {
        let (waiting, now) = (self.waiting.iter().enumerate(), Instant::now());
        let (index, _) = waiting.min_by_key(|(_, suspect)| suspect.turn(now))?;
        Some(self.waiting.swap_remove(index))
    }

    /// Makes one call for one line, when its time comes.
    async fn attempt(&self, suspect: &mut Suspect) -> Result<Fate, Ended> {
        let Context { state, meters, .. } = self.context;
        let next_try = suspect.next_try;
        let permit = async {
            state.stall.sleep_until(next_try).await
                && state
                    .limiter
                    .permit_alone(&suspect.record, &state.stall)
                    .await
        };
        if !self.context.wait(permit).await? {
            return Err(self.context.stalled(suspect.last_failure()));
        }
        let line = std::slice::from_ref(&suspect.record);
        meters.retry(line);
        let Receipt {
            delivered,
            refused,
            refusal,
        } = self.context.put(line).await;
        let is_accepted = !delivered.is_empty();
        state.answered(is_accepted);
        if is_accepted {
            state.limiter.accepted(suspect.record.data.len());
            meters.delivered(line);
            return Ok(Fate::Delivered);
        }
        let failure = refused.into_iter().next().map(|(_, failure)| failure);
        let refusal = failure.map(Refusal::Failed).or(refusal);
        let refusal = refusal.expect("a receipt says why something is not delivered");
        state.stall.failed(&refusal.to_string());
        let now = Instant::now();
        let failure = match refusal {
            Refusal::Failed(failure) => failure,
            Refusal::Rejected { code, message } => Failure::of_content(code, message),
            Refusal::Blocked(blocked) => return Err(Ended::Blocked(blocked)),
            Refusal::Refresh { reason, refused } => {
                self.context.refresh(&reason, refused).await?;
                return Ok(Fate::Failed(Verdict::TryAgain));
            }
            Refusal::Retry(_) => {
                suspect.postpone(now);
                return Ok(Fate::Failed(Verdict::TryAgain));
            }
        };
        let mut evidence = state.evidence();
        suspect.fail(failure, &mut evidence, now);
        Ok(Fate::Failed(suspect.verdict(&evidence, now)))
    }
}

/// What became of a line that was tried again.
enum Fate {
    Delivered,
    Failed(Verdict),
}
