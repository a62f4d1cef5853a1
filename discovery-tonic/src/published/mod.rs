pub(crate) mod endpoints;
pub(crate) mod outlook;
pub(crate) mod target;

use std::sync::Arc;

use arc_swap::ArcSwap;
use discovery_core::ServiceName;

use crate::{balance::Pickers, endpoint::Signals};
use endpoints::{Endpoints, Row};
use outlook::Outlook;
use target::Target;

/// Where the pool publishes and calls read.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) service: ServiceName,
    pub(crate) pickers: Pickers<Target>,
    pub(crate) outlook: ArcSwap<Outlook>,
    pub(crate) rows: ArcSwap<Vec<Arc<Row>>>,
    pub(crate) signals: Arc<Signals>,
}

impl Board {
    /// All endpoints of the set.
    pub(crate) fn endpoints(&self) -> Endpoints {
        Endpoints(self.rows.load().iter().map(|row| row.status()).collect())
    }
}
