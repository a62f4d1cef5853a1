use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use discovery_core::{Backoff, Error, ErrorKind, Instance, Resolver, ServiceName};
use http::{HeaderValue, Uri};
use hyper::rt::{Read, Write};
use tower::Service;
use tracing::info_span;

use super::BalancedChannel;
use crate::{
    balance::{Balancer, Policy, PowerOfTwo},
    call::{
        retry::{Retries, RetryPolicy},
        shared::Shared,
        user_agent::UserAgent,
    },
    connection::{
        connector::Connector,
        settings::{EndpointSettings, FAR},
    },
    endpoint::{
        Wakeups,
        config::{DriverConfig, EndpointHook},
        connect_limit::ConnectLimit,
    },
    error::BoxError,
    metrics::Metrics,
    pool::{Pool, PoolConfig, following::Following, outlier_detection::OutlierDetection},
    published::{Published, availability::Availability, overdue::Overdue},
};

/// Builds a [`BalancedChannel`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// use std::time::Duration;
/// use discovery_core::FixedResolver;
/// use discovery_tonic::{BalancedChannel, balance::RoundRobin};
///
/// let channel = BalancedChannel::builder(FixedResolver::new([]), "payments".parse()?)
///     .policy(RoundRobin::new())
///     .wait_timeout(Duration::from_secs(2))
///     .build()?;
/// assert!(channel.endpoints().is_empty());
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct ChannelBuilder {
    resolver: Arc<dyn Resolver>,
    service: ServiceName,
    policy: Arc<dyn Policy>,
    connector: Option<Connector>,
    endpoint_settings: Option<EndpointHook>,
    user_agent: Option<HeaderValue>,
    backoff: Backoff,
    wait_timeout: Duration,
    retry: Option<RetryPolicy>,
    drain_timeout: Duration,
    hold_on_mass_removal: Option<Duration>,
    outlier_detection: OutlierDetection,
    connections_per_endpoint: usize,
    max_concurrent_connects: usize,
    slow_start: Option<Duration>,
    health_check: Option<String>,
}

