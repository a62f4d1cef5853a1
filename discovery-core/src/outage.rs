//! The log of a watch's outages: a line when contact with the registry is lost, and one when it is
//! back, however many streams follow the service.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::{Error, ServiceName};

/// The outage of a watch that has been logged and has not ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// Records a loss. Returns whether an outage begins with it, which is to be logged.
    pub(crate) fn begin(&mut self) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert_with(Instant::now);
        is_first
    }

    /// Records that the watch has contact. Returns how long the outage took that ends with it and
    /// is to be logged.
    pub(crate) fn end(&mut self) -> Option<Duration> {
        self.since.take().map(|since| since.elapsed())
    }
}

/// Logs that contact was lost. Call it without holding a lock: the subscriber is the user's code.
pub(crate) fn log_lost(service: &ServiceName, error: &Error) {
    contained(|| warn!(%service, error = %error.report(), "registry lost"));
}

/// Logs that contact is back. Call it without holding a lock: the subscriber is the user's code.
pub(crate) fn log_regained(service: &ServiceName, outage: Duration) {
    let outage = Duration::from_millis(u64::try_from(outage.as_millis()).unwrap_or(u64::MAX));
    contained(|| info!(%service, ?outage, "registry regained"));
}

/// A subscriber that panics must not end the watch, nor count as a fault of the backend.
fn contained(log: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(log));
}
