//! Servers whose backend supports no registrations.
#![cfg(feature = "server")]

use crate::support::{
    greet,
    running::{LONG, Running, SHORT, SOON, weight},
    service,
};
use async_trait::async_trait;
use discovery_core::{Claim, Error, ErrorKind, FixedResolver, Instance, Registration, Registry, ServiceName, Status};
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    BalancedChannel,
    server::{RegisteredServer, ServerBuilder, Stage},
};
use tokio::{sync::oneshot, time::timeout};

/// A registry that asks somebody before it refuses.
struct Late;

#[async_trait]
impl Registry for Late {
    async fn register_with(&self, _: &ServiceName, _: Instance, _: Claim) -> Result<Registration, Error> {
        tokio::time::sleep(SHORT / 10).await;
        Err(Error::new(ErrorKind::Unsupported, "nothing can be written here"))
    }
}

fn fixed() -> ServerBuilder {
    RegisteredServer::builder(FixedResolver::new([]), service())
}

fn late() -> ServerBuilder {
    RegisteredServer::builder(Late, service())
}

#[tokio::test]
async fn a_server_on_a_fixed_set_serves_without_registering_and_stops_without_draining() {
    for builder in [fixed, late] {
        let (ready, wait) = oneshot::channel::<()>();
        let builder = builder().also("ingest".parse().unwrap()).drain_time(LONG).register_if_supported();
        let server = Running::start(builder.ready(async { wait.await.unwrap_or_default() })).await;
        server.handle.update(weight(7)).await.expect("nothing is known yet");
        ready.send(()).unwrap();
        timeout(SOON, server.handle.reached(Stage::Serving)).await.unwrap();
        let status = server.handle.statuses().current();
        assert!(matches!(&status, Status::Lost { error, .. } if error.kind() == ErrorKind::Unsupported), "{status:?}");
        let error = server.handle.update(weight(8)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("not registered"), "{error}");

        let resolver = FixedResolver::by_service([(service(), [Instance::new(server.address.try_into().unwrap())])]);
        let channel = BalancedChannel::new(resolver, service()).unwrap();
        channel.wait_until_ready(SOON).await.unwrap();
        assert_eq!(greet(&channel, None).await.unwrap(), server.address);
        server.handle.stop();
        assert_eq!(server.ended().await.unwrap().aborted_connections, 0);
    }
}

#[tokio::test]
async fn without_being_asked_to_a_server_does_not_serve_unregistered() {
    for builder in [fixed, late] {
        let error = Running::start(builder()).await.ended().await.unwrap_err();
        assert_eq!((error.kind(), error.service()), (ErrorKind::Unsupported, Some(&service())));
        assert!(error.to_string().contains("`register_if_supported`"), "{error}");
    }
}

#[tokio::test]
async fn other_refusals_remain_final() {
    let backend = MemoryBackend::new();
    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "not allowed"));
    let builder = RegisteredServer::builder(backend.clone(), service()).register_if_supported();
    let error = Running::start(builder).await.ended().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    backend.restore();
    let builder = RegisteredServer::builder(backend.clone(), service()).register_if_supported();
    let server = Running::serving(builder).await;
    assert!(server.handle.statuses().current().is_registered());
}
