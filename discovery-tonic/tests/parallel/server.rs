//! The lifecycle of a registered server, over real sockets.
#![cfg(feature = "server")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    eventually, greet,
    running::{LONG, Running, SHORT, SOON, builder, connect, registered},
    service,
};
use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, FixedResolver, Instance, Registration, Registry, Resolver, ServiceName, Status, Weight,
    backend::{RegistrationBackend, StatusWriter},
};
use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, Stage};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tokio::{net::TcpStream, sync::oneshot, task::JoinSet, time::timeout};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

#[tokio::test]
async fn a_server_leaves_the_registry_then_drains_then_ends() {
    let backend = MemoryBackend::new();
    let drain = Duration::from_secs(3);
    let server = Running::serving(builder(&backend).drain_time(drain).shutdown_timeout(LONG)).await;
    assert_eq!(registered(&backend).await, 1);
    let mut client = server.client().await;
    client.greet(GreetRequest::default()).await.unwrap();

    let start = Instant::now();
    server.handle.stop();
    server.handle.reached(Stage::Draining).await;
    while registered(&backend).await > 0 {
        tokio::task::yield_now().await;
    }
    // Old and new callers are served as long as they may not have noticed that it leaves.
    client.greet(GreetRequest::default()).await.unwrap();
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    assert_eq!(server.handle.stage(), Stage::Draining, "it deregisters first");

    server.handle.reached(Stage::Finishing).await;
    assert!(start.elapsed() >= drain, "{:?}", start.elapsed());
    let address = server.address;
    assert_eq!(server.ended().await.unwrap().aborted_connections, 0, "idle connections end before the limit");
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_not_registered_but_serves() {
    let backend = MemoryBackend::new();
    let (ready, wait) = oneshot::channel::<()>();
    let server = Running::start(builder(&backend).ready(async { wait.await.unwrap_or_default() })).await;
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    tokio::time::sleep(SHORT).await;
    assert_eq!((registered(&backend).await, server.handle.stage()), (0, Stage::Starting));
    ready.send(()).unwrap();
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    assert_eq!(registered(&backend).await, 1);
}

#[tokio::test]
async fn a_server_can_be_stopped_before_it_is_ready() {
    let backend = MemoryBackend::new();
    let server = Running::start(builder(&backend).ready(std::future::pending())).await;
    server.handle.stop();
    server.ended().await.unwrap();
    assert_eq!(registered(&backend).await, 0);
}

#[tokio::test]
async fn without_the_registry_a_server_starts_serves_and_stops() {
    let backend = MemoryBackend::new();
    backend.interrupt();
    let server = Running::start(builder(&backend)).await;
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    assert_eq!(server.handle.stage(), Stage::Starting);
    server
        .handle
        .update(|instance| instance.with_weight(Weight::new(7).unwrap()))
        .await
        .expect("nothing is written yet");
    backend.restore();
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    let set = backend.list(&service()).await.unwrap();
    assert_eq!(set.iter().map(|instance| instance.weight().value()).collect::<Vec<_>>(), [7]);

    backend.interrupt();
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    server.handle.stop();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn losing_the_registry_never_stops_a_server() {
    let backend = MemoryBackend::with_ttl(SHORT);
    let server = Running::serving(builder(&backend).shutdown_timeout(LONG)).await;
    let mut statuses = server.handle.statuses();
    assert!(statuses.current().is_registered());
    let mut next = async || timeout(SOON, statuses.changed()).await.unwrap().unwrap();

    backend.interrupt();
    assert!(matches!(next().await, Status::Lost { .. }), "the lease has ended");
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    let weight = server.handle.update(|instance| instance.with_weight(Weight::new(7).unwrap())).await;
    assert!(weight.unwrap_err().is_retryable());
    assert_eq!(server.handle.stage(), Stage::Serving);
    backend.restore();
    assert!(next().await.is_registered());
    let set = backend.list(&service()).await.unwrap();
    assert_eq!(set.iter().next().unwrap().weight().value(), 7, "re-registered with the latest weight");

    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "no longer allowed"));
    assert!(matches!(next().await, Status::Lost { error, .. } if error.kind() == ErrorKind::PermissionDenied));
    let call = server.slow_call(2 * SHORT).await;
    let start = Instant::now();
    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().aborted_connections, 0, "it stops gracefully");
    assert!(start.elapsed() >= SHORT, "it drains, since clients may still know it");
    call.await.unwrap().unwrap();
    assert!(matches!(next().await, Status::Deregistered { .. }));
    assert!(statuses.changed().await.is_none());
}

