//! The first phase of a run: read the source, compare, journal.

use std::pin::pin;
use std::time::Duration;

use super::reading::Reading;
use super::{Keyed, Outlet, Request, Runner};
use crate::audience::DestinationName;
use crate::diff::Scope;
use crate::event::{CallType, Computation};
use crate::run::{RunId, Timestamp};
use crate::snapshot::{Delivered, Journal, Plan, Planning, SnapshotError};
use crate::source::{Interrupt, SourceError};

/// Why a run decided nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("asked to stop")]
    Stopped,
}

const INTERRUPT_EVERY: Duration = Duration::from_millis(100);

impl Runner<'_> {
    pub(super) async fn planning(
        &self,
        keyed: &Keyed,
        outlet: &Outlet,
        destination: &DestinationName,
        request: Request,
    ) -> Result<Planning, SnapshotError> {
        let (last, known) = self
            .snapshot
            .with(|snapshot| {
                Ok::<_, SnapshotError>((snapshot.last_started_at()?, snapshot.known()?))
            })
            .await?;
        let started_at = Timestamp::after(Timestamp::now(), last);
        let Keyed { audience, key } = keyed;
        Ok(Planning {
            computation: Computation {
                audience: audience.id.clone(),
                key: key.clone(),
                class: audience.class,
                destination: destination.clone(),
                run: RunId::at(started_at),
                started_at,
                space_id: self.project.space_id.clone(),
            },
            name: audience.name.clone(),
            kind: keyed.kind(destination, &known, request),
            streams: outlet.mapping.streams(CallType::Identify, None),
            guard: audience.guard.filter(|_| !request.approve),
            approve: request.approve,
        })
    }

    pub(super) async fn plan(
        &self,
        keyed: &Keyed,
        planning: Planning,
        request: Request,
    ) -> Result<Plan, PlanError> {
        let interrupt = Interrupt::default();
        let reading = Reading {
            interrupt: interrupt.clone(),
            source: self.project.sources[&keyed.audience.source].clone(),
            audience: keyed.audience.clone(),
            scope: if request.resync {
                Scope::Everyone
            } else {
                Scope::Changes
            },
            progress: self.progress.clone(),
            stop: self.stop.clone(),
        };
        self.progress.plan(keyed.key.as_str());
        let planned = self.snapshot.with(move |snapshot| {
            let way = reading.way(snapshot, &planning)?;
            let merge = |delivered: &mut Delivered<'_>, journal: &mut Journal<'_>| {
                reading.go(&way, delivered, journal)
            };
            if request.dry_run {
                snapshot.rehearse(&planning, merge)
            } else {
                snapshot.plan(&planning, merge)
            }
        });
        match self.or_interrupt(planned, &interrupt).await {
            // Interrupted, most likely; in any case nothing was decided, and the next run meets it again.
            Err(PlanError::Source(_)) if self.stop.is_requested() => Err(PlanError::Stopped),
            planned => planned,
        }
    }

    /// Waits for a plan. Once asked to stop, it ends the query: one may go on for minutes before its first row.
    async fn or_interrupt<T>(&self, planned: impl Future<Output = T>, interrupt: &Interrupt) -> T {
        let mut planned = pin!(planned);
        tokio::select! {
            planned = &mut planned => return planned,
            () = self.stop.requested() => {}
        }
        loop {
            interrupt.interrupt();
            // Between two statements nobody hears it.
            match tokio::time::timeout(INTERRUPT_EVERY, &mut planned).await {
                Ok(planned) => return planned,
                Err(_) => continue,
            }
        }
    }
}
