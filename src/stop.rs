//! The wish to stop, shared by all that is under way.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How often something is told to end.
const END_EVERY: Duration = Duration::from_millis(100);

/// Whether to stop: what is in flight is finished, and nothing is begun.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub fn request(&self) {
        self.0.send_replace(true);
    }

    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn requested(&self) {
        // The sender lives in `self`, so the channel cannot close.
        drop(self.0.subscribe().wait_for(|stop| *stop).await);
    }

    /// Waits for something. Once asked to stop, it is ended, again and again: nobody may hear it at first.
    pub async fn or_end<T>(&self, awaited: impl Future<Output = T>, end: impl Fn()) -> T {
        let mut awaited = pin!(awaited);
        tokio::select! {
            awaited = &mut awaited => return awaited,
            () = self.requested() => {}
        }
        loop {
            end();
            match tokio::time::timeout(END_EVERY, &mut awaited).await {
                Ok(awaited) => return awaited,
                Err(_) => continue,
            }
        }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
