//! A call ends at its deadline with one status, wherever it is polled, and even if it is not.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::support::*;
use discovery_core::Backoff;
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, EndpointSettings, RetryPolicy, Tried, WaitForReady};
use greeter::{GreetManyRequest, GreetRequest, GreeterClient};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::JoinSet,
    time::sleep,
};
use tonic::{Code, Request, Status, Streaming};

fn many(timeout: Duration) -> Request<GreetManyRequest> {
    let mut request = Request::new(GreetManyRequest { count: 100_000, interval_ms: 20, ..GreetManyRequest::default() });
    request.set_timeout(timeout);
    request
}

/// tonic's server answers `CANCELLED: Timeout expired` at the same moment. Regression: 98 of 7,500
/// calls ended with that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b03_the_status_at_the_deadline_is_deadline_exceeded_whatever_the_server_sends() {
    // By default a tonic server takes many calls given up at once for an attack.
    let builder = tonic::transport::Server::builder().http2_max_pending_accept_reset_streams(Some(10_000));
    let server = Server::start_with("slow", builder).await;
    let channel = channel(&registry([server.address]));
    let mut callers = JoinSet::new();
    for _ in 0..32 {
        let channel = channel.clone();
        callers.spawn(async move {
            let mut statuses = Vec::new();
            for _ in 0..60 {
                let request = GreetRequest { delay_ms: 1_000, ..GreetRequest::default() };
                let timeout = Duration::from_micros(fastrand::u64(1_000..15_000));
                statuses.push(greet_with(&channel, Some(timeout), request).await.unwrap_err());
            }
            statuses
        });
    }
    let statuses: Vec<Status> = callers.join_all().await.into_iter().flatten().collect();
    let others: Vec<_> = statuses.iter().filter(|status| status.code() != Code::DeadlineExceeded).collect();
    assert!(others.is_empty(), "{} of {}: {:?}", others.len(), statuses.len(), others[0]);
}

/// A call that waits in vain gets the reason, with and without a set of endpoints.
#[tokio::test]
async fn a_call_that_waits_until_its_deadline_gives_the_reason() {
    let empty = channel(&MemoryBackend::new());
    let unreachable = channel(&registry([refusing().await]));
    for (channel, reason) in [(empty, "it has no instances"), (unreachable, "none of its 1 endpoints")] {
        let mut request = Request::new(GreetRequest::default());
        request.set_timeout(Duration::from_millis(500));
        request.extensions_mut().insert(WaitForReady);
        let status = GreeterClient::new(channel).greet(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let message = status.message();
        assert!(message.starts_with("the deadline of the call has passed while it waited: "), "{message}");
        assert!(message.contains(reason), "{message}");
        assert!(Tried::from_status(&status).unwrap().instances().is_empty());
    }
}

/// What the documentation states of timeouts that wrap the channel.
#[tokio::test]
async fn a_deadline_names_the_instance_and_a_timeout_around_the_channel_does_not() {
    let (silent, _requests, _peer) = hung().await;
    let channel = channel(&registry([silent]));
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let limit = Duration::from_millis(50);
    let wrapped = tower::timeout::Timeout::new(channel.clone(), limit);
    let status = GreeterClient::new(wrapped).greet(GreetRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "request timed out"));
    assert!(Tried::from_status(&status).is_none());

    let mut request = Request::new(GreetRequest::default());
    request.set_timeout(limit);
    let status = GreeterClient::new(channel).greet(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(Tried::from_status(&status).unwrap().instances().len(), 1);
}

/// A status at the deadline, or a reset: in the middle of a stream, or instead of an answer.
#[tokio::test]
async fn a_reset_or_a_status_at_the_deadline_is_deadline_exceeded_too() {
    let resets = |_, respond: &mut h2::server::SendResponse<bytes::Bytes>| respond.send_reset(h2::Reason::CANCEL);
    for is_stream in [false, true] {
        let (peer, _tasks) = late_peer(Duration::from_millis(60), is_stream, resets).await;
        let channel = channel(&registry([peer]));
        channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
        let status = ended(&channel, Duration::from_millis(50)).await;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(Tried::from_status(&status).is_some());
    }
}

type Respond = h2::server::SendResponse<bytes::Bytes>;

/// A peer that calls `end` this long after each request, having sent response headers or not.
async fn late_peer(
    after: Duration,
    headers: bool,
    end: fn(usize, &mut Respond),
) -> (std::net::SocketAddr, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let stream = headers.then(|| respond.send_response(head, false).unwrap());
                sleep(after).await;
                end(0, &mut respond);
                drop(stream);
            });
        }
    });
    (address, tasks)
}

/// How a response stream ends. Its caller polls late, as on a busy machine.
async fn ended(channel: &BalancedChannel, timeout: Duration) -> Status {
    let mut stream = match GreeterClient::new(channel.clone()).greet_many(many(timeout)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return status,
    };
    std::thread::sleep(timeout * 2);
    stream.message().await.unwrap_err()
}

