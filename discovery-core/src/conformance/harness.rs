use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Backend, InstanceId, ServiceName};

/// A backend under test, with a registry of its own: nothing that another test does may show in it.
///
/// The hooks that no capability asks for are required; each of the others is called only where [`Capabilities`] declares it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// What this backend promises, and what its harness can do to it.
    fn capabilities(&self) -> Capabilities;

    /// How long the laws wait.
    fn timings(&self) -> Timings;

    /// A handle of its own on the registry, as one more process would hold it.
    ///
    /// The harness keeps no clone of the backend itself, since some laws drop it.
    async fn process(&self) -> Process;

    /// Makes the registry unreachable for all processes. Needs [`Capabilities::outages`].
    async fn interrupt(&self) {
        undeclared("outages")
    }

    /// Makes the registry reachable again, after [`interrupt`](Self::interrupt) or [`refuse`](Self::refuse).
    async fn restore(&self) {
        undeclared("outages")
    }

    /// Makes the registry refuse everybody, which is an error of another kind. Needs [`Capabilities::refusals`].
    async fn refuse(&self) {
        undeclared("refusals")
    }

    /// Makes the registry refuse all writes for good, as where a permission is withdrawn: an error
    /// that is not retryable. Needs [`Capabilities::denials`].
    async fn deny(&self) {
        undeclared("denials")
    }

    /// Makes the registry take writes again, after [`deny`](Self::deny).
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

    /// Sets the registry back to an empty one. Needs [`Capabilities::wipes`].
    async fn wipe(&self) {
        undeclared("wipes")
    }

    /// Puts an unreadable value where this instance's entry stands, or would. Needs [`Capabilities::bad_entries`].
    async fn put_bad(&self, _service: &ServiceName, _id: &InstanceId) {
        undeclared("bad_entries")
    }

    /// Puts something below a path that begins like an entry of the service. Needs [`Capabilities::deeper_keys`].
    async fn put_deeper(&self, _service: &ServiceName) {
        undeclared("deeper_keys")
    }

    /// Makes the open upstream watches of a service panic. Needs [`Capabilities::panics`].
    async fn panic_watches(&self, _service: &ServiceName) {
        undeclared("panics")
    }

    /// How many upstream watches of a service are open, over all processes. Needs [`Capabilities::upstream_watches`].
    async fn upstream_watches(&self, _service: &ServiceName) -> usize {
        undeclared("upstream_watches")
    }
}

/// What a backend promises and a harness can do; what is `false` is skipped, and said to be.
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
    /// The entries of a killed process go by themselves, and processes can be killed: [`Process::killed_by`].
    pub leases: bool,
    /// The registry can be cut off: [`Harness::interrupt`], [`Harness::restore`].
    pub outages: bool,
    /// Upstream watches can be made to panic: [`Harness::panic_watches`].
    pub panics: bool,
    /// Watchers are told every step of the registry, not only the states that a poll happens to see.
    pub push: bool,
    /// The registry can be made to refuse: [`Harness::refuse`].
    pub refusals: bool,
    /// Entries can be removed by hand: [`Harness::remove`].
    pub removal: bool,
    /// A set is one state that the registry really had, in its order.
    pub revisions: bool,
    /// Skipped bad entries can be counted: [`Process::counting_skipped`].
    pub skip_count: bool,
    /// Upstream watches can be counted: [`Harness::upstream_watches`].
    pub upstream_watches: bool,
    /// The registry can be set back: [`Harness::wipe`].
    pub wipes: bool,
}

/// How long the laws wait. Every wait is bounded by one of these.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// How many updates a consumer may fall behind, as of [`Recovery::queue`](crate::backend::Recovery::queue).
    pub queue: usize,
    /// For how long nothing must come, where nothing may come.
    pub quiet: Duration,
    /// By when anything must have come that must come: a change, a recovery, a healing, the failure of a call during an outage.
    pub settle: Duration,
    /// How long an entry stays after its process was killed; anything where there are no leases.
    pub ttl: Duration,
}

/// One handle on the registry, as one process holds it.
pub struct Process {
    backend: Arc<dyn Backend>,
    kill: Option<Box<dyn FnOnce() + Send + Sync>>,
    skipped: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl Capabilities {
    /// Everything.
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
    /// A process that holds this handle.
    pub fn new(backend: impl Backend) -> Self {
        Self { backend: Arc::new(backend), kill: None, skipped: None }
    }

    /// Says how to end the process so that it can do nothing more, deregister least of all. For [`Capabilities::leases`].
    #[must_use]
    pub fn killed_by(mut self, kill: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.kill = Some(Box::new(kill));
        self
    }

    /// Says how to read [`Recovered::skipped`](crate::backend::Recovered::skipped). For [`Capabilities::skip_count`].
    #[must_use]
    pub fn counting_skipped(mut self, skipped: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.skipped = Some(Box::new(skipped));
        self
    }

    /// The handle.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Kills the process.
    pub(super) fn kill(mut self) {
        self.kill.take().unwrap_or_else(|| undeclared("leases"))();
    }

    /// How many bad entries it has skipped.
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
