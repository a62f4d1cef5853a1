//! Several connections per endpoint, and connections that age.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::turn;
use crate::support::{
    Server, builder, eventually, greet, greet_with, hung, instance, ready, refusing, registry, service,
};
use discovery_core::Backoff;
use discovery_tonic::{EndpointSettings, EndpointState, Tried, balance::RoundRobin};
use futures::future::join_all;
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::sleep,
};
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(5);

/// The connections that a connector has opened.
#[derive(Clone, Default)]
struct Wires {
    tries: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// The bytes written to each connection, in order of opening.
    written: Arc<Mutex<Vec<usize>>>,
    refuses: Arc<AtomicBool>,
    sockets: Arc<Mutex<Vec<std::net::TcpStream>>>,
}

impl Wires {
    fn builder(&self, builder: discovery_tonic::ChannelBuilder) -> discovery_tonic::ChannelBuilder {
        let wires = self.clone();
        builder.connector(tower::service_fn(move |uri: Uri| wires.clone().connect(uri)))
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Wire>> {
        self.tries.fetch_add(1, Ordering::Relaxed);
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let address: SocketAddr = uri.authority().unwrap().as_str().parse().unwrap();
        let socket = TcpStream::connect(address).await?.into_std()?;
        self.sockets.lock().unwrap().push(socket.try_clone()?);
        let stream = TcpStream::from_std(socket)?;
        stream.set_nodelay(true)?;
        self.most.fetch_max(self.open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let mut written = self.written.lock().unwrap();
        written.push(0);
        let number = written.len() - 1;
        drop(written);
        Ok(TokioIo::new(Wire { stream, number, wires: self }))
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Ends a connection, as its peer might.
    fn cut(&self, number: usize) {
        self.sockets.lock().unwrap()[number].shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn made(&self) -> usize {
        self.written.lock().unwrap().len()
    }
}

/// One connection, open until it is dropped.
struct Wire {
    stream: TcpStream,
    number: usize,
    wires: Wires,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wires.written.lock().unwrap()[self.number] += bytes.len();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.wires.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn aging(age: Duration) -> impl Fn(&discovery_core::Instance) -> EndpointSettings + Send + Sync + 'static {
    move |_| EndpointSettings::default().max_connection_age(age).unwrap()
}

#[tokio::test]
async fn calls_are_spread_over_the_connections_of_an_endpoint() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let backend = registry([server.address]);
    let channel =
        wires.builder(builder(&backend).connections_per_endpoint(3).policy(RoundRobin::new())).build().unwrap();
    eventually("three connections", || wires.made() == 3).await;
    assert_eq!(ready(&channel), 1, "they belong to one endpoint");
    sleep(Duration::from_millis(50)).await;
    let before = wires.written.lock().unwrap().clone();
    for _ in 0..300 {
        let request = GreetRequest { payload: vec![7; 1000], ..GreetRequest::default() };
        greet_with(&channel, Some(SOON), request).await.unwrap();
    }
    let after = wires.written.lock().unwrap().clone();
    for (before, after) in before.iter().zip(&after) {
        assert!((90_000..120_000).contains(&(after - before)), "a third of 300 kB each: {before} to {after}");
    }
    drop(channel);
    eventually("no connection is left", || wires.open() == 0).await;
}

/// A connection takes as many calls as the peer allows streams. More calls need more connections.
#[tokio::test]
async fn more_connections_carry_more_calls_at_once() {
    let server = Server::start_with("one", tonic::transport::Server::builder().max_concurrent_streams(4)).await;
    for (connections, rounds) in [(1, 4), (4, 1)] {
        let channel = builder(&registry([server.address])).connections_per_endpoint(connections).build().unwrap();
        eventually("connected", || channel.endpoints().iter().any(|one| one.state == EndpointState::Ready)).await;
        // Until each connection has answered.
        eventually("proven", || server.accepted() >= connections).await;
        join_all((0..32).map(|_| greet(&channel, Some(SOON)))).await;
        let start = Instant::now();
        let request = GreetRequest { delay_ms: 200, ..GreetRequest::default() };
        let calls = join_all((0..16).map(|_| greet_with(&channel, Some(SOON), request.clone()))).await;
        assert!(calls.iter().all(Result::is_ok), "{calls:?}");
        let took = start.elapsed();
        println!("16 calls of 200 ms over {connections} connections of 4 streams: {took:?}");
        assert!(took >= Duration::from_millis(200) * rounds, "{took:?}");
        if rounds == 1 {
            assert!(took < Duration::from_millis(700), "all at once: {took:?}");
        }
    }
}

#[tokio::test]
async fn an_unreachable_peer_costs_one_attempt_at_a_time_for_any_number_of_connections() {
    let wires = Wires::default();
    // A long backoff with full jitter, so that hardly any first wait is short.
    let hour = Duration::from_secs(3600);
    let wait = Backoff::new(hour, hour).unwrap();
    let address = refusing().await;
    let plan = builder(&registry([address])).connections_per_endpoint(8).backoff(wait);
    let channel = wires.builder(plan).build().unwrap();
    eventually("tried", || channel.endpoints().iter().any(|one| one.state == EndpointState::BackingOff)).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(wires.tries.load(Ordering::Relaxed), 1);
}

/// As with one connection, at most five calls are slow.
#[tokio::test]
async fn a_hung_endpoint_of_many_connections_costs_no_more_calls() {
    let _turn = turn().await;
    let (address, _requests, _tasks) = hung().await;
    let servers = crate::support::servers(3).await;
    let backend = registry(servers.iter().map(|one| one.address).chain([address]));
    let channel = builder(&backend).connections_per_endpoint(4).build().unwrap();
    eventually("all ready", || ready(&channel) == 4).await;
    let hung = [instance(address).id().clone()];
    let at_hung = |status: &Status| Tried::from_status(status).is_some_and(|tried| *tried.instances() == hung);
    // Not more at once, because that alone would take a busy machine longer than the deadline.
    let calls = (0..200).map(|_| greet(&channel, Some(Duration::from_millis(1500))));
    let slow = join_all(calls).await.iter().filter(|call| call.as_ref().is_err_and(at_hung)).count();
    println!("{slow} slow calls");
    assert!((1..=5).contains(&slow), "{slow}");
}

#[tokio::test]
async fn the_other_connections_serve_until_a_lost_one_is_replaced() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let wait = Backoff::new(Duration::from_millis(100), Duration::from_millis(200)).unwrap();
    let plan = builder(&registry([server.address])).connections_per_endpoint(3).backoff(wait);
    let channel = wires.builder(plan).build().unwrap();
    eventually("three connections", || wires.open() == 3).await;
    for number in 0..3 {
        greet(&channel, Some(SOON)).await.unwrap();
        wires.refuses.store(true, Ordering::Relaxed);
        wires.cut(number);
        eventually("it is lost", || wires.open() == 2).await;
        for _ in 0..100 {
            greet(&channel, Some(SOON)).await.expect("the others serve");
        }
        wires.refuses.store(false, Ordering::Relaxed);
        eventually("it is replaced", || wires.open() == 3).await;
    }
    assert_eq!(wires.made(), 6);
    assert_eq!(wires.most.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn an_old_connection_is_replaced_before_it_is_closed() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let plan = builder(&registry([server.address])).endpoint_settings(aging(Duration::from_secs(1)));
    let channel = wires.builder(plan).build().unwrap();
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(5) {
        let begun = Instant::now();
        greet(&channel, Some(SOON)).await.expect("no call fails");
        slowest = slowest.max(begun.elapsed());
        assert!(ready(&channel) == 1, "a connection is always ready");
        sleep(Duration::from_millis(2)).await;
    }
    let made = wires.made();
    let most = wires.most.load(Ordering::Relaxed);
    println!("{made} connections in {:?}, {most} at once; the slowest call took {slowest:?}", start.elapsed());
    assert!((4..=6).contains(&made), "{made}");
    assert_eq!(most, 2, "the next one is opened before the last one ends");
    eventually("the old connections are closed", || wires.open() == 1).await;
}

#[tokio::test]
async fn calls_on_an_old_connection_end_within_the_drain_limit() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let drain = Duration::from_secs(1);
    let plan =
        builder(&registry([server.address])).endpoint_settings(aging(Duration::from_secs(1))).drain_timeout(drain);
    let channel = wires.builder(plan).build().unwrap();
    let request = GreetManyRequest { count: 10_000, interval_ms: 20, ..GreetManyRequest::default() };
    let start = Instant::now();
    let mut stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(message) => drop(message.expect("it does not end by itself")),
            Err(status) => break status,
        }
        assert!(start.elapsed() < Duration::from_secs(8), "the stream is still open");
    };
    let took = start.elapsed();
    println!("aborted after {took:?}: {status}");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("this side"), "{status:?}");
    assert_eq!(channel.endpoints()[0].failures, 0, "a call aborted on this side is not the peer's failure");
    assert!(took > Duration::from_millis(1500), "it was drained first: {took:?}");
    greet(&channel, Some(SOON)).await.unwrap();
    drop(stream);
    eventually("at most two connections are left", || wires.open() <= 2).await;
}

