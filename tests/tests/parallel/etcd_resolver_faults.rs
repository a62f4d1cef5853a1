//! Watchers of a service while the only etcd, or the network to it, fails. Each test is named after
//! its row in the list of faults.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{ErrorKind, Registry, Resolver, Snapshot, Update};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use etcd_client::Client;
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, Fault, Proxy, SynHole, eventually,
    scene::{
        SOON, TTL, USUAL_TTL, connect, count, follow, instance, key, payments, put, register, until, until_lost,
        until_registered, usual, usual_config, version,
    },
};
use tokio::time::{sleep, timeout};

/// Returns the version of each instance.
fn versions(set: &Snapshot) -> BTreeMap<String, String> {
    set.iter().map(|one| (one.id().to_string(), one.metadata().get("version").unwrap_or("").to_owned())).collect()
}

/// etcd is killed and restarted on the same data after 3 s, with writes before and after. One
/// outage is reported, nothing that stayed is removed, and the writes are seen within 2 s of etcd
/// serving again.
#[tokio::test]
async fn fault_a1_etcd_crashes_and_restarts() {
    let etcd = Etcd::start().await;
    let backend = usual(etcd.members());
    let mut raw = etcd.raw().await;
    for number in 0..5 {
        put(&mut raw, &instance(number)).await;
    }
    let follower = follow(&backend);
    follower.until("all are there", SOON, |set| set.len() == 5).await;
    put(&mut raw, &version(0, 1)).await;
    etcd.kill(0);
    follower.until_lost(SOON).await;
    let before = follower.told().len();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(follower.set().len(), 5, "the set stays as last known");
    etcd.restart(0).await;
    let start = Instant::now();
    raw = etcd.raw().await;
    raw.delete(&key(&instance(1))).await;
    put(&mut raw, &instance(9)).await;
    let wanted = connect(&etcd).list(&payments()).await.unwrap();
    follower.until("the follower has caught up", Duration::from_secs(5), |set| *set == wanted).await;
    let took = start.elapsed();
    println!("fault_a1: caught up {took:?} after etcd served again");
    assert_eq!(follower.removed(), [instance(1).id().clone()], "only the deleted instance was removed");
    let after = follower.told().split_off(before);
    assert!(after.iter().all(|told| !matches!(told.update, Update::Lost(_))), "one outage: {after:#?}");
    assert_eq!((follower.losses(), follower.resets()), (1, 2));
}

/// etcd is frozen for longer than the TTL: the loss is reported within 4 s, the set stays as last
/// known, and the watcher has caught up within 2 s of etcd waking.
#[tokio::test]
async fn fault_a2_etcd_freezes() {
    freezes(Duration::from_secs(8)).await;
}

/// The same, for half a minute.
#[tokio::test]
#[ignore = "soak: takes 40 s"]
async fn fault_a2_etcd_freezes_for_long() {
    freezes(Duration::from_secs(30)).await;
}

async fn freezes(length: Duration) {
    let etcd = Etcd::start().await;
    let backend = usual(etcd.members());
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(1)).await;
    let follower = follow(&backend);
    follower.until("it is there", SOON, |set| set.len() == 1).await;
    etcd.pause(0);
    let lost_after = follower.until_lost(Duration::from_secs(4)).await;
    sleep(length - lost_after).await;
    assert_eq!(follower.set().len(), 1, "the set stays as last known");
    etcd.resume(0);
    let start = Instant::now();
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(2)).await;
    follower.until("the follower has caught up", Duration::from_secs(5), |set| set.len() == 2).await;
    println!("fault_a2: reported {lost_after:?} after the freeze, caught up {:?} after its end", start.elapsed());
    assert!(follower.removed().is_empty());
    assert_eq!(follower.resets(), 2);
}

/// With defaults except for the TTL, a watcher learns of a freeze before a lease that was renewed
/// in time can have ended.
#[tokio::test]
async fn fault_a2_a_freeze_is_reported_within_a_ttl() {
    let etcd = Etcd::start().await;
    let ttl = Duration::from_secs(3);
    let backend = EtcdBackend::new(EtcdConfig::new(etcd.members()).ttl(ttl)).unwrap();
    let mut updates = backend.watch(&payments()).unwrap();
    // At a different moment between two checks of the watch each time.
    for phase in [0, 450, 900] {
        while !matches!(timeout(SOON, updates.next()).await.unwrap(), Some(Update::Reset(_))) {}
        sleep(Duration::from_millis(1100 + phase)).await;
        etcd.pause(0);
        let start = Instant::now();
        let Some(Update::Lost(error)) = timeout(SOON, updates.next()).await.unwrap() else { panic!("not lost") };
        let lost_after = start.elapsed();
        println!("fault_a2: reported {lost_after:?} after the freeze: {}", error.report());
        assert!(lost_after < ttl, "{lost_after:?}");
        etcd.resume(0);
    }
}

