use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{Address, Error, ErrorKind, InstanceId, name::excerpt};

/// One process that serves a service: its id, address, weight and metadata.
///
/// ```
/// use discovery_core::{Instance, Weight};
///
/// let instance = Instance::new("10.0.7.4:50051".parse()?)
///     .with_weight(Weight::new(300)?)
///     .with_labels([("zone", "eu-1a"), ("version", "2.1")])?;
/// assert_eq!(instance.id().as_str(), "10.0.7.4:50051");
/// assert_eq!(instance.metadata().get("zone"), Some("eu-1a"));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    id: InstanceId,
    address: Address,
    #[serde(default)]
    weight: Weight,
    #[serde(default)]
    metadata: Metadata,
}

/// An instance's share of the requests, relative to the other instances: 0 to 10,000, default 100.
///
/// An instance of weight 0 gets no requests. If all instances have weight 0, they share equally.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub struct Weight(u16);

/// What an instance publishes about itself: text keys and values, ordered by key.
///
/// There are at most 64 entries and 16 KiB in all. A key has 1 to 128 bytes of printable ASCII
/// without space; a value has at most 4 KiB of any text. The key `weight` is refused, because the
/// weight is a field of the [`Instance`] and registries shared with Go programs keep it in the
/// metadata.
///
/// It is made of pairs, and each is checked:
///
/// ```
/// use std::collections::BTreeMap;
/// use discovery_core::{ErrorKind, Metadata};
///
/// let metadata = Metadata::try_from([("zone", "eu-1a"), ("version", "2.1")])?;
/// assert_eq!(metadata.get("zone"), Some("eu-1a"));
/// let labels = BTreeMap::from([("zone".to_owned(), "eu-1a".to_owned())]);
/// assert_eq!(Metadata::try_from(labels)?.len(), 1);
/// assert_eq!(Metadata::try_from([("a key", "")]).unwrap_err().kind(), ErrorKind::InvalidInput);
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(into = "BTreeMap<String, String>", try_from = "BTreeMap<String, String>")]
pub struct Metadata(BTreeMap<String, String>);

impl Instance {
    /// Creates an instance of weight 100 without metadata, whose id is its address.
    pub fn new(address: Address) -> Self {
        let name = address.without_trailing_dot().to_string();
        let id = name.parse().expect("an address is at most 259 bytes of printable ASCII without a slash");
        Self { id, address, weight: Weight::default(), metadata: Metadata::default() }
    }

    /// Sets the id; default the address.
    #[must_use]
    pub fn with_id(mut self, id: InstanceId) -> Self {
        self.id = id;
        self
    }

    /// Sets the weight; default 100.
    #[must_use]
    pub fn with_weight(mut self, weight: Weight) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the metadata; default none. From pairs of keys and values it is made by
    /// [`with_labels`](Self::with_labels) or `Metadata::try_from`, because not all are allowed.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Adds labels to the metadata, as pairs of a key and a value. One replaces the former value of
    /// its key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if a label is not allowed or a bound of [`Metadata`] would be
    /// exceeded.
    ///
    /// ```
    /// use discovery_core::Instance;
    ///
    /// let version = String::from("2.1");
    /// let instance = Instance::new("10.0.7.4:50051".parse()?)
    ///     .with_labels([("zone", "eu-1a")])?
    ///     .with_labels(vec![("version".to_owned(), version)])?;
    /// assert_eq!(instance.metadata().len(), 2);
    /// assert!(instance.with_labels([("a key", "with a space")]).is_err());
    /// # Ok::<(), discovery_core::Error>(())
    /// ```
    pub fn with_labels<K, V>(mut self, labels: impl IntoIterator<Item = (K, V)>) -> Result<Self, Error>
    where
        K: Into<String>,
        V: Into<String>,
    {
        for (key, value) in labels {
            self.metadata.insert(key, value)?;
        }
        Ok(self)
    }

