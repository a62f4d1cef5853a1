//! Faults that a registration suffers while its process and its etcd live. Processes, outages and
//! leaks have files of their own.

use std::time::{Duration, Instant};

use discovery_core::{
    Claim, ErrorKind, InstanceId, Registration, Registry, Resolver, Snapshot, Status, Update, Weight,
};
use discovery_etcd::EtcdBackend;
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, Fault, Proxy, Raw, eventually,
    scene::{
        LONGEST_PAUSE, SOON, TTL, config, connect, connect_to, count, instance, key, payments, register, until,
        until_lost, until_registered, until_superseded,
    },
};
use tokio::time::{sleep, timeout};

/// Connects with a TTL so long that only the registration's own watch can report in time what
/// happens to its entry.
fn connect_for_long(etcd: &Etcd) -> EtcdBackend {
    EtcdBackend::new(config(etcd.members()).ttl(Duration::from_secs(30))).unwrap()
}

/// Reports the longest repair time of ten rounds.
async fn worst(row: &str, mut round: impl AsyncFnMut() -> Duration) {
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        worst = worst.max(round().await);
    }
    println!("{row}: repaired in {worst:?}, the worst of 10");
}

/// Cuts the open connections.
async fn cut(proxy: &Proxy) {
    proxy.set(Fault::Reset);
    sleep(Duration::from_millis(50)).await;
    proxy.set(Fault::None);
}

const KEY: &str = "payments/10.0.0.2:80";
const SECOND: Duration = Duration::from_secs(1);

/// `fault_b2`. A registrar deregisters: watchers see it within 100 ms (the median; on a loaded
/// machine the slowest may take three times as long).
#[tokio::test]
async fn fault_b2_a_deregistration_is_seen_at_once() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let observer = connect(&etcd);
    let mut updates = observer.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    let mut times = Vec::new();
    for _ in 0..30 {
        let registration = register(&backend, 1).await;
        until(&mut updates, &mut set, |set| set.len() == 1).await;
        let start = Instant::now();
        let leaving = tokio::spawn(registration.deregister());
        until(&mut updates, &mut set, Snapshot::is_empty).await;
        times.push(start.elapsed());
        leaving.await.unwrap().unwrap();
    }
    times.sort();
    let median = times[times.len() / 2];
    let slowest = times[times.len() - 1];
    println!("fault_b2: a deregistration was seen in {median:?}, the slowest of 30 in {slowest:?}");
    assert!(median < SECOND / 10 && slowest < SECOND * 3 / 10, "{median:?}, {slowest:?}");
}

/// `fault_b4`. The lease is revoked from outside: the instance is registered under another lease
/// within 1 s, because each registration watches its entry.
#[tokio::test]
async fn fault_b4_a_lease_that_is_revoked_from_outside_is_replaced() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    worst("fault_b4", async || {
        let backend = connect_for_long(&etcd);
        let registration = register(&backend, 1).await;
        let took = replaced(&mut raw, SECOND).await;
        until_registered(&registration, SECOND).await;
        eventually("one lease is left", SECOND, async || raw.leases().await.len() == 1).await;
        registration.deregister().await.unwrap();
        backend.close().await.unwrap();
        eventually("no lease is left", SECOND, async || raw.leases().await.is_empty()).await;
        took
    })
    .await;
}

/// `fault_b4`, ten times in a row: each time the instance is registered under another lease. Two
/// pauses grow to the longest of the backoff, one before the entry is put again and one before a
/// lease is granted, so that whoever keeps revoking does not keep etcd busy.
#[tokio::test]
async fn fault_b4_a_lease_that_is_revoked_again_and_again_is_replaced() {
    let etcd = Etcd::start().await;
    let backend = connect_for_long(&etcd);
    let mut raw = etcd.raw().await;
    let registration = register(&backend, 1).await;
    worst("fault_b4", async || replaced(&mut raw, SECOND + LONGEST_PAUSE * 2).await).await;
    until_registered(&registration, SECOND).await;
    eventually("one lease is left", SECOND, async || raw.leases().await.len() == 1).await;
}

