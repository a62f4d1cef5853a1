//! W1 to W5: what the stream of updates reports.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Harness,
    probe::{Follower, can, eventually, has, idle_part, instance, lists, misses, ok, register, reweighed, service},
};
use crate::{ErrorKind, Instance, InstanceId, Snapshot, Update};

/// **W1**: the first item is a `Reset`, or `Lost` if the registry cannot be reached; a late joiner
/// starts with the set.
pub async fn w01_starts_with_the_set(harness: &dyn Harness) {
    const LAW: &str = "W1";
    let process = harness.process().await;
    let service = service("payments");
    let one = instance(1);
    let backend = process.backend();

    let mut early = Follower::new(LAW, harness, backend, &service);
    let first = early.next("the first item").await;
    assert!(
        matches!(&first, Update::Reset(set) if set.is_empty()),
        "{LAW}: without instances the first item must be a Reset of the empty set, but is {first:?}"
    );
    let _registration = register(LAW, harness, backend, &service, &one).await;
    early.until("the registered instance", |set| has(set, &[&one])).await;

    let other = harness.process().await;
    for (who, backend) in [("a late joiner", backend), ("a new process", other.backend())] {
        let first = Follower::new(LAW, harness, backend, &service).next("the first item").await;
        let whole = matches!(&first, Update::Reset(set) if *set == early.set);
        assert!(whole, "{LAW}: {who} must start with a Reset of {:?}, but starts with {first:?}", early.set);
    }

    if can(LAW, harness.capabilities().outages, "outages", "joining during an outage") {
        harness.interrupt().await;
        early.until_lost("the outage").await;
        let mut late = Follower::new(LAW, harness, backend, &service);
        let first = late.next("the set as last known").await;
        let second = late.next("the loss").await;
        let both = matches!(&first, Update::Reset(set) if *set == early.set) && matches!(&second, Update::Lost(_));
        assert!(
            both,
            "{LAW}: during an outage a late joiner must get the set, then Lost, but got {first:?}, {second:?}"
        );
        let unreached = harness.process().await;
        let first = Follower::new(LAW, harness, unreached.backend(), &service).next("Lost").await;
        let lost = matches!(&first, Update::Lost(_));
        assert!(
            lost,
            "{LAW}: a process that has not reached the registry must start with Lost, but starts with {first:?}"
        );
        harness.restore().await;
    }
}

/// **W2**: each folded set is a state that the registry had, in its order; a registry that went
/// back is a `Reset`.
pub async fn w02_shows_only_states_of_the_registry(harness: &dyn Harness) {
    const LAW: &str = "W2";
    let process = harness.process().await;
    let service = service("payments");
    let backend = process.backend();
    let mut follower = Follower::new(LAW, harness, backend, &service);
    follower.next_set("the first set").await;

    let mut model: BTreeMap<InstanceId, Instance> = BTreeMap::new();
    let mut states = vec![Snapshot::default()];
    let mut registrations = Vec::new();
    for step in 0..24u16 {
        let number = [1, 2, 1, 3, 2, 4, 3, 1][usize::from(step % 8)];
        let next = reweighed(&instance(number), step);
        registrations.push(register(LAW, harness, backend, &service, &next).await);
        model.insert(next.id().clone(), next);
        states.push(model.values().cloned().collect());
        if step % 8 == 6 {
            let gone = registrations.pop().expect("one was just pushed");
            let id = gone.id();
            ok(LAW, harness, "deregister", gone.deregister()).await;
            eventually(LAW, "the entry is gone", harness.timings().settle, async || {
                misses(backend, &service, &id).await
            })
            .await;
            model.remove(&id);
            states.push(model.values().cloned().collect());
        }
    }

    let last = states.last().expect("it is not empty").clone();
    let in_order = can(LAW, harness.capabilities().revisions, "revisions", "states in the registry's order");
    let mut folds = Snapshot::default();
    let mut place = 0;
    for update in follower.until("the last state", |set| *set == last).await {
        folds = folds.after(&update);
        let known = |one: &Arc<Instance>| states.iter().any(|state| state.get(one.id().as_str()) == Some(one));
        assert!(folds.iter().all(known), "{LAW}: {folds:?} has an instance that the registry never had");
        if in_order {
            let found = states[place..].iter().position(|state| *state == folds);
            let Some(found) = found else {
                panic!("{LAW}: the registry had no state {folds:?} at or after step {place}")
            };
            place += found;
        }
    }

    if can(LAW, harness.capabilities().wipes, "wipes", "a registry that went back") {
        harness.wipe().await;
        let mark = instance(9);
        let _mark = register(LAW, harness, backend, &service, &mark).await;
        let seen = follower.until("an instance registered after the wipe", |set| set.get(mark.id().as_str()).is_some());
        let seen = seen.await;
        let reset = seen.iter().any(|update| matches!(update, Update::Reset(_)));
        assert!(reset, "{LAW}: a registry that went back must be a Reset, but was reported as {seen:?}");
    }
}

