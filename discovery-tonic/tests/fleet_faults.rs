//! Faults of servers, and what their callers notice: the rows `fault_c1` to `fault_c16` of the list
//! of faults that no other file covers.

mod support;

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Metadata, Weight};
use discovery_tonic::{BalancedChannel, EndpointStatus, Tried};
use greeter::{GreetRequest, Greeter};
use support::{
    Mortal, Server, answer, channel, eventually, greet, greet_with, instance, raw_h2, ready, registry, servers, service,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{interval, sleep, sleep_until},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(10);
/// The deadline of calls to a frozen server.
const SLOW: Duration = Duration::from_millis(500);

/// Callers that call until they are stopped; each failed call is recorded with its start and its
/// status.
struct Callers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(usize, Vec<Failure>)>,
}

type Failure = (Instant, Status);

impl Callers {
    fn start(channel: &BalancedChannel, count: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let channel = channel.clone();
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let mut calls = 0;
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    calls += 1;
                    let request = GreetRequest { delay_ms: 5, ..GreetRequest::default() };
                    let ended = greet_with(&channel, Some(SOON), request).await;
                    failed.extend(ended.err().map(|status| (begun, status)));
                }
                (calls, failed)
            });
        }
        Self { stop, tasks }
    }

    async fn stop(self) -> (usize, Vec<Failure>) {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.tasks.join_all().await;
        all.into_iter().fold((0, Vec::new()), |(calls, mut failed), (more, others)| {
            failed.extend(others);
            (calls + more, failed)
        })
    }
}

/// `fault_c1`: one of three processes is killed and stays registered, three times over. At most the
/// requests in flight there fail, and none that began after the loss was known, which takes
/// milliseconds.
#[tokio::test]
async fn fault_c1_a_killed_server_costs_only_its_requests_in_flight() {
    let backend = registry([]);
    let channel = channel(&backend);
    let mut servers = Vec::new();
    for round in 0..3 {
        while servers.len() < 3 {
            let server = Process::start();
            backend.put(&service(), instance(server.address));
            servers.push(server);
        }
        eventually("all ready", || ready(&channel) == 3).await;
        let callers = Callers::start(&channel, 30);
        sleep(Duration::from_millis(500)).await;
        let mut dying = servers.remove(0);
        // The client has only this thread, so that none of its code runs between the kill and the
        // count.
        dying.child.kill().unwrap();
        let killed = Instant::now();
        let in_flight = endpoint(&channel, dying.address).in_flight as usize;
        let known = eventually("the loss is known", || ready(&channel) == 2).await;
        sleep(Duration::from_secs(1)).await;
        let (calls, failed) = callers.stop().await;
        let before = failed.iter().filter(|(begun, _)| *begun <= killed).count();
        let after = failed.iter().filter(|(begun, _)| *begun > killed + known).count();
        println!(
            "fault_c1: round {round}: {} of {calls} calls failed; {in_flight} were in flight there at the kill, of which {before} failed, \
             the others began in the {known:?} until it was known",
            failed.len()
        );
        assert!(in_flight > 0 && before <= in_flight && after == 0, "{failed:?}");
        assert!(known < Duration::from_secs(1), "{known:?}");
        let there = [instance(dying.address).id().clone()];
        assert!(
            failed.iter().all(|(_, status)| Tried::from_status(status).unwrap().instances() == there),
            "{failed:?}"
        );
        backend.remove(&service(), there[0].as_str());
        eventually("it is gone", || channel.endpoints().len() == 2).await;
    }
}

/// The status of the endpoint at this address.
fn endpoint(channel: &BalancedChannel, address: SocketAddr) -> EndpointStatus {
    let endpoints = channel.endpoints();
    endpoints.iter().find(|one| one.instance.address().socket_addr() == Some(address)).unwrap().clone()
}

