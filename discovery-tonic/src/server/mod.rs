//! A tonic server's life in the registry: from its first listening to its last answer.
//!
//! [`RegisteredServer`] listens, registers once it can serve, and on the order to stop lets go of its callers one step after the
//! other, so that a deployment fails none of their calls:
//!
//! 1. it says NOT_SERVING to those who check its health, and deregisters;
//! 2. it serves on for the *drain time*, while callers hear of that;
//! 3. it sends GOAWAY, refuses new connections, and finishes what is in flight;
//! 4. what is left after the *limit* is cut.
//!
//! [`ServerHandle::stop_now`], or a second signal, cuts at once. The handle also changes weight and metadata, and tells how the registration
//! stands ([`statuses`](ServerHandle::statuses)). Another owner of the same id is taken over, or refuses the server
//! ([`claim`](ServerBuilder::claim)).
//!
//! ```no_run
//! # async fn example(backend: std::sync::Arc<dyn discovery_core::Backend>) -> Result<(), Box<dyn std::error::Error>> {
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
//! The registry is not needed to serve: a server whose registry is away serves on, and one that starts without it registers as soon
//! as it is there.
//!
//! What it logs through `tracing` has a field `service`: `server stage` with each [`Stage`] (info), and as warnings `server not registered
//! yet` and `deregistering not confirmed`, with the `error`. The listener warns once with `connections not accepted` where the system
//! refuses it any.
//!
//! # How long it takes to stop
//!
//! Mostly little more than the drain time. At most, from the order to the end: what the backend takes to deregister (with etcd its
//! deadline, 10 s by default), the drain time (5 s), the limit (10 s), and a second for what was cut. These are 26 s by default, so
//! that a Kubernetes pod with the usual `terminationGracePeriodSeconds` of 30 ends by itself, if its `preStop` hook, whose time counts
//! there too, takes less than 4 s; it needs none for the registry's sake. Calls that last longer need a higher limit, and the pod a
//! longer grace.
//!
//! What is in flight includes streams that never end by themselves, such as `Watch` of `grpc.health.v1`: they hold their connection until
//! the limit, and then are cut. A [`BalancedChannel`](crate::BalancedChannel) that checks health lets go of its own within about a
//! second.

mod advertise;
mod builder;
mod config;
mod handle;
mod health;
mod incoming;
mod lifecycle;
mod registered;
mod shutdown;

pub use builder::ServerBuilder;
pub use handle::{ServerHandle, Stage};
pub use incoming::{Accepted, Incoming};
pub use registered::{RegisteredServer, Stopped};
pub use shutdown::GoAway;
