//! Watchers of a service while etcd has other data, much history, many instances or no room, and
//! with many watchers. Each test is named after its row in the list of faults.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_core::{ErrorKind, Instance, Registry, Resolver, Snapshot, Update, UpdateStream};
use discovery_etcd::EtcdBackend;
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, Fault, Follower, Proxy, eventually,
    scene::{
        SOON, USUAL_TTL, assert_one_outage, connect, connect_to, count, follow, instance, key, payments, put, put_all,
        register, until, usual, usual_config, version,
    },
};
use tokio::{sync::Barrier, time::sleep};

const STREAMS: &str = "etcd_debugging_mvcc_watch_stream_total";

/// Returns the set in etcd, read by another handle than the one under test.
async fn listed(etcd: &Etcd) -> Snapshot {
    connect(etcd).list(&payments()).await.unwrap()
}

/// Puts this many instances of a kilobyte each.
async fn fill(etcd: &Etcd, count: u16) {
    let mut raw = etcd.raw().await;
    let instances: Vec<Instance> = (0..count).map(|number| heavy(number, 0)).collect();
    for part in instances.chunks(100) {
        put_all(&mut raw, part).await;
    }
}

/// Returns an instance with an entry of a kilobyte.
fn heavy(number: u16, version: u32) -> Instance {
    let metadata = [("filler", "x".repeat(950)), ("version", version.to_string())];
    instance(number).with_metadata(metadata.try_into().unwrap())
}

/// The client is cut off while a thousand writes pass and are compacted: one outage is reported,
/// followed by exactly what changed, about a second after the return.
#[tokio::test]
async fn fault_a13_history_is_compacted_while_away() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let backend = connect_to([proxy.address()]);
    let writer = connect(&etcd);
    let _kept = register(&writer, 1).await;
    let gone = register(&writer, 2).await;
    let mut updates = backend.watch(&payments()).unwrap();
    let mut set = Snapshot::default();
    until(&mut updates, &mut set, |set| set.len() == 2).await;
    let kept = Arc::clone(set.iter().next().unwrap());
    proxy.set(Fault::Refuse);
    gone.deregister().await.unwrap();
    let _come = register(&writer, 3).await;
    let mut raw = etcd.raw().await;
    for round in 0..1000 {
        put(&mut raw, &version(4, round)).await;
    }
    raw.compact().await;
    let wanted = writer.list(&payments()).await.unwrap();
    proxy.set(Fault::None);
    let start = Instant::now();
    let seen = until(&mut updates, &mut set, |set| *set == wanted).await;
    println!("fault_a13: caught up {:?} after the return", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_one_outage(&seen);
    assert!(Arc::ptr_eq(set.iter().next().unwrap(), &kept), "an unchanged instance keeps its `Arc`");
}

/// History is compacted just below, at and above the revision of a list, between the list and the
/// watch's first event. The watch starts at that revision, resumes if it can and lists again if it
/// cannot. The set is the same, without a loss and without a removal of an instance that stayed.
#[tokio::test]
async fn fault_a14_history_is_compacted_where_a_watch_begins() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    for number in 0..5 {
        put(&mut raw, &instance(number)).await;
    }
    for (compacted, resets) in [(-1, 1), (0, 1), (1, 2), (2, 2)] {
        // Leaves time to write and compact between the list and the watch.
        let proxy = Proxy::to(etcd.address()).await;
        proxy.set(Fault::Delay { delay: Duration::from_millis(250), jitter: Duration::ZERO });
        sleep(Duration::from_millis(50)).await;
        let revision = raw.revision().await;
        let follower = follow(&usual([proxy.address()]));
        eventually("the first set", SOON, async || follower.resets() == 1).await;
        let number = (10 + compacted) as u16;
        for round in 1..=3 {
            put(&mut raw, &version(number, round)).await;
        }
        raw.compact_at(revision + compacted).await;
        raw.delete(&key(&instance(number - 9))).await;
        let wanted = listed(&etcd).await;
        let took = follower.until("the follower has caught up", SOON, |set| *set == wanted).await;
        println!(
            "fault_a14: compacted at {compacted} from the list: caught up in {took:?} with {} sets",
            follower.resets()
        );
        assert_eq!((follower.resets(), follower.losses()), (resets, 0), "{:#?}", follower.told());
        assert_eq!(follower.removed(), [instance(number - 9).id().clone()]);
    }
}

