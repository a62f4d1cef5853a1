use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio::{
    runtime::{EnterGuard, Handle},
    task::AbortHandle,
    time::{Instant, Sleep, sleep_until},
};

use super::{retry::Retries, user_agent::UserAgent};
use crate::{connection::replay_budget::ReplayBudget, published::Published};

/// What the clones of a channel and its calls share.
pub(crate) struct Shared {
    pub(crate) published: Arc<Published>,
    pub(crate) user_agent: UserAgent,
    /// How long a call without a deadline waits for an endpoint.
    pub(crate) wait: Duration,
    pub(crate) retries: Option<Retries>,
    pub(crate) replay_budget: Arc<ReplayBudget>,
    /// The pool, which ends with this.
    pub(crate) task: AbortHandle,
    /// The one that the channel was built on.
    pub(crate) runtime: Handle,
}

impl Shared {
    /// A timer that ends at this moment; also outside of a runtime.
    pub(super) fn timer(&self, at: Instant) -> Sleep {
        let _entered = self.enter();
        sleep_until(at)
    }

    /// A future that needs timers, to be polled also outside of a runtime.
    pub(crate) fn on_runtime<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<'_, F> {
        let mut future = Box::pin(future);
        poll_fn(move |context| {
            let _entered = self.enter();
            future.as_mut().poll(context)
        })
    }

    /// Enters the channel's runtime, where the caller is in none.
    fn enter(&self) -> Option<EnterGuard<'_>> {
        Handle::try_current().is_err().then(|| self.runtime.enter())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
        self.published.wakeups.metrics.end();
    }
}
