//! A rolling deployment under load (B10): six servers are replaced in turn, and no call fails.
//!
//! The quick runs are short; the soak runs make at least 20,000 calls each over three rounds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use discovery_core::Backend;
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    BalancedChannel,
    server::{RegisteredServer, ServerHandle, Stage},
};
use greeter::{Greeter, GreeterServer};
use support::{
    Etcd, eventually,
    greeters::{Executed, GreeterProcess, Greeters, serve_child_process, service},
    load::{Load, Outcome, tonic_channel, unary_and_streaming},
};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Server};

const SERVERS: usize = 6;
const SOON: Duration = Duration::from_secs(30);

/// A deployed server.
enum Deployed {
    Here { handle: ServerHandle, task: JoinHandle<()> },
    Process(Box<GreeterProcess>),
}

/// How servers are deployed.
struct Fleet {
    place: Place,
    /// How long a server keeps serving after it has deregistered.
    drain: Duration,
    /// The pause between the end of one server and the next replacement.
    pause: Duration,
    executed: Executed,
    _folder: TempDir,
}

enum Place {
    /// In this process, on the memory backend, which does not cross processes.
    Memory(MemoryBackend),
    /// As separate processes, on etcd.
    Etcd { greeters: Greeters, _etcd: Box<Etcd> },
}

impl Fleet {
    fn memory(drain: Duration, pause: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        let executed = Executed::within(folder.path());
        Self { place: Place::Memory(MemoryBackend::new()), drain, pause, executed, _folder: folder }
    }

    async fn etcd(drain: Duration, pause: Duration) -> Self {
        let folder = TempDir::new().unwrap();
        let etcd = Box::new(Etcd::start().await);
        let executed = Executed::within(folder.path());
        let ttl = Duration::from_secs(5);
        let greeters = Greeters { members: etcd.members(), ttl, drain, executed: Some(executed.path()) };
        Self { place: Place::Etcd { greeters, _etcd: etcd }, drain, pause, executed, _folder: folder }
    }

    fn resolver(&self) -> Arc<dyn Backend> {
        match &self.place {
            Place::Memory(backend) => Arc::new(backend.clone()),
            Place::Etcd { greeters, .. } => Arc::new(greeters.backend()),
        }
    }

    async fn deploy(&self) -> Deployed {
        match &self.place {
            Place::Memory(backend) => {
                let builder = RegisteredServer::builder(backend.clone(), service()).drain_time(self.drain);
                let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let handle = server.handle();
                let greeter = GreeterServer::with_interceptor(Greeter::new("here"), self.executed.interceptor());
                let router = Server::builder().add_service(greeter);
                let task = tokio::spawn(async move {
                    server
                        .serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway))
                        .await
                        .unwrap();
                });
                timeout(SOON, handle.reached(Stage::Serving)).await.unwrap();
                Deployed::Here { handle, task }
            }
            Place::Etcd { greeters, .. } => Deployed::Process(Box::new(greeters.start().await)),
        }
    }

    /// Replaces all servers once; each new one starts before its predecessor stops.
    async fn roll(&self, servers: &mut Vec<Deployed>) {
        for _ in 0..SERVERS {
            servers.push(self.deploy().await);
            servers.remove(0).stop().await;
            sleep(self.pause).await;
        }
    }
}

impl Deployed {
    async fn stop(self) {
        match self {
            Self::Here { handle, task } => {
                handle.stop();
                timeout(SOON, task).await.unwrap().unwrap();
            }
            Self::Process(process) => process.stop().await,
        }
    }
}

/// The child process of the other tests; does nothing unless they start it.
#[tokio::test]
async fn a_greeter_as_a_process() {
    serve_child_process().await;
}

/// Rolls the fleet under the load of two clients, ours and tonic's, and returns the outcome of
/// their calls.
async fn roll(fleet: &Fleet, rounds: usize, per_second: u32) -> (Outcome, Outcome) {
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(fleet.deploy().await);
    }
    let resolver = fleet.resolver();
    let ours = BalancedChannel::new(Arc::clone(&resolver), service()).unwrap();
    eventually("all are known", SOON, async || ours.endpoints().len() == SERVERS).await;
    ours.wait_until_ready(SOON).await.unwrap();
    let tonics = tonic_channel(&resolver, &service()).await;
    let ours = Load::start(0, per_second, unary_and_streaming(ours));
    // A tenth of the load, for comparison only.
    let tonics = Load::start(1 << 32, per_second / 10, unary_and_streaming(tonics));
    for _ in 0..rounds {
        fleet.roll(&mut servers).await;
    }
    sleep(Duration::from_millis(200)).await;
    let outcomes = (ours.stop().await, tonics.stop().await);
    for server in servers {
        server.stop().await;
    }
    outcomes
}

