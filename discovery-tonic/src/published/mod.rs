//! Where the path of a call and the path of an update meet: what the pool publishes and calls read.
//!
//! The picker reads [`target`]s, one for each connection that takes requests. A call that finds
//! none reads the [`availability`], which shows whether to wait and why to fail. People read the
//! [`endpoints`] and programs the [`status`], both of which come from the [`overview`]. Responses
//! that may become [`overdue`] go the other way: calls hand them in, and the pool ends them.

pub(crate) mod availability;
pub(crate) mod endpoints;
pub(crate) mod overdue;
pub(crate) mod overview;
pub(crate) mod status;
pub(crate) mod target;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use discovery_core::{Resolver, ServiceName, SkippedEntries};

use crate::{
    balance::Balancer,
    endpoint::Wakeups,
    error::{BoxError, with_cause},
};
use availability::{Availability, skipped_note};
use endpoints::Endpoints;
use overdue::Overdue;
use overview::Overview;
use status::ChannelStatus;
use target::Target;

/// What the pool publishes and calls read.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) service: ServiceName,
    /// Knows why entries are skipped. The pool owns it.
    pub(crate) resolver: Weak<dyn Resolver>,
    pub(crate) balancer: Balancer<Target>,
    pub(crate) availability: ArcSwap<Availability>,
    pub(crate) overview: ArcSwap<Overview>,
    pub(crate) overdue: Overdue,
    pub(crate) wakeups: Arc<Wakeups>,
}

impl Published {
    /// Returns why a call fails that finds no endpoint, as a message and as an error if there is
    /// one.
    pub(crate) fn explain(&self, why: &Availability, waited: Option<Duration>) -> (String, Option<BoxError>) {
        why.explain(&self.service, waited, || self.skipped_entries())
    }

    /// A resolver that panics here must not cost the call its error.
    fn skipped_entries(&self) -> SkippedEntries {
        let Some(resolver) = self.resolver.upgrade() else { return SkippedEntries::default() };
        catch_unwind(AssertUnwindSafe(|| resolver.skipped_entries(&self.service))).unwrap_or_default()
    }

    /// Returns all endpoints of the set.
    pub(crate) fn endpoints(&self) -> Endpoints {
        let overview = self.overview.load_full();
        let rows: Vec<_> = overview.rows.iter().map(|row| row.status()).collect();
        let note = if rows.is_empty() {
            let (message, cause) = self.explain(&overview.availability, None);
            Some(with_cause(message, cause.as_ref()))
        } else {
            skipped_note(&self.skipped_entries())
        };
        Endpoints::new(rows, note, overview.registry.clone())
    }

    /// Returns the state of the channel.
    pub(crate) fn status(&self) -> ChannelStatus {
        let overview = self.overview.load();
        ChannelStatus { registry: overview.registry.clone(), endpoints: overview.rows.len(), ready: overview.ready }
    }
}