/// The connection carries nothing any more, one way or both, while the other member is well:
/// registrations stay, writes are seen within 6 s, and no loss is reported.
#[tokio::test]
async fn fault_a3_a_connection_is_black_holed() {
    let etcd = Etcd::start().await;
    let cases = [Fault::BlackHole, Fault::BlackHoleAnswers, Fault::BlackHoleRequests];
    join_all(cases.iter().zip((0u16..).step_by(10)).map(|(fault, first)| black_holed(&etcd, *fault, first))).await;
}

async fn black_holed(etcd: &Etcd, fault: Fault, first: u16) {
    let proxies = [Proxy::to(etcd.address()).await, Proxy::to(etcd.address()).await];
    let backend = usual(proxies.iter().map(Proxy::address));
    let registration = register(&backend, first).await;
    let follower = follow(&backend);
    let has = |number: u16| move |set: &Snapshot| set.get(instance(number).id().as_str()).is_some();
    follower.until("it is there", SOON, has(first)).await;
    sleep(Duration::from_millis(500)).await;
    let in_use = proxies.iter().find(|proxy| proxy.accepted() > 0).unwrap();
    in_use.set(fault);
    let start = Instant::now();
    let other = register(&backend, first + 1).await;
    let registered = start.elapsed();
    follower.until("the other is there", Duration::from_secs(6), has(first + 1)).await;
    println!("fault_a3: {fault:?}: registered past it in {registered:?}, seen in {:?}", start.elapsed());
    assert_eq!(follower.losses(), 0, "another member answered");
    sleep(USUAL_TTL + Duration::from_secs(1)).await;
    assert!(registration.status().is_registered() && other.status().is_registered());
    let set = connect(etcd).list(&payments()).await.unwrap();
    assert!(has(first)(&set) && has(first + 1)(&set));
    assert!(follower.removed().is_empty());
}

/// A member's address swallows SYNs: no call exceeds its deadline, and none takes more than 2.5 s
/// if another member is well.
#[tokio::test]
async fn fault_a5_a_member_swallows_syns() {
    let etcd = Etcd::start().await;
    let hole = SynHole::open().await;
    // Each handle starts with a random member.
    let calls = join_all((0..8).map(|number| {
        let members = [hole.address(), etcd.address()];
        async move {
            let backend = usual(members);
            let mut slowest = Duration::ZERO;
            let mut start = Instant::now();
            let mut lap = || {
                slowest = slowest.max(start.elapsed());
                start = Instant::now();
                slowest
            };
            let registration = register(&backend, number).await;
            lap();
            let set = backend.list(&payments()).await.unwrap();
            assert!(set.get(instance(number).id().as_str()).is_some());
            lap();
            let mut updates = backend.watch(&payments()).unwrap();
            assert!(matches!(updates.next().await, Some(Update::Reset(_))));
            lap();
            registration.deregister().await.unwrap();
            lap()
        }
    }));
    let slowest = calls.await.into_iter().max().unwrap();
    println!("fault_a5: the slowest of 32 calls took {slowest:?}");
    assert!(slowest <= Duration::from_millis(2500), "{slowest:?}");

    let deadline = Duration::from_secs(3);
    let backend = EtcdBackend::new(usual_config([hole.address()]).operation_timeout(deadline)).unwrap();
    let service = payments();
    let start = Instant::now();
    let (listed, registered) =
        tokio::join!(backend.list(&service), async { backend.register(&service, instance(1)).await.err() });
    let errors = [listed.unwrap_err(), registered.unwrap()];
    println!("fault_a5: with no other member, calls failed within {:?}", start.elapsed());
    assert!(start.elapsed() < deadline + Duration::from_secs(1), "{:?}", start.elapsed());
    for error in errors {
        let kinds = [ErrorKind::Unavailable, ErrorKind::DeadlineExceeded];
        assert!(kinds.contains(&error.kind()), "{}", error.report());
    }
}

