//! Whether the entry is watched, and when to read it instead.

use std::time::Duration;

use discovery_core::{Backoff, Delays};
use tokio::time::Instant;

use super::STEADY;

/// The state of the entry's watch.
#[derive(Debug)]
pub(super) struct Watched {
    state: State,
    /// The delays before the entry is read after its watch ended.
    recheck_delays: Delays,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// It is not watched.
    No,
    /// It is watched, under this lease since the watch began.
    Since { lease: i64, began: Instant },
    /// Its watch ended, and it must be read at this time.
    Lost { recheck: Instant },
}

/// What to do to learn of changes.
#[derive(Debug)]
pub(super) enum Attend {
    /// Begin a watch.
    Watch,
    /// Read the entry at this time.
    Read(Instant),
    /// Wait for the watch.
    Listen,
}

impl Watched {
    pub(super) fn new() -> Self {
        let recheck = Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
            .expect("500 ms to 30 s lies within the bounds");
        Self { state: State::No, recheck_delays: recheck.delays() }
    }

    /// Returns what to do about an entry that is under this lease, or may be written under it.
    pub(super) fn attend(&self, lease: i64) -> Attend {
        match self.state {
            State::Lost { recheck } => Attend::Read(recheck),
            State::Since { lease: under, .. } if under == lease => Attend::Listen,
            // The store may have been wiped since a watch began under another lease. The watch
            // would then wait for a revision of a history that no longer exists.
            State::Since { .. } | State::No => Attend::Watch,
        }
    }

    /// Records that a watch begins.
    pub(super) fn begin(&mut self, lease: i64) {
        self.state = State::Since { lease, began: Instant::now() };
    }

    /// Records that the watch ended, so that changes may have been missed.
    pub(super) fn lose(&mut self) {
        if let State::Since { began, .. } = self.state
            && began.elapsed() >= STEADY
        {
            self.recheck_delays.reset();
        }
        self.recheck_later();
    }

    /// Schedules a read of the entry.
    pub(super) fn recheck_later(&mut self) {
        self.state = State::Lost { recheck: Instant::now() + self.recheck_delays.next_delay() };
    }

    /// Cancels a scheduled read, because the state of the entry is known.
    pub(super) fn settle(&mut self) {
        if let State::Lost { .. } = self.state {
            self.state = State::No;
        }
    }

    /// Forgets the watch, but keeps a scheduled read.
    pub(super) fn leave(&mut self) {
        if let State::Since { .. } = self.state {
            self.state = State::No;
        }
    }

    /// Resets the backoff of reads, because a change was noticed.
    pub(super) fn reset_delays(&mut self) {
        self.recheck_delays.reset();
    }

    /// Schedules a read for now.
    #[cfg(test)]
    pub(super) fn recheck_now(&mut self) {
        self.state = State::Lost { recheck: Instant::now() };
    }
}
