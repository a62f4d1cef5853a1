//! The life of a server while etcd is away, hangs, or has another owner under the server's id.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use discovery_core::{Claim, Error, ErrorKind, Instance, Resolver, Status, StatusReceiver, Weight};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use discovery_tonic::server::{NotServing, RegisteredServer, ServerBuilder, ServerHandle, Stage, Stopped};
use greeter::{GreetRequest, Greeter, GreeterClient};
use support::{Etcd, Fault, Proxy, eventually};
use tokio::{runtime::Runtime, task::JoinHandle, time::timeout};
use tonic::transport::{Channel, Server};
use tonic_health::ServingStatus;

struct Running {
    address: SocketAddr,
    handle: ServerHandle,
    task: JoinHandle<Result<Stopped, Error>>,
}

impl Running {
    async fn start(builder: ServerBuilder) -> Self {
        let server = builder.drain_time(DRAIN).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_addr().unwrap();
        let handle = server.handle();
        let router = Server::builder().add_service(Greeter::new("one").into_service());
        let serve = server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway));
        Self { address, handle, task: tokio::spawn(serve) }
    }

    async fn serves(&self) {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap();
        GreeterClient::new(channel).greet(GreetRequest::default()).await.unwrap();
    }

    async fn weigh(&self, weight: u16) -> Result<(), Error> {
        self.handle.update(|instance| instance.with_weight(Weight::new(weight).unwrap())).await
    }

    async fn ended(self) -> Result<Stopped, Error> {
        timeout(SOON, self.task).await.expect("the server ends").unwrap()
    }
}

fn backend(etcd: &Etcd) -> EtcdBackend {
    let config = EtcdConfig::new(etcd.members()).ttl(Duration::from_secs(5)).operation_timeout(DEADLINE);
    EtcdBackend::new(config).unwrap()
}

fn builder(backend: &EtcdBackend) -> ServerBuilder {
    let one = |instance: Instance| instance.with_id("one".parse().unwrap());
    RegisteredServer::builder(backend.clone(), "greeter".parse().unwrap()).instance(one)
}

async fn weights(backend: &EtcdBackend) -> Vec<u16> {
    weights_of(backend, "greeter").await
}

async fn weights_of(backend: &EtcdBackend, service: &str) -> Vec<u16> {
    let set = backend.list(&service.parse().unwrap()).await.unwrap();
    set.iter().map(|instance| instance.weight().value()).collect()
}

async fn until(statuses: &mut StatusReceiver, what: &str, is: impl Fn(&Status) -> bool) {
    let until = async { while !is(&statuses.changed().await.unwrap()) {} };
    timeout(SOON, until).await.expect(what);
}

/// A server starts without etcd, serves while etcd is gone, registers again, and stops while etcd
/// hangs: after the operation timeout, which is longer than the drain time here.
#[tokio::test]
async fn a_server_starts_serves_and_stops_without_etcd() {
    let etcd = Etcd::absent();
    let backend = backend(&etcd);
    let server = Running::start(builder(&backend)).await;
    let mut statuses = server.handle.statuses();
    server.serves().await;
    server.weigh(7).await.expect("it updates what will be registered");
    assert_eq!(server.handle.stage(), Stage::Starting);
    etcd.appear().await;
    until(&mut statuses, "it registers", Status::is_registered).await;
    assert_eq!(weights(&backend).await, [7]);

    etcd.kill(0);
    until(&mut statuses, "it notices", |status| matches!(status, Status::Lost { .. })).await;
    assert!(server.weigh(9).await.unwrap_err().is_retryable());
    server.serves().await;
    assert_eq!(server.handle.stage(), Stage::Serving);
    etcd.restart(0).await;
    until(&mut statuses, "it heals", Status::is_registered).await;
    eventually("the update requested meanwhile is written", SOON, async || weights(&backend).await == [9]).await;

    etcd.pause(0);
    let start = Instant::now();
    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().aborted_connections, 0);
    let took = start.elapsed();
    println!("stopped {took:?} after the order, with a deadline of {DEADLINE:?}");
    assert!((DEADLINE..DEADLINE + DRAIN).contains(&took), "clients that cannot learn of the end get no drain time");
    assert!(matches!(statuses.current(), Status::Deregistered { .. }));
    etcd.resume(0);
}

