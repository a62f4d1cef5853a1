//! The settings of a channel. [`build`](mod@build) puts its parts together.

mod build;

use std::{fmt, sync::Arc, time::Duration};

use discovery_core::{Backoff, Error, ErrorKind, Instance, Resolver, ServiceName};
use http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, Write};
use tower::Service;

#[cfg(feature = "tls")]
use crate::connection::tls::config::ChannelTls;
use crate::{
    balance::{Policy, PowerOfTwo},
    call::{
        observer::{AttemptHook, AttemptReport},
        retry::RetryPolicy,
    },
    connection::{connector::Transport, settings::EndpointSettings},
    endpoint::config::EndpointHook,
    error::BoxError,
    pool::outlier_detection::OutlierDetection,
};

/// Builds a [`BalancedChannel`](crate::BalancedChannel).
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
    connector: Option<Transport>,
    scheme: Scheme,
    #[cfg(feature = "tls")]
    tls: Option<ChannelTls>,
    endpoint_settings: Option<EndpointHook>,
    user_agent: Option<HeaderValue>,
    backoff: Backoff,
    attempt_hook: Option<Arc<AttemptHook>>,
    timeout: Option<Duration>,
    max_requests: Option<usize>,
    wait_timeout: Duration,
    retry: Option<RetryPolicy>,
    drain_timeout: Duration,
    hold_on_mass_removal: Option<Duration>,
    outlier_detection: OutlierDetection,
    connections_per_endpoint: usize,
    max_concurrent_connects: usize,
    slow_start: Option<Duration>,
    health_check: Option<String>,
    endpoint_metrics: bool,
}

