use async_trait::async_trait;
use futures::{StreamExt, stream};

use crate::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    resolver::require_runtime,
};

/// A resolver of a fixed set of instances, the same for every service.
///
/// It is meant for addresses from a configuration file and for tests. As a [`Registry`] it refuses
/// all registrations with [`Unsupported`](ErrorKind::Unsupported), so that it can be used where a
/// [`Backend`](crate::Backend) is required.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// use discovery_core::{FixedResolver, Instance, Resolver};
///
/// let resolver = FixedResolver::new([Instance::new("10.0.0.1:80".parse()?)]);
/// assert_eq!(resolver.list(&"payments".parse()?).await?.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FixedResolver(Snapshot);

impl FixedResolver {
    /// Creates a resolver of these instances. If several have the same id, the last one wins.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Self {
        Self(instances.into_iter().collect())
    }
}

#[async_trait]
impl Resolver for FixedResolver {
    async fn list(&self, _: &ServiceName) -> Result<Snapshot, Error> {
        Ok(self.0.clone())
    }

    fn watch(&self, _: &ServiceName) -> Result<UpdateStream, Error> {
        require_runtime("watch")?;
        let set = self.0.clone();
        Ok(UpdateStream::new(stream::once(async { Update::Reset(set) }).chain(stream::pending())))
    }
}

#[async_trait]
impl Registry for FixedResolver {
    async fn register_with(&self, service: &ServiceName, _: Instance, _: Claim) -> Result<Registration, Error> {
        let error = Error::new(ErrorKind::Unsupported, "a fixed set accepts no registrations");
        Err(error.with_operation("register").with_service(service))
    }
}
