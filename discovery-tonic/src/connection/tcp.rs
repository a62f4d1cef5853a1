use std::{future::Future, iter, net::SocketAddr, time::Duration};

use discovery_core::{Address, Error, ErrorKind};
use futures::stream::{FuturesUnordered, StreamExt};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};
use tower::{Service, ServiceExt};

use super::wire::Io;
use crate::error::BoxError;

/// Creates a connector for TCP with `TCP_NODELAY`, and with the keepalive and user timeout that
/// distinguish a silent peer from a slow one.
pub(super) fn connector() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(SILENCE));
    tcp.set_keepalive_interval(Some(SILENCE / 4));
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    tcp.set_tcp_user_timeout(Some(SILENCE));
    tcp
}

/// Connects to an address. If it is a name, one of its addresses is used: they are tried in turn,
/// after skipping `first` of them. The lookup and each connection may take `limit`.
///
/// Whether a peer that accepts the connection speaks HTTP/2 is known only later. A caller whose
/// attempt failed passes another `first`, so that the next one begins at another address.
pub(super) async fn connect(
    tcp: &HttpConnector,
    address: &Address,
    first: usize,
    limit: Duration,
) -> Result<Box<dyn Io>, BoxError> {
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
        let mut tcp = tcp.clone();
        let connected = timeout(limit, async { tcp.ready().await?.call(uri).await }).await;
        let io = connected.map_err(|_| too_slow(format!("no connection to {address}"), limit))??;
        Ok(Box::new(io) as Box<dyn Io>)
    })
    .await
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