/// Two of three members refuse connections: 0 of 300 operations fail, while etcd-client alone fails
/// more than half of them. An unreachable member is not tried again for every call.
#[tokio::test]
async fn fault_a6_two_of_three_members_refuse() {
    let etcd = Etcd::start().await;
    let refusing = [Proxy::to("127.0.0.1:1").await, Proxy::to("127.0.0.1:1").await];
    refusing.iter().for_each(|proxy| proxy.set(Fault::Refuse));
    sleep(Duration::from_millis(50)).await;
    let members = [refusing[0].address(), etcd.address(), refusing[1].address()];

    // Most of these handles start with a member that refuses.
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let backend = usual(members.clone());
        for number in 0..20 {
            let start = Instant::now();
            let registration = register(&backend, number).await;
            assert_eq!(count(&backend).await, Some(1));
            registration.deregister().await.unwrap();
            slowest = slowest.max(start.elapsed());
        }
    }
    let mut baseline = 0;
    let client = Client::connect(members, None).await.unwrap();
    for _ in 0..300 {
        baseline += u32::from(client.kv_client().get("any", None).await.is_err());
    }
    println!("fault_a6: 0 of 300 operations failed (etcd-client: {baseline}), the slowest three took {slowest:?}");
    assert!(baseline > 0, "the members were refusing");

    // A connection that is reset at once fails like a refused one, and is counted.
    let resetting = Proxy::to("127.0.0.1:1").await;
    resetting.set(Fault::Reset);
    sleep(Duration::from_millis(50)).await;
    for _ in 0..5 {
        let backend = usual([resetting.address(), etcd.address()]);
        for _ in 0..60 {
            assert_eq!(count(&backend).await, Some(0));
        }
    }
    println!("fault_a6: 300 lists by 5 handles made {} connections to the member that failed", resetting.accepted());
    assert!(resetting.accepted() <= 10, "{}", resetting.accepted());
}

/// 300 ms ± 200 ms each way and 64 kB/s, with defaults: no loss is reported, no connection is
/// replaced, registrations stay, and writes arrive.
#[tokio::test]
async fn fault_a7_the_network_is_slow() {
    slow_network(Duration::from_secs(10)).await;
}

/// The same, for a minute.
#[tokio::test]
#[ignore = "soak: takes 70 s"]
async fn fault_a7_the_network_is_slow_for_long() {
    slow_network(Duration::from_secs(60)).await;
}

async fn slow_network(length: Duration) {
    let etcd = Etcd::start().await;
    let narrow = Proxy::to(etcd.address()).await;
    let far = Proxy::to(narrow.address()).await;
    narrow.set(Fault::Throttle(64_000));
    far.set(Fault::Delay { delay: Duration::from_millis(300), jitter: Duration::from_millis(200) });
    sleep(Duration::from_millis(50)).await;
    let runs = [Duration::from_secs(15), USUAL_TTL].map(|ttl| {
        let config = EtcdConfig::new([far.address()]).ttl(ttl).prefix(ttl.as_secs().to_string());
        let backend = EtcdBackend::new(config).unwrap();
        async move {
            let registration = register(&backend, 1).await;
            let follower = follow(&backend);
            follower.until("it is there", SOON, |set| set.len() == 1).await;
            (backend, registration, follower)
        }
    });
    let runs = join_all(runs).await;
    let connections = far.accepted();
    let end = Instant::now() + length;
    let mut slowest = Duration::ZERO;
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        let laps = runs.iter().map(|(_, registration, follower)| async move {
            registration.update(|_| version(1, round)).await.unwrap();
            let arrived = |set: &Snapshot| versions(set).values().all(|text| *text == round.to_string());
            follower.until("the update is there", SOON, arrived).await
        });
        slowest = join_all(laps).await.into_iter().max().unwrap().max(slowest);
    }
    for (_, registration, follower) in &runs {
        assert!(registration.status().is_registered());
        assert_eq!((follower.losses(), follower.resets()), (0, 1));
        assert!(follower.removed().is_empty());
    }
    println!("fault_a7: {round} updates, seen at most {slowest:?} after they were confirmed");
    assert_eq!(far.accepted(), connections, "no connection was replaced");
}

/// Connections are reset every 50 to 500 ms while 100 changes are written a second. Each reported
/// set is one that etcd had, in etcd's order, and the last one arrives within 3 s of the last
/// reset.
#[tokio::test]
async fn fault_a8_connections_are_reset() {
    resets(8, Duration::from_secs(8)).await;
}

/// The same, for a minute each.
#[tokio::test]
#[ignore = "soak: takes 4 minutes"]
async fn fault_a8_connections_are_reset_for_long() {
    for seed in 1..=4 {
        resets(seed, Duration::from_secs(60)).await;
    }
}

