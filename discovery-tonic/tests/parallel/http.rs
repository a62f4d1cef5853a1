//! Ordinary HTTP requests over a channel.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::support::*;
use bytes::Bytes;
use discovery_core::Backoff;
use discovery_tonic::{BalancedChannel, HttpChannel, OutlierDetection, ServedBy, Tried, balance::RoundRobin};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
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
    assert!(refused.load(std::sync::atomic::Ordering::Relaxed) > 0, "the refusing peer was picked");
}