/// Revokes the lease of the entry and waits until it is under another one.
async fn replaced(raw: &mut Raw, bound: Duration) -> Duration {
    let (_, lease) = raw.entry(KEY).await.unwrap();
    raw.revoke(lease).await;
    let is_back = async || raw.entry(KEY).await.is_some_and(|(_, other)| ![0, lease].contains(&other));
    eventually("under another lease", bound, is_back).await
}

/// `fault_b5`. The key is deleted while its lease lives: it is put again within 1 s, under the same
/// lease.
#[tokio::test]
async fn fault_b5_a_key_that_is_deleted_is_put_again() {
    let etcd = Etcd::start().await;
    let backend = connect_for_long(&etcd);
    let mut raw = etcd.raw().await;
    let registration = register(&backend, 1).await;
    let entry = raw.entry(KEY).await;
    worst("fault_b5", async || {
        raw.delete(KEY).await;
        eventually("put again", SECOND, async || raw.entry(KEY).await == entry).await
    })
    .await;
    until_registered(&registration, SECOND).await;
}

/// `fault_b5`, with history compacted before the connection breaks, so that the watch cannot
/// resume.
#[tokio::test]
async fn fault_b5_a_key_is_put_again_after_its_history_is_compacted() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let backend = EtcdBackend::new(config([proxy.address()]).ttl(Duration::from_secs(30))).unwrap();
    let mut raw = etcd.raw().await;
    let registration = register(&backend, 1).await;
    for round in 0..20 {
        raw.put("elsewhere", format!("{round}")).await;
    }
    raw.compact().await;
    cut(&proxy).await;
    until_registered(&registration, SOON).await;
    // Until the entry has been read and is watched again.
    sleep(SECOND * 4).await;
    let before = etcd.requests(0, "Range");
    sleep(SECOND * 4).await;
    // Only the watch's own checks read from etcd.
    let reads = etcd.requests(0, "Range") - before;
    assert!(reads <= 2, "the watch is open, but the entry was read {reads} times");
    raw.delete(KEY).await;
    let took = eventually("put again", SECOND, async || raw.entry(KEY).await.is_some()).await;
    println!("fault_b5: put again in {took:?}, after history was compacted and the connection cut");
    until_registered(&registration, SECOND).await;
}

/// `fault_b5`, after the handle lost the permission for another service and then its connection:
/// the entries that it may access are still watched.
#[tokio::test]
async fn fault_b5_a_key_is_put_again_while_another_service_is_denied() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let mut raw = etcd.raw().await;
    for (role, service) in [("one", "payments/"), ("two", "orders/")] {
        raw.add_writer(role, service).await;
    }
    raw.add_user("teller", Some("pw"), &["one", "two"]).await;
    raw.enable_auth("pw").await;
    let config = config([proxy.address()]).ttl(Duration::from_secs(30)).credentials("teller", "pw");
    let backend = EtcdBackend::new(config).unwrap();
    let kept = register(&backend, 1).await;
    let orders = "orders".parse().unwrap();
    // Several, so that some are requested before the kept one.
    let _denied = join_all((1..=5).map(|number| backend.register(&orders, instance(number)))).await;
    let mut root = etcd.raw_as("root", "pw").await;
    root.take_role("teller", "two").await;
    cut(&proxy).await;
    sleep(SECOND * 2).await;
    let streams = async || {
        let name = r#"grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"}"#;
        etcd.metric(0, name)
    };
    let before = streams().await;
    assert!(before.is_some());
    for _ in 0..3 {
        root.delete(KEY).await;
        let took = eventually("put again", SECOND, async || root.entry(KEY).await.is_some()).await;
        println!("fault_b5: put again in {took:?}, with another service denied");
        until_registered(&kept, SECOND).await;
        sleep(SECOND).await;
    }
    assert_eq!(streams().await, before, "the stream is not reopened");
}

