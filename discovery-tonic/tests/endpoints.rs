//! An endpoint's life: how often and how many at a time connect, and how a new one warms up.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Backoff, Instance, Metadata};
use discovery_tonic::{EndpointSettings, balance::RoundRobin};
use support::{
    Mortal, Server, builder, eventually, greet, instance, ready, refusing, registry, servers, service, silent,
};
use tokio::time::sleep;

const SOON: Duration = Duration::from_secs(5);

/// Counts what the hook is asked for: attempts to connect.
fn attempts(
    builder: discovery_tonic::Builder,
    settings: EndpointSettings,
) -> (discovery_tonic::Builder, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let builder = builder.endpoint(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        settings.clone()
    });
    (builder, count)
}

/// C10: an address that comes and goes ten times a second costs one attempt per wait, whether it refuses or is silent.
#[tokio::test]
async fn c10_a_flapping_address_is_tried_once_per_wait() {
    let (address, _silent) = silent().await;
    for address in [refusing().await, address] {
        let backend = registry([]);
        let wait = Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
        let timeout = EndpointSettings::default().connect_timeout(Duration::from_millis(300));
        let (builder, count) = attempts(builder(&backend).backoff(wait), timeout);
        let _channel = builder.build().unwrap();
        let flapping = instance(address);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            backend.put(&service(), flapping.clone());
            sleep(Duration::from_millis(50)).await;
            backend.remove(&service(), flapping.id().as_str());
            sleep(Duration::from_millis(50)).await;
        }
        let count = count.load(Ordering::Relaxed);
        println!("C10: {count} attempts in 20 flaps over {:?}", start.elapsed());
        // Full jitter makes the waits half a second on average, and seldom much less.
        assert!((1..=10).contains(&count), "{count}");
    }
}

/// C10, where the address can be reached: the connection outlives the flaps.
#[tokio::test]
async fn c10_a_flapping_server_keeps_its_connection() {
    let server = Server::start("one").await;
    let (backend, flapping) = (registry([]), server.instance());
    let channel = builder(&backend).build().unwrap();
    for _ in 0..20 {
        backend.put(&service(), flapping.clone());
        eventually("it has come", || ready(&channel) == 1).await;
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
    let wait = Backoff::new(Duration::from_secs(30), Duration::from_secs(30)).unwrap();
    let (builder, count) = attempts(builder(&backend).backoff(wait), EndpointSettings::default());
    let _channel = builder.build().unwrap();
    for id in ["first", "second"] {
        backend.put(&service(), instance(address).with_id(id.parse().unwrap()));
        sleep(Duration::from_millis(200)).await;
        backend.remove(&service(), id);
    }
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn so_many_endpoints_connect_at_a_time() {
    let mut peers = Vec::new();
    for _ in 0..12 {
        peers.push(silent().await);
    }
    let backend = registry(peers.iter().map(|peer| peer.0));
    let timeout = EndpointSettings::default().connect_timeout(Duration::from_millis(400));
    let (builder, count) = attempts(builder(&backend).connects(4), timeout);
    let channel = builder.build().unwrap();
    for so_far in [4, 8, 12] {
        sleep(Duration::from_millis(200)).await;
        assert_eq!(count.load(Ordering::Relaxed), so_far);
        sleep(Duration::from_millis(200)).await;
    }
    drop(channel);
}

#[tokio::test]
async fn the_hook_sees_the_instance_as_it_is_registered_now() {
    let mut server = Mortal::start("one");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (backend, seeing) = (registry([]), Arc::clone(&seen));
    let hook = move |instance: &Instance| {
        seeing.lock().unwrap().push(instance.metadata().get("zone").map(ToOwned::to_owned));
        EndpointSettings::default()
    };
    let channel = builder(&backend).endpoint(hook).build().unwrap();
    let one = instance(server.address);
    backend.put(&service(), one.clone());
    eventually("it has come", || ready(&channel) == 1).await;
    let mut metadata = Metadata::default();
    metadata.insert("zone", "b").unwrap();
    backend.put(&service(), one.with_metadata(metadata));
    eventually("it has come", || channel.endpoints()[0].instance.metadata().get("zone").is_some()).await;
    server.kill();
    eventually("it has come", || seen.lock().unwrap().len() >= 2).await;
    assert_eq!(seen.lock().unwrap()[..2], [None, Some("b".to_owned())]);
}

/// C13: a new endpoint's share grows in a straight line, and is never more than 1.2 of the curve.
#[tokio::test]
async fn c13_a_new_endpoint_warms_up() {
    let old = servers(3).await;
    let backend = registry(old.iter().map(|server| server.address));
    let window = Duration::from_secs(3);
    let channel = builder(&backend).slow_start(window).build().unwrap();
    eventually("it has come", || ready(&channel) == 3).await;
    sleep(window).await;
    let new = Server::start("new").await;
    backend.put(&service(), new.instance());
    eventually("it has come", || ready(&channel) == 4).await;
    let start = Instant::now();
    // Of a third of the window each: the share in it, and that of the curve at its middle.
    for third in 0..3u32 {
        let (mut all, mut to_new) = (0.0, 0.0);
        while start.elapsed() < window * (third + 1) / 3 {
            all += 1.0;
            to_new += f64::from(u8::from(greet(&channel, Some(SOON)).await.unwrap() == new.address));
        }
        let weight = f64::from(2 * third + 1) / 6.0;
        let (share, curve) = (to_new / all, weight / (3.0 + weight));
        println!("C13: third {third}: share {share:.3}, curve {curve:.3} of {all} calls");
        // On a busy machine the calls are few, so that chance has its part: four standard deviations.
        let chance = 4.0 * (curve * (1.0 - curve) / all).sqrt();
        assert!(share <= curve * 1.2 + chance && share >= curve * 0.6 - chance, "third {third}: {share} of {curve}");
    }
    let mut calls = BTreeMap::new();
    for _ in 0..2000 {
        *calls.entry(greet(&channel, Some(SOON)).await.unwrap()).or_insert(0) += 1;
    }
    assert!((400..600).contains(&calls[&new.address]), "{calls:?}");
}

/// By turns, a new endpoint is no different without a slow start.
#[tokio::test]
async fn without_a_slow_start_a_new_endpoint_gets_its_share_at_once() {
    let old = servers(3).await;
    let backend = registry(old.iter().map(|server| server.address));
    let channel = builder(&backend).policy(RoundRobin::new()).build().unwrap();
    eventually("it has come", || ready(&channel) == 3).await;
    let new = Server::start("new").await;
    backend.put(&service(), new.instance());
    eventually("it has come", || ready(&channel) == 4).await;
    let mut to_new = 0;
    for _ in 0..400 {
        to_new += u32::from(greet(&channel, Some(SOON)).await.unwrap() == new.address);
    }
    assert!((90..=110).contains(&to_new), "{to_new}");
}
