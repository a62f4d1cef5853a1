//! What a server does besides serving: it registers, reports its health, and leaves the registry
//! when it stops.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use discovery_core::{Claim, Error, ErrorKind, Instance, RegistryExt, Status, StatusReceiver};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tonic_health::ServingStatus;
use tracing::{info, warn};

use super::{
    config::ServerConfig,
    handle::{Entry, ServerHandle, Stage, left},
    registration_metric::RegistrationMetric,
    shutdown::ShutdownKind,
};

/// The state of a server besides its connections.
pub(super) struct Lifecycle {
    pub(super) config: ServerConfig,
    /// Handles hold only a weak reference, so that the entry is dropped with the server.
    entry: Arc<Mutex<Entry>>,
    was_registered: AtomicBool,
    metric: RegistrationMetric,
    pub(super) handle: ServerHandle,
}

impl Lifecycle {
    pub(super) fn new(config: ServerConfig, instance: Instance) -> Self {
        let entry = Arc::new(Mutex::new(Entry::Planned(instance)));
        let handle = ServerHandle::new(config.service.clone(), Arc::downgrade(&entry));
        let metric = RegistrationMetric::new(&config.service);
        Self { config, entry, was_registered: AtomicBool::new(false), metric, handle }
    }

    /// Registers and waits for the request to stop, then leaves the registry and gives clients time
    /// to notice.
    pub(super) async fn until_left(&self) -> Result<(), Error> {
        let shutdown = &self.handle.shutdown;
        // A reporter starts with SERVING.
        self.say(ServingStatus::NotServing).await;
        let registered = tokio::select! {
            biased;
            () = shutdown.given(ShutdownKind::Stop) => Ok(()),
            error = self.stay_registered() => Err(error),
        };
        self.enter(Stage::Draining);
        self.say(ServingStatus::NotServing).await;
        let drain = async {
            let since = Instant::now();
            let drain = self.config.drain_time;
            let rest = match self.leave().await {
                // It was never in the registry, so no client knows of it.
                None => Duration::ZERO,
                Some(true) => drain,
                // If deregistering failed, waiting longer will not inform clients either.
                Some(false) => drain.saturating_sub(since.elapsed()),
            };
            sleep(rest).await;
        };
        tokio::select! {
            () = drain => {}
            // A request to stop at once ends the drain time.
            () = shutdown.given(ShutdownKind::StopNow) => {}
        }
        registered
    }

    /// Registers once the server is ready, and reports the status of the registration from then on.
    /// Returns only with an error that a retry cannot solve.
    async fn stay_registered(&self) -> Error {
        self.config.ready.lock().await.as_mut().await;
        self.say(ServingStatus::Serving).await;
        let mut statuses = match self.register().await {
            Ok(statuses) => statuses,
            Err(error) => return error,
        };
        let mut status = statuses.current();
        loop {
            self.handle.status.set(status.clone());
            self.metric.set(status.is_registered());
            match status {
                _ if self.was_registered.load(Ordering::Relaxed) => {}
                Status::Lost { error, .. } if error.is_retryable() => {}
                Status::Lost { error, .. } => return error,
                Status::Superseded { .. } if self.config.claim == Claim::IfAbsent => {
                    return Error::new(ErrorKind::Conflict, "another owner's entry exists").with_operation("register");
                }
                // Only closing the backend ends a registration that was never written.
                Status::Deregistered { .. } => {
                    return Error::new(ErrorKind::Closed, "the backend was closed").with_operation("register");
                }
                // A superseded registration was written before.
                Status::Registered { .. } | Status::Superseded { .. } => {
                    self.was_registered.store(true, Ordering::Relaxed);
                    self.enter(Stage::Serving);
                }
                _ => {}
            }
            status = match statuses.changed().await {
                Some(status) => status,
                None => std::future::pending().await,
            };
        }
    }

    /// Starts a registration that is written as soon as the registry can be reached.
    async fn register(&self) -> Result<StatusReceiver, Error> {
        let mut entry = self.entry.lock().await;
        let Entry::Planned(instance) = &*entry else { return Err(left()) };
        let registration =
            self.config.registry.keep_registered(&self.config.service, instance.clone(), self.config.claim)?;
        let statuses = registration.statuses();
        *entry = Entry::Registered(registration);
        Ok(statuses)
    }

    /// Leaves the registry of a server that serves no more, without giving clients time to notice.
    pub(super) async fn leave_at_once(&self) {
        // Ends updates too.
        self.handle.stop();
        self.enter(Stage::Finishing);
        self.say(ServingStatus::NotServing).await;
        tokio::select! {
            _ = self.leave() => {}
            () = self.handle.shutdown.given(ShutdownKind::StopNow) => {}
        }
    }

    /// Leaves the registry. Returns whether that is confirmed; `None` if the server was never in
    /// it.
    async fn leave(&self) -> Option<bool> {
        let entry = mem::replace(&mut *self.entry.lock().await, Entry::Left);
        let Entry::Registered(registration) = entry else { return None };
        self.metric.set(false);
        let was_registered = self.was_registered.load(Ordering::Relaxed) || registration.status().is_registered();
        // Also if it is not registered yet: an attempt in progress may write the entry, which would
        // outlive a process that ends before the entry is removed again.
        let result = registration.deregister().await;
        self.handle.status.set(Status::deregistered());
        if let Err(error) = &result {
            warn!(service = %self.config.service, error = %error.report(), "deregistering not confirmed");
        }
        was_registered.then_some(result.is_ok())
    }

    pub(super) fn enter(&self, stage: Stage) {
        info!(service = %self.config.service, ?stage, "server stage");
        self.handle.stage.send_replace(stage);
    }

    async fn say(&self, status: ServingStatus) {
        if let Some(health) = &self.config.health {
            health.say(status).await;
        }
    }
}

impl Drop for Lifecycle {
    /// Runs however the server ends, including an abort or a panic.
    fn drop(&mut self) {
        // A running update holds the lock of the entry; this ends it.
        self.handle.stop_now();
        if let Ok(mut entry) = self.entry.try_lock() {
            *entry = Entry::Left;
        }
        self.handle.status.set(Status::deregistered());
        self.enter(Stage::Stopped);
    }
}
