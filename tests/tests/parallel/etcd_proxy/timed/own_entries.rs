//! Registrations through the proxy: changes by hand, takeovers and deregistration.

use std::time::Duration;

use discovery_core::Registration;
use futures::future::join_all;
use support::{
    Raw, eventually,
    scene::{SOON, instance, key, register, until_superseded},
};
use tokio::time::sleep;

use crate::etcd_proxy::{StatusReceiver, start, through};

/// A change of an entry behind its owner's back.
#[derive(Clone, Copy, Debug)]
enum ByHand {
    Delete,
    Overwrite,
}

impl ByHand {
    async fn to(self, raw: &mut Raw, key: &str) {
        match self {
            Self::Delete => raw.delete(key).await,
            Self::Overwrite => raw.put(key, "by hand").await,
        }
    }
}

/// Touches the entries of this many registrations of one handle in turn. Each is back within two
/// seconds, its status reports it, and the other registrations stay registered.
async fn touched(count: u16, by_hand: ByHand) {
    let (etcd, proxy) = start().await;
    let backend = through(&proxy);
    let mut raw = etcd.raw().await;
    let registrations = join_all((0..count).map(|number| register(&backend, number))).await;
    // Until all entries are watched.
    sleep(Duration::from_secs(1)).await;
    for (place, registration) in registrations.iter().enumerate() {
        let key = key(&registration.instance());
        let entry = raw.entry(&key).await;
        let statuses: Vec<_> = registrations.iter().map(StatusReceiver::of).collect();
        by_hand.to(&mut raw, &key).await;
        let what = format!("{by_hand:?} of {place} is repaired");
        eventually(&what, Duration::from_secs(2), async || raw.entry(&key).await == entry).await;
        statuses[place].until(&["lost", "registered"], Duration::from_secs(2)).await;
        // Time for any side effect to show.
        sleep(Duration::from_millis(500)).await;
        for (other, statuses) in statuses.iter().enumerate() {
            let wanted: &[&str] = if other == place { &["lost", "registered"] } else { &[] };
            assert_eq!(statuses.words(), wanted, "the statuses of {other} after {by_hand:?} of {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_deleted_is_put_again() {
    touched(1, ByHand::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_overwritten_is_repaired() {
    touched(1, ByHand::Overwrite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_entry_of_three_is_put_again() {
    touched(3, ByHand::Delete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overwritten_entry_of_three_is_repaired() {
    touched(3, ByHand::Overwrite).await;
}

/// Another handle takes over one of two instances. Its former owner learns of it and keeps the
/// other instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_supersedes_its_instance_and_no_other() {
    let (etcd, proxy) = start().await;
    let mut raw = etcd.raw().await;
    let former = through(&proxy);
    let later = through(&proxy);
    let kept = register(&former, 0).await;
    let lost = register(&former, 1).await;
    sleep(Duration::from_secs(1)).await;
    let entry = raw.entry(&key(&instance(0))).await;
    assert!(entry.is_some());
    let statuses = StatusReceiver::of(&kept);
    let taken = register(&later, 1).await;
    let entry_taken = raw.entry(&key(&instance(1))).await;
    until_superseded(&lost, Duration::from_secs(2)).await;
    for _ in 0..100 {
        assert_eq!(raw.entry(&key(&instance(0))).await, entry);
        assert_eq!(raw.entry(&key(&instance(1))).await, entry_taken);
        sleep(Duration::from_millis(100)).await;
    }
    assert!(statuses.words().is_empty(), "{:?}", statuses.words());
    assert!(kept.status().is_registered());
    assert!(taken.status().is_registered());
    // A superseded registration leaves the entry to its owner.
    lost.deregister().await.unwrap();
    assert_eq!(raw.entry(&key(&instance(1))).await, entry_taken);
}

/// A deregistered instance is removed, stays away, and takes no other with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deregistered_instance_stays_away() {
    let (etcd, proxy) = start().await;
    let backend = through(&proxy);
    let mut raw = etcd.raw().await;
    let mut registrations: Vec<Registration> = join_all((0..3).map(|number| register(&backend, number))).await;
    sleep(Duration::from_secs(1)).await;
    let statuses: Vec<_> = registrations.iter().skip(1).map(StatusReceiver::of).collect();
    registrations.remove(0).deregister().await.unwrap();
    let left = [key(&instance(1)), key(&instance(2))];
    // Longer than the TTL and than two audits of each watch.
    for _ in 0..50 {
        assert_eq!(raw.keys().await, left);
        sleep(Duration::from_millis(100)).await;
    }
    for statuses in &statuses {
        assert!(statuses.words().is_empty(), "{:?}", statuses.words());
    }
    backend.close().await.unwrap();
    eventually("nothing is left", SOON, async || raw.keys().await.is_empty() && raw.leases().await.is_empty()).await;
}
