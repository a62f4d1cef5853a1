//! A server's life in the registry, over real sockets.
#![cfg(feature = "server")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Claim, Error, ErrorKind, FixedResolver, Resolver, Status, Weight};
use discovery_memory::MemoryBackend;
use discovery_tonic::server::{RegisteredServer, Stage};
use greeter::{GreetRequest, Greeter, GreeterClient};
use support::{
    greet,
    running::{Running, SHORT, SOON, builder, connect, registered},
    service,
};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};
use tonic::{Code, transport::Channel};

#[tokio::test]
async fn a_server_leaves_the_registry_then_drains_then_ends() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    assert_eq!(registered(&backend).await, 1);
    let mut client = server.client().await;
    client.greet(GreetRequest::default()).await.unwrap();

    let start = Instant::now();
    server.handle.stop();
    server.handle.reached(Stage::Draining).await;
    while registered(&backend).await > 0 {
        tokio::task::yield_now().await;
    }
    assert!(start.elapsed() < SHORT, "it leaves first");
    // Old callers and new ones are served while they may not have heard of it.
    client.greet(GreetRequest::default()).await.unwrap();
    server.client().await.greet(GreetRequest::default()).await.unwrap();

    server.handle.reached(Stage::Finishing).await;
    let drained = start.elapsed();
    assert!(drained >= SHORT, "{drained:?}");
    let address = server.address;
    assert_eq!(server.ended().await.unwrap().cut, 0);
    assert!(start.elapsed() < drained + SHORT, "idle connections end at once");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_is_in_flight_is_finished_within_the_limit() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend).limit(SOON)).await;
    let call = server.slow_call(3 * SHORT).await;
    for _ in 0..3 {
        server.handle.stop();
    }
    assert_eq!(server.ended().await.unwrap().cut, 0);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_outlasts_the_limit_is_cut() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    let call = server.slow_call(Duration::from_secs(60)).await;
    let start = Instant::now();
    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().cut, 1);
    assert!((2 * SHORT..SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn a_server_is_told_to_stop_at_once() {
    for stage in [Stage::Draining, Stage::Finishing] {
        let backend = MemoryBackend::new();
        let long = Duration::from_secs(60);
        let drain = if stage == Stage::Draining { long } else { Duration::ZERO };
        let server = Running::serving(builder(&backend).drain(drain).limit(long)).await;
        let call = server.slow_call(long).await;
        server.handle.stop();
        server.handle.reached(stage).await;
        server.handle.stop_now();
        assert_eq!(server.ended().await.unwrap().cut, 1, "{stage:?}");
        assert_eq!(registered(&backend).await, 0);
        assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
    }
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
async fn an_order_before_it_is_ready_stops_a_server_all_the_same() {
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
    backend.restore();
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    assert_eq!(registered(&backend).await, 1);

    backend.interrupt();
    server.client().await.greet(GreetRequest::default()).await.unwrap();
    server.handle.stop();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn losing_the_registry_never_stops_a_server() {
    let backend = MemoryBackend::with_ttl(SHORT);
    let server = Running::serving(builder(&backend).limit(SOON)).await;
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
    assert_eq!(set.iter().next().unwrap().weight().value(), 7, "healed with what was asked for meanwhile");

    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "not any more"));
    assert!(matches!(next().await, Status::Lost { error, .. } if error.kind() == ErrorKind::PermissionDenied));
    let call = server.slow_call(2 * SHORT).await;
    let start = Instant::now();
    server.handle.stop();
    assert_eq!(server.ended().await.unwrap().cut, 0, "it stops in order");
    assert!(start.elapsed() >= SHORT, "who knows it still hears nothing, but may");
    call.await.unwrap().unwrap();
    assert!(matches!(next().await, Status::Deregistered { .. }));
    assert!(statuses.changed().await.is_none());
}

#[tokio::test]
async fn statuses_tell_how_the_registration_stands_from_before_the_first_to_the_last() {
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
    assert_eq!(kind(&status), Some(ErrorKind::ResourceExhausted), "what the registry answers");
    assert!(matches!(status, Status::Lost { since: then, .. } if then == since));
    backend.restore();
    assert!(next().await.is_registered());
    handle.reached(Stage::Serving).await;
    // Healing waits for the registry, so that neither of the two is missed.
    backend.interrupt();
    backend.remove(&service(), "one");
    assert!(matches!(next().await, Status::Lost { .. }));
    backend.restore();
    assert!(next().await.is_registered());

    let _other = Running::serving(named()).await;
    assert!(matches!(next().await, Status::Superseded { .. }));
    assert_eq!(handle.stage(), Stage::Serving, "it serves on");
    handle.stop();
    timeout(SOON, task).await.unwrap().unwrap().unwrap();
    assert!(matches!(handle.statuses().current(), Status::Superseded { .. }), "final");
    assert!(statuses.changed().await.is_none());
}

#[tokio::test]
async fn a_registry_that_refuses_for_good_ends_the_server_with_its_error() {
    let server = Running::start(RegisteredServer::builder(FixedResolver::new([]), service()).drain(SHORT)).await;
    let error = server.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::Unsupported, Some(&service())));
}

