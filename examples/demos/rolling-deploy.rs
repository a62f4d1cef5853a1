//! A fleet that is replaced server after server under load, with a line per second to watch.
//!
//! ```text
//! cargo run --example rolling-deploy --features memory,server
//! cargo run --example rolling-deploy --features memory,server -- --drain 0ms
//! cargo run --example rolling-deploy --features memory,server,etcd -- \
//!     --registry 'etcd://127.0.0.1:2379/deploy?ttl=5s'
//! ```

use std::{collections::BTreeSet, error::Error, sync::Arc, time::Duration};

use clap::Parser;
use discovery::{
    Backend, BalancedChannel, RegisteredServer, ServiceName,
    channel::EndpointState,
    server::{ServerHandle, Stage},
};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout},
};
use tonic::{Status, transport::Server};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    /// Where the servers register.
    #[arg(long, default_value = "memory:")]
    registry: String,
    /// How many servers serve at a time.
    #[arg(long, default_value_t = 6)]
    servers: usize,
    /// How often all of them are replaced.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many calls are made a second, whatever becomes of those before.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How long a server serves on after it left the registry.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// How long after the end of one server the next one is replaced.
    #[arg(long, default_value = "500ms", value_parser = humantime::parse_duration)]
    pause: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Arguments { servers: size, rounds, rate, drain, pause, .. } = arguments;
    let service = "greeter".parse::<ServiceName>()?;
    let backend = discovery::open(&arguments.registry)?;
    let fleet = Fleet { backend: Arc::clone(&backend), service: service.clone(), drain };
    let mut servers = Vec::new();
    for number in 1..=size {
        servers.push(fleet.deploy(number).await?);
    }

    let channel = BalancedChannel::new(backend, service)?;
    channel.wait_until_ready(Duration::from_secs(10)).await?;
    let drain = humantime::format_duration(drain);
    println!("{size} servers, each replaced {rounds} times, with {drain} to drain, under {rate} calls a second\n");
    println!("   time   calls  failed  slowest  endpoints that are ready");
    let (ended, calls) = mpsc::unbounded_channel();
    let load = tokio::spawn(call(GreeterClient::new(channel.clone()), rate, ended));
    let watching = tokio::spawn(watch(channel, calls));

    let start = Instant::now();
    for number in (1..).skip(size).take(rounds * size) {
        servers.push(fleet.deploy(number).await?);
        servers.remove(0).stop().await?;
        sleep(pause).await;
    }
    let took = start.elapsed().as_secs_f64();
    sleep(Duration::from_secs(1)).await;
    // The calls in flight end by themselves, and the watcher with the last of them.
    load.abort();
    let all = watching.await?;
    for server in servers {
        server.stop().await?;
    }
    println!("\n{} servers replaced in {took:.1} s: {} calls, {} failed", rounds * size, all.calls, all.failed);
    if all.failed > 0 { Err("a deployment must not fail calls".into()) } else { Ok(()) }
}

/// Where servers are deployed.
struct Fleet {
    backend: Arc<dyn Backend>,
    service: ServiceName,
    drain: Duration,
}

struct Running {
    handle: ServerHandle,
    task: JoinHandle<Result<()>>,
}

impl Fleet {
    async fn deploy(&self, number: usize) -> Result<Running> {
        let id = format!("greeter-{number}").parse()?;
        let server = RegisteredServer::builder(Arc::clone(&self.backend), self.service.clone())
            .instance(move |instance| instance.with_id(id))
            .drain_time(self.drain)
            .bind("127.0.0.1:0".parse()?)
            .await?;
        let router = Server::builder().add_service(Greeter::new(&number.to_string()).into_service());
        let handle = server.handle();
        let task = tokio::spawn(async move {
            server.serve(|incoming, goaway| router.serve_with_incoming_shutdown(incoming, goaway)).await?;
            Ok(())
        });
        timeout(Duration::from_secs(10), handle.reached(Stage::Serving)).await?;
        Ok(Running { handle, task })
    }
}

impl Running {
    async fn stop(self) -> Result<()> {
        self.handle.stop();
        self.task.await?
    }
}

/// What became of calls.
#[derive(Default)]
struct Tally {
    calls: u64,
    failed: u64,
    slowest: Duration,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// How long a call took, and why it failed.
type Ended = (Duration, Option<Status>);

/// Calls at a steady rate.
async fn call(client: GreeterClient<BalancedChannel>, rate: u32, ended: mpsc::UnboundedSender<Ended>) {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let mut client = client.clone();
        let ended = ended.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let request = GreetRequest { delay_ms: 20, ..GreetRequest::default() };
            let failure = client.greet(request).await.err();
            // Nobody counts any more where the receiver is gone.
            let _ = ended.send((start.elapsed(), failure));
        });
    }
}

/// Prints a line a second; returns what became of all calls once they have ended.
async fn watch(channel: BalancedChannel, mut ended: mpsc::UnboundedReceiver<Ended>) -> Tally {
    let start = Instant::now();
    let mut ticks = interval_at(start + SECOND, SECOND);
    let mut all = Tally::default();
    let mut second = Tally::default();
    loop {
        tokio::select! {
            one = ended.recv() => {
                let Some((took, failure)) = one else {
                    all.add(&second);
                    return all;
                };
                second.add(&Tally { calls: 1, failed: failure.is_some().into(), slowest: took });
                // One error per second is enough.
                if let Some(status) = failure.filter(|_| second.failed == 1) {
                    println!("         {status}");
                }
            }
            _ = ticks.tick() => {
                let Tally { calls, failed, slowest } = second;
                let seconds = start.elapsed().as_secs();
                let slowest = slowest.as_millis();
                println!("{seconds:5} s  {calls:6}  {failed:6}  {slowest:4} ms  {}", ready(&channel));
                all.add(&std::mem::take(&mut second));
            }
        }
    }
}

/// The servers that take calls, the oldest first.
fn ready(channel: &BalancedChannel) -> String {
    let endpoints = channel.endpoints();
    let ready = endpoints.iter().filter(|one| one.state == EndpointState::Ready);
    let numbers: BTreeSet<u32> =
        ready.filter_map(|one| one.instance.id().as_str().split_once('-')?.1.parse().ok()).collect();
    let numbers: Vec<_> = numbers.iter().map(|number| format!("{number:3}")).collect();
    numbers.join(" ")
}

const SECOND: Duration = Duration::from_secs(1);
