use futures::future::OptionFuture;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Permits to open a connection. At most half are for endpoints whose last attempt failed, so that
/// unreachable ones do not delay the first attempts of others.
#[derive(Debug)]
pub(crate) struct ConnectLimit {
    all: Semaphore,
    again: Semaphore,
}

/// A permit to open a connection; returned on drop.
pub(crate) struct ConnectPermit<'a>(#[expect(dead_code, reason = "held, not read")] [Option<SemaphorePermit<'a>>; 2]);

impl ConnectLimit {
    /// Allows this many attempts at a time, at least one.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(limit), again: Semaphore::new(limit.div_ceil(2)) }
    }

    /// Waits for a permit; `first` means that no attempt has failed before.
    pub(crate) async fn acquire(&self, first: bool) -> ConnectPermit<'_> {
        // The scarcer permit first, so that a wait for it holds no general one.
        let again = OptionFuture::from((!first).then(|| self.again.acquire())).await.and_then(Result::ok);
        ConnectPermit([again, self.all.acquire().await.ok()])
    }
}
