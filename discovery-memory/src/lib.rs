//! The in-memory backend of `discovery`, for unit tests.
//!
//! [`MemoryBackend`] keeps the same promises as a registry on a network, verified by the same
//! conformance suite, and simulates faults on demand: outages, lost leases, crashed processes,
//! unreadable entries.
//!
//! # A unit test
//!
//! With `#[tokio::test]`, this is the body of a test of code that calls a service:
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use discovery_memory::MemoryBackend;
//! use discovery_tonic::{BalancedChannel, server::RegisteredServer};
//! use greeter::{GreetRequest, Greeter, GreeterClient};
//! use tonic::transport::Server;
//!
//! let backend = MemoryBackend::new();
//! let router = Server::builder().add_service(Greeter::new("one").into_service());
//! let server = RegisteredServer::builder(backend.clone(), "greeter".parse()?)
//!     .bind("127.0.0.1:0".parse()?)
//!     .await?;
//! tokio::spawn(server.serve(|incoming, goaway| {
//!     router.serve_with_incoming_shutdown(incoming, goaway)
//! }));
//!
//! let channel = BalancedChannel::new(backend.clone(), "greeter".parse()?)?;
//! channel.wait_until_ready(Duration::from_secs(5)).await?;
//! backend.interrupt(); // the registry is down; calls still work
//! let reply = GreeterClient::new(channel).greet(GreetRequest::default()).await?;
//! assert_eq!(reply.get_ref().server, "one");
//! # Ok(())
//! # }
//! ```
//!
//! # A test that takes no time
//!
//! Everything that a client goes through in production, in one thread, without a socket and without
//! waiting: a paused clock needs pipes instead of sockets. With
//! `#[tokio::test(start_paused = true)]`, this is the body of a test. It needs the crates
//! `futures`, `http`, `hyper-util` (feature `tokio`) and `tower` (feature `util`).
//!
//! ```
//! use std::{collections::HashMap, io, sync::Arc, time::Duration};
//!
//! use discovery_core::{Instance, Registry, ServiceName};
//! use discovery_memory::MemoryBackend;
//! use discovery_tonic::BalancedChannel;
//! use futures::channel::mpsc::{UnboundedSender, unbounded};
//! use greeter::{GreetRequest, Greeter, GreeterClient};
//! use hyper_util::rt::TokioIo;
//! use tokio::io::{DuplexStream, duplex};
//! use tonic::transport::Server;
//!
//! /// Where a server's connections are sent: one half of a pipe for each.
//! type Listener = UnboundedSender<io::Result<DuplexStream>>;
//!
//! fn serve(name: &str) -> Listener {
//!     let (listener, connections) = unbounded();
//!     let server = Server::builder().add_service(Greeter::new(name).into_service());
//!     tokio::spawn(server.serve_with_incoming(connections));
//!     listener
//! }
//!
//! /// A channel whose connections are pipes in memory.
//! fn connect(
//!     backend: MemoryBackend,
//!     listeners: HashMap<&'static str, Listener>,
//! ) -> BalancedChannel {
//!     let listeners = Arc::new(listeners);
//!     let connector = tower::service_fn(move |uri: http::Uri| {
//!         let (near, far) = duplex(64 * 1024);
//!         let listener = uri.authority().and_then(|address| listeners.get(address.as_str()));
//!         let taken = listener.is_some_and(|listener| listener.unbounded_send(Ok(far)).is_ok());
//!         let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
//!         std::future::ready(taken.then(|| TokioIo::new(near)).ok_or_else(refused))
//!     });
//!     let service = "greeter".parse().expect("it is a name");
//!     BalancedChannel::builder(backend, service)
//!         .connector(connector)
//!         .build()
//!         .expect("a runtime is running")
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two processes serve; each has its own handle on one registry.
//! let (backend, service) = (MemoryBackend::new(), "greeter".parse::<ServiceName>()?);
//! let (one, two) = (backend.another_process(), backend.another_process());
//! let _one = one.register(&service, Instance::new("10.0.0.1:80".parse()?)).await?;
//! let _two = two.register(&service, Instance::new("10.0.0.2:80".parse()?)).await?;
//! let listeners = HashMap::from([("10.0.0.1:80", serve("one")), ("10.0.0.2:80", serve("two"))]);
//! let channel = connect(backend.clone(), listeners);
//! let mut greeter = GreeterClient::new(channel.clone());
//!
//! // A call that takes a minute takes no time here.
//! greeter.greet(GreetRequest { delay_ms: 60_000, ..GreetRequest::default() }).await?;
//!
//! // One of them is killed; a TTL later only the other is called.
//! one.crash();
//! tokio::time::sleep(backend.ttl() + Duration::from_secs(1)).await;
//! assert_eq!(channel.endpoints().len(), 1);
//! for _ in 0..10 {
//!     assert_eq!(greeter.greet(GreetRequest::default()).await?.get_ref().server, "two");
//! }
//!
//! // The registry is unreachable for a day, and calls continue.
//! backend.interrupt();
//! tokio::time::sleep(Duration::from_secs(86_400)).await;
//! assert_eq!(greeter.greet(GreetRequest::default()).await?.get_ref().server, "two");
//! # Ok(())
//! # }
//! ```
//!
//! The pipes are not an optimization: tokio advances a paused clock whenever the runtime is idle,
//! and a runtime that waits for a real socket is idle, so with real sockets every timeout would
//! fire at once.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod faults;
mod lease;
mod registration;
mod source;
mod state;

pub use backend::MemoryBackend;
