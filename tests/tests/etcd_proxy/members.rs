use std::time::Duration;

use discovery_core::{Registry, Resolver};
use futures::future::join_all;
use support::{
    Fault, GrpcProxy, Proxy,
    scene::{SOON, connect, count, follow, instance, key, payments, put, usual},
};
use tokio::time::sleep;

use crate::{StatusReceiver, start, told};

/// Which of the two ways to the cluster is cut.
#[derive(Clone, Copy, Debug)]
enum Way {
    Direct,
    ThroughTheProxy,
}

impl Way {
    async fn cut(self, direct: &Proxy, proxy: &GrpcProxy) {
        match self {
            Self::Direct => {
                direct.set(Fault::Refuse);
                sleep(Duration::from_secs(3)).await;
                direct.set(Fault::None);
            }
            Self::ThroughTheProxy => {
                proxy.kill();
                sleep(Duration::from_secs(3)).await;
                proxy.restart().await;
            }
        }
    }
}

/// Handles with two members, etcd and the proxy in front of it, lose one: their watches tell one
/// outage or none, what was registered stays, and all end with what is listed.
async fn one_of_two_ways_is_cut(way: Way) {
    let (etcd, proxy) = start().await;
    let direct = Proxy::to(etcd.address()).await;
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(100)).await;
    // With which member a handle begins is chance.
    let open = |number: u16| {
        let backend = usual([direct.address(), proxy.address()]);
        async move {
            let registration = backend.register(&payments(), instance(number)).await.unwrap();
            let follower = follow(&backend);
            follower.until("its first set", SOON, |set| !set.is_empty()).await;
            (StatusReceiver::of(&registration), registration, follower, backend)
        }
    };
    let handles = join_all((0..6).map(open)).await;
    for (.., follower, _) in &handles {
        follower.until("all are there", SOON, |set| set.len() == 7).await;
    }
    sleep(Duration::from_secs(1)).await;
    let before: Vec<_> = handles.iter().map(|(.., follower, _)| (follower.losses(), follower.removed())).collect();
    let writing = async {
        for number in 200..230 {
            put(&mut raw, &instance(number)).await;
            sleep(Duration::from_millis(100)).await;
        }
        raw.delete(&key(&instance(200))).await;
    };
    tokio::join!(way.cut(&direct, &proxy), writing);
    let wanted = connect(&etcd).list(&payments()).await.unwrap();
    // Those that move back do so within that.
    sleep(Duration::from_secs(3)).await;
    for ((statuses, registration, follower, backend), (losses, removed)) in handles.iter().zip(before) {
        follower.until("the last set", SOON, |set| *set == wanted).await;
        let told = told(follower);
        assert!(follower.losses() - losses <= 1, "{way:?}: {told:?}");
        let went = follower.removed().split_off(removed.len());
        assert!(went.iter().all(|id| id == instance(200).id()), "{way:?}: {went:?} went");
        assert!(registration.status().is_registered());
        assert!(statuses.words().is_empty(), "{way:?}: {:?}", statuses.words());
        assert_eq!(count(backend).await, Some(wanted.len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_direct_way_is_cut() {
    one_of_two_ways_is_cut(Way::Direct).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_through_the_proxy_is_cut() {
    one_of_two_ways_is_cut(Way::ThroughTheProxy).await;
}
