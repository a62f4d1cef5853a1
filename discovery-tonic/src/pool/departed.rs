use std::{collections::BTreeMap, time::Duration};

use discovery_core::{Address, Instance, InstanceId};
use tokio::time::Instant;

use super::outlier::Outlier;
use crate::endpoint::Endpoint;

/// What is known of endpoints that left while they were taken out, so that one that fails does not
/// get its share of calls again by being announced anew.
#[derive(Debug, Default)]
pub(crate) struct Departed(BTreeMap<InstanceId, DepartedEndpoint>);

#[derive(Debug)]
struct DepartedEndpoint {
    address: Address,
    outlier: Outlier,
    /// Then it is forgotten.
    until: Instant,
}

impl Departed {
    /// Keeps what is known of an endpoint for so long, if there is anything against it.
    pub(crate) fn keep(&mut self, endpoint: &Endpoint, outlier: &Outlier, until: Instant) {
        if let Some(outlier) = outlier.for_successor() {
            self.0.insert(endpoint.id.clone(), DepartedEndpoint { address: endpoint.address.clone(), outlier, until });
        }
    }

    /// What is known of an instance that comes back to where it was.
    pub(crate) fn take(&mut self, instance: &Instance) -> Option<Outlier> {
        // Nearly always nobody has left like this.
        if self.0.is_empty() {
            return None;
        }
        let left = self.0.remove(instance.id())?;
        (left.address == *instance.address() && Instant::now() < left.until).then_some(left.outlier)
    }

    /// Forgets what is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, left| now < left.until);
    }
}

/// For so long after it left an endpoint is known at least.
pub(crate) const REMEMBER: Duration = Duration::from_secs(60);
