//! Outages of etcd under load: calls go on, and registrations come back without any restart (R2,
//! B6).
//!
//! Four greeters, each registered by its own backend handle, as four processes would be. Two
//! clients call them: one with the default hold for mass removals and one without, whose failures
//! are only printed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use discovery::{Instance, Registration, Registry, ServiceName};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use discovery_tonic::BalancedChannel;
use greeter::{GreetRequest, Greeter, GreeterClient};
use support::{Etcd, eventually};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;

const TTL: Duration = Duration::from_secs(3);

struct Fleet {
    etcd: Etcd,
    service: ServiceName,
    registrations: Vec<Registration>,
    _servers: JoinSet<()>,
    held: Calls,
    not_held: Calls,
}

/// Callers that go on until they are stopped.
struct Calls {
    channel: BalancedChannel,
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl Fleet {
    async fn start() -> Self {
        let etcd = Etcd::start().await;
        let service: ServiceName = "greeter".parse().unwrap();
        let mut servers = JoinSet::new();
        let mut registrations = Vec::new();
        for n in 0..4 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let instance = Instance::new(listener.local_addr().unwrap().try_into().unwrap());
            let greeter = Greeter::new(&n.to_string()).into_service();
            servers.spawn(async move {
                let incoming = TcpListenerStream::new(listener);
                tonic::transport::Server::builder().add_service(greeter).serve_with_incoming(incoming).await.unwrap();
            });
            registrations.push(backend(&etcd).register(&service, instance).await.unwrap());
        }
        let held = BalancedChannel::new(backend(&etcd), service.clone()).unwrap();
        let not_held =
            BalancedChannel::builder(backend(&etcd), service.clone()).hold_on_mass_removal(None).build().unwrap();
        let held = Calls::start(held).await;
        let not_held = Calls::start(not_held).await;
        let fleet = Self { etcd, service, registrations, _servers: servers, held, not_held };
        sleep(Duration::from_millis(500)).await;
        fleet
    }

    /// Waits until everything is as before the outage, then stops.
    async fn settle(self, what: &str) {
        let took = eventually("all four are registered again", Duration::from_secs(20), async || {
            let all = self.registrations.iter().all(|registration| registration.status().is_registered());
            all && self.etcd.raw().await.keys().await.len() == 4
        });
        let took = took.await;
        for calls in [&self.held, &self.not_held] {
            let whole = async || {
                let endpoints = calls.channel.endpoints();
                endpoints.len() == 4 && endpoints.iter().all(|one| one.held_until.is_none())
            };
            eventually("both clients have all four", Duration::from_secs(20), whole).await;
        }
        sleep(Duration::from_millis(500)).await;
        let (held, of_held) = self.held.stop().await;
        let (not_held, of_not_held) = self.not_held.stop().await;
        println!(
            "{what}: {held} of {of_held} calls failed, without hold {not_held} of {of_not_held}; registered again after {took:?}"
        );
        assert_eq!(held, 0, "{what}: calls failed");
        for registration in self.registrations {
            assert_eq!(registration.service(), &self.service);
            registration.deregister().await.unwrap();
        }
        assert!(self.etcd.raw().await.keys().await.is_empty());
    }
}

impl Calls {
    async fn start(channel: BalancedChannel) -> Self {
        eventually("four endpoints", Duration::from_secs(10), async || channel.endpoints().len() == 4).await;
        channel.wait_until_ready(Duration::from_secs(10)).await.unwrap();
        let stop = Arc::<AtomicBool>::default();
        let calls = Arc::<AtomicUsize>::default();
        let failures = Arc::default();
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let mut client = GreeterClient::new(channel.clone());
            let stop = Arc::clone(&stop);
            let calls = Arc::clone(&calls);
            let failures = Arc::<AtomicUsize>::clone(&failures);
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    calls.fetch_add(1, Ordering::Relaxed);
                    if client.greet(GreetRequest::default()).await.is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                    sleep(Duration::from_millis(2)).await;
                }
            });
        }
        Self { channel, callers, stop, calls, failures }
    }

    /// Stops the callers. Returns how many calls failed and how many were made.
    async fn stop(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        (self.failures.load(Ordering::Relaxed), self.calls.load(Ordering::Relaxed))
    }
}

fn backend(etcd: &Etcd) -> EtcdBackend {
    EtcdBackend::new(EtcdConfig::new(etcd.members()).ttl(TTL)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_and_restarted() {
    let fleet = Fleet::start().await;
    fleet.etcd.kill(0);
    sleep(Duration::from_millis(300)).await;
    fleet.etcd.restart(0).await;
    fleet.settle("killed and restarted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_stopped_for_longer_than_the_ttl() {
    let fleet = Fleet::start().await;
    fleet.etcd.stop(0);
    sleep(TTL * 2).await;
    fleet.etcd.restart(0).await;
    fleet.settle("stopped for two TTLs").await;
}

/// `fault_l5`: all leases have expired when etcd wakes. If the registrations heal at the same
/// moment, nothing fails without the hold either, so that count is only printed. The channel's own
/// tests show that a mass removal fails calls without the hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_l5_etcd_frozen_for_longer_than_the_ttl_and_woken() {
    let fleet = Fleet::start().await;
    fleet.etcd.pause(0);
    sleep(TTL * 2).await;
    fleet.etcd.resume(0);
    // The expired leases are removed within half a second, after which no entry may be left.
    sleep(Duration::from_secs(1)).await;
    fleet.settle("fault_l5, frozen for two TTLs and woken").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_with_its_data_wiped() {
    let fleet = Fleet::start().await;
    fleet.etcd.wipe().await;
    sleep(Duration::from_millis(500)).await;
    fleet.settle("data wiped").await;
}
