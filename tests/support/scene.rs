//! The scene that most tests of the etcd backend play in: the service `payments`, instances known by a number, and a backend
//! whose times are short. Whatever is awaited here fails the test where it does not come [soon](SOON).

use std::time::Duration;

use discovery_core::{
    Backoff, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Status, Update, UpdateStream,
};
use discovery_etcd::{EtcdBackend, EtcdConfig, EtcdNaming, Layout};
use futures::StreamExt;
use tokio::time::timeout;

use crate::{Etcd, Follower, Raw, eventually};

/// The TTL of [`config`]: the shortest that etcd grants here.
pub const TTL: Duration = Duration::from_secs(2);

/// Longer than anything takes that is not broken.
pub const SOON: Duration = Duration::from_secs(10);

/// A configuration for tests: short times, but with nothing turned off.
pub fn config(members: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig::new(members)
        .ttl(TTL)
        .request_timeout(Duration::from_secs(1))
        .operation_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_millis(500))
        .backoff(Backoff::new(Duration::from_millis(50), Duration::from_millis(500)).expect("a valid backoff"))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_millis(500))
}

/// The TTL of [`usual_config`].
pub const USUAL_TTL: Duration = Duration::from_secs(5);

/// A configuration as one might use it, but for a shorter TTL and shorter limits: what the figures of faults are about.
pub fn usual_config(members: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig::new(members)
        .ttl(USUAL_TTL)
        .request_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(1))
        .backoff(Backoff::new(Duration::from_millis(100), Duration::from_secs(2)).expect("a valid backoff"))
}

/// A backend on these members, with [`usual_config`].
pub fn usual(members: impl IntoIterator<Item = String>) -> EtcdBackend {
    EtcdBackend::new(usual_config(members)).expect("the configuration is valid")
}

/// A backend on all members, with [`config`].
pub fn connect(etcd: &Etcd) -> EtcdBackend {
    connect_to(etcd.members())
}

/// A backend on these members, with [`config`].
pub fn connect_to(members: impl IntoIterator<Item = String>) -> EtcdBackend {
    EtcdBackend::new(config(members)).expect("the configuration is valid")
}

/// The service.
pub fn payments() -> ServiceName {
    "payments".parse().expect("a valid name")
}

/// The instance of this number; its id is its address, 10.0.0.1:80 for 0 and 10.0.0.2:80 for 1.
pub fn instance(number: u16) -> Instance {
    let address = format!("10.0.{}.{}:80", number / 250, number % 250 + 1);
    Instance::new(address.parse().expect("a valid address"))
}

/// The instance of this number, with metadata that tell apart its versions.
pub fn version(number: u16, version: u32) -> Instance {
    let metadata = [("version", version.to_string())].try_into().expect("valid metadata");
    instance(number).with_metadata(metadata)
}

/// The key of an instance in etcd.
pub fn key(one: &Instance) -> String {
    format!("payments/{}", one.id())
}

/// Puts an instance by hand, without a lease, as one that stays for as long as etcd's data.
pub async fn put(raw: &mut Raw, one: &Instance) {
    raw.put(&key(one), EtcdNaming::default().encode(one)).await;
}

/// Puts up to 128 instances by hand, in one step.
pub async fn put_all(raw: &mut Raw, all: &[Instance]) {
    raw.put_together(all.iter().map(|one| (key(one), EtcdNaming::default().encode(one)))).await;
}

/// Registers the instance of this number.
pub async fn register(backend: &EtcdBackend, number: u16) -> Registration {
    backend.register(&payments(), instance(number)).await.expect("it is registered")
}

/// How many instances are listed; `None` where the list fails.
pub async fn count(backend: &EtcdBackend) -> Option<usize> {
    backend.list(&payments()).await.ok().map(|set| set.len())
}

/// Follows the service from now on.
pub fn follow(backend: &EtcdBackend) -> Follower {
    Follower::of(backend.watch(&payments()).expect("there is a runtime"))
}

/// Folds a stream until the set is as wanted, and returns the updates on the way.
pub async fn until(updates: &mut UpdateStream, set: &mut Snapshot, wanted: impl Fn(&Snapshot) -> bool) -> Vec<Update> {
    let mut seen = Vec::new();
    while !wanted(set) {
        let next = timeout(SOON, updates.next()).await;
        let update = next.unwrap_or_else(|_| panic!("nothing came; the set is {set:?}")).expect("streams do not end");
        *set = set.after(&update);
        seen.push(update);
    }
    seen
}

/// Asserts that these updates are one outage: one loss, told again only where its kind changed, and then the set.
pub fn assert_one_outage(seen: &[Update]) {
    let [losses @ .., Update::Reset(_)] = seen else { panic!("no Reset at the end: {seen:?}") };
    assert!(!losses.is_empty() && losses.iter().all(|update| matches!(update, Update::Lost(_))), "{seen:?}");
}

/// Waits until a registration is registered.
pub async fn until_registered(registration: &Registration, bound: Duration) -> Duration {
    eventually("registered", bound, async || registration.status().is_registered()).await
}

/// Waits until a registration says that it is lost.
pub async fn until_lost(registration: &Registration, bound: Duration) -> Duration {
    eventually("lost", bound, async || matches!(registration.status(), Status::Lost { .. })).await
}

/// Waits until a registration says that another owns its entry.
pub async fn until_superseded(registration: &Registration, bound: Duration) -> Duration {
    eventually("superseded", bound, async || matches!(registration.status(), Status::Superseded { .. })).await
}