/// **W3**: a `Reset` follows whenever changes could have been missed, and what did not change is
/// not touched.
pub async fn w03_has_no_gap_and_moves_nothing(harness: &dyn Harness) {
    const LAW: &str = "W3";
    let process = harness.process().await;
    let service = service("payments");
    let still = instance(1);
    let moving = instance(2);
    let later = instance(3);
    let backend = process.backend();
    let _still = register(LAW, harness, backend, &service, &still).await;
    let mut follower = Follower::new(LAW, harness, backend, &service);
    follower.until("the registered instance", |set| has(set, &[&still])).await;
    let first = Arc::clone(follower.set.get(still.id().as_str()).expect("it was just waited for"));

    let mut held = follower.set.clone();
    let mut registrations = vec![register(LAW, harness, backend, &service, &moving).await];
    let mut seen = follower.until("another instance", |set| has(set, &[&still, &moving])).await;
    // Rewriting an equal entry is a step of the registry, but not a change of the set.
    registrations.push(register(LAW, harness, backend, &service, &moving).await);
    seen.extend(follower.unexpected().await);
    let moved = reweighed(&moving, 7);
    registrations.push(register(LAW, harness, backend, &service, &moved).await);
    seen.extend(
        follower
            .until("the changed instance", |set| set.get(moved.id().as_str()).is_some_and(|one| **one == moved))
            .await,
    );

    if can(LAW, harness.capabilities().outages, "outages", "changes missed in an outage") {
        harness.interrupt().await;
        seen.push(Update::Lost(follower.until_lost("the outage").await));
        harness.restore().await;
        // Before the watch has recovered, so that it misses this.
        eventually(LAW, "registering works again", harness.timings().settle, async || {
            let registration = backend.register(&service, later.clone()).await;
            registrations.extend(registration.ok());
            registrations.len() > 3
        })
        .await;
        seen.extend(follower.until("what an outage hid", |set| has(set, &[&still, &moving, &later])).await);
    }

    for update in seen {
        if let Update::Change(change) = &update {
            let idle = idle_part(&held, change);
            assert!(idle.is_none(), "{LAW}: a Change must carry only what changed, but has {idle:?}: {change:?}");
        }
        held = held.after(&update);
        let now = held.get(still.id().as_str());
        let same = now.is_some_and(|one| Arc::ptr_eq(one, &first));
        assert!(same, "{LAW}: an unchanged instance must stay the same Arc, but {update:?} replaced it");
    }
}

