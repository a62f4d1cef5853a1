//! Registrations during faults of clusters: a member that swallows renewals (`fault_b9`), all
//! members down (`fault_b10`), and leaders that die (`fault_b18`).

use std::time::{Duration, Instant};

use discovery_core::{ErrorKind, Registration, Resolver, Snapshot, Status};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use futures::{StreamExt, future::join_all};
use support::{
    Etcd, Fault, Proxy, eventually,
    scene::{SOON, TTL, config, connect, connect_to, count, instance, payments, register, until, until_registered},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Counts the removals that a watcher sees until it is stopped.
struct Removals {
    stop: oneshot::Sender<()>,
    counting: JoinHandle<usize>,
}

impl Removals {
    /// Watches a service of this many instances.
    async fn count(observer: &EtcdBackend, instances: usize) -> Self {
        let mut updates = observer.watch(&payments()).unwrap();
        let mut set = Snapshot::default();
        until(&mut updates, &mut set, |set| set.len() == instances).await;
        let (stop, mut stopped) = oneshot::channel();
        let counting = tokio::spawn(async move {
            let mut removals = 0;
            loop {
                tokio::select! {
                    _ = &mut stopped => return removals,
                    update = updates.next() => {
                        let next = set.after(&update.unwrap());
                        removals += set.diff(&next).removes().len();
                        set = next;
                    }
                }
            }
        });
        Self { stop, counting }
    }

    async fn stop(self) -> usize {
        self.stop.send(()).unwrap();
        self.counting.await.unwrap()
    }
}

/// Runs `fault_b9` several times at once: the member that renews a lease, or the way to it,
/// swallows everything, at a different moment in each run. Returns how many leases expired.
async fn swallowed_renewals(etcd: &Etcd, runs: u16, swallow: impl Fn(&Proxy)) -> usize {
    let ttl = Duration::from_secs(5);
    let observer = connect(etcd);
    let run = async |number: u16| {
        let proxies = join_all(etcd.members().into_iter().map(Proxy::to)).await;
        let members = proxies.iter().map(Proxy::address);
        // No ping comes in time: the renewals themselves have to notice.
        let config = config(members).ttl(ttl).http2_keep_alive_interval(Duration::from_secs(60));
        let backend = EtcdBackend::new(config).unwrap();
        let registration = register(&backend, number).await;
        sleep(ttl / 3 * u32::from(number) / u32::from(runs)).await;
        // The only member that was connected to.
        let used = proxies.iter().find(|proxy| proxy.accepted() > 0).unwrap();
        swallow(used);
        (registration, backend, proxies)
    };
    let held = join_all((0..runs).map(run)).await;
    let removals = Removals::count(&observer, usize::from(runs)).await;
    sleep(ttl * 2).await;
    for (registration, ..) in &held {
        assert!(registration.status().is_registered());
    }
    let removals = removals.stop().await;
    for (registration, _, proxies) in held {
        proxies.iter().for_each(Proxy::heal);
        registration.deregister().await.unwrap();
    }
    removals
}

/// `fault_b9`. A black hole in front of one of three members swallows renewals: they move to
/// another member before the lease ends. The promise is 0 expiries in 20 runs with a TTL of 5 s;
/// these are the first runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_b9_renewals_move_before_the_lease_ends() {
    let etcd = Etcd::start_members(3).await;
    let expired = swallowed_renewals(&etcd, 4, |member| member.set(Fault::BlackHole)).await;
    println!("fault_b9: {expired} expiries in 4 runs");
    assert_eq!(expired, 0);
}

/// `fault_b9` with a single address, where only new connections work: renewals move to a new
/// connection before the lease ends. 0 expiries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_b9_renewals_leave_a_dead_connection_to_one_address() {
    let etcd = Etcd::start().await;
    let expired = swallowed_renewals(&etcd, 4, Proxy::silence_open).await;
    println!("fault_b9: {expired} expiries in 4 runs on dead connections to one address");
    assert_eq!(expired, 0);
}

/// `fault_b9`, all 20 runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: 20 runs of two TTLs"]
async fn fault_b9_renewals_move_before_the_lease_ends_twenty_times() {
    let etcd = Etcd::start_members(3).await;
    let mut expired = 0;
    for _ in 0..5 {
        expired += swallowed_renewals(&etcd, 4, |member| member.set(Fault::BlackHole)).await;
    }
    println!("fault_b9: {expired} expiries in 20 runs");
    assert_eq!(expired, 0);
}

/// `fault_b10`. All members are down for three TTLs: a single registrar is back about a second
/// after etcd (2.5 s on a loaded machine).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_b10_a_registrar_is_back_soon_after_etcd_is() {
    let etcd = Etcd::start().await;
    // Few enough not to compete with each other. With the default backoff, whose longest wait is
    // five times that second.
    let backends: Vec<_> =
        (0..16).map(|_| EtcdBackend::new(EtcdConfig::new(etcd.members()).ttl(TTL)).unwrap()).collect();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    etcd.kill(0);
    sleep(TTL * 3).await;
    assert!(!registrations.iter().any(|one| one.status().is_registered()));
    etcd.restart(0).await;
    let start = Instant::now();
    for registration in &registrations {
        until_registered(registration, Duration::from_millis(2500).saturating_sub(start.elapsed())).await;
    }
    println!("fault_b10: the last of 16 registrars back {:?} after etcd's return", start.elapsed());
    assert_eq!(count(&backends[0]).await, Some(16));
}

