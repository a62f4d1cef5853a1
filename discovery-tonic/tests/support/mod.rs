//! Servers for the channel's tests: real tonic servers on real sockets, and listeners that
//! misbehave in one way each.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part"
)]

pub mod frames;
#[cfg(feature = "server")]
pub mod running;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use discovery_core::{Instance, ServiceName};
use discovery_memory::MemoryBackend;
use discovery_tonic::{BalancedChannel, ChannelBuilder, ServedBy};
use futures::StreamExt;
use greeter::{GreetReply, GreetRequest, Greeter, GreeterClient};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Status};

pub fn service() -> ServiceName {
    "greeter".parse().unwrap()
}

/// A tonic server with a greeter.
pub struct Server {
    pub address: SocketAddr,
    pub greeter: Greeter,
    /// Connections accepted so far.
    pub accepted: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(name: &str) -> Self {
        Self::start_with(name, tonic::transport::Server::builder()).await
    }

    pub async fn start_with(name: &str, mut builder: tonic::transport::Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let greeter = Greeter::new(name);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let incoming = TcpListenerStream::new(listener).inspect(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let service = greeter.clone().into_service();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            builder.add_service(service).serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { address, greeter, accepted, stop: Some(stop), task }
    }

    pub fn instance(&self) -> Instance {
        instance(self.address)
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Sends GOAWAY, and stops once the calls in flight have ended.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.task.await.unwrap();
    }

    /// Sends GOAWAY without waiting for the end.
    pub fn begin_stop(&mut self) {
        drop(self.stop.take());
    }
}

/// A server on a runtime of its own, which can stop like a killed process: at once, with all its
/// connections.
pub struct Mortal {
    pub address: SocketAddr,
    pub greeter: Greeter,
    accepted: Arc<AtomicUsize>,
    runtime: Option<tokio::runtime::Runtime>,
    /// Its address stays its own while it is down; `None` if that was a former server's.
    reserved: Option<UdpSocket>,
}

impl Mortal {
    pub fn start(name: &str) -> Self {
        let (address, reserved) = reserve();
        let mut server = Self::start_at(name, address);
        server.reserved = Some(reserved);
        server
    }

    /// Starts at an address, which may be that of a former server.
    pub fn start_at(name: &str, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let start = Instant::now();
        // The former server may need a moment to release it.
        let listener = loop {
            match std::net::TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(_) if start.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => panic!("{address}: {error}"),
            }
        };
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let greeter = Greeter::new(name);
        let service = greeter.clone().into_service();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap()).inspect(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { address, greeter, accepted, runtime: Some(runtime), reserved: None }
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn kill(&mut self) {
        self.runtime.take().expect("it is running").shutdown_background();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.kill();
        }
    }
}

pub fn instance(address: SocketAddr) -> Instance {
    Instance::new(address.try_into().unwrap())
}

pub async fn servers(count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for n in 0..count {
        servers.push(Server::start(&n.to_string()).await);
    }
    servers
}

/// An address that refuses connections.
pub async fn refusing() -> SocketAddr {
    let (address, reserved) = reserve();
    // For the rest of the process, so that no server of another test gets the port.
    std::mem::forget(reserved);
    address
}

/// Returns an address that other tests leave alone while the UDP socket of the same port is bound.
/// Nothing else gets it by chance: Linux chooses ports from 32,768 on.
fn reserve() -> (SocketAddr, UdpSocket) {
    let reserve = || {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..32_768)));
        let reserved = UdpSocket::bind(address).ok()?;
        // Something that is no test may listen there.
        std::net::TcpListener::bind(address).ok()?;
        Some((address, reserved))
    };
    std::iter::repeat_with(reserve).take(1000).flatten().next().expect("a free port")
}

/// Accepts connections and never sends anything.
pub async fn silent() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut kept = Vec::new();
        loop {
            kept.push(listener.accept().await.unwrap());
        }
    });
    (address, tasks)
}

/// What a raw h2 peer does with its n-th request.
pub type OnRequest = fn(usize, &mut h2::server::SendResponse<bytes::Bytes>);

/// Completes the handshake, then treats every request alike and counts them.
pub async fn raw_h2(on_request: OnRequest) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    raw_h2_with(on_request).await
}

/// Like [`raw_h2`], with a closure that captures something.
pub async fn raw_h2_with(
    on_request: impl Fn(usize, &mut h2::server::SendResponse<bytes::Bytes>) + Clone + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let count = Arc::clone(&count);
            let on_request = on_request.clone();
            connections.spawn(async move {
                // A client that disconnects during the handshake is not a failure of the peer.
                let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                let mut kept = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    on_request(count.fetch_add(1, Ordering::Relaxed), &mut respond);
                    kept.push((request, respond));
                }
            });
        }
    });
    (address, requests, tasks)
}

/// A connector over plain TCP. It is not the default one, so it is trusted with any origin.
pub fn plain_tcp() -> impl Clone
+ Send
+ Sync
+ 'static
+ tower::Service<
    http::Uri,
    Response = hyper_util::rt::TokioIo<tokio::net::TcpStream>,
    Error = std::io::Error,
    Future: Send + 'static,
> {
    tower::service_fn(async |uri: http::Uri| {
        let authority = uri.authority().expect("a target has an authority");
        tokio::net::TcpStream::connect(authority.as_str()).await.map(hyper_util::rt::TokioIo::new)
    })
}

/// Answers with a status and nothing else.
pub fn answer(respond: &mut h2::server::SendResponse<bytes::Bytes>, status: &str) {
    let response = http::Response::builder().header("content-type", "application/grpc").header("grpc-status", status);
    respond.send_response(response.body(()).unwrap(), true).unwrap();
}

/// The endpoints that are ready.
pub fn ready(channel: &BalancedChannel) -> usize {
    let endpoints = channel.endpoints();
    endpoints.iter().filter(|one| one.state == discovery_tonic::EndpointState::Ready).count()
}

/// Completes the handshake and never answers.
pub async fn hung() -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    raw_h2(|_, _| {}).await
}

/// A registry with these addresses.
pub fn registry(addresses: impl IntoIterator<Item = SocketAddr>) -> MemoryBackend {
    let backend = MemoryBackend::new();
    for address in addresses {
        backend.put(&service(), instance(address));
    }
    backend
}

pub fn channel(backend: &MemoryBackend) -> BalancedChannel {
    builder(backend).build().unwrap()
}

pub fn builder(backend: &MemoryBackend) -> ChannelBuilder {
    BalancedChannel::builder(backend.clone(), service())
}

/// Makes one call; returns the address that served it, according to the response's extension.
pub async fn greet(channel: &BalancedChannel, timeout: Option<Duration>) -> Result<SocketAddr, Status> {
    greet_with(channel, timeout, GreetRequest::default()).await.map(|(address, _)| address)
}

pub async fn greet_with(
    channel: &BalancedChannel,
    timeout: Option<Duration>,
    request: GreetRequest,
) -> Result<(SocketAddr, GreetReply), Status> {
    let mut request = Request::new(request);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let response = GreeterClient::new(channel.clone()).greet(request).await?;
    let served_by = response.extensions().get::<ServedBy>().expect("every response names the instance that served it");
    let address = served_by.instance().address().socket_addr().unwrap();
    Ok((address, response.into_inner()))
}

/// Waits until something holds, and returns how long that took.
pub async fn eventually(what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}
