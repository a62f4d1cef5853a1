use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Error, ErrorKind, ServiceName, Snapshot, UpdateStream, View};

/// Tells which instances serve a service.
///
/// Authors of backends write a [`Source`](crate::backend::Source) and get this by [`Recovered`](crate::backend::Recovered). The laws of the
/// stream stand at [`Update`](crate::Update).
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// Asks the registry for the set as it is now; linearizable where the registry can be.
    ///
    /// # Errors
    ///
    /// What the registry answers, or [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) where it does not within the backend's
    /// deadline. An unknown service is an empty set and no error.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error>;

    /// Watches the set: an owned, endless stream that is stopped by its drop.
    ///
    /// Never waits: where the registry cannot be reached the stream says so, and goes on trying.
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime; [`Closed`](ErrorKind::Closed) after the backend was closed.
    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error>;
}

/// What every [`Resolver`] can do besides; implemented for all of them and for nothing else.
pub trait ResolverExt: Resolver {
    /// Asks the registry for the set as it is now, and waits for the answer at most until `deadline` has passed.
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
    /// As of [`list`](Resolver::list), and [`DeadlineExceeded`](ErrorKind::DeadlineExceeded) at the deadline.
    ///
    /// # Cancel safety
    ///
    /// It only reads.
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

    /// Watches the set and keeps the last one at hand, for code that asks now and then.
    ///
    /// # Errors
    ///
    /// As of [`watch`](Resolver::watch).
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
}

/// Fails with a typed error where tokio would panic.
pub(crate) fn require_runtime(operation: &'static str) -> Result<tokio::runtime::Handle, Error> {
    tokio::runtime::Handle::try_current()
        .map_err(|_| Error::new(ErrorKind::NoRuntime, "no tokio runtime is running here").with_operation(operation))
}