/// `fault_b6`. The key is overwritten by hand, without a lease or under the registration's own: it
/// is repaired within 1 s, including the lease, so that no permanent key remains. Under another
/// lease it belongs to another owner and is left alone.
#[tokio::test]
async fn fault_b6_a_key_that_is_overwritten_is_repaired() {
    let etcd = Etcd::start().await;
    let backend = connect_for_long(&etcd);
    let mut raw = etcd.raw().await;
    let registration = register(&backend, 1).await;
    let (value, lease) = raw.entry(KEY).await.unwrap();
    let is_repaired = async |raw: &mut Raw| raw.entry(KEY).await == Some((value.clone(), lease));
    worst("fault_b6", async || {
        raw.put(KEY, "by hand").await;
        let took = eventually("repaired", SECOND, async || is_repaired(&mut raw).await).await;
        raw.put_leased(KEY, "by hand", lease).await;
        took.max(eventually("repaired", SECOND, async || is_repaired(&mut raw).await).await)
    })
    .await;
    until_registered(&registration, SECOND).await;
    let other = raw.grant(60).await;
    raw.put_leased(KEY, value.clone(), other).await;
    let superseded = until_superseded(&registration, SECOND).await;
    println!("fault_b6: superseded {superseded:?} after another's lease was put");
    registration.deregister().await.unwrap();
    assert_eq!(raw.entry(KEY).await, Some((value, other)));
}

/// `fault_b7`. Two registrars take one id from each other 1,000 times. The later one owns the entry
/// each time, the other learns of it, and neither its deregistration nor its drop removes the
/// entry. On request the later one is refused instead. 0 keys are lost.
#[tokio::test]
async fn fault_b7_the_later_of_two_registrars_owns_a_thousand_times() {
    let etcd = Etcd::start().await;
    let a = connect(&etcd);
    let b = connect(&etcd);
    let mut raw = etcd.raw().await;
    // Keeps a registration per handle, so that the leases stay.
    let _anchor_a = register(&a, 1).await;
    let _anchor_b = register(&b, 2).await;
    let id = "shared".parse::<InstanceId>().unwrap();
    let with_weight = |round: u16| instance(9).with_id(id.clone()).with_weight(Weight::new(round).unwrap());
    let mut former: Option<Registration> = None;
    let mut lost = 0;
    for round in 0..1000u16 {
        let (backend, other) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let registration = backend.register(&payments(), with_weight(round)).await.unwrap();
        if let Some(former) = former.replace(registration) {
            if round % 100 == 1 {
                until_superseded(&former, SECOND).await;
            }
            if round % 3 == 0 {
                drop(former);
            } else {
                former.deregister().await.unwrap();
            }
        }
        if round % 100 == 0 {
            let refused = other.register_with(&payments(), with_weight(5000), Claim::IfAbsent).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
        }
        match raw.entry("payments/shared").await {
            Some((value, _)) => {
                let read = support::entry::decode(&id, &value).unwrap();
                assert_eq!(read.weight().value(), round, "the later one owns");
            }
            None => lost += 1,
        }
        assert!(former.as_ref().unwrap().status().is_registered(), "round {round}");
    }
    println!("fault_b7: {lost} keys lost in 1,000 takeovers");
    assert_eq!(lost, 0);
    former.unwrap().deregister().await.unwrap();
    assert!(raw.entry("payments/shared").await.is_none());
}

