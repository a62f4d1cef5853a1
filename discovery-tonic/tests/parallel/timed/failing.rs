//! Endpoints that fail: which failures count against them, and that failing attracts no calls (B8,
//! B10; figure F16).

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
use discovery_tonic::{BalancedChannel, OutlierDetection, balance::RoundRobin};
use greeter::{GreetRequest, Greeter, GreeterClient};
use http_body_util::BodyExt;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{interval, sleep},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status};
use tower::{Service, service_fn};

/// How a server answers a request; `None`: as the greeter does.
type Answers = fn(&http::Request<tonic::body::Body>) -> Option<Code>;

/// A greeter that answers some requests at once with a code; also returns how many requests it got.
async fn answering(answers: Answers, in_trailers: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let failing = tower::layer::layer_fn(move |inner: tonic::service::Routes| {
        let counted = Arc::clone(&counted);
        service_fn(move |request: http::Request<tonic::body::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let code = answers(&request);
            let mut inner = inner.clone();
            async move {
                match code.map(|code| Status::new(code, "on demand")) {
                    None => inner.call(request).await,
                    Some(status) if !in_trailers => Ok(status.into_http()),
                    Some(status) => {
                        let trailers =
                            async move { Some(Ok::<_, Status>(status.into_http::<()>().into_parts().0.headers)) };
                        let body = http_body_util::Empty::new().map_err(|never| match never {});
                        let response = http::Response::builder().header("content-type", "application/grpc");
                        Ok(response.body(tonic::body::Body::new(body.with_trailers(trailers))).unwrap())
                    }
                }
            }
        })
    });
    tokio::spawn(async move {
        let server =
            tonic::transport::Server::builder().layer(failing).add_service(Greeter::new("failing").into_service());
        server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    (address, count)
}

/// Makes calls at a rate, which take `work` if they succeed; returns how many were made and how
/// many failed.
async fn steadily(channel: &BalancedChannel, rate: u32, work: Duration, time: Duration) -> (usize, usize) {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    let mut calls = JoinSet::new();
    let start = Instant::now();
    while start.elapsed() < time {
        ticks.tick().await;
        let channel = channel.clone();
        let request = GreetRequest { delay_ms: work.as_millis().try_into().unwrap(), ..GreetRequest::default() };
        calls.spawn(async move { greet_with(&channel, None, request).await.is_err() });
    }
    let ended = calls.join_all().await;
    (ended.len(), ended.into_iter().filter(|failed| *failed).count())
}

fn was_ejected(channel: &BalancedChannel) -> bool {
    channel.endpoints().iter().any(|endpoint| endpoint.ejected_until.is_some())
}

const WORK: Duration = Duration::from_millis(60);

/// One of four fails every call at once, and therefore gets fewer calls instead of more. Only the
/// load decides, as nothing is ejected here.
#[tokio::test]
async fn failing_fast_attracts_no_calls() {
    let _turn = turn().await;
    let scene = async |name: &str, answers: Answers, in_trailers: bool| {
        let servers = servers(3).await;
        let (failing, _) = answering(answers, in_trailers).await;
        let off = OutlierDetection::default().consecutive_failures(None).failure_percentage(None);
        let backend = registry(servers.iter().map(|server| server.address).chain([failing]));
        let channel = builder(&backend).outlier_detection(off).build().unwrap();
        eventually("all ready", || ready(&channel) == 4).await;
        let (calls, failed) = steadily(&channel, 200, WORK, Duration::from_secs(8)).await;
        println!("{name}: {failed} of {calls} calls failed");
        // Before the penalties have added up, a few calls go there.
        assert!(failed * 100 <= calls * 2, "{name}: {failed} of {calls}");
        assert!(!was_ejected(&channel));
    };
    tokio::join!(
        scene("INTERNAL", |_| Some(Code::Internal), false),
        scene("UNAVAILABLE", |_| Some(Code::Unavailable), false),
        scene("DATA_LOSS in trailers", |_| Some(Code::DataLoss), true),
        scene("UNKNOWN", |_| Some(Code::Unknown), false),
    );
}

/// A server that fails all calls is ejected, with any of the failing codes.
#[tokio::test]
async fn b08_an_endpoint_that_fails_all_calls_is_ejected() {
    let _turn = turn().await;
    let scene = async |answers: Answers, in_trailers: bool| {
        let servers = servers(3).await;
        let (failing, count) = answering(answers, in_trailers).await;
        let backend = registry(servers.iter().map(|server| server.address).chain([failing]));
        let detection = OutlierDetection::default().interval(Duration::from_secs(1)).request_volume(10);
        let detection = detection.base_ejection_time(Duration::from_secs(60));
        // Round robin, since the default policy hardly uses it.
        let channel = builder(&backend).policy(RoundRobin::new()).outlier_detection(detection).build().unwrap();
        eventually("all ready", || ready(&channel) == 4).await;
        let start = Instant::now();
        while !was_ejected(&channel) {
            let _ = greet(&channel, None).await;
            assert!(start.elapsed() < Duration::from_secs(10), "not ejected");
            sleep(Duration::from_millis(1)).await;
        }
        let before = count.load(Ordering::Relaxed);
        for _ in 0..100 {
            greet(&channel, None).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), before);
    };
    tokio::join!(
        scene(|_| Some(Code::Internal), false),
        scene(|_| Some(Code::Unavailable), true),
        scene(|_| Some(Code::DataLoss), true),
        scene(|_| Some(Code::Unknown), false),
    );
}