/// One watcher does not read for 24,000 changes in 1,000 steps, which are then compacted. A watcher
/// that reads sees no loss. The other gets at most what its queue holds, then the set, and
/// continues from there.
#[tokio::test]
async fn fault_a16_a_subscriber_is_slow() {
    let etcd = Etcd::start().await;
    let backend = usual(etcd.members());
    let mut slow = backend.watch(&payments()).unwrap();
    let fast = follow(&backend);
    let mut set = Snapshot::default();
    assert!(matches!(slow.next().await, Some(Update::Reset(set)) if set.is_empty()));
    eventually("the watch is open", SOON, async || etcd.metric(0, STREAMS) == Some(1.0)).await;
    let mut raw = etcd.raw().await;
    let start = Instant::now();
    for round in 0..1000 {
        let first = 24 * (round % 4) as u16;
        put_all(&mut raw, &(first..first + 24).map(|number| heavy(number, round)).collect::<Vec<_>>()).await;
    }
    println!("fault_a16: 24,000 changes written in {:?}", start.elapsed());
    raw.compact().await;
    let wanted = listed(&etcd).await;
    let took = fast.until("the fast watcher has the last set", SOON, |set| *set == wanted).await;
    println!("fault_a16: the fast watcher had the last set {took:?} later, after {} updates", fast.told().len());
    assert_eq!(fast.losses(), 0);

    let seen = until(&mut slow, &mut set, |set| *set == wanted).await;
    println!("fault_a16: the slow watcher had the same set after {} updates", seen.len());
    assert!(seen.len() <= 130, "the queue and the set: {}", seen.len());
    assert_eq!(seen.iter().filter(|update| matches!(update, Update::Reset(_))).count(), 1);
    put(&mut raw, &version(500, 1)).await;
    let seen = until(&mut slow, &mut set, |set| set.len() == 97).await;
    assert!(matches!(&seen[..], [Update::Change(_)]), "{seen:?}");
}

/// 10,000 instances of a kilobyte, more than etcd-client decodes at once: the first set arrives
/// within 3 s.
#[tokio::test]
async fn fault_a17_a_set_is_large() {
    let etcd = Etcd::start().await;
    fill(&etcd, 10_000).await;
    let backend = usual(etcd.members());
    let start = Instant::now();
    let mut updates = backend.watch(&payments()).unwrap();
    let first = updates.next().await.unwrap();
    let took = start.elapsed();
    println!("fault_a17: 10,000 instances of 1 kB watched in {took:?}");
    let Update::Reset(set) = first else { panic!("{first:?}") };
    assert_eq!(set.len(), 10_000);
    assert!(took < Duration::from_secs(3), "{took:?}");
    let start = Instant::now();
    assert_eq!(backend.list(&payments()).await.unwrap(), set);
    println!("fault_a17: listed in {:?}", start.elapsed());
}

/// The data are wiped, or restored from an older copy, or another cluster answers at the address.
/// The set equals etcd's within 2 s, although revisions start again, and later writes are seen.
#[tokio::test]
async fn fault_a24_etcd_has_other_data() {
    tokio::join!(wiped(), wiped_and_ahead(), set_back(), another_cluster());
}

async fn filled(count: u16) -> (Etcd, Proxy, Follower) {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    for number in 0..count {
        put(&mut raw, &instance(number)).await;
    }
    let proxy = Proxy::to(etcd.address()).await;
    let follower = follow(&usual([proxy.address()]));
    follower.until("all are there", SOON, |set| set.len() == usize::from(count)).await;
    (etcd, proxy, follower)
}

/// Waits until a follower has etcd's set, and again after one more change.
async fn until_same(what: &str, etcd: &Etcd, follower: &Follower) {
    let start = Instant::now();
    let mut raw = etcd.raw().await;
    let wanted = listed(etcd).await;
    follower.until(what, Duration::from_secs(5), |set| *set == wanted).await;
    println!("fault_a24: {what}: the set was there after {:?}", start.elapsed());
    put(&mut raw, &version(77, 1)).await;
    let wanted = listed(etcd).await;
    follower.until("a further change", Duration::from_secs(5), |set| *set == wanted).await;
}

async fn wiped() {
    let (etcd, _proxy, follower) = filled(10).await;
    etcd.wipe().await;
    until_same("wiped", &etcd, &follower).await;
}

/// The data are wiped unnoticed and have more revisions since: no revision goes back, and the
/// cluster has its former id.
async fn wiped_and_ahead() {
    let (etcd, proxy, follower) = filled(10).await;
    proxy.set(Fault::Refuse);
    etcd.wipe().await;
    let mut raw = etcd.raw().await;
    for round in 0..50 {
        put(&mut raw, &version(3, round)).await;
    }
    proxy.set(Fault::None);
    until_same("wiped, and ahead", &etcd, &follower).await;
}

async fn set_back() {
    let (etcd, _proxy, follower) = filled(10).await;
    etcd.stop(0);
    let saved = etcd.save(0);
    etcd.restart(0).await;
    let mut raw = etcd.raw().await;
    for number in 5..20 {
        put(&mut raw, &version(number, 1)).await;
    }
    raw.delete(&key(&instance(2))).await;
    follower.until("all are there", SOON, |set| set.len() == 19).await;
    etcd.stop(0);
    etcd.restore(0, &saved);
    etcd.restart(0).await;
    until_same("restored", &etcd, &follower).await;
}

async fn another_cluster() {
    let (_etcd, proxy, follower) = filled(10).await;
    let other = Etcd::start().await;
    put(&mut other.raw().await, &instance(3)).await;
    proxy.lead_to(other.address());
    until_same("another cluster", &other, &follower).await;
}

