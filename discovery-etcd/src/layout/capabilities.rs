//! What a layout can express.

use std::time::Duration;

use discovery_core::{Error, ErrorKind, Instance, Weight};

/// What a [`Layout`](super::Layout) can express, and its defaults.
///
/// The default is a layout that can express everything and takes the defaults of
/// [`EtcdConfig`](crate::EtcdConfig).
///
/// ```
/// use std::time::Duration;
/// use discovery_etcd::Capabilities;
///
/// let capabilities =
///     Capabilities::default().without_metadata().with_default_ttl(Duration::from_secs(5));
/// assert!(capabilities.has_weights() && !capabilities.has_metadata());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capabilities {
    weights: bool,
    metadata: bool,
    ids: bool,
    leases: bool,
    ttl: Duration,
    separator: char,
}

impl Capabilities {
    /// Declares that every instance has the weight 100.
    #[must_use]
    pub fn without_weights(mut self) -> Self {
        self.weights = false;
        self
    }

    /// Declares that no instance has metadata.
    #[must_use]
    pub fn without_metadata(mut self) -> Self {
        self.metadata = false;
        self
    }

    /// Declares that the id of an instance is its address.
    ///
    /// A process that starts again at another address then has another id, so it takes over
    /// nothing. An id cannot show that two processes are the same one.
    #[must_use]
    pub fn without_ids(mut self) -> Self {
        self.ids = false;
        self
    }

    /// Declares that the id of the lease is part of the entry, in its key or its value.
    ///
    /// Each registration then has a lease of its own. When that is lost, the instance is written
    /// again under another lease and another key. Implies [`without_ids`](Self::without_ids), and
    /// nobody can take an entry over.
    #[must_use]
    pub fn with_leases_in_entries(mut self) -> Self {
        self.leases = true;
        self.ids = false;
        self
    }

    /// Sets the TTL of configurations that set none, within the bounds of
    /// [`EtcdConfig::ttl`](crate::EtcdConfig::ttl); default 15 s.
    #[must_use]
    pub fn with_default_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the character between prefix and service in configurations that set none, one that
    /// [`EtcdConfig::separator`](crate::EtcdConfig::separator) allows; default `/`.
    #[must_use]
    pub fn with_default_separator(mut self, separator: char) -> Self {
        self.separator = separator;
        self
    }

    /// Returns whether instances may have any weight.
    pub fn has_weights(self) -> bool {
        self.weights
    }

    /// Returns whether instances may have metadata.
    pub fn has_metadata(self) -> bool {
        self.metadata
    }

    /// Returns whether an instance may have an id other than its address.
    pub fn has_ids(self) -> bool {
        self.ids
    }

    /// Returns whether the id of the lease is part of the entry.
    pub fn has_leases_in_entries(self) -> bool {
        self.leases
    }

    /// Returns the TTL of configurations that set none.
    pub fn default_ttl(self) -> Duration {
        self.ttl
    }

    /// Returns the character between prefix and service in configurations that set none.
    pub fn default_separator(self) -> char {
        self.separator
    }

    /// Refuses an instance that the layout cannot express.
    pub(crate) fn check(self, instance: &Instance) -> Result<(), Error> {
        let problem = if !self.weights && instance.weight() != Weight::default() {
            format!(
                "the weight {}: the layout cannot express weights; allowed is {}",
                instance.weight(),
                DEFAULT_WEIGHT
            )
        } else if !self.metadata && !instance.metadata().is_empty() {
            "the metadata: the layout cannot express metadata; allowed is none".to_owned()
        } else if !self.ids && instance.id() != Instance::new(instance.address().clone()).id() {
            format!("the id {}: the layout has no ids; allowed is the address, {}", instance.id(), instance.address())
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::InvalidInput, format!("invalid instance: {problem}")))
    }
}

impl Default for Capabilities {
    fn default() -> Self {
        Self { weights: true, metadata: true, ids: true, leases: false, ttl: Duration::from_secs(15), separator: '/' }
    }
}

const DEFAULT_WEIGHT: u16 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_expressed_is_refused_by_name() {
        let plain = Instance::new("10.0.0.1:80".parse().unwrap());
        let heavy = plain.clone().with_weight(Weight::new(200).unwrap());
        let labeled = plain.clone().with_metadata([("zone", "eu")].try_into().unwrap());
        let named = plain.clone().with_id("a1".parse().unwrap());
        let none = Capabilities::default().without_weights().without_metadata().without_ids();
        for (instance, said) in [(&heavy, "weight 200"), (&labeled, "metadata"), (&named, "id a1")] {
            assert!(Capabilities::default().check(instance).is_ok());
            let error = none.check(instance).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(said) && error.to_string().contains("allowed is"), "{error}");
        }
        assert!(none.check(&plain).is_ok());
        let dotted = Instance::new("orders.internal.:80".parse().unwrap());
        assert!(none.check(&dotted).is_ok(), "the id of a name with its root dot has none");
    }
}
