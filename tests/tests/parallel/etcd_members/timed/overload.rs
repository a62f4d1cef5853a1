//! Mass repairs and hanging lists, and what they cost other callers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_core::{Registration, Registry, Resolver};
use discovery_etcd::EtcdBackend;
use futures::future::join_all;
use support::{
    Before, Etcd, Fake, Follower, Method, eventually,
    scene::{SOON, config, instance, payments, register, usual},
};
use tokio::time::sleep;

/// Registers this many instances through one handle.
async fn register_all(backend: &EtcdBackend, count: u16) -> Vec<Registration> {
    join_all((0..count).map(|number| register(backend, number))).await
}

/// Revokes the handle's lease, which removes all entries. Returns how long it takes until all are
/// back.
async fn lose_all(etcd: &Etcd, registrations: &[Registration]) -> Duration {
    let mut raw = etcd.raw().await;
    let leases = raw.leases().await;
    assert_eq!(leases.len(), 1);
    raw.revoke(leases[0]).await;
    let start = Instant::now();
    let is_noticed = async || registrations.iter().any(|one| !one.status().is_registered());
    eventually("the loss is noticed", SOON, is_noticed).await;
    let is_back = async || registrations.iter().all(|one| one.status().is_registered());
    eventually("all are back", Duration::from_secs(30), is_back).await;
    start.elapsed()
}

/// F17 with a fifth of its entries: the lease of 2,000 entries is lost at once, and all are back
/// within 30 s, in each of three rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_entries_lost_at_once_are_soon_back() {
    const ENTRIES: u16 = 2000;
    let etcd = Etcd::start().await;
    let backend = usual(etcd.members());
    let registrations = register_all(&backend, ENTRIES).await;
    for round in 1..=3 {
        let took = lose_all(&etcd, &registrations).await;
        println!("round {round}: {ENTRIES} entries back in {took:?}");
        let mut raw = etcd.raw().await;
        assert_eq!(raw.keys().await.len(), usize::from(ENTRIES));
    }
}

/// At most 128 reads and writes of entries are in flight. Operations that somebody waits for, a
/// first registration and a deregistration, do not queue behind the repairs of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_are_limited_and_delay_no_waiting_caller() {
    const SLOW: Duration = Duration::from_millis(300);
    let fake = Fake::start().await;
    // Long enough that nothing times out.
    let config = config([fake.address()]).request_timeout(Duration::from_secs(5));
    let backend = Arc::new(EtcdBackend::new(config).unwrap());
    let mut registrations = register_all(&backend, 1000).await;
    fake.before(|method| if method == Method::Write { Before::Wait(SLOW) } else { Before::Serve });
    let lost = Instant::now();
    // The lease is reported as gone at its next renewal.
    fake.edit_renewals(|mut answer| {
        answer.ttl = 0;
        vec![Ok(answer)]
    });
    let is_noticed = async || registrations.iter().any(|one| !one.status().is_registered());
    eventually("the loss is noticed", SOON, is_noticed).await;
    fake.be_honest_about_renewals();
    let noticed = Instant::now();
    sleep(Duration::from_millis(500)).await;

    let mut times = Vec::new();
    for number in 2000..2004 {
        let start = Instant::now();
        let first = backend.register(&payments(), instance(number)).await.unwrap();
        let registered = start.elapsed();
        let start = Instant::now();
        first.deregister().await.unwrap();
        times.push((registered, start.elapsed()));
    }
    let start = Instant::now();
    registrations.pop().unwrap().deregister().await.unwrap();
    let gone = start.elapsed();
    let is_back = async || registrations.iter().all(|one| one.status().is_registered());
    let still_lost = registrations.iter().filter(|one| !one.status().is_registered()).count();
    assert!(still_lost > 100, "the repairs were in progress all the time: {still_lost}");
    eventually("all are back", Duration::from_secs(30), is_back).await;
    let back = noticed.elapsed();

    let writes: Vec<Instant> = fake.asked(Method::Write).into_iter().filter(|at| *at > lost).collect();
    // Writes that began within less than the time that each takes were in flight together.
    let together = |from: &Instant| writes.iter().filter(|at| **at >= *from && **at < *from + SLOW * 9 / 10).count();
    let most = writes.iter().map(together).max().unwrap();
    println!(
        "{most} writes at once, all back in {back:?}; meanwhile registered and deregistered in {times:?}, one of them gone in {gone:?}"
    );
    assert!(most <= 128, "{most}");
    for took in times.iter().flat_map(|(one, other)| [*one, *other]).chain([gone]) {
        assert!(took < SLOW * 3, "a read or two and a write of {SLOW:?}: {took:?}");
    }
}

/// A service whose list never completes delays lists of other services for no more than a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_list_delays_no_other_list() {
    let fake = Fake::start().await;
    fake.before(|method| if method == Method::Page { Before::Never } else { Before::Serve });
    let one = |number: u16| {
        let instance = instance(number);
        (format!("big/{}", instance.id()), Some(support::entry::encode(&instance)))
    };
    fake.write((0..40).map(one));
    let backend = usual([fake.address()]);
    let big = "big".parse().unwrap();
    let _hang: Vec<_> = (0..3).map(|_| Follower::of(backend.watch(&big).unwrap())).collect();
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(20) {
        let start = Instant::now();
        assert!(backend.list(&payments()).await.unwrap().is_empty());
        longest = longest.max(start.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
    println!("other lists took {longest:?} at most");
    assert!(longest < Duration::from_millis(2500), "{longest:?}");
}
