//! Four servers and a client in one process: one server stops, another one is killed, and the
//! client counts which servers answered.
//!
//! ```text
//! cargo run --example quickstart --features memory,tonic
//! cargo run --example quickstart --features memory,tonic,etcd -- \
//!     --registry 'etcd://127.0.0.1:2379/quickstart?ttl=3s'
//! ```

use std::{
    collections::BTreeMap,
    error::Error,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use discovery::{
    Backend, BalancedChannel, Instance, InstanceId, MemoryBackend, Registration, Registry, ServiceName,
    channel::{EndpointState, ServedBy, Tried},
};
use greeter::{GreetRequest, Greeter, GreeterClient};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};
use tonic::{
    Status,
    transport::server::{Server, TcpIncoming},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    /// Where the servers register: `memory:`, or the URL of an etcd.
    #[arg(long, default_value = "memory:")]
    registry: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let service: ServiceName = "greeter".parse()?;
    let memory = MemoryBackend::with_ttl(Duration::from_secs(3));
    let place = Arc::new(Place { url: Arguments::parse().registry, memory });
    let mut servers = BTreeMap::new();
    for name in ["greeter-1", "greeter-2", "greeter-3", "greeter-4"] {
        servers.insert(name, Process::start(name, &service, &place).await?);
    }

    // All that a client does: a channel over a resolver, and any generated client on it.
    let channel = BalancedChannel::new(place.open()?.backend, service)?;
    channel.wait_until_ready(Duration::from_secs(10)).await?;
    until("all four are connected", || ready(&channel) == 4).await?;

    println!("\nAll four serve.");
    let load = Load::start(&channel);
    sleep(PHASE).await;
    load.finish().await?.report(0)?;

    println!("\ngreeter-2 stops gracefully: it deregisters, keeps serving for a moment, and shuts down.");
    let load = Load::start(&channel);
    sleep(PHASE / 2).await;
    servers.remove("greeter-2").ok_or("greeter-2 runs")?.stop().await?;
    sleep(PHASE / 2).await;
    load.finish().await?.report(0)?;

    println!("\ngreeter-3 is killed, without deregistering.");
    let load = Load::start(&channel);
    sleep(PHASE / 2).await;
    servers.remove("greeter-3").ok_or("greeter-3 runs")?.kill();
    sleep(PHASE / 2).await;
    let calls = load.finish().await?;
    let in_flight = calls.in_flight_at_death_of("greeter-3");
    calls.report(in_flight)?;
    println!("  {in_flight} were in flight at greeter-3; whether it processed them only the caller can find out");

    println!("\nIts lease ends, and two serve on.");
    until("the registry forgets greeter-3", || channel.endpoints().len() == 2).await?;
    let load = Load::start(&channel);
    sleep(PHASE).await;
    load.finish().await?.report(0)?;

    for server in servers.into_values() {
        server.stop().await?;
    }
    Ok(())
}

/// A registry; servers and client open a handle each, as separate processes would.
struct Place {
    url: String,
    memory: MemoryBackend,
}

impl Place {
    fn open(&self) -> Result<Handle> {
        // `discovery::open("memory:")` would be a new registry with each call.
        if self.url == "memory:" {
            let memory = self.memory.another_process();
            return Ok(Handle { backend: Arc::new(memory.clone()), memory: Some(memory) });
        }
        Ok(Handle { backend: discovery::open(&self.url)?, memory: None })
    }
}

#[derive(Clone)]
struct Handle {
    backend: Arc<dyn Backend>,
    /// The same handle, where it is one on memory.
    memory: Option<MemoryBackend>,
}

/// A server with its own runtime, so that it can die like a process: at once, with all its sockets
/// and tasks.
struct Process {
    handle: Handle,
    registration: Registration,
    serving: JoinHandle<Result<()>>,
    shutdown: oneshot::Sender<()>,
    runtime: Mortal,
}

