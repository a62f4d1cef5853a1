//! The channel's default timeout, its limits of calls in flight, and its erased type.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::*;
use discovery_core::ErrorKind;
use discovery_tonic::{BalancedChannel, EndpointSettings, ServedBy, Tried, WaitForReady};
use futures::future::join_all;
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Code, Request, Status, body::Body};
use tower::{BoxError, ServiceExt, util::BoxCloneSyncService};

fn slow(delay: Duration) -> GreetRequest {
    GreetRequest { delay_ms: delay.as_millis().try_into().unwrap(), ..GreetRequest::default() }
}

#[tokio::test]
async fn a_call_without_a_timeout_gets_that_of_the_channel() {
    let server = Server::start("slow").await;
    let channel = builder(&registry([server.address])).timeout(Duration::from_millis(200)).build().unwrap();
    let start = Instant::now();
    let status = greet_with(&channel, None, slow(Duration::from_secs(10))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(Tried::from_status(&status).unwrap().instances().len(), 1);
    // Its own timeout wins, a longer one too.
    greet_with(&channel, Some(Duration::from_secs(10)), slow(Duration::from_millis(400))).await.unwrap();

    // A stream that lasts longer ends with the same status.
    let many = GreetManyRequest { count: 100, interval_ms: 50, ..GreetManyRequest::default() };
    let mut answers = GreeterClient::new(channel).greet_many(many).await.unwrap().into_inner();
    let ended = loop {
        match answers.message().await {
            Ok(answer) => assert!(answer.is_some(), "it ends at the timeout"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
}

#[tokio::test]
async fn the_timeout_is_sent_to_the_server_once() {
    let sent: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&sent);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let timeouts = request.headers().get_all("grpc-timeout").iter();
            seen.lock().unwrap().extend(timeouts.map(|timeout| timeout.to_str().unwrap().to_owned()));
            answer(&mut respond, "0");
        }
    });
    let channel = builder(&registry([peer])).timeout(Duration::from_secs(3)).build().unwrap();
    // A call that waits first has less time left.
    eventually("it is ready", || ready(&channel) == 1).await;
    let _ = greet_with(&channel, None, GreetRequest::default()).await;
    let _ = greet_with(&channel, Some(Duration::from_millis(700)), GreetRequest::default()).await;
    let mut malformed = Request::new(GreetRequest::default());
    malformed.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let _ = GreeterClient::new(channel).greet(malformed).await;
    assert_eq!(*sent.lock().unwrap(), ["3000000u", "700000u", "3000000u"]);
}

#[tokio::test]
async fn limits_of_nothing_are_refused() {
    let backend = registry([]);
    let timeout = builder(&backend).timeout(Duration::ZERO).build();
    let requests = builder(&backend).max_requests(0).build();
    for (built, expected) in [(timeout, "invalid timeout 0ns: allowed are"), (requests, "invalid max_requests 0")] {
        let error = built.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn an_endpoint_takes_no_more_calls_than_its_limit() {
    let servers = servers(2).await;
    let settings = EndpointSettings::default().concurrency_limit(2).unwrap();
    let channel = builder(&registry(servers.iter().map(|server| server.address)))
        .endpoint_settings(move |_| settings.clone())
        .build()
        .unwrap();
    eventually("both are ready", || ready(&channel) == 2).await;
    let calls = (0..12).map(|_| greet_with(&channel, None, slow(Duration::from_millis(100))));
    let watched = async {
        let mut most = 0;
        for _ in 0..60 {
            most = channel.endpoints().iter().map(|one| one.in_flight).fold(most, u32::max);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        most
    };
    let start = Instant::now();
    let (answers, most) = tokio::join!(join_all(calls), watched);
    assert!(answers.iter().all(Result::is_ok), "the others wait for a place");
    assert_eq!(most, 2);
    // Three rounds of four calls.
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
}

/// A call beyond the channel's limit fails at once, also one that asks to wait.
#[tokio::test]
async fn a_channel_takes_no_more_calls_than_its_limit() {
    let server = Server::start("one").await;
    let channel = builder(&registry([server.address])).max_requests(2).build().unwrap();
    eventually("it is ready", || ready(&channel) == 1).await;
    let mut client = GreeterClient::new(channel.clone());
    let many = || GreetManyRequest { count: 1000, interval_ms: 20, ..GreetManyRequest::default() };
    let mut one = client.greet_many(many()).await.unwrap().into_inner();
    let two = client.greet_many(many()).await.unwrap().into_inner();
    one.message().await.unwrap();
    let mut waits = Request::new(GreetRequest::default());
    waits.extensions_mut().insert(WaitForReady);
    for request in [Request::new(GreetRequest::default()), waits] {
        let status = client.greet(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("2 calls of "), "{status}");
        assert!(status.message().ends_with(" are in flight, the limit of the channel"), "{status}");
        assert!(Tried::from_status(&status).unwrap().instances().is_empty());
    }
    // A clone shares the limit, and a place returns with the end of the response.
    drop(two);
    GreeterClient::new(channel.clone()).greet(GreetRequest::default()).await.unwrap();
    drop(one);
    // Calls that fail, that expire and that are given up return theirs too.
    for _ in 0..5 {
        let _ = greet_with(&channel, Some(Duration::from_millis(20)), slow(Duration::from_secs(5))).await.unwrap_err();
        let given_up = greet_with(&channel, None, slow(Duration::from_secs(5)));
        let _ = tokio::time::timeout(Duration::from_millis(20), given_up).await.unwrap_err();
    }
    drop(server);
    for _ in 0..5 {
        let _ = greet_with(&channel, Some(Duration::from_millis(20)), GreetRequest::default()).await;
    }
    let status = greet_with(&channel, Some(Duration::from_millis(20)), GreetRequest::default()).await.unwrap_err();
    assert!(!status.message().contains("the limit of the channel"), "{status}");
}

#[tokio::test]
async fn an_erased_channel_keeps_who_served_and_who_was_tried() {
    type AnyChannel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, BoxError>;
    let erased = |channel: BalancedChannel| {
        AnyChannel::new(channel.map_response(|response| response.map(Body::from)).map_err(BoxError::from))
    };
    let server = Server::start("one").await;
    let mut client = GreeterClient::new(erased(channel(&registry([server.address]))));
    let response = client.greet(GreetRequest::default()).await.unwrap();
    assert_eq!(response.extensions().get::<ServedBy>().unwrap().instance().id().as_str(), server.address.to_string());
    let mut request = Request::new(slow(Duration::from_secs(5)));
    request.set_timeout(Duration::from_millis(100));
    let status: Status = client.greet(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(Tried::from_status(&status).unwrap().instances().len(), 1);
}
