//! The settings of a server as its lifecycle uses them.

use std::{sync::Arc, time::Duration};

use discovery_core::{Claim, Registry, ServiceName};
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::health::Health;

pub(super) struct ServerConfig {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) service: ServiceName,
    pub(super) claim: Claim,
    /// Locked once, to await it.
    pub(super) ready: Mutex<BoxFuture<'static, ()>>,
    pub(super) health: Option<Health>,
    pub(super) stop_on_signals: bool,
    pub(super) drain_time: Duration,
    pub(super) shutdown_timeout: Duration,
}