/// A server in a process of its own, which can be frozen and killed.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_server_as_a_process", "--nocapture"])
            .env(AS_SERVER, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.map(Result::unwrap).find_map(|line| line.split_once(LISTENS)?.1.parse().ok()).unwrap();
        Self { child, address }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server that [`Process`] runs; not a test otherwise.
#[tokio::test]
async fn a_server_as_a_process() {
    if env::var_os(AS_SERVER).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\n{LISTENS}{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(Greeter::new("process").into_service());
    server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
}

/// Freezes one of four under a load that runs until a moment and returns how many calls it made and
/// how many were slow.
async fn frozen_for_ten_seconds(what: &str, load: impl AsyncFn(&BalancedChannel, Instant) -> (usize, usize)) -> usize {
    let frozen = Process::start();
    let servers = servers(3).await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([frozen.address])));
    eventually("all ready", || ready(&channel) == 4).await;
    let (_, slow) = load(&channel, Instant::now() + Duration::from_millis(500)).await;
    assert!(slow == 0 && endpoint(&channel, frozen.address).failures == 0);

    frozen.signal("STOP");
    let (calls, slow) = load(&channel, Instant::now() + Duration::from_secs(10)).await;
    frozen.signal("CONT");
    let woken = Instant::now();
    while greet(&channel, Some(SOON)).await.unwrap() != frozen.address {
        assert!(woken.elapsed() < SOON, "it is not used again");
        sleep(Duration::from_millis(1)).await;
    }
    println!("fault_c2: {what}: {slow} of {calls} calls were slow; used again {:?} after it woke", woken.elapsed());
    assert!(woken.elapsed() < Duration::from_secs(3), "{:?}", woken.elapsed());
    slow
}

async fn one_by_one(channel: &BalancedChannel, end: Instant) -> (usize, usize) {
    let mut calls = 0;
    let mut slow = 0;
    while Instant::now() < end {
        calls += 1;
        slow += usize::from(greet(channel, Some(SLOW)).await.is_err());
        sleep(Duration::from_millis(2)).await;
    }
    (calls, slow)
}

/// Makes 200 calls a second, whether or not earlier ones have ended.
async fn steadily(channel: &BalancedChannel, end: Instant) -> (usize, usize) {
    let mut ticks = interval(Duration::from_millis(5));
    let mut calls = JoinSet::new();
    while Instant::now() < end {
        ticks.tick().await;
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: 10, ..GreetRequest::default() };
        calls.spawn(async move { greet_with(&channel, Some(SLOW), request).await.is_err() });
    }
    let ended = calls.join_all().await;
    (ended.len(), ended.into_iter().filter(|slow| *slow).count())
}

/// The same, with callers that drop their calls after a while, without a deadline that the server
/// could know.
async fn dropping(channel: &BalancedChannel, end: Instant) -> (usize, usize) {
    let mut ticks = interval(Duration::from_millis(5));
    let mut calls = JoinSet::new();
    while Instant::now() < end {
        ticks.tick().await;
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: 10, ..GreetRequest::default() };
        let patience = Duration::from_millis(100);
        calls.spawn(async move { tokio::time::timeout(patience, greet_with(&channel, None, request)).await.is_err() });
    }
    let ended = calls.join_all().await;
    (ended.len(), ended.into_iter().filter(|slow| *slow).count())
}

/// Makes calls that are in flight at the freeze and give up long after, which proves nothing about
/// the server at that time. Each gives up a moment after the server would be tried again, had it
/// been ejected for the one before.
async fn giving_up_late(channel: &BalancedChannel, end: Instant) -> (usize, usize) {
    let mut late = JoinSet::new();
    let time = end.saturating_duration_since(Instant::now());
    for hundredths in [25, 50, 95].repeat(10) {
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: 20, ..GreetRequest::default() };
        late.spawn(async move { greet_with(&channel, Some(time * hundredths / 100), request).await.is_err() });
    }
    let ended = late.join_all().await;
    sleep_until(end.into()).await;
    (ended.len(), ended.into_iter().filter(|slow| *slow).count())
}

