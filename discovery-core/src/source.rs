use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Error, Instance, InstanceId, ServiceName};

/// One attempt at following a service in a registry; for authors of backends.
///
/// An attempt may fail at any point, by returning an error or by panicking.
/// [`Recovered`](crate::backend::Recovered) makes a [`Resolver`](crate::Resolver) of it and does
/// all that lies between one attempt and an endless stream. A backend that polls a list needs no
/// more than this:
///
/// ```
/// use std::time::Duration;
/// use discovery_core::{Error, Instance, ServiceName, backend::{Entry, Feed, Source}};
///
/// #[derive(Debug)]
/// struct Polled;
///
/// #[async_trait::async_trait]
/// impl Source for Polled {
///     async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
///         let mut live = feed.reset(read(service)?);
///         loop {
///             tokio::time::sleep(Duration::from_secs(1)).await;
///             live.replace(read(service)?);
///         }
///     }
/// }
///
/// fn read(_: &ServiceName) -> Result<Vec<Entry>, Error> {
///     Ok(vec![Entry::Valid(Instance::new("10.0.0.1:80".parse()?))])
/// }
/// ```
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Follows a service, from a full read of its entries until the attempt fails.
    ///
    /// Reads the whole set and passes it to [`Feed::reset`], then passes every change to the
    /// [`Live`] that `reset` returns, in the registry's order and in one call per atomic step.
    /// Returns once changes could be missed; `Ok` counts as an error without a reason. The future
    /// is dropped when nobody watches any more and, for a `list`, after the reset.
    ///
    /// # Errors
    ///
    /// Whatever ended the attempt, worded for its watchers.
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error>;
}

/// One entry of the registry, as the backend reads it.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "an entry can be read, in part, or not")]
pub enum Entry {
    /// An entry that cannot be read. It is skipped, counted and logged, and the rest is served.
    Bad(BadEntry),
    /// An entry that can be read but for some labels. The instance is served without them, and they
    /// are counted and logged.
    Partial(Instance, DroppedLabels),
    /// An entry that can be read.
    Valid(Instance),
}

/// An entry that cannot be read.
#[derive(Clone, Debug)]
pub struct BadEntry {
    /// The registry's key, for the log.
    pub key: String,
    /// The id of the instance, if the key reveals it.
    pub id: Option<InstanceId>,
    /// The registry's revision of this value, or a hash of it; the same revision is logged once.
    pub revision: u64,
    /// What is wrong with it.
    pub error: Error,
}

/// The labels of an instance that are not allowed in its [`Metadata`](crate::Metadata).
#[derive(Clone, Debug)]
pub struct DroppedLabels {
    /// The registry's key, for the log.
    pub key: String,
    /// The registry's revision of this value, or a hash of it; the same revision is logged once.
    pub revision: u64,
    /// How many there are.
    pub labels: u64,
    /// What is wrong with one of them.
    pub error: Error,
}

/// Where an attempt delivers the first set; see [`Source::follow`].
#[derive(Debug)]
pub struct Feed(pub(crate) Arc<dyn Sink>);

/// Where an attempt delivers changes, from the first [`Feed::reset`] until the attempt ends.
///
/// No call waits, so a watcher cannot delay the backend. Calls after the end of the attempt have no
/// effect.
#[derive(Debug)]
pub struct Live(Arc<dyn Sink>);

/// What receives a feed: a shared watch or a single list.
pub(crate) trait Sink: fmt::Debug + Send + Sync {
    fn limit(&self) -> usize;
    fn reset(&self, entries: Vec<Entry>);
    fn replace(&self, entries: Vec<Entry>);
    fn compare(&self, entries: Vec<Entry>) -> bool;
    fn change(&self, upserts: Vec<Entry>, removes: Vec<InstanceId>);
    fn forget_bad(&self, keys: Vec<String>);
}

impl Feed {
    /// Returns how many entries are accepted at most, bad ones included.
    ///
    /// If there are more, watchers get an error. A source that reads in parts should stop reading
    /// then, and pass on what it has.
    pub fn limit(&self) -> usize {
        self.0.limit()
    }

    /// Sets the whole set, as read from one state of the registry.
    pub fn reset(self, entries: impl IntoIterator<Item = Entry>) -> Live {
        self.0.reset(entries.into_iter().collect());
        Live(self.0)
    }
}

impl Live {
    /// Sets the whole set again if changes could have been missed but the attempt continues.
    /// Watchers see a `Reset`.
    pub fn reset(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.reset(entries.into_iter().collect());
    }

    /// Replaces the set with the registry's next state. Watchers see the difference as one change.
    ///
    /// For backends that compare whole states, such as those that poll.
    pub fn replace(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.replace(entries.into_iter().collect());
    }

    /// Compares the set with a state of the registry to which it should be equal, and returns
    /// whether it is. If it is not, changes were missed, and watchers see a `Reset`.
    ///
    /// For backends that audit their own watch.
    pub fn compare(&mut self, entries: impl IntoIterator<Item = Entry>) -> bool {
        self.0.compare(entries.into_iter().collect())
    }

    /// Applies one atomic step of the registry. No id may be in both `upserts` and `removes`.
    ///
    /// Removing an instance that is not in the set, or setting an equal one, has no effect.
    pub fn change(&mut self, upserts: impl IntoIterator<Item = Entry>, removes: impl IntoIterator<Item = InstanceId>) {
        self.0.change(upserts.into_iter().collect(), removes.into_iter().collect());
    }

    /// Reports that bad entries without an id are gone, by [key](BadEntry::key), so that they are
    /// [reported](crate::Resolver::skipped_entries) no longer.
    pub fn forget_bad(&mut self, keys: impl IntoIterator<Item = String>) {
        self.0.forget_bad(keys.into_iter().collect());
    }
}
