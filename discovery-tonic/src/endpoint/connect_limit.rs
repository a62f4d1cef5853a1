use futures::future::OptionFuture;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Permits to make a connection. At most half are for those that failed before, so that what
/// cannot be reached does not keep what can from its first attempt.
#[derive(Debug)]
pub(crate) struct ConnectLimit {
    all: Semaphore,
    again: Semaphore,
}

/// Lets its bearer make a connection.
pub(crate) struct ConnectPermit<'a>(#[expect(dead_code, reason = "held, not read")] [Option<SemaphorePermit<'a>>; 2]);

impl ConnectLimit {
    /// So many at a time.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(limit), again: Semaphore::new(limit.div_ceil(2)) }
    }

    /// Waits for a permit; `first` where nothing has failed before.
    pub(crate) async fn acquire(&self, first: bool) -> ConnectPermit<'_> {
        let again = OptionFuture::from((!first).then(|| self.again.acquire())).await.and_then(Result::ok);
        ConnectPermit([again, self.all.acquire().await.ok()])
    }
}
