//! Active health checks (`grpc.health.v1`), over real sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{OnRequest, Server, builder, eventually, greet, greet_with, hung, raw_h2, ready, registry};
use discovery_tonic::{BalancedChannel, EndpointSettings, EndpointState};
use greeter::{GreetRequest, Greeter, GreeterServer};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};
use tonic_health::{ServingStatus, server::HealthReporter};

const SOON: Duration = Duration::from_secs(5);

/// A greeter with a health check.
struct Checked {
    address: SocketAddr,
    reporter: HealthReporter,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Checked {
    async fn start() -> Self {
        Self::start_with(tonic::transport::Server::builder()).await
    }

    async fn start_with(mut builder: tonic::transport::Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = builder.add_service(Greeter::new("one").into_service()).add_service(health);
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await.unwrap();
        });
        Self { address, reporter, stop: Some(stop), task }
    }

    async fn say(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
    }
}

fn state(channel: &BalancedChannel, address: SocketAddr) -> Option<EndpointState> {
    let endpoints = channel.endpoints();
    endpoints.iter().find(|one| one.instance.address().socket_addr() == Some(address)).map(|one| one.state)
}

/// `fault_c12`: a server that reports NOT_SERVING gets no calls after 100 ms (250 on a busy
/// machine), and gets calls again once it serves.
#[tokio::test]
async fn fault_c12_a_server_that_does_not_serve_gets_no_calls() {
    let sick = Checked::start().await;
    let well = Checked::start().await;
    let backend = registry([sick.address, well.address]);
    let channel = builder(&backend).health_check("").build().unwrap();
    eventually("both serve", || ready(&channel) == 2).await;
    for round in 0..3 {
        sick.say(ServingStatus::NotServing).await;
        let took = eventually("one does not serve", || ready(&channel) == 1).await;
        println!("fault_c12: round {round}: not serving after {took:?}");
        assert!(took < Duration::from_millis(250), "{took:?}");
        assert_eq!(state(&channel, sick.address), Some(EndpointState::NotServing));
        for _ in 0..50 {
            assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), well.address);
        }
        // Long enough for the check to be reopened in between.
        sleep(Duration::from_millis(1200)).await;
        assert_eq!(ready(&channel), 1);
        sick.say(ServingStatus::Serving).await;
        let took = eventually("both serve again", || ready(&channel) == 2).await;
        println!("fault_c12: round {round}: serving again after {took:?}");
    }
}

/// `fault_c12`: servers without a health check are used.
#[tokio::test]
async fn fault_c12_a_server_without_a_health_check_counts_as_serving() {
    let server = Server::start("one").await;
    let channel = builder(&registry([server.address])).health_check("").build().unwrap();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), server.address);
    assert_eq!(ready(&channel), 1);
}

/// A server whose calls fail may still report SERVING, and does so on every new connection.
#[tokio::test]
async fn replaced_connections_do_not_end_a_series_of_failures() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_reporter, checks) = tonic_health::server::health_reporter();
    let failing = GreeterServer::with_interceptor(Greeter::new("failing"), |_| Err(Status::unavailable("no database")));
    let router = tonic::transport::Server::builder().add_service(checks).add_service(failing);
    let task = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let channel = builder(&registry([address])).health_check("").endpoint_settings(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        settings.clone()
    });
    let channel = channel.build().unwrap();
    for _ in 0..3 {
        greet(&channel, Some(SOON)).await.unwrap_err();
    }
    assert_eq!(channel.endpoints()[0].failures, 3);
    // With the third connection, the second has been up for a second.
    eventually("connections are replaced", || attempts.load(Ordering::Relaxed) >= 3).await;
    assert_eq!(channel.endpoints()[0].failures, 3);
    task.abort();
}

#[tokio::test]
async fn a_service_that_the_server_does_not_know_is_not_served() {
    let server = Checked::start().await;
    let channel = builder(&registry([server.address])).health_check("another.Service").build().unwrap();
    eventually("it has answered", || state(&channel, server.address) == Some(EndpointState::NotServing)).await;
    sleep(Duration::from_millis(100)).await;
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("NOT_SERVING"), "{status}");
    server.reporter.set_service_status("another.Service", ServingStatus::Serving).await;
    eventually("it serves", || ready(&channel) == 1).await;
}

#[tokio::test]
async fn calls_fail_at_once_if_no_server_serves_and_succeed_afterwards() {
    let server = Checked::start().await;
    let channel = builder(&registry([server.address])).health_check("").build().unwrap();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), server.address);
    server.say(ServingStatus::NotServing).await;
    eventually("it does not serve", || ready(&channel) == 0).await;
    let start = Instant::now();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap_err().code(), Code::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(1));
    server.say(ServingStatus::Serving).await;
    eventually("it serves", || ready(&channel) == 1).await;
    greet(&channel, Some(SOON)).await.unwrap();
}

/// A peer that completes the handshake and never answers is not even tried.
#[tokio::test]
async fn a_hung_server_gets_no_calls() {
    let (address, requests, _peer) = hung().await;
    let good = Checked::start().await;
    let channel = builder(&registry([address, good.address])).health_check("").build().unwrap();
    eventually("the good server is ready", || ready(&channel) == 1).await;
    for _ in 0..50 {
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), good.address);
    }
    assert_eq!(requests.load(Ordering::Relaxed), 1, "only the health check");
}

