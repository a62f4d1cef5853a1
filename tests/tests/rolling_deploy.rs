//! A rolling deployment under load (B10): six servers are replaced one after the other, and no call fails.
//!
//! The quick runs are shorter; `c8_a_long_deployment_…` makes at least 30,000 calls, over three rounds each.

use std::{
    collections::HashSet,
    env,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Backend, InstanceId, Resolver, ServiceName};
use discovery_etcd::{EtcdBackend, EtcdConfig};
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    BalancedChannel,
    server::{RegisteredServer, ServerHandle, Stage},
};
use futures::{StreamExt, future::BoxFuture};
use greeter::{GreetManyRequest, GreetRequest, Greeter, GreeterClient, GreeterServer};
use support::{Etcd, eventually};
use tokio::{
    process::Child,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Server, channel::Change},
};

const SERVERS: usize = 6;
const SOON: Duration = Duration::from_secs(30);

fn service() -> ServiceName {
    "greeter".parse().unwrap()
}

/// The calls that any server began to process, by the number that each carries.
type Processed = Arc<Mutex<HashSet<u64>>>;

/// A server that was deployed.
enum Deployed {
    Here { handle: ServerHandle, task: JoinHandle<()> },
    Process(Child),
}

/// How servers are deployed, and how long they drain.
struct Fleet {
    place: Place,
    drain: Duration,
    processed: Processed,
}

enum Place {
    /// In this process, on the memory backend, which is one process's.
    Memory(MemoryBackend),
    /// As processes, on etcd.
    Etcd(Box<Etcd>),
}

impl Fleet {
    fn resolver(&self) -> Arc<dyn Backend> {
        match &self.place {
            Place::Memory(backend) => Arc::new(backend.clone()),
            Place::Etcd(etcd) => Arc::new(connect(&etcd.members())),
        }
    }

    async fn deploy(&self) -> Deployed {
        match &self.place {
            Place::Memory(backend) => {
                let builder = RegisteredServer::builder(backend.clone(), service()).drain(self.drain);
                let server = builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
                let (handle, processed) = (server.handle(), Arc::clone(&self.processed));
                let note = move |request: Request<()>| {
                    let number = request.metadata().get("number").expect("every call has one").to_str().unwrap();
                    processed.lock().unwrap().insert(number.parse().unwrap());
                    Ok(request)
                };
                let greeter = GreeterServer::with_interceptor(Greeter::new("here"), note);
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
            Place::Etcd(etcd) => {
                let before = self.size().await;
                let child = tokio::process::Command::new(env::current_exe().unwrap())
                    .args(["--exact", "a_server_as_a_process"])
                    .env(MEMBERS, etcd.members().join(","))
                    .env(DRAIN, self.drain.as_millis().to_string())
                    .stdout(Stdio::null())
                    .kill_on_drop(true)
                    .spawn()
                    .unwrap();
                eventually("it is registered", SOON, async || self.size().await > before).await;
                Deployed::Process(child)
            }
        }
    }

    async fn size(&self) -> usize {
        self.resolver().list(&service()).await.unwrap().len()
    }

    /// Replaces all servers once, each new one before its old one.
    async fn roll(&self, servers: &mut Vec<Deployed>) {
        for _ in 0..SERVERS {
            servers.push(self.deploy().await);
            servers.remove(0).stop().await;
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
            Self::Process(mut child) => {
                let id = child.id().unwrap().to_string();
                assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
                assert!(timeout(SOON, child.wait()).await.unwrap().unwrap().success());
            }
        }
    }
}

fn connect(members: &[String]) -> EtcdBackend {
    EtcdBackend::connect(EtcdConfig::new(members.iter().cloned()).with_ttl(Duration::from_secs(5))).unwrap()
}

/// The server that the others start; no test unless they do.
#[tokio::test]
async fn a_server_as_a_process() {
    let (Ok(members), Ok(drain)) = (env::var(MEMBERS), env::var(DRAIN)) else { return };
    let members: Vec<_> = members.split(',').map(str::to_owned).collect();
    let server = RegisteredServer::builder(connect(&members), service())
        .drain(Duration::from_millis(drain.parse().unwrap()))
        .stop_on_signals()
        .bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let router = Server::builder().add_service(Greeter::new("process").into_service());
    server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await.unwrap();
}

/// Calls at a steady rate, whatever becomes of those before: every other one streams.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Outcome>,
}

/// What became of the calls.
#[derive(Default)]
struct Outcome {
    calls: u64,
    failed: Vec<(u64, Status)>,
}

/// One call of a client, from its number to its end.
type Call = Box<dyn Fn(u64) -> BoxFuture<'static, Result<(), Status>> + Send>;

/// The same for every kind of channel, whose bounds would be longer than this.
macro_rules! call {
    ($channel:expr) => {{
        let client = GreeterClient::new($channel);
        Box::new(move |number| {
            let mut client = client.clone();
            let call: BoxFuture<'static, _> = Box::pin(async move {
                if number % 2 == 0 {
                    let request = GreetRequest { delay_ms: 10, ..GreetRequest::default() };
                    client.greet(numbered(request, number)).await?;
                } else {
                    let request = GreetManyRequest { count: 5, interval_ms: 20, ..GreetManyRequest::default() };
                    let mut answers = client.greet_many(numbered(request, number)).await?.into_inner();
                    while answers.message().await?.is_some() {}
                }
                Ok(())
            });
            call
        }) as Call
    }};
}