fn since(status: &Status) -> Option<Instant> {
    if let Status::Registered { since } = status { Some(*since) } else { None }
}

/// `fault_b18`. The leader is killed and restarted again and again: with a TTL of 10 s no instance
/// is removed. Returns the removals and the kills.
async fn leader_storm(time: Duration) -> (usize, usize) {
    let etcd = Etcd::start_members(3).await;
    let ttl = Duration::from_secs(10);
    let backends: Vec<_> = (0..4).map(|_| EtcdBackend::new(config(etcd.members()).ttl(ttl)).unwrap()).collect();
    let registrations = join_all(backends.iter().zip(0..).map(|(backend, number)| register(backend, number))).await;
    let removals = Removals::count(&connect(&etcd), 4).await;
    let start = Instant::now();
    let mut kills = 0;
    while start.elapsed() < time {
        let next = start + Duration::from_secs(2) * (kills + 1);
        if let Some(leader) = etcd.leader() {
            etcd.kill(leader);
            kills += 1;
            sleep(Duration::from_millis(500)).await;
            etcd.restart(leader).await;
        }
        sleep(next.saturating_duration_since(Instant::now()).max(Duration::from_millis(50))).await;
    }
    // Every new leader extends every lease by its whole TTL.
    sleep(ttl + Duration::from_secs(4)).await;
    for registration in &registrations {
        assert!(registration.status().is_registered());
    }
    eventually("all are listed", SOON, async || count(&backends[0]).await == Some(4)).await;
    (timeout(SOON, removals.stop()).await.unwrap(), kills as usize)
}

/// `fault_b18`. A storm of leader changes: 0 removals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_b18_a_storm_of_leader_changes_removes_no_instance() {
    let (removals, kills) = leader_storm(Duration::from_secs(12)).await;
    println!("fault_b18: {removals} removals while the leader was killed {kills} times in 12 s");
    assert!(kills >= 2);
    assert_eq!(removals, 0);
}

/// `fault_b18`, for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute"]
async fn fault_b18_a_minute_of_leader_changes_removes_no_instance() {
    let (removals, kills) = leader_storm(Duration::from_secs(60)).await;
    println!("fault_b18: {removals} removals while the leader was killed {kills} times in 60 s");
    assert!(kills >= 10);
    assert_eq!(removals, 0);
}

/// `fault_b15`. A backend that is closed while etcd is silent keeps trying for at most two TTLs and
/// 10 s. Then its tasks end, and nothing of it is left.
#[tokio::test]
#[ignore = "soak: a quarter of a minute"]
async fn fault_b15_an_unconfirmed_close_leaves_no_task() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::to(etcd.address()).await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let backend = connect_to([proxy.address()]);
    let registrations = join_all((0..5).map(|number| register(&backend, number))).await;
    proxy.set(Fault::BlackHole);
    let error = backend.close().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    drop((backend, registrations));
    // The relays of the proxy are tasks, too.
    drop(proxy);
    let bound = TTL * 2 + Duration::from_secs(12);
    let took = eventually("no tasks", bound, async || tasks.num_alive_tasks() < before).await;
    println!("fault_b15: {error}; its tasks ended {took:?} later");
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// `fault_b10` with 200 registrars: all are back within 5 s (15 s on a loaded machine, because
    /// all of them run in this process), and the busiest second has at most three times the mean.
    /// The tests of the backoff check how the attempts themselves spread, in tenths of that second;
    /// here they would measure the machine.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fault_b10_two_hundred_registrars_come_back_spread_out() {
        let etcd = Etcd::start().await;
        let handles: Vec<EtcdBackend> =
            (0..200).map(|_| EtcdBackend::new(EtcdConfig::new(etcd.members()).ttl(TTL)).unwrap()).collect();
        let registrations: Vec<Registration> =
            join_all(handles.iter().zip(0..).map(|(handle, number)| register(handle, number))).await;
        etcd.kill(0);
        sleep(TTL * 3).await;
        etcd.restart(0).await;
        let start = Instant::now();
        // Each registration gets its lease and is written a moment before its status reports it.
        let all = async || registrations.iter().all(|one| one.status().is_registered());
        eventually("all are back within 5 s, or three times that on a loaded machine", Duration::from_secs(15), all)
            .await;
        let mut times: Vec<_> = registrations.iter().filter_map(|one| since(&one.status())).collect();
        times.sort();
        let back = times[199].duration_since(start);
        let window = Duration::from_secs(1);
        let most =
            times.iter().map(|from| times.iter().filter(|at| **at >= *from && **at < *from + window).count()).max();
        let peak = most.unwrap() as f64;
        let mean = 200.0 / back.max(window).as_secs_f64();
        println!(
            "fault_b10: 200 registrars back {back:?} after etcd answered, {mean:.0} a second on average and {peak:.0} at most"
        );
        assert!(peak <= 3.0 * mean, "a peak of {peak} a second, {mean} on average");
        let set = handles[0].list(&payments()).await.unwrap();
        assert!((0..200).all(|number| set.iter().any(|one| one.id() == instance(number).id())));
    }
}
