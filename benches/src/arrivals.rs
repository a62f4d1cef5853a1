//! The times at which many tasks see the same event, recorded by the tasks themselves.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

use crate::Failure;

/// One place per task, which holds the time of its last arrival.
#[derive(Debug)]
pub struct Arrivals {
    start: Instant,
    /// Nanoseconds since the start.
    at: Box<[AtomicU64]>,
    missing: AtomicUsize,
    all: Notify,
}

impl Arrivals {
    /// Creates places for this many tasks.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let at = (0..places).map(|_| AtomicU64::default()).collect();
        Self { start: Instant::now(), at, missing: AtomicUsize::new(0), all: Notify::new() }
    }

    /// Starts to expect this many arrivals. Must be called before the first of them.
    pub fn expect(&self, count: usize) {
        self.missing.store(count, Ordering::Release);
    }

    /// Records that the task at this place has arrived.
    ///
    /// # Panics
    ///
    /// If there is no such place.
    pub fn arrive(&self, place: usize) {
        self.at[place].store(self.now(), Ordering::Relaxed);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_one();
        }
    }

    /// Waits until all expected arrivals have happened.
    ///
    /// # Errors
    ///
    /// If some take longer than the limit.
    pub async fn all(&self, limit: Duration) -> Result<(), Failure> {
        let arrived = timeout(limit, self.all.notified()).await;
        arrived.map_err(|_| format!("{} have not arrived", self.missing.load(Ordering::Relaxed)).into())
    }

    /// Returns when a task last arrived, in nanoseconds.
    ///
    /// # Panics
    ///
    /// If there is no such place.
    #[must_use]
    pub fn at(&self, place: usize) -> u64 {
        self.at[place].load(Ordering::Relaxed)
    }

    /// Returns the current time by the same clock.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a benchmark takes no centuries")
    }
}
