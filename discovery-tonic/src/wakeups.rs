//! How calls, endpoints and the pool wake one another.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};
use std::time::Duration;

use tokio::sync::Notify;

use crate::{balance::WaitQueue, metrics::Metrics};

/// How calls, endpoints and the pool wake one another, and what they announce with it.
#[derive(Debug)]
pub(crate) struct Wakeups<T> {
    pub(crate) metrics: Metrics,
    /// Wakes the pool: endpoints changed, or calls have begun.
    pub(crate) wake: Notify,
    /// The endpoints that changed.
    dirty: Mutex<Vec<T>>,
    /// Announces that the pool published what calls read.
    pub(crate) published: Notify,
    /// The calls that wait for an endpoint with room.
    pub(crate) waiters: Arc<WaitQueue>,
    /// Whether the pool sweeps. It stops while nothing is in progress, so that an idle channel
    /// costs nothing.
    sweeping: AtomicBool,
    /// Number of sweeps, used by calls as a coarse clock without a system call.
    tick: AtomicU32,
    /// Whether failures count as load. They do unless most endpoints fail.
    penalizing: AtomicBool,
}

impl<T> Wakeups<T> {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            wake: Notify::new(),
            dirty: Mutex::default(),
            published: Notify::new(),
            waiters: Arc::default(),
            sweeping: AtomicBool::new(false),
            tick: AtomicU32::new(0),
            penalizing: AtomicBool::new(true),
        }
    }

    /// Makes the pool look at an endpoint.
    pub(crate) fn mark_dirty(&self, endpoint: T) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(endpoint);
        self.wake.notify_one();
    }

    /// Takes the endpoints to look at.
    pub(crate) fn take_dirty(&self) -> Vec<T> {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the pool sweep while calls are in progress.
    #[inline]
    pub(crate) fn sweep(&self) {
        // The plain load keeps the common case free of a write to a shared cache line.
        if !self.sweeping.load(Ordering::SeqCst) && !self.sweeping.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    pub(crate) fn is_sweeping(&self) -> bool {
        self.sweeping.load(Ordering::Acquire)
    }

    /// Stops sweeping, unless the check after this finds a reason to continue. A call that begins
    /// in the meantime wakes the pool.
    pub(crate) fn pause_sweeping(&self) {
        self.sweeping.store(false, Ordering::SeqCst);
    }

    /// Continues sweeping.
    pub(crate) fn keep_sweeping(&self) {
        self.sweeping.store(true, Ordering::SeqCst);
    }

    /// Returns the number of sweeps so far, [`SWEEP`] apart while anything is in progress.
    #[inline]
    pub(crate) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Whether failures count as load.
    pub(crate) fn is_penalizing(&self) -> bool {
        self.penalizing.load(Ordering::Relaxed)
    }

    /// Sets whether failures count as load.
    pub(crate) fn set_penalizing(&self, penalizing: bool) {
        self.penalizing.store(penalizing, Ordering::Relaxed);
    }

    pub(crate) fn count_sweep(&self) {
        self.tick.fetch_add(1, Ordering::Relaxed);
    }
}

/// The time between two sweeps.
pub(crate) const SWEEP: Duration = Duration::from_millis(100);