#[tokio::test]
async fn statuses_cover_the_registration_from_before_its_first_write_to_its_end() {
    let backend = MemoryBackend::new();
    let kind = |status: &Status| match status {
        Status::Lost { error, .. } => Some(error.kind()),
        _ => None,
    };
    backend.interrupt_with(Error::new(ErrorKind::ResourceExhausted, "full"));
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let server = named().bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let handle = server.handle();
    let mut statuses = handle.statuses();
    let Status::Lost { since, error } = statuses.current() else { panic!("not lost") };
    assert!(error.to_string().contains("not registered yet"), "{error}");
    let router = tonic::transport::Server::builder().add_service(Greeter::new("one").into_service());
    let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
    let mut next = async || timeout(SOON, statuses.changed()).await.unwrap().unwrap();
    let status = next().await;
    assert_eq!(kind(&status), Some(ErrorKind::ResourceExhausted), "the registry's answer");
    assert!(matches!(status, Status::Lost { since: then, .. } if then == since));
    backend.restore();
    assert!(next().await.is_registered());
    handle.reached(Stage::Serving).await;
    // Re-registering waits for the registry, so that neither status is missed.
    backend.interrupt();
    backend.remove(&service(), "one");
    assert!(matches!(next().await, Status::Lost { .. }));
    backend.restore();
    assert!(next().await.is_registered());

    let _other = Running::serving(named()).await;
    assert!(matches!(next().await, Status::Superseded { .. }));
    assert_eq!(handle.stage(), Stage::Serving, "it keeps serving");
    handle.stop();
    timeout(SOON, task).await.unwrap().unwrap().unwrap();
    assert!(matches!(handle.statuses().current(), Status::Superseded { .. }), "final");
    assert!(statuses.changed().await.is_none());
}

#[tokio::test]
async fn a_permanent_refusal_by_the_registry_ends_the_server_with_its_error() {
    let server = Running::start(RegisteredServer::builder(FixedResolver::new([]), service()).drain_time(SHORT)).await;
    let error = server.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::Unsupported, Some(&service())));
}

#[tokio::test]
async fn a_claim_of_an_id_takes_over_or_is_refused() {
    let backend = MemoryBackend::new();
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let first = Running::serving(named()).await;
    let refused = Running::start(named().shutdown_timeout(LONG).claim(Claim::IfAbsent)).await;
    let error = refused.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::Conflict, Some(&service())));
    let owner = async || backend.list(&service()).await.unwrap().iter().next().unwrap().address().socket_addr();
    assert_eq!(owner().await, Some(first.address), "the refused server removed nothing when it ended");

    let second = Running::serving(named()).await;
    assert_eq!(owner().await, Some(second.address));
    first.handle.stop();
    first.ended().await.unwrap();
    assert_eq!(owner().await, Some(second.address), "nor did the superseded server");
    second.handle.stop();
    second.ended().await.unwrap();
    Running::serving(named().claim(Claim::IfAbsent)).await;
}

#[tokio::test]
async fn a_refused_server_stops_gracefully() {
    let backend = MemoryBackend::new();
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let _first = Running::serving(named()).await;
    let (ready, wait) = oneshot::channel::<()>();
    let refused = named().shutdown_timeout(LONG).claim(Claim::IfAbsent).ready(async { wait.await.unwrap_or_default() });
    let server = Running::start(refused).await;
    let call = server.slow_call(3 * SHORT).await;
    ready.send(()).unwrap();
    assert_eq!(server.ended().await.unwrap_err().kind(), ErrorKind::Conflict);
    call.await.unwrap().expect("the call in flight finishes");
}

