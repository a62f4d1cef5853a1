//! The settings of a server as its lifecycle uses them.

use std::{fmt, sync::Arc, time::Duration};

use discovery_core::{Claim, Registry, ServiceName};
use futures::future::BoxFuture;
use tokio::sync::Mutex;

use super::{health::Health, readiness::NotServing};

pub(super) struct ServerConfig {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) services: Services,
    pub(super) claim: Claim,
    /// Whether the server serves without being registered if the backend supports nothing else.
    pub(super) if_supported: bool,
    /// Locked once, to await it.
    pub(super) ready: Mutex<BoxFuture<'static, ()>>,
    pub(super) health: Option<Health>,
    pub(super) not_serving: NotServing,
    pub(super) stop_on_signals: bool,
    pub(super) drain_time: Duration,
    pub(super) shutdown_timeout: Duration,
}

/// The services under which a server is registered: at least one, and each once.
#[derive(Clone, Debug)]
pub(super) struct Services(Vec<ServiceName>);

impl Services {
    pub(super) fn new(first: ServiceName) -> Self {
        Self(vec![first])
    }

    pub(super) fn add(&mut self, service: ServiceName) {
        if !self.0.contains(&service) {
            self.0.push(service);
        }
    }

    pub(super) fn first(&self) -> &ServiceName {
        &self.0[0]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.iter()
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first().fmt(f)?;
        self.0[1..].iter().try_for_each(|service| write!(f, ",{service}"))
    }
}
