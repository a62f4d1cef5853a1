//! The effects of the faults, beyond the laws.

use std::time::Duration;

use discovery_core::{
    Change, Claim, ErrorKind, Instance, Registry, RegistryExt, Resolver, ServiceName, Status, Update, Weight,
};
use discovery_memory::MemoryBackend;
use futures::{FutureExt, StreamExt};
use tokio::time::sleep;

fn payments() -> ServiceName {
    "payments".parse().unwrap()
}

fn instance(number: u8) -> Instance {
    Instance::new(format!("10.0.0.{number}:80").parse().unwrap())
}

#[test]
fn registering_and_dropping_need_no_runtime() {
    let backend = MemoryBackend::new();
    let registration = backend.register(&payments(), instance(1)).now_or_never().unwrap().unwrap();
    assert!(backend.expire(&payments(), "10.0.0.1:80"));
    assert!(matches!(registration.status(), Status::Lost { .. }));
    drop(registration);
    assert_eq!(backend.watch(&payments()).unwrap_err().kind(), ErrorKind::NoRuntime);
}

#[test]
fn without_a_runtime_due_work_happens_at_the_next_call() {
    let backend = MemoryBackend::with_ttl(Duration::from_millis(10));
    let process = backend.another_process();
    let _killed = process.register(&payments(), instance(1)).now_or_never().unwrap().unwrap();
    process.crash();
    std::thread::sleep(Duration::from_millis(20));
    let claimed = backend.register_with(&payments(), instance(1), Claim::IfAbsent).now_or_never().unwrap();
    assert!(claimed.unwrap().status().is_registered(), "the lease of the killed process has ended");
}

