//! The public face of the channel: [`BalancedChannel`], which generated clients call, and its
//! [`builder`].
//!
//! A channel itself holds only a picker. What its clones and its calls share is in `call/`
//! ([`Shared`]); what calls read is published by the pool, which the builder starts.

pub(crate) mod builder;
mod from_uris;
pub(crate) mod http;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

#[cfg(feature = "tls")]
use ::http::uri::Scheme;
use ::http::{Request, Response};
use discovery_core::{Error, ErrorKind, Resolver, ServiceName};
use futures::future::BoxFuture;
use tokio::time;
use tonic::Status;
use tower::Service;

use crate::{
    balance::BalancerHandle,
    call::{Call, Protocol, response::ResponseBody, shared::Shared},
    published::{availability::Availability, endpoints::Endpoints, status::ChannelStatus, target::Target},
};
use builder::ChannelBuilder;
use from_uris::Servers;

/// A channel for any generated tonic client that spreads requests over the live instances of a
/// service.
///
/// Cloning is cheap, and clones share everything. One control task follows the set, connects
/// endpoints, replaces lost connections and ejects endpoints that fail or hang, with or without
/// traffic. It ends with the last clone and the last call. It runs on the tokio runtime that the
/// channel was built on: once that runtime has shut down, calls fail at once with `UNAVAILABLE`.
///
/// The channel balances by a [`Policy`](crate::balance::Policy), and it promises:
///
/// - **B1** A request goes to an endpoint that is connected, whose SETTINGS have arrived, that is
///   below its stream limit and that is not ejected. (B8 has the two exceptions: single requests
///   that probe an ejected endpoint, and a set of which less than half is left.)
/// - **B2** A request that provably was not processed is sent again, within its deadline and to
///   another endpoint if there is one, provided that its body is still at hand. Bodies are kept
///   until the response headers arrive: up to 256 KiB per call and 32 MiB per channel, where each
///   frame of a stream counts 64 bytes more than its length. A single message of up to 8 KiB is
///   always kept. Any other request is repeated only if a [`RetryPolicy`](crate::RetryPolicy)
///   allows it.
/// - **B3** No call outlives its deadline, including waits, attempts and the response body. At the
///   deadline it fails with `DEADLINE_EXCEEDED`, whatever the server sent. A call waits only before
///   the first set, while an endpoint makes its first attempt to connect, or while all endpoints
///   are at their stream limit; without a deadline it waits at most 10 s
///   ([`ChannelBuilder::wait_timeout`]). Otherwise it fails at once with `UNAVAILABLE` and the
///   reason, unless it asks to wait ([`WaitForReady`](crate::WaitForReady)). Calls that wait for a
///   free stream are served in order of arrival.
/// - **B4** Once [`endpoints`](Self::endpoints) no longer shows an endpoint, no call started after
///   that goes there. Its requests and streams in flight complete, within a drain limit
///   ([`ChannelBuilder::drain_timeout`]).
/// - **B5** No update closes the connection of an unchanged endpoint or resets its statistics.
/// - **B6** While the registry is unreachable, traffic continues. If most of the set vanishes in
///   one step, for example because a registry comes back with all leases expired, the connected
///   endpoints are held for a while ([`ChannelBuilder::hold_on_mass_removal`]).
/// - **B7** Discovery and connecting continue while there is no traffic.
/// - **B8** An endpoint that keeps failing or hangs is ejected, and later probed with single
///   requests ([`OutlierDetection`](crate::OutlierDetection)). Ejection compares an endpoint with
///   the rest of the set: what all endpoints do, such as slow calls, ejects nobody. At most half of
///   the connected endpoints are ejected at a time, and if less than half are left, all are used.
///   An endpoint that reports NOT_SERVING gets no calls while it does, if
///   [`ChannelBuilder::health_check`] is set.
/// - **B9** Each response names the instance that served it and those tried before
///   ([`ServedBy`](crate::ServedBy)); each failure names the instances tried
///   ([`Tried`](crate::Tried)). Both are typed values, never part of a message or of metadata,
///   which would travel on.
/// - **B10** Deploying a new version under load, server after server, fails no call, provided that
///   each server deregisters, keeps serving for a drain time, and then closes its connections
///   gracefully, as `RegisteredServer` does (feature `server`).
/// - **B11** One bad call, peer, metadata label or hook costs at most that call or that endpoint,
///   never the connections of others or the control task. A hook or connector that
///   panics or blocks costs only attempts to connect its endpoint. If the resolver panics or its
///   stream ends, the set stays as last known and the service is watched again. If the control task
///   panics, it restarts.
///
/// # Deadlines
///
/// Give each call a deadline with `Request::set_timeout`, or all of them with the channel's default
/// timeout. Do not wrap the channel into `tower::timeout::Timeout`, nor the call into
/// `tokio::time::timeout`: those drop the call, and what it knows goes with it. The error is then
/// that of the wrapper, whose code is `UNKNOWN`, with neither the reason nor the instances
/// ([`Tried`](crate::Tried)); the server does not know the deadline; and no retry fits into it.
///
/// ```no_run
/// # use std::{error::Error, sync::Arc};
/// # use discovery_core::Backend;
/// # async fn example(backend: Arc<dyn Backend>) -> Result<(), Box<dyn Error>> {
/// use std::time::Duration;
/// use discovery_tonic::BalancedChannel;
/// use greeter::{GreeterClient, GreetRequest};
/// use tonic::Request;
///
/// let channel = BalancedChannel::new(backend, "greeter".parse()?)?;
/// let mut greeter = GreeterClient::new(channel);
/// let mut request = Request::new(GreetRequest::default());
/// request.set_timeout(Duration::from_secs(2));
/// greeter.greet(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BalancedChannel {
    shared: Arc<Shared>,
    picker: BalancerHandle<Target>,
}