/// `fault_c4`: all servers are down. Calls fail at once with the reason; the first succeeds soon
/// after the servers are back.
#[tokio::test]
async fn fault_c4_all_servers_are_down_and_come_back() {
    let mut servers = ["1", "2", "3"].map(Mortal::start);
    let addresses = servers.each_ref().map(|server| server.address);
    let channel = channel(&registry(addresses));
    eventually("all ready", || ready(&channel) == 3).await;
    servers.iter_mut().for_each(Mortal::kill);
    eventually("all lost", || ready(&channel) == 0).await;
    sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    let status = greet(&channel, Some(SOON)).await.unwrap_err();
    println!("fault_c4: failed after {:?}: {}", start.elapsed(), status.message());
    assert_eq!(status.code(), Code::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(1) && status.message().contains("none of its 3 endpoints"));

    let _back = addresses.map(|address| Mortal::start_at("back", address));
    let start = Instant::now();
    while greet(&channel, Some(SOON)).await.is_err() {
        assert!(start.elapsed() < SOON, "no server is used again");
        sleep(Duration::from_millis(5)).await;
    }
    println!("fault_c4: first answer {:?} after they were back", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(4), "a backoff of at most 2 s, and some more");
}

/// `fault_c6`: 100,000 updates while no call is made. Memory does not grow, and the next call uses
/// the last state.
#[tokio::test]
async fn fault_c6_updates_without_traffic_are_followed_and_cost_no_memory() {
    let first = Server::start("first").await;
    let last = Server::start("last").await;
    let backend = registry([first.address]);
    let channel = channel(&backend);
    eventually("ready", || ready(&channel) == 1).await;
    let before = resident_bytes();
    for n in 0..100_000u32 {
        let weight = Weight::new((n % 100 + 1).try_into().unwrap()).unwrap();
        backend.put(&service(), first.instance().with_weight(weight));
        if n % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    backend.put(&service(), last.instance());
    backend.remove(&service(), &first.address.to_string());
    let only_last = || channel.endpoints().iter().all(|one| one.instance.address().socket_addr() == Some(last.address));
    let took = eventually("the last state", || ready(&channel) == 1 && only_last()).await;
    assert_eq!(greet(&channel, Some(SOON)).await.unwrap(), last.address);
    let grown = resident_bytes().saturating_sub(before);
    println!("fault_c6: the last state {took:?} after the last of 100,000 updates, {} KiB more memory", grown >> 10);
    assert!(grown < 32 << 20, "{grown}");
    assert_eq!(first.accepted(), 1, "no update closed its connection");
}

/// A thousand channels on one service share one watch.
#[tokio::test]
async fn a_thousand_channels_share_a_watch() {
    let backend = registry([]);
    let channels: Vec<_> = (0..1000).map(|_| channel(&backend)).collect();
    eventually("one watch", || backend.watches(&service()) > 0).await;
    assert_eq!(backend.watches(&service()), 1);
    let server = Server::start("one").await;
    backend.put(&service(), server.instance());
    eventually("all channels know the set", || channels.iter().all(|channel| channel.endpoints().len() == 1)).await;
    drop(channels);
    eventually("no watch is left", || backend.watches(&service()) == 0).await;
}

/// `fault_c9`: servers that gracefully end every connection after a second, under 200 calls a
/// second: no call fails.
#[tokio::test]
async fn fault_c9_connections_that_age_lose_no_call() {
    goaways(Duration::from_secs(6)).await;
}

#[tokio::test]
#[ignore = "soak: a minute"]
async fn fault_c9_connections_that_age_lose_no_call_for_a_minute() {
    goaways(Duration::from_secs(60)).await;
}

async fn goaways(time: Duration) {
    let mut servers = Vec::new();
    for name in ["1", "2", "3"] {
        let builder = tonic::transport::Server::builder().max_connection_age(Duration::from_secs(1));
        servers.push(Server::start_with(name, builder).await);
    }
    let channel = channel(&registry(servers.iter().map(|server| server.address)));
    eventually("all ready", || ready(&channel) == 3).await;
    let mut ticks = interval(Duration::from_millis(5));
    let mut calls = JoinSet::new();
    for _ in 0..200 * time.as_secs() {
        ticks.tick().await;
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: 20, ..GreetRequest::default() };
        calls.spawn(async move { greet_with(&channel, Some(SOON), request).await.map(drop) });
    }
    let ended = calls.join_all().await;
    let failed: Vec<_> = ended.iter().filter_map(|result| result.as_ref().err()).collect();
    let connections: usize = servers.iter().map(Server::accepted).sum();
    println!("fault_c9: {} of {} calls failed over {connections} connections", failed.len(), ended.len());
    assert!(failed.is_empty(), "{:?}", failed.first());
    assert!(connections > 3 * (time.as_secs() as usize / 2), "connections did age");
}

