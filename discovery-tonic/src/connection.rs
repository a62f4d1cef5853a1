use std::{fmt, future::Future, sync::Arc, time::Duration};

use http::{Request, Response, Uri};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{sleep, timeout};
use tower::{Service, ServiceExt};

use crate::{
    balance::Load,
    body::RequestBody,
    connector::{BoxError, Connector},
    endpoint::Link,
    io::{Cut, Wire},
    settings::EndpointSettings,
    signals::Signals,
};

/// An HTTP/2 connection, owned: its end is seen here before any request misses it.
pub(crate) struct Connection {
    future: Option<hyper::client::conn::http2::Connection<Wire, RequestBody, TokioExecutor>>,
    link: Link,
    cut: Cut,
}

/// Where requests enter a connection.
#[derive(Clone)]
pub(crate) struct Sender(SendRequest<RequestBody>);

/// A request that could not be sent, or whose answer did not come.
pub(crate) struct Failure {
    pub(crate) error: hyper::Error,
    /// The request, if it never left this process.
    pub(crate) request: Option<Request<RequestBody>>,
}

impl Connection {
    /// Connects and waits for the peer's SETTINGS, both within the connect timeout.
    ///
    /// hyper's handshake alone succeeds against a listener that never speaks, and assumes 100 streams until SETTINGS come. With
    /// no streams allowed at first, a limit above 0 means that they have come; they do not wake the connection's future, so
    /// that it is polled on a tick.
    pub(crate) async fn open(
        connector: &Connector,
        target: Uri,
        settings: &EndpointSettings,
        signals: &Signals,
    ) -> Result<Self, BoxError> {
        let open = async {
            let io = connector.clone().ready().await?.call(target).await?;
            let (wire, cut) = Wire::new(io);
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .initial_max_send_streams(0)
                .initial_stream_window_size(settings.stream_window)
                .initial_connection_window_size(settings.connection_window);
            if let Some((interval, timeout)) = settings.ping {
                builder.keep_alive_interval(interval).keep_alive_timeout(timeout);
            }
            let (sender, mut future) = builder.handshake(wire).await?;
            while future.current_max_send_streams() == 0 {
                tokio::select! {
                    ended = &mut future => {
                        ended?;
                        return Err("the peer closed the connection before its SETTINGS".into());
                    }
                    () = sleep(SETTINGS_TICK) => {}
                }
            }
            let load = Load::waking(streams(future.current_max_send_streams()), TRIAL, Arc::clone(&signals.room));
            Ok(Self { future: Some(future), link: Link { sender: Sender(sender), load: Arc::new(load) }, cut })
        };
        let limit = settings.connect_timeout;
        timeout(limit, open).await.unwrap_or_else(|_| Err(format!("no HTTP/2 connection within {limit:?}").into()))
    }

    /// Drives the connection until it takes no requests any more. May be dropped and called again.
    pub(crate) async fn closed(&mut self) {
        match &mut self.future {
            // The end means "no new requests"; why is of no use to those who come after.
            Some(future) => {
                let _ = future.await;
                self.future = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Whether it takes no requests any more, as of the last poll.
    pub(crate) fn is_closed(&self) -> bool {
        self.future.is_none() || self.link.sender.0.is_closed()
    }

    /// Takes over the peer's stream limit, which may change at any time.
    pub(crate) fn update_limit(&self) {
        if let Some(future) = &self.future {
            self.link.load.set_limit(streams(future.current_max_send_streams()));
        }
    }

    pub(crate) fn link(&self) -> Link {
        self.link.clone()
    }

    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.link.load
    }

    pub(crate) fn cut(&self) -> Cut {
        self.cut.clone()
    }
}

impl Sender {
    /// Sends a request; resolves at the response's headers.
    pub(crate) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, Failure>> + use<> {
        let sent = self.0.clone().try_send_request(request);
        async move {
            sent.await.map_err(|mut error| {
                let request = error.take_message();
                Failure { error: error.into_error(), request }
            })
        }
    }
}

fn streams(limit: usize) -> u32 {
    limit.try_into().unwrap_or(u32::MAX)
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("link", &self.link).finish_non_exhaustive()
    }
}

const SETTINGS_TICK: Duration = Duration::from_millis(5);
/// How many requests a connection gets before its first answer, so that a peer that shakes hands and then hangs hurts few.
const TRIAL: u32 = 4;
