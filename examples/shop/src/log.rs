//! What the programs log themselves. What the library logs is in `docs/operations.md`.

use std::env;

use discovery::channel::Tried;
use tonic::Status;
use tracing::{field::display, warn};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::BoxError;

/// Logs to the standard error at `info`, or as the environment variable `RUST_LOG` sets, such as
/// `info,discovery_tonic=debug`.
///
/// # Errors
///
/// If that cannot be parsed.
pub fn log_to_stderr() -> Result<(), BoxError> {
    let filter: Targets = env::var("RUST_LOG").as_deref().unwrap_or("info").parse()?;
    registry().with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).with(filter).init();
    Ok(())
}

/// Logs a call that failed, with the instances that it was sent to.
pub fn log_failure(status: &Status) {
    let tried = Tried::from_status(status).map(display);
    warn!(code = ?status.code(), error = status.message(), tried, "call failed");
}
