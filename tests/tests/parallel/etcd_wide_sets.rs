//! Lists and watches of a service with many entries, or with many keys of deeper paths, which are
//! not its entries.

use std::time::{Duration, Instant};

use discovery_core::{ErrorKind, Resolver, Snapshot};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use futures::{StreamExt, future::join, stream};
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, follow, instance, key, payments, put, usual, usual_config},
};
use tokio::time::sleep;

/// Puts the same value at many keys, eight clients at a time.
async fn fill(etcd: &Etcd, keys: &[String]) {
    let value = support::entry::encode(&instance(1));
    let lanes = keys.chunks(keys.len().div_ceil(8).max(1));
    let fill = |keys: &[String]| {
        let keys = keys.to_vec();
        let value = value.clone();
        async move { etcd.raw().await.put_all(&keys, &value).await }
    };
    let fills: Vec<_> = lanes.map(fill).collect();
    stream::iter(fills).buffer_unordered(8).for_each(|()| async {}).await;
}

/// Returns the keys of this many entries whose ids start with `beginning`.
fn entries(beginning: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("payments/{beginning}{number:06}")).collect()
}

/// Returns a backend that follows up to this many entries.
fn limited(etcd: &Etcd, entries: usize) -> EtcdBackend {
    EtcdBackend::new(usual_config(etcd.members()).max_entries(entries)).unwrap()
}

/// Lists the service; returns the set and the number of requests.
async fn list(etcd: &Etcd, backend: &EtcdBackend, what: &str) -> (Snapshot, u64) {
    let before = etcd.requests(0, "Range");
    let start = Instant::now();
    let set = backend.list(&payments()).await.unwrap();
    let requests = etcd.requests(0, "Range") - before;
    println!("{what}: {} entries in {requests} requests and {:?}", set.len(), start.elapsed());
    (set, requests)
}

#[tokio::test]
async fn twenty_thousand_entries_are_listed_exactly() {
    let etcd = Etcd::start().await;
    let keys = entries("e", 20_000);
    fill(&etcd, &keys).await;
    let backend = usual(etcd.members());
    let (set, requests) = list(&etcd, &backend, "20,000 entries").await;
    let ids = |set: &Snapshot| set.iter().map(|one| format!("payments/{}", one.id())).collect::<Vec<_>>();
    assert!(ids(&set) == keys);
    assert!(requests <= 4, "{requests}");

    // One more than a client follows by default.
    fill(&etcd, &entries("more", 1)).await;
    let before = Instant::now();
    let error = backend.list(&payments()).await.unwrap_err();
    println!("one more: refused in {:?}", before.elapsed());
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{}", error.report());
    let (set, _) = list(&etcd, &limited(&etcd, 20_001), "one more, and allowed").await;
    assert_eq!(set.len(), 20_001);
}