/// `fault_b7`, at the same moment: of two that claim an absent key, one gets it; of two that take
/// over, one remains.
#[tokio::test]
async fn fault_b7_one_of_two_simultaneous_registrars_owns() {
    let etcd = Etcd::start().await;
    let a = connect(&etcd);
    let b = connect(&etcd);
    let mut raw = etcd.raw().await;
    let _anchor_a = register(&a, 2).await;
    let _anchor_b = register(&b, 3).await;
    for round in 0..200 {
        let claim = if round % 2 == 0 { Claim::IfAbsent } else { Claim::TakeOver };
        let service = payments();
        let (of_a, of_b) =
            tokio::join!(a.register_with(&service, instance(1), claim), b.register_with(&service, instance(1), claim));
        if claim == Claim::IfAbsent {
            let (winner, loser) = if of_a.is_ok() { (of_a, of_b) } else { (of_b, of_a) };
            assert_eq!(loser.unwrap_err().kind(), ErrorKind::Conflict);
            assert!(raw.entry(KEY).await.is_some(), "the loser leaves the winner's entry");
            winner.unwrap().deregister().await.unwrap();
        } else {
            let both = [of_a.unwrap(), of_b.unwrap()];
            let is_superseded = |one: &&Registration| matches!(one.status(), Status::Superseded { .. });
            eventually("one is superseded", SECOND, async || both.iter().filter(is_superseded).count() == 1).await;
            let (loser, winner): (Vec<_>, Vec<_>) = both.into_iter().partition(|one| is_superseded(&one));
            for one in loser {
                one.deregister().await.unwrap();
            }
            assert!(raw.entry(KEY).await.is_some(), "the loser leaves the winner's entry");
            for one in winner {
                one.deregister().await.unwrap();
            }
        }
        assert!(raw.entry(KEY).await.is_none(), "round {round}");
    }
}

/// Does something whose answers are lost for as long as several attempts take.
async fn without_answers<T: Send + 'static>(proxy: &Proxy, work: impl Future<Output = T> + Send + 'static) -> T {
    proxy.set(Fault::LoseAnswers);
    let work = tokio::spawn(work);
    sleep(Duration::from_millis(400)).await;
    proxy.set(Fault::None);
    timeout(SOON, work).await.expect("the outcome becomes certain").unwrap()
}

async fn until_leases(raw: &mut Raw, wanted: usize) {
    let what = format!("{wanted} leases");
    let took = eventually(&what, TTL * 2, async || raw.leases().await.len() == wanted).await;
    println!("fault_b11: {wanted} leases after {took:?}");
}

/// `fault_b11`. Requests arrive and their answers are lost, at each step: grant, put, update,
/// delete, revoke. One key is left, and after two TTLs at most one lease; nothing is left of an
/// abandoned registration.
#[tokio::test]
async fn fault_b11_unanswered_requests_are_resolved() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let mut raw = etcd.raw().await;
    for claim in [Claim::TakeOver, Claim::IfAbsent] {
        let backend = connect_to([proxy.address()]);
        let claiming = |number| {
            let backend = backend.clone();
            async move { backend.register_with(&payments(), instance(number), claim).await.unwrap() }
        };
        // Grant and put, then only a put.
        let first = without_answers(&proxy, claiming(1)).await;
        assert_eq!(raw.keys().await.len(), 1);
        let second = without_answers(&proxy, claiming(2)).await;
        assert_eq!(raw.keys().await.len(), 2);
        let (second, updated) = without_answers(&proxy, async {
            let updated = second.update(|one| one.with_weight(Weight::new(7).unwrap())).await;
            (second, updated)
        })
        .await;
        updated.unwrap();
        assert!(first.status().is_registered() && second.status().is_registered());
        until_leases(&mut raw, 1).await;
        // Only a delete, then delete and revoke.
        without_answers(&proxy, second.deregister()).await.unwrap();
        assert_eq!(raw.keys().await.len(), 1);
        without_answers(&proxy, first.deregister()).await.unwrap();
        assert!(raw.keys().await.is_empty());
        until_leases(&mut raw, 0).await;
        // Dropped before completion.
        without_answers(&proxy, timeout(Duration::from_millis(200), claiming(3))).await.unwrap_err();
        eventually("no key is left", TTL * 2, async || raw.keys().await.is_empty()).await;
        until_leases(&mut raw, 0).await;
    }
}

