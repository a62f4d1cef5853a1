use std::{mem, sync::Arc, time::Duration};

use discovery_core::{Backoff, Error, Instance, Status, Statuses};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use tonic_health::ServingStatus;
use tracing::{info, warn};

use super::{
    builder::Plan,
    handle::{Entry, ServerHandle, Stage, left},
    orders::Order,
};

/// What a server does besides serving.
pub(super) struct Life {
    pub(super) plan: Plan,
    /// The handles only borrow it, so that it goes with the server.
    entry: Arc<Mutex<Entry>>,
    pub(super) handle: ServerHandle,
}

impl Life {
    pub(super) fn new(plan: Plan, instance: Instance) -> Self {
        let entry = Arc::new(Mutex::new(Entry::Planned(instance)));
        let handle = ServerHandle::new(plan.service.clone(), Arc::downgrade(&entry));
        Self { plan, entry, handle }
    }

    /// Registers and waits for the order to stop, then leaves the registry and gives callers time to hear of that.
    pub(super) async fn until_left(&self) -> Result<(), Error> {
        let orders = &self.handle.orders;
        // A reporter begins with SERVING.
        self.say(ServingStatus::NotServing).await;
        let registered = tokio::select! {
            biased;
            () = orders.given(Order::Stop) => Ok(()),
            error = self.stay_registered() => Err(error),
        };
        self.enter(Stage::Draining);
        self.say(ServingStatus::NotServing).await;
        let drain = async {
            let (since, drain) = (Instant::now(), self.plan.drain);
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
            () = orders.given(Order::StopNow) => {}
        }
        registered
    }

    /// Registers, and tells how the registration stands from then on; ends with an error that is final.
    async fn stay_registered(&self) -> Error {
        let mut statuses = match self.register().await {
            Ok(statuses) => statuses,
            Err(error) => return error,
        };
        self.handle.status.set(statuses.current());
        self.enter(Stage::Serving);
        while let Some(status) = statuses.changed().await {
            self.handle.status.set(status);
        }
        std::future::pending().await
    }

    /// Registers once the server is ready, as soon as the registry can be reached.
    async fn register(&self) -> Result<Statuses, Error> {
        self.plan.ready.lock().await.as_mut().await;
        self.say(ServingStatus::Serving).await;
        let mut delays = Backoff::default().delays();
        loop {
            // Locked meanwhile, so that an update goes into what is registered, or into the registration.
            let mut entry = self.entry.lock().await;
            let Entry::Planned(instance) = &*entry else { return Err(left()) };
            match self.plan.registry.register_with(&self.plan.service, instance.clone(), self.plan.claim).await {
                Ok(registration) => {
                    let statuses = registration.statuses();
                    *entry = Entry::Registered(registration);
                    return Ok(statuses);
                }
                Err(error) => {
                    self.handle.status.set(Status::lost(error.clone()));
                    if !error.is_retryable() {
                        return Err(error);
                    }
                    warn!(service = %self.plan.service, error = %error.report(), "server not registered yet");
                }
            }
            drop(entry);
            sleep(delays.next_delay()).await;
        }
    }

    /// Leaves the registry where nobody serves any more, without time for callers to hear of that.
    pub(super) async fn leave_at_once(&self) {
        // Updates end, too.
        self.handle.stop();
        self.enter(Stage::Finishing);
        self.say(ServingStatus::NotServing).await;
        tokio::select! {
            _ = self.leave() => {}
            () = self.handle.orders.given(Order::StopNow) => {}
        }
    }

    /// Leaves the registry; whether that is confirmed, where it was there at all.
    async fn leave(&self) -> Option<bool> {
        let entry = mem::replace(&mut *self.entry.lock().await, Entry::Left);
        let Entry::Registered(registration) = entry else { return None };
        let result = registration.deregister().await;
        self.handle.status.set(Status::deregistered());
        if let Err(error) = &result {
            warn!(service = %self.plan.service, error = %error.report(), "deregistering not confirmed");
        }
        Some(result.is_ok())
    }

    pub(super) fn enter(&self, stage: Stage) {
        info!(service = %self.plan.service, ?stage, "server stage");
        self.handle.stage.send_replace(stage);
    }

    async fn say(&self, status: ServingStatus) {
        if let Some(health) = &self.plan.health {
            health.say(status).await;
        }
    }
}

impl Drop for Life {
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
