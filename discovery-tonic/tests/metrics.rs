//! What a channel reports to a metrics recorder.
#![cfg(feature = "metrics")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use discovery_core::Backoff;
use discovery_tonic::RetryPolicy;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use support::{Server, answer, builder, eventually, greet, instance, raw_h2, refusing, registry, service};

const SOON: Duration = Duration::from_secs(5);

/// A recorder that keeps the values by name.
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
    let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
    assert_eq!(labels, [("service", "greeter")]);
    Arc::clone(values.lock().unwrap().entry(key.name().to_owned()).or_default())
}

impl Seen {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, what: &str) {
        assert!(!what.is_empty());
        let of_seconds = name.as_str().ends_with("_seconds");
        assert_eq!(unit, Some(if of_seconds { Unit::Seconds } else { Unit::Count }), "{name:?}");
        self.described.lock().unwrap().insert(name.as_str().to_owned(), what.to_owned());
    }

    fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[&format!("discovery_channel_{name}")].load(Ordering::Relaxed)
    }

    fn level(&self, name: &str) -> f64 {
        f64::from_bits(self.gauges.lock().unwrap()[&format!("discovery_channel_{name}")].load(Ordering::Relaxed))
    }
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
    let counters = seen.counters.lock().unwrap();
    let gauges = seen.gauges.lock().unwrap();
    let described = seen.described.lock().unwrap();
    assert!(described.keys().eq(counters.keys().chain(gauges.keys()).collect::<std::collections::BTreeSet<_>>()));
    assert_eq!(described.len(), 11);
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
