//! What one call, peer or hook does wrong costs that call or that endpoint, and no others (B11).

mod support;

use std::{error::Error as StdError, time::Duration};

use discovery_core::{Error, ErrorKind};
use discovery_tonic::{EndpointSettings, Tried};
use support::*;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// A peer that answers each call with NOT_FOUND, and every 20th with a message of this size.
async fn with_large_statuses(size: usize) -> (std::net::SocketAddr, JoinSet<()>) {
    let (address, _, tasks) = raw_h2_with(move |n, respond| {
        let message = if n % 20 == 7 { "x".repeat(size) } else { "short".to_owned() };
        let response = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
        // A peer may have gone by now.
        let _ = respond.send_response(response.header("grpc-message", message).body(()).unwrap(), true);
    })
    .await;
    (address, tasks)
}

/// Many calls at once; how they ended.
async fn calls(channel: &discovery_tonic::BalancedChannel, count: usize) -> Vec<Status> {
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

/// Statuses of 100 kB on 5 % of the calls failed 642 of 1,900 others.
#[tokio::test]
async fn large_headers_reach_their_callers_and_hurt_no_others() {
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
async fn headers_above_the_limit_are_one_honest_error_and_not_the_endpoints_fault() {
    for (limit, size) in [(1 << 14, 17_000), (1 << 14, 60_000), (1 << 16, 100_000), (1 << 20, 1_200_000)] {
        let (peer, _tasks) = with_large_statuses(size).await;
        let settings = EndpointSettings::default().max_header_list_size(limit).unwrap();
        let channel = builder(&registry([peer])).endpoint(move |_| settings.clone()).build().unwrap();
        let statuses = calls(&channel, 200).await;
        let (large, others): (Vec<_>, Vec<_>) = statuses.iter().partition(|one| one.code() != Code::NotFound);
        assert_eq!((large.len(), others.len()), (10, 190), "{size} of {limit}: {large:?}");
        for status in large {
            assert_eq!(status.code(), Code::Internal, "{status:?}");
            assert!(status.message().contains("max_header_list_size"), "{status:?}");
            assert_eq!(Tried::of(status).unwrap().instances().len(), 1);
        }
        let endpoints = channel.endpoints();
        assert_eq!((endpoints[0].failures, endpoints[0].out_until), (0, None));
    }
}

#[tokio::test]
async fn an_https_origin_is_refused_over_plain_tcp() {
    let server = Server::start("one").await;
    let settings = EndpointSettings::default().origin("https://greeter.internal").unwrap();
    let channel = builder(&registry([server.address])).endpoint(move |_| settings.clone()).build().unwrap();
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
