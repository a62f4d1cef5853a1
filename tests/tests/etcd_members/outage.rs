use std::time::{Duration, Instant};

use discovery_core::{Claim, ErrorKind, RegistryExt, Resolver, Status};
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, TTL, connect, connect_to, count, instance, payments, until_registered},
};
use tokio::time::sleep;

/// etcd is not there yet: a registration that is kept is there all the same, takes an update, and
/// is in etcd as soon as that is.
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
    assert!(start.elapsed() < Duration::from_millis(100), "it changes what is going to be written");
    etcd.appear().await;
    let took = until_registered(&registration, SOON).await;
    println!("registered {took:?} after etcd appeared");
    let set = backend.list(&payments()).await.unwrap();
    assert_eq!(set.iter().map(|one| one.weight().value()).collect::<Vec<_>>(), [7]);
    drop(registration);
    eventually("it goes with its handle", SOON, async || count(&backend).await == Some(0)).await;
}

/// A claim that must not take over ends as superseded, for good, once etcd tells of the other
/// owner.
#[tokio::test]
async fn a_registration_that_is_kept_and_conflicts_is_over() {
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
    assert_eq!(count(&backend).await, Some(0), "it does not come back");
    refused.deregister().await.unwrap();
}

/// A list goes on for the time that is set for an operation, 5 s here, and succeeds where etcd is
/// back within that.
#[tokio::test]
async fn a_list_goes_on_for_its_whole_time() {
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
    println!("listed after {:?}, of which {appeared:?} without etcd", start.elapsed());
    assert!(listed.unwrap().is_empty());
}
