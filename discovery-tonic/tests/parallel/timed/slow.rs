//! Healthy endpoints that are slow, or stuck on one connection: none is ejected, and no working
//! connection is replaced (B8; figure F15).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::turn;
use crate::support::*;
use discovery_tonic::{BalancedChannel, EndpointSettings, ExpectSlow};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tonic::{Request, transport::Server as Tonic};

/// Servers, a channel, and how often an endpoint was seen to be ejected.
struct Fleet {
    servers: Vec<Server>,
    channel: BalancedChannel,
    ejected: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Fleet {
    async fn start(count: usize) -> Self {
        let servers = servers(count).await;
        Self::of(servers, |builder| builder).await
    }

    async fn of(
        servers: Vec<Server>,
        configure: impl FnOnce(discovery_tonic::ChannelBuilder) -> discovery_tonic::ChannelBuilder,
    ) -> Self {
        let backend = registry(servers.iter().map(|server| server.address));
        let channel = configure(builder(&backend)).build().unwrap();
        eventually("all ready", || ready(&channel) == servers.len()).await;
        let ejected = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        let watched = channel.clone();
        let count = Arc::clone(&ejected);
        tasks.spawn(async move {
            loop {
                let out = watched.endpoints().iter().filter(|endpoint| endpoint.ejected_until.is_some()).count();
                count.fetch_add(out, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
        });
        Self { servers, channel, ejected, _tasks: tasks }
    }

    /// Calls repeatedly from one caller; returns how long each call took.
    async fn call(&self, delay: Duration, time: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut took = Vec::new();
        while start.elapsed() < time {
            let begun = Instant::now();
            greet_with(&self.channel, None, taking(delay)).await.expect("a healthy server answers");
            took.push(begun.elapsed());
            sleep(Duration::from_millis(2)).await;
        }
        took
    }

    fn connections(&self) -> usize {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// Asserts that no endpoint was ejected, and that none was connected again except for one check
    /// each.
    fn assert_unharmed(&self, what: &str) {
        let ejected = self.ejected.load(Ordering::Relaxed);
        let connections = self.connections();
        println!("{what}: {ejected} samples of ejected endpoints, {connections} connections");
        assert_eq!(ejected, 0, "{what}");
        assert!(connections <= 2 * self.servers.len(), "{what}: {connections}");
    }
}

fn taking(delay: Duration) -> GreetRequest {
    GreetRequest { delay_ms: delay.as_millis().try_into().unwrap(), ..GreetRequest::default() }
}

const QUICK: Duration = Duration::ZERO;

#[tokio::test]
async fn b08_long_polls_are_not_silence() {
    let fleet = Fleet::start(4).await;
    let poll = Duration::from_secs(4);
    let time = Duration::from_secs(7);
    futures::future::join_all((0..12).map(|_| fleet.call(poll, time))).await;
    fleet.assert_unharmed("long polls of 4 s");
}

/// The long polls begin one after the other, so that there are always some answers.
#[tokio::test]
async fn long_polls_beside_quick_calls_are_not_silence() {
    let fleet = Fleet::start(4).await;
    let poll = Duration::from_secs(3);
    let time = Duration::from_secs(9);
    let polls = futures::future::join_all((0..6).map(|number| {
        let fleet = &fleet;
        async move {
            sleep(Duration::from_millis(430) * number).await;
            fleet.call(poll, time).await
        }
    }));
    let (_, quick) = tokio::join!(polls, fleet.call(QUICK, time));
    fleet.assert_unharmed("long polls of 3 s beside quick calls");
    let slow = quick.iter().filter(|took| **took > Duration::from_millis(150)).count();
    // On a busy machine a few wait. If calls had to wait for endpoints it would be one in twenty.
    assert!(slow * 50 <= quick.len(), "{slow} of {} quick calls waited", quick.len());
}

#[tokio::test]
async fn one_caller_of_slow_calls_costs_one_check_per_endpoint() {
    let fleet = Fleet::start(4).await;
    fleet.call(Duration::from_millis(1500), Duration::from_secs(9)).await;
    fleet.assert_unharmed("one caller of 1.5 s calls");
    assert!(fleet.connections() <= 5, "after the first, slow is usual: {}", fleet.connections());
}

#[tokio::test]
async fn streams_without_early_headers_are_not_silence() {
    for quick in [false, true] {
        let fleet = Fleet::start(2).await;
        let streams = async {
            let mut streams = JoinSet::new();
            for _ in 0..9 {
                let channel = fleet.channel.clone();
                streams.spawn(async move {
                    for _ in 0..2 {
                        // The greeter's unary call sends its headers as late.
                        greet_with(&channel, None, taking(Duration::from_millis(2500))).await.unwrap();
                    }
                });
                sleep(Duration::from_millis(50)).await;
            }
            streams.join_all().await;
        };
        match quick {
            true => drop(tokio::join!(streams, fleet.call(QUICK, Duration::from_secs(5)))),
            false => streams.await,
        }
        fleet.assert_unharmed("streams without early headers");
    }
}

#[tokio::test]
async fn a_stalled_client_ejects_no_endpoint() {
    let fleet = Fleet::start(4).await;
    for _ in 0..3 {
        let calls = fleet.call(Duration::from_millis(20), Duration::from_millis(500));
        let others = fleet.call(Duration::from_millis(50), Duration::from_millis(500));
        let stall = async {
            sleep(Duration::from_millis(60)).await;
            // Blocks the whole runtime of this test.
            thread::sleep(Duration::from_millis(1500));
        };
        tokio::join!(calls, others, stall);
    }
    fleet.assert_unharmed("a stalled client");
}

#[tokio::test]
async fn b08_callers_that_give_up_eject_no_endpoint() {
    let fleet = Fleet::start(4).await;
    let callers = (0..12).map(|number| {
        let channel = fleet.channel.clone();
        async move {
            sleep(Duration::from_millis(37) * number).await;
            for _ in 0..8 {
                let call = greet_with(&channel, None, taking(Duration::from_secs(2)));
                timeout(Duration::from_millis(600), call).await.expect_err("it gives up");
            }
        }
    });
    futures::future::join_all(callers).await;
    fleet.assert_unharmed("callers that give up after 600 ms on a method of 2 s");
}

/// A connection that replaces an old or lost one takes calls at once, because the endpoint is
/// known.
#[tokio::test]
async fn a_successor_makes_no_call_wait() {
    let _turn = turn().await;
    let aging = |builder: discovery_tonic::ChannelBuilder| {
        builder.endpoint_settings(|_| EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap())
    };
    // A single endpoint, so that no other one could take the calls that would wait.
    let fleet = Fleet::of(servers(1).await, aging).await;
    let work = Duration::from_millis(150);
    fleet.call(QUICK, Duration::from_millis(100)).await;
    let mut ticks = interval(Duration::from_millis(2));
    let mut calls = JoinSet::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(6) {
        ticks.tick().await;
        let channel = fleet.channel.clone();
        calls.spawn(async move {
            let begun = Instant::now();
            greet_with(&channel, None, taking(work)).await.unwrap();
            begun.elapsed()
        });
    }
    let took = calls.join_all().await;
    let waited = took.iter().filter(|took| **took > work + Duration::from_millis(50)).count();
    println!("{waited} of {} calls waited, over {} connections", took.len(), fleet.connections());
    assert!(fleet.connections() >= 4 && waited * 50 <= took.len(), "{waited}");
}

/// A call that is expected to be slow does not even cause a check.
#[tokio::test]
async fn calls_that_are_expected_to_be_slow_cause_no_check() {
    let [marked, unmarked] = [true, false].map(async |is_marked| {
        let fleet = Fleet::start(1).await;
        fleet.call(QUICK, Duration::from_millis(100)).await;
        let mut request = Request::new(taking(Duration::from_millis(2500)));
        if is_marked {
            request.extensions_mut().insert(ExpectSlow);
        }
        GreeterClient::new(fleet.channel.clone()).greet(request).await.unwrap();
        fleet.assert_unharmed("a poll");
        fleet.connections()
    });
    let (marked, unmarked) = tokio::join!(marked, unmarked);
    assert_eq!((marked, unmarked), (1, 2), "not even checked, unlike those without the mark");
}

/// Nor does one that is given up.
#[tokio::test]
async fn calls_that_are_expected_to_be_slow_may_be_given_up() {
    let fleet = Fleet::start(1).await;
    fleet.call(QUICK, Duration::from_millis(100)).await;
    for _ in 0..16 {
        let mut request = Request::new(taking(Duration::from_secs(60)));
        request.extensions_mut().insert(ExpectSlow);
        let mut client = GreeterClient::new(fleet.channel.clone());
        timeout(Duration::from_millis(200), client.greet(request)).await.unwrap_err();
    }
    fleet.assert_unharmed("polls that are given up");
    assert_eq!(fleet.connections(), 1);
}

/// A peer whose first connection accepts requests and answers none, while later connections answer.
async fn stuck() -> (std::net::SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let mut tasks = JoinSet::new();
    let count = Arc::clone(&accepted);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let is_stuck = count.fetch_add(1, Ordering::Relaxed) == 0;
            connections.spawn(async move {
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                let mut kept = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if !is_stuck {
                        answer(&mut respond, "5");
                    }
                    kept.push((request, respond));
                }
            });
        }
    });
    (address, accepted, tasks)
}

