use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, UpdateStream,
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
/// All registrations of a handle and its clones are kept by one lease. Cloning is cheap. With the last clone, registration and
/// stream its tasks and connections end by themselves.
///
/// Who registers an id again through the same handle takes over once that is written. Where it fails, the former registration is the
/// owner still.
///
/// ```no_run
/// # async fn example() -> Result<(), discovery_core::Error> {
/// use discovery_core::{Instance, Registry};
/// use discovery_etcd::{EtcdBackend, EtcdConfig};
///
/// let backend = EtcdBackend::new("etcd://10.0.0.1,10.0.0.2,10.0.0.3/prod".parse::<EtcdConfig>()?)?;
/// let registration = backend.register(&"payments".parse()?, Instance::new("10.0.7.4:50051".parse()?)).await?;
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
    /// The waits of a list between attempts.
    backoff: Backoff,
}

impl EtcdBackend {
    /// Checks the configuration and makes a handle. Never waits: connections are made when they are needed, so that a process may
    /// start before etcd does.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput), with what is wrong in the configuration, or in the files that it names, and
    /// what is allowed; [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime; [`Unsupported`](ErrorKind::Unsupported) where
    /// it asks for TLS in a program that was built without.
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
            .max_entries(settings.max_entries)
            // The queue is allocated for each watched service, and a handle may watch thousands.
            .queue_capacity(32);
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

    /// Deregisters everything that was registered by this handle and its clones, and returns once that is gone from etcd.
    ///
    /// Afterwards calls fail with [`Closed`](ErrorKind::Closed), and open streams say so.
    ///
    /// # Errors
    ///
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) where etcd did not confirm in time, with the time by which the lease will
    /// have ended what is left. Tasks go on trying for at most twice the ttl and 10 s, and then end.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, the backend goes on with it alone.
    pub async fn close(&self) -> Result<(), Error> {
        self.closed.send_replace(true);
        self.registrar.close().await.map_err(|error| error.with_operation("close"))
    }

    /// The time that etcd granted the present lease for, which may be more than was asked for; `None` before the first
    /// registration.
    pub fn granted_ttl(&self) -> Option<Duration> {
        self.registrar.granted_ttl()
    }

    /// How many bad entries were skipped so far, each counted once per revision.
    pub fn skipped(&self) -> u64 {
        self.resolver.skipped()
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
    /// Goes on for the whole [operation timeout](EtcdConfig::operation_timeout) while etcd cannot be
    /// reached or cannot answer.
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
