//! Endpoints that refuse, stay silent or hang: what they cost callers (B1, B8; figures L1 and L2).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::turn;
use crate::support::*;
use discovery_core::Weight;
use discovery_memory::MemoryBackend;
use discovery_tonic::{
    AttemptOutcome, AttemptReport, BalancedChannel, EndpointStatus, OutlierDetection, balance::RoundRobin,
};
use tokio::{task::JoinSet, time::sleep};

/// Calls that take longer are slow.
const SLOW: Duration = Duration::from_secs(1);

#[tokio::test]
async fn fault_l1_one_of_four_refuses_and_no_call_fails() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let refusing = refusing().await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([refusing])));
    for _ in 0..2_000 {
        let served = greet(&channel, None).await.expect("no call fails");
        assert_ne!(served, refusing);
    }
    for server in &servers {
        assert!(server.greeter.calls() > 500, "{} of 2000 calls", server.greeter.calls());
    }
}

#[tokio::test]
async fn fault_c3_one_of_four_is_silent_and_no_call_is_slow() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let (silent, _tasks) = silent().await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([silent])));
    for _ in 0..500 {
        let start = Instant::now();
        greet(&channel, None).await.expect("no call fails");
        assert!(start.elapsed() < SLOW, "a call took {:?}", start.elapsed());
        sleep(Duration::from_millis(3)).await;
    }
}

#[tokio::test]
async fn fault_c3_one_of_four_hangs_and_at_most_five_calls_are_slow_then_only_probes() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let (hung, requests, _tasks) = hung().await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([hung])));
    // A slow call is one that ended at its deadline.
    let slow = async || usize::from(greet(&channel, Some(Duration::from_millis(500))).await.is_err());
    let is_out = || channel.endpoints().iter().any(|endpoint| endpoint.ejected_until.is_some());
    let mut before = 0;
    let mut after = 0;
    let mut was_out = false;
    for _ in 0..2_000 {
        // Once it has been ejected, slow calls are probes: `is_out` is false during a probe.
        was_out |= is_out();
        *if was_out { &mut after } else { &mut before } += slow().await;
    }
    let reached = requests.load(Ordering::Relaxed);
    println!(
        "of 2000 sequential calls {before} were slow until it was ejected, then {after} as probes; {reached} requests reached it"
    );
    assert!(before <= 5 && before + after <= reached, "{before} and {after} slow calls, {reached} requests");

    // While it is ejected it is probed, less and less often.
    let before = requests.load(Ordering::Relaxed);
    let start = Instant::now();
    let mut lost = 0;
    while start.elapsed() < Duration::from_secs(8) {
        lost += slow().await;
        sleep(Duration::from_millis(1)).await;
    }
    let probes = requests.load(Ordering::Relaxed) - before;
    println!("then {probes} probes in 8 s, {lost} slow calls");
    assert!(probes <= 4 && lost <= probes, "{probes} probes, {lost} slow calls");
}

#[tokio::test]
async fn fault_l2_fifty_callers_without_deadlines_lose_at_most_five_calls_to_a_hung_endpoint() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let (hung, requests, _tasks) = hung().await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([hung])));
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let channel = channel.clone();
        callers.spawn(async move {
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                let call = tokio::time::timeout(Duration::from_secs(1), greet(&channel, None));
                if call.await.is_err() {
                    return;
                }
            }
        });
    }
    callers.join_all().await;
    let stuck = requests.load(Ordering::Relaxed);
    println!("{stuck} requests of 50 callers reached the hung peer in 3 s");
    assert!(stuck <= 6, "{stuck} requests, of which at most two are probes");
}

/// Callers that drop their calls after 100 ms report no failure, but a hung endpoint is ejected as
/// soon.
#[tokio::test]
async fn a_hung_endpoint_is_ejected_as_soon_if_callers_give_up() {
    let _turn = turn().await;
    for callers in [1, 50] {
        let servers = servers(3).await;
        let (hung, requests, _tasks) = hung().await;
        // Calls that a busy machine did not let the others answer in time.
        let elsewhere = Arc::new(AtomicUsize::new(0));
        let late = Arc::clone(&elsewhere);
        let count_late = move |report: &AttemptReport<'_>| {
            let is_hung = report.instance.address().socket_addr() == Some(hung);
            late.fetch_add(usize::from(!is_hung && report.outcome == AttemptOutcome::Cancelled), Ordering::Relaxed);
        };
        let backend = registry(servers.iter().map(|server| server.address).chain([hung]));
        let channel = builder(&backend).on_attempt(count_late).build().unwrap();
        let mut calling = JoinSet::new();
        for _ in 0..callers {
            let channel = channel.clone();
            calling.spawn(async move {
                let end = Instant::now() + Duration::from_secs(3);
                let mut dropped = 0;
                while Instant::now() < end {
                    let call = tokio::time::timeout(Duration::from_millis(100), greet(&channel, None));
                    dropped += usize::from(call.await.is_err());
                }
                dropped
            });
        }
        let dropped: usize = calling.join_all().await.into_iter().sum();
        let reached = requests.load(Ordering::Relaxed);
        let elsewhere = elsewhere.load(Ordering::Relaxed);
        println!(
            "{callers} callers dropped {dropped} calls in 3 s, {elsewhere} of them elsewhere; {reached} requests reached the hung peer"
        );
        assert!(reached <= 7, "{reached} requests, of which at most two are probes");
        assert!(dropped <= 7 + elsewhere, "{dropped}");
    }
}

