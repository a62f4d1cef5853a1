use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// A TCP proxy that fails on demand: what is between a client and a server when the network is bad.
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
    fault: watch::Sender<Fault>,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// What the network does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Fault {
    /// Connections are taken and stay open, and nothing goes through. What is sent meanwhile arrives when that ends.
    BlackHole,
    /// Requests arrive, answers do not, and the connection is cut soon after: who asked cannot know what was done.
    LoseAnswers,
    /// All goes through.
    None,
    /// Connections are cut, and new ones refused.
    Refuse,
}

impl Proxy {
    /// Starts a proxy to an address.
    pub async fn to(target: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (fault, faults) = watch::channel(Fault::None);
        let accepted = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(run(listener, address, target.into(), faults, Arc::clone(&accepted)));
        Self { address, fault, accepted, task }
    }

    /// Where it listens, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Changes what the network does, at once.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many connections it has taken so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut faults: watch::Receiver<Fault>,
    accepted: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    let mut relays = JoinSet::new();
    loop {
        if *faults.borrow_and_update() == Fault::Refuse {
            // Without a listener the system refuses.
            listener = None;
            relays.shutdown().await;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((client, _)) = accept => {
                accepted.fetch_add(1, Ordering::Relaxed);
                relays.spawn(relay(client, target.clone(), faults.clone()));
            }
            Some(_) = relays.join_next() => {}
            changed = faults.changed() => if changed.is_err() { return },
        }
    }
}

async fn relay(client: TcpStream, target: String, mut faults: watch::Receiver<Fault>) {
    let _ = client.set_nodelay(true);
    // Connecting goes through no black hole either.
    if faults.wait_for(|fault| *fault != Fault::BlackHole).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = server.set_nodelay(true);
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let requests = async {
        let (mut faults, mut buffer) = (faults.clone(), vec![0; 64 << 10]);
        loop {
            let Ok(count @ 1..) = from_client.read(&mut buffer).await else { return };
            if faults.wait_for(|fault| *fault != Fault::BlackHole).await.is_err() {
                return;
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            if *faults.borrow() == Fault::LoseAnswers {
                // Time for it to be done.
                tokio::time::sleep(Duration::from_millis(150)).await;
                return;
            }
        }
    };
    let answers = async {
        let (mut faults, mut buffer) = (faults.clone(), vec![0; 64 << 10]);
        loop {
            let Ok(count @ 1..) = from_server.read(&mut buffer).await else { return };
            if faults.wait_for(|fault| *fault != Fault::BlackHole).await.is_err() {
                return;
            }
            if *faults.borrow() != Fault::LoseAnswers && to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    // When one side is gone, so is the other.
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
