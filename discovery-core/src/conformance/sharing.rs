//! W6 and W8: what watchers share.

use super::{
    Harness,
    probe::{Follower, can, eventually, has, instance, ok, register, reweighed, service},
};
use crate::Update;

/// **W6**: a consumer that falls behind the queue gets one `Reset`, reaches the right set, and
/// delays nobody.
pub async fn w06_resets_a_slow_consumer(harness: &dyn Harness) {
    const LAW: &str = "W6";
    let process = harness.process().await;
    let service = service("payments");
    let one = instance(1);
    let backend = process.backend();
    let registration = register(LAW, harness, backend, &service, &one).await;
    let mut fast = Follower::new(LAW, harness, backend, &service);
    let mut slow = Follower::new(LAW, harness, backend, &service);
    fast.until("the registered instance", |set| has(set, &[&one])).await;
    slow.until("the registered instance", |set| has(set, &[&one])).await;

    let push = can(LAW, harness.capabilities().push, "push", "one Reset for a slow consumer");
    let queue = u16::try_from(harness.timings().queue.next_power_of_two()).expect("queues are shorter than 2^15");
    // A queue may round its capacity up to a power of two.
    let steps = if push { queue + 8 } else { 8 };
    for weight in 1..=steps {
        ok(LAW, harness, "update", registration.update(|one| reweighed(&one, weight))).await;
        let id = one.id().as_str();
        let newest = fast.until("a change while another is slow", |set| {
            set.get(id).is_some_and(|one| one.weight().value() == weight)
        });
        newest.await;
    }

    if push {
        let first = slow.next("the Reset of the slow consumer").await;
        let whole = matches!(&first, Update::Reset(set) if *set == fast.set);
        assert!(whole, "{LAW}: a slow consumer must get a Reset of the newest set, but got {first:?}");
        let more = slow.unexpected().await;
        assert!(more.is_none(), "{LAW}: a slow consumer must get one Reset and nothing else, but then got {more:?}");
    } else {
        let last = fast.set.clone();
        slow.until("the newest set", |set| *set == last).await;
    }
}

/// **W8**: the watchers of a service share one upstream watch, which closes with the last of them.
pub async fn w08_shares_one_upstream_watch(harness: &dyn Harness) {
    const LAW: &str = "W8";
    if !can(LAW, harness.capabilities().upstream_watches, "upstream_watches", "all of it") {
        return;
    }
    let process = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let quiet = harness.timings().quiet;
    let count = async |wanted| harness.upstream_watches(&service).await == wanted;
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut follower = Follower::new(LAW, harness, process.backend(), &service);
        follower.next_set("the first set").await;
        followers.push(follower);
    }
    let open = harness.upstream_watches(&service).await;
    assert!(open == 1, "{LAW}: three watchers must share one upstream watch, but there are {open}");
    followers.truncate(1);
    tokio::time::sleep(quiet).await;
    assert!(count(1).await, "{LAW}: the upstream watch must stay open while one watcher is left");
    let _registration = register(LAW, harness, process.backend(), &service, &instance(1)).await;
    followers[0].until("a change for the watcher that is left", |set| set.len() == 1).await;
    followers.clear();
    eventually(LAW, "dropping the last watcher must close the upstream watch", quiet, async || count(0).await).await;

    let mut again = Follower::new(LAW, harness, process.backend(), &service);
    again.until("the set for a later watcher", |set| set.len() == 1).await;
    eventually(LAW, "a later watcher must open an upstream watch", settle, async || count(1).await).await;
}
