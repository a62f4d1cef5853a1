use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Error, ErrorKind, ServiceName, SkippedEntries, Snapshot, UpdateStream, View};

/// Finds the instances that serve a service.
///
/// Authors of backends implement [`Source`](crate::backend::Source) and get a resolver from
/// [`Recovered`](crate::backend::Recovered). The laws of the stream are listed at
/// [`Update`](crate::Update).
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// Asks the registry for the current set; linearizable if the registry can be.
    ///
    /// # Errors
    ///
    /// The registry's error, or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) if it does not
    /// answer within the backend's deadline. An unknown service is an empty set, not an error.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has no effect: it only reads.
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error>;

    /// Watches the set as an owned, endless stream; dropping the stream ends the watch.
    ///
    /// Never waits. If the registry cannot be reached, the stream reports that and keeps trying.
    /// The resolver also logs it, once per outage and service, because views and channels do not.
    /// [`Recovered`](crate::backend::Recovered) does so.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime; [`Closed`](ErrorKind::Closed)
    /// after the backend was closed.
    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error>;

    /// Returns which entries of a service are skipped now, as far as a `watch` or a `list` of this
    /// resolver has read them.
    ///
    /// It asks nobody and never waits. A set that is empty without a cause in the registry is then
    /// explained, for instance by entries in another layout. The default knows of none.
    fn skipped_entries(&self, service: &ServiceName) -> SkippedEntries {
        let _ = service;
        SkippedEntries::default()
    }
}

/// Convenience methods of every [`Resolver`].
pub trait ResolverExt: Resolver {
    /// Asks the registry for the current set and waits for the answer at most `timeout`.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// use std::time::Duration;
    /// use discovery_core::{FixedResolver, Instance, ResolverExt};
    ///
    /// let resolver = FixedResolver::new([Instance::new("10.0.0.1:80".parse()?)]);
    /// let set = resolver.resolve(&"payments".parse()?, Duration::from_secs(1)).await?;
    /// assert_eq!(set.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Same errors as [`list`](Resolver::list), and
    /// [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) after `timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, it has no effect: it only reads.
    fn resolve(
        &self,
        service: &ServiceName,
        timeout: Duration,
    ) -> impl Future<Output = Result<Snapshot, Error>> + Send {
        async move {
            tokio::time::timeout(timeout, self.list(service)).await.unwrap_or_else(|_| {
                let message = format!("no answer within {timeout:?}");
                Err(Error::new(ErrorKind::DeadlineExceeded, message).with_operation("resolve").with_service(service))
            })
        }
    }

    /// Watches the set and keeps the current one available, for code that reads it now and then.
    ///
    /// # Errors
    ///
    /// Same errors as [`watch`](Resolver::watch).
    fn view(&self, service: &ServiceName) -> Result<View, Error> {
        Ok(View::of(service.clone(), self.watch(service)?))
    }
}

impl<T: Resolver + ?Sized> ResolverExt for T {}

#[async_trait]
impl<T: Resolver + ?Sized> Resolver for Arc<T> {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        (**self).list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        (**self).watch(service)
    }

    fn skipped_entries(&self, service: &ServiceName) -> SkippedEntries {
        (**self).skipped_entries(service)
    }
}

/// Returns a typed error where tokio would panic.
pub(crate) fn require_runtime(operation: &'static str) -> Result<tokio::runtime::Handle, Error> {
    tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here").with_operation(operation))
}
