use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{Fault, Proxy, SynHole};

const MOMENT: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_secs(5);

/// A server whose connections the test accepts, and a client connected to it through a proxy.
struct Line {
    proxy: Proxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap().to_string()).await;
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.set_nodelay(true).unwrap();
        Self { proxy, listener, client, server }
    }

    async fn set(&self, fault: Fault) {
        self.proxy.set(fault);
        sleep(MOMENT / 4).await;
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect(self.proxy.address()).await
    }
}

/// Returns what arrives within a moment: `None` if nothing does, empty if the stream ended.
async fn heard(stream: &mut TcpStream) -> Option<std::io::Result<Vec<u8>>> {
    let mut buffer = vec![0; 1 << 10];
    let count = timeout(MOMENT, stream.read(&mut buffer)).await.ok()?;
    Some(count.map(|count| buffer[..count].to_vec()))
}

async fn hears(stream: &mut TcpStream, text: &str) {
    let mut buffer = vec![0; text.len()];
    timeout(SOON, stream.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer), text);
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    matches!(timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap(), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn without_a_fault_everything_gets_through() {
    let mut line = Line::open().await;
    line.client.write_all(b"ping").await.unwrap();
    hears(&mut line.server, "ping").await;
    line.server.write_all(b"pong").await.unwrap();
    hears(&mut line.client, "pong").await;
    assert_eq!(line.proxy.accepted(), 1);
    drop(line.server);
    assert!(matches!(heard(&mut line.client).await, Some(Ok(end)) if end.is_empty()), "and so does the end");
}

#[tokio::test]
async fn a_black_hole_holds_back_its_directions() {
    for (fault, requests, answers) in [
        (Fault::BlackHole, false, false),
        (Fault::BlackHoleAnswers, true, false),
        (Fault::BlackHoleRequests, false, true),
    ] {
        let mut line = Line::open().await;
        line.set(fault).await;
        line.client.write_all(b"ping").await.unwrap();
        line.server.write_all(b"pong").await.unwrap();
        assert_eq!(heard(&mut line.server).await.is_some(), requests, "{fault:?}");
        assert_eq!(heard(&mut line.client).await.is_some(), answers, "{fault:?}");
        let mut new = line.connect().await.expect("connections are taken");
        new.write_all(b"new").await.unwrap();
        assert_eq!(heard(&mut new).await.map(Result::unwrap), None);
        line.proxy.set(Fault::None);
        if !requests {
            hears(&mut line.server, "ping").await;
        }
        if !answers {
            hears(&mut line.client, "pong").await;
        }
        let (mut server, _) = line.listener.accept().await.unwrap();
        hears(&mut server, "new").await;
    }
}

#[tokio::test]
async fn open_connections_are_silenced_and_new_ones_are_not() {
    let mut line = Line::open().await;
    line.proxy.silence_open();
    sleep(MOMENT / 4).await;
    line.client.write_all(b"ping").await.unwrap();
    assert!(heard(&mut line.server).await.is_none());
    line.connect().await.unwrap().write_all(b"new").await.unwrap();
    hears(&mut line.listener.accept().await.unwrap().0, "new").await;
    line.proxy.heal();
    hears(&mut line.server, "ping").await;
}

#[tokio::test]
async fn a_black_hole_holds_back_the_end_of_the_server() {
    let mut line = Line::open().await;
    line.set(Fault::BlackHole).await;
    drop(line.server);
    assert!(heard(&mut line.client).await.is_none());
    line.proxy.set(Fault::None);
    assert!(matches!(heard(&mut line.client).await, Some(Ok(end)) if end.is_empty()));
}

#[tokio::test]
async fn delayed_bytes_keep_their_order() {
    let mut line = Line::open().await;
    let delay = Duration::from_millis(150);
    let jitter = Duration::from_millis(100);
    line.set(Fault::Delay { delay, jitter }).await;
    let start = Instant::now();
    let mut sent = String::new();
    for number in 100..140 {
        sent += &number.to_string();
        line.client.write_all(number.to_string().as_bytes()).await.unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    hears(&mut line.server, &sent).await;
    assert!(start.elapsed() >= Duration::from_millis(200 + 50), "{:?}", start.elapsed());
    let start = Instant::now();
    line.server.write_all(b"pong").await.unwrap();
    hears(&mut line.client, "pong").await;
    assert!(start.elapsed() >= delay - jitter, "{:?}", start.elapsed());
    line.server.write_all(b"last").await.unwrap();
    drop(line.server);
    hears(&mut line.client, "last").await;
}

#[tokio::test]
async fn a_throttled_connection_is_held_to_its_rate() {
    let mut line = Line::open().await;
    line.set(Fault::Throttle(20_000)).await;
    let start = Instant::now();
    line.client.write_all(&[7; 10_000]).await.unwrap();
    line.server.read_exact(&mut [0; 10_000]).await.unwrap();
    let took = start.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(2)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_half_open_connection_hides_that_the_server_is_gone() {
    let mut line = Line::open().await;
    line.set(Fault::HalfOpen).await;
    line.client.write_all(b"ping").await.unwrap();
    hears(&mut line.server, "ping").await;
    drop((line.server, line.listener));
    assert!(heard(&mut line.client).await.is_none());
    for _ in 0..3 {
        line.client.write_all(b"ping").await.unwrap();
        assert!(heard(&mut line.client).await.is_none(), "writing does not reveal it either");
    }
    let mut new = TcpStream::connect(line.proxy.address()).await.unwrap();
    assert!(heard(&mut new).await.is_none(), "nor does connecting");
    line.proxy.set(Fault::None);
    assert!(heard(&mut line.client).await.is_some());
    assert!(heard(&mut new).await.is_some());
}

#[tokio::test]
async fn a_reset_reaches_both_sides() {
    let mut line = Line::open().await;
    line.set(Fault::Reset).await;
    assert!(is_reset(&mut line.client).await);
    assert!(is_reset(&mut line.server).await);
    // Accepted by the system, or already reset.
    if let Ok(mut new) = line.connect().await {
        assert!(is_reset(&mut new).await);
    }
    line.set(Fault::None).await;
    line.connect().await.unwrap().write_all(b"ping").await.unwrap();
    hears(&mut line.listener.accept().await.unwrap().0, "ping").await;
}

#[tokio::test]
async fn a_connection_is_reset_after_its_limit_of_bytes() {
    let mut line = Line::open().await;
    line.set(Fault::ResetAfter(10)).await;
    line.client.write_all(b"ping").await.unwrap();
    hears(&mut line.server, "ping").await;
    line.server.write_all(b"pong pong").await.unwrap();
    let mut got = Vec::new();
    let ended = timeout(SOON, line.client.read_to_end(&mut got)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(got.len() <= 6, "10 bytes in both directions together: {got:?}");
    assert!(is_reset(&mut line.server).await);
}

#[tokio::test]
async fn requests_arrive_while_answers_are_lost() {
    let mut line = Line::open().await;
    line.set(Fault::LoseAnswers).await;
    line.client.write_all(b"ping").await.unwrap();
    hears(&mut line.server, "ping").await;
    line.server.write_all(b"pong").await.unwrap();
    let mut got = Vec::new();
    let _ = timeout(SOON, line.client.read_to_end(&mut got)).await.unwrap();
    assert!(got.is_empty());
}

#[tokio::test]
async fn a_connection_never_continues_after_lost_bytes() {
    let mut line = Line::open().await;
    line.set(Fault::LoseAnswers).await;
    line.server.write_all(b"lost").await.unwrap();
    assert!(heard(&mut line.client).await.is_none());
    line.set(Fault::None).await;
    // The connection may have been cut before this write.
    let _ = line.server.write_all(b"kept").await;
    let end = heard(&mut line.client).await.expect("it is cut");
    assert!(end.is_err() || end.as_ref().is_ok_and(Vec::is_empty), "{end:?}");
}

#[tokio::test]
async fn a_refused_client_can_connect_again_later() {
    let mut line = Line::open().await;
    for _ in 0..20 {
        line.set(Fault::Refuse).await;
        assert!(heard(&mut line.client).await.is_some(), "open connections are cut");
        assert_eq!(line.connect().await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        line.set(Fault::None).await;
        line.client = line.connect().await.unwrap();
        line.listener.accept().await.unwrap();
    }
}

#[tokio::test]
async fn a_proxy_leads_to_another_address_on_demand() {
    let mut line = Line::open().await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    line.proxy.lead_to(other.local_addr().unwrap().to_string());
    assert!(timeout(SOON, line.client.read(&mut [0])).await.is_ok(), "open connections are cut");
    line.connect().await.unwrap().write_all(b"ping").await.unwrap();
    hears(&mut other.accept().await.unwrap().0, "ping").await;
}

#[tokio::test]
async fn clients_are_distinguished_by_a_header() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::telling_apart(listener.local_addr().unwrap().to_string(), "X-From").await;
    proxy.set_for("b", Fault::BlackHole);
    let mut connections = Vec::new();
    for name in ["a", "b"] {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(format!("GET / HTTP/1.1\r\nx-from: {name}\r\n\r\n").as_bytes()).await.unwrap();
        connections.push((client, server));
    }
    assert!(heard(&mut connections[0].1).await.is_some());
    assert!(heard(&mut connections[1].1).await.is_none());
    connections[1].1.write_all(b"pong").await.unwrap();
    assert!(heard(&mut connections[1].0).await.is_none());
    proxy.heal();
    assert!(heard(&mut connections[1].1).await.is_some());
    hears(&mut connections[1].0, "pong").await;
}

#[tokio::test]
async fn a_syn_hole_answers_nobody() {
    let hole = SynHole::open().await;
    for _ in 0..3 {
        let connecting = timeout(Duration::from_millis(500), TcpStream::connect(hole.address())).await;
        assert!(connecting.is_err(), "{connecting:?}");
    }
}
