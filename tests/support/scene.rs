//! The scene of most tests of the etcd backend: the service `payments`, numbered instances and a
//! backend with short timeouts. Whatever is awaited here fails the test unless it happens
//! [soon](SOON).

use std::time::Duration;

use discovery_core::{
    Backoff, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Status, Update, UpdateStream,
};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use futures::StreamExt;
use tokio::time::timeout;

use crate::{Etcd, Follower, Raw, eventually};

/// The TTL of [`config`]: the shortest that etcd grants in these tests.
pub const TTL: Duration = Duration::from_secs(2);

/// Longer than anything that works takes.
pub const SOON: Duration = Duration::from_secs(10);

/// The longest pause of [`config`].
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Returns a configuration for tests: short times, with nothing turned off.
pub fn config(members: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig::new(members)
        .ttl(TTL)
        .request_timeout(Duration::from_secs(1))
        .operation_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_millis(500))
        .backoff(Backoff::new(Duration::from_millis(50), LONGEST_PAUSE).expect("a valid backoff"))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_millis(500))
}

/// The TTL of [`usual_config`].
pub const USUAL_TTL: Duration = Duration::from_secs(5);

/// Returns a typical configuration with a shorter TTL and shorter timeouts, to which the figures of
/// the faults refer.
pub fn usual_config(members: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig::new(members)
        .ttl(USUAL_TTL)
        .request_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(1))
        .backoff(Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).expect("a valid backoff"))
}

/// Returns a backend on these members, with [`usual_config`].
pub fn usual(members: impl IntoIterator<Item = String>) -> EtcdBackend {
    EtcdBackend::new(usual_config(members)).expect("the configuration is valid")
}

/// Returns a backend on all members of a cluster, with [`config`].
pub fn connect(etcd: &Etcd) -> EtcdBackend {
    connect_to(etcd.members())
}

/// Returns a backend on these members, with [`config`].
pub fn connect_to(members: impl IntoIterator<Item = String>) -> EtcdBackend {
    EtcdBackend::new(config(members)).expect("the configuration is valid")
}

/// Returns the name of the service.
pub fn payments() -> ServiceName {
    "payments".parse().expect("a valid name")
}

/// Returns the instance with this number. Its id is its address: 10.0.0.1:80 for 0, 10.0.0.2:80 for
/// 1.
pub fn instance(number: u16) -> Instance {
    let address = format!("10.0.{}.{}:80", number / 250, number % 250 + 1);
    Instance::new(address.parse().expect("a valid address"))
}

/// Returns the instance with this number, with the version in its metadata.
pub fn version(number: u16, version: u32) -> Instance {
    let metadata = [("version", version.to_string())].try_into().expect("valid metadata");
    instance(number).with_metadata(metadata)
}

/// Returns the key of an instance in etcd.
pub fn key(one: &Instance) -> String {
    format!("payments/{}", one.id())
}

/// Puts an instance by hand, without a lease: it stays until it is deleted.
pub async fn put(raw: &mut Raw, one: &Instance) {
    raw.put(&key(one), crate::entry::encode(one)).await;
}

/// Puts up to 128 instances by hand, in one transaction.
pub async fn put_all(raw: &mut Raw, all: &[Instance]) {
    raw.put_together(all.iter().map(|one| (key(one), crate::entry::encode(one)))).await;
}

/// Registers the instance with this number.
pub async fn register(backend: &EtcdBackend, number: u16) -> Registration {
    backend.register(&payments(), instance(number)).await.expect("it is registered")
}

/// Returns how many instances are listed; `None` if the list fails.
pub async fn count(backend: &EtcdBackend) -> Option<usize> {
    backend.list(&payments()).await.ok().map(|set| set.len())
}

/// Follows the service from now on.
pub fn follow(backend: &EtcdBackend) -> Follower {
    Follower::of(backend.watch(&payments()).expect("there is a runtime"))
}

/// Folds a stream until the set is as wanted; returns the updates so far.
pub async fn until(updates: &mut UpdateStream, set: &mut Snapshot, wanted: impl Fn(&Snapshot) -> bool) -> Vec<Update> {
    let mut seen = Vec::new();
    while !wanted(set) {
        let next = timeout(SOON, updates.next()).await;
        let update =
            next.unwrap_or_else(|_| panic!("no update arrived; the set is {set:?}")).expect("streams do not end");
        *set = set.after(&update);
        seen.push(update);
    }
    seen
}

/// Asserts that these updates are one outage: one `Lost`, repeated only if its kind changed, and
/// then a `Reset`.
pub fn assert_one_outage(seen: &[Update]) {
    let [losses @ .., Update::Reset(_)] = seen else { panic!("no Reset at the end: {seen:?}") };
    assert!(!losses.is_empty() && losses.iter().all(|update| matches!(update, Update::Lost(_))), "{seen:?}");
}

/// Waits until a registration is registered.
pub async fn until_registered(registration: &Registration, bound: Duration) -> Duration {
    eventually("registered", bound, async || registration.status().is_registered()).await
}

/// Waits until a registration reports that it is lost.
pub async fn until_lost(registration: &Registration, bound: Duration) -> Duration {
    eventually("lost", bound, async || matches!(registration.status(), Status::Lost { .. })).await
}

/// Waits until a registration reports that another owner has its entry.
pub async fn until_superseded(registration: &Registration, bound: Duration) -> Duration {
    eventually("superseded", bound, async || matches!(registration.status(), Status::Superseded { .. })).await
}