/// **W4**: a stream never ends; streams and registrations keep alive what they need; errors and
/// panics are items.
pub async fn w04_never_ends(harness: &dyn Harness) {
    const LAW: &str = "W4";
    let capabilities = harness.capabilities();
    let service = service("payments");
    let one = instance(1);
    let two = instance(2);
    let process = harness.process().await;
    let registration = register(LAW, harness, process.backend(), &service, &one).await;
    let mut follower = Follower::new(LAW, harness, process.backend(), &service);
    follower.until("the registered instance", |set| has(set, &[&one])).await;
    drop(process);

    let other = harness.process().await;
    let _other = register(LAW, harness, other.backend(), &service, &two).await;
    follower.until("a change after the handle was dropped", |set| has(set, &[&one, &two])).await;
    if can(LAW, capabilities.leases, "leases", "a registration outlives its backend's handle") {
        tokio::time::sleep(harness.timings().ttl * 2).await;
    }
    let bound = harness.timings().settle;
    eventually(LAW, "a registration must keep alive what it needs", bound, async || {
        registration.status().is_registered() && lists(other.backend(), &service, &one).await
    })
    .await;

    if can(LAW, capabilities.outages, "outages", "a stream outlives an outage") {
        harness.interrupt().await;
        follower.until_lost("the outage").await;
        harness.restore().await;
        tokio::time::sleep(harness.timings().quiet).await;
    }
    if can(LAW, capabilities.panics, "panics", "a panicking backend") {
        if capabilities.outages {
            let three = instance(3);
            let _three = ok_in_time(LAW, harness, &other, &service, &three).await;
            follower.until("a set after the outage", |set| set.get(three.id().as_str()).is_some()).await;
        }
        harness.panic_watches(&service).await;
        let error = follower.until_lost("the panic").await;
        assert!(error.kind() == ErrorKind::Internal, "{LAW}: a panic must be an internal error, but is {error}");
        tokio::time::sleep(harness.timings().quiet).await;
    }
    let four = instance(4);
    let _four = ok_in_time(LAW, harness, &other, &service, &four).await;
    follower.until("a change after all of that", |set| set.get(four.id().as_str()).is_some()).await;
}

/// **W5**: an outage is one `Lost`, and one more when its kind changes; then a `Reset` follows,
/// even an equal one.
pub async fn w05_reports_an_outage_once(harness: &dyn Harness) {
    const LAW: &str = "W5";
    let capabilities = harness.capabilities();
    if !can(LAW, capabilities.outages, "outages", "all of it") {
        return;
    }
    let process = harness.process().await;
    let service = service("payments");
    let one = instance(1);
    let _registration = register(LAW, harness, process.backend(), &service, &one).await;
    let mut follower = Follower::new(LAW, harness, process.backend(), &service);
    follower.until("the registered instance", |set| has(set, &[&one])).await;
    let before = follower.set.clone();

    harness.interrupt().await;
    let mut kind = follower.until_lost("the outage").await.kind();
    let mut more = follower.unexpected().await;
    // A connection may break with one kind of error and then be refused with another.
    if let Some(Update::Lost(error)) = &more
        && error.kind() != kind
    {
        kind = error.kind();
        more = follower.unexpected().await;
    }
    assert!(more.is_none(), "{LAW}: an outage must be reported once, but then got {more:?}");
    if can(LAW, capabilities.refusals, "refusals", "an outage that changes its kind") {
        harness.refuse().await;
        let error = follower.until_lost("the outage's new kind").await;
        assert!(error.kind() != kind, "{LAW}: a loss must be reported again only when its kind changes");
        kind = error.kind();
        let more = follower.unexpected().await;
        assert!(more.is_none(), "{LAW}: each kind of an outage must be reported once, but then got {more:?}");
    }
    assert!(follower.set == before, "{LAW}: during an outage the set must stay as last known");

    harness.restore().await;
    let back = loop {
        match follower.next("a Reset after the outage").await {
            Update::Lost(error) if error.kind() != kind => kind = error.kind(),
            update => break update,
        }
    };
    assert!(matches!(back, Update::Reset(_)), "{LAW}: the first item after Lost must be a Reset, but is {back:?}");
    follower.until("the set as it was", |set| *set == before).await;
}

/// Registers an instance as soon as the registry accepts it after an outage.
async fn ok_in_time(
    law: &'static str,
    harness: &dyn Harness,
    process: &super::Process,
    service: &crate::ServiceName,
    instance: &Instance,
) -> crate::Registration {
    let mut registration = None;
    eventually(law, "registering works again", harness.timings().settle, async || {
        registration = process.backend().register(service, instance.clone()).await.ok();
        registration.is_some()
    })
    .await;
    registration.expect("it was just waited for")
}
