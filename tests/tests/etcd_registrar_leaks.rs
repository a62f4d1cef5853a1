//! Registrars leave nothing behind. This is the only test of its program, so that no other
//! descriptors and tasks are counted.

use std::{
    fs,
    time::{Duration, Instant},
};

use discovery_core::{Registration, Registry, ResolverExt, View};
use discovery_etcd::EtcdBackend;
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, connect, connect_to, instance, payments, register, until_registered},
};
use tokio::{runtime::Handle, time::sleep};

/// The resources that this process holds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Holdings {
    descriptors: usize,
    sockets: usize,
    tasks: usize,
}

impl Holdings {
    fn now() -> Self {
        let links: Vec<_> =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok()).collect();
        let sockets = links.iter().filter(|link| link.to_string_lossy().starts_with("socket:")).count();
        Self { descriptors: links.len(), sockets, tasks: Handle::current().metrics().num_alive_tasks() }
    }

    fn is_within(&self, former: &Self) -> bool {
        self.descriptors <= former.descriptors && self.sockets <= former.sockets && self.tasks <= former.tasks
    }
}

/// Registers 1,000 times; half of the registrations are dropped rather than deregistered.
async fn rounds(backend: &EtcdBackend) {
    for number in 0..1000 {
        let registration = register(backend, number % 7).await;
        if number % 2 == 0 {
            registration.deregister().await.unwrap();
        } else {
            drop(registration);
        }
    }
}

/// Reconnects a registration and a view 100 times.
async fn reconnects(proxy: &Proxy, registration: &Registration, view: &View) {
    let connected = async |since: usize| {
        eventually("another connection", SOON, async || proxy.accepted() > since).await;
        eventually("the view is live", SOON, async || view.stale_since().is_none()).await;
        until_registered(registration, SOON).await;
        // The watch and the renewals are restored, too.
        sleep(Duration::from_millis(30)).await;
    };
    view.wait_until_ready(SOON).await.unwrap();
    connected(0).await;
    for _ in 0..100 {
        let before = proxy.accepted();
        proxy.set(Fault::Refuse);
        sleep(Duration::from_millis(30)).await;
        proxy.set(Fault::None);
        connected(before).await;
    }
}

/// `fault_b15`. After 1,000 rounds of registering and 100 reconnects, no key, lease, task,
/// connection or file descriptor is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_b15_a_thousand_rounds_and_a_hundred_reconnects_leave_nothing() {
    let etcd = Etcd::start().await;
    let mut raw = etcd.raw().await;
    // Opens the connection of `raw`, so that it counts as held before.
    assert!(raw.keys().await.is_empty());
    let before = Holdings::now();

    let start = Instant::now();
    let proxy = Proxy::to(etcd.address()).await;
    let backend = connect(&etcd);
    let through = connect_to([proxy.address()]);
    let registration = through.register(&"refunds".parse().unwrap(), instance(1)).await.unwrap();
    let view = through.view(&payments()).unwrap();
    tokio::join!(rounds(&backend), reconnects(&proxy, &registration, &view));
    eventually("one key", SOON, async || raw.keys().await.len() == 1).await;
    eventually("one lease", SOON, async || raw.leases().await.len() == 1).await;
    let busy = Holdings::now();
    println!(
        "fault_b15: at start {before:?}; after 1,000 rounds and 100 reconnects, in {:?}, {busy:?}",
        start.elapsed()
    );
    // Two handles with their connections, one of them through a proxy, however many connections
    // there were before.
    assert!(busy.tasks <= before.tasks + 30 && busy.sockets <= before.sockets + 12, "{busy:?}");

    drop((backend, through, view));
    assert!(registration.status().is_registered(), "a registration does not need the backend handle");
    drop(registration);
    eventually("no keys", SOON, async || raw.keys().await.is_empty()).await;
    eventually("no leases", SOON, async || raw.leases().await.is_empty()).await;
    drop(proxy);
    let start = Instant::now();
    let mut left = Holdings::now();
    while !left.is_within(&before) {
        assert!(start.elapsed() < SOON, "{left:?} is left of {busy:?}; {before:?} was there before");
        sleep(Duration::from_millis(10)).await;
        left = Holdings::now();
    }
    println!("fault_b15: at the end {left:?}, after {:?}", start.elapsed());
}