/// etcd's data are restored from an older copy, in which the lease exists. What was written since
/// is written again within 5 s of etcd's return, although revisions continue from the copy.
#[tokio::test]
async fn entries_missing_in_restored_data_are_written_again() {
    let etcd = Etcd::start().await;
    let backend = connect_for_long(&etcd);
    let first = register(&backend, 1).await;
    let updated = register(&backend, 2).await;
    etcd.stop(0);
    let saved = etcd.save(0);
    etcd.restart(0).await;
    for one in [&first, &updated] {
        until_registered(one, SOON).await;
    }
    // So many revisions later that writes after the copy stay in the future for long.
    let mut raw = etcd.raw().await;
    for round in 0..100 {
        raw.put("elsewhere", format!("{round}")).await;
    }
    updated.update(|one| one.with_weight(Weight::new(7).unwrap())).await.unwrap();
    let since = [register(&backend, 3).await, register(&backend, 4).await];
    let entries = async |raw: &mut Raw| {
        let mut entries = Vec::new();
        for number in 1..=4 {
            entries.push(raw.entry(&key(&instance(number))).await);
        }
        entries
    };
    let before = entries(&mut raw).await;
    assert!(before.iter().all(Option::is_some));
    etcd.stop(0);
    etcd.restore(0, &saved);
    etcd.restart(0).await;
    let mut raw = etcd.raw().await;
    let is_back = async || entries(&mut raw).await == before;
    let took = eventually("all are back", SECOND * 5, is_back).await;
    println!("all are back {took:?} after etcd was restored from an older copy");
    for one in since.iter().chain([&first, &updated]) {
        until_registered(one, SECOND).await;
    }
    // They are also watched.
    for number in 1..=4 {
        let key = key(&instance(number));
        raw.delete(&key).await;
        eventually("put again", SECOND, async || raw.entry(&key).await.is_some()).await;
    }
}

/// `fault_b12`. The store is full: registered instances stay, new registrations fail with their own
/// kind of error, a deleted entry stays lost and its status reports it, and everything recovers
/// within the longest backoff (500 ms here) once there is room.
#[tokio::test]
async fn fault_b12_a_full_store_loses_no_registration() {
    let etcd = Etcd::setup().flag("--quota-backend-bytes=2000000").start().await;
    let backend = connect(&etcd);
    let other = connect(&etcd);
    let stranger = connect(&etcd);
    let kept = register(&backend, 1).await;
    let touched = register(&backend, 2).await;
    let changed = register(&backend, 6).await;
    let alone = register(&other, 3).await;
    let mut updates = connect(&etcd).watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 4).await;
    let mut raw = etcd.raw().await;
    raw.fill().await;
    let service = payments();

    let (refused, refused_lease) =
        tokio::join!(backend.register(&service, instance(4)), stranger.register(&service, instance(5)));
    for error in [refused.unwrap_err(), refused_lease.unwrap_err()] {
        println!("fault_b12: {}", error.report());
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    }
    sleep(TTL * 2).await;
    assert!(kept.status().is_registered() && touched.status().is_registered() && alone.status().is_registered());
    assert!(timeout(Duration::from_millis(100), updates.next()).await.is_err(), "0 removals");

    // Deregistering needs no room.
    alone.deregister().await.unwrap();
    until(&mut updates, &mut set, |set| set.len() == 3).await;
    let update = changed.update(|one| one.with_weight(Weight::new(7).unwrap()));
    assert!(timeout(SECOND, update).await.is_err(), "the update is still being tried");
    assert!(changed.status().is_registered(), "with the former weight");
    for (registration, key) in [(&touched, "payments/10.0.0.3:80"), (&changed, "payments/10.0.0.7:80")] {
        raw.delete(key).await;
        until_lost(registration, SECOND).await;
    }
    let registering = tokio::spawn(async move { register(&stranger, 5).await });
    raw.make_room().await;
    let start = Instant::now();
    let came = timeout(SOON, registering).await.unwrap().unwrap();
    let registered = start.elapsed();
    until_registered(&touched, SOON).await;
    until_registered(&changed, SOON).await;
    println!(
        "fault_b12: {registered:?} after there was room a new one was registered, and after {:?} a lost one",
        start.elapsed()
    );
    assert!(start.elapsed() < SECOND * 2);
    until(&mut updates, &mut set, |set| set.len() == 4).await;
    for registration in [kept, touched, changed, came] {
        registration.deregister().await.unwrap();
    }
}