impl BalancedChannel {
    /// Returns a channel over the instances of a service, with the defaults of [`ChannelBuilder`].
    ///
    /// Never waits. The channel starts at once to follow the service and to connect.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime, and the errors of
    /// [`Resolver::watch`].
    pub fn new(resolver: impl Resolver, service: ServiceName) -> Result<Self, Error> {
        Self::builder(resolver, service).build()
    }

    /// Returns a builder of a channel over the instances of a service.
    pub fn builder(resolver: impl Resolver, service: ServiceName) -> ChannelBuilder {
        ChannelBuilder::new(resolver, service)
    }

    /// Returns a builder of a channel over a fixed set of servers, in place of tonic's
    /// `Channel::balance_list`: no registry is needed, and none is asked.
    ///
    /// Allowed are `http://host` and `http://host:port`; the default port is 80. All URIs may have
    /// the scheme `https` instead, with the default port 443: with the feature `tls` the channel
    /// then uses `ChannelTls::new()` unless the builder gets another, and without it the builder
    /// needs a connector with TLS. The URIs are the
    /// instances of one service, which takes its name in logs, metrics and errors from the host of
    /// the first URI, such as `payments.internal` or `10.0.0.1`. In an IPv6 address the name has
    /// `-` in place of `:`. For another name, use [`builder`](Self::builder) with a
    /// [`FixedResolver`](discovery_core::FixedResolver).
    ///
    /// A host that is a DNS name is one endpoint, however many addresses it has. Each attempt to
    /// connect resolves it again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// use discovery_tonic::BalancedChannel;
    ///
    /// let uris = ["http://10.0.0.1:50051", "http://10.0.0.2:50051"];
    /// let channel = BalancedChannel::from_uris(uris)?.connections_per_endpoint(2).build()?;
    /// assert_eq!(channel.service().as_str(), "10.0.0.1");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) if there is no URI, or if one has another scheme,
    /// user info, a path, a query or a fragment, or a host or port that an
    /// [`Address`](discovery_core::Address) refuses.
    pub fn from_uris<U: AsRef<str>>(uris: impl IntoIterator<Item = U>) -> Result<ChannelBuilder, Error> {
        let Servers { resolver, service, scheme } = from_uris::servers(uris)?;
        let builder = ChannelBuilder::new(resolver, service);
        #[cfg(feature = "tls")]
        let builder = match scheme == Scheme::HTTPS {
            true => builder.tls(crate::connection::tls::config::ChannelTls::new()),
            false => builder,
        };
        Ok(builder.scheme(scheme))
    }

