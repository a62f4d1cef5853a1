//! A balanced channel for tonic clients, over any [`Resolver`](discovery_core::Resolver).
//!
//! Use a [`BalancedChannel`] in place of `tonic::transport::Channel` in a generated client:
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
//! // A server, which registers once it is listening.
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let instance = Instance::new(listener.local_addr()?.try_into()?);
//! let server = tonic::transport::Server::builder()
//!     .add_service(Greeter::new("one").into_service());
//! tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
//! let backend = MemoryBackend::new();
//! let registration = backend.register(&"greeter".parse()?, instance).await?;
//!
//! // A client, which finds the server by its name.
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
//! The documentation of [`BalancedChannel`] lists what it promises. It repeats a call that may have
//! been processed only if a [`RetryPolicy`] allows it. It resolves host names only through its
//! connector. TLS needs the Cargo feature `tls` (`ChannelTls`), or a connector that has it.
//!
//! The channel drives hyper's HTTP/2 connections itself instead of wrapping tonic's channel,
//! because tonic's channel hides what a balancer must know: that a connection ended, that a request
//! was not processed, how many streams the peer allows.
//!
//! # Options
//!
//! [`ChannelBuilder`] configures everything else: several connections to each endpoint and a
//! maximum age for them ([`EndpointSettings`]), outlier detection ([`OutlierDetection`]), health
//! checks, slow start. [`balance`] has the policies that pick an endpoint.
//!
//! Override the defaults for a single call with the request extensions [`WaitForReady`],
//! [`ExpectSlow`] and [`Retry`]. Each response carries [`ServedBy`], and each failure [`Tried`].
//!
//! The module `server` (Cargo feature `server`) is the other half: a tonic server that registers,
//! and that leaves the registry before it stops.
//!
//! # Observability
//!
//! [`BalancedChannel::endpoints`] returns the state of each endpoint, and prints as a table that
//! ends with the state of the registry. [`BalancedChannel::status`] is for programs.
//!
//! The channel emits `tracing` events about its endpoints, in a span `channel` with the field
//! `service`. Single calls are not logged.
//!
//! | Event | Level | Fields |
//! |---|---|---|
//! | `endpoint ejected` | info | `instance`, `cause`, `failures` in a row, `waiting` requests, `ejected_for` |
//! | `endpoint ejected again` | debug | `instance`, `cause`, `ejected_for` |
//! | `endpoint restored` | info | `instance` |
//! | `endpoint unreachable` | info | `instance`, `error` of a failed attempt to connect, each of up to four reasons once until an attempt succeeds |
//! | `no further connection to the endpoint` | info | `instance`, `error`; it is connected, and another connection could not be made |
//! | `endpoint reachable again` | info | `instance` |
//! | `most instances vanished at once, holding the connected ones` | warn | `endpoints`, how many |
//! | `held endpoint released` | info | `instance` |
//! | `attempt hook panicked` | error | `panic`, once per channel |
//! | `endpoint driver panicked, reconnecting` | error | `instance`, `panic` |
//! | `control task panicked, restarting` | error | `panic` |
//! | `resolver failed, watching again` | error | `error`: it panicked, or its updates ended |
//! | `peer ended the connection` | warn | `instance`, `error` of its GOAWAY, each once |
//! | `endpoint connected`, `connection ended` | debug | `instance` |
//! | `connection lost` | debug | `instance`, `error` |
//! | `connection attempt failed` | debug | `instance`, `error` |
//! | `connection replaced` | debug | `instance`, `reason`: its age, silence, or many abandoned calls |
//! | `silent endpoint checked` | debug | `instance`, `is_alive`: whether it shook hands |
//! | `silent connection replaced` | debug | `instance` |
//! | `the TLS files changed, new connections use them` | info | |
//! | `the TLS files cannot be used, the former ones stay in use` | warn | `error`, once until it changes |
//! | `endpoint reported its health` | debug | `instance`, `health` |
//! | `the peer has no health service and counts as serving` | debug | |
//!
//! An outage of the registry is logged by the resolver, once for all channels and views of a
//! service: `registry lost` (warn) and `registry regained` (info), by
//! [`Recovered`](discovery_core::backend::Recovered), which the backends are made of.
//!
//! With the Cargo feature `metrics`, the channel reports to the global recorder of the `metrics`
//! crate. Install the recorder before building the channel, which looks its handles up once. All
//! metrics have the label `service`. The channels of a process to the same service add up, and a
//! channel that is dropped subtracts its part from the gauges; `seconds_since_contact` is an
//! exception.
//!
//! | Metric | Kind | What it measures |
//! |---|---|---|
//! | `discovery_channel_picks_total` | counter | attempts of calls, each at one endpoint |
//! | `discovery_channel_retries_total` | counter | attempts repeated because the request was not processed |
//! | `discovery_channel_repeats_total` | counter | attempts repeated by the [`RetryPolicy`] |
//! | `discovery_channel_failures_total` | counter | calls that failed before a response began, or with its headers |
//! | `discovery_channel_connects_total` | counter | connections made |
//! | `discovery_channel_connect_failures_total` | counter | failed attempts to connect |
//! | `discovery_channel_ejections_total` | counter | endpoints ejected |
//! | `discovery_channel_endpoints` | gauge | endpoints of the set, including held ones |
//! | `discovery_channel_endpoints_ready` | gauge | endpoints of the set that take calls |
//! | `discovery_channel_stale` | gauge | channels whose registry is unreachable, so that the set stays as last known: 0 or 1 each |
//! | `discovery_channel_seconds_since_contact` | gauge | time since contact with the registry was lost, updated once a second; 0 while there is contact |
//! | `discovery_channel_attempt_seconds` | histogram | time from sending an attempt until its response headers, or until it failed; its label `outcome` is `ok`, `failed` or `cancelled` |
//! | `discovery_channel_publish_seconds` | histogram | time from an update of the set until calls can use it |
//! | `discovery_registration_up` | gauge | registrations of a `RegisteredServer` that are confirmed (feature `server`): 0 or 1 each |
//! | `discovery_endpoint_attempts_total`, `discovery_endpoint_failures_total` | counter | attempts at an endpoint, and those of them that failed |
//! | `discovery_endpoint_in_flight`, `discovery_endpoint_ready` | gauge | attempts at an endpoint whose responses have not ended; channels in which it takes calls |
//!
//! A call that the server answers with an error status counts as failed too, unless it is a plain
//! HTTP response; a response that breaks off later does not. The same holds for attempts, and
//! `failed` includes those that the peer did not process and those without an answer in time. An
//! attempt is `cancelled` if its caller drops the call before the headers arrive. `publish_seconds`
//! starts when the channel receives the update, so it includes neither the registry's own delay nor
//! the time to connect a new endpoint.
//!
//! Seconds do not add up: the channels of a service that have lost contact write
//! `seconds_since_contact`, the last one wins, and those in contact write nothing. The metrics of
//! single endpoints are off by default (`ChannelBuilder::endpoint_metrics`), and have the label
//! `instance_id` too.

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
    observer::{AttemptOutcome, AttemptReport},
    response::ResponseBody,
    retry::{Retry, RetryPolicy},
    served::{ServedBy, Tried},
};
pub use channel::{BalancedChannel, builder::ChannelBuilder, http::HttpChannel};
#[cfg(feature = "tls")]
pub use connection::tls::config::ChannelTls;
pub use connection::{
    settings::EndpointSettings,
    tcp::{TcpConnection, TcpConnector},
};
pub use endpoint::state::EndpointState;
pub use pool::outlier_detection::OutlierDetection;
pub use published::{
    endpoints::{EndpointStatus, Endpoints},
    status::{ChannelStatus, RegistryState},
};
