//! Registrations that follow the health of their server.
#![cfg(feature = "server")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    eventually,
    running::{LONG, Running, SHORT, SOON, builder, until_weights, weight, weights},
    service,
};
use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, ServiceName, Status,
    backend::{RegistrationBackend, StatusWriter},
};
use discovery_memory::MemoryBackend;
use discovery_tonic::server::{NotServing, RegisteredServer, ServerBuilder, Stage};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic_health::{ServingStatus, server::HealthReporter};

const GRPC: &str = "greeter.v1.Greeter";

fn following(builder: ServerBuilder, reaction: NotServing) -> (ServerBuilder, HealthReporter) {
    let reporter = HealthReporter::new();
    (builder.health_reporter(reporter.clone(), [GRPC]).when_not_serving(reaction), reporter)
}

async fn report(reporter: &HealthReporter, is_serving: bool) {
    let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status(GRPC, status).await;
}

fn one() -> ServiceName {
    "one".parse().unwrap()
}

#[tokio::test]
async fn an_instance_that_is_not_serving_stays_or_leaves_or_has_weight_0() {
    for (reaction, meanwhile) in
        [(NotServing::Stay, &[100][..]), (NotServing::Leave, &[]), (NotServing::ZeroWeight, &[0])]
    {
        let backend = MemoryBackend::new();
        let (builder, reporter) = following(builder(&backend).also(one()), reaction);
        let server = Running::serving(builder).await;
        for (service, status) in
            [("", ServingStatus::NotServing), (GRPC, ServingStatus::NotServing), (GRPC, ServingStatus::Unknown)]
        {
            assert_eq!(weights(&backend, "greeter").await, [100]);
            reporter.set_service_status(service, status).await;
            if reaction == NotServing::Stay {
                sleep(SHORT).await;
            }
            until_weights(&backend, "greeter", meanwhile).await;
            until_weights(&backend, "one", meanwhile).await;
            let is_registered = || server.handle.statuses().current().is_registered();
            eventually("the status", || is_registered() != meanwhile.is_empty()).await;
            assert_eq!(server.handle.stage(), Stage::Serving, "it serves whoever calls it");
            reporter.set_service_status(service, ServingStatus::Serving).await;
            until_weights(&backend, "greeter", &[100]).await;
            until_weights(&backend, "one", &[100]).await;
            eventually("registered", is_registered).await;
        }
        reporter.set_service_status("another", ServingStatus::NotServing).await;
        sleep(SHORT).await;
        assert_eq!(weights(&backend, "greeter").await, [100], "it was not named to `health_reporter`");
    }
}

#[tokio::test]
async fn a_change_of_the_weight_while_not_serving_is_seen_once_it_serves() {
    for (reaction, meanwhile) in [(NotServing::Leave, &[][..]), (NotServing::ZeroWeight, &[0])] {
        let backend = MemoryBackend::new();
        let (builder, reporter) = following(builder(&backend), reaction);
        let server = Running::serving(builder).await;
        report(&reporter, false).await;
        until_weights(&backend, "greeter", meanwhile).await;
        let update = server.handle.update(|instance| {
            assert_eq!(instance.weight().value(), 100, "the wanted one");
            weight(7)(instance)
        });
        update.await.unwrap();
        assert_eq!(weights(&backend, "greeter").await, meanwhile);
        report(&reporter, true).await;
        until_weights(&backend, "greeter", &[7]).await;
    }
}

#[tokio::test]
async fn after_an_outage_the_registry_has_what_the_health_is_by_then() {
    let mut cases = JoinSet::new();
    for reaction in [NotServing::Leave, NotServing::ZeroWeight] {
        for before in [true, false] {
            for at_the_end in [true, false] {
                cases.spawn(outage(reaction, before, at_the_end));
            }
        }
    }
    cases.join_all().await;
}

/// An outage with this health before it and at its end.
async fn outage(reaction: NotServing, before: bool, at_the_end: bool) {
    let backend = MemoryBackend::with_ttl(Duration::from_secs(1));
    let (builder, reporter) = following(builder(&backend), reaction);
    let server = Running::serving(builder).await;
    let expected = |is_serving| match (is_serving, reaction) {
        (true, _) => &[100][..],
        (false, NotServing::Leave) => &[],
        (false, _) => &[0],
    };
    report(&reporter, before).await;
    until_weights(&backend, "greeter", expected(before)).await;
    backend.interrupt();
    for is_serving in [!before, before, !at_the_end, at_the_end] {
        report(&reporter, is_serving).await;
        sleep(SHORT / 10).await;
    }
    backend.restore();
    until_weights(&backend, "greeter", expected(at_the_end)).await;
    let is_registered = || server.handle.statuses().current().is_registered();
    let should_be = at_the_end || reaction == NotServing::ZeroWeight;
    eventually("the status", || is_registered() == should_be).await;
    report(&reporter, !at_the_end).await;
    until_weights(&backend, "greeter", expected(!at_the_end)).await;
    server.handle.stop();
    server.ended().await.unwrap();
    assert!(weights(&backend, "greeter").await.is_empty());
}