async fn assert_none_failed(what: &str, fleet: &Fleet, rounds: usize, per_second: u32, least: u64) {
    let start = Instant::now();
    let (ours, tonics) = roll(fleet, rounds, per_second).await;
    println!(
        "{what}: {} of {} calls failed in {:?}; of tonic's balance_channel {} of {}",
        ours.failed.len(),
        ours.calls,
        start.elapsed(),
        tonics.failed.len(),
        tonics.calls
    );
    assert!(ours.calls >= least, "{}", ours.calls);
    assert!(ours.failed.is_empty(), "{:?}", &ours.failed[..ours.failed.len().min(5)]);
}

/// Without a drain time, a server ends before its callers have noticed. Calls that no server
/// executed are still sent to another server. The others may have been executed and are not
/// repeated without a retry policy.
async fn assert_none_failed_that_no_server_executed(
    what: &str,
    fleet: &Fleet,
    rounds: usize,
    per_second: u32,
    least: u64,
) {
    let (ours, tonics) = roll(fleet, rounds, per_second).await;
    let executed = fleet.executed.numbers();
    assert!(executed.len() as u64 >= ours.calls - ours.failed.len() as u64, "what succeeded was executed");
    let (ambiguous, lost): (Vec<_>, Vec<_>) = ours.failed.iter().partition(|call| executed.contains(&call.number));
    println!(
        "{what}, without a drain time: {} of {} calls failed that no server executed, {} that one did; of tonic's {} of {}",
        lost.len(),
        ours.calls,
        ambiguous.len(),
        tonics.failed.len(),
        tonics.calls
    );
    assert!(ours.calls >= least, "{}", ours.calls);
    assert!(lost.is_empty(), "{lost:?}");
    assert!(ambiguous.iter().all(|call| call.status.code() == Code::Unavailable), "{ambiguous:?}");
}

const SHORT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_a_deployment_on_memory_fails_no_call() {
    let fleet = Fleet::memory(SHORT, Duration::ZERO);
    assert_none_failed("fault_c8, on memory", &fleet, 1, 100, 250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_a_deployment_on_etcd_fails_no_call() {
    let fleet = Fleet::etcd(SHORT, Duration::ZERO).await;
    assert_none_failed("fault_c8, on etcd", &fleet, 1, 100, 250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unexecuted_call_fails_without_a_drain_time() {
    let memory = Fleet::memory(Duration::ZERO, SHORT);
    let etcd = Fleet::etcd(Duration::ZERO, SHORT).await;
    tokio::join!(
        assert_none_failed_that_no_server_executed("fault_l3, on memory", &memory, 1, 100, 250),
        assert_none_failed_that_no_server_executed("fault_l3, on etcd", &etcd, 1, 100, 250),
    );
}

/// Long enough for 20,000 calls at 500 a second in three rounds of six.
const LONG: Duration = Duration::from_millis(2300);

/// `fault_c8` as in its row: a rolling restart at 100 calls a second until 10,000 calls are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: two minutes"]
async fn fault_c8_none_of_10_000_calls_fails_in_a_rolling_restart() {
    assert_none_failed("fault_c8, on memory", &Fleet::memory(SHORT, LONG), 6, 100, 10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute"]
async fn fault_l3_none_of_20_000_calls_fails_in_a_deployment_on_memory() {
    assert_none_failed("fault_l3, on memory", &Fleet::memory(LONG, Duration::ZERO), 3, 500, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute"]
async fn fault_l3_none_of_20_000_calls_fails_in_a_deployment_on_etcd() {
    assert_none_failed("fault_l3, on etcd", &Fleet::etcd(LONG, Duration::ZERO).await, 3, 500, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute"]
async fn fault_l3_no_unexecuted_call_of_20_000_fails_on_memory_without_a_drain_time() {
    let fleet = Fleet::memory(Duration::ZERO, LONG);
    assert_none_failed_that_no_server_executed("fault_l3, on memory", &fleet, 3, 500, 20_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute"]
async fn fault_l3_no_unexecuted_call_of_20_000_fails_on_etcd_without_a_drain_time() {
    let fleet = Fleet::etcd(Duration::ZERO, LONG).await;
    assert_none_failed_that_no_server_executed("fault_l3, on etcd", &fleet, 3, 500, 20_000).await;
}
