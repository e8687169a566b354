//! The snapshot's own thread, and the door to it.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::Snapshot;

type Work = Box<dyn FnOnce(&mut Snapshot) + Send>;

/// Sends work to the thread that owns the snapshot, one piece after another. Dropping it closes the file.
pub struct Handle {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    pub fn new(mut snapshot: Snapshot) -> Self {
        let (work, inbox) = mpsc::channel::<Work>();
        let thread = thread::spawn(move || {
            for work in inbox {
                work(&mut snapshot);
            }
        });
        Self {
            work: Some(work),
            thread: Some(thread),
        }
    }

    /// Does something with the snapshot and waits for the answer.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Snapshot) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = oneshot::channel();
        let work: Work = Box::new(move |snapshot| {
            // Nobody waits for the answer any more when the run was given up.
            drop(answer.send(work(snapshot)));
        });
        let inbox = self
            .work
            .as_ref()
            .expect("the door is open until the handle is dropped");
        inbox
            .send(work)
            .expect("the snapshot's thread lives as long as its handle");
        answered
            .await
            .expect("the snapshot's thread answers everything")
    }
}

impl Drop for Handle {
    /// Waits until SQLite has closed the file, so that nothing lies beside it after the program ends.
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the snapshot's thread panicked");
        }
    }
}
