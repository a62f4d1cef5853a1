use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream};

use crate::{
    Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Update, UpdateStream,
    resolver::require_runtime,
};

/// A resolver of fixed sets of instances: the same set for every service, or one per service.
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
pub struct FixedResolver(Sets);

#[derive(Clone, Debug)]
enum Sets {
    ByService(Arc<BTreeMap<ServiceName, Snapshot>>),
    /// The set of every service.
    Same(Snapshot),
}

impl FixedResolver {
    /// Creates a resolver of these instances, which serve every service. If several have the same
    /// id, the last one wins.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Self {
        Self(Sets::Same(instances.into_iter().collect()))
    }

    /// Creates a resolver of one set per service. A service that is not named has an empty set.
    ///
    /// If a service is named several times, its set is all of these instances. If several of them
    /// have the same id, the last one wins.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), discovery_core::Error> {
    /// use discovery_core::{FixedResolver, Instance, Resolver};
    ///
    /// let one = Instance::new("10.0.0.1:80".parse()?);
    /// let two = Instance::new("10.0.0.2:80".parse()?);
    /// let resolver = FixedResolver::by_service([
    ///     ("orders".parse()?, vec![one.clone(), two]),
    ///     ("ingest".parse()?, vec![one]),
    /// ]);
    /// assert_eq!(resolver.list(&"orders".parse()?).await?.len(), 2);
    /// assert!(resolver.list(&"payments".parse()?).await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn by_service<I: IntoIterator<Item = Instance>>(sets: impl IntoIterator<Item = (ServiceName, I)>) -> Self {
        let mut by_service: BTreeMap<ServiceName, Vec<Instance>> = BTreeMap::new();
        for (service, instances) in sets {
            by_service.entry(service).or_default().extend(instances);
        }
        let by_service = by_service.into_iter().map(|(service, instances)| (service, instances.into_iter().collect()));
        Self(Sets::ByService(Arc::new(by_service.collect())))
    }

    fn set(&self, service: &ServiceName) -> Snapshot {
        match &self.0 {
            Sets::ByService(sets) => sets.get(service).cloned().unwrap_or_default(),
            Sets::Same(set) => set.clone(),
        }
    }
}

#[async_trait]
impl Resolver for FixedResolver {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        Ok(self.set(service))
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        require_runtime("watch")?;
        let set = self.set(service);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(address: &str) -> Instance {
        Instance::new(address.parse().unwrap())
    }

    async fn listed_and_watched(resolver: &FixedResolver, service: &str) -> Vec<String> {
        let service = service.parse().unwrap();
        let addresses = |set: &Snapshot| set.iter().map(|one| one.address().to_string()).collect::<Vec<_>>();
        let listed = addresses(&resolver.list(&service).await.unwrap());
        let Some(Update::Reset(watched)) = resolver.watch(&service).unwrap().next().await else { panic!("no set") };
        assert_eq!(addresses(&watched), listed);
        listed
    }

    #[tokio::test]
    async fn one_set_is_that_of_every_service() {
        let resolver = FixedResolver::new([instance("h:1"), instance("h:2")]);
        for service in ["orders", "ingest"] {
            assert_eq!(listed_and_watched(&resolver, service).await, ["h:1", "h:2"]);
        }
    }

    #[tokio::test]
    async fn each_service_has_its_own_set_and_others_have_none() {
        let sets = [("orders", vec!["h:1", "h:2"]), ("ingest", vec!["h:3"]), ("orders", vec!["h:4", "h:1"])];
        let sets = sets.map(|(service, addresses)| {
            (service.parse().unwrap(), addresses.into_iter().map(instance).collect::<Vec<_>>())
        });
        let resolver = FixedResolver::by_service(sets);
        assert_eq!(listed_and_watched(&resolver, "orders").await, ["h:1", "h:2", "h:4"]);
        assert_eq!(listed_and_watched(&resolver, "ingest").await, ["h:3"]);
        assert!(listed_and_watched(&resolver, "order").await.is_empty(), "an unknown service is an empty set");
        let refused = resolver.register(&"orders".parse().unwrap(), instance("h:5")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
}
