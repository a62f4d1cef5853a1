//! Several watches of one range, which the proxy merges.

use std::time::{Duration, Instant};

use discovery_core::{Resolver, ServiceName, Snapshot};
use support::{
    Follower, Raw,
    scene::{SOON, connect, follow, instance, payments, put, version},
};
use tokio::time::{interval, sleep};

use super::{start, through, told};

fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

/// Puts or deletes an instance of a service.
async fn change(raw: &mut Raw, service: &ServiceName, round: u32) {
    let number = u16::try_from(round % 7).unwrap();
    let one = version(number, round);
    let key = format!("{service}/{}", one.id());
    if round % 4 == 3 {
        raw.delete(&key).await;
    } else {
        raw.put(&key, support::entry::encode(&one)).await;
    }
}

/// Two handles watch two services each for 20 s with ten changes a second. No loss is reported,
/// each watch gets one full set, and all end with the listed set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_one_range_get_every_change_and_no_loss() {
    let (etcd, proxy) = start().await;
    let handles = [through(&proxy), through(&proxy)];
    let services = [payments(), orders()];
    let mut followers = Vec::new();
    for handle in &handles {
        for service in &services {
            let follower = Follower::of(handle.watch(service).unwrap());
            follower.until("the first set", SOON, Snapshot::is_empty).await;
            // Later watches join what the proxy already watches.
            sleep(Duration::from_millis(300)).await;
            followers.push((service, follower));
        }
    }
    let mut raw = etcd.raw().await;
    let start = Instant::now();
    let mut ticks = interval(Duration::from_millis(100));
    let mut round = 0;
    while start.elapsed() < Duration::from_secs(20) {
        ticks.tick().await;
        change(&mut raw, &services[0], round).await;
        // Fewer changes, so that the two ranges have different revisions.
        if round % 3 == 0 {
            change(&mut raw, &services[1], round / 3).await;
        }
        round += 1;
    }
    let direct = connect(&etcd);
    for (service, follower) in &followers {
        let listed = direct.list(service).await.unwrap();
        assert!(!listed.is_empty());
        follower.until("the last set", SOON, |set| *set == listed).await;
        let updates = told(follower);
        assert_eq!(follower.losses(), 0, "{service}: {updates:?}");
        assert_eq!(follower.resets(), 1, "{service}: {updates:?}");
        // The changes did not come from polling.
        assert!(updates.len() > 30, "{service}: {} updates", updates.len());
    }
}

/// Watches of a service come and go while another one lives, and the proxy merges them: some join
/// its watch while that is behind what they have listed, and some are merged into it later. All
/// receive the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_joins_a_live_watch() {
    let (etcd, proxy) = start().await;
    let mut raw = etcd.raw().await;
    let first = follow(&through(&proxy));
    first.until("the first set", SOON, Snapshot::is_empty).await;
    let mut joined = Vec::new();
    for round in 0..6u16 {
        if round % 2 == 0 {
            // This makes a list newer than the last event of the live watch.
            raw.put("elsewhere", round.to_string()).await;
        }
        let follower = follow(&through(&proxy));
        let size = usize::from(round);
        follower.until("its first set", SOON, |set| set.len() == size).await;
        sleep(Duration::from_millis(300)).await;
        joined.push(follower);
        put(&mut raw, &instance(round)).await;
        for follower in joined.iter().chain([&first]) {
            follower.until("the next change", Duration::from_secs(1), |set| set.len() == size + 1).await;
        }
        if round == 3 {
            // The remaining watches must not depend on those that leave.
            joined.remove(0);
        }
    }
    for follower in joined.iter().chain([&first]) {
        let updates = told(follower);
        assert_eq!(follower.losses(), 0, "{updates:?}");
        assert_eq!(follower.resets(), 1, "{updates:?}");
    }
}
