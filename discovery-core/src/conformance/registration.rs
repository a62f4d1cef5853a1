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

/// **R1**: `Ok` means written: a list that starts afterwards shows the instance as it was
/// registered; open watches see it soon.
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
            assert!(same, "{LAW}: after Ok a list by {who} must show {one:?}, but shows {found:?}");
        }
        follower
            .until("an open watch must see it", |set| set.get(one.id().as_str()).is_some_and(|found| **found == one))
            .await;
        let status = registrations[registrations.len() - 1].status();
        assert!(status.is_registered(), "{LAW}: after Ok the status must be Registered, but is {status:?}");
    }
}

/// **R2**: a registration is registered again after every loss, or reports since when and why not.
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
    // The updated values are the ones that must be restored.
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
            follower.until("a watch must see the loss of the lease", |set| set.is_empty()).await;
        }
        healed("it must be registered again after its lease was lost").await;
        follower.until("the restored instance", |set| has(set, &[&one])).await;
    }
    if can(LAW, capabilities.removal, "removal", "an entry removed by hand") {
        harness.remove(&service, one.id()).await;
        if capabilities.push {
            follower.until("a watch must see that the entry is gone", |set| set.is_empty()).await;
        }
        healed("it must be registered again after its entry was removed").await;
        follower.until("the restored instance", |set| has(set, &[&one])).await;
    }
    if can(LAW, capabilities.wipes, "wipes", "a registry reset to empty") {
        harness.wipe().await;
        healed("it must be registered again after the registry was wiped").await;
    }
    if can(LAW, capabilities.outages, "outages", "an outage") {
        harness.interrupt().await;
        if can(LAW, capabilities.leases, "leases", "an outage longer than the lease") {
            let bound = ttl + settle;
            eventually(LAW, "it must report that it is no longer registered", bound, async || {
                matches!(registration.status(), Status::Lost { .. })
            })
            .await;
        }
        harness.restore().await;
        healed("it must be registered again after an outage").await;
    }
    let status = registration.status();
    assert!(status.is_registered(), "{LAW}: a live registration must be registered, but is {status:?}");
}

/// **R3**: one owner per id: registering takes over or is refused, re-registration never takes
/// over, and a superseded registration cannot act.
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
        let error =
            failure(LAW, harness, "an update of a superseded registration", first.update(|one| reweighed(&one, 9)))
                .await;
        assert!(
            error.kind() == ErrorKind::Conflict,
            "{LAW}: a superseded registration must get a conflict, but got {error}"
        );
        if ending == "dropped" {
            drop(first);
        } else {
            ok(LAW, harness, "deregistering a superseded registration", first.deregister()).await;
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
        let error = failure(LAW, harness, "a claim while another owner lives", other).await;
        assert!(error.kind() == ErrorKind::Conflict, "{LAW}: a claim by {who} must be a conflict, but is {error}");
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
    let _claimed = ok(LAW, harness, "a claim while no owner lives", claimed).await;

    // Within one process: another one may have missed that there was a successor.
    let first = register(LAW, harness, old.backend(), &service, &instance(5)).await;
    let second = register(LAW, harness, old.backend(), &service, &reweighed(&instance(5), 7)).await;
    ok(LAW, harness, "deregister", second.deregister()).await;
    eventually(LAW, "an owner whose successor has left must be Superseded", settle, async || {
        matches!(first.status(), Status::Superseded { .. })
    })
    .await;
    let is_gone = async || misses(new.backend(), &service, instance(5).id()).await;
    eventually(LAW, "the entry is gone", settle, is_gone).await;
    tokio::time::sleep(quiet).await;
    assert!(is_gone().await, "{LAW}: a superseded owner must not return when its successor has left");

    if can(LAW, harness.capabilities().expiry, "expiry", "re-registration does not take over") {
        let before = instance(4);
        let after = reweighed(&instance(4), 7);
        let first = register(LAW, harness, old.backend(), &service, &before).await;
        harness.expire(&service, before.id()).await;
        let second = register(LAW, harness, new.backend(), &service, &after).await;
        eventually(LAW, "an owner that lost its entry to another must be Superseded", settle, async || {
            matches!(first.status(), Status::Superseded { .. })
        })
        .await;
        tokio::time::sleep(quiet).await;
        eventually(LAW, "re-registration must not take over", settle, async || {
            lists(old.backend(), &service, &after).await
        })
        .await;
        assert!(
            second.status().is_registered(),
            "{LAW}: re-registration must not take over, but made it {:?}",
            second.status()
        );
    }
}

