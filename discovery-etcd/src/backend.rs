//! The handle that users hold: a registry and a resolver on one cluster.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, SkippedEntries,
    Snapshot, UpdateStream,
    backend::{Recovered, Recovery},
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    cluster::{Cluster, MemberList},
    config::{EtcdConfig, Settings},
    pace::Pace,
    registry::Registrar,
    watch::{DeeperLog, EtcdSource, closed_error},
    watcher::{AuditPace, Watcher},
};

/// A handle on a registry kept in etcd.
///
/// Cloning is cheap. One lease holds all registrations of a handle and its clones. Its tasks and
/// connections end once the last clone, registration and stream is dropped.
///
/// Registering an id again through the same handle takes over from the former registration once the
/// new one is written. If that fails, the former registration remains the owner.
///
/// ```no_run
/// # async fn example() -> Result<(), discovery_core::Error> {
/// use discovery_core::{Instance, Registry};
/// use discovery_etcd::{EtcdBackend, EtcdConfig};
///
/// let config = "etcd://10.0.0.1,10.0.0.2,10.0.0.3/prod".parse::<EtcdConfig>()?;
/// let backend = EtcdBackend::new(config)?;
/// let instance = Instance::new("10.0.7.4:50051".parse()?);
/// let registration = backend.register(&"payments".parse()?, instance).await?;
/// registration.deregister().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EtcdBackend {
    registrar: Arc<Registrar>,
    resolver: Recovered<EtcdSource>,
    closed: watch::Sender<bool>,
    operation_timeout: Duration,
    /// The waits between the attempts of a `list`.
    backoff: Backoff,
}

impl EtcdBackend {
    /// Checks the configuration and creates a handle.
    ///
    /// Never waits: connections are made when they are first needed, so a process may start before
    /// etcd does.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](ErrorKind::InvalidInput) if the configuration, or a file that it names,
    ///   is invalid. The message names what is wrong and what is allowed.
    /// - [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime.
    /// - [`Unsupported`](ErrorKind::Unsupported) if the configuration asks for TLS and the program
    ///   was built without it.
    pub fn new(config: EtcdConfig) -> Result<Self, Error> {
        let settings = Settings::check(&config)?;
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here").with_operation("connect to etcd")
        })?;
        let cluster = Arc::new(Cluster::new(&settings, runtime.clone())?);
        let closed = watch::Sender::new(false);
        let pace = Pace::of(settings.ttl);
        let audits = AuditPace { services: settings.audit_interval.part(10), entries: settings.ttl };
        let watcher = Watcher::start(&cluster, pace, audits, &runtime);
        let source = EtcdSource {
            cluster: Arc::clone(&cluster),
            watcher: watcher.clone(),
            layout: Arc::clone(&settings.layout),
            prefix: settings.prefix.clone(),
            pace,
            first_lists: Semaphore::new(MOST_FIRST_LISTS),
            relists: Semaphore::new(MOST_RELISTS),
            deeper: DeeperLog::default(),
            closed: closed.subscribe(),
        };
        let recovery = Recovery::default()
            .backoff(settings.backoff)
            .first_set_timeout(settings.operation_timeout)
            .max_entries(settings.max_entries);
        if settings.discover_members {
            runtime.spawn(MemberList::new(&cluster, &settings.members).run());
        }
        Ok(Self {
            registrar: Arc::new(Registrar::start(&settings, &cluster, watcher, runtime)),
            resolver: Recovered::with_recovery(source, recovery),
            closed,
            operation_timeout: settings.operation_timeout,
            backoff: settings.backoff.at_most(Duration::from_secs(1)),
        })
    }

    /// Deregisters everything that this handle and its clones registered, and returns once it is
    /// gone from etcd.
    ///
    /// Afterwards calls fail with [`Closed`](ErrorKind::Closed), and open streams report it.
    ///
    /// # Errors
    ///
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if etcd did not confirm in time. The error
    /// states when the lease will have ended what is left. Tasks keep trying for at most twice the
    /// ttl plus 10 s, and then end.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, closing continues in the background.
    pub async fn close(&self) -> Result<(), Error> {
        self.closed.send_replace(true);
        self.registrar.close().await.map_err(|error| error.with_operation("close"))
    }

    /// Returns the time that etcd granted the current lease for, which may be longer than
    /// requested; `None` before the first registration, and if each registration has a lease of its
    /// own.
    pub fn granted_ttl(&self) -> Option<Duration> {
        self.registrar.granted_ttl()
    }

    /// Returns the number of bad entries skipped so far, each counted once per revision.
    pub fn skipped(&self) -> u64 {
        self.resolver.skipped()
    }

    /// Returns the number of labels dropped so far because [`Metadata`](discovery_core::Metadata)
    /// does not allow them, each counted once per revision of its entry.
    pub fn dropped_labels(&self) -> u64 {
        self.resolver.dropped_labels()
    }

    fn open(&self) -> Result<(), Error> {
        if *self.closed.borrow() { Err(closed_error()) } else { Ok(()) }
    }
}

#[async_trait]
impl Registry for EtcdBackend {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        let registered = self.registrar.register(service, instance, claim).await;
        registered.map_err(|error| error.with_operation("register").with_service(service))
    }
}

#[async_trait]
impl Resolver for EtcdBackend {
    /// Retries for the whole [operation timeout](EtcdConfig::operation_timeout) while etcd cannot
    /// be reached or cannot answer.
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.open().map_err(|error| error.with_operation("list").with_service(service))?;
        let end = Instant::now() + self.operation_timeout;
        let mut delays = self.backoff.delays();
        let mut last: Option<Error> = None;
        loop {
            match timeout_at(end, self.resolver.list(service)).await {
                Ok(Err(error)) if may_pass(&error) => last = Some(error),
                Ok(done) => return done,
                Err(_) => break,
            }
            let next = Instant::now() + delays.next_delay();
            if next >= end {
                break;
            }
            sleep_until(next).await;
        }
        let message = format!("not listed within {:?}", self.operation_timeout);
        let error = match last {
            Some(error) => Error::new(error.kind(), message).with_source(error),
            None => Error::new(ErrorKind::DeadlineExceeded, message),
        };
        Err(error.with_operation("list").with_service(service))
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        self.open().map_err(|error| error.with_operation("watch").with_service(service))?;
        self.resolver.watch(service)
    }

    fn skipped_entries(&self, service: &ServiceName) -> SkippedEntries {
        self.resolver.skipped_entries(service)
    }
}

const MOST_FIRST_LISTS: usize = 16;
const MOST_RELISTS: usize = 32;

/// Whether the same list may succeed within seconds.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::DeadlineExceeded | ErrorKind::Unavailable)
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("granted_ttl", &self.granted_ttl()).finish_non_exhaustive()
    }
}
