//! How often etcd is asked about the entry.

use discovery_core::{Backoff, Delays};
use tokio::time::Instant;

use super::STEADY;
use crate::{client::Failure, retry_delays::RetryDelays};

/// When etcd may be asked about the entry again.
#[derive(Debug)]
pub(super) struct Pacing {
    /// The earliest time of the next request.
    pause: Option<Instant>,
    pauses: RetryDelays,
    /// Whether the last write was refused because its guard was stale.
    is_refused: bool,
    /// When the entry was last removed from outside.
    missed: Option<Instant>,
    /// The delays before an entry that is removed again and again is restored.
    repair_delays: Delays,
}

impl Pacing {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            pause: None,
            pauses: RetryDelays::new(backoff),
            is_refused: false,
            missed: None,
            repair_delays: backoff.delays(),
        }
    }

    /// Returns when the pause ends, if there is one.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.pause.filter(|until| *until > Instant::now())
    }

    /// Ends the pause.
    pub(super) fn resume(&mut self) {
        self.pause = None;
    }

    /// Ends the pause and resets the backoff, for another owner.
    pub(super) fn restart(&mut self) {
        self.pause = None;
        self.pauses.reset();
    }

    /// Records that the entry is as wanted.
    pub(super) fn succeed(&mut self) {
        self.is_refused = false;
        self.pauses.reset();
    }

    /// Records a failure, which starts a pause.
    pub(super) fn fail(&mut self, failure: &Failure) {
        self.pause = Some(Instant::now() + self.pauses.after(failure));
    }

    /// Records that a write was refused because its guard was stale.
    pub(super) fn refuse(&mut self) {
        // The refusal carries the current entry, so the next write needs no pause. A second refusal
        // in a row means that the entry keeps changing.
        if std::mem::replace(&mut self.is_refused, true) {
            self.pause = Some(Instant::now() + self.pauses.first());
        }
    }

    /// Records that the entry was removed from outside.
    ///
    /// It is restored at once, unless it was removed less than [`STEADY`] ago. In that case the
    /// delays grow, so that somebody who keeps removing it does not keep etcd busy.
    pub(super) fn miss(&mut self) {
        if self.missed.replace(Instant::now()).is_some_and(|missed| missed.elapsed() < STEADY) {
            self.pause = Some(Instant::now() + self.repair_delays.next_delay());
        } else {
            self.repair_delays.reset();
        }
    }
}
