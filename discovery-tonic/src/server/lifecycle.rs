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
    shutdown::ShutdownKind,
};

/// What a server does besides serving.
pub(super) struct Lifecycle {
    pub(super) config: ServerConfig,
    /// The handles only borrow it, so that it goes with the server.
    entry: Arc<Mutex<Entry>>,
    was_registered: AtomicBool,
    pub(super) handle: ServerHandle,
}

impl Lifecycle {
    pub(super) fn new(config: ServerConfig, instance: Instance) -> Self {
        let entry = Arc::new(Mutex::new(Entry::Planned(instance)));
        let handle = ServerHandle::new(config.service.clone(), Arc::downgrade(&entry));
        Self { config, entry, was_registered: AtomicBool::new(false), handle }
    }

    /// Registers and waits for the order to stop, then leaves the registry and gives callers time to hear of that.
    pub(super) async fn until_left(&self) -> Result<(), Error> {
        let shutdown = &self.handle.shutdown;
        // A reporter begins with SERVING.
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
                // Nobody has heard of it.
                None => Duration::ZERO,
                Some(true) => drain,
                // Who cannot hear that it left will not hear it in more time either.
                Some(false) => drain.saturating_sub(since.elapsed()),
            };
            sleep(rest).await;
        };
        tokio::select! {
            () = drain => {}
            () = shutdown.given(ShutdownKind::StopNow) => {}
        }
        registered
    }

    /// Registers once the server is ready, and tells how the registration stands from then on; ends
    /// with an error that trying again does not help.
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
            match status {
                _ if self.was_registered.load(Ordering::Relaxed) => {}
                Status::Lost { error, .. } if error.is_retryable() => {}
                Status::Lost { error, .. } => return error,
                Status::Superseded { .. } if self.config.claim == Claim::IfAbsent => {
                    return Error::new(ErrorKind::Conflict, "another owner's entry lives").with_operation("register");
                }
                // Nobody else ends what was not registered yet.
                Status::Deregistered { .. } => {
                    return Error::new(ErrorKind::Closed, "the backend was closed").with_operation("register");
                }
                // Taken over by another owner: it was registered before.
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

    /// Registers as soon as the registry can be reached.
    async fn register(&self) -> Result<StatusReceiver, Error> {
        let mut entry = self.entry.lock().await;
        let Entry::Planned(instance) = &*entry else { return Err(left()) };
        let registration =
            self.config.registry.keep_registered(&self.config.service, instance.clone(), self.config.claim)?;
        let statuses = registration.statuses();
        *entry = Entry::Registered(registration);
        Ok(statuses)
    }

    /// Leaves the registry where nobody serves any more, without time for callers to hear of that.
    pub(super) async fn leave_at_once(&self) {
        // Updates end, too.
        self.handle.stop();
        self.enter(Stage::Finishing);
        self.say(ServingStatus::NotServing).await;
        tokio::select! {
            _ = self.leave() => {}
            () = self.handle.shutdown.given(ShutdownKind::StopNow) => {}
        }
    }

    /// Leaves the registry; whether that is confirmed, where it was there at all.
    async fn leave(&self) -> Option<bool> {
        let entry = mem::replace(&mut *self.entry.lock().await, Entry::Left);
        let Entry::Registered(registration) = entry else { return None };
        let was_registered = self.was_registered.load(Ordering::Relaxed) || registration.status().is_registered();
        // Also where it is not registered yet: an attempt that is under way may write the entry,
        // which outlives a process that ends before it is taken back.
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
    /// However it ends: also by an abort, or a panic.
    fn drop(&mut self) {
        // An update that goes on holds the entry, and ends with this.
        self.handle.stop_now();
        if let Ok(mut entry) = self.entry.try_lock() {
            *entry = Entry::Left;
        }
        self.handle.status.set(Status::deregistered());
        self.enter(Stage::Stopped);
    }
}