/// On a runtime of one thread, where the writer runs only if the reader yields.
#[tokio::test]
async fn listing_until_an_instance_is_there_lets_it_be_registered() {
    let backend = MemoryBackend::new();
    let writer = backend.clone();
    let registering = tokio::spawn(async move { writer.register(&payments(), instance(1)).await });
    while backend.list(&payments()).await.unwrap().is_empty() {}
    drop(registering.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn held_updates_keep_their_order_and_lists_do_not_wait() {
    let backend = MemoryBackend::new();
    let mut updates = backend.watch(&payments()).unwrap();
    assert!(matches!(updates.next().await, Some(Update::Reset(set)) if set.is_empty()));
    backend.pause_watches();
    backend.put(&payments(), instance(1));
    backend.put(&payments(), instance(2));
    backend.remove(&payments(), "10.0.0.1:80");
    assert_eq!(backend.list(&payments()).await.unwrap().len(), 1);
    assert!(tokio::time::timeout(Duration::from_secs(60), updates.next()).await.is_err());
    backend.resume_watches();
    let told: Vec<Change> = updates
        .take(3)
        .map(|update| match update {
            Update::Change(change) => change,
            other => panic!("{other:?}"),
        })
        .collect()
        .await;
    let steps: Vec<_> = told.iter().map(|change| (change.upserts().len(), change.removes().len())).collect();
    assert_eq!(steps, [(1, 0), (1, 0), (0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_deregistration_states_when_the_lease_ends_the_entry() {
    let backend = MemoryBackend::new();
    let registration = backend.register(&payments(), instance(1)).await.unwrap();
    backend.interrupt();
    sleep(Duration::from_secs(5)).await;
    let error = registration.deregister().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.to_string().contains("within 10s"), "{error}");
    backend.restore();
    assert_eq!(backend.list(&payments()).await.unwrap().len(), 1);
    sleep(Duration::from_secs(11)).await;
    assert!(backend.list(&payments()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_the_ttl_empties_the_registry_until_all_register_again() {
    let backend = MemoryBackend::new();
    let registrations = [
        backend.register(&payments(), instance(1)).await.unwrap(),
        backend.another_process().register(&payments(), instance(2)).await.unwrap(),
    ];
    backend.interrupt();
    sleep(Duration::from_secs(14)).await;
    assert!(registrations.iter().all(|one| one.status().is_registered()), "the leases last");
    sleep(Duration::from_secs(2)).await;
    for one in &registrations {
        assert!(matches!(one.status(), Status::Lost { error, .. } if error.kind() == ErrorKind::Unavailable));
    }
    backend.restore();
    assert!(backend.list(&payments()).await.unwrap().is_empty());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(backend.list(&payments()).await.unwrap().len(), 2);
    assert!(registrations.iter().all(|one| one.status().is_registered()));
}

#[tokio::test(start_paused = true)]
async fn an_update_during_an_outage_is_written_after_it() {
    let backend = MemoryBackend::new();
    let registration = backend.register(&payments(), instance(1)).await.unwrap();
    backend.interrupt();
    let metadata = || [("zone", "b")].try_into().unwrap();
    let error = registration.update(|one| one.with_metadata(metadata())).await.unwrap_err();
    assert!(error.is_retryable());
    backend.restore();
    let set = backend.list(&payments()).await.unwrap();
    assert_eq!(set.get("10.0.0.1:80").unwrap().metadata().get("zone"), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_crashed_handle_is_closed() {
    let backend = MemoryBackend::new();
    let process = backend.another_process();
    let registration = process.register(&payments(), instance(1)).await.unwrap();
    let mut updates = process.watch(&payments()).unwrap();
    updates.next().await;
    process.crash();
    assert!(matches!(updates.next().await, Some(Update::Lost(error)) if error.kind() == ErrorKind::Closed));
    assert_eq!(process.list(&payments()).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(registration.deregister().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(backend.list(&payments()).await.unwrap().len(), 1, "its entry stays until its lease ends");
}

#[tokio::test(start_paused = true)]
async fn timers_and_watches_end_by_themselves() {
    let backend = MemoryBackend::new();
    let registration = backend.register(&payments(), instance(1)).await.unwrap();
    let updates = backend.watch(&payments()).unwrap();
    for _ in 0..10 {
        backend.expire(&payments(), "10.0.0.1:80");
        backend.interrupt();
        backend.restore();
        sleep(Duration::from_secs(20)).await;
    }
    assert!(registration.status().is_registered());
    drop((updates, registration, backend));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_kept_registration_is_written_when_the_registry_is_back() {
    let backend = MemoryBackend::new();
    backend.interrupt();
    let mut registration = backend.keep_registered(&payments(), instance(1), Claim::TakeOver).unwrap();
    let weight = Weight::new(7).unwrap();
    sleep(Duration::from_secs(60)).await;
    registration.update(|instance| instance.with_weight(weight)).await.unwrap();
    backend.restore();
    while !registration.changed().await.unwrap().is_registered() {}
    let set = backend.list(&payments()).await.unwrap();
    assert_eq!(set.iter().map(|instance| instance.weight()).collect::<Vec<_>>(), [weight]);
    registration.deregister().await.unwrap();
    assert!(backend.list(&payments()).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_entry_overwritten_by_hand_is_repaired_and_one_without_an_owner_is_a_conflict() {
    let backend = MemoryBackend::new();
    let other = MemoryBackend::new();
    let registration = backend.register(&payments(), instance(1)).await.unwrap();
    let mut statuses = registration.statuses();
    for by_hand in ["another", "unreadable", "the same"] {
        match by_hand {
            "another" => backend.put(&payments(), instance(1).with_weight(Weight::new(7).unwrap())),
            "unreadable" => backend.put_unreadable("payments/10.0.0.1:80"),
            _ => backend.put(&payments(), instance(1)),
        }
        assert!(matches!(statuses.changed().await, Some(Status::Lost { .. })), "{by_hand}");
        assert!(statuses.changed().await.unwrap().is_registered(), "{by_hand}");
        let set = backend.list(&payments()).await.unwrap();
        assert!(set.iter().any(|found| **found == instance(1)), "{by_hand}");
    }
    drop(registration);
    // A value put by hand has no owner, so a claim that must not take over is a conflict, as with
    // etcd.
    other.put(&payments(), instance(1));
    let claim = other.register_with(&payments(), instance(1), Claim::IfAbsent).await;
    assert_eq!(claim.unwrap_err().kind(), ErrorKind::Conflict);
}