#[tokio::test]
async fn weight_and_metadata_change_while_it_runs_and_before() {
    let backend = MemoryBackend::new();
    let (ready, wait) = oneshot::channel::<()>();
    let server = Running::start(builder(&backend).ready(async { wait.await.unwrap_or_default() })).await;
    let weight = |weight| move |instance: Instance| instance.with_weight(Weight::new(weight).unwrap());
    server.handle.update(weight(7)).await.unwrap();
    let another = |instance: Instance| instance.with_id("another".parse().unwrap());
    assert_eq!(server.handle.update(another).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    ready.send(()).unwrap();
    server.handle.reached(Stage::Serving).await;
    let seen = async || backend.list(&service()).await.unwrap().iter().next().unwrap().weight().value();
    assert_eq!(seen().await, 7);
    server.handle.update(weight(8)).await.unwrap();
    assert_eq!(seen().await, 8);
    assert_eq!(server.handle.update(another).await.unwrap_err().kind(), ErrorKind::InvalidInput);

    server.handle.stop();
    let handle = server.handle.clone();
    server.ended().await.unwrap();
    assert_eq!(handle.update(weight(9)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(handle.stage(), Stage::Stopped);
}

/// A registry that asks a server for its health before it writes its entry.
struct Asking {
    backend: MemoryBackend,
    told: Arc<Mutex<Vec<(&'static str, ServingStatus)>>>,
}

#[derive(Debug)]
struct Asked {
    registration: Mutex<Option<Registration>>,
    address: SocketAddr,
    told: Arc<Mutex<Vec<(&'static str, ServingStatus)>>>,
}

#[async_trait]
impl Registry for Asking {
    async fn register_with(&self, service: &ServiceName, one: Instance, claim: Claim) -> Result<Registration, Error> {
        let address = one.address().socket_addr().unwrap();
        let health = health(&mut HealthClient::new(connect(address).await), "").await.unwrap();
        self.told.lock().unwrap().push(("register", health));
        let registration = self.backend.register_with(service, one, claim).await?;
        let instance = registration.instance();
        let told = Arc::clone(&self.told);
        let asked = Asked { registration: Mutex::new(Some(registration)), address, told };
        Ok(Registration::new(service.clone(), instance, &StatusWriter::new(Status::registered()), asked))
    }
}

#[async_trait]
impl RegistrationBackend for Asked {
    async fn update(&self, _: Arc<Instance>) -> Result<(), Error> {
        Ok(())
    }

    async fn deregister(&self) -> Result<(), Error> {
        let health = health(&mut HealthClient::new(connect(self.address).await), "").await.unwrap();
        self.told.lock().unwrap().push(("deregister", health));
        let registration = self.registration.lock().unwrap().take().unwrap();
        registration.deregister().await
    }

    fn release(&self) {}
}

async fn health(client: &mut HealthClient<Channel>, service: &str) -> Result<ServingStatus, tonic::Status> {
    let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await?;
    Ok(answer.into_inner().status())
}

#[tokio::test]
async fn health_is_reported_before_registering_and_withdrawn_before_deregistering() {
    let backend = MemoryBackend::new();
    let told = Arc::default();
    let asking = Asking { backend: backend.clone(), told: Arc::clone(&told) };
    let (reporter, service_of_health) = tonic_health::server::health_reporter();
    let (ready, wait) = oneshot::channel::<()>();
    let builder = RegisteredServer::builder(asking, service())
        .drain_time(Duration::from_secs(3))
        .health_reporter(reporter, ["greeter.v1.Greeter"])
        .ready(async { wait.await.unwrap_or_default() });
    let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr().unwrap();
    let handle = server.handle();
    let router = tonic::transport::Server::builder().add_service(service_of_health);
    let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let mut client = HealthClient::new(connect(address).await);
    assert_eq!(health(&mut client, "").await.unwrap(), ServingStatus::NotServing);
    assert_eq!(*told.lock().unwrap(), []);
    ready.send(()).unwrap();
    handle.reached(Stage::Serving).await;
    for service in ["", "greeter.v1.Greeter"] {
        assert_eq!(health(&mut client, service).await.unwrap(), ServingStatus::Serving);
    }
    handle.stop();
    handle.reached(Stage::Draining).await;
    while registered(&backend).await > 0 {
        tokio::task::yield_now().await;
    }
    for service in ["", "greeter.v1.Greeter"] {
        assert_eq!(health(&mut client, service).await.unwrap(), ServingStatus::NotServing);
    }
    assert_eq!(health(&mut client, "another").await.unwrap_err().code(), Code::NotFound);
    task.await.unwrap().unwrap();
    let expected = [("register", ServingStatus::Serving), ("deregister", ServingStatus::NotServing)];
    assert_eq!(*told.lock().unwrap(), expected);
}

#[tokio::test]
async fn b10_a_fleet_is_replaced_under_load_without_a_failed_call() {
    let backend = MemoryBackend::new();
    let channel = crate::support::channel(&backend);
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(Running::serving(builder(&backend)).await);
    }
    channel.wait_until_ready(SOON).await.unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    let mut caller = JoinSet::new();
    caller.spawn(async move {
        loop {
            greet(&channel, Some(SOON)).await.unwrap();
            called.fetch_add(1, Ordering::Relaxed);
        }
    });
    for step in 1..=3 {
        fleet.push(Running::serving(builder(&backend)).await);
        let old = fleet.remove(0);
        old.handle.stop();
        assert_eq!(old.ended().await.unwrap().aborted_connections, 0);
        eventually("calls continue", || calls.load(Ordering::Relaxed) > 40 * step).await;
    }
    assert!(caller.try_join_next().is_none(), "no call fails");
}

/// Uses the registry's real address, whatever routes this machine has.
#[tokio::test]
async fn a_server_bound_to_all_addresses_is_reachable_at_its_registered_address() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let backend = MemoryBackend::new();
        let server = match builder(&backend).bind(bind.parse().unwrap()).await {
            Ok(server) => server,
            Err(error) => {
                println!("{bind}: {}", error.report());
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                continue;
            }
        };
        println!("{bind}: {}", server.instance().address());
        let address = server.instance().address().socket_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(Greeter::new("all").into_service());
        let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));
        GreeterClient::new(connect(address).await).greet(GreetRequest::default()).await.unwrap();
        task.abort();
    }
}
