use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::fault::{Fault, Network, Way};

/// One connection through a proxy.
#[derive(Debug)]
pub(super) struct Relay {
    network: watch::Receiver<Network>,
    /// The text that precedes a client's name in its requests.
    header: Option<String>,
    /// The number of the connection, counted from 1.
    number: usize,
    client: OnceLock<String>,
    /// Bytes carried so far in both directions.
    carried: AtomicU64,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Close,
    Reset,
}

/// Bytes on their way. An empty chunk means that the sender has closed its side.
struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
}

impl Relay {
    pub(super) fn new(network: watch::Receiver<Network>, header: Option<String>, number: usize) -> Self {
        Self { network, header, number, client: OnceLock::new(), carried: AtomicU64::new(0) }
    }

    pub(super) async fn run(self, mut client: TcpStream, target: String) {
        let _ = client.set_nodelay(true);
        if self.fault() == Fault::Reset {
            let _ = client.set_zero_linger();
            return;
        }
        // A black hole also holds back the connection attempt.
        self.until(|fault| !fault.holds_back(Way::Requests)).await;
        let Ok(mut server) = TcpStream::connect(target).await else {
            self.until(|fault| fault != Fault::HalfOpen).await;
            return;
        };
        let _ = server.set_nodelay(true);
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        // When one side closes, both are closed.
        let end = tokio::select! {
            () = self.until(|fault| fault == Fault::Reset) => End::Reset,
            end = self.carry(Way::Requests, from_client, to_server) => end,
            end = self.carry(Way::Answers, from_server, to_client) => end,
        };
        if end == End::Reset {
            // Closing with zero linger sends RST instead of FIN.
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
    }

    /// Carries bytes one way until the connection must end.
    async fn carry(&self, way: Way, from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin) -> End {
        let (sender, receiver) = mpsc::channel(UNDER_WAY);
        let take = async {
            self.take(way, from, sender).await;
            // Bytes on their way still arrive.
            std::future::pending().await
        };
        tokio::select! {
            end = take => end,
            end = self.give(way, receiver, to) => end,
        }
    }

    async fn take(&self, way: Way, mut from: impl AsyncRead + Unpin, sender: mpsc::Sender<Chunk>) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let bytes = buffer[..count].to_vec();
            if way == Way::Requests {
                self.recognize(&bytes);
            }
            // A chunk that is due before its predecessor waits for it in the queue.
            let due = Instant::now() + self.fault().delay();
            if sender.send(Chunk { due, bytes }).await.is_err() || count == 0 {
                return;
            }
        }
    }

    async fn give(&self, way: Way, mut receiver: mpsc::Receiver<Chunk>, mut to: impl AsyncWrite + Unpin) -> End {
        while let Some(Chunk { due, bytes }) = receiver.recv().await {
            sleep_until(due).await;
            self.until(|fault| !fault.holds_back(way)).await;
            let mut rest = &*bytes;
            let mut is_gone = bytes.is_empty();
            while !rest.is_empty() && !is_gone {
                self.until(|fault| !fault.holds_back(way)).await;
                let fault = self.fault();
                if fault == Fault::LoseAnswers && way == Way::Answers {
                    // No network continues after a gap. A request cuts the connection sooner.
                    self.until(|fault| fault != Fault::LoseAnswers).await;
                    return End::Close;
                }
                let (part, pause) = self.part(fault, rest.len());
                is_gone = to.write_all(&rest[..part]).await.is_err();
                rest = &rest[part..];
                let carried = self.carried.fetch_add(part as u64, Ordering::Relaxed) + part as u64;
                match fault {
                    Fault::ResetAfter(limit) if carried >= limit => return End::Reset,
                    Fault::LoseAnswers if rest.is_empty() => {
                        // Gives the server time to execute the request.
                        sleep(Duration::from_millis(150)).await;
                        return End::Close;
                    }
                    _ => sleep(pause).await,
                }
            }
            if is_gone {
                // While half open, the client must not learn that the server has gone.
                self.until(|fault| fault != Fault::HalfOpen).await;
                return End::Close;
            }
        }
        End::Close
    }

    /// Returns how much to carry at once and how long to pause afterwards.
    fn part(&self, fault: Fault, count: usize) -> (usize, Duration) {
        let at_most = |limit: u64| count.min(usize::try_from(limit).unwrap_or(usize::MAX));
        match fault {
            Fault::ResetAfter(limit) => {
                (at_most(limit.saturating_sub(self.carried.load(Ordering::Relaxed))), Duration::ZERO)
            }
            Fault::Throttle(rate) => {
                let part = at_most((rate / 20).max(1));
                (part, Duration::from_secs_f64(part as f64 / rate.max(1) as f64))
            }
            _ => (count, Duration::ZERO),
        }
    }

    /// Learns the client's name.
    fn recognize(&self, bytes: &[u8]) {
        let Some(header) = self.header.as_ref().filter(|_| self.client.get().is_none()) else { return };
        let is_header = |part: &[u8]| part.eq_ignore_ascii_case(header.as_bytes());
        if let Some(place) = bytes.windows(header.len()).position(is_header) {
            let name: Vec<u8> =
                bytes[place + header.len()..].iter().copied().take_while(u8::is_ascii_graphic).collect();
            let _ = self.client.set(String::from_utf8_lossy(&name).into_owned());
        }
    }

    fn fault(&self) -> Fault {
        self.network.borrow().fault_of(self.number, self.client.get().map(String::as_str))
    }

    /// Waits until the condition holds; forever if the proxy is dropped, which also drops this
    /// relay.
    async fn until(&self, holds: impl Fn(Fault) -> bool) {
        let fault_of = |network: &Network| network.fault_of(self.number, self.client.get().map(String::as_str));
        if self.network.clone().wait_for(|network| holds(fault_of(network))).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Chunks on their way before the sender has to wait.
const UNDER_WAY: usize = 1024;
