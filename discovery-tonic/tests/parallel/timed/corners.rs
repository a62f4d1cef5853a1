//! Corner cases in which calls were once lost, with one test for each.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::turn;
use crate::support::{
    frames::{self, Frames},
    *,
};
use discovery_core::{
    Backoff, Error, ServiceName, Weight,
    backend::{Entry, Feed, Recovered, Source},
};
use discovery_tonic::{BalancedChannel, EndpointState, Tried, balance::RoundRobin};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::task::JoinSet;
use tonic::Code;

const UNAVAILABLE: &str = "14";
const NOT_FOUND: &str = "5";

/// A registry that never sends an update.
#[derive(Debug)]
struct Mute;

#[tonic::async_trait]
impl Source for Mute {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        std::future::pending::<()>().await;
        drop(feed.reset(Vec::<Entry>::new()));
        Ok(())
    }
}

#[tokio::test]
async fn places_that_become_free_together_wake_as_many_calls() {
    let server = Server::start_with("a", tonic::transport::Server::builder().max_concurrent_streams(2)).await;
    let channel = channel(&registry([server.address]));
    greet(&channel, None).await.unwrap();
    for _ in 0..3 {
        let mut callers = JoinSet::new();
        for n in 0..4 {
            let channel = channel.clone();
            callers.spawn(async move {
                let (wait, delay_ms) = if n < 2 { (0, 200) } else { (20, 1) };
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let request = GreetRequest { delay_ms, ..GreetRequest::default() };
                greet_with(&channel, Some(Duration::from_secs(2)), request).await.map(|(address, _)| address)
            });
        }
        for answer in callers.join_all().await {
            answer.expect("no caller waits while there is room");
        }
    }
}

#[tokio::test]
async fn an_open_stream_does_not_keep_its_endpoint_ejected() {
    // A stream, then failures until the endpoint is ejected, then successes.
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let (mending, requests, _tasks) = raw_h2_with(move |n, respond| match n {
        0 => drop(respond.send_response(http::Response::new(()), false).unwrap()),
        _ if failing.load(Ordering::Relaxed) => answer(respond, UNAVAILABLE),
        _ => answer(respond, NOT_FOUND),
    })
    .await;
    let other = Server::start("other").await;
    let backend = registry([mending]);
    let channel = builder(&backend).policy(RoundRobin::new()).build().unwrap();
    let request = GreetManyRequest { count: 1, ..GreetManyRequest::default() };
    let _stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap();
    backend.put(&service(), other.instance());
    eventually("two endpoints", || ready(&channel) == 2).await;
    while channel.endpoints().iter().all(|one| one.ejected_until.is_none()) {
        let _ = greet(&channel, None).await;
    }
    fails.store(false, Ordering::Relaxed);
    let start = Instant::now();
    let before = requests.load(Ordering::Relaxed);
    while requests.load(Ordering::Relaxed) < before + 50 {
        let _ = greet(&channel, None).await;
        assert!(start.elapsed() < Duration::from_secs(5), "it is not probed");
    }
}

