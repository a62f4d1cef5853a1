use std::{net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// An address that never answers a SYN, as behind a firewall that drops packets: a listener with a
/// full queue.
///
/// Needs Linux, which drops a SYN that does not fit the queue instead of refusing it.
#[derive(Debug)]
pub struct SynHole {
    address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl SynHole {
    /// Opens one on a free port.
    pub async fn open() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
        let listener = socket.listen(0).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let mut queue = Vec::new();
        while let Ok(Ok(stream)) = timeout(FULL, TcpStream::connect(address)).await {
            queue.push(stream);
        }
        Self { address, _listener: listener, _queue: queue }
    }

    /// Returns its address, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

/// A loopback connection that takes longer than this did not get into the queue.
const FULL: Duration = Duration::from_millis(300);
