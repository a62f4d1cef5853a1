//! Watchers of a service in a cluster of three while members fail. Each test is named after its row
//! in the list of faults.

use std::time::{Duration, Instant};

use discovery_core::{Instance, Resolver, Snapshot};
use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use support::{
    Etcd, Fault, Follower, Proxy, Raw, eventually,
    scene::{SOON, USUAL_TTL, connect_to, follow, instance, payments, put, register, until_registered, usual, version},
};
use tokio::time::sleep;

fn has(number: u16) -> impl Fn(&Snapshot) -> bool {
    move |set| set.get(instance(number).id().as_str()).is_some()
}

/// Puts a proxy in front of each member's client port.
async fn proxies(etcd: &Etcd) -> Vec<Proxy> {
    join_all(etcd.members().into_iter().map(Proxy::to)).await
}

/// Returns the only member that has been connected to so far.
fn in_use(proxies: &[Proxy]) -> usize {
    let used: Vec<_> = (0..proxies.len()).filter(|place| proxies[*place].accepted() > 0).collect();
    assert_eq!(used.len(), 1, "{used:?}");
    used[0]
}

async fn raw_on(etcd: &Etcd, place: usize) -> Raw {
    Raw::connect(&[etcd.members()[place].clone()]).await
}

/// Waits until one of the members, other than `not_by`, leads, and returns it.
async fn until_led(etcd: &Etcd, not_by: Option<usize>) -> usize {
    let leader = || (0..3).find(|place| Some(*place) != not_by && etcd.leads(*place));
    eventually("there is a leader", SOON, async || leader().is_some()).await;
    leader().unwrap()
}

/// A member is gone, but the client does not learn of it. A write on another member is seen within
/// 6 s, and nothing is removed.
#[tokio::test(flavor = "multi_thread")]
async fn fault_a4_a_connection_is_half_open() {
    let etcd = Etcd::start_members(3).await;
    let proxies = proxies(&etcd).await;
    let backend = usual(proxies.iter().map(Proxy::address));
    let follower = follow(&backend);
    put(&mut etcd.raw().await, &instance(1)).await;
    follower.until("it is there", SOON, has(1)).await;
    let place = in_use(&proxies);
    proxies[place].set(Fault::HalfOpen);
    etcd.kill(place);
    let start = Instant::now();
    let leader = until_led(&etcd, Some(place)).await;
    put(&mut raw_on(&etcd, leader).await, &instance(2)).await;
    let written = start.elapsed();
    follower.until("the other is there", Duration::from_secs(6), has(2)).await;
    println!("fault_a4: seen {:?} after the kill, {written:?} of which passed before the write", start.elapsed());
    assert!(follower.removed().is_empty());
}

/// Two of three members are killed, and the client knows only the third. The loss is reported
/// within 5 s, the set stays as last known, and everything recovers within 3 s of the return of a
/// majority.
#[tokio::test(flavor = "multi_thread")]
async fn fault_a9_the_majority_is_lost() {
    let etcd = Etcd::start_members(3).await;
    let backend = usual([etcd.address()]);
    let registration = register(&backend, 1).await;
    let follower = follow(&backend);
    follower.until("it is there", SOON, has(1)).await;
    etcd.kill(1);
    etcd.kill(2);
    let lost_after = follower.until_lost(Duration::from_secs(5)).await;
    sleep(Duration::from_secs(7)).await;
    assert!(has(1)(&follower.set()), "the set stays as last known");
    etcd.restart(1).await;
    let start = Instant::now();
    put(&mut raw_on(&etcd, 0).await, &instance(2)).await;
    let written = start.elapsed();
    follower.until("it has caught up", Duration::from_secs(6), has(2)).await;
    println!("fault_a9: reported after {lost_after:?}, caught up {:?} after a majority was back", start.elapsed());
    assert!(written < Duration::from_secs(5));
    until_registered(&registration, Duration::from_secs(3)).await;
    assert!(follower.removed().is_empty(), "leases outlive a change of leader");
}

/// The leader is killed and restarted three times. No live instance is ever removed. With a TTL of
/// 5 s, a third of which may have passed when the leader dies, no lease is lost either, unless the
/// election took the rest.
#[tokio::test(flavor = "multi_thread")]
async fn fault_a10_the_leader_is_killed() {
    leaders_killed(3).await;
}

/// The same, twenty times.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: takes 2 minutes"]
async fn fault_a10_the_leader_is_killed_twenty_times() {
    leaders_killed(20).await;
}

async fn leaders_killed(times: u32) {
    let etcd = Etcd::start_members(3).await;
    let backends: Vec<EtcdBackend> = (0..6).map(|_| usual(etcd.members())).collect();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    let followers: Vec<Follower> = backends.iter().take(3).map(follow).collect();
    for follower in &followers {
        follower.until("all are there", SOON, |set| set.len() == 6).await;
    }
    let losses = registrations.iter().map(|registration| {
        let mut statuses = registration.statuses();
        tokio::spawn(async move {
            let mut lost = 0;
            while let Some(status) = statuses.changed().await {
                lost += u32::from(!status.is_registered() && !status.is_final());
            }
            lost
        })
    });
    let losses: Vec<_> = losses.collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        let leader = until_led(&etcd, None).await;
        etcd.kill(leader);
        let start = Instant::now();
        until_led(&etcd, Some(leader)).await;
        slowest = slowest.max(start.elapsed());
        etcd.restart(leader).await;
        sleep(Duration::from_secs(1)).await;
    }
    // It takes a TTL to show whether the last kill was survived.
    sleep(Duration::from_secs(6)).await;
    for (follower, backend) in followers.iter().zip(&backends) {
        follower.until("all are there", SOON, |set| set.len() == 6).await;
        assert_eq!(backend.list(&payments()).await.unwrap(), follower.set());
        assert!(follower.removed().is_empty(), "{:?}", follower.removed());
    }
    assert!(registrations.iter().all(|registration| registration.status().is_registered()));
    let outages: Vec<_> = followers.iter().map(Follower::losses).collect();
    join_all(registrations.into_iter().map(|registration| registration.deregister())).await;
    let lost: u32 = join_all(losses).await.into_iter().map(Result::unwrap).sum();
    println!(
        "fault_a10: {times} leaders killed, elections took at most {slowest:?}: 0 removals, {lost} of 6 leases lost; three watches \
         reported {outages:?} losses"
    );
    assert!(lost == 0 || slowest > USUAL_TTL * 2 / 3, "{lost} lost");
}

