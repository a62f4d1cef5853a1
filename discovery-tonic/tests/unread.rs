//! Streams that are not read: what they cost in memory, and what they cost the other calls of their
//! connection.

mod support;

use std::{env, fs, future::poll_fn, net::SocketAddr, process::Stdio, time::Duration};

use bytes::Bytes;
use discovery_tonic::BalancedChannel;
use greeter::{GreetManyRequest, GreetReply, GreeterClient};
use http::{HeaderName, HeaderValue};
use support::*;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdout, Command},
    time::sleep,
};
use tonic::Streaming;
use tonic_prost::prost::Message;

const AS_SERVER: &str = "UNREAD_SERVER";

/// A server in a process of its own, so that only the client is measured.
struct Flood {
    address: SocketAddr,
    _child: Child,
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Flood {
    async fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_server_as_a_process", "--nocapture"])
            .env(AS_SERVER, "")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it prints its address");
            if let Some((_, address)) = line.split_once("listens at ") {
                break address.parse().unwrap();
            }
        };
        Self { address, _child: child, _lines: lines }
    }
}

/// The server that [`Flood`] runs; not a test otherwise. It answers `Greet` with NOT_FOUND, and
/// `GreetMany` with as many messages of `interval_ms` bytes as the client accepts, as fast as it
/// accepts them.
#[tokio::test]
async fn a_server_as_a_process() {
    if env::var_os(AS_SERVER).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listens at {}", listener.local_addr().unwrap());
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let is_flood = request.uri().path().ends_with("GreetMany");
                tokio::spawn(async move {
                    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut stream = respond.send_response(head, false).unwrap();
                    if !is_flood {
                        stream.send_data(message(100), false).unwrap();
                        let trailers = [(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))];
                        return stream.send_trailers(trailers.into_iter().collect()).unwrap();
                    }
                    let mut body = request.into_body();
                    let asked = body.data().await.unwrap().unwrap();
                    let size = GreetManyRequest::decode(&asked[5..]).unwrap().interval_ms;
                    let _ended = flood(stream, size).await;
                });
            }
        });
    }
}

/// Sends messages of this size, each in a frame of its own, until the stream ends.
async fn flood(mut stream: h2::SendStream<Bytes>, size: u32) -> Option<()> {
    let frame = message(size);
    loop {
        stream.reserve_capacity(frame.len());
        while stream.capacity() < frame.len() {
            poll_fn(|context| stream.poll_capacity(context)).await?.ok()?;
        }
        stream.send_data(frame.clone(), false).ok()?;
    }
}

/// A message with a payload of this size, as it is sent.
fn message(size: u32) -> Bytes {
    let message = GreetReply { payload: vec![0; size as usize], ..GreetReply::default() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat().into()
}

async fn streams(channel: &BalancedChannel, count: usize, size: u32) -> Vec<Streaming<GreetReply>> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let request = GreetManyRequest { interval_ms: size, ..GreetManyRequest::default() };
        let stream = GreeterClient::new(channel.clone()).greet_many(request).await;
        streams.extend(stream.map(tonic::Response::into_inner));
    }
    streams
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn is_lost(channel: &BalancedChannel) -> bool {
    greet(channel, Some(Duration::from_millis(500))).await.is_err()
}

/// How many of 100 calls fail while the streams are not read.
async fn bystanders_lost(channel: &BalancedChannel) -> usize {
    let mut lost = 0;
    for _ in 0..100 {
        lost += usize::from(is_lost(channel).await);
        sleep(Duration::from_millis(10)).await;
    }
    lost
}

/// Regression: a reader that paused for 3 s with messages of 25 bytes cost 10 of 10 other calls.
#[tokio::test]
async fn a_reader_that_pauses_finds_its_messages() {
    let server = Flood::start().await;
    let channel = channel(&registry([server.address]));
    let mut paused = streams(&channel, 1, 20).await.remove(0);
    sleep(Duration::from_secs(1)).await;
    assert!(!is_lost(&channel).await);
    for _ in 0..100_000 {
        assert_eq!(paused.message().await.unwrap().unwrap().payload.len(), 20);
    }
}

/// Tests that measure time or shares. `scripts/test` runs them after all others.
mod timed {
    use super::*;

    /// Regression: with hyper's window of 5 MiB for the connection, 100 of 100 other calls were
    /// lost, and with small messages the connection ended. The same happened with 64 MiB.
    #[tokio::test]
    async fn forty_unread_streams_cost_no_other_call() {
        let server = Flood::start().await;
        // Small messages cost ten times their size, so use fewer streams.
        for (count, size, most_mib) in [(40, 15_000, 160), (40, 1_000, 200), (8, 20, 400)] {
            let channel = channel(&registry([server.address]));
            assert!(!is_lost(&channel).await);
            let before = resident_kib();
            let kept = streams(&channel, count, size).await;
            sleep(Duration::from_secs(3)).await;
            let lost = bystanders_lost(&channel).await;
            let used = resident_kib().saturating_sub(before) / 1024;
            println!("{count} unread streams of {size} bytes: {used} MiB, {lost} of 100 bystanders lost");
            assert_eq!((lost, channel.endpoints()[0].in_flight as usize), (0, count), "and all streams continue");
            assert!(used < most_mib, "{used} MiB");
            drop(kept);
        }
    }
}