#[tokio::test]
async fn an_endpoint_of_weight_zero_does_not_allow_ejecting_the_only_other_one() {
    let (failing, _, _tasks) = raw_h2(|_, respond| answer(respond, UNAVAILABLE)).await;
    let idle = Server::start("idle").await;
    let backend = registry([failing]);
    backend.put(&service(), idle.instance().with_weight(Weight::new(0).unwrap()));
    let channel = channel(&backend);
    eventually("two endpoints", || ready(&channel) == 2).await;
    for _ in 0..20 {
        let status = greet(&channel, None).await.unwrap_err();
        assert!(!Tried::from_status(&status).unwrap().instances().is_empty(), "{status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_refused_call_goes_to_another_endpoint_even_if_it_is_busier() {
    let refuse: OnRequest = |_, respond| respond.send_reset(h2::Reason::REFUSED_STREAM);
    let (refusing, _, _tasks) = raw_h2(refuse).await;
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let channel = channel(&backend);
    greet(&channel, None).await.unwrap();
    let mut slow = JoinSet::new();
    for _ in 0..30 {
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: 5_000, ..GreetRequest::default() };
        slow.spawn(async move { drop(greet_with(&channel, None, request).await) });
    }
    eventually("thirty calls", || server.greeter.calls() == 31).await;
    backend.put(&service(), instance(refusing));
    eventually("two endpoints", || ready(&channel) == 2).await;
    for _ in 0..50 {
        let served = greet(&channel, Some(Duration::from_secs(2))).await.expect("sent to the other endpoint");
        assert_eq!(served, server.address);
    }
}

#[tokio::test]
async fn the_wait_timeout_applies_to_calls_without_a_deadline() {
    for wait in [Duration::from_millis(100), Duration::MAX] {
        let channel = BalancedChannel::builder(Recovered::new(Mute), service()).wait_timeout(wait).build().unwrap();
        let start = Instant::now();
        let status = greet(&channel, Some(Duration::from_millis(400))).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(start.elapsed() >= Duration::from_millis(390), "{:?}", start.elapsed());
    }
}

/// Even if the endpoint has a long backoff before it would connect again.
#[tokio::test]
async fn b04_the_drain_limit_binds_streams_of_former_connections() {
    let mut old = Server::start("old").await;
    let new = Server::start("new").await;
    let backend = registry([old.address]);
    let wait = Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600)).unwrap();
    let channel = builder(&backend).drain_timeout(Duration::from_secs(1)).backoff(wait).build().unwrap();
    let request = GreetManyRequest { count: 100_000, interval_ms: 50, ..GreetManyRequest::default() };
    let mut stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    old.begin_stop();
    let is_waiting = || channel.endpoints().iter().any(|one| one.state == EndpointState::BackingOff);
    eventually("GOAWAY is noticed while the stream is open", is_waiting).await;
    backend.put(&service(), new.instance());
    backend.remove(&service(), &old.address.to_string());
    let start = Instant::now();
    while stream.message().await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(5), "the stream is still open");
    }
    let took = start.elapsed();
    println!("aborted after {took:?}");
    assert!(took > Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn a_panic_of_the_connector_or_the_hook_is_a_failed_attempt() {
    let server = Server::start("one").await;
    let hook = Arc::new(AtomicBool::new(true));
    let connector = Arc::new(AtomicBool::new(true));
    let connect = tower::service_fn(move |uri: http::Uri| {
        let panics = connector.swap(false, Ordering::Relaxed);
        async move {
            assert!(!panics, "a fault of the connector");
            let stream = tokio::net::TcpStream::connect(uri.authority().unwrap().as_str()).await;
            stream.map(hyper_util::rt::TokioIo::new)
        }
    });
    let settings = move |_: &_| {
        assert!(!hook.swap(false, Ordering::Relaxed), "a fault of the hook");
        discovery_tonic::EndpointSettings::default()
    };
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(10)).unwrap();
    let channel = builder(&registry([server.address])).connector(connect).endpoint_settings(settings).backoff(backoff);
    let channel = channel.build().unwrap();
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    assert_eq!(greet(&channel, None).await.unwrap(), server.address);
}

#[tokio::test]
async fn a_hold_may_be_unlimited() {
    let servers = servers(3).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = builder(&backend).hold_on_mass_removal(Some(Duration::MAX)).build().unwrap();
    eventually("three endpoints", || ready(&channel) == 3).await;
    backend.wipe();
    let held = || channel.endpoints().iter().filter(|one| one.held_until.is_some()).count();
    eventually("all are held", || held() == 3).await;
}

