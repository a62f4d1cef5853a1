//! Ordinary HTTP requests over a channel.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::*;
use bytes::Bytes;
use discovery_core::Backoff;
use discovery_tonic::{
    BalancedChannel, HttpChannel, OutlierDetection, RetryPolicy, ServedBy, Tried, WaitForReady, balance::RoundRobin,
};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::Code;
use tower::ServiceExt;

type Requests = Arc<Mutex<Vec<Request<Bytes>>>>;

/// An HTTP/2 server that answers with this status and the method and path of the request, after a
/// delay that the header `delay` sets in milliseconds.
async fn serve(status: StatusCode) -> (SocketAddr, Requests, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Requests::default();
    let seen = Arc::clone(&requests);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let seen = Arc::clone(&seen);
            connections.spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let mut answers = JoinSet::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    if request.headers().contains_key("lose-first") && seen.lock().unwrap().is_empty() {
                        seen.lock().unwrap().push(request.map(|_| Bytes::new()));
                        return;
                    }
                    answers.spawn(answer_one(request, respond, status, Arc::clone(&seen)));
                }
            });
        }
    });
    (address, requests, tasks)
}

async fn answer_one(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    status: StatusCode,
    seen: Requests,
) {
    let (parts, mut body) = request.into_parts();
    let mut content = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.len());
        content.extend_from_slice(&chunk);
    }
    let text = format!("{} {}", parts.method, parts.uri.path_and_query().unwrap());
    if let Some(delay) = parts.headers.get("delay") {
        tokio::time::sleep(Duration::from_millis(delay.to_str().unwrap().parse().unwrap())).await;
    }
    seen.lock().unwrap().push(Request::from_parts(parts, content.into()));
    let response = Response::builder().status(status).header("content-type", "text/plain").body(()).unwrap();
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(text.into(), true);
    }
}

/// A server that answers with this status and no body, and counts its connections.
async fn counting(status: StatusCode) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            connections.spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let response = Response::builder().status(status).body(()).unwrap();
                    let _ = respond.send_response(response, true);
                }
            });
        }
    });
    (address, accepted, tasks)
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}

async fn ready(builder: discovery_tonic::ChannelBuilder, count: usize) -> (BalancedChannel, HttpChannel) {
    let channel = builder.build().unwrap();
    eventually("all are ready", || crate::support::ready(&channel) == count).await;
    (channel.clone(), HttpChannel::new(channel))
}

#[tokio::test]
async fn requests_and_responses_pass_untouched() {
    let (one, requests, _tasks) = serve(StatusCode::OK).await;
    let (two, more, _others) = serve(StatusCode::NOT_FOUND).await;
    let (channel, http) = ready(builder(&registry([one, two])).timeout(Duration::from_secs(5)), 2).await;
    let mut statuses = Vec::new();
    for number in 0..20 {
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("https://elsewhere.test/items/{number}?a=b"))
            .header("x-trace", "7")
            .header("host", "elsewhere.test")
            .body(Full::new(Bytes::from_static(b"content")))
            .unwrap();
        let response = http.clone().oneshot(request).await.unwrap();
        let served_by = response.extensions().get::<ServedBy>().unwrap().instance().address().socket_addr().unwrap();
        assert!([one, two].contains(&served_by));
        statuses.push(response.status());
        assert_eq!(response.headers()["content-type"], "text/plain");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("PUT /items/{number}?a=b"));
    }
    assert!(statuses.contains(&StatusCode::OK) && statuses.contains(&StatusCode::NOT_FOUND), "{statuses:?}");
    for request in requests.lock().unwrap().iter().chain(more.lock().unwrap().iter()) {
        assert_eq!(request.body(), "content");
        let mut names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-trace"], "nothing is added");
        let authority = request.uri().authority().unwrap().as_str();
        assert!([one.to_string(), two.to_string()].contains(&authority.to_owned()), "{authority}");
    }
    // A status below 500 is no failure of the endpoint.
    assert!(channel.endpoints().iter().all(|one| one.failures == 0));
}