/// `fault_b14`. The handle is dropped, the task that holds it is aborted, or a task that is
/// registering is aborted: no panic, no hang, and the entry is gone within 2 s.
#[tokio::test(flavor = "multi_thread")]
async fn fault_b14_a_dropped_or_aborted_registration_is_gone_soon() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    let backend = connect(&etcd);
    drop(register(&backend, 1).await);
    let dropped = eventually("gone", SECOND * 2, async || raw.keys().await.is_empty()).await;

    let holding = tokio::spawn({
        let backend = backend.clone();
        async move {
            let _registration = register(&backend, 1).await;
            std::future::pending::<()>().await;
        }
    });
    eventually("registered", SOON, async || raw.keys().await.len() == 1).await;
    holding.abort();
    let aborted = eventually("gone", SECOND * 2, async || raw.keys().await.is_empty()).await;

    // At any moment of registering. Each round has its own handle, so that its lease is included.
    for moment in 0..50 {
        let backend = connect(&etcd);
        let registering = tokio::spawn(async move { register(&backend, 1).await });
        sleep(Duration::from_micros(moment * 200)).await;
        registering.abort();
    }
    let gone = async || raw.keys().await.is_empty() && raw.leases().await.is_empty();
    let unfinished = eventually("neither keys nor leases", SECOND * 2, gone).await;
    println!(
        "fault_b14: gone after a drop in {dropped:?}, after an abort in {aborted:?}, after an abort while registering in {unfinished:?}"
    );
}

