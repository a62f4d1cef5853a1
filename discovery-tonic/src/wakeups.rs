use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};
use std::time::Duration;

use tokio::sync::Notify;

use crate::{balance::WaitQueue, metrics::Metrics};

/// How calls, endpoints and the pool wake one another, with what the pool is to look at.
#[derive(Debug)]
pub(crate) struct Wakeups<T> {
    pub(crate) metrics: Metrics,
    /// There are endpoints to look at, or calls have begun: the pool wakes.
    pub(crate) wake: Notify,
    /// The endpoints that changed.
    dirty: Mutex<Vec<T>>,
    /// The pool published what calls read.
    pub(crate) published: Notify,
    /// The calls that wait for an endpoint with a place.
    pub(crate) waiters: Arc<WaitQueue>,
    /// The pool sweeps. It stops where nothing is under way, so that an idle channel costs nothing.
    sweeping: AtomicBool,
    /// Counts the sweeps: a clock that calls can read for nothing.
    tick: AtomicU32,
    /// Failures count as load, since most endpoints have few.
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

    /// The endpoints to look at.
    pub(crate) fn take_dirty(&self) -> Vec<T> {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the pool sweep while calls are under way.
    #[inline]
    pub(crate) fn sweep(&self) {
        if !self.sweeping.load(Ordering::SeqCst) && !self.sweeping.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    pub(crate) fn is_sweeping(&self) -> bool {
        self.sweeping.load(Ordering::Acquire)
    }

    /// Rests, unless a look around after this says otherwise; a call that begins meanwhile wakes
    /// the pool.
    pub(crate) fn pause_sweeping(&self) {
        self.sweeping.store(false, Ordering::SeqCst);
    }

    /// Goes on sweeping.
    pub(crate) fn keep_sweeping(&self) {
        self.sweeping.store(true, Ordering::SeqCst);
    }

    /// The number of sweeps so far, [`SWEEP`] apart while anything is under way.
    #[inline]
    pub(crate) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    /// Whether failures count as load.
    pub(crate) fn is_penalizing(&self) -> bool {
        self.penalizing.load(Ordering::Relaxed)
    }

    /// Lets failures count as load, or not.
    pub(crate) fn set_penalizing(&self, penalizing: bool) {
        self.penalizing.store(penalizing, Ordering::Relaxed);
    }

    pub(crate) fn count_sweep(&self) {
        self.tick.fetch_add(1, Ordering::Relaxed);
    }
}

/// The time between two sweeps.
pub(crate) const SWEEP: Duration = Duration::from_millis(100);
