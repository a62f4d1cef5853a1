//! `roll <instances> <changes> <address>...`: rolls this many instances three times, by this many
//! changes each, while calls go to the servers at the addresses, which stay. Prints the cost of a
//! change and its effect on picks.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use benches::{Failure, caller::Caller, clients, copies, cpu, load::steady};
use discovery_core::{Instance, Registration, Registry, Resolver, ServiceName};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, EndpointSettings, EndpointState};
use futures::StreamExt;
use http::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    runtime::Handle,
    sync::oneshot,
    time::{sleep, timeout},
};
use tonic::body::Body;
use tower::{Service, service_fn};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [instances, changes, addresses @ ..] = &arguments[..] else {
        return Err("roll <instances> <changes> <address>...".into());
    };
    let (instances, changes): (usize, u32) = (instances.parse()?, changes.parse()?);
    let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    let set: Vec<_> = (0..instances).map(|n| instance(n).map(Arc::new)).collect::<Result<_, _>>()?;
    println!("us per copy {:.3}", copies::copy(&set));
    println!("us per diff {:.3}", copies::comparison(&set));

    let backend = MemoryBackend::new();
    let service = clients::service();
    let mut stay = Vec::new();
    for address in &addresses {
        stay.push(backend.register(&service, Instance::new((*address).try_into()?)).await?);
    }
    let mut fleet =
        Fleet { backend: backend.another_process(), service: service.clone(), registered: VecDeque::new(), next: 0 };
    for _ in 0..instances {
        fleet.add().await?;
    }
    let (watch, mut fleet) = watched(&backend, &service, fleet, changes).await?;
    let channel = channel(backend.clone(), service, addresses.clone())?;
    timeout(Duration::from_secs(60), async {
        while ready(&channel) < addresses.len() || channel.endpoints().len() < addresses.len() + instances {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await?;

    let picks = Arc::<Mutex<Vec<Pick>>>::default();
    let caller = Caller::new(Timed { channel: channel.clone(), picks: Arc::clone(&picks) }, None);
    let mut idle = Load::default();
    let mut roll = Load::default();
    let mut registry = Duration::ZERO;
    idle.run(&caller, &picks, sleep(IDLE)).await;
    for _ in 0..ROUNDS {
        let seen = channel.clone();
        let rolled = apart(async move {
            fleet.roll(changes).await?;
            fleet.is_seen(&seen).await.map(|()| fleet)
        });
        let (own, rolled) = roll.run(&caller, &picks, rolled).await?;
        registry += own;
        fleet = rolled;
        idle.run(&caller, &picks, sleep(IDLE)).await;
    }

    let alone = idle.cpu.as_secs_f64() / idle.took.as_secs_f64();
    let cost = roll.cpu.as_secs_f64() - registry.as_secs_f64() - alone * roll.took.as_secs_f64();
    let changes = f64::from(changes * ROUNDS);
    println!("changes {changes}");
    println!("failed {}", idle.failed + roll.failed);
    println!("calls {}", idle.calls + roll.calls);
    println!("seconds {:.3}", roll.took.as_secs_f64());
    println!("cores of the load alone {alone:.4}");
    let watch = watch.as_secs_f64() * 1e6 / changes;
    println!("us per change {:.3}", cost * 1e6 / changes);
    println!("us per change of the watch {watch:.3}");
    println!("us per change of the channel {:.3}", cost * 1e6 / changes - watch);
    println!("us per change in the registry {:.3}", registry.as_secs_f64() * 1e6 / changes);
    for (name, load) in [("idle", &mut idle), ("roll", &mut roll)] {
        println!("picks {name} {}", load.picks.len());
        for (clock, of) in [("cpu", (|pick| pick.cpu) as fn(&Pick) -> Duration), ("wall", |pick| pick.wall)] {
            for (quantile, of_1000) in [("p50", 500), ("p99.9", 999)] {
                load.picks.sort_by_key(of);
                let pick = load.picks.get(load.picks.len() * of_1000 / 1000).ok_or("no picks")?;
                println!("ns {clock} {quantile} {name} {}", of(pick).as_nanos());
            }
        }
    }
    Ok(())
}

/// Runs work on its own thread and returns the processor time that it took.
async fn apart<R: Send + 'static>(
    work: impl Future<Output = Result<R, Failure>> + Send + 'static,
) -> Result<(Duration, R), Failure> {
    let runtime = Handle::current();
    let (sender, done) = oneshot::channel();
    thread::spawn(move || {
        let result = runtime.block_on(work);
        // The receiver is gone only if the load was dropped.
        let _ = sender.send(result.map(|result| (cpu::thread(), result)));
    });
    done.await?
}

/// Measures what the rolls cost the watch of the registry, with a consumer that does nothing.
async fn watched(
    backend: &MemoryBackend,
    service: &ServiceName,
    mut fleet: Fleet,
    changes: u32,
) -> Result<(Duration, Fleet), Failure> {
    let mut updates = backend.watch(service)?;
    let following = tokio::spawn(async move { while updates.next().await.is_some() {} });
    sleep(SETTLED).await;
    let before = cpu::process();
    let roll = async move {
        for _ in 0..ROUNDS {
            fleet.roll(changes).await?;
        }
        Ok(fleet)
    };
    let (own, fleet) = apart(roll).await?;
    sleep(SETTLED).await;
    let cost = cpu::process() - before - own;
    following.abort();
    Ok((cost, fleet))
}

/// Returns a channel that connects to these addresses and keeps connecting to all others forever.
fn channel(
    backend: MemoryBackend,
    service: ServiceName,
    addresses: Vec<SocketAddr>,
) -> Result<BalancedChannel, Failure> {
    let connector = service_fn(move |uri: Uri| {
        let address: Option<SocketAddr> = uri.authority().and_then(|authority| authority.as_str().parse().ok());
        let address = address.filter(|address| addresses.contains(address));
        async move {
            match address {
                Some(address) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
                None => std::future::pending().await,
            }
        }
    });
    let settings = EndpointSettings::default().connect_timeout(Duration::from_secs(3600))?;
    Ok(BalancedChannel::builder(backend, service)
        .connector(connector)
        .endpoint_settings(move |_| settings.clone())
        .build()?)
}

fn ready(channel: &BalancedChannel) -> usize {
    channel.endpoints().iter().filter(|one| one.state == EndpointState::Ready).count()
}

/// The instances that are rolled.
struct Fleet {
    backend: MemoryBackend,
    service: ServiceName,
    registered: VecDeque<Registration>,
    next: usize,
}

impl Fleet {
    async fn add(&mut self) -> Result<(), Failure> {
        self.registered.push_back(self.backend.register(&self.service, instance(self.next)?).await?);
        self.next += 1;
        Ok(())
    }

    /// Makes this many changes by removing the oldest instance and adding a new one.
    async fn roll(&mut self, changes: u32) -> Result<(), Failure> {
        for _ in 0..changes / 2 {
            let oldest = self.registered.pop_front().ok_or("nobody is registered")?;
            oldest.deregister().await?;
            self.add().await?;
        }
        Ok(())
    }

    /// Waits until a channel has seen all changes.
    async fn is_seen(&self, channel: &BalancedChannel) -> Result<(), Failure> {
        let set = self.backend.list(&self.service).await?;
        let start = Instant::now();
        loop {
            let seen = channel.endpoints();
            if seen.len() == set.len() && seen.iter().zip(&set).all(|(one, other)| one.instance == *other) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(120) {
                return Err("the channel did not see the end of the roll".into());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Sorts after loopback, so that the real servers connect first.
fn instance(n: usize) -> Result<Instance, Failure> {
    let address = SocketAddr::from((Ipv4Addr::from_bits(0xac10_0000 + u32::try_from(n)?), 50051));
    Ok(Instance::new(address.try_into()?))
}

/// The totals of several periods of load.
#[derive(Default)]
struct Load {
    took: Duration,
    cpu: Duration,
    calls: usize,
    failed: usize,
    picks: Vec<Pick>,
}

impl Load {
    /// Adds the calls of another period, which ends with `course`.
    async fn run<R>(&mut self, caller: &Caller<Timed>, picks: &Mutex<Vec<Pick>>, course: impl Future<Output = R>) -> R {
        picks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let start = Instant::now();
        let cpu = cpu::process();
        let (ended, result) = steady(caller, RATE, Duration::default, course).await;
        self.took += start.elapsed();
        self.cpu += cpu::process() - cpu;
        self.calls += ended.len();
        self.failed += ended.iter().filter(|one| one.failed()).count();
        self.picks.append(&mut picks.lock().unwrap_or_else(PoisonError::into_inner));
        result
    }
}

/// How long a call took until its request was handed over.
#[derive(Clone, Copy)]
struct Pick {
    cpu: Duration,
    wall: Duration,
}

/// The channel with a clock around its picks.
#[derive(Clone)]
struct Timed {
    channel: BalancedChannel,
    picks: Arc<Mutex<Vec<Pick>>>,
}

impl Service<Request<Body>> for Timed {
    type Response = <BalancedChannel as Service<Request<Body>>>::Response;
    type Error = <BalancedChannel as Service<Request<Body>>>::Error;
    type Future = <BalancedChannel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let cpu = cpu::thread();
        let wall = Instant::now();
        let answer = self.channel.call(request);
        let pick = Pick { wall: wall.elapsed(), cpu: cpu::thread() - cpu };
        self.picks.lock().unwrap_or_else(PoisonError::into_inner).push(pick);
        answer
    }
}

/// Calls a second.
const RATE: u32 = 2_000;
const IDLE: Duration = Duration::from_secs(4);
/// By then all changes have been followed.
const SETTLED: Duration = Duration::from_millis(500);
/// Periods without and with the roll take turns.
const ROUNDS: u32 = 3;
