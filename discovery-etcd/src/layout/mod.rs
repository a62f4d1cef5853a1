//! How instances are written as keys and values.

mod etcd_naming;

use std::fmt;

use discovery_core::{Error, Instance, InstanceId, ServiceName};

pub use etcd_naming::EtcdNaming;

/// How instances are written as keys and values, so that other programs can share them.
///
/// The registry is not trusted: both readers get whatever anybody put there, and must neither panic nor take long.
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// What the keys of a service begin with, below the configured prefix; ends in a separator, so that `order/` never reads
    /// `order-history/`.
    fn range(&self, service: &ServiceName) -> String;

    /// The rest of an instance's key.
    fn tail(&self, id: &InstanceId) -> String;

    /// Whose key it is, by what follows the range: `None` where it is none of this service's entries at all.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) where it is meant as an entry but cannot be one.
    fn id(&self, tail: &str) -> Option<Result<InstanceId, Error>>;

    /// The beginning of a tail below which there are none of this service's entries at all, such as
    /// `eu/` of `eu/a1` where ids have no `/`. For every tail that begins so, [`id`](Self::id) is
    /// `None`, and what it begins with is the answer for it too. By default `None`.
    ///
    /// A list leaves out the rest of such a subtree, however many keys it has.
    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        let _ = tail;
        None
    }

    /// The value of an instance.
    fn encode(&self, instance: &Instance) -> Vec<u8>;

    /// Reads a value.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput), with what is wrong with it.
    fn decode(&self, id: InstanceId, value: &[u8]) -> Result<Instance, Error>;
}