/// `fault_c11`: three of five fail all calls. At most half are ejected, so that the good ones get
/// at most twice their share.
#[tokio::test]
async fn fault_c11_the_good_endpoints_are_not_flooded_if_most_fail() {
    let mut bad = Vec::new();
    for _ in 0..3 {
        bad.push(raw_h2(|_, respond| answer(respond, "14")).await);
    }
    let good = [Server::start("1").await, Server::start("2").await];
    let addresses = bad.iter().map(|peer| peer.0).chain(good.iter().map(|server| server.address));
    let channel = channel(&registry(addresses));
    eventually("all ready", || ready(&channel) == 5).await;
    // With fewer calls, chance alone exceeds twice the share once in a hundred runs.
    for _ in 0..6000 {
        let _ = greet(&channel, None).await;
    }
    let calls = good.each_ref().map(|server| server.greeter.calls());
    println!("fault_c11: the good ones got {calls:?} of 6000 calls, 1200 are a fair share");
    assert!(calls.iter().all(|calls| (900..=2400).contains(calls)), "{calls:?}");
}

/// `fault_c15`: a server is replaced at its address and registers under another id: one connection,
/// with the new metadata.
#[tokio::test]
async fn fault_c15_another_instance_at_the_same_address() {
    let mut old = Mortal::start("old");
    let backend = registry([]);
    let channel = channel(&backend);
    let named = |id: &str| {
        let mut metadata = Metadata::default();
        metadata.insert("version", id).unwrap();
        instance(old.address).with_id(id.parse().unwrap()).with_metadata(metadata)
    };
    let first = named("first");
    let second = named("second");
    backend.put(&service(), first);
    eventually("ready", || ready(&channel) == 1).await;
    // All before the client, which shares this thread, runs again: it notices the new instance
    // together with the end of the old one.
    old.kill();
    let new = Mortal::start_at("new", old.address);
    backend.remove(&service(), "first");
    backend.put(&service(), second);
    let took = eventually("the new instance is ready", || {
        let endpoints = channel.endpoints();
        ready(&channel) == 1 && endpoints.iter().all(|one| one.instance.metadata().get("version") == Some("second"))
    });
    println!("fault_c15: ready {:?} after it was registered", took.await);
    for _ in 0..20 {
        greet(&channel, Some(SOON)).await.unwrap();
    }
    assert_eq!(new.accepted(), 1, "no reconnect storm");
}

#[tokio::test]
#[ignore = "soak: 100,000 calls, twice"]
async fn fault_c16_100_000_calls_are_spread_and_a_slow_server_gets_fewer() {
    shares_of_ten(100_000).await;
}

