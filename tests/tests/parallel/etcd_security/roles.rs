use std::time::{Duration, Instant};

use discovery_core::{Claim, ErrorKind, InstanceId, Registry, Resolver, ServiceName, Snapshot, Status};
use discovery_etcd::EtcdBackend;
use support::{
    Etcd, Raw, eventually,
    scene::{SOON, config, count, instance, payments, register, until, until_registered, until_superseded},
};

use super::{lost, reset};

const KEY: &str = "/prod/payments/10.0.0.2:80";

/// Starts etcd with the roles of the documentation's recipes and authentication enabled. The client
/// is `root`.
async fn recipes() -> (Etcd, Raw) {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    raw.add_reader("read-prod", "/prod/").await;
    raw.add_writer("register-payments", "/prod/payments/").await;
    raw.add_user("reader", Some("of reader"), &["read-prod"]).await;
    raw.add_user("registrar", Some("of registrar"), &["register-payments"]).await;
    raw.enable_auth("of root").await;
    let root = etcd.raw_as("root", "of root").await;
    (etcd, root)
}

fn backend(etcd: &Etcd, user: &str, prefix: &str) -> EtcdBackend {
    let config = config(etcd.members()).prefix(prefix).credentials(user, format!("of {user}"));
    EtcdBackend::new(config).unwrap()
}

fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

#[tokio::test]
async fn a_reader_lists_and_watches_and_does_nothing_else() {
    let (etcd, mut root) = recipes().await;
    let reader = backend(&etcd, "reader", "/prod");
    let mut updates = reader.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    root.put(KEY, r#"{"Op":0,"Addr":"10.0.0.2:80","Metadata":null}"#).await;
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    assert_eq!(reader.list(&payments()).await.unwrap(), set);
    assert!(reader.list(&orders()).await.unwrap().is_empty(), "the reader may read the whole namespace");

    for claim in [Claim::TakeOver, Claim::IfAbsent] {
        let start = Instant::now();
        let error = reader.register_with(&payments(), instance(1), claim).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.report());
        assert!(start.elapsed() < Duration::from_secs(2), "the refusal is not retried");
    }
    let mut by_hand = etcd.raw_as("reader", "of reader").await;
    assert!(by_hand.try_put(KEY, "x").await.is_err());
    assert!(by_hand.try_delete(KEY).await.is_err());

    for prefix in ["/prod2", "/pro", "", "prod"] {
        let error = backend(&etcd, "reader", prefix).list(&payments()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{prefix}: {}", error.report());
    }
    assert_eq!(root.keys().await, [KEY], "nothing was written");
    eventually("no lease is left", SOON, async || root.leases().await.is_empty()).await;
}

#[tokio::test]
async fn a_registrar_keeps_its_service_and_touches_no_other() {
    let (etcd, mut root) = recipes().await;
    let a = backend(&etcd, "registrar", "/prod");
    let b = backend(&etcd, "registrar", "/prod");
    // This role suffices for everything that a registrar does.
    let id: InstanceId = "10.0.0.2:80".parse().unwrap();
    let first = register(&a, 1).await;
    first.update(|one| one.with_metadata([("zone", "a")].try_into().unwrap())).await.unwrap();
    let refused = b.register_with(&payments(), instance(1), Claim::IfAbsent).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let second = b.register(&payments(), instance(1).with_id(id)).await.unwrap();
    until_superseded(&first, SOON).await;
    root.delete(KEY).await;
    let repaired = eventually("repaired", SOON, async || root.entry(KEY).await.is_some()).await;
    let lease = root.leases().await.into_iter().find(|lease| *lease != 0).unwrap();
    for lease in root.leases().await {
        root.revoke(lease).await;
    }
    assert_ne!(lease, 0);
    let healed = eventually("healed", SOON, async || root.entry(KEY).await.is_some()).await;
    println!("with the role alone: repaired in {repaired:?}, healed in {healed:?}");
    until_registered(&second, SOON).await;
    assert_eq!(count(&a).await, Some(1));
    assert_eq!(reset(&mut a.watch(&payments()).unwrap()).await, 1);
    second.deregister().await.unwrap();
    assert!(root.keys().await.is_empty());

    for service in ["orders", "payment", "payments2"] {
        let service: ServiceName = service.parse().unwrap();
        for error in [
            a.register(&service, instance(1)).await.unwrap_err(),
            a.list(&service).await.unwrap_err(),
            lost(&mut a.watch(&service).unwrap()).await,
        ] {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{service}: {}", error.report());
        }
    }
    let other = backend(&etcd, "registrar", "/test");
    let error = other.register(&payments(), instance(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.report());
    assert!(root.keys().await.is_empty());
}

/// `fault_a23`. A role is revoked while its user watches. etcd still sends that watch every change.
/// The next check of the watch, a sixth of the TTL later, is refused, and so is the list after it:
/// the set stays as last known, and the watch reports `PermissionDenied`.
#[tokio::test]
async fn fault_a23_a_revoked_role_is_reported_at_the_next_check() {
    let (etcd, mut root) = recipes().await;
    let reader = backend(&etcd, "reader", "/prod");
    let registrar = backend(&etcd, "registrar", "/prod");
    let registration = register(&registrar, 1).await;
    let mut updates = reader.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    // The set arrives a moment before the watch is open.
    tokio::time::sleep(Duration::from_millis(300)).await;

    root.take_role("reader", "read-prod").await;
    let start = Instant::now();
    let error = lost(&mut updates).await;
    println!("fault_a23: reported {:?} after the role was revoked", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.report());
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "the watch is checked three times a second: {:?}",
        start.elapsed()
    );
    assert_eq!(set.len(), 1, "the set stays as last known");
    let error = reader.list(&payments()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);

    root.give_role("reader", "read-prod").await;
    assert_eq!(reset(&mut updates).await, 1);

    // The registrar loses its permission too: its entry is still renewed, and its writes are
    // refused until the permission is back.
    root.withdraw("register-payments", "/prod/payments/").await;
    let error = registrar.register(&payments(), instance(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.report());
    root.delete(KEY).await;
    let is_denied = async || matches!(registration.status(), Status::Lost { error, .. } if error.kind() == ErrorKind::PermissionDenied);
    eventually("the status gives the reason", SOON, is_denied).await;
    root.allow_write("register-payments", "/prod/payments/").await;
    let back = until_registered(&registration, SOON).await;
    println!("fault_a23: registered {back:?} after the role was given back");
    root.delete(KEY).await;
    let repaired = eventually("watched again", SOON, async || root.entry(KEY).await.is_some()).await;
    println!("fault_a23: repaired in {repaired:?}");
}
