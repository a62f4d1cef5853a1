use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Error, Instance, InstanceId, ServiceName};

/// One attempt at following a service in a registry, written by authors of backends.
///
/// It may fail at any point, by returning an error or by panicking: [`Recovered`](crate::backend::Recovered) makes a
/// [`Resolver`](crate::Resolver) of it, with everything that comes between an attempt and an endless stream. A backend that
/// reads a list and polls it is no longer than this:
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
    /// Follows a service from a full read of its entries, for as long as that goes well.
    ///
    /// First reads the whole set and passes it to [`Feed::reset`], then passes every change to the [`Live`] that it got, in the
    /// registry's order and one call per atomic step. Returns when changes could be missed; `Ok` counts as an error without a
    /// reason. It is dropped when nobody listens any more, and, for a `list`, after the reset.
    ///
    /// # Errors
    ///
    /// Whatever ended the attempt, as its watchers shall read it.
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error>;
}

/// One entry of the registry as its backend reads it.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "an entry can be read or not")]
pub enum Entry {
    /// An entry that cannot be read; it is skipped, counted and logged, and the rest is served.
    Bad(BadEntry),
    /// An instance.
    Valid(Instance),
}

/// An entry that cannot be read.
#[derive(Clone, Debug)]
pub struct BadEntry {
    /// The registry's key, for the log.
    pub key: String,
    /// Whose entry it is, as far as its key tells.
    pub id: Option<InstanceId>,
    /// The registry's revision of this value, or a hash of it: the same value is logged once.
    pub revision: u64,
    /// What is wrong with it.
    pub error: Error,
}

/// Where an attempt puts the first set; see [`Source::follow`].
#[derive(Debug)]
pub struct Feed(pub(crate) Arc<dyn Sink>);

/// The only hand that can change the set, from the first [`Feed::reset`] to the end of the attempt.
///
/// No call waits, so that no watcher can delay the backend. After the end of its attempt it does nothing.
#[derive(Debug)]
pub struct Live(Arc<dyn Sink>);

/// What a feed leads to: a shared watch, or a single list.
pub(crate) trait Sink: fmt::Debug + Send + Sync {
    fn limit(&self) -> usize;
    fn reset(&self, entries: Vec<Entry>);
    fn replace(&self, entries: Vec<Entry>);
    fn compare(&self, entries: Vec<Entry>) -> bool;
    fn change(&self, upserts: Vec<Entry>, removes: Vec<InstanceId>);
}

impl Feed {
    /// How many entries are taken at most, bad ones included.
    ///
    /// Where there are more, watchers are told so. A source that reads in parts should read no further then, and pass on what it
    /// has.
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
    /// Sets the whole set anew, where changes could have been missed but the attempt goes on; watchers see a `Reset`.
    pub fn reset(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.reset(entries.into_iter().collect());
    }

    /// Replaces the set by the next state that the registry had; watchers see what differs as one change.
    ///
    /// For backends that compare whole states, such as polling ones.
    pub fn replace(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.replace(entries.into_iter().collect());
    }

    /// Compares the set with a state of the registry that it should be equal to; where it is not,
    /// changes were missed, and watchers see a `Reset`. Returns whether it is equal.
    ///
    /// For backends that audit their own watch.
    pub fn compare(&mut self, entries: impl IntoIterator<Item = Entry>) -> bool {
        self.0.compare(entries.into_iter().collect())
    }

    /// Applies one atomic step of the registry. No id may stand in both parts.
    ///
    /// Removing an instance that is not in the set, or setting one that is equal, does nothing.
    pub fn change(&mut self, upserts: impl IntoIterator<Item = Entry>, removes: impl IntoIterator<Item = InstanceId>) {
        self.0.change(upserts.into_iter().collect(), removes.into_iter().collect());
    }
}
