use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Notify;

use super::state::EndpointState;
use crate::{
    connection::link::{Health, Link},
    error::SharedError,
};

/// The slot of one connection. Its driver connects again when the connection is lost.
#[derive(Debug)]
pub(crate) struct Lane {
    phase: Mutex<Phase>,
    /// The endpoint was taken back while it drained.
    returned: AtomicBool,
    /// Wakes the driver to look at the connection, and at whether the endpoint drains.
    recheck: Notify,
}

/// The phase of a lane.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    BackingOff {
        error: SharedError,
    },
    /// `failed` is why the attempt before failed; `None` if none has failed since the endpoint was
    /// new, or since its last good connection.
    Connecting {
        failed: Option<SharedError>,
    },
    /// It will not connect again.
    Ended,
    Idle,
    Ready(Link),
}

impl Phase {
    pub(super) fn state(&self) -> EndpointState {
        match self {
            Self::BackingOff { .. } => EndpointState::BackingOff,
            Self::Connecting { .. } => EndpointState::Connecting,
            Self::Ended | Self::Idle => EndpointState::Idle,
            Self::Ready(link) if link.health != Health::Serving => EndpointState::NotServing,
            Self::Ready(_) => EndpointState::Ready,
        }
    }
}

impl Lane {
    pub(super) fn new() -> Self {
        Self { phase: Mutex::new(Phase::Idle), returned: AtomicBool::new(false), recheck: Notify::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.lock(), Phase::Ready(_))
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(*self.lock(), Phase::Ended)
    }

    /// Wakes the driver.
    pub(super) fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Sets whether the endpoint was taken back after it was drained.
    pub(super) fn set_returned(&self, returned: bool) {
        self.returned.store(returned, Ordering::Release);
    }

    /// Waits until the driver is woken.
    pub(crate) async fn recheck_wanted(&self) {
        self.recheck.notified().await;
    }

    /// Forgets that the endpoint was taken back earlier.
    pub(crate) fn stay(&self) {
        self.set_returned(false);
    }

    /// Whether the endpoint was taken back after it was drained; true only once.
    pub(crate) fn has_returned(&self) -> bool {
        self.returned.swap(false, Ordering::AcqRel)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