async fn shares_of_ten(calls: usize) {
    let servers = servers(10).await;
    let even = channel(&registry(servers.iter().map(|server| server.address)));
    eventually("all ready", || ready(&even) == 10).await;
    let served = spread(&even, calls, 20).await;
    let off = |calls_of: &usize| (*calls_of as f64 / (calls as f64 / 10.0) - 1.0).abs();
    let worst = served.values().map(off).fold(0.0, f64::max);
    println!("fault_c16: of {calls} calls, shares within {:.1} % of even", worst * 100.0);
    assert!(served.len() == 10 && worst <= 0.1, "{served:?}");

    let (slow, count) = slow_server(Duration::from_millis(100), SOON).await;
    let fast = servers.iter().take(9).map(|server| server.address);
    let uneven = channel(&registry(fast.chain([slow])));
    eventually("all ready", || ready(&uneven) == 10).await;
    spread(&uneven, calls / 2, 20).await;
    let share = count.load(Ordering::Relaxed) as f64 / (calls as f64 / 20.0);
    println!("fault_c16: the slow one of ten got {share:.2} of an even share");
    assert!(share <= 0.5, "{share}");
}

/// Makes this many calls by this many callers; returns how many each server answered.
async fn spread(channel: &BalancedChannel, calls: usize, callers: usize) -> BTreeMap<SocketAddr, usize> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let channel = channel.clone();
        tasks.spawn(async move {
            let mut served = BTreeMap::new();
            for _ in 0..calls / callers {
                *served.entry(greet(&channel, None).await.unwrap()).or_insert(0) += 1;
            }
            served
        });
    }
    let mut all = BTreeMap::new();
    for (address, calls) in tasks.join_all().await.into_iter().flatten() {
        *all.entry(address).or_insert(0) += calls;
    }
    all
}

/// A server that takes this long for each call, and ends it after `limit`; also returns how many it
/// got.
async fn slow_server(delay: Duration, limit: Duration) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let slow = tower::layer::layer_fn(move |inner: tonic::service::Routes| {
        let counted = Arc::clone(&counted);
        tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut inner = inner.clone();
            async move {
                sleep(delay).await;
                tower::Service::call(&mut inner, request).await
            }
        })
    });
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder()
            .timeout(limit)
            .layer(slow)
            .add_service(Greeter::new("slow").into_service());
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, count)
}

/// The resident memory of this process.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

const AS_SERVER: &str = "FLEET_FAULTS_SERVER";
const LISTENS: &str = "listens at ";

/// A server that is too slow, and itself ends calls around their deadlines as tonic's servers do,
/// is ejected like one that hangs.
#[tokio::test]
async fn a_server_that_ends_calls_at_their_deadlines_is_ejected() {
    let good = servers(2).await;
    let (slow, _) = slow_server(SOON, Duration::from_millis(270)).await;
    let channel = channel(&registry(good.iter().map(|one| one.address).chain([slow])));
    eventually("all ready", || ready(&channel) == 3).await;
    let start = Instant::now();
    let mut calls = 0;
    let mut late = 0;
    while start.elapsed() < Duration::from_secs(6) {
        late += u32::from(greet(&channel, Some(Duration::from_millis(300))).await.is_err());
        calls += 1;
        sleep(Duration::from_millis(2)).await;
    }
    println!("{late} of {calls} calls were late");
    // The calls until it is ejected, then its probes after 1, 2 and 4 s.
    assert!(calls > 200 && late <= 8, "{late} of {calls}");
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// `fault_c2`: one of four freezes for ten seconds, under four clients at the same time. At
    /// most five calls of each are slow, and it is used again within two seconds of waking (three
    /// on a busy machine).
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fault_c2_a_frozen_server_is_avoided_and_used_again() {
        let (one_by_one, steadily, dropping, _) = tokio::join!(
            frozen_for_ten_seconds("one by one", one_by_one),
            frozen_for_ten_seconds("200 a second", steadily),
            frozen_for_ten_seconds("200 a second, dropped after 100 ms", dropping),
            frozen_for_ten_seconds("with calls that give up late", giving_up_late),
        );
        assert!(one_by_one <= 5 && steadily <= 5 && dropping <= 5, "{one_by_one}, {steadily} and {dropping}");
    }

    /// `fault_c16`: ten servers get even shares; a slow one gets at most half of its share.
    #[tokio::test]
    async fn fault_c16_calls_are_spread_and_a_slow_server_gets_fewer() {
        shares_of_ten(10_000).await;
    }
}
