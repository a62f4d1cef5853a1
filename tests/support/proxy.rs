mod fault;
mod relay;
mod syn_hole;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

pub use self::{fault::Fault, syn_hole::SynHole};
use self::{fault::Network, relay::Relay};
use crate::port::Port;

/// A TCP proxy that fails on demand: a bad network between a client and a server.
///
/// Two proxies in a row combine two faults, such as delaying and throttling.
///
/// ```no_run
/// # async fn example() {
/// use support::{Fault, Proxy};
///
/// let proxy = Proxy::to("127.0.0.1:2379").await;
/// let members = [proxy.address()];
/// proxy.set(Fault::BlackHole);
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    _port: Port,
    network: watch::Sender<Network>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to an address.
    pub async fn to(target: impl Into<String>) -> Self {
        Self::start(target.into(), None).await
    }

    /// Starts a proxy that distinguishes clients by an HTTP/1 header of their requests, so that
    /// they can be [treated differently](Self::set_for).
    pub async fn telling_apart(target: impl Into<String>, header: &str) -> Self {
        Self::start(target.into(), Some(header)).await
    }

    async fn start(target: String, header: Option<&str>) -> Self {
        let (port, listener) = loop {
            let port = Port::reserve();
            // A process that was killed may still hold a port that was reserved for it.
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port.number())).await {
                break (port, listener);
            }
        };
        let address = listener.local_addr().expect("it is bound");
        let network = watch::Sender::new(Network::to(target));
        let accepted = Arc::new(AtomicUsize::new(0));
        let header = header.map(|name| format!("\r\n{name}: "));
        let task = tokio::spawn(run(listener, address, network.subscribe(), header, Arc::clone(&accepted)));
        Self { address, _port: port, network, accepted, task }
    }

    /// Returns the address it listens on, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes what the network does. Takes effect within milliseconds; a fault set for less than
    /// that may never happen.
    pub fn set(&self, fault: Fault) {
        self.network.send_modify(|network| network.of_all = fault);
    }

    /// Changes what the network does to one of the clients that
    /// [`telling_apart`](Self::telling_apart) distinguishes. Takes precedence over the fault set
    /// for all.
    pub fn set_for(&self, client: &str, fault: Fault) {
        self.network.send_modify(|network| {
            network.of_one.insert(client.to_owned(), fault);
        });
    }

    /// Applies [`Fault::BlackHole`] to the open connections only, as when a firewall or an address
    /// translator loses its table.
    pub fn silence_open(&self) {
        self.network.send_modify(|network| network.silent = self.accepted());
    }

    /// Lets everything through again for all clients.
    pub fn heal(&self) {
        self.network.send_modify(|network| {
            network.of_all = Fault::None;
            network.of_one.clear();
            network.silent = 0;
        });
    }

    /// Leads to another address from now on. Cuts the open connections.
    pub fn lead_to(&self, target: impl Into<String>) {
        let target = target.into();
        self.network.send_modify(|network| network.target = target);
    }

    /// Returns how many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The port of a proxy. It stays bound while nobody listens on it, so that nobody else takes it.
#[derive(Debug)]
enum Door {
    Open(TcpListener),
    Shut(Option<TcpSocket>),
}

impl Door {
    fn shut(&mut self, address: SocketAddr) {
        // The listener must be closed before the port can be bound again. A process that another
        // test is just starting has a copy of it for a moment, until it executes its program.
        *self = Self::Shut(None);
        let start = Instant::now();
        let socket = loop {
            match bind(address) {
                Ok(socket) => break socket,
                Err(_) if start.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{address} was its own a moment ago: {error}"),
            }
        };
        *self = Self::Shut(Some(socket));
    }

    fn open(&mut self) {
        if let Self::Shut(socket) = self {
            let socket = socket.take().expect("it is there while the door is shut");
            *self = Self::Open(socket.listen(1024).expect("the port is its own"));
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    mut network: watch::Receiver<Network>,
    header: Option<String>,
    accepted: Arc<AtomicUsize>,
) {
    let mut door = Door::Open(listener);
    let mut target = network.borrow().target.clone();
    let mut relays = JoinSet::new();
    loop {
        let now = network.borrow_and_update().clone();
        if target != now.target {
            target = now.target;
            relays.shutdown().await;
        }
        match (&door, now.of_all == Fault::Refuse) {
            (Door::Open(_), true) => {
                door.shut(address);
                relays.shutdown().await;
            }
            (Door::Shut(_), false) => door.open(),
            _ => {}
        }
        let accept = async {
            match &door {
                Door::Open(listener) => listener.accept().await,
                Door::Shut(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accept => {
                let number = accepted.fetch_add(1, Ordering::Relaxed) + 1;
                let relay = Relay::new(network.clone(), header.clone(), number);
                relays.spawn(relay.run(client, target.clone()));
            }
            Some(_) = relays.join_next() => {}
            changed = network.changed() => if changed.is_err() { return },
        }
    }
}
