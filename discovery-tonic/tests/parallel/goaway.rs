//! The reason why a peer ended a connection is reported by the calls that were lost, and by
//! `endpoints()`.

use std::{error::Error as StdError, time::Duration};

use crate::support::{
    frames::{self, Frames},
    *,
};
use discovery_tonic::{BalancedChannel, EndpointSettings};
use greeter::{GreetManyRequest, GreetReply, GreeterClient};
use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, Streaming};

/// An error and its sources.
fn chain(error: &(dyn StdError + 'static)) -> Vec<String> {
    let mut chain = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        chain.push(error.to_string());
        next = error.source();
    }
    chain
}

async fn stream(channel: &BalancedChannel) -> Result<Streaming<GreetReply>, Status> {
    let stream = GreeterClient::new(channel.clone()).greet_many(GreetManyRequest::default()).await?;
    Ok(stream.into_inner())
}

/// A peer that answers each request with headers if `headers`, and ends the connection a moment
/// after the first request.
async fn complaining(headers: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut peer = Frames::accept(&listener).await;
            let Some(request) = peer.find(frames::HEADERS, 0).await else { continue };
            if headers {
                // `:status: 200`
                peer.send(frames::HEADERS, frames::END_HEADERS, request.stream, &[0x88]).await;
            }
            sleep(Duration::from_millis(50)).await;
            peer.go_away_because(i32::MAX as u32, frames::ENHANCE_YOUR_CALM, "too_many_pings").await;
        }
    });
    address
}

/// Whether a lost call reports the reason.
async fn is_reported(headers: bool) -> bool {
    let channel = channel(&registry([complaining(headers).await]));
    let status = match stream(&channel).await {
        Ok(mut stream) => stream.message().await.unwrap_err(),
        Err(status) => status,
    };
    // At once, not only after the connection's own task has run.
    let chain = chain(&status);
    assert_eq!(status.code(), Code::Unavailable);
    let is_reported = chain.last().unwrap().contains("too_many_pings");
    assert!(!status.message().contains("too_many_pings"), "it is not passed on: {status:?}");
    let reported = || {
        let endpoints = channel.endpoints();
        let is_reported = endpoints.to_string().contains("too_many_pings");
        assert_eq!(endpoints[0].disconnect.is_some(), is_reported);
        is_reported
    };
    if is_reported {
        eventually("it is shown", reported).await;
    }
    is_reported
}

#[tokio::test]
async fn the_reason_of_a_goaway_is_reported() {
    for headers in [true, false] {
        assert!(is_reported(headers).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_of_a_goaway_is_reported_on_many_threads() {
    for headers in [true, false] {
        let mut reported = 0;
        for _ in 0..20 {
            reported += usize::from(is_reported(headers).await);
        }
        println!("reported {reported} times of 20");
        // Sometimes hyper notices the end of the connection before its reason.
        assert!(reported >= 18, "{reported}");
    }
}

/// A peer that allows a ping every 150 ms, as grpc-go allows one every 5 minutes by default. With
/// the third ping too many it ends the connection.
async fn with_ping_enforcement() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let mut peer = Frames::accept(&listener).await;
            let mut last = Instant::now();
            let mut strikes = 0;
            while let Some(frame) = peer.next().await {
                match (frame.kind, frame.flags) {
                    (frames::HEADERS, _) => {
                        peer.send(frames::HEADERS, frames::END_HEADERS, frame.stream, &[0x88]).await;
                    }
                    (frames::PING, 0) => {
                        peer.send(frames::PING, frames::ACK, 0, &frame.payload).await;
                        strikes += usize::from(last.elapsed() < Duration::from_millis(150));
                        last = Instant::now();
                    }
                    _ => {}
                }
                if strikes > 2 {
                    peer.go_away_because(i32::MAX as u32, frames::ENHANCE_YOUR_CALM, "too_many_pings").await;
                    break;
                }
            }
        }
    });
    address
}

/// Regression: with pings every 1 s at a server that allows one every 5 s, a stream died every 4.0
/// s, 12 of 12 times.
#[tokio::test]
async fn pings_slow_down_if_a_peer_complains() {
    let settings = EndpointSettings::default().http2_keep_alive_interval(Duration::from_millis(50)).unwrap();
    let backend = registry([with_ping_enforcement().await]);
    let channel = builder(&backend).endpoint_settings(move |_| settings.clone()).build().unwrap();
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let mut ended = 0;
    loop {
        let mut one = match stream(&channel).await {
            Ok(one) => one,
            Err(status) => panic!("{status:?}"),
        };
        match timeout(Duration::from_secs(3), one.message()).await {
            Ok(end) => assert_eq!(end.unwrap_err().code(), Code::Unavailable),
            Err(_) => break,
        }
        ended += 1;
        assert!(ended <= 3, "50 ms, 100 ms and perhaps 200 ms are too often");
    }
    println!("a stream lives on after {ended} were lost");
    assert!(ended >= 2);
}

/// One GOAWAY refuses one call and loses another; the lost call reports the reason nevertheless.
#[tokio::test]
async fn the_reason_is_reported_if_another_call_was_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = registry([listener.local_addr().unwrap()]);
    let channel = channel(&backend);
    tokio::spawn(async move {
        let mut peer = Frames::accept(&listener).await;
        let first = peer.until(frames::HEADERS, 0).await;
        peer.send(frames::HEADERS, frames::END_HEADERS, first.stream, &[0x88]).await;
        peer.until(frames::HEADERS, 0).await;
        peer.go_away_because(first.stream, frames::ENHANCE_YOUR_CALM, "too_many_pings").await;
        sleep(Duration::from_millis(50)).await;
    });
    let mut first = stream(&channel).await.unwrap();
    let other = Server::start("other").await;
    let refused = tokio::spawn({
        let channel = channel.clone();
        let mut request = tonic::Request::new(greeter::GreetRequest::default());
        request.set_timeout(Duration::from_secs(5));
        request.extensions_mut().insert(discovery_tonic::WaitForReady);
        async move { GreeterClient::new(channel).greet(request).await.map(|answer| answer.into_inner().server) }
    });
    sleep(Duration::from_millis(20)).await;
    backend.put(&service(), other.instance());
    let status = first.message().await.unwrap_err();
    let chain = chain(&status);
    assert!(chain.last().unwrap().contains("too_many_pings"), "{chain:?}");
    assert_eq!(refused.await.unwrap().unwrap(), "other");
}
