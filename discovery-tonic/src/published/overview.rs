//! What the pool publishes for people and programs, as opposed to calls.

use std::sync::Arc;

use super::{availability::Availability, endpoints::EndpointRow, status::RegistryState};

/// The channel at one moment.
#[derive(Debug)]
pub(crate) struct Overview {
    /// The endpoints of the set.
    pub(crate) rows: Vec<Arc<EndpointRow>>,
    /// How many of them take calls.
    pub(crate) ready: usize,
    pub(crate) registry: RegistryState,
    /// Explains why there are no rows, if there are none.
    pub(crate) availability: Arc<Availability>,
}

impl Default for Overview {
    /// The overview of a channel that has just been built.
    fn default() -> Self {
        let availability = Arc::new(Availability::Waiting);
        Self { rows: Vec::new(), ready: 0, registry: RegistryState::Waiting, availability }
    }
}
