use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Recovered, Recovery, Registration, Registry, Resolver, ServiceName, Snapshot,
    Updates,
};
use tokio::{runtime::Handle, sync::watch};

use crate::{
    cluster::Cluster,
    config::{EtcdConfig, Settings},
    registry::Registrar,
    watch::{EtcdSource, Pace, closed_error},
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
/// let backend = EtcdBackend::connect("etcd://10.0.0.1,10.0.0.2,10.0.0.3/prod".parse::<EtcdConfig>()?)?;
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
    pub fn connect(config: EtcdConfig) -> Result<Self, Error> {
        let settings = Settings::check(&config)?;
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here").during("connect to etcd")
        })?;
        let cluster = Arc::new(Cluster::new(&settings)?);
        let closed = watch::Sender::new(false);
        let source = EtcdSource {
            cluster: Arc::clone(&cluster),
            layout: Arc::clone(&settings.layout),
            prefix: settings.prefix.clone(),
            pace: Pace::of(settings.ttl),
            closed: closed.subscribe(),
        };
        let mut recovery = Recovery::default();
        (recovery.backoff, recovery.first_set) = (settings.backoff, settings.deadline);
        recovery.entries = settings.max_entries;
        Ok(Self {
            registrar: Arc::new(Registrar::start(&settings, &cluster, runtime)),
            resolver: Recovered::with(source, recovery),
            closed,
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
        self.registrar.close().await.map_err(|error| error.during("close"))
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
        registered.map_err(|error| error.during("register").for_service(service))
    }
}

#[async_trait]
impl Resolver for EtcdBackend {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.open().map_err(|error| error.during("list").for_service(service))?;
        self.resolver.list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<Updates, Error> {
        self.open().map_err(|error| error.during("watch").for_service(service))?;
        self.resolver.watch(service)
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("granted_ttl", &self.granted_ttl()).finish_non_exhaustive()
    }
}
