//! A balanced channel for tonic clients, over any [`Resolver`](discovery_core::Resolver).
//!
//! [`BalancedChannel`] takes the place of `tonic::transport::Channel` in a generated client:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use discovery_core::{Instance, Registry};
//! use discovery_memory::MemoryBackend;
//! use discovery_tonic::{BalancedChannel, ServedBy};
//! use greeter::{Greeter, GreeterClient, GreetRequest};
//! use tokio_stream::wrappers::TcpListenerStream;
//!
//! // A server, which registers once it listens.
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let instance = Instance::new(listener.local_addr()?.try_into()?);
//! let server = tonic::transport::Server::builder().add_service(Greeter::new("one").into_service());
//! tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
//! let backend = MemoryBackend::new();
//! let registration = backend.register(&"greeter".parse()?, instance).await?;
//!
//! // A client, which finds it.
//! let channel = BalancedChannel::new(backend, "greeter".parse()?)?;
//! let mut greeter = GreeterClient::new(channel);
//! let response = greeter.greet(GreetRequest::default()).await?;
//! assert_eq!(response.get_ref().server, "one");
//! let served_by = response.extensions().get::<ServedBy>().unwrap();
//! assert_eq!(served_by.instance().id(), &registration.id());
//! # Ok(())
//! # }
//! ```
//!
//! It drives hyper's HTTP/2 connections itself, because what a balancer must know (that a
//! connection ended, that a request was not processed, how many streams the peer allows) is lost
//! behind tonic's own channel. It repeats what may have been processed only where a [`RetryPolicy`]
//! says so, resolves names only through its connector, and brings no TLS of its own: a connector
//! does.
//!
//! [`ChannelBuilder`] says what a channel does besides: several connections to an endpoint and the age at
//! which they are replaced ([`EndpointSettings`]), when endpoints are ejected
//! ([`OutlierDetection`]), health checks, slow start. Single calls carry [`WaitForReady`],
//! [`ExpectSlow`] and [`Retry`]; each answer has [`ServedBy`], each failure [`Tried`]. [`balance`]
//! holds the policies, and `server` (the feature of that name) the other half: a tonic server that
//! registers, and leaves before it stops.
//!
//! # Seen from outside
//!
//! [`BalancedChannel::endpoints`] shows where each endpoint stands, and prints as a table.
//!
//! `tracing` events report what becomes of endpoints, within a span `channel` with the field
//! `service`. Single calls are not logged.
//!
//! | Event | Level | Fields |
//! |---|---|---|
//! | `endpoint ejected` | info | `instance`, `cause`, `failures` in a row, `waiting` requests, `ejected_for` |
//! | `endpoint ejected again` | debug | `instance`, `cause`, `ejected_for` |
//! | `endpoint restored` | info | `instance` |
//! | `most instances vanished at once, holding the connected ones` | warn | `endpoints`, how many |
//! | `held endpoint released` | info | `instance` |
//! | `endpoint driver panicked, reconnecting` | error | `instance`, `panic` |
//! | `control task panicked, restarting` | error | `panic` |
//! | `registry lost`, `registry regained` | debug | `error` |
//! | `peer ended the connection` | warn | `instance`, `error` of its GOAWAY, each once |
//! | `endpoint connected`, `connection ended` | debug | `instance` |
//! | `connection lost` | debug | `instance`, `error` |
//! | `connection attempt failed` | debug | `instance`, `error` |
//! | `connection replaced` | debug | `instance`, `reason`: its age, silence, or many abandoned calls |
//! | `silent endpoint checked` | debug | `instance`, `is_alive`: whether it shook hands |
//! | `silent connection replaced` | debug | `instance` |
//! | `endpoint reported its health` | debug | `instance`, `health` |
//!
//! The feature `metrics` counts through the crate of that name, all with the label `service`. A
//! channel finds its handles once, when it is built: the recorder must be installed before. The
//! channels of a process on one service add up, and one that is dropped takes its part of the
//! gauges back.
//!
//! | Metric | Kind | What |
//! |---|---|---|
//! | `discovery_channel_picks_total` | counter | attempts of calls, each on an endpoint |
//! | `discovery_channel_retries_total` | counter | attempts that were repeated because the request was not processed |
//! | `discovery_channel_repeats_total` | counter | attempts that were repeated because the [`RetryPolicy`] said so |
//! | `discovery_channel_failures_total` | counter | calls that failed before a response began, or with it |
//! | `discovery_channel_connects_total` | counter | connections made |
//! | `discovery_channel_connect_failures_total` | counter | attempts to connect that failed |
//! | `discovery_channel_ejections_total` | counter | endpoints ejected |
//! | `discovery_channel_endpoints` | gauge | endpoints of the set |
//! | `discovery_channel_endpoints_ready` | gauge | those of them that get calls |
//! | `discovery_channel_stale` | gauge | channels whose registry is out of reach, so that the set stands as last known: 0 or 1 each |
//! | `discovery_channel_publish_seconds` | histogram | from an update of the set to the first call that can use it |
//!
//! A call fails with whatever status the server sends, too; a response that breaks off later is not
//! counted. The histogram begins when the channel has the update: neither the registry's time is in
//! it nor that of connecting a new endpoint.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod balance;
#[cfg(feature = "server")]
pub mod server;

mod call;
mod channel;
mod connection;
mod endpoint;
mod error;
mod metrics;
mod pool;
mod published;
mod wakeups;

pub use call::{
    ExpectSlow, WaitForReady,
    response::ResponseBody,
    retry::{Retry, RetryPolicy},
    served::{ServedBy, Tried},
};
pub use channel::{BalancedChannel, builder::ChannelBuilder};
pub use connection::settings::EndpointSettings;
pub use endpoint::state::EndpointState;
pub use pool::outlier_detection::OutlierDetection;
pub use published::endpoints::{EndpointStatus, Endpoints};
