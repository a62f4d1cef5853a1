use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, SkippedEntries,
    Snapshot, Status, UpdateStream,
    backend::{Recovered, Recovery, StatusWriter},
};

use crate::{
    lease::keep,
    registration::Owned,
    source::MemorySource,
    state::{Owner, Store, key},
};

/// A registry in memory, with faults on demand.
///
/// [`new`](Self::new) creates a new registry; nothing is shared process-wide. A clone is the same
/// handle, as two tasks of one process would share it. [`another_process`](Self::another_process)
/// returns a separate handle on the same registry, as another process would hold it. The backend
/// keeps the promises of [`Registry`] and [`Resolver`] like any other, also on tokio's paused
/// clock.
///
/// Registering needs no runtime; watching does. What happens later (a lease ends, an instance
/// registers again) happens in the runtime of the call that caused it. Without one, it happens at
/// the next call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// use discovery_core::{Instance, Registry, Resolver};
/// use discovery_memory::MemoryBackend;
///
/// let backend = MemoryBackend::new();
/// let service = "payments".parse()?;
/// let registration = backend.register(&service, Instance::new("10.0.0.1:80".parse()?)).await?;
/// assert_eq!(backend.another_process().list(&service).await?.len(), 1);
/// registration.deregister().await?;
/// assert!(backend.list(&service).await?.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    pub(crate) store: Arc<Store>,
    pub(crate) process: u64,
    resolver: Recovered<MemorySource>,
}

impl MemoryBackend {
    /// Creates a new registry whose leases last 15 s.
    pub fn new() -> Self {
        Self::with_ttl(Duration::from_secs(15))
    }

    /// Creates a new registry whose leases last `ttl`, which is how long an entry outlives its
    /// process.
    pub fn with_ttl(ttl: Duration) -> Self {
        Self::on(Arc::new(Store::new(ttl)))
    }

    /// Returns a separate handle on the same registry, as another process would hold it.
    #[must_use]
    pub fn another_process(&self) -> Self {
        Self::on(Arc::clone(&self.store))
    }

    /// Returns how long an entry outlives its process.
    pub fn ttl(&self) -> Duration {
        self.store.lock().ttl
    }

    /// Returns how many steps the registry has made; [`wipe`](Self::wipe) resets it.
    pub fn revision(&self) -> u64 {
        self.store.lock().revision
    }

    /// Returns how many bad entries this handle has skipped, each counted once per revision.
    pub fn skipped(&self) -> u64 {
        self.resolver.skipped()
    }

    /// Returns how many upstream watches of a service are open, over all handles.
    pub fn watches(&self, service: &ServiceName) -> usize {
        self.store.lock().watches(service)
    }

    fn on(store: Arc<Store>) -> Self {
        let process = store.lock().number();
        let source = MemorySource { store: Arc::clone(&store), process };
        // Shorter than for a registry on a network, so that tests on the real clock need not wait.
        let backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1)).expect("10 ms to 1 s is allowed");
        let recovery = Recovery::default().backoff(backoff);
        Self { store, process, resolver: Recovered::with_recovery(source, recovery) }
    }
}

impl Default for MemoryBackend {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Registry for MemoryBackend {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        keep(&self.store);
        let mut state = self.store.lock();
        state.reach(self.process).map_err(|error| error.with_operation("register").with_service(service))?;
        let key = key(service, instance.id().as_str());
        if claim == Claim::IfAbsent && state.entries.contains_key(&key) {
            let error = Error::new(ErrorKind::Conflict, "another owner's entry exists");
            return Err(error.with_operation("register").with_service(service).with_key(&key));
        }
        let number = state.number();
        let instance = Arc::new(instance);
        let status = StatusWriter::new(Status::registered());
        let held = Owned { store: Arc::clone(&self.store), process: self.process, number };
        let registration = Registration::new(service.clone(), Arc::clone(&instance), &status, held);
        let owner = Owner {
            process: self.process,
            service: service.clone(),
            instance: Arc::clone(&instance),
            status,
            heals: None,
        };
        state.owners.insert(number, owner);
        state.put(service, instance, Some(number));
        Ok(registration)
    }
}

#[async_trait]
impl Resolver for MemoryBackend {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.resolver.list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        self.resolver.watch(service)
    }

    fn skipped_entries(&self, service: &ServiceName) -> SkippedEntries {
        self.resolver.skipped_entries(service)
    }
}
