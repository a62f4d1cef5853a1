//! What a channel reports to a metrics recorder.
#![cfg(feature = "metrics")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use discovery_core::Backoff;
#[cfg(feature = "server")]
use discovery_memory::MemoryBackend;
use discovery_tonic::{RetryPolicy, balance::RoundRobin};
use greeter::{GreetManyRequest, GreeterClient};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
#[cfg(feature = "server")]
use support::running::Running;
use support::{Server, answer, builder, eventually, greet, hung, instance, raw_h2, refusing, registry, service};

const SOON: Duration = Duration::from_secs(5);

/// A recorder that keeps the values by name, followed by the labels other than `service`.
#[derive(Clone, Default)]
struct Seen {
    counters: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    /// As bits.
    gauges: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    described: Arc<Mutex<BTreeMap<String, String>>>,
}

/// Counts the values that a histogram was given.
struct Values(Arc<AtomicU64>);

impl HistogramFn for Values {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Recorder for Seen {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        self.describe(&name, unit, &what);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        self.describe(&name, unit, &what);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        self.describe(&name, unit, &what);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(slot(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(slot(&self.gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(slot(&self.counters, key))))
    }
}

fn slot(values: &Mutex<BTreeMap<String, Arc<AtomicU64>>>, key: &Key) -> Arc<AtomicU64> {
    let mut labels = key.labels().map(|label| (label.key(), label.value()));
    assert_eq!(labels.next(), Some(("service", "greeter")));
    let others: String = labels.map(|(key, value)| format!(" {key}={value}")).collect();
    Arc::clone(values.lock().unwrap().entry(format!("{}{others}", key.name())).or_default())
}

impl Seen {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, what: &str) {
        assert!(!what.is_empty());
        let of_seconds = name.as_str().contains("_seconds");
        assert_eq!(unit, Some(if of_seconds { Unit::Seconds } else { Unit::Count }), "{name:?}");
        self.described.lock().unwrap().insert(name.as_str().to_owned(), what.to_owned());
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[&format!("discovery_channel_{name}")].load(Ordering::Relaxed)
    }

    fn level(&self, name: &str) -> f64 {
        f64::from_bits(self.gauges.lock().unwrap()[&format!("discovery_channel_{name}")].load(Ordering::Relaxed))
    }

    /// Checks that what is described is used, and returns how much that is.
    fn described_and_used(&self) -> usize {
        let described = self.described.lock().unwrap();
        let counters = self.counters.lock().unwrap();
        let gauges = self.gauges.lock().unwrap();
        let names = counters.keys().chain(gauges.keys()).map(|key| key.split(' ').next().unwrap());
        assert!(described.keys().eq(names.collect::<BTreeSet<_>>()));
        described.len()
    }

