//! A service as a Rust program follows it.

use std::{sync::Arc, time::Duration};

use discovery::{Backend, ResolverExt, ServiceName, Snapshot, View};
use tokio::time::timeout;

use crate::failure::Failure;

/// The current set of a service.
#[derive(Debug)]
pub(crate) struct Watcher(View);

impl Watcher {
    pub(crate) fn of(backend: Arc<dyn Backend>, service: &ServiceName) -> Result<Self, Failure> {
        Ok(Self(backend.view(service)?))
    }

    /// Waits until the set is as wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Result<(), Failure> {
        let reached = timeout(SOON, async {
            while !wanted(&self.0.current()) {
                if self.0.changed().await.is_none() {
                    return;
                }
            }
        });
        if reached.await.is_ok() && wanted(&self.0.current()) {
            return Ok(());
        }
        Err(format!("the watcher does not see {what}; it sees {:?}", self.0.current()).into())
    }
}

const SOON: Duration = Duration::from_secs(15);
