use std::{sync::Arc, time::Duration};

use tokio::task::AbortHandle;

use super::{retry::Retries, user_agent::UserAgent};
use crate::published::Published;

/// What the clones of a channel and its calls share.
pub(crate) struct Shared {
    pub(crate) published: Arc<Published>,
    pub(crate) user_agent: UserAgent,
    /// How long a call without a deadline waits for an endpoint.
    pub(crate) wait: Duration,
    pub(crate) retries: Option<Retries>,
    /// The pool, which ends with this.
    pub(crate) task: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
        self.published.wakeups.metrics.end();
    }
}
