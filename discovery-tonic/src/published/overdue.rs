//! Responses that the pool ends at their deadline if nobody polls them.

use std::{
    fmt,
    sync::{Mutex, PoisonError, Weak},
};

use tokio::time::Instant;

/// The responses that have begun and have a deadline, so that the sweeps can end those that nobody
/// polls.
///
/// A response that is polled ends by its own timer. One that is kept without being polled would
/// hold its stream, and its place at the endpoint, for as long as it is kept.
#[derive(Default)]
pub(crate) struct Overdue(Mutex<Vec<(Instant, Weak<dyn Expire>)>>);

/// Something that ends at its deadline.
pub(crate) trait Expire: Send + Sync {
    /// Ends it, unless it has ended already.
    fn expire(&self);
}

impl Overdue {
    /// Ends a response at this deadline, at most a sweep later.
    pub(crate) fn watch(&self, deadline: Instant, response: Weak<dyn Expire>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((deadline, response));
    }

    /// Ends the responses that are overdue, and returns whether any are left.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|(_, response)| response.strong_count() > 0);
        let over: Vec<_> = watched.extract_if(.., |(deadline, _)| *deadline <= now).collect();
        let is_left = !watched.is_empty();
        // Unlock first: a response locks its own state when it expires.
        drop(watched);
        for response in over.iter().filter_map(|(_, response)| response.upgrade()) {
            response.expire();
        }
        is_left
    }
}

impl fmt::Debug for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overdue").finish_non_exhaustive()
    }
}