/// `fault_b14`. The runtime is shut down: no panic, no hang, the status reports it, and the lease
/// ends the entry within the TTL and 1 s.
#[test]
fn fault_b14_a_runtime_that_is_shut_down_ends_its_registrations() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let keeper = runtime();
    let first = runtime();
    let second = runtime();
    let etcd = keeper.block_on(Etcd::start());
    let (backend, registration) = first.block_on(async {
        let backend = connect(&etcd);
        let registration = register(&backend, 1).await;
        (backend, registration)
    });
    let outside = EtcdBackend::new(config(etcd.members()));
    assert!(matches!(outside, Err(error) if error.kind() == ErrorKind::NoRuntime));
    let start = Instant::now();
    drop(first);
    let Status::Lost { error, .. } = registration.status() else { panic!("{:?}", registration.status()) };
    assert_eq!(error.kind(), ErrorKind::Internal);
    second.block_on(async {
        eventually("a list on another runtime", SOON, async || count(&backend).await.is_some()).await;
        let error = backend.register(&payments(), instance(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{}", error.report());
        eventually("the lease ends the runtime's entry", SOON, async || count(&backend).await == Some(0)).await;
    });
    println!("fault_b14: gone {:?} after the runtime was shut down", start.elapsed());
    assert!(start.elapsed() < TTL + SECOND, "{:?}", start.elapsed());
    // Outside any runtime.
    drop((registration, backend));
}

/// `fault_b16`. The TTL is below what etcd grants: the granted TTL counts, and renewals come after
/// each third of it.
#[tokio::test]
async fn fault_b16_a_lease_is_renewed_every_third_of_its_granted_ttl() {
    let etcd = Etcd::start().await;
    let backend = EtcdBackend::new(config(etcd.members()).ttl(SECOND)).unwrap();
    assert_eq!(backend.granted_ttl(), None);
    let registration = register(&backend, 1).await;
    assert_eq!(backend.granted_ttl(), Some(SECOND * 2));
    let renewals = || etcd.requests(0, "LeaseKeepAlive");
    eventually("the first renewal", SOON, async || renewals() > 0).await;
    let before = renewals();
    let start = Instant::now();
    sleep(SECOND * 8).await;
    let renewed = renewals() - before;
    let took = start.elapsed();
    println!("fault_b16: {renewed} renewals in {took:?} of a lease of 2 s");
    let due = took.as_secs_f64() / (2.0 / 3.0);
    assert!((renewed as f64) > due * 0.85 && (renewed as f64) < due * 1.15, "{renewed} renewals, {due} due");
    assert!(registration.status().is_registered());
    assert_eq!(count(&backend).await, Some(1));
}

/// `fault_b17`. 1,000 updates: the same lease and no removal.
#[tokio::test]
async fn fault_b17_a_thousand_updates_remove_nothing() {
    let etcd = Etcd::start().await;
    let backend = connect(&etcd);
    let observer = connect(&etcd);
    let mut raw = etcd.raw().await;
    let registration = register(&backend, 1).await;
    let (_, lease) = raw.entry(KEY).await.unwrap();
    let mut updates = observer.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 1).await;
    let last = Weight::new(1000).unwrap();
    let watching = tokio::spawn(async move {
        let seen = until(&mut updates, &mut set, |set| set.iter().any(|one| one.weight() == last)).await;
        seen.iter().filter(|update| !matches!(update, Update::Change(change) if change.removes().is_empty())).count()
    });
    for number in 1..=1000 {
        registration.update(|one| one.with_weight(Weight::new(number).unwrap())).await.unwrap();
    }
    let removals = watching.await.unwrap();
    println!("fault_b17: {removals} removals or outages in 1,000 updates");
    assert_eq!(removals, 0);
    assert_eq!(raw.entry(KEY).await.unwrap().1, lease);
    assert_eq!(raw.leases().await, [lease]);
    assert_eq!(etcd.metric(0, "etcd_debugging_lease_granted_total"), Some(1.0));
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// `fault_b11`, with the connection cut after a number of bytes that falls into one step or
    /// another.
    #[tokio::test]
    async fn fault_b11_a_connection_that_is_cut_anywhere_leaves_one_key_or_none() {
        let etcd = Etcd::start().await;
        let rounds = (0..32u16).map(|round| {
            let etcd = &etcd;
            async move {
                let proxy = Proxy::to(etcd.address()).await;
                let backend = connect_to([proxy.address()]);
                let cut = async |moment: u64| {
                    proxy.set(Fault::ResetAfter(moment));
                    sleep(Duration::from_millis(300)).await;
                    proxy.set(Fault::None);
                };
                // From within the preface to past the first renewals.
                let moment = 100 + u64::from(round) * 75;
                let (registration, ()) = tokio::join!(register(&backend, round), cut(moment));
                let listed = async |wanted| {
                    let set = connect(etcd).list(&payments()).await.unwrap();
                    set.iter().filter(|one| *one.id() == *instance(round).id()).count() == wanted
                };
                assert!(listed(1).await, "cut after {moment} bytes");
                until_registered(&registration, SOON).await;
                let (gone, ()) = tokio::join!(registration.deregister(), cut(moment));
                gone.unwrap();
                assert!(listed(0).await, "cut after {moment} bytes");
            }
        });
        join_all(rounds).await;
        let mut raw = etcd.raw().await;
        assert!(raw.keys().await.is_empty());
        let took = eventually("no lease is left", TTL * 2, async || raw.leases().await.is_empty()).await;
        println!("fault_b11: 32 places to cut, no key left, no lease {took:?} later");
    }
}
