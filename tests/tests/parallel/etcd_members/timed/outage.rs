//! Calls and registrations that begin or go on while no member answers.

use std::time::{Duration, Instant};

use discovery_core::{Claim, ErrorKind, RegistryExt, Resolver, Status};
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, TTL, connect, connect_to, count, instance, payments, until_registered},
};
use tokio::time::sleep;

/// A registration that is kept exists before etcd does, accepts an update, and is written as soon
/// as etcd is there.
#[tokio::test]
async fn a_registration_may_begin_before_etcd_does() {
    let etcd = Etcd::absent();
    let backend = connect(&etcd);
    let start = Instant::now();
    let registration = backend.keep_registered(&payments(), instance(1), Claim::TakeOver).unwrap();
    assert!(start.elapsed() < Duration::from_millis(500) && matches!(registration.status(), Status::Lost { .. }));
    // Longer than `register` would try.
    sleep(Duration::from_secs(6)).await;
    let Status::Lost { error, .. } = registration.status() else { panic!("{:?}", registration.status()) };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
    let start = Instant::now();
    registration.update(|one| one.with_weight(7.try_into().unwrap())).await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(100), "the update changes what will be written");
    etcd.appear().await;
    let took = until_registered(&registration, SOON).await;
    println!("registered {took:?} after etcd appeared");
    let set = backend.list(&payments()).await.unwrap();
    assert_eq!(set.iter().map(|one| one.weight().value()).collect::<Vec<_>>(), [7]);
    drop(registration);
    eventually("the entry goes with its handle", SOON, async || count(&backend).await == Some(0)).await;
}

/// A claim that must not take over ends as superseded, which is final, once etcd reports the other
/// owner.
#[tokio::test]
async fn a_kept_registration_that_conflicts_is_superseded() {
    let etcd = Etcd::start().await;
    let owner = connect(&etcd);
    let held = owner.keep_registered(&payments(), instance(1), Claim::IfAbsent).unwrap();
    until_registered(&held, SOON).await;
    let proxy = Proxy::to(etcd.address()).await;
    proxy.set(Fault::Refuse);
    let backend = connect_to([proxy.address()]);
    let refused = backend.keep_registered(&payments(), instance(1), Claim::IfAbsent).unwrap();
    sleep(Duration::from_secs(1)).await;
    proxy.set(Fault::None);
    eventually("superseded", SOON, async || matches!(refused.status(), Status::Superseded { .. })).await;
    held.deregister().await.unwrap();
    sleep(TTL).await;
    assert_eq!(count(&backend).await, Some(0), "the superseded registration does not come back");
    refused.deregister().await.unwrap();
}

/// A list keeps trying for the operation timeout, 5 s here, and succeeds if etcd is back within
/// that time.
#[tokio::test]
async fn a_list_keeps_trying_until_its_timeout() {
    let etcd = Etcd::absent();
    let backend = connect(&etcd);
    let start = Instant::now();
    let error = backend.list(&payments()).await.unwrap_err();
    println!("without etcd: {} after {:?}", error.report(), start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() > Duration::from_millis(4500) && start.elapsed() < Duration::from_secs(7));

    let start = Instant::now();
    let service = payments();
    let (listed, appeared) = tokio::join!(backend.list(&service), async {
        sleep(Duration::from_secs(1)).await;
        etcd.appear().await;
        start.elapsed()
    });
    println!("listed after {:?}, {appeared:?} of which passed without etcd", start.elapsed());
    assert!(listed.unwrap().is_empty());
}
