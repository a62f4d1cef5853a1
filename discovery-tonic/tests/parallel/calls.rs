//! Single calls: waiting, deadlines, proofs, what is reported about them (B1 to B3, B9), and the
//! four kinds of calls.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::support::*;
use discovery_core::{
    Error, ErrorKind, Instance, Resolver, ServiceName, SkippedEntries, Snapshot, UpdateStream,
    backend::{BadEntry, Entry, Feed, Recovered, Source},
};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, EndpointSettings, ServedBy, Tried, WaitForReady};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use tokio::{sync::Notify, task::JoinSet};
use tonic::{Code, Request};

#[tokio::test]
async fn fault_c5_an_empty_set_fails_at_once_and_names_the_service() {
    let channel = channel(&MemoryBackend::new());
    for _ in 0..3 {
        let call = tokio::time::timeout(Duration::from_secs(1), greet(&channel, None));
        let status = call.await.expect("it fails at once").unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("greeter") && status.message().contains("no instances"), "{status:?}");
    }
}

/// Entries that cannot be read, such as those in another layout.
#[derive(Debug)]
struct Unreadable(usize);

#[async_trait::async_trait]
impl Source for Unreadable {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        let error = Error::new(ErrorKind::InvalidInput, "it has no Addr");
        let entry = |number: usize| BadEntry { key: number.to_string(), id: None, revision: 1, error: error.clone() };
        let _live = feed.reset((0..self.0).map(entry).map(Entry::Bad));
        std::future::pending().await
    }
}

/// A resolver that panics when it is asked why.
struct Speechless;

#[async_trait::async_trait]
impl Resolver for Speechless {
    async fn list(&self, _: &ServiceName) -> Result<Snapshot, Error> {
        Ok(Snapshot::default())
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        MemoryBackend::new().watch(service)
    }

    fn skipped_entries(&self, _: &ServiceName) -> SkippedEntries {
        panic!("a fault of the resolver")
    }
}

/// The methods of the channel hide none of tower's.
#[tokio::test]
async fn tower_service_ext_can_be_used_with_a_channel() {
    use tower::ServiceExt;
    let mut channel = channel(&MemoryBackend::new());
    channel.ready().await.unwrap();
    let request = http::Request::new(tonic::body::Body::empty());
    assert_eq!(channel.oneshot(request).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_empty_set_is_explained_by_skipped_entries() {
    for (entries, part) in [(0, None), (1, Some("1 entry is skipped")), (3, Some("3 entries are skipped"))] {
        let channel = BalancedChannel::new(Recovered::new(Unreadable(entries)), service()).unwrap();
        let status = greet(&channel, None).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message().contains("skipped"), part.is_some(), "{status:?}");
        if let Some(part) = part {
            assert!(status.message().contains(part) && status.message().contains("it has no Addr"), "{status:?}");
            let error = channel.wait_until_ready(Duration::from_millis(10)).await.unwrap_err();
            assert!(error.report().to_string().contains("it has no Addr"), "{error:?}");
        }
    }
    let status = greet(&BalancedChannel::new(Speechless, service()).unwrap(), None).await.unwrap_err();
    assert!(status.message().contains("no instances"), "a panic of the resolver costs no call its error: {status:?}");
}

/// Callers that repeat a call which fails at once, without a pause. A runtime of one thread must
/// still run its other tasks, and must be able to shut down. Regression: a runtime that was dropped
/// during such a call waited for it forever, since nothing in the loop ever yielded.
#[test]
fn b11_calls_that_fail_at_once_leave_their_thread_to_other_tasks() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refuses = futures::executor::block_on(refusing());
    let scenes = [
        ("no instances", None, None, true),
        ("no instances, and no time left", None, Some(Duration::ZERO), true),
        ("an endpoint that refuses", Some(refuses), None, true),
        ("a channel whose runtime is gone", None, None, false),
    ];
    for (what, endpoint, time, outlives) in scenes {
        let (ended, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let own = runtime();
            let channel = own.block_on(async { channel(&registry(endpoint)) });
            let others = if outlives { own } else { runtime() };
            let calls = async {
                loop {
                    greet(&channel, time).await.unwrap_err();
                }
            };
            let _: Result<(), _> =
                others.block_on(async { tokio::time::timeout(Duration::from_millis(300), calls).await });
            ended.send(()).unwrap();
        });
        wait.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("{what}: the timer never ran"));
    }
}