#[tokio::test]
async fn b08_a_hung_endpoint_that_answers_again_is_used_again() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let (hung, _, tasks) = hung().await;
    let backend = registry(servers.iter().map(|server| server.address).chain([hung]));
    let channel = channel(&backend);
    let is_out =
        |channel: &BalancedChannel| channel.endpoints().iter().any(|endpoint| endpoint.ejected_until.is_some());
    while !is_out(&channel) {
        let _ = greet(&channel, Some(Duration::from_millis(50))).await;
    }
    // The process is replaced by a working one at the same address.
    drop(tasks);
    let listener = loop {
        match tokio::net::TcpListener::bind(hung).await {
            Ok(listener) => break listener,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    let greeter = greeter::Greeter::new("again");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(greeter.clone().into_service());
    let server = tokio::spawn(server.serve_with_incoming(incoming));
    let start = Instant::now();
    while greeter.calls() < 10 {
        greet(&channel, Some(Duration::from_secs(1))).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "it is not used again");
    }
    println!("used again after {:?}", start.elapsed());
    server.abort();
}

/// Requests at the only endpoint may be meant to wait: it keeps its calls and gets the next ones,
/// however short their deadlines are.
#[tokio::test]
async fn the_only_endpoint_is_not_suspected() {
    let _turn = turn().await;
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    let slow = || greeter::GreetRequest { delay_ms: 60_000, ..Default::default() };
    let mut waiting = JoinSet::new();
    for _ in 0..10 {
        let channel = channel.clone();
        waiting.spawn(async move { greet_with(&channel, None, slow()).await.map(drop) });
    }
    eventually("all wait", || server.greeter.calls() == 10).await;
    greet_with(&channel, Some(Duration::from_millis(100)), slow()).await.expect_err("it is late");
    for _ in 0..20 {
        greet(&channel, Some(SLOW)).await.unwrap();
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn b03_all_endpoints_refuse_and_calls_fail_at_once_with_the_reason() {
    let _turn = turn().await;
    let a = refusing().await;
    let b = refusing().await;
    let channel = channel(&registry([a, b]));
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    let start = Instant::now();
    let status = greet(&channel, None).await.unwrap_err();
    assert!(start.elapsed() < SLOW);
    for word in ["greeter", "2 endpoints", "is reachable", "connect error", "refused"] {
        assert!(status.message().contains(word), "{}", status.message());
    }
    assert!(discovery_tonic::Tried::from_status(&status).unwrap().instances().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_fails_every_other_call_is_ejected_by_its_failure_percentage() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let every_other: OnRequest = |n, respond| answer(respond, if n % 2 == 0 { "14" } else { "0" });
    let (bad, requests, _tasks) = raw_h2(every_other).await;
    let registry = registry(servers.iter().map(|server| server.address).chain([bad]));
    let detection = OutlierDetection::default()
        .failure_percentage(Some(40))
        .request_volume(20)
        .interval(Duration::from_secs(1))
        .base_ejection_time(Duration::from_secs(60));
    // Round robin, since the default policy gives it few calls.
    let channel = builder(&registry).policy(RoundRobin::new()).outlier_detection(detection).build().unwrap();
    let is_out = || channel.endpoints().iter().any(|endpoint| endpoint.ejected_until.is_some());
    let start = Instant::now();
    while !is_out() {
        assert!(start.elapsed() < Duration::from_secs(30), "{} requests", requests.load(Ordering::Relaxed));
        // An answer without a message is a failure for the caller, but not one of the endpoint.
        let _ = greet(&channel, None).await;
        assert!(channel.endpoints().iter().all(|endpoint| endpoint.failures < 5), "never many consecutive failures");
    }
    let reached = requests.load(Ordering::Relaxed);
    println!("ejected after {reached} requests, in {:?}", start.elapsed());
    for _ in 0..200 {
        greet(&channel, None).await.unwrap();
    }
    assert_eq!(requests.load(Ordering::Relaxed), reached);
}

/// If fewer than half are left, all are used: two of four hang and are ejected, then a good one
/// dies.
#[tokio::test]
async fn b08_all_endpoints_are_used_if_fewer_than_half_are_left() {
    let _turn = turn().await;
    let first = hung().await;
    let second = hung().await;
    let good = Server::start("good").await;
    let mut dying = Mortal::start("dying");
    let backend = registry([first.0, second.0, good.address, dying.address]);
    let detection = OutlierDetection::default().base_ejection_time(Duration::from_secs(60));
    // Round robin, since the default policy hardly uses them once calls were late there.
    let channel = builder(&backend).policy(RoundRobin::new()).outlier_detection(detection).build().unwrap();
    let out = || channel.endpoints().iter().filter(|endpoint| endpoint.ejected_until.is_some()).count();
    let start = Instant::now();
    while out() < 2 {
        let _ = greet(&channel, Some(Duration::from_millis(200))).await;
        assert!(start.elapsed() < Duration::from_secs(20), "{} are ejected", out());
    }
    let reached = || first.1.load(Ordering::Relaxed) + second.1.load(Ordering::Relaxed);
    let before = reached();
    for _ in 0..20 {
        greet(&channel, Some(SLOW)).await.unwrap();
    }
    assert_eq!(reached(), before);
    dying.kill();
    eventually("one is lost", || ready(&channel) == 3).await;
    for _ in 0..10 {
        let _ = greet(&channel, Some(Duration::from_millis(100))).await;
    }
    assert!(reached() > before + 2, "{} requests", reached() - before);
}

/// Three good servers, and one that hangs and is ejected for 20 s.
struct OneOut {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    backend: MemoryBackend,
    channel: BalancedChannel,
    _servers: (Vec<Server>, JoinSet<()>),
}

impl OneOut {
    async fn start() -> Self {
        let (address, requests, hung) = hung().await;
        let servers = servers(3).await;
        let backend = registry(servers.iter().map(|one| one.address).chain([address]));
        let detection = OutlierDetection::default().base_ejection_time(Duration::from_secs(20));
        let channel = builder(&backend).outlier_detection(detection).build().unwrap();
        let one = Self { address, requests, backend, channel, _servers: (servers, hung) };
        eventually("all ready", || ready(&one.channel) == 4).await;
        while one.ejected_until().is_none() {
            let _ = greet(&one.channel, Some(Duration::from_millis(200))).await;
        }
        one
    }

    fn ejected_until(&self) -> Option<Instant> {
        self.channel.endpoints().iter().find_map(|one| one.ejected_until)
    }

    async fn gets_no_calls(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        for _ in 0..100 {
            greet(&self.channel, Some(SLOW)).await.unwrap();
        }
        assert_eq!(self.requests.load(Ordering::Relaxed), before, "no call goes there");
    }
}

/// B5: neither another weight, other metadata nor a new whole set changes the state of an endpoint.
#[tokio::test]
async fn b05_no_update_resets_the_state_of_an_endpoint() {
    let _turn = turn().await;
    let one = OneOut::start().await;
    let known = one.ejected_until();
    let weight = Weight::new(300).unwrap();
    one.backend.put(&service(), instance(one.address).with_weight(weight));
    eventually("the weight is known", || one.channel.endpoints().iter().any(|one| one.instance.weight() == weight))
        .await;
    assert_eq!(one.ejected_until(), known);
    one.backend.interrupt();
    sleep(Duration::from_millis(100)).await;
    one.backend.restore();
    one.backend.put(&service(), instance(one.address));
    eventually("the set is known", || one.channel.endpoints().iter().all(|one| one.instance.weight() != weight)).await;
    assert_eq!(one.ejected_until(), known);
    one.gets_no_calls().await;
}

/// A failing endpoint does not get calls again by registering again, however long it was away.
#[tokio::test]
async fn b01_an_ejected_endpoint_stays_ejected_when_it_returns() {
    let _turn = turn().await;
    let one = OneOut::start().await;
    let id = one.address.to_string();
    for away in [Duration::from_millis(100), Duration::from_millis(2500)] {
        one.backend.remove(&service(), &id);
        eventually("it is gone", || one.channel.endpoints().len() == 3).await;
        sleep(away).await;
        one.backend.put(&service(), instance(one.address));
        eventually("it is back", || ready(&one.channel) == 4).await;
        assert!(one.ejected_until().is_some(), "after {away:?}");
        one.gets_no_calls().await;
    }
    // The same id at another address is another endpoint.
    one.backend.remove(&service(), &id);
    let other = Server::start("other").await;
    one.backend.put(&service(), instance(other.address).with_id(id.parse().unwrap()));
    let is_there = |one: &EndpointStatus| one.instance.address().socket_addr() == Some(other.address);
    eventually("it is there", || one.channel.endpoints().iter().any(is_there)).await;
    assert_eq!(one.ejected_until(), None);
}
