//! A small registry of the harness's own, with bugs on demand: it shows that the oracle finds what it is there to find.
//!
//! It has one member to talk to and leans on it: it lists anew after every break, and has a lease for each registration. Without a
//! bug it keeps the promises in rough weather; it is no example of how to do it in foul one.

mod registry;
mod source;

use std::time::Duration;

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    backend::{Recovered, Recovery},
};
use futures::{StreamExt, stream};

use registry::CopyRegistry;
use source::CopySource;

/// A mistake that registries on etcd make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bug {
    /// What is missing is put back whoever's entry stands there by then.
    BlindPut,
    /// Each change is passed on twice.
    DoubledChanges,
    /// After a compaction the watch goes on where history begins, without a list.
    IgnoredCompaction,
    /// The watch begins with what happens next, not with what follows the list.
    ListWithoutRevision,
    /// Lost entries are not written again.
    NoHealing,
    /// `payments` also reads `payments-history`.
    PrefixWithoutSeparator,
    /// A removed key takes all instances with its address along.
    RemovalByValue,
    /// The lease of what was deregistered is renewed for ever.
    RenewedForEver,
    /// The events of one revision are passed on one by one.
    SplitRevisions,
    /// Deregistering deletes the key, whoever's it is by then.
    UnconditionalDelete,
    /// An update removes the entry and puts it anew.
    UpdateByRemoval,
}

pub(crate) struct Copy {
    resolver: Recovered<CopySource>,
    registry: CopyRegistry,
    bug: Option<Bug>,
}

impl Copy {
    pub(crate) fn new(mut members: Vec<String>, bug: Option<Bug>) -> Self {
        let member = members.remove(0);
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500)).expect("in bounds");
        let recovery = Recovery::default().backoff(backoff);
        let resolver = Recovered::with_recovery(CopySource { member: member.clone(), bug }, recovery);
        Self { resolver, registry: CopyRegistry { member, bug }, bug }
    }
}

#[async_trait]
impl Registry for Copy {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        self.registry.register(service, instance, claim).await
    }
}

#[async_trait]
impl Resolver for Copy {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.resolver.list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        let updates = self.resolver.watch(service)?;
        if self.bug != Some(Bug::DoubledChanges) {
            return Ok(updates);
        }
        let twice = |update: Update| {
            let times = if matches!(update, Update::Change(_)) { 2 } else { 1 };
            stream::iter(std::iter::repeat_n(update, times))
        };
        Ok(UpdateStream::new(updates.flat_map(twice)))
    }
}
