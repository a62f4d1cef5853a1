//! How handles choose their members, and move between them unnoticed.

use std::time::{Duration, Instant};

use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use support::{
    Etcd, Fault, Follower, Proxy, eventually,
    scene::{SOON, config, follow, instance, put, register, version},
};
use tokio::time::sleep;

/// A rolling restart leaves all handles on two of three members. After the next choice they are
/// spread again, unnoticed by watchers: no loss, no new set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_spread_again_after_a_rolling_restart() {
    const HANDLES: u16 = 60;
    const CHOICES: usize = 2;
    let etcd = Etcd::start_members(3).await;
    let audit = Duration::from_secs(8);
    let open = || EtcdBackend::new(config(etcd.members()).ttl(Duration::from_secs(10)).audit_interval(audit));
    let backends: Vec<_> = (0..HANDLES).map(|_| open().unwrap()).collect();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    let followers: Vec<Follower> = backends.iter().map(follow).collect();
    let is_whole = |follower: &Follower| !follower.is_lost() && follower.set().len() == usize::from(HANDLES);
    let all = async || followers.iter().all(is_whole);
    eventually("all are there", SOON, all).await;
    // Each handle has one watch of the service and one of its own entry.
    let handles = || -> [usize; 3] {
        let watches = |place| etcd.metric(place, "etcd_debugging_mvcc_watcher_total").unwrap_or_default() as usize;
        [0, 1, 2].map(|place| watches(place) / 2)
    };
    println!("at first {:?}", handles());
    for place in 0..3 {
        etcd.stop(place);
        sleep(Duration::from_millis(500)).await;
        etcd.restart(place).await;
        eventually("all are there", SOON, all).await;
    }
    // A watcher whose watch broke with the last member may resume later, and gets a new set.
    put(&mut etcd.raw().await, &instance(HANDLES)).await;
    let has_resumed = |follower: &Follower| !follower.is_lost() && follower.set().len() == usize::from(HANDLES) + 1;
    let all = async || followers.iter().all(has_resumed);
    eventually("all have resumed", SOON, all).await;
    println!("after a rolling restart {:?}", handles());
    let before: Vec<_> = followers.iter().map(|follower| (follower.losses(), follower.resets())).collect();

    // A single choice of 60 handles gives a member more than half of them once in 150 runs, by
    // chance.
    let mut spread = [0; 3];
    for _ in 0..CHOICES {
        // The first choice may have been made during the restarts.
        sleep(audit * 3 / 2).await;
        // A handle that is just moving is connected to two members.
        let is_settled = async || handles().iter().sum::<usize>() == usize::from(HANDLES);
        eventually("none is left behind on a former member", SOON, is_settled).await;
        let chosen = handles();
        println!("after an audit {chosen:?}");
        spread = [0, 1, 2].map(|place| spread[place] + chosen[place]);
    }
    assert!(spread.iter().all(|handles| *handles <= CHOICES * 30), "{spread:?}");
    for (follower, before) in followers.iter().zip(before) {
        assert_eq!((follower.losses(), follower.resets()), before, "no watcher noticed");
        assert!(has_resumed(follower) && follower.removed().is_empty());
    }
    assert!(registrations.iter().all(|registration| registration.status().is_registered()));
}

/// Audits and moves happen once a second, on a network with latency, while history keeps being
/// compacted. If only others write, no watcher gets an update; if an instance is written, each
/// watcher gets each of its versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audits_and_moves_go_unnoticed() {
    let etcd = Etcd::start_members(3).await;
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(1)).await;
    let delay = Fault::Delay { delay: Duration::from_millis(25), jitter: Duration::ZERO };
    let proxies = join_all(etcd.members().into_iter().map(Proxy::to)).await;
    for proxy in &proxies {
        proxy.set(delay);
    }
    let config = config(proxies.iter().map(Proxy::address)).ttl(Duration::from_secs(4));
    let backend = EtcdBackend::new(config.audit_interval(Duration::from_secs(1))).unwrap();
    let follower = follow(&backend);
    follower.until("it is there", SOON, |set| set.len() == 1).await;
    let registration = register(&backend, 2).await;
    follower.until("both are there", SOON, |set| set.len() == 2).await;
    let accepted = || proxies.iter().map(Proxy::accepted).sum::<usize>();
    for versions in [0, 3, 100] {
        let before = accepted();
        let told = follower.told().len();
        let start = Instant::now();
        let mut written = 0;
        while start.elapsed() < Duration::from_secs(12) {
            for turn in 0..100 {
                raw.put("elsewhere", "x").await;
                if turn < versions {
                    put(&mut raw, &version(1, written)).await;
                    written += 1;
                }
                sleep(Duration::from_millis(10)).await;
            }
            // Keeps the revisions that are still on their way.
            let revision = raw.revision().await;
            raw.compact_at(revision - 100).await;
        }
        let is_told = async || follower.told().len() >= told + written as usize;
        eventually("each version arrives", SOON, is_told).await;
        let news = follower.told().split_off(told);
        println!("{written} versions, {} updates, {} connections in 12 s", news.len(), accepted() - before);
        assert_eq!((follower.losses(), follower.resets()), (0, 1), "{news:?}");
        assert_eq!(news.len(), written as usize, "each version arrives once");
        assert!(registration.status().is_registered());
    }
}