/// The check is an endless stream, which must not keep a server from stopping.
#[tokio::test]
async fn a_health_check_does_not_delay_a_server_that_stops() {
    let mut server = Checked::start().await;
    let channel = builder(&registry([server.address])).health_check("").build().unwrap();
    eventually("it serves", || ready(&channel) == 1).await;
    server.say(ServingStatus::NotServing).await;
    eventually("it does not serve", || ready(&channel) == 0).await;
    let start = Instant::now();
    drop(server.stop.take());
    tokio::time::timeout(SOON, server.task).await.expect("the server ends").unwrap();
    println!("the server ended after {:?}", start.elapsed());
}

/// A peer that completes the handshake and is then silent, or begins an answer and never finishes
/// it, does not serve.
#[tokio::test]
async fn a_check_that_is_not_answered_in_time_means_that_the_server_does_not_serve() {
    let begins: OnRequest = |_, respond| {
        let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        drop(respond.send_response(response, false).unwrap());
    };
    let call = async |on_request: OnRequest| {
        let (address, _requests, _peer) = raw_h2(on_request).await;
        let channel = builder(&registry([address])).health_check("").build().unwrap();
        let start = Instant::now();
        (greet(&channel, None).await.unwrap_err(), start.elapsed())
    };
    let (hung, begun) = tokio::join!(call(|_, _| {}), call(begins));
    for (status, took) in [hung, begun] {
        println!("not serving after {took:?}");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("NOT_SERVING"), "{status}");
        assert!((Duration::from_millis(1_950)..Duration::from_secs(5)).contains(&took), "{took:?}");
    }
}

/// The check and the calls share the only stream, and neither starves the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_stream_of_a_server_is_shared_with_the_check() {
    let server = Checked::start_with(tonic::transport::Server::builder().max_concurrent_streams(1)).await;
    let channel = builder(&registry([server.address])).health_check("").build().unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    let callers = (0..4).map(|_| {
        let channel = channel.clone();
        tokio::spawn(async move {
            let mut calls = 0;
            let mut slowest = Duration::ZERO;
            while Instant::now() < end {
                let start = Instant::now();
                greet(&channel, Some(SOON)).await.expect("no call fails");
                calls += 1;
                slowest = slowest.max(start.elapsed());
            }
            (calls, slowest)
        })
    });
    let callers: Vec<_> = callers.collect();
    for caller in callers {
        let (calls, slowest) = caller.await.unwrap();
        println!("{calls} calls, the slowest took {slowest:?}; a check that kept its stream would hold it for 10 s");
    }

    // While a call occupies the stream for longer than a check may take, the check waits.
    let long = GreetRequest { delay_ms: 3_500, ..GreetRequest::default() };
    let long = tokio::spawn({
        let channel = channel.clone();
        async move { greet_with(&channel, None, long).await }
    });
    while !long.is_finished() {
        assert_eq!(state(&channel, server.address), Some(EndpointState::Ready));
        sleep(Duration::from_millis(10)).await;
    }
    long.await.unwrap().unwrap();

    // Endless calls do not delay the result of the check.
    let stop = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn({
        let channel = channel.clone();
        let stop = Arc::clone(&stop);
        async move {
            while !stop.load(Ordering::Relaxed) {
                let _ = greet(&channel, Some(SOON)).await;
                tokio::task::yield_now().await;
            }
        }
    });
    for status in [ServingStatus::NotServing, ServingStatus::Serving] {
        server.say(status).await;
        let wanted = usize::from(status == ServingStatus::Serving);
        let took = eventually("the check notices it", || ready(&channel) == wanted).await;
        println!("{status:?} noticed after {took:?}");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
    stop.store(true, Ordering::Relaxed);
    caller.await.unwrap();
}

/// A server's health also applies to the connection of a check, and follows its changes.
#[tokio::test]
async fn a_check_has_the_health_of_its_endpoint() {
    let server = Checked::start().await;
    let channel = builder(&registry([server.address])).health_check("").build().unwrap();
    eventually("it serves", || ready(&channel) == 1).await;
    let polling = channel.clone();
    let poll = tokio::spawn(async move {
        let request = GreetRequest { delay_ms: 4000, ..GreetRequest::default() };
        greet_with(&polling, None, request).await.map(drop)
    });
    // By then it is being checked.
    sleep(Duration::from_millis(1500)).await;
    for _ in 0..2 {
        server.say(ServingStatus::NotServing).await;
        eventually("it does not serve", || ready(&channel) == 0).await;
        // The server reports this on each connection.
        sleep(Duration::from_millis(100)).await;
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap_err().code(), Code::Unavailable);
        server.say(ServingStatus::Serving).await;
        eventually("it serves again", || ready(&channel) == 1).await;
        sleep(Duration::from_millis(100)).await;
        for _ in 0..20 {
            let start = Instant::now();
            greet(&channel, Some(SOON)).await.unwrap();
            assert!(start.elapsed() < Duration::from_millis(150), "the call waited {:?}", start.elapsed());
        }
    }
    poll.await.unwrap().unwrap();
}
