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

/// The place of one connection, which its driver fills anew when it is lost.
#[derive(Debug)]
pub(crate) struct Lane {
    phase: Mutex<Phase>,
    /// The endpoint was drained and is not any more.
    returned: AtomicBool,
    /// Makes the driver look again: at the connection, and at whether it shall drain.
    recheck: Notify,
}

/// Where a lane stands.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    BackingOff {
        error: SharedError,
    },
    /// `first`: nothing has failed since the endpoint was new, or since its last good connection.
    Connecting {
        first: bool,
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

    /// Makes the driver look again.
    pub(super) fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Says whether the endpoint was taken back after it was drained.
    pub(super) fn set_returned(&self, returned: bool) {
        self.returned.store(returned, Ordering::Release);
    }

    /// Waits until it shall look again.
    pub(crate) async fn recheck_wanted(&self) {
        self.recheck.notified().await;
    }

    /// Forgets that the endpoint was taken back, as of earlier than now.
    pub(crate) fn stay(&self) {
        self.set_returned(false);
    }

    /// Whether the endpoint was taken back after it was drained; says so once.
    pub(crate) fn has_returned(&self) -> bool {
        self.returned.swap(false, Ordering::AcqRel)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
