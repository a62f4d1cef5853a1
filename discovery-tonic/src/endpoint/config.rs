use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Instance};

use super::connect_limit::ConnectLimit;
use crate::{
    balance::UNLIMITED,
    connection::{connector::Connector, settings::EndpointSettings},
};

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
    /// How many requests a connection gets before its endpoint's first answer.
    pub(crate) tickets: u32,
}

impl DriverConfig {
    /// The requests that each of so many connections of an endpoint gets before its first answer,
    /// where hung endpoints are to be found.
    pub(crate) fn tickets(connections: usize, finds_hung: bool) -> u32 {
        let each = (COLD / connections.max(1)).max(1);
        if finds_hung { each.try_into().unwrap_or(u32::MAX) } else { UNLIMITED }
    }
}

/// How many requests an endpoint gets before its first answer, so that a peer that shakes hands and
/// then hangs hurts few.
pub(crate) const COLD: usize = 3;

/// The user's hook: how an instance is connected.
pub(crate) type EndpointHook = Arc<dyn Fn(&Instance) -> EndpointSettings + Send + Sync>;
