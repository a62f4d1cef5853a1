//! A fault of one call, peer or hook affects only that call or that endpoint (B11).

use std::{collections::VecDeque, error::Error as StdError, time::Duration};

use super::turn;
use crate::support::{
    frames::{self, Frames},
    *,
};
use discovery_core::{Error, ErrorKind};
use discovery_tonic::{BalancedChannel, EndpointSettings, OutlierDetection, Tried};
use futures::future::join_all;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status};

/// A peer that answers each call with NOT_FOUND, every 20th with a message of this size.
async fn with_large_statuses(size: usize) -> (std::net::SocketAddr, JoinSet<()>) {
    let (address, _, tasks) = raw_h2_with(move |n, respond| {
        let message = if n % 20 == 7 { "x".repeat(size) } else { "short".to_owned() };
        let response = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
        // The client may have disconnected by now.
        let _ = respond.send_response(response.header("grpc-message", message).body(()).unwrap(), true);
    })
    .await;
    (address, tasks)
}

/// Makes this many calls at once; returns how they ended.
async fn calls(channel: &BalancedChannel, count: usize) -> Vec<Status> {
    let mut statuses = Vec::new();
    let mut running = JoinSet::new();
    for _ in 0..count {
        if running.len() == 16 {
            statuses.push(running.join_next().await.unwrap().unwrap());
        }
        let channel = channel.clone();
        running.spawn(async move { greet(&channel, Some(Duration::from_secs(5))).await.unwrap_err() });
    }
    statuses.extend(running.join_all().await);
    statuses
}

/// Regression: statuses of 100 kB on 5 % of the calls made 642 of 1,900 others fail.
#[tokio::test]
async fn b11_large_headers_reach_their_callers_and_fail_no_other_call() {
    let _turn = turn().await;
    for size in [17_000, 100_000, 1 << 20] {
        let (peer, _tasks) = with_large_statuses(size).await;
        let channel = channel(&registry([peer]));
        for status in calls(&channel, 400).await {
            assert_eq!(status.code(), Code::NotFound, "{size}: {status:?}");
            assert!([5, size].contains(&status.message().len()));
        }
    }
}

#[tokio::test]
async fn headers_above_the_limit_fail_their_call_and_do_not_blame_the_endpoint() {
    let _turn = turn().await;
    for (limit, size) in [(1 << 14, 17_000), (1 << 14, 60_000), (1 << 16, 100_000), (1 << 20, 1_200_000)] {
        let (peer, _tasks) = with_large_statuses(size).await;
        let settings = EndpointSettings::default().http2_max_header_list_size(limit).unwrap();
        let channel = builder(&registry([peer])).endpoint_settings(move |_| settings.clone()).build().unwrap();
        let statuses = calls(&channel, 200).await;
        let (large, others): (Vec<_>, Vec<_>) = statuses.iter().partition(|one| one.code() != Code::NotFound);
        assert_eq!((large.len(), others.len()), (10, 190), "{size} of {limit}: {large:?}");
        for status in large {
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            assert!(status.message().contains("max_header_list_size"), "{status:?}");
            assert_eq!(Tried::from_status(status).unwrap().instances().len(), 1);
        }
        let endpoints = channel.endpoints();
        assert_eq!((endpoints[0].failures, endpoints[0].ejected_until), (0, None));
    }
}

#[tokio::test]
async fn an_https_origin_is_refused_over_plain_tcp() {
    let _turn = turn().await;
    let server = Server::start("one").await;
    let settings = EndpointSettings::default().origin("https://greeter.internal").unwrap();
    let channel = builder(&registry([server.address])).endpoint_settings(move |_| settings.clone()).build().unwrap();
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("https origin over plain TCP"), "{status:?}");
    let mut next: Option<&dyn StdError> = Some(&status);
    let mut kinds = Vec::new();
    while let Some(error) = next {
        kinds.extend(error.downcast_ref::<Error>().map(Error::kind));
        next = error.source();
    }
    assert_eq!(kinds, [ErrorKind::InvalidInput]);
    assert_eq!(server.accepted(), 0, "nothing is sent in clear text");
}

