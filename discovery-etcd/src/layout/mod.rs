//! How instances are written as keys and values.
//!
//! [`Layout`] is the trait, and [`Capabilities`] what a layout can express. Each implementation has
//! a file: [`etcd_naming`], the default, [`toadocr`] and [`plain`]; [`go_json`] is JSON as Go reads
//! it. [`by_name`] chooses a layout for a URL or a configuration file, and `check` tests one.

mod by_name;
mod capabilities;
#[cfg(feature = "conformance")]
mod check;
mod etcd_naming;
mod go_json;
mod plain;
mod toadocr;

use std::fmt;

use discovery_core::{Error, Instance, InstanceId, ServiceName};

pub(crate) use by_name::{LayoutOptions, by_name};
pub use capabilities::Capabilities;
#[cfg(feature = "conformance")]
pub use check::check_layout;
pub use etcd_naming::EtcdNaming;
pub use plain::Plain;
pub use toadocr::ToadOcr;

/// How instances are written as keys and values.
///
/// A layout makes it possible to share entries with other programs; see [`EtcdNaming`] for the
/// default. [`check_layout`] tests an implementation.
///
/// All keys of a service have one prefix, the [`range`](Self::range). The rest of a key is its
/// *tail*. The tail alone shows which instances an entry holds, because an event of etcd about a
/// deletion carries nothing else.
///
/// The registry is not trusted: [`classify`](Self::classify) and [`read`](Self::read) are called
/// with anything that anybody may have written. They must neither panic nor take long.
#[cfg_attr(not(feature = "conformance"), doc = "", doc = "[`check_layout`]: https://docs.rs/discovery-etcd")]
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// Returns what this layout can express, and its defaults; default everything.
    ///
    /// An instance that it cannot express is refused when it is registered or updated, so
    /// [`write`](Self::write) never gets one.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Returns the prefix of all keys of a service, below the configured prefix.
    ///
    /// It must end in a separator, so that the range of `order` does not include `order-history`.
    fn range(&self, service: &ServiceName) -> String;

    /// Returns the tail and the value to write for an instance.
    ///
    /// The tail must depend on the instance's id and address alone, and
    /// [`classify`](Self::classify) must return the id for it.
    fn write(&self, service: &ServiceName, instance: &Instance) -> Written;

    /// Returns what a tail is: an entry, of which instances, or something else.
    fn classify(&self, tail: &str) -> Tail;

    /// Returns the part of a tail that begins a subtree without entries of this service, such as
    /// `eu/` of `eu/a1` if ids contain no `/`. The default is `None`.
    ///
    /// For every tail that begins with this part, [`classify`](Self::classify) must return
    /// [`Tail::Other`] and `subtree` must return the same part.
    ///
    /// A list skips the rest of such a subtree, however many keys it has.
    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        let _ = tail;
        None
    }

    /// Reads the instances of an entry, those that [`classify`](Self::classify) returns for its
    /// tail.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput), with what is wrong with the
    /// value, if an instance cannot be called: its address or its weight cannot be used. Labels
    /// that cannot be used are dropped and reported with the instance.
    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error>;
}

/// What to write for an instance; see [`Layout::write`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "an entry of etcd has a key and a value")]
pub struct Written {
    /// The rest of the key, after the [`range`](Layout::range).
    pub tail: String,
    /// The value.
    pub value: Vec<u8>,
}

/// What the rest of a key is; see [`Layout::classify`].
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a reader must handle every case")]
pub enum Tail {
    /// A key that should be an entry but names no instance, for this reason.
    Bad(Error),
    /// An entry of the instance with this id.
    Instance(InstanceId),
    /// An entry of several instances.
    Instances(Vec<InstanceId>),
    /// Not an entry of this service.
    Other,
}

/// An instance as it was read; see [`Layout::read`].
#[derive(Clone, Debug)]
pub struct Decoded {
    instance: Instance,
    dropped: Option<(u64, Error)>,
}

impl Tail {
    /// Returns the ids of the instances.
    pub fn into_ids(self) -> Vec<InstanceId> {
        match self {
            Self::Bad(_) | Self::Other => Vec::new(),
            Self::Instance(id) => vec![id],
            Self::Instances(ids) => ids,
        }
    }
}

impl Decoded {
    /// Adds the number of labels that were dropped, and what is wrong with one of them.
    #[must_use]
    pub fn with_dropped_labels(mut self, labels: u64, error: Error) -> Self {
        self.dropped = (labels > 0).then_some((labels, error));
        self
    }

    /// Returns the instance.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Returns the number of labels that were dropped.
    pub fn dropped_labels(&self) -> u64 {
        self.dropped.as_ref().map_or(0, |(labels, _)| *labels)
    }

    pub(crate) fn into_parts(self) -> (Instance, Option<(u64, Error)>) {
        (self.instance, self.dropped)
    }
}

impl From<Instance> for Decoded {
    fn from(instance: Instance) -> Self {
        Self { instance, dropped: None }
    }
}
