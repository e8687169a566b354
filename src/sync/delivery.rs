//! The second phase of a run: deliver what is in the journal, and say what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::abreast::abreast;
use super::{Pending, Report, Runner};
use crate::audience::DestinationName;
use crate::deliver::{Outgoing, deliver, foresee};
use crate::run::Outcome;
use crate::snapshot::{JournaledRun, Snapshot, SnapshotError};

impl Runner<'_> {
    /// Delivers what is pending, to all destinations at once, completes the reports and closes the runs.
    pub(super) async fn deliver(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        self.show_delivery(pending);
        let mut by_destination: BTreeMap<DestinationName, Vec<&mut Pending>> = BTreeMap::new();
        for pending in pending.iter_mut().filter(|pending| pending.run.is_some()) {
            let to = pending.report.destination.clone();
            by_destination.entry(to).or_default().push(pending);
        }
        let deliveries = by_destination
            .into_iter()
            .map(|(name, pending)| self.deliver_to(name, pending));
        abreast(deliveries).await.into_iter().collect()
    }

    fn show_delivery(&self, pending: &[Pending]) {
        let runs = pending.iter().filter_map(|pending| pending.run.as_ref());
        let changes = runs.clone().map(|run| run.waiting).sum();
        match pending {
            _ if changes == 0 => {}
            [one] => self.progress.deliver(one.report.name(), changes),
            _ => {
                let several = format!("{} audiences", runs.count());
                self.progress.deliver(&several, changes);
            }
        }
    }

    async fn deliver_to(
        &self,
        name: DestinationName,
        mut pending: Vec<&mut Pending>,
    ) -> Result<(), SnapshotError> {
        let Some(outlet) = self.project.destinations.get(&name) else {
            for Pending { report, .. } in pending {
                report.outcome = Outcome::Undelivered;
                report.error = Some(format!(
                    "the configuration has no destination `{name}` any more\n\nhint: put it back until its journal is delivered"
                ));
            }
            return Ok(());
        };
        let runs = pending.iter().filter_map(|pending| pending.run.clone());
        let outgoing: Vec<Outgoing> = runs
            .map(|run| Outgoing {
                run,
                meter: Arc::default(),
            })
            .collect();
        let (runs, stop) = (outgoing.clone(), self.stop.clone());
        self.snapshot
            .with(move |snapshot| {
                let goes_on = || !stop.is_requested();
                let mut runs = runs.iter().map(|outgoing| &outgoing.run);
                runs.try_for_each(|run| snapshot.make_ready_for(run, goes_on))
            })
            .await?;
        let sent = deliver(
            self.snapshot,
            outgoing.clone(),
            &outlet.route(&self.stop),
            &self.progress,
        )
        .await;
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

    /// Says what the snapshot still can tell of runs when their delivery has failed.
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

    /// Says what a delivery would count. Asked to stop, it leaves that open.
    pub(super) async fn foresee(&self, pending: &mut [Pending]) -> Result<(), SnapshotError> {
        for Pending { run, report } in pending {
            let outlet = self.project.destinations.get(&report.destination);
            let Some((run, outlet)) = run.as_ref().zip(outlet) else {
                continue;
            };
            tokio::select! {
                streams = foresee(self.snapshot, run, &outlet.destination) => {
                    report.foresee(&outlet.destination, &streams?);
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
    } else if report.held > 0 {
        Outcome::Held
    } else if report.delivered > 0 {
        Outcome::Delivered
    } else {
        Outcome::Unchanged
    }
}