/// Even if the successor is lost meanwhile and cannot be opened again.
#[tokio::test]
async fn calls_on_an_old_connection_end_while_the_endpoint_is_unreachable() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let wait = Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600)).unwrap();
    let plan = builder(&registry([server.address]))
        .endpoint_settings(aging(Duration::from_secs(1)))
        .drain_timeout(Duration::from_secs(1));
    let channel = wires.builder(plan.backoff(wait)).build().unwrap();
    let request = GreetManyRequest { count: 10_000, interval_ms: 20, ..GreetManyRequest::default() };
    let mut stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    eventually("it is replaced", || channel.endpoints()[0].in_flight == 0).await;
    wires.refuses.store(true, Ordering::Relaxed);
    let start = Instant::now();
    wires.cut(1);
    while stream.message().await.is_ok() {
        assert!(start.elapsed() < SOON, "the stream is still open");
    }
    println!("aborted after {:?}", start.elapsed());
}

#[tokio::test]
async fn an_old_connection_serves_until_another_can_be_opened() {
    let server = Server::start("one").await;
    let wires = Wires::default();
    let wait = Backoff::new(Duration::from_millis(100), Duration::from_millis(200)).unwrap();
    let plan = builder(&registry([server.address])).endpoint_settings(aging(Duration::from_secs(1))).backoff(wait);
    let channel = wires.builder(plan).build().unwrap();
    greet(&channel, Some(SOON)).await.unwrap();
    wires.refuses.store(true, Ordering::Relaxed);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        greet(&channel, Some(SOON)).await.expect("no call fails");
        sleep(Duration::from_millis(5)).await;
    }
    let tries = wires.tries.load(Ordering::Relaxed);
    assert!(tries > 3 && wires.made() == 1, "{tries} tries");
    wires.refuses.store(false, Ordering::Relaxed);
    eventually("it is replaced", || wires.made() > 1).await;
    greet(&channel, Some(SOON)).await.unwrap();
}

