//! Channels leave nothing behind: no connection, no task, no request that counts as in flight.

mod support;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use discovery_memory::MemoryBackend;
use discovery_tonic::BalancedChannel;
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use support::*;
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status};

const SOON: Duration = Duration::from_secs(10);

/// What exists before a test builds a channel, and must be restored afterwards.
struct Before {
    tasks: usize,
    peers: Vec<SocketAddr>,
}

impl Before {
    /// Counts the tasks of this runtime, including the test's own, and watches connections to these
    /// peers.
    fn of(peers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { tasks: tasks(), peers: peers.into_iter().collect() }
    }

    async fn is_again(&self) {
        eventually("no connection is left", || self.peers.iter().map(connections).sum::<usize>() == 0).await;
        eventually("no task is left", || tasks() <= self.tasks).await;
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// The number of this process's sockets that are connected to a peer.
fn connections(peer: &SocketAddr) -> usize {
    let SocketAddr::V4(peer) = peer else { panic!("{peer} is not an IPv4 address") };
    let ip = u32::from_ne_bytes(peer.ip().octets());
    let port = peer.port();
    let remote = format!("{ip:08X}:{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let inodes: HashSet<_> =
        fields.filter(|fields| fields[2] == remote).map(|fields| format!("socket:[{}]", fields[9])).collect();
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let links = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    links.filter(|link| inodes.contains(&*link.to_string_lossy())).count()
}

fn in_flight(channel: &BalancedChannel) -> u32 {
    channel.endpoints().iter().map(|one| one.in_flight).sum()
}

/// Makes calls that have all reached their servers and do not end by themselves: half of them wait
/// for an answer, half are half-read streams.
async fn calls(channel: &BalancedChannel, servers: &[Server], count: usize) -> JoinSet<Status> {
    let reached = || servers.iter().map(|server| server.greeter.calls()).sum::<u64>();
    let before = reached();
    let mut calls = JoinSet::new();
    let half_read = Arc::new(AtomicUsize::new(0));
    for n in 0..count {
        let mut client = GreeterClient::new(channel.clone());
        let half_read = Arc::clone(&half_read);
        calls.spawn(async move {
            if n % 2 == 0 {
                let request = GreetRequest { delay_ms: 600_000, ..GreetRequest::default() };
                return client.greet(request).await.unwrap_err();
            }
            let request = GreetManyRequest { count: 2, interval_ms: 600_000, ..GreetManyRequest::default() };
            let mut replies = client.greet_many(request).await.unwrap().into_inner();
            replies.message().await.unwrap();
            half_read.fetch_add(1, Ordering::Relaxed);
            replies.message().await.unwrap_err()
        });
    }
    let all = || reached() - before == count as u64 && half_read.load(Ordering::Relaxed) == count / 2;
    eventually("all calls have arrived", all).await;
    assert_eq!(in_flight(channel) as usize, count);
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_runtime_is_killed_leaves_nothing() {
    for _ in 0..5 {
        let servers = servers(2).await;
        let backend = registry(servers.iter().map(|server| server.address));
        let before = Before::of(servers.iter().map(|server| server.address));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = {
            let _entered = runtime.enter();
            channel(&backend)
        };
        channel.wait_until_ready(SOON).await.unwrap();
        let calls = calls(&channel, &servers, 12).await;
        assert!(before.peers.iter().map(connections).sum::<usize>() > 0 && tasks() > before.tasks);
        runtime.shutdown_background();

        let ended = timeout(SOON, calls.join_all()).await.expect("no call waits for a task that has ended");
        assert!(ended.iter().all(|status| status.code() == Code::Unavailable), "{ended:?}");
        assert_eq!(servers.iter().map(|server| server.greeter.calls()).sum::<u64>(), 12, "no call is executed twice");
        assert_eq!(in_flight(&channel), 0);
        before.is_again().await;
    }
}

#[tokio::test]
async fn a_channel_dropped_with_calls_in_flight_leaves_nothing() {
    let servers = servers(2).await;
    let backend = registry(servers.iter().map(|server| server.address));
    let before = Before::of(servers.iter().map(|server| server.address));
    for calls_first in [true, false] {
        let channel = channel(&backend);
        let mut calls = calls(&channel, &servers, 12).await;
        if calls_first {
            calls.shutdown().await;
            assert_eq!(in_flight(&channel), 0, "a dropped call is no longer in flight");
        }
        drop(channel);
        drop(calls);
        before.is_again().await;
        assert_eq!(backend.watches(&service()), 0);
    }
}

#[tokio::test]
async fn responses_dropped_half_read_leave_nothing() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let before = Before::of([server.address]);
    let channel = channel(&backend);
    channel.wait_until_ready(SOON).await.unwrap();
    greet(&channel, Some(SOON)).await.unwrap();
    let idle = tasks();
    for _ in 0..50 {
        let request = GreetManyRequest { count: 1_000, interval_ms: 1, ..GreetManyRequest::default() };
        let mut halves = Vec::new();
        for _ in 0..20 {
            let mut replies =
                GreeterClient::new(channel.clone()).greet_many(request.clone()).await.unwrap().into_inner();
            replies.message().await.unwrap().unwrap();
            halves.push(replies);
        }
        assert_eq!(in_flight(&channel), 20);
        drop(halves);
        assert_eq!(in_flight(&channel), 0);
    }
    eventually("no task is left, not even of the server", || tasks() <= idle).await;
    assert_eq!((connections(&server.address), server.accepted()), (1, 1), "all calls used one connection, which stays");
    drop(channel);
    before.is_again().await;
}

/// Channels in all states, dropped while something is under way.
#[tokio::test]
async fn a_thousand_dropped_channels_leave_nothing() {
    let servers = servers(2).await;
    let (hung, _, _tasks) = hung().await;
    let addresses: Vec<_> = servers.iter().map(|server| server.address).chain([hung]).collect();
    let backend = registry(addresses.clone());
    let before = Before::of(addresses);
    let rounds = async || {
        for _ in 0..4 {
            let mut channels = Vec::new();
            for n in 0..50 {
                channels.push(used(&backend, n).await);
            }
        }
    };
    futures::future::join_all((0..5).map(|_| rounds())).await;
    before.is_again().await;
    assert_eq!(backend.watches(&service()), 0);
}

/// A channel that was used in one way.
async fn used(backend: &MemoryBackend, n: usize) -> BalancedChannel {
    let channel = channel(backend);
    let mut client = GreeterClient::new(channel.clone());
    match n % 5 {
        // Never used.
        0 => {}
        // Dropped during a call, at any point.
        1 => {
            let slow = GreetRequest { delay_ms: 60_000, ..GreetRequest::default() };
            let _ = timeout(Duration::from_millis(2), client.greet(slow)).await;
        }
        // A half-read response.
        2 => {
            let request = GreetManyRequest { count: 1_000, interval_ms: 1, ..GreetManyRequest::default() };
            if let Ok(Ok(replies)) = timeout(Duration::from_millis(20), client.greet_many(request)).await {
                let _ = timeout(Duration::from_millis(1), replies.into_inner().message()).await;
            }
        }
        // A call that outlives the handles of its channel and then its caller.
        3 => {
            let call =
                tokio::spawn(
                    async move { client.greet(GreetRequest { delay_ms: 50, ..GreetRequest::default() }).await },
                );
            sleep(Duration::from_millis(1)).await;
            call.abort();
            let _ = call.await;
        }
        // Ordinary use.
        _ => drop(timeout(Duration::from_millis(100), client.greet(GreetRequest::default())).await),
    }
    assert_eq!(in_flight(&channel), 0);
    channel
}

#[tokio::test]
async fn a_call_continues_after_its_channel_is_dropped() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let before = Before::of([server.address]);
    let mut client = GreeterClient::new(channel(&backend));
    let request = GreetManyRequest { count: 5, interval_ms: 20, ..GreetManyRequest::default() };
    let mut replies = client.greet_many(request).await.unwrap().into_inner();
    let slow =
        tokio::spawn(async move { client.greet(GreetRequest { delay_ms: 100, ..GreetRequest::default() }).await });
    let mut count = 0;
    while replies.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
    slow.await.unwrap().unwrap();
    drop(replies);
    before.is_again().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_runtime_has_ended_fails_its_calls() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let channel = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let channel = runtime.block_on(async {
            let channel = channel(&backend);
            greet(&channel, None).await.unwrap();
            channel
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        channel
    })
    .join()
    .unwrap();
    let start = std::time::Instant::now();
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the runtime that it was built on has shut down"), "{status}");
    assert!(start.elapsed() < Duration::from_secs(5), "no call waits in vain");
}