/// B10: a deployment adds a method, which the old half of the servers does not have. Other codes do
/// not reflect a server's health either.
#[tokio::test]
async fn codes_that_are_not_failing_eject_no_endpoint() {
    let _turn = turn().await;
    let scene = async |answers: Answers| {
        let servers = servers(2).await;
        let (first, _) = answering(answers, false).await;
        let (second, _) = answering(answers, false).await;
        let backend = registry(servers.iter().map(|server| server.address).chain([first, second]));
        let detection = OutlierDetection::default().interval(Duration::from_secs(1)).request_volume(10);
        let channel = builder(&backend).outlier_detection(detection).build().unwrap();
        eventually("all ready", || ready(&channel) == 4).await;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            let _ = greet(&channel, None).await;
            assert!(!was_ejected(&channel));
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(
        scene(|_| Some(Code::Unimplemented)),
        scene(|_| Some(Code::NotFound)),
        scene(|_| Some(Code::ResourceExhausted)),
    );
}

/// Requests that fail on every server, from one caller or from all, do not reflect a server's
/// health.
#[tokio::test]
async fn b08_poisonous_requests_eject_no_endpoint() {
    let _turn = turn().await;
    let poisonous: Answers = |request| request.headers().contains_key("poison").then_some(Code::Internal);
    let backend = registry([]);
    for _ in 0..4 {
        backend.put(&service(), instance(answering(poisonous, false).await.0));
    }
    let detection = OutlierDetection::default().interval(Duration::from_secs(1)).request_volume(10);
    let channel = builder(&backend).outlier_detection(detection).build().unwrap();
    eventually("all ready", || ready(&channel) == 4).await;
    let poisoner = channel.clone();
    let poison = async {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5) {
            let mut request = tonic::Request::new(GreetRequest::default());
            request.metadata_mut().insert("poison", "yes".parse().unwrap());
            let status = GreeterClient::new(poisoner.clone()).greet(request).await.unwrap_err();
            assert_eq!(status.code(), Code::Internal);
            assert!(!was_ejected(&poisoner));
            sleep(Duration::from_millis(1)).await;
        }
    };
    let (_, (calls, failed)) =
        tokio::join!(poison, steadily(&channel, 100, Duration::from_millis(10), Duration::from_secs(5)));
    println!("{failed} of {calls} other calls failed");
    assert_eq!(failed, 0);
}

/// The user chooses which codes count.
#[tokio::test]
async fn failing_codes_can_be_chosen() {
    let _turn = turn().await;
    let servers = servers(3).await;
    let (failing, _) = answering(|_| Some(Code::ResourceExhausted), false).await;
    let backend = registry(servers.iter().map(|server| server.address).chain([failing]));
    let detection = OutlierDetection::default()
        .failing_codes([Code::ResourceExhausted])
        .interval(Duration::from_secs(1))
        .request_volume(10);
    let channel = builder(&backend).policy(RoundRobin::new()).outlier_detection(detection).build().unwrap();
    let start = Instant::now();
    while !was_ejected(&channel) {
        let _ = greet(&channel, None).await;
        assert!(start.elapsed() < Duration::from_secs(10), "not ejected");
    }
}