/// A claim is refused because of another owner's entry, but not because of the server's own entry
/// from an unanswered attempt.
#[tokio::test]
async fn a_claim_is_refused_only_for_another_owners_entry() {
    let etcd = Etcd::start().await;
    let other = backend(&etcd);
    let backend = backend(&etcd);
    // The client is connected, so that the claim is in flight when etcd hangs.
    assert!(weights(&backend).await.is_empty());
    etcd.pause(0);
    let server = Running::start(builder(&backend).claim(Claim::IfAbsent)).await;
    let unanswered = async || {
        let Status::Lost { error, .. } = server.handle.statuses().current() else { return false };
        error.to_string().contains("not registered within")
    };
    eventually("the claim is not answered", SOON, unanswered).await;
    etcd.resume(0);
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    assert!(server.handle.statuses().current().is_registered());

    let refused = Running::start(builder(&other).claim(Claim::IfAbsent)).await;
    let error = refused.ended().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{}", error.report());
    assert_eq!(weights(&other).await.len(), 1);
    server.handle.stop();
    server.ended().await.unwrap();
    assert!(weights(&other).await.is_empty());
}

/// A server is stopped while its first registration is in flight, and its process ends with it: no
/// entry is left behind.
#[test]
fn a_server_that_is_stopped_while_it_registers_leaves_no_entry() {
    let world = runtime();
    let (etcd, proxy, mut raw) = world.block_on(async {
        let etcd = Etcd::start().await;
        let proxy = Proxy::to(etcd.address()).await;
        proxy.set(Fault::Delay { delay: Duration::from_millis(100), jitter: Duration::ZERO });
        let raw = etcd.raw().await;
        (etcd, proxy, raw)
    });
    let process = runtime();
    process.block_on(async {
        let backend = EtcdBackend::new(EtcdConfig::new([proxy.address()])).unwrap();
        let server = Running::start(builder(&backend)).await;
        eventually("the entry is written", SOON, async || !raw.keys().await.is_empty()).await;
        assert_eq!(server.handle.stage(), Stage::Starting, "the answer is still in flight");
        server.handle.stop();
        server.ended().await.unwrap();
    });
    drop(process);
    world.block_on(async {
        assert!(raw.keys().await.is_empty());
        drop((proxy, etcd));
    });
}

/// The backend is closed before the server is registered: the server ends instead of serving
/// nobody.
#[tokio::test]
async fn a_server_ends_if_the_backend_is_closed_before_it_is_registered() {
    let etcd = Etcd::absent();
    let backend = backend(&etcd);
    let server = Running::start(builder(&backend)).await;
    server.serves().await;
    let is_trying = async || matches!(server.handle.statuses().current(), Status::Lost { .. });
    eventually("it tries to register", SOON, is_trying).await;
    backend.close().await.unwrap();
    assert_ne!(server.handle.stage(), Stage::Serving);
    let error = server.ended().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{}", error.report());
}

/// A server under two services leaves and returns with its health, also if it changes while etcd is
/// frozen: what is registered once etcd answers is what the health is by then.
#[tokio::test]
async fn registrations_under_two_services_follow_the_health_through_a_freeze_of_etcd() {
    let etcd = Etcd::start().await;
    let backend = backend(&etcd);
    let (reporter, _checks) = tonic_health::server::health_reporter();
    let following = builder(&backend)
        .also("ingest".parse().unwrap())
        .health_reporter(reporter.clone(), [""; 0])
        .when_not_serving(NotServing::Leave);
    let server = Running::start(following).await;
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    let report = async |status| reporter.set_service_status("", status).await;
    let registered = async |expected: &[u16]| {
        let both = async || weights(&backend).await == expected && weights_of(&backend, "ingest").await == expected;
        eventually("both services are registered accordingly", SOON, both).await;
    };
    registered(&[100]).await;
    for _ in 0..3 {
        report(ServingStatus::NotServing).await;
        registered(&[]).await;
        report(ServingStatus::Serving).await;
        registered(&[100]).await;
    }
    for at_the_end in [ServingStatus::Serving, ServingStatus::NotServing, ServingStatus::Serving] {
        etcd.pause(0);
        report(ServingStatus::NotServing).await;
        // Longer than the removal, which is not confirmed.
        tokio::time::sleep(DEADLINE + DEADLINE / 2).await;
        report(at_the_end).await;
        etcd.resume(0);
        registered(if at_the_end == ServingStatus::Serving { &[100] } else { &[] }).await;
    }
    let is_registered = async || server.handle.statuses().current().is_registered();
    eventually("its status follows", SOON, is_registered).await;
    server.handle.stop();
    server.ended().await.unwrap();
    registered(&[]).await;
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

const DRAIN: Duration = Duration::from_millis(1500);
const SOON: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(2);
