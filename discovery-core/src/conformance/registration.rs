//! R1 to R6: what a registration does.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    Harness,
    probe::{
        Follower, can, eventually, failure, has, instance, lists, misses, odd_metadata, ok, register, reweighed,
        service,
    },
};
use crate::{Backend, Claim, ErrorKind, Registration, ServiceName, Status, Update};

/// **R1**: `Ok` means written: whoever lists after it sees the instance, as it was registered; open watches see it soon.
pub async fn r01_ok_means_written(harness: &dyn Harness) {
    const LAW: &str = "R1";
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let mut follower = Follower::new(LAW, harness, other.backend(), &service);
    follower.next_set("the first set").await;
    let mut registrations = Vec::new();
    for number in 1..=3 {
        let one = reweighed(&instance(number), u16::from(number)).with_metadata(odd_metadata());
        registrations.push(register(LAW, harness, process.backend(), &service, &one).await);
        for (who, backend) in [("its own process", process.backend()), ("another process", other.backend())] {
            let set = ok(LAW, harness, "list", backend.list(&service)).await;
            let found = set.get(one.id().as_str());
            let same = found.is_some_and(|found| **found == one);
            assert!(same, "{LAW}: after Ok a list of {who} must show {one:?}, but shows {found:?}");
        }
        follower
            .until("an open watch must see it", |set| set.get(one.id().as_str()).is_some_and(|found| **found == one))
            .await;
        let status = registrations[registrations.len() - 1].status();
        assert!(status.is_registered(), "{LAW}: after Ok the status must be Registered, but is {status:?}");
    }
}

/// **R2**: it heals itself after every loss, or says since when and why it is not registered.
pub async fn r02_heals(harness: &dyn Harness) {
    const LAW: &str = "R2";
    let capabilities = harness.capabilities();
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let ttl = harness.timings().ttl;
    let registration = register(LAW, harness, process.backend(), &service, &instance(1)).await;
    ok(LAW, harness, "update", registration.update(|one| reweighed(&one, 7))).await;
    // What was updated is what heals.
    let one = reweighed(&instance(1), 7);
    let mut follower = Follower::new(LAW, harness, other.backend(), &service);
    follower.until("the registered instance", |set| has(set, &[&one])).await;
    let healed = async |what: &str| {
        eventually(LAW, what, settle, async || {
            registration.status().is_registered() && lists(other.backend(), &service, &one).await
        })
        .await;
    };

    if can(LAW, capabilities.expiry, "expiry", "a lost lease") {
        harness.expire(&service, one.id()).await;
        if capabilities.push {
            follower.until("the lease must be seen to be lost", |set| set.is_empty()).await;
        }
        healed("it must heal after its lease was lost").await;
        follower.until("the healed instance", |set| has(set, &[&one])).await;
    }
    if can(LAW, capabilities.removal, "removal", "an entry removed by hand") {
        harness.remove(&service, one.id()).await;
        if capabilities.push {
            follower.until("the entry must be seen to be gone", |set| set.is_empty()).await;
        }
        healed("it must heal after somebody removed its entry").await;
        follower.until("the healed instance", |set| has(set, &[&one])).await;
    }
    if can(LAW, capabilities.wipes, "wipes", "a registry set back to empty") {
        harness.wipe().await;
        healed("it must heal after the registry was wiped").await;
    }
    if can(LAW, capabilities.outages, "outages", "an outage") {
        harness.interrupt().await;
        if can(LAW, capabilities.leases, "leases", "an outage longer than the lease") {
            let bound = ttl + settle;
            eventually(LAW, "it must say that it is not registered any more", bound, async || {
                matches!(registration.status(), Status::Lost { .. })
            })
            .await;
        }
        harness.restore().await;
        healed("it must heal after an outage").await;
    }
    let status = registration.status();
    assert!(status.is_registered(), "{LAW}: a registration that lives must be registered, but is {status:?}");
}