/// A registry that is silent until it is opened.
#[derive(Debug)]
struct Late {
    open: Arc<Notify>,
    instance: Instance,
}

#[tonic::async_trait]
impl Source for Late {
    async fn follow(&self, _: &ServiceName, feed: Feed) -> Result<(), Error> {
        self.open.notified().await;
        let _live = feed.reset([Entry::Valid(self.instance.clone())]);
        std::future::pending().await
    }
}

#[tokio::test]
async fn b03_before_the_first_set_a_call_waits_until_its_deadline() {
    let server = Server::start("late").await;
    let open = Arc::new(Notify::new());
    let resolver = Recovered::new(Late { open: Arc::clone(&open), instance: server.instance() });
    let channel =
        BalancedChannel::builder(resolver, service()).wait_timeout(Duration::from_millis(700)).build().unwrap();
    let start = Instant::now();
    let status = greet(&channel, Some(Duration::from_millis(300))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!((290..600).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    let start = Instant::now();
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "without a deadline the wait is limited");
    assert!((690..1_500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());

    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { greet(&channel, None).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    open.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), server.address);
}

#[tokio::test]
async fn a_registry_that_is_lost_from_the_start_fails_calls_with_the_reason() {
    let backend = MemoryBackend::new();
    backend.interrupt_with(Error::new(ErrorKind::PermissionDenied, "not for you"));
    let channel = channel(&backend);
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("not for you"), "{status:?}");
    let tried = Tried::from_status(&status).unwrap();
    let cause = std::error::Error::source(tried).unwrap();
    assert!(cause.to_string().contains("not for you"), "{cause}");
    let error = channel.wait_until_ready(Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.report().to_string().matches("not for you").count(), 1, "{}", error.report());
}

