//! What programs and people learn of a channel: its status, and the table of its endpoints.

use std::time::{Duration, Instant};

use crate::support::{Server, channel, eventually, greet, refusing, registry, service};
use discovery_core::{Error, ErrorKind};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, RegistryState};

const SOON: Duration = Duration::from_secs(5);

/// Returns the lines of the table without its header.
fn table(channel: &BalancedChannel) -> Vec<String> {
    channel.endpoints().to_string().lines().skip(1).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_status_follows_the_registry_and_the_endpoints() {
    let server = Server::start("one").await;
    let backend = registry([server.address, refusing().await]);
    let channel = channel(&backend);
    let status = channel.status();
    assert!(matches!(status.registry, RegistryState::Waiting), "{status:?}");
    assert_eq!((status.endpoints, status.ready), (0, 0));
    assert_eq!(
        table(&channel),
        ["no endpoint of greeter: the registry has not answered yet", "registry: has not answered yet"]
    );

    eventually("one of two is ready", || channel.status().ready == 1).await;
    let status = channel.status();
    assert!(status.registry.is_in_contact(), "{status:?}");
    assert_eq!(status.endpoints, 2);
    assert_eq!((table(&channel).len(), table(&channel).pop().unwrap()), (3, "registry: in contact".to_owned()));

    let before = Instant::now();
    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "not for you"));
    eventually("the loss is noticed", || !channel.status().registry.is_in_contact()).await;
    let status = channel.status();
    let RegistryState::Lost { since, error } = &status.registry else { panic!("{status:?}") };
    assert!((before..=Instant::now()).contains(since), "{status:?}");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!((status.endpoints, status.ready), (2, 1), "the set stays");
    let line = table(&channel).pop().unwrap();
    assert!(line.starts_with("registry: lost ") && line.contains("s ago: ") && line.contains("not for you"), "{line}");
    assert!(matches!(channel.endpoints().registry(), RegistryState::Lost { .. }));

    backend.restore();
    eventually("contact is back", || channel.status().registry.is_in_contact()).await;
    greet(&channel, Some(SOON)).await.unwrap();
}

#[tokio::test]
async fn a_table_without_endpoints_states_why() {
    let backend = MemoryBackend::new();
    let empty = channel(&backend);
    eventually("the first set", || empty.status().registry.is_in_contact()).await;
    assert_eq!(table(&empty), ["no endpoint of greeter: it has no instances", "registry: in contact"]);
    backend.put_unreadable("greeter/one");
    backend.put_unreadable("greeter/two");
    eventually("the entries are skipped", || table(&empty)[0].contains("it has no instances; 2 entries are skipped"))
        .await;
    assert!(table(&empty)[0].contains(": an entry cannot be read: "), "{:?}", table(&empty));
    backend.put(&service(), crate::support::instance(refusing().await));
    eventually("a row", || empty.endpoints().len() == 1).await;
    let lines = table(&empty);
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].starts_with("2 entries are skipped; the newest one cannot be read: "), "{lines:?}");
    assert_eq!(lines[2], "registry: in contact");

    let backend = MemoryBackend::new();
    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "not for you"));
    let lost = channel(&backend);
    eventually("the loss is noticed", || matches!(lost.status().registry, RegistryState::Lost { .. })).await;
    let lines = table(&lost);
    assert!(lines[0].starts_with("no endpoint of greeter: the registry is unreachable: "), "{lines:?}");
    assert!(lines[1].starts_with("registry: lost "), "{lines:?}");
}

#[tokio::test]
async fn a_channel_without_its_runtime_is_stopped() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let channel = {
        let _entered = runtime.enter();
        channel(&backend)
    };
    eventually("ready", || channel.status().ready == 1).await;
    runtime.shutdown_background();
    eventually("stopped", || matches!(channel.status().registry, RegistryState::Stopped { .. })).await;
    assert_eq!(channel.status().ready, 0);
    assert_eq!(
        table(&channel).pop().unwrap(),
        "registry: not followed any more: the runtime that it was built on has shut down"
    );
}
