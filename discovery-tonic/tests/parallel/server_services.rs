//! A server that is registered under several services.
#![cfg(feature = "server")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::{
    eventually, greet,
    running::{LONG, Running, SHORT, SOON, builder, until_weights, weight, weights},
    service,
};
use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, ServiceName, Status, StatusReceiver, Weight,
    backend::{RegistrationBackend, StatusWriter},
};
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    BalancedChannel,
    server::{RegisteredServer, Stage},
};
use tokio::{sync::Barrier, time::timeout};

fn ingest() -> ServiceName {
    "ingest".parse().unwrap()
}

async fn next(statuses: &mut StatusReceiver) -> Status {
    timeout(SOON, statuses.changed()).await.unwrap().unwrap()
}

#[tokio::test]
async fn two_services_are_registered_drained_and_reported_together() {
    let backend = MemoryBackend::new();
    let drain = Duration::from_secs(3);
    let server =
        Running::serving(builder(&backend).also(ingest()).also(service()).drain_time(drain).shutdown_timeout(LONG))
            .await;
    assert_eq!(backend.revision(), 2, "a service that is named twice counts once");
    let mut statuses = server.handle.statuses();
    assert!(statuses.current().is_registered());
    for service in [service(), ingest()] {
        let channel = BalancedChannel::new(backend.clone(), service).unwrap();
        channel.wait_until_ready(SOON).await.unwrap();
        assert_eq!(greet(&channel, None).await.unwrap(), server.address);
    }

    let start = Instant::now();
    server.handle.stop();
    server.handle.reached(Stage::Draining).await;
    until_weights(&backend, "greeter", &[]).await;
    until_weights(&backend, "ingest", &[]).await;
    assert_eq!(server.handle.stage(), Stage::Draining, "it deregisters first");
    assert!(matches!(next(&mut statuses).await, Status::Deregistered { .. }));
    server.ended().await.unwrap();
    assert!(start.elapsed() >= drain, "{:?}", start.elapsed());
}

/// A registry whose calls meet those for the other service, so that each call of one alone hangs.
struct Meeting(MemoryBackend, Arc<Barrier>);

#[derive(Debug)]
struct Met(Mutex<Option<Registration>>, Arc<Barrier>);

#[async_trait]
impl Registry for Meeting {
    async fn register_with(&self, service: &ServiceName, one: Instance, claim: Claim) -> Result<Registration, Error> {
        self.1.wait().await;
        let registration = self.0.register_with(service, one, claim).await?;
        let instance = registration.instance();
        let met = Met(Mutex::new(Some(registration)), Arc::clone(&self.1));
        Ok(Registration::new(service.clone(), instance, &StatusWriter::new(Status::registered()), met))
    }
}

#[async_trait]
impl RegistrationBackend for Met {
    async fn update(&self, _: Arc<Instance>) -> Result<(), Error> {
        self.1.wait().await;
        Ok(())
    }

    async fn deregister(&self) -> Result<(), Error> {
        self.1.wait().await;
        let registration = self.0.lock().unwrap().take().unwrap();
        registration.deregister().await
    }

    fn release(&self) {}
}

#[tokio::test]
async fn all_services_are_written_changed_and_removed_at_the_same_time() {
    let backend = MemoryBackend::new();
    let meeting = Meeting(backend.clone(), Arc::new(Barrier::new(2)));
    let builder = RegisteredServer::builder(meeting, service()).also(ingest()).drain_time(SHORT);
    let server = Running::serving(builder).await;
    timeout(SOON, server.handle.update(weight(7))).await.expect("both at once").unwrap();
    server.handle.stop();
    server.ended().await.unwrap();
    assert_eq!((weights(&backend, "greeter").await, weights(&backend, "ingest").await), (vec![], vec![]));
}

/// A registry that refuses calls for one service while there is an error.
#[derive(Clone)]
struct Choosy {
    backend: MemoryBackend,
    refused: ServiceName,
    error: Arc<Mutex<Option<Error>>>,
}

#[derive(Debug)]
struct Chosen(Registration, Arc<Mutex<Option<Error>>>);

impl Choosy {
    fn new(backend: &MemoryBackend) -> Self {
        Self { backend: backend.clone(), refused: ingest(), error: Arc::default() }
    }

    fn refuse(&self, kind: impl Into<Option<ErrorKind>>) {
        *self.error.lock().unwrap() = kind.into().map(|kind| Error::new(kind, "refused"));
    }
}

#[async_trait]
impl Registry for Choosy {
    async fn register_with(&self, service: &ServiceName, one: Instance, claim: Claim) -> Result<Registration, Error> {
        let error = if *service == self.refused { Arc::clone(&self.error) } else { Arc::default() };
        if let Some(error) = error.lock().unwrap().clone() {
            return Err(error);
        }
        let registration = self.backend.register_with(service, one, claim).await?;
        let instance = registration.instance();
        let status = StatusWriter::new(Status::registered());
        Ok(Registration::new(service.clone(), instance, &status, Chosen(registration, error)))
    }
}

#[async_trait]
impl RegistrationBackend for Chosen {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        if let Some(error) = self.1.lock().unwrap().clone() {
            return Err(error);
        }
        self.0.update(|_| (*instance).clone()).await
    }

    async fn deregister(&self) -> Result<(), Error> {
        Ok(())
    }

    fn release(&self) {}
}

