//! Ordinary HTTP requests over a channel.

use std::{
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Request, Response, header::HOST};
use http_body::Body;
use tonic::Status;
use tower::Service;

use super::BalancedChannel;
use crate::{
    call::{Protocol, response::ResponseBody},
    error::BoxError,
};

/// A channel for ordinary HTTP requests instead of gRPC calls: the same endpoints, connections,
/// picking, ejection and draining, with statuses and bodies untouched.
///
/// It is a [`tower::Service`], so middleware and `tower_http` work on it. Cloning is cheap. It
/// shares everything with the [`BalancedChannel`] it is made of, which may be used beside it.
///
/// What differs from gRPC:
///
/// - Any response is a success for the caller, whatever its status. For
///   [`OutlierDetection`](crate::OutlierDetection), 500 counts as `INTERNAL`, 502, 503 and 504 as
///   `UNAVAILABLE`, other statuses from 500 on as `UNKNOWN`, and all below as `OK`.
/// - An error is a [`Status`] that explains why there is no response: `UNAVAILABLE` if no endpoint
///   took the request or its connection was lost, `DEADLINE_EXCEEDED` at the deadline. A gateway
///   answers 503 and 504. [`Tried`](crate::Tried) and [`ServedBy`](crate::ServedBy) work as in
///   gRPC.
/// - Each request has the channel's default [`timeout`](crate::ChannelBuilder::timeout), which
///   includes the response body. No header is added.
/// - A request that provably was not processed is sent again, as in gRPC. A
///   [`RetryPolicy`](crate::RetryPolicy) also repeats requests that were lost with their
///   connection, or not answered within its attempt timeout, whatever their method; but it repeats
///   no response.
///
/// Scheme and authority of the request are replaced by those of the endpoint, and a `host` header
/// is removed. The servers must speak HTTP/2: without TLS with prior knowledge, as axum and hyper
/// do, over TLS by ALPN. HTTP/1, `CONNECT` and upgrades are not supported.
///
/// ```no_run
/// # use std::{error::Error, sync::Arc};
/// # use discovery_core::Backend;
/// # async fn example(backend: Arc<dyn Backend>) -> Result<(), Box<dyn Error>> {
/// use bytes::Bytes;
/// use discovery_tonic::{BalancedChannel, HttpChannel};
/// use http::Request;
/// use http_body_util::{BodyExt, Full};
/// use tower::ServiceExt;
///
/// let channel = BalancedChannel::new(backend, "catalog".parse()?)?;
/// let http = HttpChannel::new(channel);
/// let request = Request::get("/items/7").body(Full::new(Bytes::new()))?;
/// let response = http.clone().oneshot(request).await?;
/// println!("{}", response.status());
/// let body = response.into_body().collect().await?.to_bytes();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HttpChannel(BalancedChannel);

impl HttpChannel {
    /// Returns a channel for HTTP requests to the endpoints of `channel`.
    pub fn new(channel: BalancedChannel) -> Self {
        Self(channel)
    }
}

impl<B> Service<Request<B>> for HttpChannel
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    /// Always ready, as [`BalancedChannel`] is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if request.method() == Method::CONNECT {
            let status = Status::invalid_argument("CONNECT is not supported by a channel for HTTP requests");
            return Box::pin(ready(Err(status)));
        }
        // It must not differ from `:authority` (RFC 9113, section 8.3.1).
        request.headers_mut().remove(HOST);
        self.0.send(request.map(tonic::body::Body::new), Protocol::Http)
    }
}