#[tokio::test]
async fn a_request_body_that_fails_is_not_the_peers_failure() {
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    for _ in 0..3 {
        let mut client = GreeterClient::new(channel.clone()).max_encoding_message_size(1_000);
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let sending = tokio::spawn(async move {
            for size in [0, 5_000] {
                let _ = sender.send(GreetRequest { payload: vec![0; size], ..GreetRequest::default() }).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        client.greet_all(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap_err();
        sending.await.unwrap();
        assert_eq!(channel.endpoints()[0].failures, 0);
    }
}

/// However long a request waited at a peer that shuts down, it is no failure if the peer reports
/// that it did not process it.
#[tokio::test]
async fn a_request_that_a_leaving_peer_did_not_process_is_not_its_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let leaving = listener.local_addr().unwrap();
    let backend = registry([leaving]);
    let channel = channel(&backend);
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { greet(&channel, None).await }
    });
    let mut peer = Frames::accept(&listener).await;
    peer.until(frames::HEADERS, 0).await;
    let good = Server::start("good").await;
    backend.put(&service(), good.instance());
    eventually("two endpoints", || ready(&channel) == 2).await;
    tokio::time::sleep(LONG_FOR_AN_ANSWER).await;
    peer.go_away(0).await;
    assert_eq!(call.await.unwrap().unwrap(), good.address);
    assert_eq!(failures(&channel, leaving), 0);
}

/// If a peer lowers its stream limit, some requests wait on this side. When the peer shuts down
/// they are returned unsent, except for one: for the next in line hyper reports the same as for a
/// request that was sent.
#[tokio::test]
async fn a_request_that_is_returned_unsent_is_not_the_peers_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let leaving = listener.local_addr().unwrap();
    let backend = registry([leaving]);
    let channel = channel(&backend);
    let mut peer = Frames::accept(&listener).await;
    eventually("ready", || ready(&channel) == 1).await;
    peer.until(frames::SETTINGS, frames::ACK).await;
    peer.send(frames::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]).await;
    peer.until(frames::SETTINGS, frames::ACK).await;
    // All in one step, before the channel reads the limit again.
    let calls = futures::future::join_all((0..3).map(|_| greet(&channel, None)));
    let leave = async {
        peer.until(frames::HEADERS, 0).await;
        assert_eq!(channel.endpoints()[0].in_flight, 3);
        let good = Server::start("good").await;
        backend.put(&service(), good.instance());
        eventually("two endpoints", || ready(&channel) == 2).await;
        tokio::time::sleep(LONG_FOR_AN_ANSWER).await;
        peer.go_away(1).await;
        drop(peer);
        good
    };
    let (answers, good) = tokio::join!(calls, leave);
    let (served, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(served.iter().all(|address| *address.as_ref().unwrap() == good.address));
    assert_eq!((served.len(), lost.len()), (1, 2), "{lost:?}");
    assert_eq!(failures(&channel, leaving), 2, "only the lost calls");
}

/// After this long, a call that ends without an answer counts against its endpoint.
const LONG_FOR_AN_ANSWER: Duration = Duration::from_millis(600);

fn failures(channel: &BalancedChannel, address: std::net::SocketAddr) -> u32 {
    let endpoints = channel.endpoints();
    endpoints.iter().find(|one| one.instance.address().socket_addr() == Some(address)).unwrap().failures
}

/// A request that is handed over at the moment its connection ends must be returned, or the call
/// would hang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_hangs_while_connections_age() {
    let _turn = turn().await;
    let aging = tonic::transport::Server::builder().max_connection_age(Duration::from_millis(50));
    let server = Server::start_with("a", aging).await;
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(2)).unwrap();
    let channel = builder(&registry([server.address])).backoff(backoff).build().unwrap();
    greet(&channel, None).await.unwrap();
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let channel = channel.clone();
        callers.spawn(async move {
            let mut calls = 0;
            let mut hung = 0;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(4) {
                calls += 1;
                let result = greet(&channel, Some(Duration::from_secs(3))).await;
                hung += u32::from(result.is_err_and(|status| status.code() == Code::DeadlineExceeded));
            }
            (calls, hung)
        });
    }
    let (calls, hung) = callers.join_all().await.into_iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    println!("{hung} of {calls} calls hung over {} connections", server.accepted());
    assert_eq!(hung, 0);
}
