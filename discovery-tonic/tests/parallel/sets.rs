//! How changes of the set affect calls and connections (B4 to B7).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::*;
use discovery_core::{
    Error, Instance, Metadata, ServiceName, Weight,
    backend::{Entry, Feed, Recovered, Source},
};
use discovery_tonic::{BalancedChannel, EndpointStatus, WaitForReady, balance::RoundRobin};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::{sync::watch, task::JoinSet};

/// Callers that call until they are stopped, and record failures.
struct Load {
    callers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<tonic::Status>>>,
}

impl Load {
    fn start(channel: &BalancedChannel, callers: usize) -> Self {
        let mut load =
            Self { callers: JoinSet::new(), stop: Arc::default(), calls: Arc::default(), failures: Arc::default() };
        for _ in 0..callers {
            let channel = channel.clone();
            let stop = Arc::clone(&load.stop);
            let calls = Arc::clone(&load.calls);
            let failures = Arc::clone(&load.failures);
            load.callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let request = GreetRequest { delay_ms: 1, ..GreetRequest::default() };
                    if let Err(status) = greet_with(&channel, Some(Duration::from_secs(5)), request).await {
                        failures.lock().unwrap().push(status);
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    async fn stop_without_failures(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.callers.join_all().await;
        let failures = self.failures.lock().unwrap();
        println!("{} of {} calls failed", failures.len(), self.calls.load(Ordering::Relaxed));
        assert!(failures.is_empty(), "{} failed, such as {:?}", failures.len(), failures[0]);
    }
}

fn shown(channel: &BalancedChannel) -> usize {
    channel.endpoints().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_scaling_from_four_to_eight_to_two_fails_no_call_and_calls_no_removed_instance() {
    let servers = servers(8).await;
    let backend = registry(servers[..4].iter().map(|server| server.address));
    let channel = channel(&backend);
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let load = Load::start(&channel, 16);
    tokio::time::sleep(Duration::from_millis(300)).await;

    for server in &servers[4..] {
        backend.put(&service(), server.instance());
    }
    eventually("eight endpoints", || servers.iter().all(|server| server.greeter.calls() > 20)).await;

    for server in &servers[2..] {
        backend.remove(&service(), &server.address.to_string());
    }
    eventually("two endpoints", || shown(&channel) == 2).await;
    let removed: u64 = servers[2..].iter().map(|server| server.greeter.calls()).sum();
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Calls that began before the change may arrive a moment later.
    let later: u64 = servers[2..].iter().map(|server| server.greeter.calls()).sum();
    assert!(later - removed <= 16, "{} calls to removed instances", later - removed);
    let settled = later;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let later: u64 = servers[2..].iter().map(|server| server.greeter.calls()).sum();
    assert_eq!(later, settled, "no call started after the change goes to a removed instance");
    load.stop_without_failures().await;
}

#[tokio::test]
async fn b04_no_call_goes_to_an_instance_that_is_no_longer_shown() {
    let servers = servers(3).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = channel(&backend);
    eventually("three endpoints ready", || ready(&channel) == 3).await;
    let gone = servers[0].address;
    // On a busy machine some rounds last longer than the connection of a removed endpoint is kept.
    let mut long = 0;
    for round in 0..50 {
        let start = Instant::now();
        backend.remove(&service(), &gone.to_string());
        while channel.endpoints().iter().any(|one| one.instance.id().as_str() == gone.to_string()) {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            assert_ne!(greet(&channel, None).await.unwrap(), gone, "round {round}");
        }
        long += usize::from(start.elapsed() > Duration::from_millis(900));
        backend.put(&service(), servers[0].instance());
        eventually("back", || ready(&channel) == 3).await;
    }
    assert!(long < 50 && servers[0].accepted() <= 1 + long, "an entry that flaps costs no connection");
}

/// `fault_c7`: a server is removed while streams to it are open and calls continue. No stream
/// breaks, and after 100 ms (250 on a busy machine) no call goes there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_a_removed_server_ends_its_streams_and_gets_no_calls() {
    let servers = servers(2).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = channel(&backend);
    eventually("ready", || ready(&channel) == 2).await;
    let mut streams = JoinSet::new();
    for _ in 0..40 {
        let mut client = GreeterClient::new(channel.clone());
        streams.spawn(async move {
            let request = GreetManyRequest { count: 10, interval_ms: 150, ..GreetManyRequest::default() };
            let mut replies = client.greet_many(request).await?.into_inner();
            let mut messages = 0;
            while replies.message().await?.is_some() {
                messages += 1;
            }
            Ok::<_, tonic::Status>(messages)
        });
    }
    eventually("all streams are open", || servers.iter().map(|server| server.greeter.calls()).sum::<u64>() == 40).await;
    let load = Load::start(&channel, 4);
    let removed = &servers[0];
    eventually("it gets calls", || removed.greeter.calls() > 30).await;
    backend.remove(&service(), &removed.address.to_string());
    tokio::time::sleep(Duration::from_millis(250)).await;
    let before = removed.greeter.calls();
    let all = load.calls.load(Ordering::Relaxed);
    let ended = streams.join_all().await;
    // The streams may have ended by then.
    tokio::time::sleep(Duration::from_millis(250)).await;
    let later = removed.greeter.calls() - before;
    let all = load.calls.load(Ordering::Relaxed) - all;
    let broken = ended.iter().filter(|messages| messages.as_ref().ok() != Some(&10)).count();
    println!("fault_c7: {broken} of {} streams broke; {later} of {all} later calls went there", ended.len());
    assert!(broken == 0 && later == 0 && all > 20, "{ended:?}");
    load.stop_without_failures().await;
}

/// `fault_c5`: if the set is empty, a call that asks to wait ends at its deadline, not later.
#[tokio::test]
async fn fault_c5_on_an_empty_set_a_call_that_waits_ends_at_its_deadline() {
    let channel = channel(&registry([]));
    let mut request = tonic::Request::new(GreetRequest::default());
    request.set_timeout(Duration::from_millis(300));
    request.extensions_mut().insert(WaitForReady);
    let start = Instant::now();
    let status = GreeterClient::new(channel).greet(request).await.unwrap_err();
    println!("fault_c5: ended after {:?}", start.elapsed());
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    assert!((295..750).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn fault_c7_a_stream_of_a_removed_endpoint_may_finish_within_the_drain_limit() {
    let servers = servers(2).await;
    let backend = registry([servers[0].address]);
    let channel = builder(&backend).drain_timeout(Duration::from_secs(2)).build().unwrap();
    let mut client = GreeterClient::new(channel.clone());
    let request = |count| GreetManyRequest { count, interval_ms: 100, ..GreetManyRequest::default() };
    let mut short = client.greet_many(request(10)).await.unwrap().into_inner();
    let mut long = client.greet_many(request(1_000)).await.unwrap().into_inner();
    let start = Instant::now();
    backend.put(&service(), servers[1].instance());
    backend.remove(&service(), &servers[0].address.to_string());

    let mut messages = 0;
    while short.message().await.expect("a stream that is shorter than the limit completes").is_some() {
        messages += 1;
    }
    assert_eq!(messages, 10);
    let status = loop {
        match long.message().await {
            Ok(message) => assert!(message.is_some(), "a longer stream is aborted"),
            Err(status) => break status,
        }
    };
    let cut = start.elapsed();
    println!("aborted after {cut:?}");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(cut > Duration::from_millis(1_900) && cut < Duration::from_secs(4), "{cut:?}");
    assert_eq!(greet(&channel, None).await.unwrap(), servers[1].address);
}

#[tokio::test]
async fn b05_no_update_closes_the_connection_of_an_unchanged_endpoint() {
    let servers = servers(2).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = channel(&backend);
    eventually("two endpoints ready", || ready(&channel) == 2).await;
    for n in 0..100u16 {
        let metadata = Metadata::try_from([("n", n.to_string())]).unwrap();
        let instance = servers[0].instance().with_weight(Weight::new(n + 1).unwrap()).with_metadata(metadata);
        backend.put(&service(), instance);
        if n % 10 == 0 {
            backend.interrupt();
            backend.restore();
        }
        greet(&channel, None).await.unwrap();
    }
    let newest = || channel.endpoints().iter().any(|one| one.instance.metadata().get("n") == Some("99"));
    eventually("the last change", newest).await;
    assert_eq!((servers[0].accepted(), servers[1].accepted()), (1, 1));
}

#[tokio::test]
async fn b07_endpoints_are_connected_and_replaced_without_a_request() {
    let mut servers = servers(2).await;
    let backend = registry([servers[0].address]);
    let channel = channel(&backend);
    eventually("connected", || servers[0].accepted() == 1 && ready(&channel) == 1).await;
    for n in 0..1_000u16 {
        backend.put(&service(), servers[0].instance().with_weight(Weight::new(n).unwrap()));
    }
    backend.put(&service(), servers[1].instance());
    eventually("the second connected", || servers[1].accepted() == 1 && ready(&channel) == 2).await;
    servers.remove(0).stop().await;
    eventually("the loss is noticed", || ready(&channel) == 1).await;
}

#[tokio::test]
async fn b06_a_mass_removal_is_held_while_the_endpoints_answer() {
    let servers = servers(4).await;
    for one_by_one in [false, true] {
        let backend = registry(servers.iter().map(|server| server.address));
        let held = builder(&backend).hold_on_mass_removal(Some(Duration::from_secs(3))).build().unwrap();
        let not_held = builder(&backend).hold_on_mass_removal(None).build().unwrap();
        for channel in [&held, &not_held] {
            eventually("four endpoints ready", || ready(channel) == 4).await;
        }
        if one_by_one {
            // As after an outage: leases are revoked one after the other.
            backend.interrupt();
            eventually("the outage is noticed", || backend.watches(&service()) == 0).await;
            backend.restore();
            eventually("the outage is over", || backend.watches(&service()) == 1).await;
            for server in &servers {
                backend.remove(&service(), &server.address.to_string());
            }
        } else {
            backend.wipe();
        }
        eventually("the channel without hold is empty", || shown(&not_held) == 0).await;
        let status = greet(&not_held, None).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        for _ in 0..100 {
            greet(&held, None).await.expect("held endpoints serve");
        }
        assert!(held.endpoints().iter().all(|one| one.held_until.is_some()));
        let keeps = if one_by_one { 4 } else { 2 };
        for server in &servers[..keeps] {
            backend.put(&service(), server.instance());
        }
        eventually("instances that are not back are released", || shown(&held) == keeps).await;
        let none_held = || held.endpoints().iter().all(|one| one.held_until.is_none());
        eventually("instances that are back are not held", none_held).await;
    }
}

/// While the registry is unreachable the set cannot refill. Once it is back, the hold is extended
/// by the length of the outage.
#[tokio::test]
async fn b06_held_endpoints_serve_while_the_registry_is_unreachable_again() {
    let servers = servers(3).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let hold = Duration::from_secs(1);
    let channel = builder(&backend).hold_on_mass_removal(Some(hold)).build().unwrap();
    eventually("ready", || ready(&channel) == 3).await;
    backend.wipe();
    eventually("held", || channel.endpoints().iter().filter(|one| one.held_until.is_some()).count() == 3).await;
    backend.interrupt();
    let start = Instant::now();
    while start.elapsed() < hold * 2 {
        greet(&channel, None).await.unwrap_or_else(|status| panic!("after {:?}: {status}", start.elapsed()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    backend.put(&service(), servers[0].instance());
    backend.restore();
    eventually("one is back", || channel.endpoints().iter().any(|one| one.held_until.is_none())).await;
    assert_eq!(shown(&channel), 3);
    let took = eventually("the others are released", || shown(&channel) == 1).await;
    assert!(took > hold / 2, "{took:?}");
}

#[tokio::test]
async fn a_held_endpoint_that_closes_is_released() {
    let mut servers = servers(3).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = builder(&backend).hold_on_mass_removal(Some(Duration::from_secs(60))).build().unwrap();
    eventually("ready", || ready(&channel) == 3).await;
    backend.wipe();
    eventually("held", || channel.endpoints().iter().filter(|one| one.held_until.is_some()).count() == 3).await;
    servers.remove(0).stop().await;
    eventually("let go", || shown(&channel) == 2).await;
}

#[tokio::test]
async fn fault_c14_traffic_continues_while_the_registry_is_unreachable() {
    let servers = servers(2).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = channel(&backend);
    eventually("ready", || ready(&channel) == 2).await;
    backend.interrupt();
    for _ in 0..200 {
        greet(&channel, None).await.unwrap();
    }
    backend.restore();
    greet(&channel, None).await.unwrap();
    assert_eq!((servers[0].accepted(), servers[1].accepted()), (1, 1));
}

#[tokio::test]
async fn calls_are_shared_by_weight_and_weight_zero_gets_none() {
    let servers = servers(3).await;
    let backend = registry([]);
    for (server, weight) in servers.iter().zip([100, 300, 0]) {
        backend.put(&service(), server.instance().with_weight(Weight::new(weight).unwrap()));
    }
    let channel = channel(&backend);
    eventually("ready", || ready(&channel) == 3).await;
    let mut shares: HashMap<_, u32> = HashMap::new();
    for _ in 0..4_000 {
        *shares.entry(greet(&channel, None).await.unwrap()).or_default() += 1;
    }
    let share = f64::from(shares[&servers[0].address]) / 4_000.0;
    println!("weight 100 of 400 got {share:.3}");
    assert!((share - 0.25).abs() < 0.03, "{share}");
    assert!(!shares.contains_key(&servers[2].address));

    for server in &servers {
        backend.put(&service(), server.instance().with_weight(Weight::new(0).unwrap()));
    }
    let zero = || channel.endpoints().iter().all(|one| one.instance.weight().value() == 0);
    eventually("all weights zero", zero).await;
    let mut shares: HashMap<_, u32> = HashMap::new();
    for _ in 0..600 {
        *shares.entry(greet(&channel, None).await.unwrap()).or_default() += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|calls| *calls > 120), "{shares:?}");
}

#[tokio::test]
async fn round_robin_uses_endpoints_in_turn() {
    let servers = servers(3).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let channel = builder(&backend).policy(RoundRobin::new()).build().unwrap();
    eventually("ready", || ready(&channel) == 3).await;
    for _ in 0..30 {
        greet(&channel.clone(), None).await.unwrap();
    }
    assert!(servers.iter().all(|server| server.greeter.calls() == 10));
}

#[tokio::test]
async fn a_channel_over_uris_balances_over_them_without_a_registry() {
    let servers = servers(2).await;
    let uris = servers.iter().map(|server| format!("http://{}", server.address));
    let channel = BalancedChannel::from_uris(uris).unwrap().policy(RoundRobin::new()).build().unwrap();
    assert_eq!(channel.service().as_str(), "127.0.0.1");
    eventually("ready", || ready(&channel) == 2).await;
    for _ in 0..10 {
        greet(&channel, None).await.unwrap();
    }
    assert!(servers.iter().all(|server| server.greeter.calls() == 5));
}

/// A registry whose set is written as a whole, in one step.
#[derive(Clone, Debug)]
struct Scripted(watch::Sender<Vec<Instance>>);

impl Scripted {
    fn new(servers: &[Server]) -> Self {
        Self(watch::Sender::new(servers.iter().map(Server::instance).collect()))
    }
}

#[tonic::async_trait]
impl Source for Scripted {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        let mut sets = self.0.subscribe();
        let entries = |set: &Vec<Instance>| set.iter().cloned().map(Entry::Valid).collect::<Vec<_>>();
        let first = entries(&sets.borrow_and_update());
        let mut live = feed.reset(first);
        while sets.changed().await.is_ok() {
            let next = entries(&sets.borrow_and_update());
            live.replace(next);
        }
        Ok(())
    }
}

/// Regression: four instances were replaced by four others in one step, and still received 549 of
/// 1,545 calls, for up to 15 s.
#[tokio::test]
async fn replaced_instances_are_not_held() {
    let old = servers(4).await;
    let new = servers(4).await;
    for in_one_step in [true, false] {
        let registry = Scripted::new(&old);
        let channel = BalancedChannel::builder(Recovered::new(registry.clone()), service()).build().unwrap();
        eventually("four endpoints ready", || ready(&channel) == 4).await;
        let replaced = new.iter().map(Server::instance).collect();
        if in_one_step {
            registry.0.send_replace(replaced);
        } else {
            registry.0.send_replace(Vec::new());
            eventually("they are held", || channel.endpoints().iter().all(|one| one.held_until.is_some())).await;
            greet(&channel, None).await.unwrap();
            registry.0.send_replace(replaced);
        }
        let took = eventually("the old ones are gone", || channel.endpoints().iter().all(|one| is_of(one, &new))).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        let before: Vec<u64> = old.iter().map(|server| server.greeter.calls()).collect();
        for _ in 0..200 {
            greet(&channel, None).await.unwrap();
        }
        assert_eq!(old.iter().map(|server| server.greeter.calls()).collect::<Vec<_>>(), before);
    }
}

fn is_of(one: &EndpointStatus, servers: &[Server]) -> bool {
    servers.iter().any(|server| one.instance.address().socket_addr() == Some(server.address))
}
