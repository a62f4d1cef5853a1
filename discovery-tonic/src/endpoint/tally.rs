use std::sync::atomic::{AtomicU32, Ordering};

use crate::balance::Load;

/// What calls report of an endpoint.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Requests in a row without an answer.
    failures: AtomicU32,
    /// Answers so far.
    answers: AtomicU32,
    /// Requests so far that failed, and those of them that never had an answer.
    failed: AtomicU32,
    lost: AtomicU32,
    /// The sweep in which it was last put on trial.
    trial: AtomicU32,
}

/// What has become of an endpoint's calls so far; they may wrap around.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Totals {
    pub(crate) ended: u32,
    pub(crate) failed: u32,
}

impl Tally {
    /// Nothing so far; put on trial in the sweep `tick`.
    pub(super) fn new(tick: u32) -> Self {
        Self {
            failures: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            trial: AtomicU32::new(tick),
        }
    }

    /// Counts an answer, whatever it says: the peer is there.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a row of failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed without an answer, and that `load` counts; sent during the
    /// sweep `tick`. Returns whether it is a failure of the row.
    pub(super) fn lost(&self, tick: u32, load: &Load) -> bool {
        self.lost.fetch_add(1, Ordering::Relaxed);
        // Ticks wrap around.
        let is_before_trial = tick.wrapping_sub(self.trial.load(Ordering::Relaxed)) > u32::MAX / 2;
        if is_before_trial {
            // It says nothing of the trial, which began later.
            load.shrink_trial();
            self.failed.fetch_add(1, Ordering::Relaxed);
        } else {
            load.doubt();
            self.failed();
        }
        !is_before_trial
    }

    /// Counts a failure.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Starts counting failures anew, in the sweep `tick`.
    pub(super) fn begin_trial(&self, tick: u32) {
        self.trial.store(tick, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// What has become of all requests so far.
    pub(crate) fn totals(&self) -> Totals {
        let ended = self.answers().wrapping_add(self.lost.load(Ordering::Relaxed));
        Totals { ended, failed: self.failed.load(Ordering::Relaxed) }
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }
}
