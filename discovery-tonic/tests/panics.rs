//! What panics, blocks, or ends contrary to its contract does not affect the rest of the channel
//! (B11, B4).

mod support;

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Error, Instance, Resolver, ServiceName, Snapshot, UpdateStream};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, EndpointSettings};
use futures::{StreamExt, stream};
use support::*;
use tokio::time::sleep;
use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// What a resolver does once, after its first update.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Ends,
    Panics,
    /// Also panics at the next watch.
    PanicsTwice,
}

#[derive(Debug)]
struct Faulty {
    backend: MemoryBackend,
    fault: Fault,
    watches: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Resolver for Faulty {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.backend.list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        let updates = self.backend.watch(service)?;
        let panics = || stream::once(async { panic!("a fault of the resolver") });
        Ok(match (self.watches.fetch_add(1, Ordering::Relaxed), self.fault) {
            (0, Fault::Ends) => UpdateStream::new(updates.take(1)),
            (0, _) => UpdateStream::new(updates.take(1).chain(panics())),
            (1, Fault::PanicsTwice) => panic!("another fault of the resolver"),
            _ => updates,
        })
    }
}

/// Regression: a stream that panicked ended the channel for good, supposedly because "the runtime
/// has ended".
#[tokio::test]
async fn b11_a_resolver_that_panics_or_ends_is_watched_again() {
    LazyLock::force(&OTHERS);
    let message = "resolver failed, watching again";
    for fault in [Fault::Ends, Fault::Panics, Fault::PanicsTwice] {
        let panicked = Arc::new(AtomicBool::new(false));
        let _guard = tracing::subscriber::set_default(PanicsAt { message, panicked: Arc::clone(&panicked) });
        let one = Server::start("one").await;
        let two = Server::start("two").await;
        let backend = registry([one.address]);
        let watches = Arc::new(AtomicUsize::new(0));
        let faulty = Faulty { backend: backend.clone(), fault, watches: Arc::clone(&watches) };
        let channel = BalancedChannel::builder(faulty, service()).build().unwrap();
        eventually("one", || ready(&channel) == 1).await;
        backend.put(&service(), two.instance());
        while ready(&channel) < 2 {
            assert_eq!(greet(&channel, None).await.map(drop).map_err(|status| format!("{status:?}")), Ok(()));
            sleep(Duration::from_millis(5)).await;
        }
        backend.remove(&service(), &one.address.to_string());
        eventually("updates continue", || channel.endpoints().len() == 1).await;
        assert!(watches.load(Ordering::Relaxed) >= 2, "{fault:?}");
        assert!(panicked.load(Ordering::Relaxed), "the fault is logged");
    }
}

/// Regression: the first renewal overflowed.
#[tokio::test]
async fn no_duration_is_too_long() {
    let server = Server::start("one").await;
    let aging = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let endless = discovery_tonic::OutlierDetection::default()
        .silence(Some(Duration::MAX))
        .interval(Duration::MAX)
        .base_ejection_time(Duration::MAX)
        .max_ejection_time(Duration::MAX);
    let backend = registry([server.address]);
    let channel = builder(&backend)
        .endpoint_settings(move |_| aging.clone())
        .drain_timeout(Duration::MAX)
        .hold_on_mass_removal(Some(Duration::MAX))
        .wait_timeout(Duration::MAX)
        .slow_start(Duration::MAX)
        .outlier_detection(endless)
        .build()
        .unwrap();
    eventually("a connection is replaced", || server.accepted() >= 2).await;
    greet(&channel, Some(Duration::from_secs(5))).await.unwrap();
    let other = Server::start("two").await;
    backend.put(&service(), other.instance());
    backend.remove(&service(), &server.address.to_string());
    let only = |address| channel.endpoints().iter().all(|one| one.instance.address().socket_addr() == Some(address));
    eventually("updates continue", || only(other.address) && ready(&channel) == 1).await;
    assert_eq!(greet(&channel, Some(Duration::from_secs(5))).await.unwrap(), other.address);
}

/// How long the removal of the second endpoint takes while something blocks for the first.
async fn removal(
    channel: &BalancedChannel,
    backend: &MemoryBackend,
    blocked: &AtomicBool,
    other: &Instance,
) -> Duration {
    eventually("one is ready", || ready(channel) == 1).await;
    eventually("it blocks", || blocked.load(Ordering::Relaxed)).await;
    let start = Instant::now();
    backend.remove(&service(), other.id().as_str());
    eventually("it is removed", || channel.endpoints().iter().all(|one| one.instance.id() != other.id())).await;
    start.elapsed()
}

