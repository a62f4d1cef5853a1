use async_trait::async_trait;
use futures::{StreamExt, stream};

use crate::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    resolver::require_runtime,
};

/// A resolver of one given set, the same for every service.
///
/// For addresses from a configuration file and for tests. As a [`Registry`] it answers
/// [`Unsupported`](ErrorKind::Unsupported), so that it can stand where a whole backend is asked for.
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
    /// A resolver of these instances; of several with one id, the last one stays.
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
        let error = Error::new(ErrorKind::Unsupported, "a fixed set takes no registrations");
        Err(error.with_operation("register").with_service(service))
    }
}