#[tokio::test]
async fn fault_c5_a_call_that_asks_to_wait_waits_for_an_instance() {
    let backend = MemoryBackend::new();
    let channel = channel(&backend);
    let waiting = tokio::spawn({
        let mut client = GreeterClient::new(channel.clone());
        let mut request = Request::new(GreetRequest::default());
        request.extensions_mut().insert(WaitForReady);
        async move { client.greet(request).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let server = Server::start("late").await;
    backend.put(&service(), server.instance());
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().server, "late");

    let channel = builder(&MemoryBackend::new()).wait_timeout(Duration::from_millis(200)).build().unwrap();
    let mut request = Request::new(GreetRequest::default());
    request.extensions_mut().insert(WaitForReady);
    let status = GreeterClient::new(channel).greet(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "a call that asks to wait is limited too");
}

#[tokio::test]
async fn b03_no_call_outlives_its_deadline() {
    let server = Server::start("slow").await;
    let channel = channel(&registry([server.address]));
    let start = Instant::now();
    let slow = GreetRequest { delay_ms: 60_000, ..GreetRequest::default() };
    let status = greet_with(&channel, Some(Duration::from_millis(300)), slow).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(Tried::from_status(&status).unwrap().instances(), [server.instance().id().clone()]);
    assert!(start.elapsed() < Duration::from_millis(600));

    // Slow messages, and messages that arrive faster than they are read.
    for interval_ms in [50, 0] {
        let start = Instant::now();
        let mut request =
            Request::new(GreetManyRequest { count: u32::MAX, interval_ms, ..GreetManyRequest::default() });
        request.set_timeout(Duration::from_millis(300));
        let mut replies = GreeterClient::new(channel.clone()).greet_many(request).await.unwrap().into_inner();
        let status = loop {
            match replies.message().await {
                Ok(reply) => assert!(reply.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!((290..900).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    }
    eventually("nothing in flight", || channel.endpoints()[0].in_flight == 0).await;
}

#[tokio::test]
async fn in_flight_is_counted_until_the_response_stream_ends() {
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    let in_flight = || channel.endpoints()[0].in_flight;
    let mut client = GreeterClient::new(channel.clone());
    let request = GreetManyRequest { count: 3, interval_ms: 10, ..GreetManyRequest::default() };
    let mut replies = client.greet_many(request.clone()).await.unwrap().into_inner();
    assert_eq!(in_flight(), 1);
    while replies.message().await.unwrap().is_some() {}
    assert_eq!(in_flight(), 0, "the stream has ended, although it is not dropped yet");
    let unread = client.greet_many(request).await.unwrap();
    assert_eq!(in_flight(), 1);
    drop(unread);
    assert_eq!(in_flight(), 0, "dropped unread");
    // A stream that waits for the next message, and one that receives more messages than are read.
    for interval_ms in [60_000, 0] {
        let request = GreetManyRequest { count: u32::MAX, interval_ms, ..GreetManyRequest::default() };
        let mut half_read = client.greet_many(request).await.unwrap().into_inner();
        half_read.message().await.unwrap().unwrap();
        assert_eq!(in_flight(), 1);
        drop(half_read);
        assert_eq!(in_flight(), 0, "dropped half-read");
    }
    assert_eq!(channel.endpoints()[0].failures, 0, "this is not a failure of the endpoint");
}

#[tokio::test]
async fn b09_a_request_that_may_have_been_processed_is_not_repeated_and_names_the_tried_instance() {
    let fail: OnRequest = |_, respond| respond.send_reset(h2::Reason::INTERNAL_ERROR);
    let (failing, requests, _tasks) = raw_h2(fail).await;
    let channel = channel(&registry([failing]));
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert_eq!(requests.load(Ordering::Relaxed), 1);
    let tried = Tried::from_status(&status).unwrap();
    assert_eq!(tried.instances(), [instance(failing).id().clone()]);
    assert!(std::error::Error::source(tried).is_some(), "with the cause");
    assert!(
        !status.message().contains(&failing.to_string()) && status.metadata().is_empty(),
        "nothing is passed on to other processes"
    );
}

#[tokio::test]
async fn an_error_of_a_server_names_its_instance() {
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    let mut client = tonic::client::Grpc::new(channel);
    let codec = tonic_prost::ProstCodec::<GreetRequest, greeter::GreetReply>::default();
    let path = http::uri::PathAndQuery::from_static("/greeter.v1.Greeter/Unknown");
    let status = client.unary(Request::new(GreetRequest::default()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(Tried::from_status(&status).unwrap().instances(), [server.instance().id().clone()]);
}

/// A proxy, or a server that is shutting down, may answer with HTTP only. The HTTP status decides
/// the call's code, and whether it counts against the endpoint.
#[tokio::test]
async fn a_response_without_a_grpc_status_counts_by_its_http_status() {
    const STATUSES: [(u16, Code, u32); 11] = [
        (503, Code::Unavailable, 1),
        (502, Code::Unavailable, 2),
        (504, Code::Unavailable, 3),
        (400, Code::Internal, 0),
        (429, Code::Unavailable, 1),
        (401, Code::Unauthenticated, 0),
        (403, Code::PermissionDenied, 0),
        (404, Code::Unimplemented, 0),
        (500, Code::Unknown, 0),
        (302, Code::Unknown, 0),
        (204, Code::Unknown, 0),
    ];
    let (address, _, _tasks) = raw_h2(|n, respond| {
        let page = n % 2 == 0;
        let response = http::Response::builder().status(STATUSES[n].0).header("content-type", "text/html");
        let mut body = respond.send_response(response.body(()).unwrap(), !page).unwrap();
        if page {
            body.send_data("<h1>Sorry</h1>".into(), true).unwrap();
        }
    })
    .await;
    let channel = channel(&registry([address]));
    for (status, code, failures) in STATUSES {
        let error = greet(&channel, Some(Duration::from_secs(5))).await.unwrap_err();
        assert_eq!(error.code(), code, "{status}: {error:?}");
        assert_eq!(Tried::from_status(&error).expect("it names one").instances(), [instance(address).id().clone()]);
        let endpoint = &channel.endpoints()[0];
        assert_eq!((endpoint.failures, endpoint.in_flight), (failures, 0), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_servers_with_few_streams_refuse_no_call_and_none_queues_at_them() {
    let mut servers = Vec::new();
    for name in ["a", "b"] {
        let builder = tonic::transport::Server::builder().max_concurrent_streams(8);
        servers.push(Server::start_with(name, builder).await);
    }
    let channel = channel(&registry(servers.iter().map(|server| server.address)));
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let channel = channel.clone();
        callers.spawn(async move {
            for _ in 0..20 {
                let mut request = Request::new(GreetRequest { delay_ms: 5, ..GreetRequest::default() });
                request.set_timeout(Duration::from_secs(10));
                let response = GreeterClient::new(channel.clone()).greet(request).await.expect("no call fails");
                let served_by = response.extensions().get::<ServedBy>().unwrap();
                assert!(served_by.tried().is_empty(), "it was refused once: {served_by:?}");
            }
        });
    }
    while !callers.is_empty() {
        let most = || channel.endpoints().iter().map(|one| one.in_flight).max().unwrap_or_default();
        // A pick that finds no room is counted for a moment. A queued call would be there for 5 ms.
        let least = (0..100).map(|_| most()).min().unwrap_or_default();
        assert!(least <= 8, "{least} in flight at a peer that allows 8");
        let _ = tokio::time::timeout(Duration::from_millis(5), callers.join_next())
            .await
            .map(|done| done.unwrap().unwrap());
    }
    assert_eq!(servers.iter().map(|server| server.greeter.calls()).sum::<u64>(), 64 * 20, "each call once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_rolling_graceful_restarts_lose_no_call() {
    let backend = MemoryBackend::new();
    let channel = channel(&backend);
    let mut servers = std::collections::VecDeque::new();
    for n in 0..3 {
        let server = Server::start(&n.to_string()).await;
        backend.put(&service(), server.instance());
        servers.push_back(server);
    }
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let mut callers = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(6);
    for _ in 0..32 {
        let channel = channel.clone();
        callers.spawn(async move {
            let mut calls = 0u32;
            let mut failures = Vec::new();
            while Instant::now() < end {
                calls += 1;
                failures.extend(greet(&channel, None).await.err());
            }
            (calls, failures)
        });
    }
    let mut restarts = 0;
    while Instant::now() < end {
        let fresh = Server::start("fresh").await;
        backend.put(&service(), fresh.instance());
        servers.push_back(fresh);
        let old = servers.pop_front().unwrap();
        // Stopped before it is removed, without any drain.
        let address = old.address.to_string();
        old.stop().await;
        backend.remove(&service(), &address);
        restarts += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let results = callers.join_all().await;
    let calls: u32 = results.iter().map(|(calls, _)| calls).sum();
    let failures: Vec<_> = results.into_iter().flat_map(|(_, failures)| failures).collect();
    println!("{restarts} restarts under {calls} calls, {} failed", failures.len());
    assert!(failures.is_empty(), "{} of {calls} failed, such as {:?}", failures.len(), failures[0]);
}

#[tokio::test]
async fn all_kinds_of_calls_work() {
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    let mut client = GreeterClient::new(channel);
    let named = |name: &str| GreetRequest { name: name.to_owned(), ..GreetRequest::default() };

    let large = GreetRequest { payload: vec![7; 3 << 20], ..GreetRequest::default() };
    assert_eq!(client.greet(large).await.unwrap().into_inner().payload.len(), 3 << 20);
    let many = GreetManyRequest { count: 5, ..GreetManyRequest::default() };
    let mut replies = client.greet_many(many).await.unwrap().into_inner();
    let mut count = 0;
    while replies.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
    let names = futures::stream::iter(["a", "b"].map(named));
    assert!(client.greet_all(names).await.unwrap().into_inner().message.contains("a, b"));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut replies = client.chat(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
    for name in ["x", "y"] {
        sender.send(named(name)).await.unwrap();
        assert!(replies.message().await.unwrap().unwrap().message.contains(name));
    }
    drop(sender);
    assert!(replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn interceptors_and_their_timeouts_work() {
    let server = Server::start("slow").await;
    let channel = channel(&registry([server.address]));
    let mut client = GreeterClient::with_interceptor(channel, |mut request: Request<()>| {
        request.set_timeout(Duration::from_millis(200));
        Ok(request)
    });
    client.greet(GreetRequest::default()).await.unwrap();
    let slow = GreetRequest { delay_ms: 10_000, ..GreetRequest::default() };
    assert_eq!(client.greet(slow).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn requests_carry_origin_agent_and_timeout() {
    let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    sender.send(request.map(drop)).unwrap();
                    let response = http::Response::builder().header("grpc-status", "5").body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                }
            });
        }
    });
    let plain = channel(&registry([address]));
    let status = greet(&plain, Some(Duration::from_secs(3))).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let request = requests.recv().await.unwrap();
    assert_eq!(request.uri().to_string(), format!("http://{address}/greeter.v1.Greeter/Greet"));
    assert_eq!(request.headers()["user-agent"], "grpc-rust-discovery/0.1.0");
    assert!(request.headers().contains_key("grpc-timeout"));
    assert_eq!(request.headers()["te"], "trailers");

    let settings = |_: &_| EndpointSettings::default().origin("https://greeter.internal").unwrap();
    let named =
        builder(&registry([address])).endpoint_settings(settings).user_agent("shop/7").unwrap().connector(plain_tcp());
    // The requests carry the scheme https; this connector opens plain TCP.
    let named = named.build().unwrap();
    greet(&named, None).await.unwrap_err();
    let request = requests.recv().await.unwrap();
    assert_eq!(request.uri().to_string(), "https://greeter.internal/greeter.v1.Greeter/Greet");
    assert_eq!(request.headers()["user-agent"], "shop/7 grpc-rust-discovery/0.1.0");
}

#[test]
fn building_outside_a_runtime_is_a_typed_error() {
    let error = BalancedChannel::new(MemoryBackend::new(), service()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
}

/// On a busy machine a server that serves may be ejected for its silence. `scripts/test` runs these
/// after all others.
mod timed {
    use super::*;

    #[tokio::test]
    async fn b02_a_refused_request_is_sent_elsewhere() {
        let refuse: OnRequest = |_, respond| respond.send_reset(h2::Reason::REFUSED_STREAM);
        let (refusing, refused, _tasks) = raw_h2(refuse).await;
        let server = Server::start("one").await;
        let channel = channel(&registry([server.address, refusing]));
        eventually("ready", || channel.endpoints().iter().all(|one| format!("{:?}", one.state) == "Ready")).await;
        for _ in 0..200 {
            let served = greet(&channel, Some(Duration::from_secs(2))).await;
            assert_eq!(served.expect("a refused request is not lost"), server.address);
        }
        println!("{} requests were refused", refused.load(Ordering::Relaxed));
        assert!(refused.load(Ordering::Relaxed) > 0, "some requests were refused, and hyper uses the same h2");
    }
}
