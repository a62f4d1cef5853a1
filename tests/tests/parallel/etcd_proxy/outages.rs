//! The proxy crashes or freezes.

use std::time::Duration;

use discovery_core::{Registry, Resolver, Snapshot};
use discovery_etcd::EtcdBackend;
use support::{
    eventually,
    scene::{
        SOON, USUAL_TTL, assert_one_outage, connect, follow, instance, key, payments, put, until_lost,
        until_registered, usual, usual_config, version,
    },
};
use tokio::time::sleep;

use super::{start, told};

/// The proxy is killed and restarted on its port. One outage is reported, nothing that stayed is
/// removed, and registrations hold all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_crashes_and_restarts() {
    let (etcd, proxy) = start().await;
    // No lease ends meanwhile.
    let config = usual_config([proxy.address()]).ttl(Duration::from_secs(20));
    let backend = EtcdBackend::new(config).unwrap();
    let mut raw = etcd.raw().await;
    for number in 0..5 {
        put(&mut raw, &instance(number)).await;
    }
    let registration = backend.register(&payments(), instance(7)).await.unwrap();
    let entry = raw.entry(&key(&instance(7))).await;
    let follower = follow(&backend);
    follower.until("all are there", SOON, |set| set.len() == 6).await;
    // Another watcher of the same service.
    let beside = follow(&usual([proxy.address()]));
    beside.until("all are there", SOON, |set| set.len() == 6).await;
    sleep(Duration::from_secs(1)).await;
    let before = [follower.told().len(), beside.told().len()];
    proxy.kill();
    follower.until_lost(SOON).await;
    beside.until_lost(SOON).await;
    raw.delete(&key(&instance(1))).await;
    put(&mut raw, &version(2, 1)).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(follower.set().len(), 6, "the set stays as last known");
    proxy.restart().await;
    let wanted = connect(&etcd).list(&payments()).await.unwrap();
    for (follower, before) in [&follower, &beside].into_iter().zip(before) {
        follower.until("the follower has caught up", Duration::from_secs(5), |set| *set == wanted).await;
        assert_eq!(follower.removed(), [instance(1).id().clone()], "only the deleted instance was removed");
        let after: Vec<_> = follower.told().split_off(before).into_iter().map(|told| told.update).collect();
        assert_one_outage(&after);
    }
    until_registered(&registration, SOON).await;
    assert_eq!(raw.entry(&key(&instance(7))).await, entry);
    // The entry is renewed and watched.
    raw.delete(&key(&instance(7))).await;
    eventually("put again", Duration::from_secs(5), async || raw.entry(&key(&instance(7))).await == entry).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(raw.entry(&key(&instance(7))).await, entry);
    follower.until("it is there still", SOON, |set| *set == wanted).await;
}

/// The proxy is frozen for longer than a TTL. The loss is reported within 4 s, the set stays as
/// last known, and the registration expires in etcd and is back soon after the proxy wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_freezes() {
    let (etcd, proxy) = start().await;
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(1)).await;
    let backend = usual([proxy.address()]);
    let registration = backend.register(&payments(), instance(7)).await.unwrap();
    let follower = follow(&backend);
    follower.until("both are there", SOON, |set| set.len() == 2).await;
    sleep(Duration::from_secs(1)).await;
    proxy.pause();
    let took = follower.until_lost(Duration::from_secs(4)).await;
    until_lost(&registration, USUAL_TTL + Duration::from_secs(1)).await;
    sleep(Duration::from_secs(8).saturating_sub(took)).await;
    assert_eq!(follower.set().len(), 2, "the set stays as last known");
    let gone = async || raw.entry(&key(&instance(7))).await.is_none();
    eventually("its lease ends", USUAL_TTL, gone).await;
    proxy.resume();
    put(&mut raw, &instance(2)).await;
    until_registered(&registration, SOON).await;
    follower.until("the follower has caught up", SOON, |set| set.len() == 3).await;
    assert!(raw.entry(&key(&instance(7))).await.is_some());
    let stayed = instance(1);
    assert!(!follower.removed().contains(stayed.id()), "{:?}", told(&follower));
    let is_settled = |set: &Snapshot| set.len() == 3;
    sleep(USUAL_TTL + Duration::from_secs(2)).await;
    assert!(registration.status().is_registered());
    follower.until("all stay", SOON, is_settled).await;
}
