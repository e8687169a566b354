//! The end of an audience, at all of its streams or at some: every user leaves, and the source is not read.

use std::sync::Arc;

use super::planning::unplanned;
use super::{Pending, Report, Runner};
use crate::audience::DestinationName;
use crate::audience::keys::Known;
use crate::diff::Scope;
use crate::event::Computation;
use crate::run::{RunId, RunKind, Timestamp};
use crate::snapshot::{Planning, Retired, Snapshot, SnapshotError};
use crate::stream::Stream;

/// What is to be retired.
#[derive(Debug, Clone)]
pub struct Retirement {
    pub audience: Known,
    /// At these streams, each with the destination that leads there.
    pub feeds: Vec<(DestinationName, Stream)>,
    /// The audience ends altogether, so its key is refused from now on.
    pub is_whole: bool,
}

impl Runner<'_> {
    /// One run of each feed that is retired. What an earlier command left in the journal of it is delivered as it is. Its
    /// dead lines are then decided anew.
    pub async fn retire(
        &self,
        retirement: &Retirement,
        reports: &mut Vec<Report>,
    ) -> Result<(), SnapshotError> {
        let mut feeds = retirement.feeds.clone();
        loop {
            let mut pending = self.plan_retirement(retirement, &feeds).await?;
            let delivered = self.deliver(&mut pending).await;
            if delivered.is_err() {
                pending.iter_mut().for_each(Pending::stay);
            }
            let resumed = |pending: &&Pending| {
                pending.report.kind == RunKind::Resume && pending.stuck().is_none()
            };
            let resumed: Vec<Stream> = pending
                .iter()
                .filter(resumed)
                .filter_map(|pending| pending.run.as_ref().map(|run| run.stream.clone()))
                .collect();
            reports.extend(pending.into_iter().map(|pending| pending.report));
            delivered?;
            feeds.retain(|(_, stream)| resumed.contains(stream));
            self.retain_told(retirement, &mut feeds).await?;
            if feeds.is_empty() || self.stop.is_requested() {
                return Ok(());
            }
        }
    }

    /// Decides the runs, in one transaction.
    async fn plan_retirement(
        &self,
        retirement: &Retirement,
        feeds: &[(DestinationName, Stream)],
    ) -> Result<Vec<Pending>, SnapshotError> {
        let audience = &retirement.audience;
        self.progress.plan(audience.key.as_str());
        let last = self.snapshot.with(|snapshot| snapshot.last_started_at());
        self.shared.start_after(last.await?);
        let plannings = feeds.iter().map(|(destination, stream)| {
            // Until it is planned.
            let started_at = Timestamp::now();
            Planning {
                computation: Computation {
                    audience: audience.id.clone(),
                    key: audience.key.clone(),
                    class: audience.class,
                    stream: stream.name.clone(),
                    run: RunId::at(started_at),
                    started_at,
                    space_id: self.project.space_id.clone(),
                },
                stream: stream.clone(),
                destination: destination.clone(),
                name: audience.name.clone(),
                kind: RunKind::Retire,
                scope: Scope::Changes,
                guard: None,
                approval: None,
                refresh: false,
            }
        });
        let mut plannings: Vec<Planning> = plannings.collect();
        let mut pending: Vec<Pending> = plannings.iter().map(unplanned).collect();
        let ends = retirement.is_whole.then(|| audience.id.clone());
        let shared = Arc::clone(&self.shared);
        let retire = move |snapshot: &mut Snapshot| {
            shared.start(&mut plannings);
            snapshot.retire(&plannings, ends.as_ref())
        };
        for (pending, retired) in pending.iter_mut().zip(self.snapshot.with(retire).await?) {
            match retired {
                Retired::Left(run) => *pending = Pending::left(*run),
                Retired::Planned(plan) => self.note_plan(pending, *plan).await?,
            }
        }
        Ok(pending)
    }

    /// Keeps the feeds that still have members or doubts.
    async fn retain_told(
        &self,
        retirement: &Retirement,
        feeds: &mut Vec<(DestinationName, Stream)>,
    ) -> Result<(), SnapshotError> {
        if feeds.is_empty() {
            return Ok(());
        }
        let mut told = self
            .snapshot
            .with(|snapshot| snapshot.feed_audiences())
            .await?;
        told.retain(|feed| feed.audience.id == retirement.audience.id && !feed.is_empty());
        feeds.retain(|(_, stream)| told.iter().any(|feed| feed.stream == *stream));
        Ok(())
    }
}
