//! Checks: the second connection to a silent endpoint, and how it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::*;
use discovery_tonic::{BalancedChannel, balance::RoundRobin};
use greeter::GreetRequest;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Code;

/// What a peer does with a request: answers with a code at once or after a while, or never.
type OnConnection = Arc<dyn Fn(usize, usize) -> Option<(&'static str, Duration)> + Send + Sync>;

/// A peer that treats each connection, and each request on it, according to its number.
async fn peer(treat: OnConnection) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&accepted);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            let treat = Arc::clone(&treat);
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                let mut answers = JoinSet::new();
                let mut requests = 0;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let answer_with = treat(number, requests);
                    requests += 1;
                    answers.spawn(async move {
                        match answer_with {
                            Some((code, delay)) => {
                                sleep(delay).await;
                                answer(&mut respond, code);
                            }
                            None => std::future::pending().await,
                        }
                        drop(request);
                    });
                }
            });
        }
    });
    (address, accepted, tasks)
}

const NOT_FOUND: &str = "5";
const UNAVAILABLE: &str = "14";
const SLOW: Duration = Duration::from_millis(300);

/// Whether a call was late. The peers here answer with status codes.
async fn is_late(channel: &BalancedChannel) -> bool {
    greet(channel, Some(SLOW)).await.is_err_and(|status| status.code() == Code::DeadlineExceeded)
}

fn poll(channel: &BalancedChannel, delay: Duration) -> impl Future<Output = bool> + use<> {
    let channel = channel.clone();
    let request = GreetRequest { delay_ms: delay.as_millis().try_into().unwrap(), ..GreetRequest::default() };
    async move { greet_with(&channel, None, request).await.is_ok() }
}

/// A peer that accepts no more connections costs one attempt per second, however soon each fails,
/// and keeps its calls.
#[tokio::test]
async fn a_failed_check_is_repeated_after_a_second() {
    let server = Server::start("one").await;
    let tries = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&tries);
    let connect = tower::service_fn(move |uri: http::Uri| {
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            match is_first {
                true => TcpStream::connect(uri.authority().unwrap().as_str()).await.map(TokioIo::new),
                false => Err(std::io::Error::other("no more connections")),
            }
        }
    });
    let channel = builder(&registry([server.address])).connector(connect).build().unwrap();
    assert!(poll(&channel, Duration::from_secs(5)).await);
    let tries = tries.load(Ordering::Relaxed);
    println!("{tries} attempts in 5 s");
    assert!((3..=6).contains(&tries), "{tries}");
    greet(&channel, Some(Duration::from_secs(1))).await.unwrap();
}

/// Each lane has its own first call, and gets more calls even if that one fails.
#[tokio::test]
async fn a_lane_whose_first_calls_fail_is_used_nevertheless() {
    let on_second = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&on_second);
    let (address, _, _peer) = peer(Arc::new(move |number, request| {
        count.fetch_add(number, Ordering::Relaxed);
        match (number, request) {
            (1, 0..3) => Some((UNAVAILABLE, Duration::ZERO)),
            _ => Some((NOT_FOUND, Duration::from_millis(20))),
        }
    }))
    .await;
    let channel = builder(&registry([address])).connections_per_endpoint(2).policy(RoundRobin::new()).build().unwrap();
    eventually("ready", || ready(&channel) == 1).await;
    for _ in 0..20 {
        let _ = greet(&channel, None).await;
    }
    sleep(Duration::from_millis(300)).await;
    let before = on_second.load(Ordering::Relaxed);
    for _ in 0..20 {
        let _ = greet(&channel, None).await;
    }
    assert_eq!(on_second.load(Ordering::Relaxed) - before, 10, "in turn");
}

