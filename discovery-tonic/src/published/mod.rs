//! Where the path of a call and the path of an update meet: what the pool publishes and calls read.
//!
//! The picker reads [`target`]s, one for each connection that takes requests. A call that finds
//! none reads the [`availability`], which shows whether to wait and why to fail. People read the
//! [`endpoints`]. Responses that may become [`overdue`] go the other way: calls hand them in, and
//! the pool ends them.

pub(crate) mod availability;
pub(crate) mod endpoints;
pub(crate) mod overdue;
pub(crate) mod target;

use std::sync::Arc;

use arc_swap::ArcSwap;
use discovery_core::ServiceName;

use crate::{balance::Balancer, endpoint::Wakeups};
use availability::Availability;
use endpoints::{EndpointRow, Endpoints};
use overdue::Overdue;
use target::Target;

/// What the pool publishes and calls read.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) service: ServiceName,
    pub(crate) balancer: Balancer<Target>,
    pub(crate) availability: ArcSwap<Availability>,
    pub(crate) rows: ArcSwap<Vec<Arc<EndpointRow>>>,
    pub(crate) overdue: Overdue,
    pub(crate) wakeups: Arc<Wakeups>,
}

impl Published {
    /// Returns all endpoints of the set.
    pub(crate) fn endpoints(&self) -> Endpoints {
        Endpoints(self.rows.load().iter().map(|row| row.status()).collect())
    }
}