impl ChannelBuilder {
    pub(crate) fn new(resolver: impl Resolver, service: ServiceName) -> Self {
        Self {
            resolver: Arc::new(resolver),
            service,
            policy: Arc::new(PowerOfTwo),
            connector: None,
            scheme: Scheme::HTTP,
            #[cfg(feature = "tls")]
            tls: None,
            endpoint_settings: None,
            user_agent: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(30))
                .expect("1 s to 30 s is a valid backoff"),
            attempt_hook: None,
            timeout: None,
            max_requests: None,
            wait_timeout: Duration::from_secs(10),
            retry: None,
            drain_timeout: Duration::from_secs(30),
            hold_on_mass_removal: Some(Duration::from_secs(15)),
            outlier_detection: OutlierDetection::default(),
            connections_per_endpoint: 1,
            max_concurrent_connects: 100,
            slow_start: None,
            health_check: None,
            endpoint_metrics: false,
        }
    }

    pub(super) fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Sets how endpoints are picked; default [`PowerOfTwo`].
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Sets how a connection to an endpoint's address is opened; default
    /// [`TcpConnector`](crate::TcpConnector). Without `tls` (feature `tls`), the default connector
    /// refuses endpoints with an `https` origin, so that nothing meant for TLS is sent in clear
    /// text.
    ///
    /// A custom connector provides unix sockets, in-memory connections for tests on a paused clock,
    /// or a TLS library of your own (which must negotiate ALPN `h2`). It is called with
    /// `http://address` or, if [`EndpointSettings::origin`] has that scheme and the channel adds no
    /// TLS itself, with `https://address`.
    ///
    /// Each call may take the endpoint's [connect timeout](EndpointSettings::connect_timeout) in
    /// total. If the connector panics, that attempt fails. It should not block, since that occupies
    /// a thread of the runtime.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send + 'static,
    {
        self.connector = Some(Transport::custom(connector));
        self
    }

    /// Uses TLS for all connections, on top of the connector's; default `None`, plain text.
    ///
    /// ```no_run
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::{BalancedChannel, ChannelTls};
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .tls(ChannelTls::new().ca_file("ca.pem"))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: impl Into<Option<ChannelTls>>) -> Self {
        self.tls = tls.into();
        self
    }

    /// Sets a hook that returns how to connect an instance; default [`EndpointSettings::default`].
    /// It is called before each attempt to connect, so a new answer does not affect existing
    /// connections.
    ///
    /// The hook may block: it runs on tokio's blocking pool. If it panics or takes longer than 1 s,
    /// that attempt fails; a late answer is used by the next attempt.
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

    /// Sets a product to put before this library's name in the `user-agent` of every request;
    /// default none.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if it is not a valid header value.
    pub fn user_agent(mut self, agent: &str) -> Result<Self, Error> {
        let agent = HeaderValue::from_str(&format!("{agent} {AGENT}"));
        self.user_agent = Some(agent.map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "invalid user agent: only printable ASCII is allowed")
                .with_source(error)
        })?);
        Ok(self)
    }

    /// Sets the backoff between attempts to connect an endpoint, with full jitter: each wait is
    /// random, up to a limit that by default grows from 1 s to 30 s. A connection that got an
    /// answer or lasted for 1 s is re-established without a wait.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how many connections each endpoint has, from 1 to 64 (other values are clamped);
    /// default 1.
    ///
    /// More than one helps if a single connection is the limit: more concurrent calls than the peer
    /// allows streams, or more bytes than one core moves through a connection. Requests are spread
    /// over all of them. An endpoint's share does not depend on how many of its connections are up,
    /// except under a policy that ignores weights, and a probe is still one request per endpoint.
    ///
    /// The number neither grows with load nor shrinks without it. The first connection is made
    /// alone, the others once it is up.
    pub fn connections_per_endpoint(mut self, count: usize) -> Self {
        self.connections_per_endpoint = count.clamp(1, 64);
        self
    }

    /// Limits how many connections are being made at a time, at least 1; default 100. It keeps a
    /// large set that is new, or that lost all its connections at once, from causing a connection
    /// storm. At most half of the permits are used for attempts after a failed one.
    pub fn max_concurrent_connects(mut self, limit: usize) -> Self {
        self.max_concurrent_connects = limit;
        self
    }

    /// Sets how long the share of a new endpoint takes to grow from a tenth to the whole, so that
    /// the endpoint can warm up; default off.
    ///
    /// The slow start begins with the first connection, and begins again after failed attempts to
    /// connect and after an ejection. Endpoints that begin together get equal shares. It works
    /// through weights, which [`RoundRobin`](crate::balance::RoundRobin) ignores.
    pub fn slow_start(mut self, window: impl Into<Option<Duration>>) -> Self {
        self.slow_start = window.into();
        self
    }

    /// Follows the health of each endpoint (`grpc.health.v1.Health/Watch`, gRFC A17) for this gRPC
    /// service, or with an empty name for the server as a whole; default off. An endpoint that does
    /// not report SERVING gets no calls, however few are left.
    ///
    /// The check holds one stream of each connection. If the server allows fewer than three
    /// streams, the check polls once a second instead of holding one, so a change is seen up to a
    /// second later. A server without the health service counts as serving; one that does not
    /// answer the check within 2 s does not.
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health_check = Some(service.into());
        self
    }

    /// Sets the timeout of calls that have none; default `None`, no timeout. It is sent to the
    /// server as `grpc-timeout`, as if the caller had set it.
    ///
    /// The timeout covers the whole call, with its waits, attempts and the response. That includes
    /// streams: give those that last longer a timeout of their own
    /// ([`tonic::Request::set_timeout`]), which always wins.
    ///
    /// Unlike a timeout of a tower layer, it ends the call with `DEADLINE_EXCEEDED`, the reason,
    /// and [`Tried`](crate::Tried).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use std::time::Duration;
    /// use discovery_tonic::BalancedChannel;
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .timeout(Duration::from_secs(2))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Limits the calls in flight on the whole channel, with all its clones; default `None`, no
    /// limit. A call is in flight from its start until its response has ended, waits included.
    ///
    /// A further call fails at once with `UNAVAILABLE`, also if it asks to wait: this is the
    /// circuit breaker `max_requests` of gRFC A32, which keeps callers from piling up in front of a
    /// service that is too slow. [`EndpointSettings::concurrency_limit`] limits single endpoints.
    pub fn max_requests(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.max_requests = limit.into();
        self
    }

    /// Sets how long a call without a deadline waits for an endpoint, over all its waits; default
    /// 10 s.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// Sets the policy by which calls that may have been processed are repeated; default none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::{BalancedChannel, RetryPolicy};
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .retry(RetryPolicy::new(3)?)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn retry(mut self, policy: impl Into<Option<RetryPolicy>>) -> Self {
        self.retry = policy.into();
        self
    }

    /// Sets a hook that is called with each attempt once its outcome is known: with the headers of
    /// the response, or without them. Default none.
    ///
    /// It is for spans, logs and statistics by instance; it changes nothing. It runs in the task of
    /// the caller, where its span is the current one, and delays the call, so it must not block. A
    /// panic of the hook is logged once, and does not affect the call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::{AttemptOutcome, BalancedChannel};
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .on_attempt(|attempt| {
    ///         if let AttemptOutcome::Failed(code) = attempt.outcome {
    ///             let id = attempt.instance.id();
    ///             println!("attempt {} at {id}: {code:?}", attempt.number);
    ///         }
    ///     })
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_attempt(mut self, hook: impl Fn(&AttemptReport<'_>) + Send + Sync + 'static) -> Self {
        self.attempt_hook = Some(AttemptHook::new(hook));
        self
    }

    /// Sets how long the calls of a removed endpoint may continue before its connection is cut;
    /// default 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Sets how long connected endpoints are kept after a mass removal; default 15 s, the default
    /// lifetime of a lease. `None` disables it.
    ///
    /// A mass removal is more than half of at least three instances gone in one step, or over all
    /// steps around an outage of the registry: a registry may come back with all leases expired.
    /// Instances that are replaced are not held: a step that adds as many as it removes is no mass
    /// removal, and a hold ends once as many other endpoints take calls as there were before. It
    /// also ends with the endpoint's connection. An outage extends a hold by its length.
    pub fn hold_on_mass_removal(mut self, duration: impl Into<Option<Duration>>) -> Self {
        self.hold_on_mass_removal = duration.into();
        self
    }

    /// Sets when endpoints are ejected, and for how long; `None` disables it.
    pub fn outlier_detection(mut self, detection: impl Into<Option<OutlierDetection>>) -> Self {
        self.outlier_detection = detection.into().unwrap_or_else(OutlierDetection::off);
        self
    }

    /// Sets whether each endpoint has metrics of its own, labelled with `service` and
    /// `instance_id`; default `false`. The [front page](crate#observability) lists them.
    ///
    /// They cost four series for each instance that was ever in the set, so they suit services
    /// whose instances keep their ids. The `metrics` crate cannot remove a series: once an endpoint
    /// has left, its gauges are 0 and its counters stay. An exporter's idle timeout removes them,
    /// but also any other series that does not change for that long, and those that the channel
    /// still holds do not come back.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// # use discovery_core::FixedResolver;
    /// use discovery_tonic::BalancedChannel;
    ///
    /// # let resolver = FixedResolver::new([]);
    /// let channel = BalancedChannel::builder(resolver, "payments".parse()?)
    ///     .endpoint_metrics(true)
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "metrics")]
    pub fn endpoint_metrics(mut self, enabled: bool) -> Self {
        self.endpoint_metrics = enabled;
        self
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

/// In the format of the gRPC protocol: `grpc-` language `-` variant `/` version.
const AGENT: &str = concat!("grpc-rust-discovery/", env!("CARGO_PKG_VERSION"));
