//! What the picker picks.

use std::sync::Arc;

use discovery_core::Instance;

use crate::{
    connection::{link::Sender, origin::Origin},
    endpoint::Endpoint,
};

/// What the pool publishes about a ready endpoint, once for each of its connections.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) origin: Origin,
    pub(crate) sender: Sender,
}
