use std::time::Duration;

use discovery_core::{Backoff, Delays};
use tokio::time::Instant;

use super::STEADY;

/// How the entry is watched.
#[derive(Debug)]
pub(super) struct Watched {
    state: State,
    /// The waits before the entry is read because its watch ended.
    recheck_delays: Delays,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// It is not watched.
    No,
    /// It is watched. It was under this lease when its watch began.
    Since { lease: i64, began: Instant },
    /// Its watch ended, and it is to be read at this time.
    Lost { recheck: Instant },
}

/// What to do to keep an eye on the entry.
#[derive(Debug)]
pub(super) enum Attend {
    /// Watch it.
    Watch,
    /// Read it, at this time.
    Read(Instant),
    /// Wait for what the watch tells.
    Listen,
}

impl Watched {
    pub(super) fn new() -> Self {
        let recheck = Backoff::new(Duration::from_millis(500), Duration::from_secs(30))
            .expect("500 ms to 30 s lies within the bounds");
        Self { state: State::No, recheck_delays: recheck.delays() }
    }

    /// What to do about an entry that is under this lease, or may come to be.
    pub(super) fn attend(&self, lease: i64) -> Attend {
        match self.state {
            State::Lost { recheck } => Attend::Read(recheck),
            State::Since { lease: under, .. } if under == lease => Attend::Listen,
            // A watch that began under another lease may wait for a revision of a history that is
            // no more.
            State::Since { .. } | State::No => Attend::Watch,
        }
    }

    /// Takes that a watch begins.
    pub(super) fn begin(&mut self, lease: i64) {
        self.state = State::Since { lease, began: Instant::now() };
    }

    /// Takes that the watch ended, and things may have happened since.
    pub(super) fn lose(&mut self) {
        if let State::Since { began, .. } = self.state
            && began.elapsed() >= STEADY
        {
            self.recheck_delays.reset();
        }
        self.recheck_later();
    }

    /// Takes that the entry is still to be read.
    pub(super) fn recheck_later(&mut self) {
        self.state = State::Lost { recheck: Instant::now() + self.recheck_delays.next_delay() };
    }

    /// Takes that the entry need not be read any more: what became of it is known.
    pub(super) fn settle(&mut self) {
        if let State::Lost { .. } = self.state {
            self.state = State::No;
        }
    }

    /// Forgets the watch, but not that the entry is to be read.
    pub(super) fn leave(&mut self) {
        if let State::Since { .. } = self.state {
            self.state = State::No;
        }
    }

    /// Starts again from the shortest wait, because a change was noticed.
    pub(super) fn reset_delays(&mut self) {
        self.recheck_delays.reset();
    }

    /// Has the entry read now.
    #[cfg(test)]
    pub(super) fn recheck_now(&mut self) {
        self.state = State::Lost { recheck: Instant::now() };
    }
}
