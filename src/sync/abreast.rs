//! Futures that go on side by side, where they borrow too much to be tasks of their own.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Waits for all of them; what they come to is in their order.
pub(super) async fn abreast<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut going: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut ended: Vec<Option<F::Output>> = Vec::new();
    ended.resize_with(going.len(), || None);
    poll_fn(|context| {
        for (future, ended) in going.iter_mut().zip(&mut ended) {
            if ended.is_none()
                && let Poll::Ready(output) = future.as_mut().poll(context)
            {
                *ended = Some(output);
            }
        }
        match ended.iter().all(Option::is_some) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
    ended.into_iter().flatten().collect()
}
