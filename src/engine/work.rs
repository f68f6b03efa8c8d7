//! Work that goes on by itself: a task that its owner waits for, and that ends with its owner.
//!
//! The shell waits for many things at once, and what it does not wait for at the moment must not stand still: a plain
//! future that nobody polls keeps the permits, locks and places in queues that it has, and whoever needs one of them waits
//! for ever. So everything that takes long is work of its own.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;

/// See the module. Dropping it ends the work at its next pause.
#[derive(Debug)]
pub(super) struct Work<T>(JoinHandle<T>);

impl<T: Send + 'static> Work<T> {
    /// Puts work under way.
    pub fn start(work: impl Future<Output = T> + Send + 'static) -> Work<T> {
        Work(tokio::spawn(work))
    }
}

impl<T> Future for Work<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(result) => Poll::Ready(result),
            // Nothing can be said of work that broke off in the middle: its owner goes down with it.
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            // Only the owner ends it, by dropping it; or the runtime, which ends the owner too.
            Err(_) => Poll::Pending,
        }
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The result of the work, which is then over; never, if there is none.
pub(super) async fn ended<T>(work: &mut Option<Work<T>>) -> T {
    let result = match work.as_mut() {
        Some(running) => running.await,
        None => std::future::pending().await,
    };
    *work = None;
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn it_goes_on_while_nobody_waits_for_it_and_ends_with_its_owner() {
        let permits = Arc::new(Semaphore::new(1));
        let one = |permits: &Arc<Semaphore>| {
            let permits = permits.clone();
            async move { drop(permits.acquire_owned().await) }
        };
        let (first, second) = (Work::start(one(&permits)), Work::start(one(&permits)));
        // The first is not looked at, and does not keep the second from its permit.
        second.await;
        drop(first);
        let held = permits.clone();
        let holds = Work::start(async move {
            let _permit = held.acquire_owned().await;
            std::future::pending::<()>().await
        });
        tokio::task::yield_now().await;
        assert_eq!(permits.available_permits(), 0);
        drop(holds);
        let _again = permits.acquire().await;
    }

    #[tokio::test]
    async fn its_panic_is_its_owners() {
        let mut work = Some(Work::start(async { panic!("of the work") }));
        let owner = tokio::spawn(async move { ended::<()>(&mut work).await });
        assert!(owner.await.unwrap_err().is_panic());
    }
}
