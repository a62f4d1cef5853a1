//! Where the ways of a call and of an update meet: what the pool publishes and calls read.
//!
//! The picker reads [`target`]s, one for each connection that takes requests; a call that finds
//! none reads the [`availability`], which says whether to wait and why to fail; people read the
//! [`endpoints`]. What is [`overdue`] goes the other way: calls hand in what the pool is to end.

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

/// Where the pool publishes and calls read.
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
    /// All endpoints of the set.
    pub(crate) fn endpoints(&self) -> Endpoints {
        Endpoints(self.rows.load().iter().map(|row| row.status()).collect())
    }
}
