use std::time::Duration;

use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use support::{
    Etcd, Follower, eventually,
    scene::{SOON, config, follow, register},
};
use tokio::time::sleep;

/// A rolling restart leaves handles on two of three members. One choice anew, and they are spread
/// again, without a word to those who watch: no loss, no new set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_spread_again_after_a_rolling_restart() {
    const HANDLES: u16 = 60;
    let etcd = Etcd::start_members(3).await;
    let audit = Duration::from_secs(8);
    let open =
        || EtcdBackend::connect(config(etcd.members()).with_ttl(Duration::from_secs(10)).with_audit_interval(audit));
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
    println!("after a rolling restart {:?}", handles());
    let told: Vec<_> = followers.iter().map(|follower| (follower.losses(), follower.resets())).collect();

    // The first choice may have come during the restarts.
    sleep(audit * 3 / 2).await;
    let spread = handles();
    println!("after an audit {spread:?}");
    assert!(spread.iter().all(|handles| *handles <= 30), "{spread:?}");
    assert_eq!(spread.iter().sum::<usize>(), usize::from(HANDLES), "none is left behind on a former member");
    for (follower, told) in followers.iter().zip(told) {
        assert_eq!((follower.losses(), follower.resets()), told, "nobody was told of it");
        assert!(is_whole(follower) && follower.removed().is_empty());
    }
    assert!(registrations.iter().all(|registration| registration.status().is_registered()));
}