/// A server that dies during a check is connected again like any other.
#[tokio::test]
async fn a_server_may_die_during_a_check() {
    for at in [900, 1300, 1700] {
        let mut server = Mortal::start("one");
        let address = server.address;
        let channel = channel(&registry([address]));
        let waiting = tokio::spawn(poll(&channel, Duration::from_secs(30)));
        eventually("it waits", || server.greeter.calls() == 1).await;
        sleep(Duration::from_millis(at)).await;
        let other = tokio::spawn(poll(&channel, Duration::from_secs(30)));
        sleep(Duration::from_millis(50)).await;
        server.kill();
        assert!(!timeout(Duration::from_secs(2), waiting).await.unwrap().unwrap(), "lost with its connection");
        assert!(!timeout(Duration::from_secs(2), other).await.unwrap().unwrap(), "lost on the new connection too");
        let server = Mortal::start_at("again", address);
        let start = Instant::now();
        while greet(&channel, Some(Duration::from_secs(1))).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(5), "it is not connected again");
            sleep(Duration::from_millis(10)).await;
        }
        println!("killed after {at} ms: used again {:?} after it was back", start.elapsed());
        // The first calls may have been slow enough for another check.
        assert!(server.accepted() <= 2);
    }
}

/// The calls of an instance that leaves during a check may finish, on both connections.
#[tokio::test]
async fn an_instance_may_leave_during_a_check() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let channel = channel(&backend);
    let waiting = tokio::spawn(poll(&channel, Duration::from_secs(4)));
    sleep(Duration::from_millis(1500)).await;
    let other = tokio::spawn(poll(&channel, Duration::from_secs(3)));
    eventually("both connections", || server.accepted() == 2).await;
    sleep(Duration::from_millis(100)).await;
    backend.remove(&service(), &server.address.to_string());
    assert!(waiting.await.unwrap() && other.await.unwrap());
    server.stop().await;
}

/// A connection that gets stuck soon after its endpoint was checked for being slow is found
/// nevertheless.
#[tokio::test]
async fn a_connection_may_get_stuck_soon_after_a_check() {
    let is_stuck = Arc::<AtomicBool>::default();
    let stuck = Arc::clone(&is_stuck);
    let (address, accepted, _peer) = peer(Arc::new(move |number, request| match (number, request) {
        (0, _) if stuck.load(Ordering::Relaxed) => None,
        (0, 0) => Some((NOT_FOUND, Duration::from_millis(1500))),
        _ => Some((NOT_FOUND, Duration::ZERO)),
    }))
    .await;
    let backend = registry([address]);
    // Round robin, since the default policy hardly uses an endpoint once calls were late there.
    let channel = builder(&backend).policy(RoundRobin::new()).build().unwrap();
    let _ = greet(&channel, None).await;
    assert_eq!(accepted.load(Ordering::Relaxed), 2, "it was checked");
    let servers = servers(2).await;
    servers.iter().for_each(|server| backend.put(&service(), server.instance()));
    eventually("all ready", || ready(&channel) == 3).await;
    is_stuck.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let mut late = 0;
    let mut latest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(15) {
        if is_late(&channel).await {
            late += 1;
            latest = start.elapsed();
        }
        sleep(Duration::from_millis(5)).await;
    }
    println!("{late} late calls, the last one after {latest:?}; {} connections", accepted.load(Ordering::Relaxed));
    // 1.5 s was usual, so it is suspected after twice that time.
    assert!(latest < Duration::from_secs(10) && accepted.load(Ordering::Relaxed) > 2, "{latest:?}");
}

/// If one of three is ejected and another fails at once, the good one still gets its share of
/// calls.
#[tokio::test]
async fn failing_fast_attracts_no_calls_if_most_endpoints_fail() {
    let (hung, _, _hung) = hung().await;
    let (failing, _, _failing) = peer(Arc::new(|_, _| Some(("13", Duration::ZERO)))).await;
    let good = Server::start("good").await;
    let channel = channel(&registry([hung, failing, good.address]));
    eventually("all ready", || ready(&channel) == 3).await;
    let mut calls = JoinSet::new();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < Duration::from_secs(8) {
        let request = GreetRequest { delay_ms: 60, ..GreetRequest::default() };
        let channel = channel.clone();
        calls.spawn(async move { greet_with(&channel, Some(Duration::from_millis(500)), request).await.is_ok() });
        count += 1;
        sleep(Duration::from_millis(5)).await;
    }
    let served = calls.join_all().await.into_iter().filter(|is_served| *is_served).count();
    println!("{served} of {count} calls were served");
    assert!(served * 100 >= count * 40, "{served} of {count}");
}
