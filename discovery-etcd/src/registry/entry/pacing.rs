use discovery_core::{Backoff, Delays};
use tokio::time::Instant;

use super::STEADY;
use crate::{client::Failure, retry_delays::RetryDelays};

/// How soon etcd may be asked again about the entry.
#[derive(Debug)]
pub(super) struct Pacing {
    /// Not to be asked again before then.
    pause: Option<Instant>,
    pauses: RetryDelays,
    /// The last write was refused because what stood there was not what was known.
    is_refused: bool,
    /// When somebody last took the entry away.
    missed: Option<Instant>,
    /// The waits before what somebody takes away again and again is written once more.
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

    /// Until when not to ask, if not now.
    pub(super) fn pause(&self) -> Option<Instant> {
        self.pause.filter(|until| *until > Instant::now())
    }

    /// Forgets the pause.
    pub(super) fn resume(&mut self) {
        self.pause = None;
    }

    /// Starts again from the shortest wait, for another value or owner.
    pub(super) fn restart(&mut self) {
        self.pause = None;
        self.pauses.reset();
    }

    /// Takes that the entry stands as it should.
    pub(super) fn succeed(&mut self) {
        self.is_refused = false;
        self.pauses.reset();
    }

    /// Takes a failure.
    pub(super) fn fail(&mut self, failure: &Failure) {
        self.pause = Some(Instant::now() + self.pauses.after(failure));
    }

    /// Takes that a write was refused for what stood there.
    pub(super) fn refuse(&mut self) {
        // What was read with the refusal is enough to go by, unless the entry changes all the time.
        if std::mem::replace(&mut self.is_refused, true) {
            self.pause = Some(Instant::now() + self.pauses.first());
        }
    }

    /// Takes that somebody took the entry away.
    ///
    /// It is written again at once, unless that was done only a moment ago. Then the waits grow, so
    /// that somebody who takes it away each time does not keep etcd busy.
    pub(super) fn miss(&mut self) {
        if self.missed.replace(Instant::now()).is_some_and(|missed| missed.elapsed() < STEADY) {
            self.pause = Some(Instant::now() + self.repair_delays.next_delay());
        } else {
            self.repair_delays.reset();
        }
    }
}
