//! W7, W9 and W10: what counts as an entry of a service.

use tokio::runtime::{Handle, RuntimeFlavor};

use super::{
    Harness,
    log::Log,
    probe::{Follower, can, eventually, has, instance, lists, ok, register, service},
};
use crate::{InstanceId, Snapshot, Update};

/// **W7**: a bad entry is skipped and counted, and the rest is served; a bad value in place of a
/// good one removes it.
pub async fn w07_skips_bad_entries(harness: &dyn Harness) {
    const LAW: &str = "W7";
    const BAD: &str = "cannot-be-read";
    if !can(LAW, harness.capabilities().bad_entries, "bad_entries", "all of it") {
        return;
    }
    let process = harness.process().await;
    let service = service("payments");
    let one = instance(1);
    let two = instance(2);
    let three = instance(3);
    let backend = process.backend();
    let settle = harness.timings().settle;
    let _one = register(LAW, harness, backend, &service, &one).await;
    let mut follower = Follower::new(LAW, harness, backend, &service);
    follower.until("the good instance", |set| has(set, &[&one])).await;

    let bad: InstanceId = BAD.parse().expect("it is allowed");
    let log = Log::mentioning(BAD);
    harness.put_bad(&service, &bad).await;
    let _two = register(LAW, harness, backend, &service, &two).await;
    follower.until("the rest beside a bad entry", |set| has(set, &[&one, &two])).await;
    eventually(LAW, "a list must serve the rest beside a bad entry", settle, async || {
        backend.list(&service).await.is_ok_and(|set| has(&set, &[&one, &two]))
    })
    .await;
    if can(LAW, harness.capabilities().skip_count, "skip_count", "bad entries are counted") {
        eventually(LAW, "a bad entry must be counted", settle, async || process.skipped() > 0).await;
        // It counts once, however often it is read.
        let _third = register(LAW, harness, backend, &service, &three).await;
        follower.until("one more", |set| has(set, &[&one, &two, &three])).await;
        ok(LAW, harness, "list", backend.list(&service)).await;
        let skipped = process.skipped();
        assert!(skipped == 1, "{LAW}: a bad entry must be counted once per revision, but {skipped} were counted");
        let own_thread = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        if can(LAW, own_thread, "a current-thread runtime", "bad entries are logged") {
            let lines = log.lines();
            assert!(lines == 1, "{LAW}: a bad entry must be logged once per revision, but was {lines} times");
        }
    }
    drop(log);

    harness.put_bad(&service, one.id()).await;
    // The owner may have repaired it already. In any case an old watcher and a fresh list must
    // agree in the end.
    let agree = async {
        loop {
            while follower.unexpected().await.is_some() {}
            if backend.list(&service).await.is_ok_and(|set| set == follower.set) {
                return;
            }
        }
    };
    let agreed = tokio::time::timeout(settle, agree).await;
    assert!(
        agreed.is_ok(),
        "{LAW}: after a bad value in place of a good one, an old watcher and a fresh list must agree"
    );

    if can(LAW, harness.capabilities().leases, "leases", "a bad value in place of one that nobody repairs") {
        let doomed = harness.process().await;
        let four = instance(4);
        let left = register(LAW, harness, doomed.backend(), &service, &four).await;
        let is_there = |set: &Snapshot| set.get(four.id().as_str()).is_some();
        follower.until("the instance of another process", is_there).await;
        doomed.kill();
        harness.put_bad(&service, four.id()).await;
        follower.until("a bad value in place of a good one must count as its removal", |set| !is_there(set)).await;
        eventually(LAW, "a bad value in place of a good one must count as its removal", settle, async || {
            backend.list(&service).await.is_ok_and(|set| !is_there(&set))
        })
        .await;
        drop(left);
    }
}

/// **W9**: `order` never sees `order-history`, and keys of deeper paths are not entries, not even
/// bad ones.
pub async fn w09_keeps_services_apart(harness: &dyn Harness) {
    const LAW: &str = "W9";
    let process = harness.process().await;
    let order = service("order");
    let backend = process.backend();
    let mut follower = Follower::new(LAW, harness, backend, &order);
    follower.next_set("the first set").await;
    let mine = instance(1);
    let mut registrations = Vec::new();
    for (number, name) in [(2, "order-history"), (3, "order.v2"), (4, "orde"), (5, "order-"), (6, "order0")] {
        registrations.push(register(LAW, harness, backend, &service(name), &instance(number)).await);
    }
    if can(LAW, harness.capabilities().deeper_keys, "deeper_keys", "keys of deeper paths") {
        harness.put_deeper(&order).await;
    }
    registrations.push(register(LAW, harness, backend, &order, &mine).await);

    let mut updates = follower.until("the service's own instance", |set| has(set, &[&mine])).await;
    updates.extend(follower.unexpected().await);
    for update in &updates {
        let foreign = match update {
            Update::Change(change) => change.upserts().iter().any(|one| one.id() != mine.id()),
            Update::Lost(_) => false,
            Update::Reset(set) => set.iter().any(|one| one.id() != mine.id()),
        };
        assert!(!foreign, "{LAW}: a watch must show its own service only, but shows {update:?}");
    }
    eventually(LAW, "a list must show the instance", harness.timings().settle, async || {
        lists(backend, &order, &mine).await
    })
    .await;
    let set = ok(LAW, harness, "list", backend.list(&order)).await;
    assert!(has(&set, &[&mine]), "{LAW}: a list must show its own service only, but shows {set:?}");
    if can(LAW, harness.capabilities().skip_count, "skip_count", "foreign keys are not bad entries") {
        assert!(
            process.skipped() == 0,
            "{LAW}: keys of other services and of deeper paths must not count as bad entries"
        );
    }
}

/// **W10**: an unknown service is an empty set, not an error.
pub async fn w10_treats_an_unknown_service_as_empty(harness: &dyn Harness) {
    const LAW: &str = "W10";
    let process = harness.process().await;
    let unknown = service("never-registered");
    let set = ok(LAW, harness, "listing an unknown service", process.backend().list(&unknown)).await;
    assert!(set.is_empty(), "{LAW}: an unknown service must be an empty set, but is {set:?}");
    let mut follower = Follower::new(LAW, harness, process.backend(), &unknown);
    let first = follower.next("watching an unknown service").await;
    let empty = matches!(&first, Update::Reset(set) if set.is_empty());
    assert!(empty, "{LAW}: an unknown service must be watched as an empty set, but is {first:?}");
}
