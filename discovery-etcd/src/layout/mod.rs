//! How instances are written as keys and values: the trait [`Layout`] and its implementation for
//! etcd's own format.

mod etcd_naming;

use std::fmt;

use discovery_core::{Error, Instance, InstanceId, ServiceName};

pub use etcd_naming::EtcdNaming;

/// How instances are written as keys and values.
///
/// A layout makes it possible to share entries with other programs; see [`EtcdNaming`] for the
/// default.
///
/// The registry is not trusted: [`id`](Self::id) and [`decode`](Self::decode) are called with
/// anything that anybody may have written. They must neither panic nor take long.
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// Returns the prefix of all keys of a service, below the configured prefix.
    ///
    /// It must end in a separator, so that the range of `order` does not include `order-history`.
    fn range(&self, service: &ServiceName) -> String;

    /// Returns the rest of an instance's key, after the [`range`](Self::range).
    fn tail(&self, id: &InstanceId) -> String;

    /// Returns the id of the instance whose key has this tail, the part after the
    /// [`range`](Self::range), or `None` if the key is not an entry of this service.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput) if the key should be an entry but
    /// its id is invalid.
    fn id(&self, tail: &str) -> Option<Result<InstanceId, Error>>;

    /// Returns the part of a tail that begins a subtree without entries of this service, such as
    /// `eu/` of `eu/a1` if ids contain no `/`. The default is `None`.
    ///
    /// For every tail that begins with this part, [`id`](Self::id) must return `None` and `subtree`
    /// must return the same part.
    ///
    /// A list skips the rest of such a subtree, however many keys it has.
    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        let _ = tail;
        None
    }

    /// Returns the value to write for an instance.
    fn encode(&self, instance: &Instance) -> Vec<u8>;

    /// Reads an instance from a value.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput), with what is wrong with the
    /// value.
    fn decode(&self, id: InstanceId, value: &[u8]) -> Result<Instance, Error>;
}
