//! The face of the crate: [`BalancedChannel`], which generated clients call, and its [`builder`].
//!
//! A channel holds nothing of its own but a picker. What its clones and its calls share stands with
//! the calls ([`Shared`]); what they read is published by the pool, which the builder starts.

pub(crate) mod builder;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use discovery_core::{Error, ErrorKind, Resolver, ServiceName};
use http::{Request, Response};
use tokio::time;
use tonic::Status;
use tower::Service;

use crate::{
    balance::BalancerHandle,
    call::{Call, response::ResponseBody, shared::Shared},
    published::{availability::Availability, endpoints::Endpoints, target::Target},
};
use builder::ChannelBuilder;

/// A channel for any generated tonic client that spreads requests over the live set of a service.
///
/// Cloning is cheap, and clones share everything. One control task follows the set, connects
/// endpoints, replaces lost connections and ejects endpoints that hang, with or without traffic;
/// it ends with the last clone and the last call. It lives on the tokio runtime that the channel
/// was built on: once that has ended, calls fail at once with `UNAVAILABLE`.
///
/// What it promises, besides balancing by a [`Policy`](crate::balance::Policy):
///
/// - **B1** A request goes to an endpoint that is ready as far as can be known: connected, its
///   SETTINGS seen, below its stream limit, not ejected.
/// - **B2** A request that provably was not processed is sent to another endpoint, within its
///   deadline, where its body is still at hand: until the response's headers arrive, up to 256 KiB
///   per call and 32 MiB per channel are kept; of a stream, what has been sent so far, with 64
///   bytes for each frame. Messages of up to 8 KiB are always kept. Anything else is repeated only
///   by a [`RetryPolicy`](crate::RetryPolicy).
/// - **B3** No call outlives its deadline, its response stream included. A call waits only before
///   the first set or while an endpoint makes its first attempt, without a deadline at most 10 s
///   ([`ChannelBuilder::wait_timeout`]); otherwise it fails at once with `UNAVAILABLE` and the reason, unless it
///   asks to wait ([`WaitForReady`](crate::WaitForReady)). Calls that wait for a free stream are
///   served in order of arrival.
/// - **B4** Once [`endpoints`](Self::endpoints) no longer shows an endpoint, no call started after
///   that goes there; its calls end in peace, within a drain limit.
/// - **B5** No update closes the connection of an unchanged endpoint, nor resets its statistics.
/// - **B6** While the registry is out of reach traffic goes on. Where most of the set vanishes at
///   once, connected endpoints are held for a while ([`ChannelBuilder::hold_on_mass_removal`]).
/// - **B7** Discovery and connecting go on while no request flows.
/// - **B8** An endpoint that keeps failing, or hangs, is ejected and probed, at most half of the
///   set ([`OutlierDetection`](crate::OutlierDetection)). It is compared with the others: what all
///   of them do, such as slow calls, ejects nobody. One that reports NOT_SERVING gets no calls,
///   where that is asked ([`ChannelBuilder::health_check`]). What panics, blocks or breaks its law costs itself
///   (B11): a call, an endpoint, or an update.
/// - **B9** Each response says which instance served it and which were tried before
///   ([`ServedBy`](crate::ServedBy)), each failure which were tried ([`Tried`](crate::Tried)).
///
/// ```no_run
/// # async fn example(backend: std::sync::Arc<dyn discovery_core::Backend>) -> Result<(), Box<dyn std::error::Error>> {
/// use discovery_tonic::BalancedChannel;
/// use greeter::{GreeterClient, GreetRequest};
///
/// let channel = BalancedChannel::new(backend, "greeter".parse()?)?;
/// let mut greeter = GreeterClient::new(channel);
/// greeter.greet(GreetRequest::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BalancedChannel {
    shared: Arc<Shared>,
    picker: BalancerHandle<Target>,
}

impl BalancedChannel {
    /// A channel over the instances of a service, with the defaults of [`ChannelBuilder`].
    ///
    /// Never waits; it starts to follow the service and to connect at once.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime, and what [`Resolver::watch`]
    /// says.
    pub fn new(resolver: impl Resolver, service: ServiceName) -> Result<Self, Error> {
        Self::builder(resolver, service).build()
    }

    /// A builder of a channel over the instances of a service.
    pub fn builder(resolver: impl Resolver, service: ServiceName) -> ChannelBuilder {
        ChannelBuilder::new(resolver, service)
    }

    fn from_shared(shared: Shared) -> Self {
        let picker = shared.published.balancer.handle();
        Self { shared: Arc::new(shared), picker }
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.shared.published.service
    }

    /// Waits until a request could be sent, at most for `limit`. One endpoint is enough for that;
    /// others may still be connecting.
    ///
    /// # Errors
    ///
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) at the timeout, with what keeps the
    /// endpoints away.
    ///
    /// # Cancel safety
    ///
    /// It only waits.
    pub async fn ready(&self, timeout: Duration) -> Result<(), Error> {
        let published = &self.shared.published;
        let serving = async {
            loop {
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
            let (message, cause) = published.availability.load().explain(&published.service, Some(timeout));
            let error = Error::new(ErrorKind::DeadlineExceeded, message);
            match cause {
                Some(cause) => error.with_source(cause),
                None => error,
            }
        })
    }

    /// All endpoints of the set, as calls begun from now on see them.
    ///
    /// ```
    /// # fn example(channel: discovery_tonic::BalancedChannel) {
    /// use discovery_tonic::EndpointState;
    ///
    /// let endpoints = channel.endpoints();
    /// let ready = endpoints.iter().filter(|one| one.state == EndpointState::Ready && one.ejected_until.is_none());
    /// println!("{} of {} take calls\n{endpoints}", ready.count(), endpoints.len());
    /// # }
    /// ```
    pub fn endpoints(&self) -> Endpoints {
        self.shared.published.endpoints()
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
        let shared = Arc::clone(&self.shared);
        let (call, request) = match Call::new(&shared, request) {
            Ok(call) => call,
            Err(status) => return Box::pin(std::future::ready(Err(status))),
        };
        // Behind those who wait, or they would be overtaken.
        let has_line = shared.published.wakeups.waiters.has_line();
        match if has_line { None } else { self.picker.pick(true) } {
            Some(picked) => call.begin(shared, request, picked),
            None => call.send_after(shared, request, Duration::ZERO),
        }
    }
}

impl fmt::Debug for BalancedChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.endpoints();
        f.debug_struct("BalancedChannel").field("service", self.service()).field("endpoints", &endpoints.0).finish()
    }
}
