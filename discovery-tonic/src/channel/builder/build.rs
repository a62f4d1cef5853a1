//! How the parts of a channel are put together.

use std::sync::Arc;

use arc_swap::ArcSwap;
use discovery_core::{Error, ErrorKind};
use http::{HeaderValue, uri::Scheme};
use tokio::runtime::Handle;
use tracing::info_span;

use super::{AGENT, ChannelBuilder};
#[cfg(feature = "tls")]
use crate::connection::tls::client::TlsClient;
use crate::{
    BalancedChannel,
    balance::Balancer,
    call::{request_limit::RequestLimit, retry::Retries, shared::Shared, user_agent::UserAgent},
    connection::{
        connector::{Connector, Transport},
        settings::FAR,
    },
    endpoint::{Wakeups, config::DriverConfig, connect_limit::ConnectLimit},
    metrics::Metrics,
    pool::{Pool, PoolConfig, following::Following},
    published::{Published, availability::Availability, overdue::Overdue},
};

impl ChannelBuilder {
    /// Builds the channel, which starts at once to follow the service and to connect.
    ///
    /// # Errors
    ///
    /// Same errors as [`BalancedChannel::new`], and [`InvalidInput`](ErrorKind::InvalidInput) if a
    /// setting is out of bounds, or if the files of the TLS settings cannot be used.
    pub fn build(mut self) -> Result<BalancedChannel, Error> {
        let runtime = self.check().map_err(|error| self.explain(error))?;
        let outlier_detection = std::mem::take(&mut self.outlier_detection).validated()?;
        let connector = self.take_connector().map_err(|error| self.explain(error))?;
        let updates = self.resolver.watch(&self.service)?;
        let wakeups = Arc::new(Wakeups::new(Metrics::new(&self.service)));
        let published = Arc::new(Published {
            resolver: Arc::downgrade(&self.resolver),
            service: self.service,
            balancer: Balancer::of(self.policy),
            availability: ArcSwap::from_pointee(Availability::Waiting),
            overview: ArcSwap::default(),
            overdue: Overdue::default(),
            wakeups,
        });
        let driver = DriverConfig {
            connects: ConnectLimit::new(self.max_concurrent_connects),
            connector,
            settings: self.endpoint_settings,
            backoff: self.backoff,
            drain: self.drain_timeout.min(FAR),
            health: self.health_check,
            connections: self.connections_per_endpoint,
            tickets: DriverConfig::tickets(self.connections_per_endpoint, outlier_detection.finds_hung()),
        };
        let config = PoolConfig {
            driver: Arc::new(driver),
            slow_start: self.slow_start.unwrap_or_default().min(FAR),
            hold: self.hold_on_mass_removal.map(|hold| hold.min(FAR)),
            outlier_detection,
            endpoint_metrics: self.endpoint_metrics,
        };
        let span = info_span!(parent: None, "channel", service = %published.service);
        let following = Following::new(self.resolver, published.service.clone(), updates);
        let task = runtime.spawn(Pool::new(Arc::clone(&published), config).run(following, span));
        Ok(BalancedChannel::from_shared(Shared {
            published,
            user_agent: UserAgent(self.user_agent.unwrap_or(HeaderValue::from_static(AGENT))),
            attempt_hook: self.attempt_hook,
            timeout: self.timeout.map(|timeout| timeout.min(FAR)),
            request_limit: self.max_requests.map(|limit| Arc::new(RequestLimit::new(limit))),
            wait: self.wait_timeout.min(FAR),
            retries: self.retry.map(Retries::new),
            replay_budget: Arc::default(),
            task: task.abort_handle(),
            runtime,
        }))
    }

    /// Checks what the setters cannot refuse, and returns the runtime of the channel's tasks.
    fn check(&self) -> Result<Handle, Error> {
        let runtime = Handle::try_current().map_err(|_| {
            Error::new(ErrorKind::NoRuntime, "a balanced channel needs a tokio runtime, and none is running here")
        })?;
        if self.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(invalid("invalid timeout 0ns: allowed are longer ones, and `None` for no timeout"));
        }
        if self.max_requests == Some(0) {
            return Err(invalid("invalid max_requests 0: allowed are 1 and more, and `None` for no limit"));
        }
        Ok(runtime)
    }

    /// Makes the connector of all endpoints, and reads the files of the TLS settings.
    fn take_connector(&mut self) -> Result<Connector, Error> {
        let transport = self.connector.take().unwrap_or(Transport::Tcp);
        #[cfg(feature = "tls")]
        if let Some(tls) = self.tls.take() {
            return Ok(Connector::with_tls(transport, TlsClient::load(tls)?));
        }
        // Nothing meant for TLS is sent in clear text.
        if self.scheme == Scheme::HTTPS && matches!(transport, Transport::Tcp) {
            return Err(invalid("https URIs without TLS: allowed are `tls` (feature `tls`) and a connector with TLS"));
        }
        Ok(Connector::plain(transport, self.scheme.clone()))
    }

    fn explain(&self, error: Error) -> Error {
        error.with_operation("connect").with_service(&self.service)
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}