#[tokio::test]
async fn a_stream_that_is_not_polled_ends_at_its_deadline() {
    let server = Server::start("one").await;
    let channel = channel(&registry([server.address]));
    let mut kept: Vec<Streaming<_>> = Vec::new();
    for _ in 0..20 {
        let timeout = Duration::from_millis(400);
        kept.push(GreeterClient::new(channel.clone()).greet_many(many(timeout)).await.unwrap().into_inner());
    }
    let in_flight = || channel.endpoints()[0].in_flight;
    assert_eq!(in_flight(), 20);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(in_flight(), 20, "not before");
    let took = eventually("they end", || in_flight() == 0).await;
    assert!(took < Duration::from_millis(600), "{took:?}");
    for mut stream in kept {
        let status = stream.message().await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(Tried::from_status(&status).unwrap().instances().len(), 1);
    }
}

/// As from a thread of the user's that has its own executor.
#[test]
fn calls_may_be_polled_outside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (server, channel, empty) = runtime.block_on(async {
        let server = Server::start("one").await;
        let channels = (channel(&registry([server.address])), channel(&registry([])));
        (server, channels.0, channels.1)
    });
    futures::executor::block_on(async {
        channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
        empty.wait_until_ready(Duration::from_millis(20)).await.unwrap_err();
        for timeout in [None, Some(Duration::from_secs(5))] {
            assert_eq!(greet(&channel, timeout).await.unwrap(), server.address);
        }
        let slow = GreetRequest { delay_ms: 5_000, ..GreetRequest::default() };
        let status = greet_with(&channel, Some(Duration::from_millis(50)), slow).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let mut stream =
            GreeterClient::new(channel.clone()).greet_many(many(Duration::from_millis(100))).await.unwrap();
        let start = Instant::now();
        let status = loop {
            if let Err(status) = stream.get_mut().message().await {
                break status;
            }
        };
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(start.elapsed() < Duration::from_secs(2));
        let mut request = Request::new(GreetRequest::default());
        request.set_timeout(Duration::from_millis(50));
        request.extensions_mut().insert(WaitForReady);
        let status = GreeterClient::new(empty.clone()).greet(request).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    });
}

/// Sweeps do not count requests in flight on former connections.
#[tokio::test]
async fn a_response_that_begins_on_a_former_connection_ends_at_its_deadline() {
    let (peer, _tasks) = late_peer(Duration::from_secs(60), true, |_, _| {}).await;
    let settings = EndpointSettings::default().max_connection_age(Duration::from_secs(1)).unwrap();
    let channel = builder(&registry([peer])).endpoint_settings(move |_| settings.clone()).build().unwrap();
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let kept = GreeterClient::new(channel.clone()).greet_many(many(Duration::from_secs(2))).await.unwrap();
    sleep(Duration::from_millis(2_400)).await;
    let mut stream = kept.into_inner();
    let start = Instant::now();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(start.elapsed() < Duration::from_millis(50), "it has ended already: {:?}", start.elapsed());
}

/// Calls that wait outside any runtime while the channel's runtime ends.
#[test]
fn calls_that_wait_end_with_the_channels_runtime() {
    for n in 0..10 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(async {
            let policy = RetryPolicy::new(5).unwrap().backoff(Backoff::new(BACKOFF, BACKOFF).unwrap());
            let (failing, _, mut tasks) = raw_h2(|_, respond| answer(respond, "14")).await;
            tasks.detach_all();
            let addresses = if n % 2 == 0 { vec![] } else { vec![failing] };
            let channel = builder(&registry(addresses)).retry(policy).build().unwrap();
            sleep(Duration::from_millis(50)).await;
            channel
        });
        let caller = std::thread::spawn(move || {
            futures::executor::block_on(async {
                let mut request = Request::new(GreetRequest::default());
                request.extensions_mut().insert(WaitForReady);
                GreeterClient::new(channel).greet(request).await.unwrap_err()
            })
        });
        std::thread::sleep(Duration::from_millis(100));
        runtime.shutdown_background();
        let status = caller.join().expect("it does not panic");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
}

const BACKOFF: Duration = Duration::from_secs(60);

/// A connection whose writes fail from the first request on, and whose reads are then silent.
struct OneWay {
    stream: TcpStream,
    fails: bool,
}

impl AsyncRead for OneWay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.fails {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for OneWay {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // The headers of the first request.
        self.fails |= bytes.windows(7).any(|bytes| bytes == b"greeter") || bytes.get(3) == Some(&1);
        if self.fails {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Regression: such a call hung for 20 s.
#[tokio::test]
async fn a_call_whose_write_fails_ends_soon() {
    let server = Server::start("one").await;
    let connector = tower::service_fn(async |uri: http::Uri| {
        let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
        Ok::<_, io::Error>(TokioIo::new(OneWay { stream, fails: false }))
    });
    let channel = builder(&registry([server.address])).connector(connector).build().unwrap();
    channel.wait_until_ready(Duration::from_secs(5)).await.unwrap();
    let start = Instant::now();
    let status = greet(&channel, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