    /// Attempts and failures at an endpoint, those in flight, and whether it is ready.
    fn endpoint(&self, instance: &str) -> [f64; 4] {
        let key = |name: &str| format!("discovery_endpoint_{name} instance_id={instance}");
        let count = |name| self.counters.lock().unwrap().get(&key(name)).map_or(0, |one| one.load(Ordering::Relaxed));
        let level = |name| self.gauges.lock().unwrap().get(&key(name)).map_or(0, |one| one.load(Ordering::Relaxed));
        [
            count("attempts_total") as f64,
            count("failures_total") as f64,
            f64::from_bits(level("in_flight")),
            f64::from_bits(level("ready")),
        ]
    }
}

/// How many attempts were measured: cancelled, failed, and answered.
fn attempts(seen: &Seen) -> [u64; 3] {
    ["cancelled", "failed", "ok"].map(|outcome| seen.count(&format!("attempt_seconds outcome={outcome}")))
}

#[tokio::test]
async fn calls_connections_and_the_set_are_counted() {
    let server = Server::start("one").await;
    let (bad, _requests, _peer) = raw_h2(|_, respond| answer(respond, "14")).await;
    let backend = registry([server.address]);
    let seen = Seen::default();
    let wait = Backoff::new(Duration::from_secs(30), Duration::from_secs(30)).unwrap();
    let builder = builder(&backend).backoff(wait).retry(RetryPolicy::new(2).unwrap());
    let channel = metrics::with_local_recorder(&seen, || builder.build()).unwrap();

    eventually("ready", || seen.level("endpoints_ready") == 1.0).await;
    for _ in 0..3 {
        greet(&channel, Some(SOON)).await.unwrap();
    }
    for (name, wanted) in [
        ("picks_total", 3),
        ("failures_total", 0),
        ("retries_total", 0),
        ("repeats_total", 0),
        ("connects_total", 1),
        ("connect_failures_total", 0),
        ("ejections_total", 0),
    ] {
        assert_eq!(seen.count(name), wanted, "{name}");
    }
    assert_eq!((seen.level("endpoints"), seen.level("stale")), (1.0, 0.0));
    assert_eq!(attempts(&seen), [0, 0, 3]);
    assert!(seen.count("publish_seconds") >= 1);

    backend.interrupt();
    eventually("stale", || seen.level("stale") == 1.0).await;
    backend.restore();
    eventually("no longer stale", || seen.level("stale") == 0.0).await;

    backend.put(&service(), instance(refusing().await));
    eventually("a failed connection attempt", || seen.count("connect_failures_total") == 1).await;
    assert_eq!((seen.level("endpoints"), seen.level("endpoints_ready")), (2.0, 1.0));

    backend.put(&service(), instance(bad));
    eventually("both ready", || seen.level("endpoints_ready") == 2.0).await;
    let before = seen.count("picks_total");
    let mut calls = 0;
    while seen.count("ejections_total") == 0 {
        greet(&channel, Some(SOON)).await.unwrap();
        calls += 1;
    }
    let picks = seen.count("picks_total") - before;
    let repeats = seen.count("repeats_total");
    assert!(repeats > 0);
    assert_eq!(picks, calls + repeats, "each attempt is a pick");
    assert_eq!(attempts(&seen), [0, repeats, seen.count("picks_total") - repeats]);
    eventually("one is ejected", || seen.level("endpoints_ready") == 1.0).await;

    backend.remove(&service(), &server.address.to_string());
    eventually("gone", || seen.level("endpoints") == 2.0).await;
    greet(&channel, Some(Duration::from_millis(300))).await.unwrap_err();
    assert_eq!(seen.count("failures_total"), 1);
}

#[tokio::test]
async fn the_gauges_of_channels_add_up_and_end_with_them() {
    let servers = [Server::start("one").await, Server::start("two").await];
    let small = registry([servers[0].address]);
    let large = registry(servers.iter().map(|server| server.address));
    let seen = Seen::default();
    let open = |backend: &_| metrics::with_local_recorder(&seen, || builder(backend).build()).unwrap();
    let levels = || ["endpoints", "endpoints_ready", "stale"].map(|name| seen.level(name));

    let one = open(&small);
    let other = open(&large);
    eventually("the sum", || levels() == [3.0, 3.0, 0.0]).await;
    large.interrupt();
    eventually("one of them is stale", || levels() == [3.0, 3.0, 1.0]).await;
    small.interrupt();
    eventually("both are stale", || levels() == [3.0, 3.0, 2.0]).await;
    small.restore();
    small.remove(&service(), &servers[0].address.to_string());
    eventually("one channel is gone", || levels() == [2.0, 2.0, 1.0]).await;
    let clone = other.clone();
    drop((one, other));
    assert_eq!(levels(), [2.0, 2.0, 1.0], "a clone keeps the channel");
    drop(clone);
    assert_eq!(levels(), [0.0, 0.0, 0.0]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(levels(), [0.0, 0.0, 0.0], "and stays so");
}

#[tokio::test]
async fn each_metric_is_described() {
    let seen = Seen::default();
    let _channel = metrics::with_local_recorder(&seen, || builder(&registry([])).build()).unwrap();
    assert_eq!(seen.described_and_used(), 13);
}

/// A channel whose runtime has ended fails all calls, and its gauges show it.
#[tokio::test]
async fn a_channel_without_its_runtime_counts_no_endpoint_as_ready() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let seen = Seen::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let channel = {
        let _entered = runtime.enter();
        metrics::with_local_recorder(&seen, || builder(&backend).build()).unwrap()
    };
    eventually("ready", || seen.level("endpoints_ready") == 1.0).await;
    runtime.shutdown_background();
    eventually("none is ready", || seen.level("endpoints_ready") == 0.0).await;
    greet(&channel, Some(SOON)).await.unwrap_err();
    drop(channel);
    assert_eq!((seen.level("endpoints"), seen.level("endpoints_ready"), seen.level("stale")), (0.0, 0.0, 0.0));
}

#[tokio::test]
async fn each_attempt_is_measured_once() {
    let (silent, requests, _peer) = hung().await;
    let seen = Seen::default();
    let backend = registry([silent]);
    let builder = builder(&backend).outlier_detection(None);
    let channel = metrics::with_local_recorder(&seen, || builder.build()).unwrap();
    channel.wait_until_ready(SOON).await.unwrap();
    greet(&channel, Some(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!(attempts(&seen), [0, 1, 0], "its deadline passed");
    tokio::time::timeout(Duration::from_millis(50), greet(&channel, None)).await.unwrap_err();
    assert_eq!(attempts(&seen), [1, 1, 0], "its caller gave it up");
    assert_eq!((requests.load(Ordering::Relaxed), seen.count("picks_total")), (2, 2));
}

/// On a paused clock, so without a socket.
#[tokio::test(start_paused = true)]
async fn the_time_since_contact_counts_while_contact_is_lost() {
    let backend = registry([]);
    let seen = Seen::default();
    let open = || metrics::with_local_recorder(&seen, || builder(&backend).build()).unwrap();
    let channel = open();
    let since = || seen.level("seconds_since_contact");
    let pass = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
    pass(5).await;
    assert_eq!((since(), seen.level("stale")), (0.0, 0.0));

    backend.interrupt();
    pass(30).await;
    assert!((28.0..=30.0).contains(&since()), "{}", since());
    // A channel that is in contact does not reset what others report.
    let other_backend = registry([]);
    let other = metrics::with_local_recorder(&seen, || builder(&other_backend).build()).unwrap();
    pass(30).await;
    assert!((58.0..=60.0).contains(&since()), "{}", since());
    drop(other);
    assert!((58.0..=60.0).contains(&since()), "{}", since());

    backend.restore();
    pass(30).await;
    assert_eq!((since(), seen.level("stale")), (0.0, 0.0));
    backend.interrupt();
    pass(30).await;
    assert!((28.0..=30.0).contains(&since()), "{}", since());
    drop(channel);
    assert_eq!(since(), 0.0);
    pass(30).await;
    assert_eq!(since(), 0.0);
}

#[tokio::test]
async fn endpoints_have_series_on_request() {
    let server = Server::start("one").await;
    let (bad, _requests, _peer) = raw_h2(|_, respond| answer(respond, "13")).await;
    let seen = Seen::default();
    // The pool looks up the series of an endpoint when it is added.
    let _guard = metrics::set_default_local_recorder(&seen);
    let backend = registry([server.address, bad]);
    let silent = builder(&backend).build().unwrap();
    eventually("both are ready", || seen.level("endpoints_ready") == 2.0).await;
    greet(&silent, Some(SOON)).await.ok();
    assert_eq!(seen.described_and_used(), 13, "none without the request");
    drop(silent);

    let channel = builder(&backend).policy(RoundRobin::new()).endpoint_metrics(true).build().unwrap();
    eventually("both are ready", || seen.level("endpoints_ready") == 2.0).await;
    let [one, two] = [server.address, bad].map(|address| address.to_string());
    assert_eq!((seen.endpoint(&one), seen.endpoint(&two)), ([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]));
    assert_eq!(seen.described_and_used(), 17);
    for _ in 0..4 {
        greet(&channel, Some(SOON)).await.ok();
    }
    assert_eq!((seen.endpoint(&one), seen.endpoint(&two)), ([2.0, 0.0, 0.0, 1.0], [2.0, 2.0, 0.0, 1.0]));

    backend.remove(&service(), &two);
    eventually("it left", || seen.endpoint(&two) == [2.0, 2.0, 0.0, 0.0]).await;
    let request = GreetManyRequest { count: 2, interval_ms: 60_000, ..GreetManyRequest::default() };
    let mut stream = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    assert_eq!(seen.endpoint(&one), [3.0, 0.0, 1.0, 1.0]);
    backend.remove(&service(), &one);
    eventually("it drains", || seen.endpoint(&one) == [3.0, 0.0, 1.0, 0.0]).await;
    drop(stream);
    assert_eq!(seen.endpoint(&one), [3.0, 0.0, 0.0, 0.0]);

    backend.put(&service(), server.instance());
    eventually("it is back", || seen.endpoint(&one) == [3.0, 0.0, 0.0, 1.0]).await;
    drop(channel);
    eventually("the channel is gone", || seen.endpoint(&one) == [3.0, 0.0, 0.0, 0.0]).await;
}

#[cfg(feature = "server")]
#[tokio::test]
async fn a_registration_is_up_while_it_is_confirmed() {
    let seen = Seen::default();
    let _guard = metrics::set_default_local_recorder(&seen);
    let backend = MemoryBackend::with_ttl(Duration::from_secs(1));
    let up = || {
        let gauges = seen.gauges.lock().unwrap();
        gauges.get("discovery_registration_up").map(|bits| f64::from_bits(bits.load(Ordering::Relaxed)))
    };
    backend.interrupt();
    let server = Running::start(support::running::builder(&backend)).await;
    assert_eq!(up(), Some(0.0));
    backend.restore();
    eventually("it is registered", || up() == Some(1.0)).await;
    let other = Running::serving(support::running::builder(&backend)).await;
    assert_eq!(up(), Some(2.0));
    backend.interrupt();
    eventually("both are lost", || up() == Some(0.0)).await;
    backend.restore();
    eventually("both are registered again", || up() == Some(2.0)).await;
    server.handle.stop();
    server.ended().await.unwrap();
    assert_eq!(up(), Some(1.0));
    other.task.abort();
    eventually("a server that is dropped counts no more", || up() == Some(0.0)).await;
    assert!(seen.described.lock().unwrap().contains_key("discovery_registration_up"));
}

/// The dashboard asks for nothing that a channel or a server does not report, and leaves nothing
/// out.
#[cfg(feature = "server")]
#[tokio::test]
async fn the_dashboard_shows_every_metric() {
    let seen = Seen::default();
    let _guard = metrics::set_default_local_recorder(&seen);
    let server = Server::start("one").await;
    let channel = builder(&registry([server.address])).endpoint_metrics(true).build().unwrap();
    eventually("it is ready", || seen.level("endpoints_ready") == 1.0).await;
    let _running = Running::serving(support::running::builder(&MemoryBackend::new())).await;
    drop(channel);

    let dashboard = include_str!("../../docs/grafana/discovery.json");
    let words = dashboard.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let asked: BTreeSet<&str> = words
        .filter(|word| word.starts_with("discovery_"))
        .map(|word| word.trim_end_matches("_bucket").trim_end_matches("_count"))
        .collect();
    let described = seen.described.lock().unwrap();
    let reported: BTreeSet<&str> = described.keys().map(String::as_str).collect();
    // As a number of channels, which adds nothing to the seconds.
    let left_out = BTreeSet::from(["discovery_channel_stale"]);
    assert_eq!(&asked | &left_out, reported);
}