/// A new connection replaces a stuck one, even if there is no other endpoint, and the calls on the
/// stuck one go on.
#[tokio::test]
async fn a_stuck_connection_is_replaced_by_one_that_answers() {
    tokio::join!(replaces_a_stuck_connection(0), replaces_a_stuck_connection(2));
}

async fn replaces_a_stuck_connection(others: usize) {
    let (address, accepted, _tasks) = stuck().await;
    let servers = servers(others).await;
    let channel = channel(&registry(servers.iter().map(|server| server.address).chain([address])));
    eventually("all ready", || ready(&channel) == 1 + others).await;
    // `endpoints` counts only calls on current connections, which include the stuck one until it is
    // replaced.
    let at_stuck = || {
        let endpoints = channel.endpoints();
        endpoints.iter().find(|one| one.instance.address().socket_addr() == Some(address)).unwrap().in_flight
    };
    let mut waiting = JoinSet::new();
    while at_stuck() == 0 {
        let channel = channel.clone();
        let request = taking(Duration::from_secs(60));
        waiting.spawn(async move { greet_with(&channel, None, request).await.map(drop) });
        sleep(Duration::from_millis(5)).await;
    }
    let calls = waiting.len();
    let is_replaced = || accepted.load(Ordering::Relaxed) == 2 && at_stuck() == 0;
    let start = Instant::now();
    let mut late = 0;
    while !is_replaced() {
        assert!(start.elapsed() < Duration::from_secs(40), "it is not replaced");
        let status = greet(&channel, Some(Duration::from_millis(300))).await.err();
        late += u32::from(status.is_some_and(|status| status.code() == tonic::Code::DeadlineExceeded));
        sleep(Duration::from_millis(5)).await;
    }
    let took = start.elapsed();
    println!("{late} late calls beside {others} others, replaced after {took:?}");
    assert!(late <= 6, "{late}");
    assert_eq!(accepted.load(Ordering::Relaxed), 2);
    assert_eq!(waiting.len(), calls);
    assert!(waiting.try_join_next().is_none(), "it keeps its calls");
}

/// A server that answers late, but sends headers before its messages, is healthy.
#[tokio::test]
async fn a_stream_with_headers_is_an_answer() {
    let fleet = Fleet::of(vec![Server::start_with("one", Tonic::builder()).await], |builder| builder).await;
    let request = GreetManyRequest { count: 2, interval_ms: 3_000, ..GreetManyRequest::default() };
    let mut stream = GreeterClient::new(fleet.channel.clone()).greet_many(request).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    fleet.assert_unharmed("a stream");
    assert_eq!(fleet.connections(), 1);
}
