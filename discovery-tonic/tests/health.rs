//! Active health checks (`grpc.health.v1`), over real sockets.

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use discovery_tonic::{BalancedChannel, EndpointState};
use greeter::Greeter;
use support::{Server, builder, eventually, greet, hung, ready, registry};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        let (stop, stopped) = oneshot::channel::<()>();
        let router =
            tonic::transport::Server::builder().add_service(Greeter::new("one").into_service()).add_service(health);
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

/// C12: who says NOT_SERVING gets no call within 100 ms, and calls again once it serves.
#[tokio::test]
async fn c12_a_server_that_does_not_serve_gets_no_calls() {
    let (sick, well) = (Checked::start().await, Checked::start().await);
    let backend = registry([sick.address, well.address]);
    let channel = builder(&backend).health("").build().unwrap();
    eventually("both serve", || ready(&channel) == 2).await;
    for round in 0..3 {
        sick.say(ServingStatus::NotServing).await;
        let took = eventually("one is out", || ready(&channel) == 1).await;
        println!("C12: round {round}: out after {took:?}");
        assert_eq!(state(&channel, sick.address), Some(EndpointState::NotServing));
        for _ in 0..50 {
            assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), well.address);
        }
        // Also over the moment at which the check is opened anew.
        sleep(Duration::from_millis(1200)).await;
        assert_eq!(ready(&channel), 1);
        sick.say(ServingStatus::Serving).await;
        let took = eventually("both serve again", || ready(&channel) == 2).await;
        println!("C12: round {round}: back after {took:?}");
    }
}

/// C12: servers without a health check are used.
#[tokio::test]
async fn c12_a_server_without_a_health_check_counts_as_serving() {
    let server = Server::start("one").await;
    let channel = builder(&registry([server.address])).health("").build().unwrap();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), server.address);
    assert_eq!(ready(&channel), 1);
}

#[tokio::test]
async fn a_service_that_the_server_does_not_know_is_not_served() {
    let server = Checked::start().await;
    let channel = builder(&registry([server.address])).health("another.Service").build().unwrap();
    eventually("it has answered", || state(&channel, server.address) == Some(EndpointState::NotServing)).await;
    sleep(Duration::from_millis(100)).await;
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("do not serve"), "{status}");
    server.reporter.set_service_status("another.Service", ServingStatus::Serving).await;
    eventually("it serves", || ready(&channel) == 1).await;
}

#[tokio::test]
async fn where_none_serves_calls_fail_at_once_and_go_on_after() {
    let server = Checked::start().await;
    let channel = builder(&registry([server.address])).health("").build().unwrap();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), server.address);
    server.say(ServingStatus::NotServing).await;
    eventually("it is out", || ready(&channel) == 0).await;
    let start = Instant::now();
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap_err().code(), Code::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(1));
    server.say(ServingStatus::Serving).await;
    eventually("it serves", || ready(&channel) == 1).await;
    greet(&channel, Some(SOON)).await.unwrap();
}

/// A peer that shakes hands and never answers is not even tried.
#[tokio::test]
async fn a_hung_server_gets_no_calls_at_all() {
    let (address, requests, _peer) = hung().await;
    let good = Checked::start().await;
    let channel = builder(&registry([address, good.address])).health("").build().unwrap();
    eventually("the good one", || ready(&channel) == 1).await;
    for _ in 0..50 {
        assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), good.address);
    }
    assert_eq!(requests.load(std::sync::atomic::Ordering::Relaxed), 1, "the health check alone");
}

/// The check is a stream that never ends; it must not keep a server from ending.
#[tokio::test]
async fn a_health_check_does_not_keep_a_server_that_stops() {
    let mut server = Checked::start().await;
    let channel = builder(&registry([server.address])).health("").build().unwrap();
    eventually("it serves", || ready(&channel) == 1).await;
    server.say(ServingStatus::NotServing).await;
    eventually("it is out", || ready(&channel) == 0).await;
    let start = Instant::now();
    drop(server.stop.take());
    tokio::time::timeout(SOON, server.task).await.expect("the server ends").unwrap();
    println!("the server ended after {:?}", start.elapsed());
}