/// **R3**: one owner per id: registering takes over or is refused, healing never takes over, the superseded cannot act.
pub async fn r03_has_one_owner(harness: &dyn Harness) {
    const LAW: &str = "R3";
    let old = harness.process().await;
    let new = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let quiet = harness.timings().quiet;

    for (number, ending) in [(1, "deregistered"), (2, "dropped")] {
        let before = instance(number);
        let after = reweighed(&instance(number), 7);
        let first = register(LAW, harness, old.backend(), &service, &before).await;
        let second = register(LAW, harness, new.backend(), &service, &after).await;
        eventually(LAW, "registering must take over", settle, async || lists(old.backend(), &service, &after).await)
            .await;
        eventually(LAW, "the former owner must be Superseded", settle, async || {
            matches!(first.status(), Status::Superseded { .. })
        })
        .await;
        let error = failure(LAW, harness, "an update by the superseded", first.update(|one| reweighed(&one, 9))).await;
        assert!(error.kind() == ErrorKind::Conflict, "{LAW}: the superseded must get a conflict, but got {error}");
        if ending == "dropped" {
            drop(first);
        } else {
            ok(LAW, harness, "deregistering the superseded", first.deregister()).await;
        }
        for wait in [Duration::ZERO, quiet] {
            tokio::time::sleep(wait).await;
            let stands = lists(old.backend(), &service, &after).await;
            assert!(
                stands,
                "{LAW}: a superseded registration that is {ending} must neither change nor remove the entry"
            );
        }
        assert!(
            second.status().is_registered(),
            "{LAW}: the new owner must stay registered, but is {:?}",
            second.status()
        );
    }

    let held = instance(3);
    let owner = register(LAW, harness, old.backend(), &service, &held).await;
    for (who, backend) in [("its own process", old.backend()), ("another process", new.backend())] {
        let other = backend.register_with(&service, reweighed(&held, 7), Claim::IfAbsent);
        let error = failure(LAW, harness, "a claim by another while the owner lives", other).await;
        assert!(error.kind() == ErrorKind::Conflict, "{LAW}: a claim of {who} must be a conflict, but is {error}");
    }
    eventually(LAW, "a refused claim must change nothing", settle, async || {
        lists(new.backend(), &service, &held).await
    })
    .await;
    assert!(
        owner.status().is_registered(),
        "{LAW}: a refused claim must change nothing, but made it {:?}",
        owner.status()
    );
    ok(LAW, harness, "deregister", owner.deregister()).await;
    eventually(LAW, "the entry is gone", settle, async || misses(new.backend(), &service, held.id()).await).await;
    let claimed = new.backend().register_with(&service, held.clone(), Claim::IfAbsent);
    let _claimed = ok(LAW, harness, "a claim where no owner lives", claimed).await;

    if can(LAW, harness.capabilities().expiry, "expiry", "healing does not take over") {
        let before = instance(4);
        let after = reweighed(&instance(4), 7);
        let first = register(LAW, harness, old.backend(), &service, &before).await;
        harness.expire(&service, before.id()).await;
        let second = register(LAW, harness, new.backend(), &service, &after).await;
        eventually(LAW, "who lost its entry to another must be Superseded", settle, async || {
            matches!(first.status(), Status::Superseded { .. })
        })
        .await;
        tokio::time::sleep(quiet).await;
        eventually(LAW, "healing must not take over", settle, async || lists(old.backend(), &service, &after).await)
            .await;
        assert!(
            second.status().is_registered(),
            "{LAW}: healing must not take over, but made it {:?}",
            second.status()
        );
    }
}

