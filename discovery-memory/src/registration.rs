use std::sync::Arc;

use async_trait::async_trait;
use discovery_core::{Error, ErrorKind, Instance, Status, backend::RegistrationBackend};

use crate::{
    lease::keep,
    state::{Store, key},
};

/// The backend's side of a registration: its number among the owners of the registry.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(crate) store: Arc<Store>,
    pub(crate) process: u64,
    pub(crate) number: u64,
}

#[async_trait]
impl RegistrationBackend for Owned {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        keep(&self.store);
        let mut state = self.store.lock();
        let reached = state.reach(self.process);
        // Healing writes this instance, so it is set even while the registry is unreachable, but
        // not if the update was refused for good.
        let is_refused = reached.as_ref().is_err_and(|error| !error.is_retryable());
        if let Some(owner) = state.owners.get_mut(&self.number).filter(|_| !is_refused) {
            owner.instance = instance;
        }
        reached.map_err(|error| error.with_operation("update"))?;
        state.heal(self.number);
        if state.owners.contains_key(&self.number) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "another owner took the id over").with_operation("update"))
    }

    async fn deregister(&self) -> Result<(), Error> {
        self.end().map_err(|error| error.with_operation("deregister"))
    }

    fn release(&self) {
        // If the registry cannot be reached, the lease ends the entry.
        let _ = self.end();
    }
}

impl Owned {
    /// Ends the registration; ending it again has no effect.
    fn end(&self) -> Result<(), Error> {
        let mut state = self.store.lock();
        let Some(owner) = state.owners.remove(&self.number) else {
            // Superseded, ended before, or crashed with its handle.
            return if state.crashed.contains(&self.process) { state.reach(self.process) } else { Ok(()) };
        };
        owner.status.set(Status::deregistered());
        let key = key(&owner.service, owner.instance.id().as_str());
        let Some(stored) = state.entries.get(&key).filter(|stored| stored.owner == Some(self.number)) else {
            return Ok(());
        };
        if let Err(error) = state.reach(self.process) {
            let left =
                stored.ends.map_or(state.ttl, |ends| ends.saturating_duration_since(tokio::time::Instant::now()));
            let message = format!("the registry cannot be reached; the lease ends the entry within {left:?}");
            return Err(Error::new(ErrorKind::DeadlineExceeded, message)
                .with_service(&owner.service)
                .with_source(error));
        }
        state.remove([key]);
        Ok(())
    }
}
