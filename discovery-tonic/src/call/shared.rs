//! The state that all clones of a channel and all its calls share.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, Sleep, sleep_until},
};

use super::{observer::AttemptHook, request_limit::RequestLimit, retry::Retries, user_agent::UserAgent};
use crate::{connection::replay_budget::ReplayBudget, published::Published};

/// What the clones of a channel and its calls share.
pub(crate) struct Shared {
    pub(crate) published: Arc<Published>,
    pub(crate) user_agent: UserAgent,
    /// The hook that sees each attempt, if there is one.
    pub(crate) attempt_hook: Option<Arc<AttemptHook>>,
    /// How long a call without a deadline of its own may take.
    pub(crate) timeout: Option<Duration>,
    /// The limit of calls in flight, if there is one.
    pub(crate) request_limit: Option<Arc<RequestLimit>>,
    /// How long a call without a deadline waits for an endpoint.
    pub(crate) wait: Duration,
    pub(crate) retries: Option<Retries>,
    pub(crate) replay_budget: Arc<ReplayBudget>,
    /// The task of the pool, which is aborted when this is dropped.
    pub(crate) task: AbortHandle,
    /// The runtime that the channel was built on.
    pub(crate) runtime: Handle,
}

impl Shared {
    /// Returns a timer that ends at `at`. It belongs to the channel's runtime, because the caller
    /// may be in no runtime, or in one that shuts down earlier or has no timers.
    pub(super) fn timer(&self, at: Instant) -> Sleep {
        let _entered = self.runtime.enter();
        sleep_until(at)
    }

    /// Waits for this time, or until the channel's runtime has shut down: its timers panic after
    /// that.
    pub(super) async fn pause(&self, wait: Duration) {
        let mut timer = pin!(self.timer(Instant::now() + wait));
        poll_fn(|context| if self.is_gone() { Poll::Ready(()) } else { timer.as_mut().poll(context) }).await;
    }

    fn is_gone(&self) -> bool {
        !self.published.availability.load().may_change()
    }

    /// Wraps a future that needs timers, so that it can be polled outside a runtime.
    pub(crate) fn on_runtime<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<'_, F> {
        let mut future = Box::pin(future);
        poll_fn(move |context| {
            let _entered = self.runtime.enter();
            future.as_mut().poll(context)
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
        self.published.wakeups.metrics.end();
    }
}
