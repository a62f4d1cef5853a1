use std::sync::atomic::{AtomicU32, Ordering};

use tonic::Code;

/// What calls report about an endpoint. It outlives the endpoint's connections and their driver.
#[derive(Debug)]
pub(crate) struct Tally {
    /// The codes that count as failures of the endpoint.
    failing: Codes,
    /// Consecutive calls that were lost with their connection, or answered with `UNAVAILABLE`.
    failures: AtomicU32,
    answers: AtomicU32,
    lost: AtomicU32,
    failed: AtomicU32,
    given_up: AtomicU32,
}

/// How an endpoint's calls have ended so far. The counters may wrap around.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Totals {
    pub(crate) answers: u32,
    /// Those that were lost before an answer.
    pub(crate) lost: u32,
    /// Those that were lost or answered with a failing code.
    pub(crate) failed: u32,
    /// Those whose callers gave up after a while without an answer.
    pub(crate) given_up: u32,
}

/// A set of status codes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Codes(u32);

impl Tally {
    pub(crate) fn new(failing: Codes) -> Self {
        Self {
            failing,
            failures: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            given_up: AtomicU32::new(0),
        }
    }

    pub(crate) fn is_failing(&self, code: Code) -> bool {
        self.failing.contains(code)
    }

    /// Counts an answer with any status: the peer is alive.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a series of consecutive failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that was answered with a failing code. Only `UNAVAILABLE` counts as a
    /// consecutive failure, since the other codes are the application's verdict on a single call.
    pub(super) fn failed(&self, code: Code) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        match code {
            Code::Unavailable => drop(self.failures.fetch_add(1, Ordering::Relaxed)),
            _ => self.succeeded(),
        }
    }

    /// Counts a call that was lost without an answer.
    pub(super) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.failed(Code::Unavailable);
    }

    /// Counts a call whose caller gave up after a while without an answer.
    pub(crate) fn given_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            answers: self.answers.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the endpoint has answered anything.
    pub(crate) fn has_answered(&self) -> bool {
        self.answers.load(Ordering::Relaxed) != 0
    }
}

impl Totals {
    /// The difference to earlier totals.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            answers: self.answers.wrapping_sub(before.answers),
            lost: self.lost.wrapping_sub(before.lost),
            failed: self.failed.wrapping_sub(before.failed),
            given_up: self.given_up.wrapping_sub(before.given_up),
        }
    }
}

impl Codes {
    pub(crate) fn contains(self, code: Code) -> bool {
        self.0 & (1 << code as u32) != 0
    }
}

impl FromIterator<Code> for Codes {
    fn from_iter<I: IntoIterator<Item = Code>>(codes: I) -> Self {
        Self(codes.into_iter().fold(0, |all, code| all | 1 << code as u32))
    }
}