impl ChannelBuilder {
    pub(crate) fn new(resolver: impl Resolver, service: ServiceName) -> Self {
        Self {
            resolver: Arc::new(resolver),
            service,
            policy: Arc::new(PowerOfTwo),
            connector: None,
            endpoint_settings: None,
            user_agent: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30)).expect("1 s to 30 s is a backoff"),
            wait_timeout: Duration::from_secs(10),
            retry: None,
            drain_timeout: Duration::from_secs(30),
            hold_on_mass_removal: Some(Duration::from_secs(15)),
            outlier_detection: OutlierDetection::default(),
            connections_per_endpoint: 1,
            max_concurrent_connects: 100,
            slow_start: None,
            health_check: None,
        }
    }

    /// How endpoints are picked; by default [`PowerOfTwo`].
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// How connections are opened, from the endpoint's address to its bytes; by default plain TCP,
    /// without delay and with keepalive. It refuses endpoints with an `https` origin, so that
    /// nothing meant for TLS is sent in clear text.
    ///
    /// A connector has the endpoint's [connect timeout](EndpointSettings::connect_timeout) for all
    /// that it does; where it panics the attempt fails. It should not block: that costs a thread of
    /// the runtime.
    ///
    /// This is where TLS comes in (a connector that offers ALPN `h2`), unix sockets, or a
    /// connection in memory for tests on a paused clock. The connector is given `http://address`
    /// or, with the scheme of [`EndpointSettings::origin`], `https://address`.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
    {
        self.connector = Some(Connector::custom(connector));
        self
    }

    /// How each endpoint is connected, from its instance; asked before every attempt, so that a
    /// new answer does not affect connections that are there.
    ///
    /// It may block, since it runs on tokio's blocking pool; an attempt fails where it panics, or
    /// takes longer than 1 s, after which the next attempt takes its answer.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use std::time::Duration;
    /// use discovery_tonic::{BalancedChannel, EndpointSettings};
    ///
    /// // Two connections to each endpoint, and none of them older than an hour or so.
    /// let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(3600))?;
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .connections_per_endpoint(2)
    ///     .endpoint_settings(move |_| settings.clone())
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn endpoint_settings(
        mut self,
        settings: impl Fn(&Instance) -> EndpointSettings + Send + Sync + 'static,
    ) -> Self {
        self.endpoint_settings = Some(Arc::new(settings));
        self
    }

    /// What stands before this library's name in the `user-agent` of every request.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) where it is no header value.
    pub fn user_agent(mut self, agent: &str) -> Result<Self, Error> {
        let agent = HeaderValue::from_str(&format!("{agent} {AGENT}"));
        self.user_agent = Some(agent.map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "invalid user agent: allowed is printable ASCII").with_source(error)
        })?);
        Ok(self)
    }

    /// The waits between attempts to connect an endpoint, with full jitter; by default at most 1 s
    /// at first and 30 s in the end, after a good connection none.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// How many connections each endpoint has; by default 1, at least that and at most 64.
    ///
    /// More than one are of use where a single connection is the limit: more calls at once than the
    /// peer allows streams, or more bytes than one core moves through a connection. Requests are
    /// spread over all of them; an endpoint's share does not depend on how many of its connections
    /// are there, except under a policy that ignores weights, and it is probed by one request all
    /// the same.
    ///
    /// The number neither grows under load nor shrinks without. The first connection is made alone,
    /// the others once it is there.
    pub fn connections_per_endpoint(mut self, count: usize) -> Self {
        self.connections_per_endpoint = count.clamp(1, 64);
        self
    }

    /// How many connections are made at a time; by default 100, at least 1. The others wait for
    /// their turn, so that a large set that is new, or lost all its connections at once, is no
    /// storm. At most half of the turns are for attempts after failed ones.
    pub fn max_concurrent_connects(mut self, limit: usize) -> Self {
        self.max_concurrent_connects = limit;
        self
    }

    /// How long the share of a new endpoint takes to grow from a tenth to its whole, so that it can
    /// warm up; by default not at all. It begins with the first connection, and anew after failed
    /// attempts to connect and after an ejection; endpoints that begin together share alike. It
    /// works by weight, which [`RoundRobin`](crate::balance::RoundRobin) ignores.
    pub fn slow_start(mut self, window: impl Into<Option<Duration>>) -> Self {
        self.slow_start = window.into();
        self
    }

    /// Follows the health of each endpoint (`grpc.health.v1.Health/Watch`, gRFC A17) of this gRPC
    /// service, or with the empty name of the server as a whole: one that does not say SERVING gets
    /// no calls, however many are left. By default off.
    ///
    /// It takes one stream of each connection; where the server allows only one or two at once,
    /// only for a moment in a second, so that it is as late. A server without health checks counts
    /// as serving, one that does not answer the check within 2 s does not.
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health_check = Some(service.into());
        self
    }

    /// How long a call without a deadline waits for an endpoint, all its waits together; by default
    /// 10 s.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// Repeats calls that may have been processed, by this policy; by default none are.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::{BalancedChannel, RetryPolicy};
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?).retry(RetryPolicy::new(3)?).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn retry(mut self, policy: impl Into<Option<RetryPolicy>>) -> Self {
        self.retry = policy.into();
        self
    }

    /// How long the calls of a removed endpoint may go on before its connection is cut; by default
    /// 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How long endpoints that are connected are held where more than half of at least three vanish
    /// in one step, or around an outage of the registry, as they do when it comes back having
    /// expired everybody; by default 15 s, the default lifetime of a lease. `None` turns it off.
    ///
    /// Instances that are replaced are not held: not if the same step adds as many as it removes,
    /// and no longer once as many others get calls as there were before. An outage extends a hold
    /// by its length.
    pub fn hold_on_mass_removal(mut self, duration: impl Into<Option<Duration>>) -> Self {
        self.hold_on_mass_removal = duration.into();
        self
    }

    /// When endpoints are ejected, and for how long; `None` turns it off.
    pub fn outlier_detection(mut self, detection: impl Into<Option<OutlierDetection>>) -> Self {
        self.outlier_detection = detection.into().unwrap_or_else(OutlierDetection::off);
        self
    }

    /// Builds the channel, which starts to follow the service and to connect at once.
    ///
    /// # Errors
    ///
    /// Those of [`BalancedChannel::new`], and [`InvalidInput`](ErrorKind::InvalidInput) where the
    /// outlier detection is out of bounds.
    pub fn build(self) -> Result<BalancedChannel, Error> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| {
            let error =
                Error::new(ErrorKind::NoRuntime, "a balanced channel needs a tokio runtime, and none is running here");
            error.with_operation("connect").with_service(&self.service)
        })?;
        let outlier_detection = self.outlier_detection.validated()?;
        let updates = self.resolver.watch(&self.service)?;
        let wakeups = Arc::new(Wakeups::new(Metrics::new(&self.service)));
        let published = Arc::new(Published {
            service: self.service,
            balancer: Balancer::of(self.policy),
            availability: ArcSwap::from_pointee(Availability::Waiting),
            rows: ArcSwap::default(),
            overdue: Overdue::default(),
            wakeups,
        });
        let driver = DriverConfig {
            connects: ConnectLimit::new(self.max_concurrent_connects),
            connector: self.connector.unwrap_or_else(Connector::plain_tcp),
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
        };
        let span = info_span!(parent: None, "channel", service = %published.service);
        let following = Following::new(self.resolver, published.service.clone(), updates);
        let task = runtime.spawn(Pool::new(Arc::clone(&published), config).run(following, span));
        Ok(BalancedChannel::from_shared(Shared {
            published,
            user_agent: UserAgent(self.user_agent.unwrap_or(HeaderValue::from_static(AGENT))),
            wait: self.wait_timeout.min(FAR),
            retries: self.retry.map(Retries::new),
            replay_budget: Arc::default(),
            task: task.abort_handle(),
            runtime,
        }))
    }
}

impl fmt::Debug for ChannelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelBuilder")
            .field("service", &self.service)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// By the form of the gRPC protocol: `grpc-` language `-` variant `/` version.
const AGENT: &str = concat!("grpc-rust-discovery/", env!("CARGO_PKG_VERSION"));