impl Process {
    async fn start(name: &str, service: &ServiceName, place: &Arc<Place>) -> Result<Self> {
        let runtime = Mortal(Some(Builder::new_multi_thread().worker_threads(1).enable_all().build()?));
        let (shutdown, asked) = oneshot::channel();
        let greeter = Greeter::new(name).into_service();
        let listening = async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let serving = Server::builder()
                .add_service(greeter)
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), async { asked.await.unwrap_or_default() });
            Ok((address, tokio::spawn(async { Ok(serving.await?) })))
        };
        let (address, serving) = runtime.run(listening).await?;

        // Registered once it listens, not before.
        let instance = Instance::new(address.try_into()?).with_id(name.parse()?);
        println!("{name} serves at {}", instance.address());
        let service = service.clone();
        let place = Arc::clone(place);
        let registering = async move {
            let handle = place.open()?;
            let registration = handle.backend.register(&service, instance).await?;
            Ok((handle, registration))
        };
        let (handle, registration) = runtime.run(registering).await?;
        Ok(Self { handle, registration, serving, shutdown, runtime })
    }

    async fn stop(self) -> Result<()> {
        self.registration.deregister().await?;
        // Clients notice and start no more calls here; earlier calls are still answered.
        sleep(DRAIN).await;
        // Nobody listens where the server has ended before.
        let _ = self.shutdown.send(());
        self.serving.await?
    }

    fn kill(self) {
        // A killed process neither deregisters nor renews its lease.
        if let Some(memory) = &self.handle.memory {
            memory.crash();
        }
        mem::forget(self.registration);
        drop(self.runtime);
    }
}

/// A runtime that ends with its handle, and waits for nothing.
struct Mortal(Option<Runtime>);

impl Mortal {
    async fn run<T: Send + 'static>(&self, future: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.0.as_ref().ok_or("only the drop takes it")?.spawn(future).await?
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Callers that call without a pause until they are stopped.
struct Load {
    callers: JoinSet<Vec<Call>>,
    finished: Arc<AtomicBool>,
}

/// The calls of a load.
struct Calls(Vec<Call>);

struct Call {
    begun: Instant,
    ended: Instant,
    /// The instances that it was sent to; the one that answered, of a call that was answered.
    sent_to: Vec<InstanceId>,
    failed: Option<Status>,
}

impl Load {
    fn start(channel: &BalancedChannel) -> Self {
        let finished = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(GreeterClient::new(channel.clone()), Arc::clone(&finished)));
        }
        Self { callers, finished }
    }

    async fn finish(self) -> Result<Calls> {
        self.finished.store(true, Ordering::Relaxed);
        Ok(Calls(self.callers.join_all().await.into_iter().flatten().collect()))
    }
}

async fn call(mut client: GreeterClient<BalancedChannel>, finished: Arc<AtomicBool>) -> Vec<Call> {
    let mut calls = Vec::new();
    while !finished.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let request = GreetRequest { name: "world".to_owned(), delay_ms: 10, ..GreetRequest::default() };
        let outcome = client.greet(request).await;
        let ended = Instant::now();
        let (sent_to, failed) = match outcome {
            Ok(response) => {
                let served_by = response.extensions().get::<ServedBy>();
                (served_by.map(|served_by| served_by.instance().id().clone()).into_iter().collect(), None)
            }
            Err(status) => {
                (Tried::from_status(&status).map_or_else(Vec::new, |tried| tried.instances().to_vec()), Some(status))
            }
        };
        calls.push(Call { begun, ended, sent_to, failed });
    }
    calls
}

impl Calls {
    fn failed(&self) -> impl Iterator<Item = &Call> {
        self.0.iter().filter(|call| call.failed.is_some())
    }

    /// How many calls an instance had when the first one of them failed.
    fn in_flight_at_death_of(&self, id: &str) -> usize {
        let Some(death) = self.failed().map(|call| call.ended).min() else { return 0 };
        let in_flight = |call: &&Call| call.begun <= death && death <= call.ended;
        self.0.iter().filter(in_flight).filter(|call| call.sent_to.iter().any(|one| one.as_str() == id)).count()
    }

    /// Prints who answered how often, and fails where more calls failed than may.
    fn report(&self, allowed: usize) -> Result<()> {
        let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
        for call in self.0.iter().filter(|call| call.failed.is_none()) {
            *answered.entry(call.sent_to.first().map_or("somebody", InstanceId::as_str)).or_default() += 1;
        }
        let answered: Vec<String> = answered.iter().map(|(id, count)| format!("{id} {count}")).collect();
        let failed = self.failed().count();
        println!("  {} calls, {failed} failed; answered by {}", self.0.len(), answered.join(", "));
        if let Some(status) = self.failed().find_map(|call| call.failed.as_ref()) {
            println!("  the first failure: {:?}: {}", status.code(), status.message());
        }
        if failed > allowed {
            return Err(format!("{failed} calls failed, where at most {allowed} may").into());
        }
        Ok(())
    }
}

fn ready(channel: &BalancedChannel) -> usize {
    channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count()
}

async fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !holds() {
        if begin.elapsed() > Duration::from_secs(60) {
            return Err(format!("a minute went by before {what}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

const CALLERS: usize = 32;
const PHASE: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_millis(200);