#[tokio::test]
async fn who_claims_an_id_takes_it_over_or_is_refused() {
    let backend = MemoryBackend::new();
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let first = Running::serving(named()).await;
    let refused = Running::start(named().limit(SOON).claim(Claim::IfAbsent)).await;
    let error = refused.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::Conflict, Some(&service())));
    let owner = async || backend.list(&service()).await.unwrap().iter().next().unwrap().address().socket_addr();
    assert_eq!(owner().await, Some(first.address), "the refused one took nothing away when it ended");

    let second = Running::serving(named()).await;
    assert_eq!(owner().await, Some(second.address));
    first.handle.stop();
    first.ended().await.unwrap();
    assert_eq!(owner().await, Some(second.address), "nor did the superseded one");
    second.handle.stop();
    second.ended().await.unwrap();
    Running::serving(named().claim(Claim::IfAbsent)).await;
}

#[tokio::test]
async fn a_server_that_is_refused_stops_in_order() {
    let backend = MemoryBackend::new();
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let _first = Running::serving(named()).await;
    let (ready, wait) = oneshot::channel::<()>();
    let refused = named().limit(SOON).claim(Claim::IfAbsent).ready(async { wait.await.unwrap_or_default() });
    let server = Running::start(refused).await;
    let call = server.slow_call(3 * SHORT).await;
    ready.send(()).unwrap();
    assert_eq!(server.ended().await.unwrap_err().kind(), ErrorKind::Conflict);
    call.await.unwrap().expect("what is in flight is finished");
}

#[tokio::test]
async fn weight_and_metadata_change_while_it_runs_and_before() {
    let backend = MemoryBackend::new();
    let (ready, wait) = oneshot::channel::<()>();
    let server = Running::start(builder(&backend).ready(async { wait.await.unwrap_or_default() })).await;
    let weight = |weight| move |instance: discovery_core::Instance| instance.with_weight(Weight::new(weight).unwrap());
    server.handle.update(weight(7)).await.unwrap();
    let another = |instance: discovery_core::Instance| instance.with_id("another".parse().unwrap());
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

#[tokio::test]
async fn health_is_told_before_the_registry_and_taken_back_first() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let backend = MemoryBackend::new();
    let (reporter, health) = tonic_health::server::health_reporter();
    let (ready, wait) = oneshot::channel::<()>();
    let builder =
        builder(&backend).health(reporter, ["greeter.v1.Greeter"]).ready(async { wait.await.unwrap_or_default() });
    let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (address, handle) = (server.local_addr().unwrap(), server.handle());
    let router = tonic::transport::Server::builder().add_service(health);
    let task = tokio::spawn(server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)));

    let mut client = HealthClient::new(connect(address).await);
    let check = async |client: &mut HealthClient<Channel>, service: &str| {
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await;
        answer.map(|answer| answer.into_inner().status())
    };
    assert_eq!(check(&mut client, "").await.unwrap(), ServingStatus::NotServing);
    ready.send(()).unwrap();
    handle.reached(Stage::Serving).await;
    for service in ["", "greeter.v1.Greeter"] {
        assert_eq!(check(&mut client, service).await.unwrap(), ServingStatus::Serving);
    }
    handle.stop();
    handle.reached(Stage::Draining).await;
    tokio::time::sleep(SHORT / 3).await;
    for service in ["", "greeter.v1.Greeter"] {
        assert_eq!(check(&mut client, service).await.unwrap(), ServingStatus::NotServing);
    }
    assert_eq!(check(&mut client, "another").await.unwrap_err().code(), Code::NotFound);
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_is_dropped_cuts_its_callers_and_leaves() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend)).await;
    let call = server.slow_call(Duration::from_secs(60)).await;
    server.task.abort();
    assert!(timeout(SOON, call).await.unwrap().unwrap().is_err());
    let gone = async {
        while registered(&backend).await > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, gone).await.unwrap();
    // The handle holds nothing that the server had.
    let error = server.handle.update(|instance| instance).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_server_that_ends_by_itself_leaves_and_says_so() {
    let backend = MemoryBackend::new();
    let server = builder(&backend).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (fail, failed) = oneshot::channel::<()>();
    let handle = server.handle();
    let task = tokio::spawn(server.serve(|incoming, _| async move {
        let _incoming = incoming;
        failed.await.unwrap();
        Err(std::io::Error::other("out of luck"))
    }));
    handle.reached(Stage::Serving).await;
    fail.send(()).unwrap();
    let error = task.await.unwrap().unwrap_err();
    let report = error.report().to_string();
    assert!(report.contains("ended by itself") && report.ends_with("out of luck"), "{report}");
    assert_eq!(registered(&backend).await, 0);
}

#[tokio::test]
async fn a_fleet_is_replaced_under_load_without_a_failed_call() {
    let backend = MemoryBackend::new();
    let channel = support::channel(&backend);
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(Running::serving(builder(&backend)).await);
    }
    channel.ready(SOON).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let caller = tokio::spawn(async move {
        let mut calls = 0;
        while !stopped.load(Ordering::Relaxed) {
            greet(&channel, Some(SOON)).await.unwrap();
            calls += 1;
        }
        calls
    });
    for _ in 0..3 {
        fleet.push(Running::serving(builder(&backend)).await);
        let old = fleet.remove(0);
        old.handle.stop();
        assert_eq!(old.ended().await.unwrap().cut, 0);
    }
    stop.store(true, Ordering::Relaxed);
    let calls = caller.await.expect("no call fails");
    assert!(calls > 100, "{calls}");
}

/// The registry's address is really reached, whatever routes this machine has.
#[tokio::test]
async fn a_server_bound_to_all_addresses_is_reached_where_it_registered() {
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