async fn resets(seed: u64, length: Duration) {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let follower = follow(&usual([proxy.address()]));
    follower.until("the first set", SOON, Snapshot::is_empty).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let mut raw = etcd.raw().await;
        let stop = Arc::clone(&stop);
        let mut random = fastrand::Rng::with_seed(seed);
        async move {
            let mut states = vec![BTreeMap::new()];
            for round in 0.. {
                let number = random.u16(..20);
                let mut state = states.last().cloned().unwrap_or_default();
                if random.u8(..3) == 0 {
                    raw.delete(&key(&instance(number))).await;
                    state.remove(instance(number).id().as_str());
                } else {
                    put(&mut raw, &version(number, round)).await;
                    state.insert(instance(number).id().to_string(), round.to_string());
                }
                states.push(state);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
            states
        }
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let end = Instant::now() + length;
    let mut cuts = 0;
    while Instant::now() < end {
        sleep(Duration::from_millis(random.u64(50..500))).await;
        proxy.set(Fault::Reset);
        sleep(Duration::from_millis(20)).await;
        proxy.set(Fault::None);
        cuts += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let states = writing.await.unwrap();
    let last = states.last().unwrap();
    let took = follower.until("the last set", Duration::from_secs(5), |set| versions(set) == *last).await;
    let mut history = states.iter();
    for one in follower.told().iter().filter(|one| !matches!(one.update, Update::Lost(_))) {
        let set = versions(&one.set);
        // The same set may come twice, and `any` advances past it.
        let mut ahead = history.clone();
        assert!(ahead.any(|state| *state == set), "seed {seed}: etcd never had this, or not in this order: {one:#?}");
        while history.clone().next().is_some_and(|state| *state != set) {
            history.next();
        }
    }
    println!(
        "fault_a8: seed {seed}: {} changes, {cuts} resets, {} connections, {} updates, {} losses; caught up {took:?} after the end",
        states.len() - 1,
        proxy.accepted(),
        follower.told().len(),
        follower.losses()
    );
}

/// etcd is frozen until all leases are over and then woken, which ends them all at once.
/// Registrations are back within 2 s, and watchers learned of the outage before. (`outages.rs`
/// tests calls on a balanced channel meanwhile.)
#[tokio::test]
async fn fault_a27_all_leases_expire_at_once() {
    let etcd = Etcd::start().await;
    let backends: Vec<EtcdBackend> = (0..5).map(|_| connect(&etcd)).collect();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    let follower = follow(&backends[0]);
    follower.until("all are there", SOON, |set| set.len() == 5).await;
    etcd.pause(0);
    let (noticed, lost) =
        tokio::join!(follower.until_lost(TTL), until_lost(&registrations[0], TTL + Duration::from_secs(1)));
    println!("fault_a27: the watch reported the loss {noticed:?} after the freeze, a registration {lost:?} after it");
    sleep(TTL * 2).await;
    assert_eq!(follower.set().len(), 5, "the set stays as last known");
    etcd.resume(0);
    let start = Instant::now();
    for registration in &registrations {
        until_registered(registration, SOON).await;
    }
    let registered = start.elapsed();
    eventually("all are listed", SOON, async || count(&backends[0]).await == Some(5)).await;
    follower.until("all are there again", SOON, |set| set.len() == 5).await;
    println!("fault_a27: registered again {registered:?} after waking, watched again {:?}", start.elapsed());
    assert!(registered < Duration::from_secs(4), "{registered:?}");
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// There is no etcd: calls fail within their deadline, a watch reports the loss, and everything
    /// starts to work without help within 2 s of etcd's start.
    #[tokio::test]
    async fn fault_a30_a_process_may_start_before_etcd() {
        let etcd = Etcd::absent();
        let backend = usual(etcd.members());
        let mut updates = backend.watch(&payments()).unwrap();
        assert!(matches!(updates.next().await, Some(Update::Lost(error)) if error.kind() == ErrorKind::Unavailable));
        let start = Instant::now();
        let error = backend.list(&payments()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.report());
        // The operation timeout is 10 s, and the list keeps trying until then.
        assert!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
        println!("fault_a30: a list failed in {:?}: {}", start.elapsed(), error.report());

        let registering = tokio::spawn({
            let backend = backend.clone();
            async move { register(&backend, 1).await }
        });
        sleep(Duration::from_secs(1)).await;
        etcd.appear().await;
        let start = Instant::now();
        let registration = timeout(SOON, registering).await.unwrap().unwrap();
        assert!(registration.status().is_registered());
        until(&mut updates, &mut Snapshot::default(), |set| set.len() == 1).await;
        println!("fault_a30: registered and seen {:?} after etcd was up", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
