//! The wish to stop, shared by all that is under way.

use std::sync::Arc;

use tokio::sync::watch;

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
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
