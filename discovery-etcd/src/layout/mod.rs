//! How instances are written as keys and values.
//!
//! [`Layout`] is the trait, and [`Capabilities`] what a layout can express. Each implementation has
//! a file: [`etcd_naming`], the default, [`toadocr`] and [`plain`]; [`go_json`] is JSON as Go reads
//! it, and [`segment`] reads tails of one segment. [`by_name`] chooses a layout for a URL or a
//! configuration file, and `check` tests one.

mod by_name;
mod capabilities;
#[cfg(feature = "conformance")]
mod check;
mod etcd_naming;
mod go_json;
mod plain;
mod segment;
mod toadocr;

use std::{fmt, sync::Arc};

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
///
/// ```
/// use discovery_core::{Error, ErrorKind, Instance, ServiceName};
/// use discovery_etcd::{Capabilities, Decoded, Layout, Tail, Written};
///
/// /// The address as the value, below `services/<service>/`.
/// #[derive(Debug)]
/// struct Addresses;
///
/// impl Layout for Addresses {
///     fn capabilities(&self) -> Capabilities {
///         Capabilities::default().without_weights().without_metadata()
///     }
///
///     fn range(&self, service: &ServiceName) -> String {
///         format!("services/{service}/")
///     }
///
///     fn write(&self, _: &ServiceName, instance: &Instance, _: i64) -> Written {
///         Written { tail: instance.id().to_string(), value: instance.address().to_string().into()
/// }
///     }
///
///     fn classify(&self, tail: &str) -> Tail {
///         match tail.contains('/') {
///             true => Tail::Other,
///             false => tail.parse().map_or_else(Tail::Bad, Tail::Instance),
///         }
///     }
///
///     fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
///         let text = str::from_utf8(value)
///             .map_err(|_| Error::new(ErrorKind::InvalidInput, "it is not UTF-8"))?;
///         Ok(vec![Instance::new(text.parse()?).with_id(tail.parse()?).into()])
///     }
/// }
///
/// # #[cfg(feature = "conformance")]
/// discovery_etcd::check_layout(&Addresses);
/// ```
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
    /// The tail must depend on the instance's id alone, no two tails may name the same id, and
    /// [`classify`](Self::classify) must return the id for it. What is written must be
    /// [read](Self::read) as the same instance; otherwise it is refused when it is registered.
    ///
    /// `lease` is the id of the entry's lease if the layout
    /// [declares](Capabilities::with_leases_in_entries) that it is part of the entry, and 0
    /// otherwise. The tail of such a layout may depend on the lease alone, and readers then know
    /// the instance by the id that [`classify`](Self::classify) returns.
    fn write(&self, service: &ServiceName, instance: &Instance, lease: i64) -> Written;

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

    /// Reads the instances of an entry, of those that [`classify`](Self::classify) returns for its
    /// tail. An instance that is not returned is not served.
    ///
    /// It is called only with tails that [`classify`](Self::classify) as instances. Labels that
    /// cannot be used are dropped and [reported](Decoded::without_labels) with the instance.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](discovery_core::ErrorKind::InvalidInput), with what is wrong with the
    /// value, if the entry cannot be read: its address or its weight cannot be used.
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
pub struct Decoded(pub(crate) Content);

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// This instance cannot be called, for this reason. Others of the same entry may be.
    Bad(InstanceId, Error),
    Instance(Instance),
    /// An instance without this many of its labels, and what is wrong with one of them.
    Partial(Instance, u64, Error),
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
    /// Reports one of several instances of an entry that cannot be called, and why. It is skipped
    /// like a bad entry, and the others are served.
    pub fn bad(id: InstanceId, error: Error) -> Self {
        Self(Content::Bad(id, error))
    }

    /// Reports an instance of which this many labels were dropped, and what is wrong with one of
    /// them.
    pub fn without_labels(instance: Instance, labels: u64, error: Error) -> Self {
        Self(Content::Partial(instance, labels, error))
    }

    /// Returns the id.
    pub fn id(&self) -> &InstanceId {
        match &self.0 {
            Content::Bad(id, _) => id,
            Content::Instance(instance) | Content::Partial(instance, ..) => instance.id(),
        }
    }

    /// Returns the instance, or why it cannot be called.
    ///
    /// # Errors
    ///
    /// What is wrong with its part of the entry.
    pub fn instance(&self) -> Result<&Instance, &Error> {
        match &self.0 {
            Content::Bad(_, error) => Err(error),
            Content::Instance(instance) | Content::Partial(instance, ..) => Ok(instance),
        }
    }

    /// Returns the number of labels that were dropped.
    pub fn dropped_labels(&self) -> u64 {
        match &self.0 {
            Content::Partial(_, labels, _) => *labels,
            Content::Bad(..) | Content::Instance(_) => 0,
        }
    }
}

impl From<Instance> for Decoded {
    fn from(instance: Instance) -> Self {
        Self(Content::Instance(instance))
    }
}

impl<T: Layout + ?Sized> Layout for Arc<T> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn range(&self, service: &ServiceName) -> String {
        (**self).range(service)
    }

    fn write(&self, service: &ServiceName, instance: &Instance, lease: i64) -> Written {
        (**self).write(service, instance, lease)
    }

    fn classify(&self, tail: &str) -> Tail {
        (**self).classify(tail)
    }

    fn subtree<'a>(&self, tail: &'a str) -> Option<&'a str> {
        (**self).subtree(tail)
    }

    fn read(&self, tail: &str, value: &[u8]) -> Result<Vec<Decoded>, Error> {
        (**self).read(tail, value)
    }
}
