//! When each of many tasks has seen the same thing, taken down where it sees it.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

use crate::Failure;

/// One place for each task, which holds when it last arrived.
#[derive(Debug)]
pub struct Arrivals {
    start: Instant,
    /// In nanoseconds since the start.
    at: Box<[AtomicU64]>,
    missing: AtomicUsize,
    all: Notify,
}

impl Arrivals {
    /// For this number of tasks.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let at = (0..places).map(|_| AtomicU64::default()).collect();
        Self { start: Instant::now(), at, missing: AtomicUsize::new(0), all: Notify::new() }
    }

    /// Begins to wait for this number of arrivals, before any of them.
    pub fn expect(&self, count: usize) {
        self.missing.store(count, Ordering::Release);
    }

    /// Takes down that the task of this place has arrived.
    ///
    /// # Panics
    ///
    /// Where there is no such place.
    pub fn arrive(&self, place: usize) {
        self.at[place].store(self.now(), Ordering::Relaxed);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_one();
        }
    }

    /// Waits until all are there that are expected.
    ///
    /// # Errors
    ///
    /// Where some take longer than the limit.
    pub async fn all(&self, limit: Duration) -> Result<(), Failure> {
        let arrived = timeout(limit, self.all.notified()).await;
        arrived.map_err(|_| format!("{} have not arrived", self.missing.load(Ordering::Relaxed)).into())
    }

    /// When a task arrived last, in nanoseconds.
    ///
    /// # Panics
    ///
    /// Where there is no such place.
    #[must_use]
    pub fn at(&self, place: usize) -> u64 {
        self.at[place].load(Ordering::Relaxed)
    }

    /// Now, by the same clock.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("a benchmark takes no centuries")
    }
}
