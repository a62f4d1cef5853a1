//! The lifecycle of endpoints: how often they connect, how many at a time, and how a new one warms
//! up.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::support::{
    Mortal, Server, builder, eventually, greet, greet_with, instance, ready, refusing, registry, servers, service,
    silent,
};
use discovery_core::{Backoff, Instance, Metadata};
use discovery_tonic::{EndpointSettings, balance::RoundRobin};
use futures::future::BoxFuture;
use greeter::GreetRequest;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinSet, time::sleep};

const SOON: Duration = Duration::from_secs(5);

/// Counts connection attempts, by the calls of the hook.
fn attempts(
    builder: discovery_tonic::ChannelBuilder,
    settings: EndpointSettings,
) -> (discovery_tonic::ChannelBuilder, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let builder = builder.endpoint_settings(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        settings.clone()
    });
    (builder, count)
}

/// `fault_c10`: an address that comes and goes ten times a second is not tried more often than one
/// that stays: once per backoff, whether it refuses or is silent, and however many connections it
/// should have. The backoff has full jitter up to a second, so that 40 flaps in 4 s see about eight
/// attempts, and more than twenty once in a million runs.
#[tokio::test]
async fn fault_c10_a_flapping_address_is_tried_once_per_backoff() {
    let (silent, _silent) = silent().await;
    let flap = async |address, connections| {
        let backend = registry([]);
        let wait = Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
        let timeout = EndpointSettings::default().connect_timeout(Duration::from_millis(300)).unwrap();
        let (builder, count) = attempts(builder(&backend).backoff(wait).connections_per_endpoint(connections), timeout);
        let _channel = builder.build().unwrap();
        let flapping = instance(address);
        for _ in 0..40 {
            backend.put(&service(), flapping.clone());
            sleep(Duration::from_millis(50)).await;
            backend.remove(&service(), flapping.id().as_str());
            sleep(Duration::from_millis(50)).await;
        }
        count.load(Ordering::Relaxed)
    };
    let start = Instant::now();
    let counts = tokio::join!(flap(refusing().await, 1), flap(silent, 1), flap(refusing().await, 3));
    println!(
        "fault_c10: {} attempts if it refuses, {} if it is silent, {} if it refuses three connections, 40 flaps in {:?}",
        counts.0,
        counts.1,
        counts.2,
        start.elapsed()
    );
    for count in [counts.0, counts.1, counts.2] {
        assert!((1..=20).contains(&count), "{count}");
    }
}