fn numbered<T>(message: T, number: u64) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("number", MetadataValue::from(number));
    request.set_timeout(Duration::from_secs(10));
    request
}

impl Load {
    fn start(first: u64, per_second: u32, call: Call) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut outcome, mut calls) = (Outcome::default(), JoinSet::new());
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                let number = first + outcome.calls;
                let one = call(number);
                outcome.calls += 1;
                calls.spawn(async move { (number, one.await) });
                while let Some(ended) = calls.try_join_next() {
                    outcome.count(ended.unwrap());
                }
            }
            while let Some(ended) = calls.join_next().await {
                outcome.count(ended.unwrap());
            }
            outcome
        });
        Self { stop, task }
    }

    async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

impl Outcome {
    fn count(&mut self, (number, result): (u64, Result<(), Status>)) {
        self.failed.extend(result.err().map(|status| (number, status)));
    }
}

/// tonic's own balancer, fed by the same resolver as it comes.
async fn tonic_channel(resolver: &dyn Resolver) -> Channel {
    let (channel, changes) = Channel::balance_channel::<InstanceId>(1024);
    let mut updates = resolver.watch(&service()).unwrap();
    let mut set = discovery_core::Snapshot::default();
    let (first, filled) = tokio::sync::oneshot::channel();
    let mut first = Some(first);
    tokio::spawn(async move {
        while let Some(update) = updates.next().await {
            let next = set.apply(&update);
            let change = set.diff(&next);
            for instance in change.upserts() {
                let endpoint = Endpoint::from_shared(format!("http://{}", instance.address())).unwrap();
                if changes.send(Change::Insert(instance.id().clone(), endpoint)).await.is_err() {
                    return;
                }
            }
            for id in change.removes() {
                if changes.send(Change::Remove(id.clone())).await.is_err() {
                    return;
                }
            }
            set = next;
            first.take().map(|first| first.send(()));
        }
    });
    filled.await.unwrap();
    channel
}

/// Rolls the fleet under the load of two clients, ours and tonic's, and returns what became of their calls.
async fn roll(fleet: &Fleet, rounds: usize, per_second: u32) -> (Outcome, Outcome) {
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(fleet.deploy().await);
    }
    let resolver = fleet.resolver();
    let ours = BalancedChannel::new(Arc::clone(&resolver), service()).unwrap();
    eventually("all are known", SOON, async || ours.endpoints().len() == SERVERS).await;
    ours.ready(SOON).await.unwrap();
    let tonics = tonic_channel(&resolver).await;
    let ours = Load::start(0, per_second, call!(ours));
    // A tenth as much, beside: it is only there to compare.
    let tonics = Load::start(1 << 32, per_second / 10, call!(tonics));
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

fn memory(drain: Duration) -> Fleet {
    Fleet { place: Place::Memory(MemoryBackend::new()), drain, processed: Processed::default() }
}

async fn etcd(drain: Duration) -> Fleet {
    Fleet { place: Place::Etcd(Box::new(Etcd::start().await)), drain, processed: Processed::default() }
}

async fn assert_none_failed(what: &str, fleet: &Fleet, rounds: usize, per_second: u32, least: u64) {
    let start = Instant::now();
    let (ours, tonics) = roll(fleet, rounds, per_second).await;
    println!(
        "L3, {what}: {} of {} calls failed in {:?}; of tonic's balance_channel {} of {}",
        ours.failed.len(),
        ours.calls,
        start.elapsed(),
        tonics.failed.len(),
        tonics.calls
    );
    assert!(ours.calls >= least, "{}", ours.calls);
    assert!(ours.failed.is_empty(), "{:?}", &ours.failed[..ours.failed.len().min(5)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_deployment_on_memory_fails_no_call() {
    assert_none_failed("memory", &memory(Duration::from_millis(500)), 1, 300, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_a_deployment_on_etcd_fails_no_call() {
    assert_none_failed("etcd", &etcd(Duration::from_millis(500)).await, 1, 300, 500).await;
}

/// L3 in full: three rounds at up to 500 calls a second, at least 15,000 calls in memory and as many on etcd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: two minutes"]
async fn c8_a_long_deployment_fails_no_call() {
    let drain = Duration::from_millis(2000);
    assert_none_failed("memory", &memory(drain), 3, 500, 15_000).await;
    assert_none_failed("etcd", &etcd(drain).await, 3, 500, 15_000).await;
}

/// Without a drain time callers have not heard of the end of a server when it ends. What no server processed is sent to another one all
/// the same; the rest may have been processed, and is not repeated unless a policy says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_drain_time_no_call_fails_that_no_server_processed() {
    let fleet = memory(Duration::ZERO);
    let (ours, tonics) = roll(&fleet, 3, 300).await;
    let processed = fleet.processed.lock().unwrap();
    let (ambiguous, lost): (Vec<_>, Vec<_>) = ours.failed.iter().partition(|(number, _)| processed.contains(number));
    println!(
        "L3 without a drain time: {} of {} calls failed that no server processed, {} that one did; of tonic's {} of {}",
        lost.len(),
        ours.calls,
        ambiguous.len(),
        tonics.failed.len(),
        tonics.calls
    );
    assert!(lost.is_empty(), "{lost:?}");
    assert!(ambiguous.iter().all(|(_, status)| status.code() == Code::Unavailable), "{ambiguous:?}");
}

const MEMBERS: &str = "ROLLING_DEPLOY_MEMBERS";
const DRAIN: &str = "ROLLING_DEPLOY_DRAIN_MS";
