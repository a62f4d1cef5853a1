//! The default connector: plain TCP.

use std::{
    fmt,
    future::Future,
    io, iter,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use discovery_core::{Address, Error, ErrorKind};
use futures::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tower::{Service, ServiceExt};

use crate::error::BoxError;

/// The connector of a channel that has no other: plain TCP with `TCP_NODELAY`, and with the
/// keepalive and user timeout (20 s each) that distinguish a silent peer from a slow one.
///
/// If the host is a name, up to 16 of its addresses are tried, each 250 ms after the previous one
/// or as soon as that one fails (RFC 8305). It opens TCP connections for `http` and `https` URIs
/// alike, to their port or to 80 or 443; what runs over TCP is up to its user.
///
/// Like an [`Address`](discovery_core::Address), the URI may not name a link-local, multicast or
/// unspecified address. Its errors are those of the system, or
/// [`discovery_core::Error`]s of the kinds `InvalidInput` (the URI) and `DeadlineExceeded`.
///
/// It is public for connectors that wrap it, such as one for a proxy, or for a TLS library of your
/// own:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// # use discovery_core::FixedResolver;
/// use discovery_tonic::{BalancedChannel, TcpConnector};
/// use http::Uri;
/// use tower::ServiceExt;
///
/// // Reaches every instance through a local forwarder.
/// let connector = TcpConnector::new()
///     .map_request(|_: Uri| Uri::from_static("http://127.0.0.1:15001"));
/// # let resolver = FixedResolver::new([]);
/// let channel = BalancedChannel::builder(resolver, "orders".parse()?)
///     .connector(connector)
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TcpConnector {
    tcp: HttpConnector,
    connect_timeout: Duration,
}

/// A TCP connection that a [`TcpConnector`] opened.
///
/// It has hyper's traits [`Read`] and [`Write`]; `hyper_util::rt::TokioIo` adapts them to tokio's.
pub struct TcpConnection(TokioIo<TcpStream>);

impl TcpConnector {
    /// Creates a connector whose steps may take 1 s each.
    pub fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(SILENCE));
        tcp.set_keepalive_interval(Some(SILENCE / 4));
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        tcp.set_tcp_user_timeout(Some(SILENCE));
        Self { tcp, connect_timeout: Duration::from_secs(1) }
    }

    /// Sets how long each step may take: resolving a name, and connecting to one of its addresses.
    ///
    /// A channel limits a custom connector as a whole as well, by
    /// [`EndpointSettings::connect_timeout`](crate::EndpointSettings::connect_timeout).
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connects to an address. If it is a name, one of its addresses is used: they are tried in
    /// turn, after skipping `first` of them.
    ///
    /// Whether a peer that accepts the connection speaks HTTP/2 is known only later. A caller whose
    /// attempt failed passes another `first`, so that the next one begins at another address.
    pub(super) async fn connect(&self, address: &Address, first: usize) -> Result<TcpConnection, BoxError> {
        let limit = self.connect_timeout;
        let addresses = match address.socket_addr() {
            Some(address) => vec![address],
            None => {
                let lookup = timeout(limit, lookup_host(address.to_string())).await;
                let found = lookup.map_err(|_| too_slow(format!("{address} was not resolved"), limit))??;
                let mut addresses = interleaved(found.collect());
                let length = addresses.len().max(1);
                addresses.rotate_left(first % length);
                addresses
            }
        };
        race(addresses, |address| async move {
            let uri = format!("http://{address}/").parse().expect("an address makes a URI");
            let mut tcp = self.tcp.clone();
            let connected = timeout(limit, async { tcp.ready().await?.call(uri).await }).await;
            let io = connected.map_err(|_| too_slow(format!("no connection to {address}"), limit))??;
            Ok(TcpConnection(io))
        })
        .await
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl Service<Uri> for TcpConnector {
    type Response = TcpConnection;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<TcpConnection, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&address(&uri)?, 0).await })
    }
}

/// The address in a URI, whose port may be that of its scheme.
fn address(uri: &Uri) -> Result<Address, Error> {
    let invalid = || {
        let message = "invalid URI to connect to: allowed are http and https, a host, and a port";
        Error::new(ErrorKind::InvalidInput, message)
    };
    let default = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => 80,
        Some(scheme) if *scheme == Scheme::HTTPS => 443,
        _ => return Err(invalid()),
    };
    let authority = uri.authority().ok_or_else(invalid)?;
    let host = authority.host();
    // The parser of URIs ignores a port that is too large or not a number.
    let port = match authority.port_u16() {
        Some(port) => port,
        None if authority.as_str().ends_with(host) => default,
        None => return Err(invalid()),
    };
    format!("{host}:{port}").parse()
}

impl Read for TcpConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for TcpConnection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpConnection").field(self.0.inner()).finish()
    }
}

