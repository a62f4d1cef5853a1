//! Handles that know both etcd and the proxy lose one of them.

use std::time::Duration;

use discovery_core::{Registry, Resolver};
use futures::future::join_all;
use support::{
    Fault, GrpcProxy, Proxy,
    scene::{SOON, connect, count, follow, instance, key, payments, put, usual},
};
use tokio::time::sleep;

use super::{StatusReceiver, start, told};

/// The way to the cluster that is cut.
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

/// Handles with two members, etcd and the proxy in front of it, lose one of them. Their watches
/// report at most one outage, registrations stay, and all end with the listed set.
async fn one_of_two_ways_is_cut(way: Way) {
    let (etcd, proxy) = start().await;
    let direct = Proxy::to(etcd.address()).await;
    let mut raw = etcd.raw().await;
    put(&mut raw, &instance(100)).await;
    // Each handle starts with a random member.
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
    // Handles that return to their former member do so within this time.
    sleep(Duration::from_secs(3)).await;
    for ((statuses, registration, follower, backend), (losses, removed)) in handles.iter().zip(before) {
        follower.until("the last set", SOON, |set| *set == wanted).await;
        let updates = told(follower);
        assert!(follower.losses() - losses <= 1, "{way:?}: {updates:?}");
        let went = follower.removed().split_off(removed.len());
        assert!(went.iter().all(|id| id == instance(200).id()), "{way:?}: {went:?} went");
        assert!(registration.status().is_registered());
        assert!(statuses.words().is_empty(), "{way:?}: {:?}", statuses.words());
        assert_eq!(count(backend).await, Some(wanted.len()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_direct_connection_is_cut() {
    one_of_two_ways_is_cut(Way::Direct).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_through_the_proxy_is_cut() {
    one_of_two_ways_is_cut(Way::ThroughTheProxy).await;
}
