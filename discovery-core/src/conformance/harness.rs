use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Backend, InstanceId, ServiceName};

/// A backend under test, with a registry of its own that no other test can affect.
///
/// The methods that need no capability are required. Each of the others is called only if
/// [`Capabilities`] declares it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Returns what this backend promises, and what the harness can do to it.
    fn capabilities(&self) -> Capabilities;

    /// Returns how long the laws wait.
    fn timings(&self) -> Timings;

    /// Returns a new handle on the registry, as one more process would hold it.
    ///
    /// The harness must not keep a clone of the backend, because some laws drop it.
    async fn process(&self) -> Process;

    /// Makes the registry unreachable for all processes. Needs [`Capabilities::outages`].
    async fn interrupt(&self) {
        undeclared("outages")
    }

    /// Makes the registry reachable again, after [`interrupt`](Self::interrupt) or
    /// [`refuse`](Self::refuse).
    async fn restore(&self) {
        undeclared("outages")
    }

    /// Makes the registry refuse every client, which is an error of another kind. Needs
    /// [`Capabilities::refusals`].
    async fn refuse(&self) {
        undeclared("refusals")
    }

    /// Makes the registry refuse all writes with an error that is not retryable, as if a permission
    /// were revoked. Needs [`Capabilities::denials`].
    async fn deny(&self) {
        undeclared("denials")
    }

    /// Makes the registry accept writes again, after [`deny`](Self::deny).
    async fn permit(&self) {
        undeclared("denials")
    }

    /// Ends the lease of an instance behind its owner's back. Needs [`Capabilities::expiry`].
    async fn expire(&self, _service: &ServiceName, _id: &InstanceId) {
        undeclared("expiry")
    }

    /// Removes an entry by hand. Needs [`Capabilities::removal`].
    async fn remove(&self, _service: &ServiceName, _id: &InstanceId) {
        undeclared("removal")
    }

    /// Resets the registry to an empty one. Needs [`Capabilities::wipes`].
    async fn wipe(&self) {
        undeclared("wipes")
    }

    /// Puts an unreadable value at the key of this instance, whether or not it has an entry. Needs
    /// [`Capabilities::bad_entries`].
    async fn put_bad(&self, _service: &ServiceName, _id: &InstanceId) {
        undeclared("bad_entries")
    }

    /// Puts a key below a path that begins like an entry of the service. Needs
    /// [`Capabilities::deeper_keys`].
    async fn put_deeper(&self, _service: &ServiceName) {
        undeclared("deeper_keys")
    }

    /// Makes the open upstream watches of a service panic. Needs [`Capabilities::panics`].
    async fn panic_watches(&self, _service: &ServiceName) {
        undeclared("panics")
    }

    /// Returns how many upstream watches of a service are open, over all processes. Needs
    /// [`Capabilities::upstream_watches`].
    async fn upstream_watches(&self, _service: &ServiceName) -> usize {
        undeclared("upstream_watches")
    }
}

/// What a backend promises and a harness can do. Laws that need what is `false` are skipped, and
/// reported as skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Capabilities {
    /// Unreadable entries can be put: [`Harness::put_bad`].
    pub bad_entries: bool,
    /// Keys of deeper paths can be put: [`Harness::put_deeper`].
    pub deeper_keys: bool,
    /// Writes can be refused for good: [`Harness::deny`], [`Harness::permit`].
    pub denials: bool,
    /// Leases can be ended: [`Harness::expire`].
    pub expiry: bool,
    /// The entries of a killed process disappear, and processes can be killed:
    /// [`Process::killed_by`].
    pub leases: bool,
    /// The registry can be cut off: [`Harness::interrupt`], [`Harness::restore`].
    pub outages: bool,
    /// Upstream watches can be made to panic: [`Harness::panic_watches`].
    pub panics: bool,
    /// Watchers see every step of the registry, not only the states that a poll happens to see.
    pub push: bool,
    /// The registry can be made to refuse clients: [`Harness::refuse`].
    pub refusals: bool,
    /// Entries can be removed by hand: [`Harness::remove`].
    pub removal: bool,
    /// Every set is one state that the registry really had, in its order.
    pub revisions: bool,
    /// Skipped bad entries can be counted: [`Process::counting_skipped`].
    pub skip_count: bool,
    /// Upstream watches can be counted: [`Harness::upstream_watches`].
    pub upstream_watches: bool,
    /// The registry can be reset: [`Harness::wipe`].
    pub wipes: bool,
}

/// How long the laws wait. Every wait is bounded by one of these.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How many updates a consumer may fall behind; see
    /// [`Recovery::queue_capacity`](crate::backend::Recovery::queue_capacity).
    pub queue: usize,
    /// How long a law waits for updates that must not come.
    pub quiet: Duration,
    /// How long a law waits for anything that must come: a change, a recovery, a re-registration,
    /// the failure of a call during an outage.
    pub settle: Duration,
    /// How long an entry stays after its process was killed. Any value if there are no leases.
    pub ttl: Duration,
}

/// A handle on the registry, as one process holds it.
pub struct Process {
    backend: Arc<dyn Backend>,
    kill: Option<Box<dyn FnOnce() + Send + Sync>>,
    skipped: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl Capabilities {
    /// All capabilities.
    pub const ALL: Self = Self {
        bad_entries: true,
        deeper_keys: true,
        denials: true,
        expiry: true,
        leases: true,
        outages: true,
        panics: true,
        push: true,
        refusals: true,
        removal: true,
        revisions: true,
        skip_count: true,
        upstream_watches: true,
        wipes: true,
    };
}

impl Process {
    /// Creates a process that holds this handle.
    pub fn new(backend: impl Backend) -> Self {
        Self { backend: Arc::new(backend), kill: None, skipped: None }
    }

    /// Sets how to end the process so that it can do nothing more, least of all deregister. Needed
    /// for [`Capabilities::leases`].
    #[must_use]
    pub fn killed_by(mut self, kill: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.kill = Some(Box::new(kill));
        self
    }

    /// Sets how to read [`Recovered::skipped`](crate::backend::Recovered::skipped). Needed for
    /// [`Capabilities::skip_count`].
    #[must_use]
    pub fn counting_skipped(mut self, skipped: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.skipped = Some(Box::new(skipped));
        self
    }

    /// Returns the handle.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Kills the process.
    pub(super) fn kill(mut self) {
        self.kill.take().unwrap_or_else(|| undeclared("leases"))();
    }

    /// Returns how many bad entries it has skipped.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped.as_ref().unwrap_or_else(|| undeclared("skip_count"))()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

fn undeclared(capability: &str) -> ! {
    panic!("the harness declares the capability `{capability}` and lacks its hook")
}