/// A removed endpoint that was replacing its connection does not keep others from connecting while
/// it drains.
#[tokio::test]
async fn a_draining_endpoint_returns_its_connect_permit() {
    let old = Server::start("old").await;
    let new = Server::start("new").await;
    let tries = Arc::new(AtomicUsize::new(0));
    let backend = registry([old.address]);
    let first = old.address;
    let count = Arc::clone(&tries);
    let connect = move |uri: Uri| {
        let count = Arc::clone(&count);
        async move {
            let address: SocketAddr = uri.authority().unwrap().as_str().parse().unwrap();
            if address == first && count.fetch_add(1, Ordering::Relaxed) > 0 {
                // Longer than it takes to remove the endpoint.
                sleep(Duration::from_millis(700)).await;
            }
            TcpStream::connect(address).await.map(TokioIo::new)
        }
    };
    let plan = builder(&backend).max_concurrent_connects(1).endpoint_settings(aging(Duration::from_secs(1)));
    let channel = plan.connector(tower::service_fn(connect)).build().unwrap();
    let request = GreetManyRequest { count: 10_000, interval_ms: 20, ..GreetManyRequest::default() };
    let mut stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    eventually("the next connection is being opened", || tries.load(Ordering::Relaxed) == 2).await;
    backend.remove(&service(), &first.to_string());
    backend.put(&service(), new.instance());
    let took = eventually("the new endpoint is connected", || new.accepted() == 1).await;
    println!("connected after {took:?}");
    stream.message().await.expect("the stream continues");
}

#[tokio::test]
async fn every_allowed_window_works() {
    let server = Server::start("one").await;
    for (stream, connection) in [(1, 1), (1, 1 << 20), (100_000, 1), (i32::MAX as u32, i32::MAX as u32)] {
        let settings = EndpointSettings::default()
            .initial_stream_window_size(stream)
            .and_then(|settings| settings.initial_connection_window_size(connection))
            .unwrap();
        let channel =
            builder(&registry([server.address])).endpoint_settings(move |_| settings.clone()).build().unwrap();
        let request = GreetRequest { name: "x".repeat(5_000), ..Default::default() };
        let answer = greet_with(&channel, Some(Duration::from_secs(10)), request).await;
        let (_, reply) = answer.unwrap_or_else(|status| panic!("{stream}, {connection}: {status:?}"));
        assert!(reply.message.len() >= 5_000);
    }
}
