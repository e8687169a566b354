//! The second phase of a run: deliver what is in the journal, and tell what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::{Pending, Report, Runner};
use crate::deliver::{Outgoing, deliver, estimate};
use crate::run::Outcome;
use crate::snapshot::{JournaledRun, Snapshot, SnapshotError};
use crate::stream::Stream;

impl Runner<'_> {
    /// Delivers what is pending, to all streams at once, completes the reports and closes the runs.
    pub(super) async fn deliver(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        self.show_delivery(pending);
        let mut by_stream: BTreeMap<Stream, Vec<&mut Pending>> = BTreeMap::new();
        for pending in pending.iter_mut() {
            if let Some(run) = &pending.run {
                let stream = run.stream.clone();
                by_stream.entry(stream).or_default().push(pending);
            }
        }
        let deliveries = by_stream
            .into_iter()
            .map(|(stream, pending)| async move { self.deliver_stream(&stream, pending).await });
        join_all(deliveries).await.into_iter().collect()
    }

    fn show_delivery(&self, pending: &[Pending]) {
        let runs = pending.iter().filter_map(|pending| pending.run.as_ref());
        let changes = runs.clone().map(|run| run.waiting).sum();
        match pending {
            _ if changes == 0 => {}
            [one] => self.progress.deliver(one.report.name(), changes),
            _ => {
                let several = format!("{} runs", runs.count());
                self.progress.deliver(&several, changes);
            }
        }
    }

    /// Delivers what is pending at one stream.
    pub(super) async fn deliver_stream(
        &self,
        stream: &Stream,
        mut pending: Vec<&mut Pending>,
    ) -> Result<(), SnapshotError> {
        let runs: Vec<JournaledRun> = pending
            .iter()
            .filter_map(|pending| pending.run.clone())
            .collect();
        let Some(first) = runs.first() else {
            return Ok(());
        };
        let destination = self
            .streams
            .leading_to(stream, &first.destination)
            .expect("only runs to which a destination leads are delivered");
        let outgoing: Vec<Outgoing> = runs
            .iter()
            .map(|run| Outgoing {
                run: run.clone(),
                meter: Arc::default(),
            })
            .collect();
        let stop = self.stop.clone();
        self.snapshot
            .with(move |snapshot| {
                let goes_on = || !stop.is_requested();
                snapshot.reopen(&runs)?;
                snapshot.note_delivery(&runs)?;
                runs.iter()
                    .try_for_each(|run| snapshot.make_ready_for(run, goes_on))
            })
            .await?;
        let route = self.route(destination);
        let sent = deliver(self.snapshot, outgoing.clone(), &route, &self.progress).await;
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) => {
                self.recount(&mut pending, outgoing).await;
                return Err(error);
            }
        };
        let mut closed = Vec::new();
        for ((pending, Outgoing { run, meter }), sent) in pending.iter_mut().zip(outgoing).zip(sent)
        {
            let report = &mut pending.report;
            report.delivered = sent.delivered;
            report.undelivered = run.waiting - sent.delivered;
            report.counts = meter.counts();
            report.error = sent.trouble();
            report.outcome = outcome(report);
            report.seconds += sent.took.as_secs_f64();
            closed.push((run, report.outcome));
        }
        let left = self.close(closed).await?;
        for (pending, left) in pending.into_iter().zip(left) {
            // Those found dead by an earlier attempt were not waiting any more.
            pending.report.dead = pending.report.undelivered.saturating_sub(left);
        }
        Ok(())
    }

    /// Reports what the snapshot still can tell of runs when their delivery has failed.
    async fn recount(&self, pending: &mut [&mut Pending], outgoing: Vec<Outgoing>) {
        for (pending, Outgoing { run, meter }) in pending.iter_mut().zip(outgoing) {
            let number = run.number;
            let now = self.snapshot.with(move |snapshot| snapshot.run(number));
            let Ok(now) = now.await else { continue };
            let report = &mut pending.report;
            report.delivered = run.waiting - now.waiting;
            report.undelivered = now.waiting;
            report.counts = meter.counts();
            report.outcome = outcome(report);
        }
    }

    /// Closes runs with what came of them; returns how many changes of each are left in the journal.
    async fn close(&self, runs: Vec<(JournaledRun, Outcome)>) -> Result<Vec<u64>, SnapshotError> {
        let close = move |snapshot: &mut Snapshot| {
            let mut left = Vec::with_capacity(runs.len());
            for (run, outcome) in &runs {
                snapshot.finish(run, *outcome)?;
                left.push(snapshot.run(run.number)?.waiting);
            }
            Ok(left)
        };
        self.snapshot
            .with(move |snapshot| snapshot.together(close))
            .await
    }

    /// Tells what a delivery would count. Asked to stop, it leaves that open.
    pub(super) async fn estimate(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        for Pending { run, report } in pending {
            let Some(run) = run else { continue };
            let Some(destination) = self.streams.leading_to(&run.stream, &run.destination) else {
                continue;
            };
            let destination = &self.project.destinations[destination].destination;
            tokio::select! {
                sum = estimate(self.snapshot, run, destination) => {
                    report.estimate(destination, sum?);
                }
                () = self.stop.requested() => break,
            }
        }
        Ok(())
    }
}

/// What came of a run that was decided.
pub(super) fn outcome(report: &Report) -> Outcome {
    if report.undelivered > 0 {
        Outcome::Undelivered
    // What an earlier run held is decided anew by the one that follows.
    } else if report.held + report.held_added + report.held_changed > 0 {
        Outcome::Held
    } else if report.delivered > 0 {
        Outcome::Delivered
    } else {
        Outcome::Unchanged
    }
}