#[tokio::test]
async fn a_server_that_answers_503_is_ejected_and_its_responses_arrive() {
    let (good, _, _tasks) = serve(StatusCode::OK).await;
    let (bad, _, _others) = serve(StatusCode::SERVICE_UNAVAILABLE).await;
    let detection = OutlierDetection::default().base_ejection_time(Duration::from_secs(60));
    // The default policy avoids a server that has just failed, so it takes longer to be ejected.
    let builder = builder(&registry([good, bad])).policy(RoundRobin::new()).outlier_detection(detection);
    let (channel, http) = ready(builder, 2).await;
    let mut failed = 0;
    for _ in 0..200 {
        let response = http.clone().oneshot(get("/")).await.unwrap();
        failed += usize::from(response.status() == StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "GET /");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let is_ejected = channel.endpoints().iter().any(|one| one.ejected_until.is_some());
    assert!(is_ejected && (1..60).contains(&failed), "{failed} of 200\n{}", channel.endpoints());
}

#[tokio::test]
async fn a_request_without_an_endpoint_or_in_time_fails_with_the_reason() {
    let nobody = HttpChannel::new(channel(&registry([refusing().await])));
    let status = nobody.oneshot(get("/")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("none of its 1 endpoints"), "{status}");

    let (slow, requests, _tasks) = serve(StatusCode::OK).await;
    let (_, http) = ready(builder(&registry([slow])).timeout(Duration::from_millis(100)), 1).await;
    let request = Request::get("/").header("delay", "5000").body(Full::<Bytes>::default()).unwrap();
    let status = http.oneshot(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(Tried::from_status(&status).unwrap().instances().len(), 1);
    assert!(requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refused_request_is_sent_again() {
    let (refusing, refused, _tasks) = raw_h2(|_, respond| respond.send_reset(h2::Reason::REFUSED_STREAM)).await;
    let (good, requests, _others) = serve(StatusCode::OK).await;
    let often = Backoff::new(Duration::from_millis(10), Duration::from_millis(50)).unwrap();
    let (_, http) = ready(builder(&registry([refusing, good])).backoff(often), 2).await;
    for _ in 0..40 {
        let request = Request::post("/orders").body(Full::new(Bytes::from_static(b"once"))).unwrap();
        assert_eq!(http.clone().oneshot(request).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(requests.lock().unwrap().len(), 40);
    assert!(requests.lock().unwrap().iter().all(|request| request.body() == "once"));
    assert!(refused.load(Ordering::Relaxed) > 0, "the refusing peer was picked");
}

#[tokio::test]
async fn a_repeated_request_is_as_the_first_one() {
    let (one, requests, _tasks) = serve(StatusCode::OK).await;
    let often = Backoff::new(Duration::from_millis(10), Duration::from_millis(50)).unwrap();
    let (_, http) = ready(builder(&registry([one])).backoff(often).retry(RetryPolicy::new(3).unwrap()), 1).await;
    let mut request = Request::post("/").header("lose-first", "1").body(Full::new(Bytes::from_static(b"x"))).unwrap();
    request.extensions_mut().insert(WaitForReady);
    assert_eq!(http.oneshot(request).await.unwrap().status(), StatusCode::OK);
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 2);
    let names = |number: usize| requests[number].headers().keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(0), ["lose-first"]);
    assert_eq!(names(0), names(1));
}

/// A response that has ended takes no place, and is not abandoned by a caller that drops it.
/// Regression: a gateway lost its connections after every 8,192 responses.
#[tokio::test]
async fn a_response_ends_with_its_last_data_or_without_any() {
    let (empty, _, _tasks) = raw_h2(|_, respond| {
        let response = Response::builder().status(StatusCode::NO_CONTENT).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await;
    let (full, _, _others) = serve(StatusCode::OK).await;
    for peer in [empty, full] {
        let (channel, http) = ready(builder(&registry([peer])).max_requests(1), 1).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut response = http.clone().oneshot(get("/")).await.unwrap();
            while !response.body().is_end_stream() {
                let _ = response.body_mut().frame().await.unwrap().unwrap();
            }
            held.push(response);
            eventually("none is in flight", || channel.endpoints()[0].in_flight == 0).await;
        }
    }
    let (empty, accepted, _tasks) = counting(StatusCode::NO_CONTENT).await;
    let (_, http) = ready(builder(&registry([empty])), 1).await;
    for _ in 0..9_000 {
        let response = http.clone().oneshot(get("/")).await.unwrap();
        assert!(response.body().is_end_stream());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(accepted.load(Ordering::Relaxed), 1, "connections");
}

#[tokio::test]
async fn connect_is_refused_and_a_body_that_fails_is_named() {
    let (one, requests, _tasks) = serve(StatusCode::OK).await;
    let (_, http) = ready(builder(&registry([one])), 1).await;
    let connect = Request::builder().method(Method::CONNECT).uri("h:1").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(http.clone().oneshot(connect).await.unwrap_err().code(), Code::InvalidArgument);
    let failing = StreamBody::new(futures::stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("no file"))]));
    let status = http.oneshot(Request::post("/").body(failing).unwrap()).await.unwrap_err();
    assert!(Tried::from_status(&status).unwrap().instances().is_empty(), "{status:?}");
    assert!(requests.lock().unwrap().is_empty());
}
