//! Users, passwords and simple tokens through the proxy.
//!
//! No token may expire in these tests. The proxy carries all watches of all its clients on one
//! stream of its own, opened with the token of the first watcher, and etcd checks that token again
//! for every watch on the stream. Once it is invalid, no new watch is ever answered, whoever asks
//! and with whatever token: the proxy keeps reopening the stream with the same token and grows by
//! tens of megabytes a second. Calls go on. This is the behaviour of 3.4.23.

use std::time::Duration;

use discovery_core::{ErrorKind, Registry, Resolver};
use discovery_etcd::EtcdBackend;
use support::{
    Etcd, GrpcProxy, eventually,
    scene::{
        SOON, config, connect_to, count, follow, instance, key, payments, register, until_superseded, usual_config,
    },
};
use tokio::time::sleep;

use super::told;

const PASSWORD: &str = "canary";

/// Starts a cluster with the users `root` and `teller`, who may read and write all services, and
/// the proxy in front of it.
async fn guarded() -> (Etcd, GrpcProxy) {
    let etcd = Etcd::setup().flag("--bcrypt-cost=4").start().await;
    let mut raw = etcd.raw().await;
    raw.add_writer("teller", "").await;
    raw.add_user("teller", Some(PASSWORD), &["teller"]).await;
    raw.add_writer("clerk", "orders/").await;
    raw.add_user("clerk", Some(PASSWORD), &["clerk"]).await;
    raw.enable_auth(PASSWORD).await;
    let proxy = GrpcProxy::before(&etcd).await;
    (etcd, proxy)
}

fn with(proxy: &GrpcProxy, user: &str, password: &str) -> EtcdBackend {
    EtcdBackend::new(config([proxy.address()]).credentials(user, password)).unwrap()
}

/// A user with a password registers, watches and heals through the proxy just as on a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_a_password_is_served() {
    let (etcd, proxy) = guarded().await;
    let config = usual_config([proxy.address()]).credentials("teller", PASSWORD);
    let backend = EtcdBackend::new(config).unwrap();
    let first = register(&backend, 1).await;
    let second = register(&backend, 2).await;
    let follower = follow(&backend);
    follower.until("both are there", SOON, |set| set.len() == 2).await;
    let mut root = etcd.raw_as("root", PASSWORD).await;
    sleep(Duration::from_secs(1)).await;
    for number in [1, 2] {
        let key = key(&instance(number));
        let entry = root.entry(&key).await;
        root.delete(&key).await;
        eventually("put again", Duration::from_secs(2), async || root.entry(&key).await == entry).await;
    }
    // Another handle has another token.
    let later = with(&proxy, "teller", PASSWORD);
    let taken = register(&later, 2).await;
    until_superseded(&second, Duration::from_secs(2)).await;
    assert!(first.status().is_registered());
    assert_eq!(count(&backend).await, Some(2));
    taken.deregister().await.unwrap();
    follower.until("one is there", SOON, |set| set.len() == 1).await;
    assert_eq!(follower.losses(), 0, "{:?}", told(&follower));
    assert_eq!(follower.resets(), 1, "{:?}", told(&follower));
}

/// A caller without a password, with a wrong one, or without permission gets an error of the
/// fitting kind. The proxy forwards etcd's messages, but not its codes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unauthorized_callers_get_the_fitting_error() {
    let (_etcd, proxy) = guarded().await;
    let cases = [
        (connect_to([proxy.address()]), ErrorKind::Unauthenticated),
        (with(&proxy, "teller", "wrong"), ErrorKind::Unauthenticated),
        (with(&proxy, "clerk", PASSWORD), ErrorKind::PermissionDenied),
    ];
    for (backend, kind) in cases {
        let listed = backend.list(&payments()).await.unwrap_err();
        assert_eq!(listed.kind(), kind, "{}", listed.report());
        let registered = backend.register(&payments(), instance(1)).await.unwrap_err();
        assert_eq!(registered.kind(), kind, "{}", registered.report());
        let follower = follow(&backend);
        follower.until_lost(SOON).await;
    }
    let clerk = with(&proxy, "clerk", PASSWORD);
    let orders = "orders".parse().unwrap();
    let registration = clerk.register(&orders, instance(1)).await.unwrap();
    assert_eq!(clerk.list(&orders).await.unwrap().len(), 1);
    registration.deregister().await.unwrap();
}
