//! What a server does besides serving: it registers, reports its health, and leaves the registry
//! when it stops.

use std::{sync::Arc, time::Duration};

use discovery_core::{Address, Backoff, Delays, Error, ErrorKind, Instance, InstanceId, Status};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, sleep},
};
use tonic_health::ServingStatus;
use tracing::{debug, info, warn};

use super::{
    config::ServerConfig,
    entries::{Departure, Entries},
    handle::{ServerHandle, Stage},
    readiness::{NotServing, Readiness},
    registration_metric::RegistrationMetric,
    shutdown::ShutdownKind,
    standing::{Standing, Start, combined, is_missing, start},
};

/// The state of a server besides its connections.
pub(super) struct Lifecycle {
    pub(super) config: ServerConfig,
    id: InstanceId,
    address: Address,
    /// Handles hold only a weak reference, so that the entries are dropped with the server.
    entries: Arc<Mutex<Entries>>,
    standings: watch::Receiver<Vec<Standing>>,
    /// Notified if an entry must be registered again, because one that was left behind is in its
    /// way.
    blocked: Notify,
    /// One for each service, in the order of the services.
    metrics: Vec<RegistrationMetric>,
    pub(super) handle: ServerHandle,
}

impl Lifecycle {
    pub(super) fn new(config: ServerConfig, instance: Instance) -> Self {
        let id = instance.id().clone();
        let address = instance.address().clone();
        let entries = Entries::new(&config, instance);
        let standings = entries.standings();
        let entries = Arc::new(Mutex::new(entries));
        let handle = ServerHandle::new(config.services.first().clone(), Arc::downgrade(&entries));
        let metrics = config.services.iter().map(RegistrationMetric::new).collect();
        Self { config, id, address, entries, standings, blocked: Notify::new(), metrics, handle }
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
            let departure = self.leave().await;
            sleep(rest(departure, self.config.drain_time, since)).await;
        };
        tokio::select! {
            () = drain => {}
            // A request to stop at once ends the drain time.
            () = shutdown.given(ShutdownKind::StopNow) => {}
        }
        registered
    }

    /// Registers once the server is ready, and from then on follows its health and reports the
    /// status of its registrations. Returns only with an error that a retry cannot solve.
    async fn stay_registered(&self) -> Error {
        self.config.ready.lock().await.as_mut().await;
        self.say(ServingStatus::Serving).await;
        let error = tokio::select! {
            error = self.keep_entries() => error,
            error = self.report() => error,
        };
        if error.kind() != ErrorKind::Unsupported {
            return error;
        }
        let message =
            "the backend does not support this registration; to serve without one, use `register_if_supported`";
        Error::new(ErrorKind::Unsupported, message).with_operation("register").with_source(error)
    }

    /// Keeps the entries as the user and the readiness want them. Returns only with an error that
    /// keeps the server from starting.
    async fn keep_entries(&self) -> Error {
        // What the server itself reports before this point is not followed.
        let followed = self.config.health.as_ref().filter(|_| self.config.not_serving != NotServing::Stay);
        let mut readiness = Readiness::follow(followed).await;
        let mut delays = Backoff::default().delays();
        let mut reported = None;
        loop {
            let mut entries = self.entries.lock().await;
            // Read under the lock, for which other changes may have had to wait.
            let is_serving = readiness.is_serving();
            let presence = self.config.not_serving.presence(is_serving);
            let errors = entries.follow(presence).await;
            drop(entries);
            let failed = errors.into_iter().find(|error| !error.is_retryable() && error.kind() != ErrorKind::Conflict);
            let is_starting = self.handle.stage() == Stage::Starting;
            match failed {
                None => reported = None,
                Some(error) if is_starting => return error,
                Some(error) if reported.replace(error.kind()) != Some(error.kind()) => {
                    warn!(service = %self.config.services, error = %error.report(), "registration does not follow health");
                }
                Some(_) => {}
            }
            self.until_due(&mut readiness, is_serving, reported, &mut delays).await;
        }
    }

    /// Waits until the entries must be brought to what is wanted: after a change of the readiness,
    /// or after a pause if that failed with an error that somebody may correct.
    async fn until_due(
        &self,
        readiness: &mut Readiness,
        is_serving: bool,
        failed: Option<ErrorKind>,
        delays: &mut Delays,
    ) {
        let is_worth_a_retry =
            matches!(failed, Some(ErrorKind::Internal | ErrorKind::PermissionDenied | ErrorKind::Unauthenticated));
        let retry = async {
            if !is_worth_a_retry {
                self.blocked.notified().await;
            }
            sleep(delays.next_delay()).await;
        };
        tokio::select! {
            () = readiness.changed(is_serving) => {
                debug!(service = %self.config.services, is_serving = !is_serving, "readiness changed");
                delays.reset();
            }
            () = retry => {}
        }
    }

    /// Reports the status of the registrations, and that the server serves once all are written.
    /// Returns only with an error that keeps the server from starting.
    async fn report(&self) -> Error {
        let mut changes = self.standings.clone();
        loop {
            let mut standings = changes.borrow_and_update().clone();
            loop {
                let observe = |standing: &Standing| {
                    let status = standing.observe();
                    (status, standing.was_registered())
                };
                let observed: Vec<_> = standings.iter().map(observe).collect();
                let statuses: Vec<Status> = observed.iter().map(|(status, _)| status.clone()).collect();
                self.handle.status.set(combined(&statuses));
                for (metric, status) in self.metrics.iter().zip(&statuses) {
                    metric.set(status.is_registered());
                }
                if standings.iter().any(Standing::is_blocked_by_leftover) {
                    self.blocked.notify_one();
                }
                if self.handle.stage() == Stage::Starting {
                    match start(&observed, self.config.claim, self.config.if_supported) {
                        Start::Failed(number, error) => {
                            let service =
                                self.config.services.iter().nth(number).expect("there is one status per service");
                            return error.with_service(service);
                        }
                        Start::Served => self.started(&statuses),
                        Start::Waiting => {}
                    }
                }
                tokio::select! {
                    // First, since the status of a registration that was given up is final.
                    biased;
                    _ = changes.changed() => break,
                    () = Standing::any_changed(&mut standings) => {}
                }
            }
        }
    }

    fn started(&self, statuses: &[Status]) {
        let missing = statuses.iter().find_map(|status| match status {
            Status::Lost { error, .. } if is_missing(error, self.config.if_supported) => Some(error),
            _ => None,
        });
        if let Some(error) = missing {
            info!(service = %self.config.services, error = %error.report(), "serving without registering");
        }
        self.enter(Stage::Serving);
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

    async fn leave(&self) -> Departure {
        // Also if nothing is registered yet: an attempt in progress may write an entry, which would
        // outlive a process that ends before the entry is removed again.
        let departure = self.entries.lock().await.leave().await;
        self.metrics.iter().for_each(|metric| metric.set(false));
        self.handle.status.set(Status::deregistered());
        departure
    }

    pub(super) fn enter(&self, stage: Stage) {
        info!(service = %self.config.services, id = %self.id, address = %self.address, ?stage, "server stage");
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
        // A running update holds the lock of the entries; this ends it.
        self.handle.stop_now();
        if let Ok(mut entries) = self.entries.try_lock() {
            entries.abandon();
        }
        self.handle.status.set(Status::deregistered());
        self.enter(Stage::Stopped);
    }
}

/// Returns how long clients still need to notice that the server left, which it began at `since`.
fn rest(departure: Departure, drain: Duration, since: Instant) -> Duration {
    match departure {
        Departure::Confirmed(since) => drain.saturating_sub(since.elapsed()),
        Departure::NeverListed => Duration::ZERO,
        // Waiting longer will not inform clients either.
        Departure::Unconfirmed => drain.saturating_sub(since.elapsed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_drain_time_begins_when_the_last_client_could_have_learned_that_the_server_left() {
        let drain = Duration::from_secs(5);
        let before = Instant::now();
        sleep(Duration::from_secs(2)).await;
        let asked = Instant::now();
        sleep(Duration::from_secs(1)).await;
        for (departure, expected) in [
            (Departure::NeverListed, 0),
            (Departure::Confirmed(Instant::now()), 5),
            (Departure::Confirmed(before), 2),
            (Departure::Unconfirmed, 4),
        ] {
            assert_eq!(rest(departure, drain, asked), Duration::from_secs(expected), "{departure:?}");
        }
        sleep(drain).await;
        assert_eq!(rest(Departure::Confirmed(before), drain, asked), Duration::ZERO);
    }
}