    /// Returns the id, which identifies the instance within its service.
    pub fn id(&self) -> &InstanceId {
        &self.id
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Returns its share of the requests.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Returns what it publishes about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Weight {
    /// Creates a weight of 0 to 10,000.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] above 10,000.
    pub fn new(weight: u16) -> Result<Self, Error> {
        if weight > Self::MAX.0 {
            return Err(invalid(format!("invalid weight {weight}: allowed are 0 to {}", Self::MAX.0)));
        }
        Ok(Self(weight))
    }

    /// Returns the weight as a number.
    pub fn value(self) -> u16 {
        self.0
    }

    /// The largest weight, 10,000.
    pub const MAX: Self = Self(10_000);
}

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl TryFrom<u16> for Weight {
    type Error = Error;

    fn try_from(weight: u16) -> Result<Self, Error> {
        Self::new(weight)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Metadata {
    /// Sets the value of a key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the key is not allowed or a bound of [`Metadata`] would be
    /// exceeded; nothing changes then.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<(), Error> {
        let key = key.into();
        let value = value.into();
        check_entry(&key, &value)?;
        let replaced = self.0.get(&key).map_or(0, |old| key.len() + old.len());
        if replaced == 0 && self.0.len() == MAX_ENTRIES {
            return Err(invalid(format!("too much metadata: at most {MAX_ENTRIES} entries are allowed")));
        }
        let total: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
        if total - replaced + key.len() + value.len() > MAX_TOTAL_BYTES {
            return Err(invalid(format!("too much metadata: at most {MAX_TOTAL_BYTES} bytes are allowed in all")));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns all entries, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Metadata {
    type Error = Error;

    fn try_from(entries: BTreeMap<String, String>) -> Result<Self, Error> {
        collect(entries)
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> TryFrom<[(K, V); N]> for Metadata {
    type Error = Error;

    fn try_from(entries: [(K, V); N]) -> Result<Self, Error> {
        collect(entries)
    }
}

impl From<Metadata> for BTreeMap<String, String> {
    fn from(metadata: Metadata) -> Self {
        metadata.0
    }
}

fn collect<K: Into<String>, V: Into<String>>(entries: impl IntoIterator<Item = (K, V)>) -> Result<Metadata, Error> {
    let mut metadata = Metadata::default();
    for (key, value) in entries {
        metadata.insert(key, value)?;
    }
    Ok(metadata)
}

fn check_entry(key: &str, value: &str) -> Result<(), Error> {
    let shown = excerpt(key);
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(invalid(format!(
            "invalid metadata key {shown}: allowed are 1 to {MAX_KEY_BYTES} bytes of printable ASCII without space"
        )));
    }
    if key == "weight" {
        return Err(invalid("invalid metadata key \"weight\": the weight is a field of the instance".to_owned()));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!(
            "invalid metadata value for {shown}: it has {} bytes; at most {MAX_VALUE_BYTES} are allowed",
            value.len()
        )));
    }
    Ok(())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

const MAX_ENTRIES: usize = 64;
const MAX_KEY_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 4 << 10;
const MAX_TOTAL_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_address_is_an_id() {
        let label = "a".repeat(62);
        let host = format!("{label}.{label}.{label}.{label}.a");
        let instance = Instance::new(format!("{host}:65535").parse().unwrap());
        assert_eq!(instance.id().as_str().len(), host.len() + 6);
    }

    #[test]
    fn metadata_keeps_its_bounds() {
        let mut metadata = Metadata::default();
        for (key, value) in [("", ""), ("a b", ""), ("weight", "1"), (&"k".repeat(129), ""), ("k", &"v".repeat(4097))] {
            let error = metadata.insert(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        for n in 0..64 {
            metadata.insert(format!("k{n}"), "ü\n\u{1b}").unwrap();
        }
        assert!(metadata.insert("one-more", "").unwrap_err().to_string().contains("64 entries"));
        metadata.insert("k0", "x".repeat(4096)).unwrap();
        metadata.insert("k1", "x".repeat(4096)).unwrap();
        metadata.insert("k2", "x".repeat(4096)).unwrap();
        assert!(metadata.insert("k3", "x".repeat(4096)).unwrap_err().to_string().contains("in all"));
        assert_eq!(metadata.get("k3"), Some("ü\n\u{1b}"));
    }

    #[test]
    fn labels_are_added_to_the_metadata_and_replace_their_former_values() {
        let one = Instance::new("10.0.0.1:80".parse().unwrap());
        let one = one.with_labels([("zone", "eu"), ("version", "1")]).unwrap();
        let one = one.with_labels([("version".to_owned(), "2")]).unwrap();
        assert_eq!(one.metadata().iter().collect::<Vec<_>>(), [("version", "2"), ("zone", "eu")]);
        let error = one.clone().with_labels([("weight", "1")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let none: [(&str, &str); 0] = [];
        assert_eq!(one.clone().with_labels(none).unwrap(), one);
        let many = (0..65).map(|number| (format!("k{number}"), "v"));
        assert!(one.with_labels(many).unwrap_err().to_string().contains("64 entries"));
    }

    #[test]
    fn serde_checks_what_it_reads() {
        let instance: Instance = serde_json::from_str(r#"{"id":"a","address":"10.0.0.1:80"}"#).unwrap();
        assert_eq!(instance.weight(), Weight::default());
        for bad in [
            r#"{"id":"a/b","address":"10.0.0.1:80"}"#,
            r#"{"id":"a","address":"10.0.0.1:0"}"#,
            r#"{"id":"a","address":"10.0.0.1:80","weight":10001}"#,
            r#"{"id":"a","address":"10.0.0.1:80","metadata":{"":"x"}}"#,
        ] {
            assert!(serde_json::from_str::<Instance>(bad).is_err(), "{bad}");
        }
    }
}
