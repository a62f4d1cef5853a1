use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Instance};

use super::connect_limit::ConnectLimit;
use crate::connection::{connector::Connector, settings::EndpointSettings};

/// What drives the endpoints of a channel.
pub(crate) struct DriverConfig {
    /// Lets only so many connections be made at a time, and fewer of those that failed before.
    pub(crate) connects: ConnectLimit,
    pub(crate) connector: Connector,
    /// `None` for the defaults.
    pub(crate) settings: Option<EndpointHook>,
    pub(crate) backoff: Backoff,
    pub(crate) drain: Duration,
    /// The gRPC service whose health is followed, if any is.
    pub(crate) health: Option<String>,
    /// How many connections each endpoint has.
    pub(crate) connections: usize,
}

/// The user's hook: how an instance is connected.
pub(crate) type EndpointHook = Arc<dyn Fn(&Instance) -> EndpointSettings + Send + Sync>;
