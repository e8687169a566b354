//! Takes batches on a thread of its own, so that whoever gives them goes on while their rows are read.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

/// How many batches are taken ahead.
const BATCHES_AHEAD: usize = 1;

/// What the thread says that takes batches.
pub(in crate::source) enum Fetched {
    Batch(RecordBatch),
    Failed(ArrowError),
    End,
}

/// Takes all batches, or as many as somebody listens to. What gives them goes before the scope ends.
pub(in crate::source) fn fetch<'s>(
    scope: &'s Scope<'s, '_>,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>> + Send + 's,
) -> Receiver<Fetched> {
    let (say, fetched) = sync_channel(BATCHES_AHEAD);
    scope.spawn(move || fetch_all(batches, &say));
    fetched
}

fn fetch_all(
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    say: &SyncSender<Fetched>,
) {
    for batch in batches {
        let has_failed = batch.is_err();
        let said = say.send(batch.map_or_else(Fetched::Failed, Fetched::Batch));
        if has_failed || said.is_err() {
            return;
        }
    }
    // Nobody listens any more when the merge has failed.
    drop(say.send(Fetched::End));
}