/// The first connection that succeeds. The next address is tried after a moment, or as soon as an
/// attempt has failed (RFC 8305, "Happy Eyeballs").
async fn race<T, F>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, BoxError>
where
    F: Future<Output = Result<T, BoxError>>,
{
    let mut addresses = addresses.into_iter().peekable();
    let mut attempts = FuturesUnordered::new();
    let mut failed: Option<BoxError> = None;
    loop {
        attempts.extend(addresses.next().map(&connect));
        tokio::select! {
            connected = attempts.next() => match connected {
                Some(Ok(connection)) => return Ok(connection),
                // Keep the first error: it belongs to the address that the resolver prefers.
                Some(Err(error)) => drop(failed.get_or_insert(error)),
                None => return Err(failed.unwrap_or_else(|| "the name has no address".into())),
            },
            () = sleep(DELAY), if addresses.peek().is_some() => {}
        }
    }
}

/// Interleaves the addresses of both families, so that a family that cannot be reached does not
/// delay the other. Keeps the order within a family, and at most [`MOST`] addresses.
fn interleaved(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = found.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let mut sides = [first.into_iter(), second.into_iter()];
    let mut turn = 0;
    let in_turn = iter::from_fn(move || {
        turn = 1 - turn;
        sides[1 - turn].next().or_else(|| sides[turn].next())
    });
    in_turn.take(MOST).collect()
}

fn too_slow(what: String, limit: Duration) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, format!("{what} within {limit:?}"))
}

/// How long sent bytes may stay unacknowledged: gRFC A18's default for TCP_USER_TIMEOUT.
const SILENCE: Duration = Duration::from_secs(20);
/// RFC 8305's Connection Attempt Delay.
const DELAY: Duration = Duration::from_millis(250);
/// How many addresses of a name are tried, at most.
const MOST: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;

    /// How an attempt ends.
    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Connects,
        Refuses,
        Swallows,
    }
    use Fate::{Connects, Refuses, Swallows};

    /// Which of the addresses is connected, after how many milliseconds, and how many were tried.
    async fn raced(fates: &[Fate]) -> (Option<usize>, u128, usize) {
        let start = Instant::now();
        let tried = Mutex::new(0);
        let addresses = (0..fates.len()).map(|n| SocketAddr::from(([127, 0, 0, 1], n as u16)));
        let connected = race(addresses, |address| {
            *tried.lock().unwrap() += 1;
            let n = usize::from(address.port());
            let fate = fates[n];
            async move {
                match fate {
                    Connects => Ok(n),
                    Refuses => Err("refused".into()),
                    Swallows => {
                        sleep(Duration::from_secs(1)).await;
                        Err("swallowed".into())
                    }
                }
            }
        });
        let connected = connected.await.ok();
        (connected, start.elapsed().as_millis(), tried.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn one_reachable_address_is_enough() {
        for (fates, expected) in [
            (&[Connects, Connects][..], (Some(0), 0, 1)),
            (&[Refuses, Connects], (Some(1), 0, 2)),
            (&[Swallows, Connects], (Some(1), 250, 2)),
            (&[Swallows, Swallows, Refuses, Connects], (Some(3), 500, 4)),
            (&[Swallows; 3], (None, 1500, 3)),
            (&[Refuses], (None, 0, 1)),
            (&[], (None, 0, 0)),
        ] {
            assert_eq!(raced(fates).await, expected, "{fates:?}");
        }
        let mut many = [Swallows; MOST];
        many[MOST - 1] = Connects;
        let (connected, after, tried) = raced(&many).await;
        assert_eq!((connected, tried), (Some(MOST - 1), MOST));
        assert!(after < DELAY.as_millis() * MOST as u128, "{after}");
    }

    #[test]
    fn the_address_is_that_of_the_uri_with_the_port_of_its_scheme() {
        for (uri, expected) in [
            ("http://h:1/path", Some("h:1")),
            ("http://h", Some("h:80")),
            ("https://10.0.0.1", Some("10.0.0.1:443")),
            ("https://[::1]:7", Some("[::1]:7")),
            ("https://h:99999", None),
            ("http://h:port", None),
            ("http://h:", None),
            ("http://h:0", None),
            ("http://169.254.169.254", None),
            ("ftp://h:1", None),
            ("/path", None),
            ("h:1", None),
        ] {
            let address = address(&uri.parse().unwrap()).ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{uri}");
        }
    }

    #[test]
    fn address_families_alternate() {
        let addresses = |list: &[&str]| list.iter().map(|one| one.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"]);
        assert_eq!(interleaved(found), addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        let found = addresses(&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"]);
        assert_eq!(interleaved(found), addresses(&["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]));
        assert_eq!(interleaved(Vec::new()), []);
        assert_eq!(interleaved(vec!["1.1.1.1:1".parse().unwrap(); 100]).len(), MOST);
    }
}
