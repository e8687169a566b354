//! The first phase of a run: read the source, compare, journal.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::reading::{Reading, Way};
use super::{Intended, Keyed, Outlet, Request, Runner};
use crate::audience::DestinationName;
use crate::audience::keys::Known;
use crate::diff::Scope;
use crate::event::{CallType, Computation};
use crate::run::{RunId, Timestamp};
use crate::snapshot::{Delivered, Journal, Plan, Planning, Snapshot, SnapshotError, ToldError};
use crate::source::{Interrupt, SourceError};

/// Why a run decided nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Of one audience, as a source that cannot be read.
    #[error(transparent)]
    Told(#[from] ToldError),
    /// Of all of them: nothing can be planned.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("asked to stop")]
    Stopped,
}

impl PlanError {
    /// Whether the configuration is wrong.
    pub(super) const fn is_configuration(&self) -> bool {
        matches!(self, Self::Source(error) if error.is_configuration())
    }
}

const INTERRUPT_EVERY: Duration = Duration::from_millis(100);

/// When the runs of one command begin, each later than all before it, and what the snapshot knew before the first.
pub(super) struct Starts {
    last: Option<Timestamp>,
    known: Vec<Known>,
}

impl Starts {
    fn next(&mut self) -> Timestamp {
        let next = Timestamp::after(Timestamp::now(), self.last);
        self.last = Some(next);
        next
    }
}

impl Runner<'_> {
    pub(super) async fn starts(&self) -> Result<Starts, SnapshotError> {
        let read = |snapshot: &mut Snapshot| {
            Ok(Starts {
                last: snapshot.last_started_at()?,
                known: snapshot.known()?,
            })
        };
        self.snapshot.with(read).await
    }

    /// A run that begins now: what its source says after that is for the next one.
    pub(super) fn planning(
        &self,
        keyed: &Keyed,
        outlet: &Outlet,
        destination: &DestinationName,
        request: Request,
        starts: &mut Starts,
    ) -> Planning {
        let started_at = starts.next();
        let Keyed { audience, key } = keyed;
        Planning {
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
            kind: keyed.kind(destination, &starts.known, request),
            streams: outlet.mapping.streams(CallType::Identify, None),
            guard: audience.guard.filter(|_| !request.approve),
            approve: request.approve,
        }
    }

    pub(super) fn reading(
        &self,
        keyed: &Keyed,
        request: Request,
        started_at: Timestamp,
    ) -> Reading {
        Reading {
            started_at,
            interrupt: Interrupt::default(),
            source: self.project.sources[&keyed.audience.source].clone(),
            audience: keyed.audience.clone(),
            scope: if request.resync {
                Scope::Everyone
            } else {
                Scope::Changes
            },
            progress: self.progress.clone(),
            stop: self.stop.clone(),
            way: Way::Everyone,
            begun: None,
        }
    }

    /// Finds the way of a run, which no other run changes.
    pub(super) async fn find_way(&self, mut run: Intended) -> Result<Intended, SnapshotError> {
        self.snapshot
            .with(move |snapshot| {
                run.reading.way = run.reading.shortest_way(snapshot, &run.planning)?;
                Ok(run)
            })
            .await
    }

    pub(super) async fn plan(
        &self,
        reading: Reading,
        planning: Planning,
        request: Request,
    ) -> Result<Plan, PlanError> {
        let interrupt = reading.interrupt.clone();
        self.progress.plan(planning.computation.key.as_str());
        let to = &self.project.destinations[&planning.computation.destination];
        let destination = Arc::clone(&to.destination);
        let planned = self.snapshot.with(move |snapshot| {
            let merge = |delivered: &mut Delivered<'_>, journal: &mut Journal<'_>| {
                reading.go(delivered, journal)
            };
            if request.dry_run {
                snapshot.rehearse(&planning, &|lines| destination.weigh(lines), merge)
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
