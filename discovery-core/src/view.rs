use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::StreamExt;
use tokio::{sync::watch, task::AbortHandle};

use crate::{Error, ErrorKind, ServiceName, Snapshot, Update, UpdateStream};

/// A view of the current set of a service, as last known.
///
/// A task folds the updates for as long as a clone of the view lives. Cloning is cheap, and
/// [`current`](Self::current) takes no lock. [`ResolverExt::view`](crate::ResolverExt::view)
/// creates a view.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// use std::time::Duration;
/// use discovery_core::{FixedResolver, Instance, ResolverExt};
///
/// let resolver = FixedResolver::new([Instance::new("10.0.0.1:80".parse()?)]);
/// let view = resolver.view(&"payments".parse()?)?;
/// view.wait_until_ready(Duration::from_secs(1)).await?;
/// assert_eq!(view.current().len(), 1);
/// assert!(view.stale_since().is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct View {
    service: ServiceName,
    state: Arc<ArcSwap<State>>,
    version: watch::Receiver<u64>,
    _task: Arc<Task>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// `None` before the first set.
    snapshot: Option<Snapshot>,
    lost: Option<(Instant, Error)>,
}

/// Ends the folding task when the last view is dropped.
struct Task(AbortHandle);

impl View {
    pub(crate) fn of(service: ServiceName, mut updates: UpdateStream) -> Self {
        let state: Arc<ArcSwap<State>> = Arc::default();
        let (sender, version) = watch::channel(0);
        let folded = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Some(update) = updates.next().await {
                folded.store(Arc::new(folded.load().after(&update)));
                sender.send_modify(|version| *version += 1);
            }
        });
        Self { service, state, version, _task: Arc::new(Task(task.abort_handle())) }
    }

    /// Returns the service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Returns the set as last known; empty before the first one.
    pub fn current(&self) -> Snapshot {
        self.state.load().snapshot.clone().unwrap_or_default()
    }

    /// Returns when contact with the registry was lost, since when the set may be out of date;
    /// `None` while there is contact.
    pub fn stale_since(&self) -> Option<Instant> {
        self.state.load().lost.as_ref().map(|(since, _)| *since)
    }

    /// Returns why contact with the registry was lost; `None` while there is contact.
    pub fn lost(&self) -> Option<Error> {
        self.state.load().lost.as_ref().map(|(_, error)| error.clone())
    }

    /// Waits for the first set, for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) at the timeout. Its source is the reason
    /// why contact with the registry is lost, if it is.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has no effect.
    pub async fn wait_until_ready(&self, timeout: Duration) -> Result<(), Error> {
        let mut version = self.version.clone();
        let first = version.wait_for(|_| self.state.load().snapshot.is_some());
        if let Ok(Ok(_)) = tokio::time::timeout(timeout, first).await {
            return Ok(());
        }
        let error = Error::new(ErrorKind::DeadlineExceeded, format!("no set within {timeout:?}"));
        let error = error.with_operation("resolve").with_service(&self.service);
        Err(match self.lost() {
            Some(lost) => error.with_source(lost),
            None => error,
        })
    }

    /// Waits for an update after the one for which this returned last, and returns the set; `None`
    /// once the runtime that follows the service has shut down. Several updates in the meantime
    /// count as one.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has consumed no update.
    pub async fn changed(&mut self) -> Option<Snapshot> {
        self.version.changed().await.ok()?;
        Some(self.current())
    }
}

impl State {
    fn after(&self, update: &Update) -> Self {
        let snapshot = self.snapshot.clone().unwrap_or_default().after(update);
        match update {
            Update::Change(_) | Update::Reset(_) => Self { snapshot: Some(snapshot), lost: None },
            Update::Lost(error) => {
                let since =
                    self.lost.as_ref().map_or_else(|| tokio::time::Instant::now().into_std(), |(since, _)| *since);
                Self { snapshot: self.snapshot.clone(), lost: Some((since, error.clone())) }
            }
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load();
        f.debug_struct("View").field("service", &self.service).field("state", &**state).finish_non_exhaustive()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
