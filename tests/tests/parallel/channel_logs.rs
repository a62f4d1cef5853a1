//! What a channel logs while an endpoint cannot be reached.

use std::time::Duration;

use discovery_core::{Backoff, FixedResolver, Instance};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, EndpointState};
use greeter::Greeter;
use support::{Log, eventually, scene::SOON};
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tracing::Level;

#[tokio::test]
async fn an_unreachable_endpoint_is_logged_once_and_so_is_its_return() {
    let log = Log::down_to(Level::DEBUG);
    // Bound, but not listening: connections are refused, and no other program takes the port.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let resolver = FixedResolver::new([Instance::new(address.try_into().unwrap())]);
    let often = Backoff::new(Duration::from_millis(10), Duration::from_millis(50)).unwrap();
    let _channel = BalancedChannel::builder(resolver, "greeter".parse().unwrap()).backoff(often).build().unwrap();
    let failed = || log.with("connection attempt failed").len();
    eventually("several attempts failed", SOON, async || failed() >= 5).await;
    let unreachable = log.with("endpoint unreachable");
    assert_eq!(unreachable.len(), 1, "{unreachable:?}");
    assert!(unreachable[0].contains(&format!("instance={address}")), "{unreachable:?}");
    assert!(unreachable[0].contains("Connection refused"), "{unreachable:?}");

    let listener = socket.listen(64).unwrap();
    let router = Server::builder().add_service(Greeter::new("late").into_service());
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    eventually("it is reachable", SOON, async || log.with("endpoint reachable again").len() == 1).await;
    assert_eq!(log.with("endpoint unreachable").len(), 1);
    serving.abort();
}

/// An instance that has left is not reported, although its last attempt fails.
#[tokio::test]
async fn an_instance_that_has_left_is_not_logged_as_unreachable() {
    let log = Log::down_to(Level::DEBUG);
    // It accepts connections and is silent.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = MemoryBackend::new();
    let service = "greeter".parse().unwrap();
    let instance = Instance::new(silent.local_addr().unwrap().try_into().unwrap());
    backend.put(&service, instance.clone());
    let channel = BalancedChannel::new(backend.clone(), service.clone()).unwrap();
    let connecting = async || channel.endpoints().iter().any(|one| one.state == EndpointState::Connecting);
    eventually("it is connecting", SOON, connecting).await;
    backend.remove(&service, instance.id().as_str());
    eventually("the attempt failed", SOON, async || !log.with("connection attempt failed").is_empty()).await;
    assert!(log.with("endpoint unreachable").is_empty());
}
