use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Error, Instance, Registration, Resolver, ServiceName};

/// Registers instances of services.
///
/// The promises, whatever the backend; the conformance suite has one test for each:
///
/// - **R1** `Ok` means written: a `list` begun after it sees the instance; open watches see it soon.
/// - **R2** While the [`Registration`] lives the instance is registered, or its `status` says since when and why not. It heals
///   itself, for ever, after the loss of its lease, its entry, the server, or a pause of the process, unless superseded or
///   deregistered.
/// - **R3** One owner per (service, id). Registering takes over, since a restarted process has its old id, or is refused where
///   asked ([`Claim::IfAbsent`]). Healing never takes over. The superseded can neither overwrite nor delete.
/// - **R4** `deregister` returns once the entry is gone, or within its deadline an error that says by when it will be. Dropping
///   the registration asks for the same. A killed process is gone when its lease ends.
/// - **R5** An update changes weight and metadata in place: no removal, no new lease. One that
///   failed for good is not written later.
/// - **R6** Ambiguous outcomes (a write whose answer was lost, `register` dropped half-way) leave at most one entry, and none
///   once given up.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers an instance, by default taking over what another owner registered under the same id.
    ///
    /// Wrappers forward [`register_with`](Self::register_with) and leave this alone.
    ///
    /// # Errors
    ///
    /// As of [`register_with`](Self::register_with), without the conflict.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way, it leaves nothing behind: what was written is removed again (R6).
    async fn register(&self, service: &ServiceName, instance: Instance) -> Result<Registration, Error> {
        self.register_with(service, instance, Claim::TakeOver).await
    }

    /// Registers an instance, and says what becomes of another owner of the same id.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) where `claim` is [`Claim::IfAbsent`] and another owner's entry lives;
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where the backend only reads; else what the registry answers, or
    /// [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) where it does not within the backend's deadline. After an error
    /// nothing stays registered, however the write ended.
    ///
    /// # Cancel safety
    ///
    /// As of [`register`](Self::register).
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error>;
}

/// What a registration does about another owner of its id.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Claim {
    /// Is refused while another owner's entry lives.
    IfAbsent,
    /// Becomes the owner; the other's registration ends as [`Superseded`](crate::Status::Superseded).
    #[default]
    TakeOver,
}

/// Both halves of a backend, as one object: `Arc<dyn Backend>` is what a user holds who chooses by URL.
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
