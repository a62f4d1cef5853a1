//! The lifecycle of a tonic server in the registry, from its first connection to its last response.
//!
//! [`RegisteredServer`] listens, and registers once it can serve. When it is asked to stop, it
//! releases its clients step by step, so that a deployment fails none of their calls:
//!
//! 1. It reports NOT_SERVING to health checks, and deregisters.
//! 2. It keeps serving for the *drain time*, while clients notice that it left.
//! 3. It sends GOAWAY, refuses new connections, and finishes the requests in flight.
//! 4. What is left after the *shutdown timeout* is cut.
//!
//! [`ServerHandle::stop_now`], or a second signal, cuts everything at once. The handle also changes
//! weight and metadata, and reports the status of the registration
//! ([`statuses`](ServerHandle::statuses)). If another owner has registered the same id, the server
//! takes over or is refused ([`claim`](ServerBuilder::claim)).
//!
//! ```no_run
//! # use std::{error::Error, sync::Arc};
//! # use discovery_core::Backend;
//! # async fn example(backend: Arc<dyn Backend>) -> Result<(), Box<dyn Error>> {
//! use std::time::Duration;
//! use discovery_tonic::server::RegisteredServer;
//! use greeter::Greeter;
//! use tonic::transport::Server;
//!
//! let greeter = Server::builder().add_service(Greeter::new("one").into_service());
//! let server = RegisteredServer::builder(backend, "greeter".parse()?)
//!     .drain_time(Duration::from_secs(5))
//!     .stop_on_signals()
//!     .bind("0.0.0.0:50051".parse()?)
//!     .await?;
//! server.serve(|incoming, goaway| greeter.serve_with_incoming_shutdown(incoming, goaway)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The server does not need the registry to serve. While the registry is unreachable it keeps
//! serving, and if it starts without the registry, it registers as soon as the registry can be
//! reached.
//!
//! # Several services, health, and fixed sets
//!
//! - A server that implements several services registers under each
//!   ([`also`](ServerBuilder::also)). They are registered, updated, reported and left together.
//! - The registration can follow the server's health
//!   ([`when_not_serving`](ServerBuilder::when_not_serving)): an instance that reports NOT_SERVING
//!   leaves the registry or gets weight 0, and clients that do not check health notice too.
//! - On a backend that supports no registrations, such as a fixed set in development, the same
//!   server serves without one ([`register_if_supported`](ServerBuilder::register_if_supported)).
//!
//! # Logs
//!
//! The `tracing` events of a server have the field `service`, with the names of several services
//! separated by commas if the event concerns all:
//!
//! | Event | Level | Fields |
//! |---|---|---|
//! | `server stage` | info | `id`, `address`, `stage`: each [`Stage`] after `Starting` |
//! | `serving without registering` | info | `error` of the backend |
//! | `not registered yet` | warn | `error`; for each service |
//! | `deregistering not confirmed` | warn | `error`; for each service |
//! | `registration does not follow health` | warn | `error`, once until it does |
//! | `readiness changed` | debug | `is_serving` |
//! | `cannot accept connections` | warn | `error` of the system, once; without `service` |
//!
//! # How long it takes to stop
//!
//! Usually little more than the drain time; less if the server was not registered, or had left
//! already because it was not serving. At most, from the request to the end: the time that the
//! backend takes to deregister (with etcd its deadline, 10 s by default), the drain time (5 s), the
//! shutdown timeout (10 s), and a second for what was cut. That is 26 s by default, so a Kubernetes
//! pod with the usual `terminationGracePeriodSeconds` of 30 ends by itself, if its `preStop` hook,
//! which counts towards that time, takes less than 4 s. The registry needs no such hook. Calls that
//! last longer need a longer shutdown timeout, and the pod a longer grace period.
//!
//! Requests in flight include streams that never end by themselves, such as `Watch` of
//! `grpc.health.v1`. They hold their connection until the shutdown timeout, and are then cut. A
//! [`BalancedChannel`](crate::BalancedChannel) that checks health ends its own streams within about
//! a second.

mod advertise;
mod builder;
mod config;
mod entries;
mod handle;
mod health;
mod incoming;
mod lifecycle;
mod readiness;
mod registered;
mod registration_metric;
mod shutdown;
mod standing;

pub use builder::ServerBuilder;
pub use handle::{ServerHandle, Stage};
pub use incoming::{Accepted, Incoming};
pub use readiness::NotServing;
pub use registered::{RegisteredServer, Stopped};
pub use shutdown::GoAway;