/// A subtree of 300,000 keys beside ten entries: a list takes a few pages, and a watcher follows.
#[tokio::test]
async fn a_large_subtree_is_left_out() {
    let etcd = Etcd::start().await;
    let start = Instant::now();
    fill(&etcd, &entries("eu/", 300_000)).await;
    println!("300,000 keys written in {:?}", start.elapsed());
    let mut raw = etcd.raw().await;
    for number in 0..10 {
        put(&mut raw, &instance(number)).await;
    }
    let backend = usual(etcd.members());
    // This list connects.
    let (set, _) = list(&etcd, &backend, "a subtree of 300,000 keys").await;
    assert_eq!(set.len(), 10);
    let start = Instant::now();
    let (again, requests) = list(&etcd, &backend, "the same again").await;
    assert_eq!(again, set);
    assert!(requests <= 3, "{requests}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    let follower = follow(&backend);
    follower.until("the set", SOON, |set| set.len() == 10).await;
    raw.put("payments/eu/another", "x").await;
    raw.delete("payments/eu/000007").await;
    put(&mut raw, &instance(10)).await;
    follower.until("a change", SOON, |set| set.len() == 11).await;
    // Leaves time for several checks, which compare the number of keys.
    sleep(Duration::from_secs(4)).await;
    assert_eq!((follower.losses(), follower.resets()), (0, 1));
}

#[tokio::test]
async fn many_subtrees_of_one_key_are_read_in_few_pages() {
    let etcd = Etcd::start().await;
    let keys: Vec<String> = (0..5000).map(|number| format!("payments/d{number:06}/x")).collect();
    fill(&etcd, &keys).await;
    fill(&etcd, &[entries("a", 5), entries("z", 5)].concat()).await;
    let (set, requests) = list(&etcd, &usual(etcd.members()), "5,000 subtrees of one key").await;
    assert_eq!(set.len(), 10);
    assert!(requests <= 7, "{requests}");
}

/// With a limit of 2,000 entries, 2,000 are listed wherever many more keys of deeper paths sort;
/// with a limit of 1,999 they are refused.
#[tokio::test]
async fn deeper_paths_never_count_towards_the_limit() {
    let etcd = Etcd::start().await;
    let entry_keys = entries("m", 2000);
    fill(&etcd, &entry_keys).await;
    let mut raw = etcd.raw().await;
    let subtrees = ["a/", "m000007/", "m001500/", "z/"];
    for subtree in subtrees {
        fill(&etcd, &entries(subtree, 3000)).await;
        let backend = limited(&etcd, 2000);
        let (set, requests) = list(&etcd, &backend, subtree).await;
        assert_eq!(set.len(), 2000, "{subtree}");
        assert!(requests <= 6, "{subtree}: {requests}");
        let error = limited(&etcd, 1999).list(&payments()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{subtree}: {}", error.report());
        raw.delete_below(&format!("payments/{subtree}")).await;
    }
    for subtree in subtrees {
        fill(&etcd, &entries(subtree, 3000)).await;
    }
    let (set, requests) = list(&etcd, &limited(&etcd, 2000), "in all places").await;
    assert_eq!(set.len(), 2000);
    assert!(requests <= 10, "{requests}");
}

/// While entries are added, each list is one state: the added entries are present up to some point,
/// without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_one_state_while_entries_are_added() {
    let etcd = Etcd::start().await;
    fill(&etcd, &entries("e", 10_000)).await;
    let mut raw = etcd.raw().await;
    // In descending order, so that pages of different revisions would show.
    let writes = async {
        for number in (0..600).rev() {
            raw.put(&format!("payments/a{number:06}"), support::entry::encode(&instance(2))).await;
            raw.put(&format!("payments/z{number:06}"), support::entry::encode(&instance(3))).await;
        }
    };
    let backend = usual(etcd.members());
    let lists = async {
        let mut lists = 0;
        loop {
            let set = backend.list(&payments()).await.unwrap();
            let count = |first| set.iter().filter(|one| one.id().as_str().starts_with(first)).count();
            let before = count('a');
            let behind = count('z');
            assert_eq!(count('e'), 10_000);
            assert!(before == behind || before == behind + 1, "{before} {behind}");
            lists += 1;
            if behind == 600 {
                return lists;
            }
        }
    };
    let ((), lists) = join(writes, lists).await;
    println!("{lists} lists while 1,200 entries were added");
    assert!(lists > 1);
}

/// 5,000 entries over 64 kB/s with round trips of 300 ms: the first set arrives in pages, each in
/// time, and no loss is reported.
#[tokio::test]
async fn a_slow_network_lists_many_entries() {
    let etcd = Etcd::start().await;
    fill(&etcd, &entries("e", 5000)).await;
    let narrow = Proxy::to(etcd.address()).await;
    narrow.set(Fault::Throttle(64_000));
    let far = Proxy::to(narrow.address()).await;
    far.set(Fault::Delay { delay: Duration::from_millis(150), jitter: Duration::ZERO });
    let config = EtcdConfig::new([far.address()]).operation_timeout(Duration::from_secs(60));
    let backend = EtcdBackend::new(config).unwrap();
    let before = etcd.requests(0, "Range");
    let follower = follow(&backend);
    let took = eventually("the first set", Duration::from_secs(40), async || follower.resets() == 1).await;
    println!("5,000 entries in {took:?} and {} requests", etcd.requests(0, "Range") - before);
    assert_eq!(follower.set().len(), 5000);
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(1)).await;
    follower.until("a change", SOON, |set| set.get(&key(&instance(1))["payments/".len()..]).is_some()).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!((follower.losses(), follower.resets()), (0, 1));
}
