use std::time::Duration;

use futures::TryFutureExt;
use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

use super::wire::Io;
use crate::error::BoxError;

/// Opens connections: from the endpoint's origin to its bytes.
pub(crate) type Connector = BoxCloneSyncService<Uri, Box<dyn Io>, BoxError>;

/// TCP without delay, with the keepalive and user timeout that tell a silent peer from a slow one.
pub(crate) fn tcp() -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(SILENCE / 4));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    tcp.set_tcp_user_timeout(Some(SILENCE));
    boxed(tcp)
}

/// Hides a connector's types.
pub(crate) fn boxed<C>(connector: C) -> Connector
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Send + Unpin + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    BoxCloneSyncService::new(
        connector
            .map_response(|io| Box::new(io) as Box<dyn Io>)
            .map_err(Into::into)
            .map_future(TryFutureExt::into_future),
    )
}

/// How long unacknowledged bytes may stay so: gRFC A18's default for TCP_USER_TIMEOUT.
const SILENCE: Duration = Duration::from_secs(20);