#[tokio::test]
async fn a_server_serves_once_all_its_services_are_registered() {
    let backend = MemoryBackend::new();
    let choosy = Choosy::new(&backend);
    choosy.refuse(ErrorKind::ResourceExhausted);
    let server = Running::start(RegisteredServer::builder(choosy.clone(), service()).also(ingest())).await;
    until_weights(&backend, "greeter", &[100]).await;
    let lost = || {
        let status = server.handle.statuses().current();
        matches!(status, Status::Lost { error, .. } if error.kind() == ErrorKind::ResourceExhausted)
    };
    eventually("the loss of one is that of the server", lost).await;
    assert_eq!(server.handle.stage(), Stage::Starting);
    choosy.refuse(None);
    timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
    assert_eq!(weights(&backend, "ingest").await, [100]);
    assert!(server.handle.statuses().current().is_registered());
}

#[tokio::test]
async fn a_final_refusal_of_one_service_stops_the_server_and_removes_the_others() {
    let backend = MemoryBackend::new();
    let named = || builder(&backend).instance(|instance| instance.with_id("one".parse().unwrap()));
    let mut other = Instance::new("10.0.0.9:80".parse().unwrap()).with_id("one".parse().unwrap());
    other = other.with_weight(Weight::new(9).unwrap());
    let _other = backend.register(&ingest(), other).await.unwrap();
    let server = Running::start(named().also(ingest()).claim(Claim::IfAbsent).shutdown_timeout(LONG)).await;
    let error = server.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::Conflict, Some(&ingest())));
    assert_eq!((weights(&backend, "greeter").await, weights(&backend, "ingest").await), (vec![], vec![9]));

    let choosy = Choosy::new(&backend);
    choosy.refuse(ErrorKind::PermissionDenied);
    let server = RegisteredServer::builder(choosy, service()).also(ingest()).drain_time(SHORT);
    let error = Running::start(server).await.ended().await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::PermissionDenied, Some(&ingest())));
}

#[tokio::test]
async fn an_update_changes_all_services_and_may_be_repeated_after_an_error_of_one() {
    let backend = MemoryBackend::new();
    let choosy = Choosy::new(&backend);
    let server = Running::serving(RegisteredServer::builder(choosy.clone(), service()).also(ingest())).await;
    let both = async || (weights(&backend, "greeter").await, weights(&backend, "ingest").await);
    server.handle.update(weight(7)).await.unwrap();
    assert_eq!(both().await, (vec![7], vec![7]));

    let more = |instance: Instance| {
        let weight = Weight::new(instance.weight().value() + 1).unwrap();
        instance.with_weight(weight)
    };
    choosy.refuse(ErrorKind::PermissionDenied);
    let error = server.handle.update(more).await.unwrap_err();
    assert_eq!((error.kind(), error.service()), (ErrorKind::PermissionDenied, Some(&ingest())));
    assert_eq!(both().await, (vec![8], vec![7]), "one may have been changed");
    choosy.refuse(None);
    server.handle.update(more).await.unwrap();
    assert_eq!(both().await, (vec![8], vec![8]), "the repeated update starts from the former values");
}

#[tokio::test]
async fn an_update_is_confirmed_by_the_registry_also_if_it_is_repeated() {
    let backend = MemoryBackend::new();
    let server = Running::serving(builder(&backend).also(ingest())).await;
    backend.interrupt();
    for _ in 0..2 {
        let error = server.handle.update(weight(7)).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
    backend.restore();
    until_weights(&backend, "greeter", &[7]).await;
    until_weights(&backend, "ingest", &[7]).await;
    server.handle.update(weight(7)).await.unwrap();
}

#[tokio::test]
async fn the_loss_or_takeover_of_one_service_is_reported_and_the_others_stay() {
    let backend = MemoryBackend::new();
    let server =
        Running::serving(builder(&backend).also(ingest()).instance(|one| one.with_id("one".parse().unwrap()))).await;
    let mut statuses = server.handle.statuses();
    backend.interrupt();
    backend.remove(&ingest(), "one");
    assert!(matches!(next(&mut statuses).await, Status::Lost { .. }));
    backend.restore();
    assert!(next(&mut statuses).await.is_registered());

    let other = Instance::new("10.0.0.9:80".parse().unwrap()).with_id("one".parse().unwrap());
    let _other = backend.another_process().register(&ingest(), other).await.unwrap();
    assert!(matches!(next(&mut statuses).await, Status::Superseded { .. }));
    assert_eq!(server.handle.stage(), Stage::Serving);
    for expected in [7, 8] {
        let update = server.handle.update(move |instance| {
            assert_eq!(instance.weight().value(), if expected == 7 { 100 } else { 7 });
            instance.with_weight(Weight::new(expected).unwrap())
        });
        assert_eq!(update.await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(weights(&backend, "greeter").await, [expected], "the others are changed");
    }
    server.handle.stop();
    server.ended().await.unwrap();
    assert_eq!((weights(&backend, "greeter").await, weights(&backend, "ingest").await), (vec![], vec![100]));
}
