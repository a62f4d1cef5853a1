//! The user's hook that sees each attempt.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use discovery_core::Instance;
use tokio::time::Instant;
use tonic::Code;
use tracing::error;

use crate::error::panic_text;

/// An attempt of a call, for the hook of
/// [`ChannelBuilder::on_attempt`](crate::ChannelBuilder::on_attempt).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptReport<'a> {
    /// The instance that was picked. If its connection ended at the same moment, the request may
    /// not have been sent.
    pub instance: &'a Instance,
    /// Which attempt of the call it was; the first is 1.
    pub number: u32,
    /// The time from handing the request to the connection until the outcome.
    pub elapsed: Duration,
    /// How the attempt turned out.
    pub outcome: AttemptOutcome,
}

/// How an attempt turned out: the outcome is known with the response's headers, or without them.
///
/// A response that begins and later fails counts as [`Responded`](Self::Responded).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AttemptOutcome {
    /// A response began that is not an error yet.
    Responded,
    /// The attempt failed with this code. The call may go on with another attempt.
    Failed(Code),
    /// The caller gave the call up before it was answered.
    Cancelled,
}

/// The hook of a channel.
pub(crate) struct AttemptHook {
    hook: Box<dyn Fn(&AttemptReport<'_>) + Send + Sync>,
    /// A panic of the hook is logged once.
    has_panicked: AtomicBool,
}

/// What the hook will be given once the outcome of an attempt is known; nothing without a hook.
#[derive(Debug, Default)]
pub(crate) struct Observed(Option<Box<Attempted>>);

#[derive(Debug)]
struct Attempted {
    hook: Arc<AttemptHook>,
    number: u32,
    begun: Instant,
}

impl AttemptHook {
    pub(crate) fn new(hook: impl Fn(&AttemptReport<'_>) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { hook: Box::new(hook), has_panicked: AtomicBool::new(false) })
    }

    /// Reports an attempt. Called from drops too, so a panic must end here.
    fn report(&self, report: &AttemptReport<'_>) {
        let reported = catch_unwind(AssertUnwindSafe(|| (self.hook)(report)));
        if let Err(panic) = reported
            && !self.has_panicked.swap(true, Ordering::Relaxed)
        {
            // The subscriber may panic as well.
            let _ = catch_unwind(AssertUnwindSafe(|| error!(panic = panic_text(&*panic), "attempt hook panicked")));
        }
    }
}

impl Observed {
    /// An attempt that begins now.
    pub(super) fn begin(hook: Option<&Arc<AttemptHook>>, number: u32) -> Self {
        Self(hook.map(|hook| Box::new(Attempted { hook: Arc::clone(hook), number, begun: Instant::now() })))
    }

    /// Calls the hook with the outcome, unless it was called before.
    pub(super) fn end(&mut self, instance: &Instance, outcome: AttemptOutcome) {
        if let Some(attempted) = self.0.take() {
            let Attempted { hook, number, begun } = *attempted;
            hook.report(&AttemptReport { instance, number, elapsed: begun.elapsed(), outcome });
        }
    }
}

impl fmt::Debug for AttemptHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttemptHook").finish_non_exhaustive()
    }
}