/// **R4**: `deregister` returns once the entry is gone; a drop does the same; a killed process goes with its lease.
pub async fn r04_ends_with_its_handle(harness: &dyn Harness) {
    const LAW: &str = "R4";
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let ttl = harness.timings().ttl;
    let mut follower = Follower::new(LAW, harness, other.backend(), &service);

    let one = instance(1);
    let registration = register(LAW, harness, process.backend(), &service, &one).await;
    follower.until("the registered instance", |set| has(set, &[&one])).await;
    ok(LAW, harness, "deregister", registration.deregister()).await;
    for (who, backend) in [("its own process", process.backend()), ("another process", other.backend())] {
        let gone = misses(backend, &service, one.id()).await;
        assert!(gone, "{LAW}: once deregister has returned, a list of {who} must not show the instance");
    }
    follower.until("a watch must see it go", |set| set.is_empty()).await;

    for place in ["in a runtime", "outside a runtime"] {
        let registration = register(LAW, harness, process.backend(), &service, &one).await;
        follower.until("the registered instance", |set| has(set, &[&one])).await;
        let since = Instant::now();
        if place == "in a runtime" {
            drop(registration);
        } else {
            let dropped = std::thread::spawn(move || drop(registration)).join();
            assert!(dropped.is_ok(), "{LAW}: a drop {place} must not panic");
        }
        assert!(since.elapsed() < Duration::from_secs(1), "{LAW}: a drop {place} must not block");
        let what = format!("a drop {place} must end the entry");
        eventually(LAW, &what, settle, async || misses(other.backend(), &service, one.id()).await).await;
        follower.until(&what, |set| set.is_empty()).await;
    }

    let outages = harness.capabilities().outages;
    let leases = harness.capabilities().leases;
    if can(LAW, outages && leases, "outages and leases", "an end during an outage") {
        let registration = register(LAW, harness, process.backend(), &service, &one).await;
        follower.until("the registered instance", |set| has(set, &[&one])).await;
        eventually(LAW, "the registered instance", settle, async || lists(other.backend(), &service, &one).await).await;
        harness.interrupt().await;
        let error = failure(LAW, harness, "deregistering during an outage", registration.deregister()).await;
        assert!(error.is_retryable(), "{LAW}: what ends later is no final error, but it is {error}");
        harness.restore().await;
        let bound = ttl + Duration::from_secs(1) + settle;
        eventually(LAW, "the lease must end what could not be deregistered", bound, async || {
            misses(other.backend(), &service, one.id()).await
        })
        .await;
        follower.until("a watch must see it go", |set| set.is_empty()).await;
    }
    if can(LAW, leases, "leases", "a killed process") {
        let registration = register(LAW, harness, process.backend(), &service, &one).await;
        follower.until("the registered instance", |set| has(set, &[&one])).await;
        eventually(LAW, "the registered instance", settle, async || lists(other.backend(), &service, &one).await).await;
        process.kill();
        let bound = ttl + Duration::from_secs(1);
        eventually(LAW, "a killed process must be gone", bound, async || {
            misses(other.backend(), &service, one.id()).await
        })
        .await;
        follower.until("a watch must see a killed process go", |set| set.is_empty()).await;
        drop(registration);
    }
}

/// **R5**: an update changes weight and metadata in place, without a moment of absence; one that is
/// refused for good changes nothing, now or later.
pub async fn r05_updates_in_place(harness: &dyn Harness) {
    const LAW: &str = "R5";
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let one = instance(1);
    let registration = register(LAW, harness, process.backend(), &service, &one).await;
    let mut follower = Follower::new(LAW, harness, other.backend(), &service);
    follower.until("the registered instance", |set| has(set, &[&one])).await;

    let settle = harness.timings().settle;
    eventually(LAW, "the registered instance", settle, async || lists(process.backend(), &service, &one).await).await;

    for weight in 1..=5 {
        let next = reweighed(&one, weight).with_metadata(odd_metadata());
        ok(LAW, harness, "update", registration.update(|_| next.clone())).await;
        let shown = lists(process.backend(), &service, &next).await;
        assert!(shown, "{LAW}: once update has returned, a list must show the new values");
        let found = |set: &crate::Snapshot| set.get(next.id().as_str()).is_some_and(|found| **found == next);
        for update in follower.until("the new values", found).await {
            let absent = match &update {
                Update::Change(change) => change.removes().contains(one.id()),
                Update::Lost(_) => false,
                Update::Reset(set) => set.get(one.id().as_str()).is_none(),
            };
            assert!(!absent, "{LAW}: an update must not remove the instance for a moment, but {update:?} does");
        }
        assert!(*registration.instance() == next, "{LAW}: the registration must show what was written");
    }
    let status = registration.status();
    assert!(status.is_registered(), "{LAW}: after an update the status must be Registered, but is {status:?}");

    let weight = registration.update(|one| reweighed(&one, 50));
    let metadata = registration.update(|one| one.with_metadata([("zone", "b")].try_into().expect("it is allowed")));
    ok(LAW, harness, "two updates at once", futures::future::try_join(weight, metadata)).await;
    let last = registration.instance();
    let both = last.weight().value() == 50 && last.metadata().get("zone") == Some("b");
    assert!(both, "{LAW}: of two updates at once neither must undo the other, but it is {last:?}");
    let written = lists(process.backend(), &service, &last).await;
    assert!(written, "{LAW}: the registration must show what was written");

    let moved = instance(2).with_id(one.id().clone());
    let error = failure(LAW, harness, "an update of the address", registration.update(|_| moved)).await;
    assert!(error.kind() == ErrorKind::InvalidInput, "{LAW}: another address must be refused, but got {error}");

    if can(LAW, harness.capabilities().denials, "denials", "an update that is refused for good") {
        refused_update_is_not_written_later(LAW, harness, &registration, process.backend(), &service).await;
    }
}