/// The database is full: the set is still listed and watched, deletions are seen, and a
/// registration keeps trying until its deadline, because the condition may pass, and then fails
/// with the reason.
#[tokio::test]
async fn fault_a25_the_database_is_full() {
    let etcd = Etcd::setup().flag("--quota-backend-bytes=2000000").start().await;
    let deadline = Duration::from_secs(2);
    let backend = EtcdBackend::new(usual_config(etcd.members()).operation_timeout(deadline)).unwrap();
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(1)).await;
    put(&mut raw, &instance(2)).await;
    let follower = follow(&backend);
    follower.until("both are there", SOON, |set| set.len() == 2).await;
    raw.fill().await;
    let start = Instant::now();
    let error = backend.register(&payments(), instance(3)).await.unwrap_err();
    println!("fault_a25: refused in {:?}: {}", start.elapsed(), error.report());
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.report());
    assert!(start.elapsed() < deadline + Duration::from_secs(1));
    assert_eq!(count(&backend).await, Some(2));
    raw.delete(&key(&instance(1))).await;
    follower.until("the deletion is seen", Duration::from_secs(2), |set| set.len() == 1).await;
    assert_eq!(usual(etcd.members()).list(&payments()).await.unwrap().len(), 1, "a new handle lists too");
    sleep(USUAL_TTL).await;
    assert_eq!((follower.losses(), follower.resets()), (0, 1));
}

/// 500 watchers of a service with 10,000 instances in one process share one stream to etcd, and a
/// change reaches all of them within 100 ms of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_a28_many_watchers_share_one_service() {
    let etcd = Etcd::start().await;
    fill(&etcd, 10_000).await;
    let backend = usual(etcd.members());
    let barrier = Arc::new(Barrier::new(501));
    let start = Instant::now();
    let watchers: Vec<_> = (0..500)
        .map(|_| {
            let mut updates = backend.watch(&payments()).unwrap();
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                let mut set = Snapshot::default();
                while set.is_empty() {
                    set = set.after(&updates.next().await.unwrap());
                }
                barrier.wait().await;
                let mut arrivals = Vec::new();
                while arrivals.len() < 5 {
                    let update = updates.next().await.unwrap();
                    assert!(matches!(update, Update::Change(_)), "{update:?}");
                    set = set.after(&update);
                    assert!(set.len() > 10_000);
                    arrivals.push(Instant::now());
                }
                arrivals
            })
        })
        .collect();
    barrier.wait().await;
    println!("fault_a28: 500 watchers had the first set of 10,000 after {:?}", start.elapsed());
    eventually("the watch is open", SOON, async || etcd.metric(0, STREAMS) == Some(1.0)).await;
    let mut raw = etcd.raw().await;
    for number in 10_000..10_005 {
        assert_eq!(etcd.metric(0, STREAMS), Some(1.0));
        put(&mut raw, &instance(number)).await;
        sleep(Duration::from_millis(300)).await;
    }
    let arrivals = join_all(watchers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let spreads = (0..5).map(|round| {
        let times = || arrivals.iter().map(|arrivals| arrivals[round]);
        times().max().unwrap() - times().min().unwrap()
    });
    let mut spreads: Vec<_> = spreads.collect();
    spreads.sort_unstable();
    println!("fault_a28: the last of 500 had a change {spreads:?} after the first, by one stream");
    // A single slow round is due to the machine.
    assert!(spreads[2] < Duration::from_millis(100), "{spreads:?}");
}

/// The last watcher leaves: within a second no stream and no task of the watch is left, and no
/// connection once the backend is gone too.
#[tokio::test]
async fn fault_a29_the_last_subscriber_leaves() {
    let etcd = Etcd::start().await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let bare = tasks.num_alive_tasks();
    let backend = usual(etcd.members());
    // Opens the connection.
    backend.list(&payments()).await.unwrap();
    let connected = tasks.num_alive_tasks();
    for round in 0..3 {
        let watches: Vec<UpdateStream> = (0..20).map(|_| backend.watch(&payments()).unwrap()).collect();
        let mut followers: Vec<_> = watches.into_iter().map(Follower::of).collect();
        for follower in &followers {
            eventually("the first set", SOON, async || follower.resets() == 1).await;
        }
        eventually("one stream", SOON, async || etcd.metric(0, STREAMS) == Some(1.0)).await;
        let last = followers.pop();
        drop(followers);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(etcd.metric(0, STREAMS), Some(1.0), "one watcher is left");
        drop(last);
        let bound = Duration::from_secs(1);
        let streams = eventually("no stream", bound, async || etcd.metric(0, STREAMS) == Some(0.0)).await;
        let gone = eventually("no task", bound, async || tasks.num_alive_tasks() <= connected).await;
        println!("fault_a29: round {round}: no stream after {streams:?}, no task after {gone:?} more");
    }
    drop(backend);
    eventually("no task at all", Duration::from_secs(1), async || tasks.num_alive_tasks() <= bare).await;
}
