//! One connection attempt: the user's hook, then the connector and the HTTP/2 handshake.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::timeout,
};
use tracing::{Instrument, Span};

use super::{Endpoint, config::DriverConfig};
use crate::{
    connection::{Allowance, Connection, end::End, settings::EndpointSettings},
    error::{BoxError, panic_text},
    metrics::Event,
};

/// The user's hook while it runs. It is not called again before it has returned, so that a hook
/// that blocks occupies one thread at most.
#[derive(Default)]
pub(super) struct PendingHook(Option<OwnedTask<EndpointSettings>>);

/// A task that is aborted on drop.
pub(super) struct OwnedTask<T>(pub(super) JoinHandle<T>);

impl<T> Drop for OwnedTask<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PendingHook {
    /// The settings of an endpoint, as the user's hook returns them. If the hook panics the attempt
    /// fails. If the hook blocks it fails as well, so that it does not hold its connect permit.
    async fn settings(&mut self, endpoint: &Endpoint, config: &DriverConfig) -> Result<EndpointSettings, BoxError> {
        let mut settings = match config.settings.clone() {
            None => EndpointSettings::default(),
            Some(hook) => {
                let asking = self.0.get_or_insert_with(|| {
                    let instance = endpoint.instance();
                    let span = Span::current();
                    OwnedTask(spawn_blocking(move || span.in_scope(|| hook(&instance))))
                });
                let Ok(asked) = timeout(HOOK, &mut asking.0).await else {
                    return Err(format!("the endpoint settings hook did not return within {HOOK:?}").into());
                };
                self.0 = None;
                asked.map_err(failed_task)?
            }
        };
        settings.slow_pings(endpoint.complaints());
        Ok(settings)
    }
}

/// Makes one connection attempt. The connection takes `tickets` requests before it answers, by
/// default as many as a new endpoint.
///
/// The connector is the user's code as well, so the attempt runs in a task of its own: if it blocks
/// its thread, the control task is not affected.
pub(super) async fn connect(
    endpoint: &Arc<Endpoint>,
    config: &Arc<DriverConfig>,
    hook: &mut PendingHook,
    tickets: Option<u32>,
) -> Result<Connection, BoxError> {
    let connected = match hook.settings(endpoint, config).await {
        Ok(settings) => {
            // If the endpoint has answered before, the pool lifts this limit before it publishes
            // the connection.
            let tickets = tickets.unwrap_or(config.tickets);
            let attempt = attempt(Arc::clone(endpoint), Arc::clone(config), settings, tickets).in_current_span();
            let mut attempt = OwnedTask(tokio::spawn(attempt));
            (&mut attempt.0).await.unwrap_or_else(|error| Err(failed_task(error)))
        }
        Err(error) => Err(error),
    };
    match &connected {
        Ok(_) => {
            endpoint.attempt_succeeded();
            endpoint.wakeups.metrics.count(Event::Connect);
        }
        Err(error) => {
            endpoint.attempt_failed(error);
            endpoint.wakeups.metrics.count(Event::ConnectFailure);
        }
    }
    connected
}

async fn attempt(
    endpoint: Arc<Endpoint>,
    config: Arc<DriverConfig>,
    settings: EndpointSettings,
    tickets: u32,
) -> Result<Connection, BoxError> {
    let disconnected = Arc::clone(&endpoint);
    let allowance = Allowance {
        // The health check needs a stream of its own.
        reserved: u32::from(config.health.is_some()),
        tickets,
    };
    let complaints = endpoint.complaints();
    let ended = move |end: &End| disconnected.disconnected(end, complaints);
    let waiters = &endpoint.wakeups.waiters;
    let first_address = endpoint.failed_attempts();
    Connection::open(&config.connector, &endpoint.address, &settings, waiters, allowance, first_address, ended).await
}

fn failed_task(error: JoinError) -> BoxError {
    match error.try_into_panic() {
        Ok(panic) => format!("the connector or the endpoint settings hook panicked: {}", panic_text(&*panic)).into(),
        Err(_) => "the runtime is shutting down".into(),
    }
}

/// How long an attempt waits for the user's hook.
const HOOK: Duration = Duration::from_secs(1);