    #[inline]
    fn send(
        &mut self,
        request: Request<tonic::body::Body>,
        protocol: Protocol,
    ) -> BoxFuture<'static, Result<Response<ResponseBody>, Status>> {
        let shared = Arc::clone(&self.shared);
        let (call, request) = match Call::new(&shared, request, protocol) {
            Ok(call) => call,
            Err(status) => return Box::pin(std::future::ready(Err(status))),
        };
        // If calls are waiting, join the queue: picking here would overtake them.
        let has_line = shared.published.wakeups.waiters.has_line();
        match if has_line { None } else { self.picker.pick(true) } {
            Some(picked) => call.begin(shared, request, picked),
            None => call.send_after(shared, request, Duration::ZERO),
        }
    }

    fn from_shared(shared: Shared) -> Self {
        let picker = shared.published.balancer.handle();
        Self { shared: Arc::new(shared), picker }
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &ServiceName {
        &self.shared.published.service
    }

    /// Waits until a request could be sent, for at most `timeout`. One endpoint is enough; others
    /// may still be connecting.
    ///
    /// `tower::ServiceExt::ready` returns at once instead: the channel takes requests at any time.
    ///
    /// # Errors
    ///
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) at the timeout, with the reason why no
    /// endpoint is ready.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has no effect: it only waits.
    pub async fn wait_until_ready(&self, timeout: Duration) -> Result<(), Error> {
        let published = &self.shared.published;
        let serving = async {
            loop {
                // Subscribe before reading the availability, so that no change is missed in
                // between.
                let mut news = Box::pin(published.wakeups.published.notified());
                news.as_mut().enable();
                if matches!(**published.availability.load(), Availability::Serving) {
                    return;
                }
                news.await;
            }
        };
        let limited = async { time::timeout(timeout, serving).await };
        self.shared.on_runtime(limited).await.map_err(|_| {
            let (message, cause) = published.explain(&published.availability.load(), Some(timeout));
            let error = Error::new(ErrorKind::DeadlineExceeded, message);
            match cause {
                Some(cause) => error.with_source(cause),
                None => error,
            }
        })
    }

    /// Returns all endpoints of the set, as calls started from now on see them.
    ///
    /// ```
    /// # fn example(channel: discovery_tonic::BalancedChannel) {
    /// use discovery_tonic::EndpointState;
    ///
    /// let endpoints = channel.endpoints();
    /// let ready = endpoints
    ///     .iter()
    ///     .filter(|one| one.state == EndpointState::Ready && one.ejected_until.is_none());
    /// println!("{} of {} take calls\n{endpoints}", ready.count(), endpoints.len());
    /// # }
    /// ```
    pub fn endpoints(&self) -> Endpoints {
        self.shared.published.endpoints()
    }

    /// Returns the state of the channel for programs: where it stands with the registry, and how
    /// many endpoints take calls. It is cheap, and asks nobody.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use discovery_memory::MemoryBackend;
    /// use discovery_tonic::{BalancedChannel, RegistryState};
    ///
    /// let channel = BalancedChannel::new(MemoryBackend::new(), "payments".parse()?)?;
    /// // The first set has not arrived.
    /// let status = channel.status();
    /// assert!(matches!(status.registry, RegistryState::Waiting));
    /// assert_eq!((status.endpoints, status.ready), (0, 0));
    ///
    /// // Whether calls are likely to succeed, for a health check of this process.
    /// let is_healthy = channel.status().ready > 0;
    /// # assert!(!is_healthy);
    /// # Ok(())
    /// # }
    /// ```
    pub fn status(&self) -> ChannelStatus {
        self.shared.published.status()
    }
}

impl Service<Request<tonic::body::Body>> for BalancedChannel {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    /// Always ready: picking, waiting and failing happen in the call, where its deadline is known.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        self.send(request, Protocol::Grpc)
    }
}

impl fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints();
        f.debug_struct("BalancedChannel").field("service", self.service()).field("endpoints", &&*endpoints).finish()
    }
}