/// **R4**: `deregister` returns once the entry is gone; a drop does the same without waiting; the
/// entry of a killed process ends with its lease.
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
        assert!(gone, "{LAW}: once deregister has returned, a list by {who} must not show the instance");
    }
    follower.until("a watch must see its removal", |set| set.is_empty()).await;

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
        assert!(error.is_retryable(), "{LAW}: an end that is only delayed must be a retryable error, but is {error}");
        harness.restore().await;
        let bound = ttl + Duration::from_secs(1) + settle;
        eventually(LAW, "the lease must end what could not be deregistered", bound, async || {
            misses(other.backend(), &service, one.id()).await
        })
        .await;
        follower.until("a watch must see its removal", |set| set.is_empty()).await;
    }
    if can(LAW, leases, "leases", "a killed process") {
        let registration = register(LAW, harness, process.backend(), &service, &one).await;
        follower.until("the registered instance", |set| has(set, &[&one])).await;
        eventually(LAW, "the registered instance", settle, async || lists(other.backend(), &service, &one).await).await;
        process.kill();
        let bound = ttl + Duration::from_secs(1);
        eventually(LAW, "the entry of a killed process must be gone", bound, async || {
            misses(other.backend(), &service, one.id()).await
        })
        .await;
        follower.until("a watch must see the removal of a killed process", |set| set.is_empty()).await;
        drop(registration);
    }
}

/// **R5**: an update changes weight and metadata in place, without a moment of absence. One that is
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
    ok(LAW, harness, "two concurrent updates", futures::future::try_join(weight, metadata)).await;
    let last = registration.instance();
    let both = last.weight().value() == 50 && last.metadata().get("zone") == Some("b");
    assert!(both, "{LAW}: neither of two concurrent updates may undo the other, but the instance is {last:?}");
    let written = lists(process.backend(), &service, &last).await;
    assert!(written, "{LAW}: the registration must show what was written");

    let moved = instance(2).with_id(one.id().clone());
    let error = failure(LAW, harness, "an update of the address", registration.update(|_| moved)).await;
    assert!(
        error.kind() == ErrorKind::InvalidInput,
        "{LAW}: an update of the address must be invalid input, but got {error}"
    );

    if can(LAW, harness.capabilities().denials, "denials", "an update that is refused for good") {
        refused_update_is_not_written_later(LAW, harness, &registration, process.backend(), &service).await;
    }
}

/// An update that the registry refuses for good is neither shown nor written later, even when the
/// entry is written for another reason.
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
    assert!(!error.is_retryable(), "{law}: an update refused for good must not be a retryable error, but is {error}");
    let shown = registration.instance();
    assert!(
        shown == before,
        "{law}: after a refused update the registration must show {before:?}, but shows {shown:?}"
    );
    harness.permit().await;
    let what = "after a refused update the former values must stay";
    eventually(law, what, settle, async || lists(backend, service, &before).await).await;
    tokio::time::sleep(quiet).await;
    let stands = lists(backend, service, &before).await;
    assert!(stands, "{law}: a refused update must not be written later");
    if can(law, harness.capabilities().expiry, "expiry", "re-registration after a refused update") {
        harness.expire(service, before.id()).await;
        let what = "after a refused update, re-registration must write the former values";
        eventually(law, what, settle, async || lists(backend, service, &before).await).await;
        tokio::time::sleep(quiet).await;
        assert!(lists(backend, service, &before).await, "{law}: {what}");
    }
    let next = reweighed(&before, 78);
    ok(law, harness, "an update after a refused one", registration.update(|_| next.clone())).await;
    let written = lists(backend, service, &next).await;
    assert!(written, "{law}: an update after a refused one must be written");
}

/// **R6**: a `register` that is dropped before completion leaves nothing behind.
pub async fn r06_leaves_nothing_half_done(harness: &dyn Harness) {
    const LAW: &str = "R6";
    let process = harness.process().await;
    let other = harness.process().await;
    let service = service("payments");
    let settle = harness.timings().settle;
    let quiet = harness.timings().quiet;
    // Dropped after a number of polls, or after a delay, so that every await point is interrupted
    // at least once.
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
    eventually(LAW, "a register dropped before completion must leave no entry", settle, async || {
        other.backend().list(&service).await.is_ok_and(|set| set.is_empty())
    })
    .await;
    tokio::time::sleep(quiet).await;
    let set = ok(LAW, harness, "list", other.backend().list(&service)).await;
    assert!(set.is_empty(), "{LAW}: an abandoned register must not be written later, but the set is {set:?}");

    let first = instance(1);
    let claimed = other.backend().register_with(&service, first.clone(), Claim::IfAbsent);
    let claimed = ok(LAW, harness, "a claim of an abandoned id", claimed).await;
    tokio::time::sleep(quiet).await;
    assert!(
        claimed.status().is_registered(),
        "{LAW}: an abandoned register must not take over, but made the status {:?}",
        claimed.status()
    );
}