/// The entry that could not be removed is the server's own, so it is no other owner: it is waited
/// for.
#[tokio::test]
async fn a_server_returns_once_the_entry_that_it_left_in_an_outage_is_gone() {
    let backend = MemoryBackend::with_ttl(Duration::from_secs(1));
    let (builder, reporter) = following(builder(&backend), NotServing::Leave);
    let server = Running::serving(builder).await;
    let mut statuses = server.handle.statuses();
    backend.interrupt();
    report(&reporter, false).await;
    assert!(matches!(timeout(SOON, statuses.changed()).await.unwrap(), Some(Status::Lost { .. })));
    backend.restore();
    report(&reporter, true).await;
    let status = timeout(SOON, statuses.changed()).await.unwrap().unwrap();
    assert!(status.is_registered(), "{status:?}");
    assert_eq!(weights(&backend, "greeter").await, [100]);
    sleep(backend.ttl()).await;
    assert_eq!(weights(&backend, "greeter").await, [100], "it is renewed");
    assert!(statuses.current().is_registered());
}

#[tokio::test]
async fn a_server_that_returns_takes_nothing_over() {
    let backend = MemoryBackend::new();
    let named = builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let (builder, reporter) = following(named, NotServing::Leave);
    let server = Running::serving(builder).await;
    report(&reporter, false).await;
    until_weights(&backend, "greeter", &[]).await;
    let other = weight(9)(Instance::new("10.0.0.9:80".parse().unwrap()).with_id("one".parse().unwrap()));
    let other = backend.another_process().register(&service(), other).await.unwrap();
    report(&reporter, true).await;
    let superseded = || matches!(server.handle.statuses().current(), Status::Superseded { .. });
    eventually("superseded", superseded).await;
    for is_serving in [false, true] {
        report(&reporter, is_serving).await;
        sleep(SHORT / 3).await;
    }
    assert!(other.status().is_registered());
    assert_eq!(weights(&backend, "greeter").await, [9]);
    other.deregister().await.unwrap();
    sleep(SHORT / 3).await;
    assert_eq!(weights(&backend, "greeter").await, [0; 0], "superseded is final");
}