/// What the registry refuses for good is neither shown nor written later, whatever is written for
/// another reason.
async fn refused_update_is_not_written_later(
    law: &'static str,
    harness: &dyn Harness,
    registration: &Registration,
    backend: &Arc<dyn Backend>,
    service: &ServiceName,
) {
    let settle = harness.timings().settle;
    let quiet = harness.timings().quiet;
    let before = registration.instance();
    harness.deny().await;
    let refused = registration.update(|one| reweighed(&one, 77));
    let error = failure(law, harness, "an update that the registry refuses for good", refused).await;
    assert!(!error.is_retryable(), "{law}: what is refused for good is no error that passes, but it is {error}");
    let shown = registration.instance();
    assert!(
        shown == before,
        "{law}: after an update that was refused the registration must show {before:?}, but shows {shown:?}"
    );
    harness.permit().await;
    let what = "after an update that was refused the former values must stand";
    eventually(law, what, settle, async || lists(backend, service, &before).await).await;
    tokio::time::sleep(quiet).await;
    let stands = lists(backend, service, &before).await;
    assert!(stands, "{law}: an update that was refused must not be written later");
    if can(law, harness.capabilities().expiry, "expiry", "healing after an update that was refused") {
        harness.expire(service, before.id()).await;
        let what = "what heals after an update that was refused must be the former values";
        eventually(law, what, settle, async || lists(backend, service, &before).await).await;
        tokio::time::sleep(quiet).await;
        assert!(lists(backend, service, &before).await, "{law}: {what}");
    }
    let next = reweighed(&before, 78);
    ok(law, harness, "an update after one that was refused", registration.update(|_| next.clone())).await;
    let written = lists(backend, service, &next).await;
    assert!(written, "{law}: an update after one that was refused must be written");
}

/// **R6**: a `register` that is dropped half-way leaves nothing behind.
pub async fn r06_leaves_nothing_half_done(harness: &dyn Harness) {
    const LAW: &str = "R6";
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let quiet = harness.timings().quiet;
    // Stopped after so many polls, or after so long: whichever way, wherever it waits it is once dropped.
    for number in 1..=24 {
        let (polls, limit) =
            if number <= 16 { (number, settle) } else { (u8::MAX, quiet / 20 * u32::from(number - 16)) };
        let mut half = pin!(process.backend().register(&service, instance(number)));
        let mut left = polls;
        let stopped = poll_fn(|context| {
            left = left.saturating_sub(1);
            match half.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending if left == 0 => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        if let Ok(Some(done)) = tokio::time::timeout(limit, stopped).await {
            let registration = ok(LAW, harness, "register", async { done }).await;
            ok(LAW, harness, "deregister", registration.deregister()).await;
        }
    }
    eventually(LAW, "a register dropped half-way must leave no entry", settle, async || {
        other.backend().list(&service).await.is_ok_and(|set| set.is_empty())
    })
    .await;
    tokio::time::sleep(quiet).await;
    let set = ok(LAW, harness, "list", other.backend().list(&service)).await;
    assert!(set.is_empty(), "{LAW}: what was given up must not be written later, but there is {set:?}");

    let first = instance(1);
    let claimed = other.backend().register_with(&service, first.clone(), Claim::IfAbsent);
    let claimed = ok(LAW, harness, "a claim of an id that was given up", claimed).await;
    tokio::time::sleep(quiet).await;
    assert!(
        claimed.status().is_registered(),
        "{LAW}: who gave up must not come back, but made it {:?}",
        claimed.status()
    );
}
