use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Error, Instance, Registration, Resolver, ServiceName};

/// Registers instances of services.
///
/// Every backend keeps these promises; the conformance suite has a test of each:
///
/// - **R1** `Ok` means written: a `list` that starts afterwards sees the instance, and open watches
///   see it soon.
/// - **R2** While the [`Registration`] lives, the instance is registered, or its `status` reports
///   since when and why not. It is registered again automatically, forever, after the loss of its
///   lease, its entry or the server, or a pause of the process, unless it was superseded or
///   deregistered.
/// - **R3** One owner per (service, id). Registering takes over, because a restarted process has
///   its old id, or is refused on request ([`Claim::IfAbsent`]). Automatic re-registration never
///   takes over. A superseded registration can neither overwrite nor delete, and does not return
///   when its successor has left.
/// - **R4** `deregister` returns once the entry is gone or, within its deadline, an error that
///   states by when it will be. Dropping the registration requests the same. The entry of a killed
///   process is gone when its lease ends.
/// - **R5** An update changes weight and metadata in place: no removal, no new lease. An update
///   that failed for good is not written later.
/// - **R6** Ambiguous outcomes (a write whose answer was lost, `register` dropped before
///   completion) leave at most one entry, and none once given up.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers an instance, taking over the id from another owner.
    ///
    /// Wrappers forward [`register_with`](Self::register_with) and do not implement this method.
    ///
    /// # Errors
    ///
    /// Same errors as [`register_with`](Self::register_with), except the conflict.
    ///
    /// # Cancel safety
    ///
    /// Dropped before completion, nothing stays registered: whatever was written is removed again
    /// (R6).
    async fn register(&self, service: &ServiceName, instance: Instance) -> Result<Registration, Error> {
        self.register_with(service, instance, Claim::TakeOver).await
    }

    /// Registers an instance; `claim` decides what happens if the id has another owner.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) if `claim` is [`Claim::IfAbsent`] and another
    /// owner's entry exists; [`Unsupported`](crate::ErrorKind::Unsupported) if the backend only
    /// reads; otherwise the registry's error, or
    /// [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) if it does not answer within the
    /// backend's deadline. After an error nothing stays registered, whatever became of the write.
    ///
    /// # Cancel safety
    ///
    /// Same as [`register`](Self::register).
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error>;
}

/// What registering does if the id has another owner.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Claim {
    /// Fails while another owner's entry exists.
    IfAbsent,
    /// Takes over the id. The other owner's registration ends as
    /// [`Superseded`](crate::Status::Superseded).
    #[default]
    TakeOver,
}

/// A registry and a resolver in one object. Code that selects its backend by URL holds an `Arc<dyn
/// Backend>`.
pub trait Backend: Registry + Resolver {}

impl<T: Registry + Resolver + ?Sized> Backend for T {}

impl fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

#[async_trait]
impl<T: Registry + ?Sized> Registry for Arc<T> {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        (**self).register_with(service, instance, claim).await
    }
}
