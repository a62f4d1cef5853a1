//! A small registry in the harness with bugs on demand. It shows that the oracle finds what it is
//! meant to find.
//!
//! It talks to one member only, lists again after every break and has a lease per registration.
//! Without a bug it keeps the promises in [rough weather](crate::plan::Weather::Rough), but it is
//! not built for foul weather.
//!
//! `source` resolves and `registry` registers.

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
    /// Restores a missing entry whoever owns the key by then.
    BlindPut,
    /// Forwards every change twice.
    DoubledChanges,
    /// Continues a watch after a compaction from the oldest revision left, without a list.
    IgnoredCompaction,
    /// Starts the watch at the current revision, not at the one after the list.
    ListWithoutRevision,
    /// Does not restore lost entries.
    NoHealing,
    /// Reads `payments-history` as part of `payments`.
    PrefixWithoutSeparator,
    /// Removes all instances with the address of a removed key.
    RemovalByValue,
    /// Renews the lease of a deregistered instance forever.
    RenewedForEver,
    /// Forwards the events of one revision one by one.
    SplitRevisions,
    /// Deletes the key on deregistration whoever owns it by then.
    UnconditionalDelete,
    /// Updates by deleting the entry and writing it again.
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
