//! What is left of channels: nothing.

mod support;

use std::time::Duration;

use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use support::*;
use tokio::runtime::Handle;

/// Tasks of this runtime, which the test's own are part of.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test]
async fn two_thousand_channels_dropped_with_calls_in_flight_leave_nothing() {
    let servers = servers(2).await;
    let (hung, _, _tasks) = hung().await;
    let backend = registry(servers.iter().map(|server| server.address).chain([hung]));
    let before = tasks();
    let connections = open_connections();
    for round in 0..40 {
        let mut channels = Vec::new();
        for n in 0..50 {
            let channel = channel(&backend);
            let mut client = GreeterClient::new(channel.clone());
            match n % 5 {
                // Never used.
                0 => {}
                // Dropped in mid-call, wherever that is.
                1 => {
                    let slow = GreetRequest { delay_ms: 60_000, ..GreetRequest::default() };
                    let _ = tokio::time::timeout(Duration::from_millis(2), client.greet(slow)).await;
                }
                // A response half-read.
                2 => {
                    let request = GreetManyRequest { count: 1_000, interval_ms: 1, ..GreetManyRequest::default() };
                    if let Ok(Ok(replies)) =
                        tokio::time::timeout(Duration::from_millis(20), client.greet_many(request)).await
                    {
                        let _ = tokio::time::timeout(Duration::from_millis(1), replies.into_inner().message()).await;
                    }
                }
                // A call that outlives its channel's handles, then its caller.
                3 => {
                    let call = tokio::spawn(async move {
                        client.greet(GreetRequest { delay_ms: 50, ..GreetRequest::default() }).await
                    });
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    call.abort();
                }
                // Ordinary use.
                _ => {
                    drop(tokio::time::timeout(Duration::from_millis(100), client.greet(GreetRequest::default())).await)
                }
            }
            channels.push(channel);
        }
        drop(channels);
        if round % 10 == 9 {
            eventually("no task is left", || tasks() <= before).await;
        }
    }
    eventually("no task is left", || tasks() <= before).await;
    eventually("no connection is left", || open_connections() <= connections).await;
    assert_eq!(backend.watches(&service()), 0);
}

#[tokio::test]
async fn a_call_goes_on_after_its_channel_is_dropped() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let before = tasks();
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
    eventually("no task is left", || tasks() <= before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_runtime_is_gone_fails_its_calls() {
    let server = Server::start("one").await;
    let backend = registry([server.address]);
    let channel = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let channel = runtime.block_on(async {
            let channel = builder(&backend).wait(Duration::from_millis(200)).build().unwrap();
            greet(&channel, None).await.unwrap();
            channel
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        channel
    })
    .join()
    .unwrap();
    let call = tokio::time::timeout(Duration::from_secs(5), greet(&channel, None));
    let status = call.await.expect("never pending").unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

/// Open sockets of this process.
fn open_connections() -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}