#[tokio::test]
async fn a_server_that_is_not_serving_when_it_could_register_registers_later() {
    for (reaction, at_first) in [(NotServing::Leave, &[][..]), (NotServing::ZeroWeight, &[0])] {
        let backend = MemoryBackend::new();
        backend.interrupt_with(Error::new(ErrorKind::ResourceExhausted, "full"));
        let (builder, reporter) = following(builder(&backend), reaction);
        let server = Running::start(builder).await;
        let asked = || {
            let status = server.handle.statuses().current();
            matches!(status, Status::Lost { error, .. } if error.kind() == ErrorKind::ResourceExhausted)
        };
        eventually("it tries", asked).await;
        report(&reporter, false).await;
        sleep(SHORT / 3).await;
        backend.restore();
        until_weights(&backend, "greeter", at_first).await;
        sleep(SHORT).await;
        assert_eq!(weights(&backend, "greeter").await, at_first);
        let stage = if at_first.is_empty() { Stage::Starting } else { Stage::Serving };
        assert_eq!(server.handle.stage(), stage);
        report(&reporter, true).await;
        until_weights(&backend, "greeter", &[100]).await;
        timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_drains_is_not_registered_again() {
    for reaction in [NotServing::Leave, NotServing::ZeroWeight] {
        for before in [true, false] {
            let backend = MemoryBackend::new();
            let (builder, reporter) = following(builder(&backend).drain_time(LONG), reaction);
            let server = Running::serving(builder).await;
            report(&reporter, before).await;
            until_weights(
                &backend,
                "greeter",
                if before {
                    &[100]
                } else if reaction == NotServing::Leave {
                    &[]
                } else {
                    &[0]
                },
            )
            .await;
            server.handle.stop();
            server.handle.reached(Stage::Draining).await;
            until_weights(&backend, "greeter", &[]).await;
            for is_serving in [true, false, true] {
                reporter.set_service_status("", ServingStatus::Serving).await;
                report(&reporter, is_serving).await;
                sleep(SHORT / 10).await;
                assert!(weights(&backend, "greeter").await.is_empty());
            }
            assert_eq!(server.handle.stage(), Stage::Draining, "clients may not know yet that it left");
            server.handle.stop_now();
            server.ended().await.unwrap();
            assert!(weights(&backend, "greeter").await.is_empty());
        }
    }
}

/// A registry that takes its time, counts its calls, and keeps only one instance.
#[derive(Clone, Debug, Default)]
struct Slow {
    calls: Arc<AtomicUsize>,
    concurrent: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    weight: Arc<std::sync::Mutex<Option<u16>>>,
}

impl Slow {
    async fn write(&self, weight: Option<u16>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let concurrent = self.concurrent.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(concurrent, Ordering::Relaxed);
        sleep(Duration::from_millis(50)).await;
        self.concurrent.fetch_sub(1, Ordering::Relaxed);
        *self.weight.lock().unwrap() = weight;
    }
}

#[async_trait]
impl Registry for Slow {
    async fn register_with(&self, service: &ServiceName, one: Instance, _: Claim) -> Result<Registration, Error> {
        self.write(Some(one.weight().value())).await;
        let status = StatusWriter::new(Status::registered());
        Ok(Registration::new(service.clone(), Arc::new(one), &status, self.clone()))
    }
}

#[async_trait]
impl RegistrationBackend for Slow {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        self.write(Some(instance.weight().value())).await;
        Ok(())
    }

    async fn deregister(&self) -> Result<(), Error> {
        self.write(None).await;
        Ok(())
    }

    fn release(&self) {}
}

#[tokio::test]
async fn health_that_flaps_does_not_pile_up_work() {
    for (reaction, down) in [(NotServing::Leave, None), (NotServing::ZeroWeight, Some(0))] {
        let slow = Slow::default();
        let builder = RegisteredServer::builder(slow.clone(), service()).drain_time(SHORT).shutdown_timeout(SHORT);
        let (builder, reporter) = following(builder, reaction);
        let server = Running::serving(builder).await;
        for expected in [false, true] {
            let before = slow.calls.load(Ordering::Relaxed);
            let start = Instant::now();
            for n in 0..300 {
                report(&reporter, (n % 2 == 0) == expected).await;
                sleep(Duration::from_millis(1)).await;
            }
            report(&reporter, expected).await;
            let is_written = || *slow.weight.lock().unwrap() == if expected { Some(100) } else { down };
            let is_idle = || slow.concurrent.load(Ordering::Relaxed) == 0;
            sleep(SHORT).await;
            eventually("the last health is registered", || is_written() && is_idle()).await;
            let calls = slow.calls.load(Ordering::Relaxed) - before;
            let most = usize::try_from(start.elapsed().as_millis() / 50).unwrap() + 1;
            println!("{reaction:?}: {calls} calls for 301 reports, in {:?}", start.elapsed());
            assert!((1..=most).contains(&calls), "{calls} calls, of which {most} fit one after another");
            assert_eq!(slow.most.load(Ordering::Relaxed), 1, "one at a time");
        }
        server.handle.stop();
        server.ended().await.unwrap();
    }
}

/// An instance that leaves because of its health, and is stopped before that is done.
#[tokio::test]
async fn a_stop_waits_for_a_removal_that_is_under_way() {
    let slow = Slow::default();
    let builder = RegisteredServer::builder(slow.clone(), service()).drain_time(Duration::ZERO).shutdown_timeout(SHORT);
    let (builder, reporter) = following(builder, NotServing::Leave);
    let server = Running::serving(builder).await;
    report(&reporter, false).await;
    eventually("it leaves", || slow.concurrent.load(Ordering::Relaxed) == 1).await;
    assert!(slow.weight.lock().unwrap().is_some());
    server.handle.stop();
    server.ended().await.unwrap();
    assert_eq!((*slow.weight.lock().unwrap(), slow.calls.load(Ordering::Relaxed)), (None, 2));
}

/// A registry that refuses changes for a while, after which somebody permits them again.
#[tokio::test]
async fn a_change_that_is_refused_is_tried_again() {
    let backend = MemoryBackend::new();
    let (builder, reporter) = following(builder(&backend), NotServing::ZeroWeight);
    let server = Running::serving(builder).await;
    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "no longer allowed"));
    report(&reporter, false).await;
    sleep(SHORT).await;
    assert_eq!(server.handle.stage(), Stage::Serving);
    backend.restore();
    until_weights(&backend, "greeter", &[0]).await;
}

#[tokio::test]
async fn readiness_needs_a_reporter() {
    let backend = MemoryBackend::new();
    for reaction in [NotServing::Leave, NotServing::ZeroWeight] {
        let bound = builder(&backend).when_not_serving(reaction).bind("127.0.0.1:0".parse().unwrap()).await;
        let error = bound.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("`health_reporter`"), "{error}");
    }
    let stays = builder(&backend).when_not_serving(NotServing::Stay);
    drop(stays.bind("127.0.0.1:0".parse().unwrap()).await.unwrap());
}