const BLOCKED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn b11_a_hook_or_a_connector_that_blocks_delays_no_removal() {
    let server = Server::start("one").await;
    let blocking = refusing().await;
    let block = |blocked: &AtomicBool| {
        blocked.store(true, Ordering::Relaxed);
        std::thread::sleep(BLOCKED);
    };
    let blocked = Arc::new(AtomicBool::new(false));
    let backend = registry([server.address]);
    let blocks = Arc::clone(&blocked);
    let hook = move |instance: &Instance| {
        if instance.address().socket_addr() == Some(blocking) {
            block(&blocks);
        }
        EndpointSettings::default()
    };
    let channel = builder(&backend).endpoint_settings(hook).build().unwrap();
    eventually("one is ready", || ready(&channel) == 1).await;
    backend.put(&service(), instance(blocking));
    let took = removal(&channel, &backend, &blocked, &server.instance()).await;
    assert!(took < BLOCKED / 4, "{took:?}");

    let blocked = Arc::new(AtomicBool::new(false));
    let backend = registry([server.address]);
    let blocks = Arc::clone(&blocked);
    let connector = tower::service_fn(move |uri: http::Uri| {
        let authority = uri.authority().unwrap().to_string();
        if authority == blocking.to_string() {
            block(&blocks);
        }
        async move { tokio::net::TcpStream::connect(authority).await.map(hyper_util::rt::TokioIo::new) }
    });
    let channel = builder(&backend).connector(connector).build().unwrap();
    eventually("one is ready", || ready(&channel) == 1).await;
    backend.put(&service(), instance(blocking));
    let took = removal(&channel, &backend, &blocked, &server.instance()).await;
    assert!(took < BLOCKED / 4, "{took:?}");
}

/// Nothing of the user's may block a runtime with a single thread, except the hook.
#[tokio::test]
async fn a_hook_that_blocks_does_not_block_a_single_threaded_runtime() {
    let server = Server::start("one").await;
    let other = refusing().await;
    let hook = move |instance: &Instance| {
        if instance.address().socket_addr() == Some(other) {
            std::thread::sleep(BLOCKED);
        }
        EndpointSettings::default()
    };
    let channel = builder(&registry([other, server.address])).endpoint_settings(hook).build().unwrap();
    let start = Instant::now();
    greet(&channel, None).await.unwrap();
    assert!(start.elapsed() < BLOCKED / 4, "{:?}", start.elapsed());
}

/// A subscriber that panics at one event, once.
#[derive(Default)]
struct PanicsAt {
    message: &'static str,
    panicked: Arc<AtomicBool>,
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for PanicsAt {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        ["discovery_core", "discovery_tonic"].iter().any(|target| metadata.target().starts_with(target))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0 == self.message && !self.panicked.swap(true, Ordering::Relaxed) {
            panic!("a fault of the subscriber");
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Wherever a panic comes from, it costs the connection of one endpoint, or one update.
#[tokio::test]
async fn b11_a_panic_in_the_control_task_is_contained() {
    LazyLock::force(&OTHERS);
    for message in
        ["endpoint connected", "connection attempt failed", "connection ended", "registry lost", "registry regained"]
    {
        let panicked = Arc::new(AtomicBool::new(false));
        println!("panics at {message}");
        let _guard = tracing::subscriber::set_default(PanicsAt { message, panicked: Arc::clone(&panicked) });
        let mut server = Mortal::start("one");
        let backend = registry([server.address, refusing().await]);
        let channel = channel(&backend);
        channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
        greet(&channel, Some(Duration::from_secs(5))).await.unwrap();
        backend.interrupt();
        eventually("the outage is noticed", || backend.watches(&service()) == 0).await;
        sleep(Duration::from_millis(50)).await;
        backend.restore();
        server.kill();
        // Before it is removed, since its end would then go unnoticed.
        eventually("its end is noticed", || ready(&channel) == 0).await;
        let other = Server::start("two").await;
        backend.put(&service(), other.instance());
        backend.remove(&service(), &server.address.to_string());
        let serves =
            || channel.endpoints().iter().any(|one| one.instance.address().socket_addr() == Some(other.address));
        eventually("updates continue", || panicked.load(Ordering::Relaxed) && serves()).await;
        let start = Instant::now();
        while let Err(status) = greet(&channel, Some(Duration::from_secs(5))).await {
            assert!(start.elapsed() < Duration::from_secs(5), "{message}: {status:?}");
            assert!(!status.message().contains("runtime"), "{message}: {status:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Subscribers that get nothing. While a process has only one, tracing asks the thread that reaches
/// a callsite first whether anybody listens, and takes its "no" for all threads.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(PanicsAt::default())));