/// A member is cut off from its peers while clients still reach it. A client that knows only that
/// member reports the loss within 5 s. A client that knows the others leaves it and sees within 5 s
/// what is written there. Whether the member led makes no difference.
#[tokio::test(flavor = "multi_thread")]
async fn fault_a11_a_member_is_isolated() {
    tokio::join!(isolated(true), isolated(false));
}

async fn isolated(leads: bool) {
    let etcd = Etcd::setup().members(3).peers_through_proxies().start().await;
    let leader = until_led(&etcd, None).await;
    let place = if leads { leader } else { (leader + 1) % 3 };
    put(&mut etcd.raw().await, &instance(1)).await;
    let all = proxies(&etcd).await;
    // Forces all clients onto that member.
    all.iter().enumerate().filter(|(other, _)| *other != place).for_each(|(_, proxy)| proxy.set(Fault::Refuse));
    sleep(Duration::from_millis(50)).await;
    let on_it = usual([all[place].address()]);
    let on_all = usual(all.iter().map(Proxy::address));
    let on_it = follow(&on_it);
    let on_all = follow(&on_all);
    on_it.until("it is there", SOON, has(1)).await;
    on_all.until("it is there", SOON, has(1)).await;
    all.iter().for_each(|proxy| proxy.set(Fault::None));
    sleep(Duration::from_millis(500)).await;

    etcd.isolate(place);
    let start = Instant::now();
    let (lost_after, seen) = tokio::join!(on_it.until_lost(Duration::from_secs(5)), async {
        let leader = until_led(&etcd, Some(place)).await;
        put(&mut raw_on(&etcd, leader).await, &instance(2)).await;
        let written = start.elapsed();
        on_all.until("the other is there", SOON, has(2)).await;
        println!(
            "fault_a11: leader {leads}: seen elsewhere {:?} after the isolation, written after {written:?}",
            start.elapsed()
        );
        start.elapsed()
    });
    println!("fault_a11: leader {leads}: a client of that member alone reported it after {lost_after:?}");
    // Electing a new leader takes up to two election timeouts.
    assert!(seen < Duration::from_secs(7), "{seen:?}");
    assert!(!has(2)(&on_it.set()));
    etcd.heal();
    on_it.until("the other is there", SOON, has(2)).await;
    assert!(on_it.removed().is_empty() && on_all.removed().is_empty());
}

/// A member slept through 1,000 writes and is the only one reachable when it wakes. The set never
/// goes back.
#[tokio::test(flavor = "multi_thread")]
async fn fault_a12_a_member_lags() {
    let etcd = Etcd::start_members(3).await;
    let leader = until_led(&etcd, None).await;
    let lagging = (leader + 1) % 3;
    let other = (leader + 2) % 3;
    let all = proxies(&etcd).await;
    let mut raw = Raw::connect(&[etcd.members()[leader].clone()]).await;
    put(&mut raw, &version(1, 0)).await;
    all[lagging].set(Fault::Refuse);
    let followers = [&all[leader], &all[other]].map(|first| {
        // Neither client uses the member that will lag.
        let backend = connect_to([first.address(), all[lagging].address()]);
        (follow(&backend), backend)
    });
    for (follower, _) in &followers {
        follower.until("it is there", SOON, has(1)).await;
    }
    etcd.pause(lagging);
    for round in 1..=1000 {
        put(&mut raw, &version(1, round)).await;
    }
    let newest = |set: &Snapshot| version_of(set) == 1000;
    for (follower, _) in &followers {
        follower.until("the last write is there", SOON, newest).await;
    }
    all[lagging].set(Fault::None);
    [leader, other].iter().for_each(|place| all[*place].set(Fault::Refuse));
    sleep(Duration::from_millis(100)).await;
    etcd.resume(lagging);
    let start = Instant::now();
    put(&mut raw, &version(1, 1001)).await;
    for (follower, _) in &followers {
        follower.until("the next write is there", SOON, |set| version_of(set) == 1001).await;
        let updates = follower.told();
        assert!(updates.iter().map(|one| version_of(&one.set)).is_sorted(), "the set went back: {updates:#?}");
        println!("fault_a12: caught up {:?} after waking, {} losses reported", start.elapsed(), follower.losses());
    }
    assert!(all[lagging].accepted() > 0, "the set came from the member that lagged");
}

fn version_of(set: &Snapshot) -> u32 {
    let version = |one: &Instance| one.metadata().get("version")?.parse().ok();
    set.get(instance(1).id().as_str()).and_then(|one| version(one)).unwrap_or(0)
}
