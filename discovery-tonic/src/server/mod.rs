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
//! [`ServerHandle::stop_now`], or a second signal, cuts at once.
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
//!     .drain(Duration::from_secs(5))
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

mod advertise;
mod builder;
mod handle;
mod health;
mod incoming;
mod life;
mod orders;
mod registered;

pub use builder::Builder;
pub use handle::{ServerHandle, Stage};
pub use incoming::{Accepted, Incoming};
pub use orders::GoAway;
pub use registered::{RegisteredServer, Stopped};
