use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Instance};

use super::connect_limit::ConnectLimit;
use crate::{
    balance::UNLIMITED,
    connection::{connector::Connector, settings::EndpointSettings},
};

/// The configuration of all drivers of a channel.
pub(crate) struct DriverConfig {
    /// Limits how many connections are opened at a time.
    pub(crate) connects: ConnectLimit,
    pub(crate) connector: Connector,
    /// `None` for the defaults.
    pub(crate) settings: Option<EndpointHook>,
    pub(crate) backoff: Backoff,
    pub(crate) drain: Duration,
    /// The gRPC service whose health is followed, if any.
    pub(crate) health: Option<String>,
    /// How many connections each endpoint has.
    pub(crate) connections: usize,
    /// How many requests a connection takes before the first answer of its endpoint.
    pub(crate) tickets: u32,
}

impl DriverConfig {
    /// How many requests each connection of an endpoint takes before the first answer; without a
    /// limit if hung endpoints are not detected.
    pub(crate) fn tickets(connections: usize, finds_hung: bool) -> u32 {
        let each = (COLD / connections.max(1)).max(1);
        if finds_hung { each.try_into().unwrap_or(u32::MAX) } else { UNLIMITED }
    }
}

/// How many requests an endpoint gets before its first answer. A peer that completes the handshake
/// and then hangs affects no more than these.
pub(crate) const COLD: usize = 3;

/// The user's hook that returns the settings of an instance's endpoint.
pub(crate) type EndpointHook = Arc<dyn Fn(&Instance) -> EndpointSettings + Send + Sync>;
