use std::{collections::BTreeMap, time::Duration};

use discovery_core::{Address, Instance, InstanceId};
use tokio::time::Instant;

use super::outlier::Outlier;
use crate::endpoint::Endpoint;

/// Remembers ejected endpoints that were removed, so that a failing instance cannot reset its state
/// by registering again.
#[derive(Debug, Default)]
pub(crate) struct Departed(BTreeMap<InstanceId, DepartedEndpoint>);

#[derive(Debug)]
struct DepartedEndpoint {
    address: Address,
    outlier: Outlier,
    /// When it is forgotten.
    until: Instant,
}

impl Departed {
    /// Keeps the state of an endpoint until then, if it is ejected or being probed.
    pub(crate) fn keep(&mut self, endpoint: &Endpoint, outlier: &Outlier, until: Instant) {
        if let Some(outlier) = outlier.for_successor() {
            self.0.insert(endpoint.id.clone(), DepartedEndpoint { address: endpoint.address.clone(), outlier, until });
        }
    }

    /// Takes the state of an instance that returns at the same address.
    pub(crate) fn take(&mut self, instance: &Instance) -> Option<Outlier> {
        // The usual case.
        if self.0.is_empty() {
            return None;
        }
        let left = self.0.remove(instance.id())?;
        (left.address == *instance.address() && Instant::now() < left.until).then_some(left.outlier)
    }

    /// Forgets the endpoints whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, left| now < left.until);
    }
}

/// How long an ejected endpoint is remembered after its removal, at least.
pub(crate) const REMEMBER: Duration = Duration::from_secs(60);