/// `fault_c10` for a reachable address: the connection outlives the flaps.
#[tokio::test]
async fn fault_c10_a_flapping_server_keeps_its_connection() {
    let server = Server::start("one").await;
    let backend = registry([]);
    let flapping = server.instance();
    let channel = builder(&backend).build().unwrap();
    for _ in 0..20 {
        backend.put(&service(), flapping.clone());
        eventually("it has arrived", || ready(&channel) == 1).await;
        greet(&channel, Some(SOON)).await.unwrap();
        backend.remove(&service(), flapping.id().as_str());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_new_instance_with_the_address_of_a_failing_one_is_tried_at_once() {
    let address = refusing().await;
    let backend = registry([]);
    // With full jitter, so that hardly any first wait is short.
    let hour = Duration::from_secs(3600);
    let wait = Backoff::new(hour, hour).unwrap();
    let (builder, count) = attempts(builder(&backend).backoff(wait), EndpointSettings::default());
    let _channel = builder.build().unwrap();
    for id in ["first", "second"] {
        backend.put(&service(), instance(address).with_id(id.parse().unwrap()));
        sleep(Duration::from_millis(200)).await;
        backend.remove(&service(), id);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

/// A connector whose attempts wait until the test lets one through. It counts those that wait.
#[derive(Clone)]
struct Gate {
    waiting: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

impl tower::Service<Uri> for Gate {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<TokioIo<TcpStream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let gate = self.clone();
        gate.waiting.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            gate.open.acquire().await.expect("it is never closed").forget();
            gate.waiting.fetch_sub(1, Ordering::Relaxed);
            Err(std::io::ErrorKind::ConnectionRefused.into())
        })
    }
}

#[tokio::test]
async fn a_limited_number_of_endpoints_connects_at_a_time() {
    let gate = Gate { waiting: Arc::default(), open: Arc::new(Semaphore::new(0)) };
    let backend = registry((1..=12).map(|port| ([127, 0, 0, 1], port).into()));
    let wait = Backoff::new(Duration::from_secs(600), Duration::from_secs(600)).unwrap();
    let patient = EndpointSettings::default().connect_timeout(Duration::from_secs(60)).unwrap();
    let (builder, count) =
        attempts(builder(&backend).backoff(wait).max_concurrent_connects(4).connector(gate.clone()), patient);
    let _channel = builder.build().unwrap();
    let waiting = || gate.waiting.load(Ordering::Relaxed);
    let tried = || count.load(Ordering::Relaxed);
    for let_go in 0..=8 {
        eventually("four wait", || waiting() == 4 && tried() == 4 + let_go).await;
        sleep(Duration::from_millis(20)).await;
        assert_eq!((waiting(), tried()), (4, 4 + let_go), "no fifth before one of them has ended");
        gate.open.add_permits(1);
    }
    eventually("three are left", || waiting() == 3).await;
    assert_eq!(tried(), 12);
}

#[tokio::test]
async fn the_hook_sees_the_instance_as_currently_registered() {
    let mut server = Mortal::start("one");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let backend = registry([]);
    let seeing = Arc::clone(&seen);
    let hook = move |instance: &Instance| {
        seeing.lock().unwrap().push(instance.metadata().get("zone").map(ToOwned::to_owned));
        EndpointSettings::default()
    };
    let channel = builder(&backend).endpoint_settings(hook).build().unwrap();
    let one = instance(server.address);
    backend.put(&service(), one.clone());
    eventually("it has arrived", || ready(&channel) == 1).await;
    let mut metadata = Metadata::default();
    metadata.insert("zone", "b").unwrap();
    backend.put(&service(), one.with_metadata(metadata));
    eventually("it has arrived", || channel.endpoints()[0].instance.metadata().get("zone").is_some()).await;
    server.kill();
    eventually("it has arrived", || seen.lock().unwrap().len() >= 2).await;
    assert_eq!(seen.lock().unwrap()[..2], [None, Some("b".to_owned())]);
}

/// `fault_c13`: a new endpoint's share grows linearly, and is never more than 1.2 times the curve:
/// for one caller, and for 4 and 32 callers at once, whose calls in flight matter too.
#[tokio::test]
async fn fault_c13_a_new_endpoint_warms_up() {
    tokio::join!(warm_up(1, 1), warm_up(4, 5), warm_up(32, 20));
}

async fn warm_up(callers: usize, delay_ms: u32) {
    /// For each fifth of the window in which a call began: all calls, those to the new endpoint,
    /// and what the curve wants.
    type Part = (f64, f64, f64);
    const PARTS: usize = 5;
    let old = servers(3).await;
    let backend = registry(old.iter().map(|server| server.address));
    let window = Duration::from_secs(4);
    let channel = builder(&backend).slow_start(window).build().unwrap();
    eventually("it has arrived", || ready(&channel) == 3).await;
    sleep(window).await;
    let new = Server::start("new").await;
    backend.put(&service(), new.instance());
    eventually("it has arrived", || ready(&channel) == 4).await;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let channel = channel.clone();
        let new = new.address;
        tasks.spawn(async move {
            let mut parts = [Part::default(); PARTS];
            while start.elapsed() < window {
                let done = start.elapsed().as_secs_f64() / window.as_secs_f64();
                let weight = done.max(0.1);
                let request = GreetRequest { delay_ms, ..GreetRequest::default() };
                let (served, _) = greet_with(&channel, Some(SOON), request).await.unwrap();
                let part = &mut parts[(done * PARTS as f64) as usize];
                part.0 += 1.0;
                part.1 += f64::from(u8::from(served == new));
                part.2 += weight / (3.0 + weight);
            }
            parts
        });
    }
    let ended = tasks.join_all().await;
    let add = |sum: Part, one: Part| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2);
    let mut parts: Vec<_> = (0..PARTS).map(|n| ended.iter().map(|parts| parts[n]).fold(Part::default(), add)).collect();
    let whole = parts.iter().copied().fold(Part::default(), add);
    parts.push(whole);
    let ratios: Vec<_> = parts.iter().map(|(_, to_new, curve)| to_new / curve).collect();
    println!(
        "fault_c13: {callers} callers, {} of {} calls to the new endpoint: {ratios:.2?} of the curve in each fifth, and in all",
        whole.1, whole.0
    );
    for (ratio, (_, _, curve)) in ratios.into_iter().zip(parts) {
        // On a busy machine there are few calls, so allow for chance: four standard deviations.
        let chance = 4.0 / curve.sqrt();
        assert!(ratio <= 1.2 + chance && ratio >= 0.6 - chance, "{ratio}");
    }
    let before = new.greeter.calls();
    let tasks: JoinSet<_> = (0..callers)
        .map(|_| {
            let channel = channel.clone();
            async move {
                for _ in 0..2000 / callers {
                    greet(&channel, Some(SOON)).await.unwrap();
                }
            }
        })
        .collect();
    tasks.join_all().await;
    let to_new = new.greeter.calls() - before;
    assert!((400..600).contains(&to_new), "{to_new} of about 2000");
}

/// An idle channel does not sweep. The share that was published while an endpoint was new must not
/// stay forever.
#[tokio::test]
async fn an_endpoint_that_warms_up_while_the_channel_is_idle_gets_its_whole_share() {
    let old = servers(3).await;
    let backend = registry(old.iter().map(|server| server.address));
    let window = Duration::from_secs(1);
    let channel = builder(&backend).slow_start(window).build().unwrap();
    eventually("it has arrived", || ready(&channel) == 3).await;
    sleep(window).await;
    let new = Server::start("new").await;
    backend.put(&service(), new.instance());
    eventually("it has arrived", || ready(&channel) == 4).await;
    sleep(window * 2).await;
    for _ in 0..2000 {
        greet(&channel, Some(SOON)).await.unwrap();
    }
    let to_new = new.greeter.calls();
    assert!((400..600).contains(&to_new), "{to_new} of 2000");
}

/// Without a slow start, round robin treats a new endpoint like any other.
#[tokio::test]
async fn without_a_slow_start_a_new_endpoint_gets_its_share_at_once() {
    let old = servers(3).await;
    let backend = registry(old.iter().map(|server| server.address));
    let channel = builder(&backend).policy(RoundRobin::new()).build().unwrap();
    eventually("it has arrived", || ready(&channel) == 3).await;
    let new = Server::start("new").await;
    backend.put(&service(), new.instance());
    eventually("it has arrived", || ready(&channel) == 4).await;
    let mut to_new = 0;
    for _ in 0..400 {
        to_new += u32::from(greet(&channel, Some(SOON)).await.unwrap() == new.address);
    }
    assert!((90..=110).contains(&to_new), "{to_new}");
}