/// A connection that answers each call after 100 ms, even if it was given up by then, and its first
/// call on request.
async fn late_answers(mut peer: Frames, mut first: oneshot::Receiver<()>) {
    let mut waiting = VecDeque::new();
    let mut first_stream = None;
    let mut told = false;
    loop {
        let due = waiting.front().map_or_else(|| Instant::now() + Duration::from_secs(60), |(at, _)| *at);
        tokio::select! {
            frame = peer.next() => {
                let Some(frame) = frame else { return };
                if frame.kind == frames::HEADERS {
                    match first_stream {
                        None => first_stream = Some(frame.stream),
                        Some(_) => waiting.push_back((Instant::now() + Duration::from_millis(100), frame.stream)),
                    }
                }
            }
            () = sleep_until(due) => {
                let (_, stream) = waiting.pop_front().expect("it is due");
                peer.answer(stream, "5").await;
            }
            _ = &mut first, if !told => {
                told = true;
                peer.answer(first_stream.expect("it was the first call"), "5").await;
            }
        }
    }
}

/// A channel to such a peer, and a call that is not given up. The receiver yields, for each
/// connection, the sender that makes the peer answer its first call.
async fn with_late_answers() -> (BalancedChannel, JoinHandle<Status>, mpsc::UnboundedReceiver<oneshot::Sender<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = registry([listener.local_addr().unwrap()]);
    let channel = builder(&backend).outlier_detection(OutlierDetection::default().silence(None)).build().unwrap();
    let (connected, connections) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (tell, told) = oneshot::channel();
            let peer = Frames::accept(&listener).await;
            drop(connected.send(tell));
            tokio::spawn(late_answers(peer, told));
        }
    });
    let innocent = tokio::spawn({
        let channel = channel.clone();
        async move { greet(&channel, None).await.unwrap_err() }
    });
    eventually("it is in flight", || channel.endpoints().first().is_some_and(|one| one.in_flight == 1)).await;
    // After its first answer the peer gets many calls.
    assert_eq!(greet(&channel, None).await.unwrap_err().code(), Code::NotFound);
    (channel, innocent, connections)
}

/// Makes a hundred calls at once that are given up before their answers arrive.
async fn abandon_a_hundred(channel: &BalancedChannel) {
    let calls = (0..100).map(|_| timeout(Duration::from_millis(20), greet(channel, None)));
    assert!(join_all(calls).await.iter().all(Result::is_err));
}

/// Regression: 1,024 late answers ended the connection with all its other calls.
#[tokio::test]
async fn b11_late_answers_to_abandoned_calls_end_no_connection() {
    let _turn = turn().await;
    let (channel, innocent, mut connections) = with_late_answers().await;
    let tell = connections.recv().await.unwrap();
    for _ in 0..30 {
        abandon_a_hundred(&channel).await;
    }
    sleep(Duration::from_millis(200)).await;
    tell.send(()).unwrap();
    let status = innocent.await.unwrap();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(connections.try_recv().is_err(), "one connection");
}

/// Peers and proxies count abandoned calls, too: the connection is replaced before one of them ends
/// it.
#[tokio::test]
async fn a_connection_of_many_abandoned_calls_is_replaced() {
    let _turn = turn().await;
    let (channel, innocent, mut connections) = with_late_answers().await;
    let tell = connections.recv().await.unwrap();
    let mut hundreds = 0;
    while connections.is_empty() {
        abandon_a_hundred(&channel).await;
        hundreds += 1;
        assert!(hundreds < 120, "it is not replaced");
    }
    println!("replaced after {hundreds} hundreds");
    assert!(hundreds > 80);
    tell.send(()).unwrap();
    let status = innocent.await.unwrap();
    assert_eq!(status.code(), Code::NotFound, "calls on the former connection continue: {status:?}");
}
