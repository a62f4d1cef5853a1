use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    task,
};

use futures::{Stream, StreamExt, stream::BoxStream};

use crate::{Error, Instance, InstanceId, Snapshot};

/// One item of a service's update stream.
///
/// Every backend's stream keeps these laws; the conformance suite has a test of each:
///
/// - **W1** The first item is `Reset`, perhaps of an empty set, or `Lost` if the registry cannot be
///   reached yet. A late joiner starts with the set as its watch has it, then `Lost` if contact is
///   lost.
/// - **W2** After each item the folded set ([`Snapshot::after`]) equals the valid entries of one
///   state that the registry really had, in the registry's order. A registry that itself went back
///   (restored, wiped) is a `Reset`.
/// - **W3** There is no gap: if changes could have been missed, a `Reset` follows. `Change` never
///   carries an instance that did not change, and `Reset` keeps unchanged instances identical (the
///   same [`Arc`]).
/// - **W4** A stream never ends; dropping it stops it. Errors are items.
/// - **W5** An outage is one `Lost`, and one more when the error's kind changes. The set stays as
///   last known. The first item after `Lost` is a `Reset`, even if it is equal.
/// - **W6** A slow consumer falls behind a bounded queue, then gets one `Reset`; it never delays
///   others or the backend.
/// - **W7** A bad entry is skipped, counted, and logged once per revision, but at most once a
///   minute; the rest is served. A bad value in place of a good one counts as its removal. An entry
///   is bad only if it cannot be called, for want of a usable address, id or weight. A label that
///   is not allowed is dropped and counted, and the instance stays.
/// - **W8** All watchers of a service share one upstream watch; dropping the last one closes it at
///   once.
/// - **W9** `order` never sees `order-history`; keys of deeper paths are not entries, not even bad
///   ones.
/// - **W10** An unknown service is an empty set, not an error.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "folding must be total: a consumer that ignores an unknown update is wrong"
)]
pub enum Update {
    /// One atomic step of the registry.
    Change(Change),
    /// Contact with the registry is lost, for this reason. The set stays as last known, and the
    /// watch keeps trying.
    Lost(Error),
    /// The whole set: at the start, after an outage, and whenever changes could have been missed.
    Reset(Snapshot),
}

/// What one step of the registry changed.
///
/// Consumers that fold the changes of one watch with [`Snapshot::after`] share one allocation of
/// the set after each change, however many they are.
#[derive(Clone, Default)]
pub struct Change {
    upserts: Arc<[Arc<Instance>]>,
    removes: Arc<[InstanceId]>,
    /// The sets before and after, if a watch made this change.
    step: Option<Arc<Step>>,
}

/// The sets before and after a change. A holder of the former set can obtain the next; it is built
/// once, on first request, and shared.
#[derive(Debug)]
pub(crate) struct Step {
    former: Place,
    next: Place,
}

/// Where the set of one moment is kept once somebody has asked for it.
pub(crate) type Place = Arc<OnceLock<Snapshot>>;

/// A service's update stream: owned, endless, stopped when it is dropped.
///
/// See [`Update`] for its laws.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// use discovery_core::{FixedResolver, Instance, Resolver, Snapshot};
/// use futures::StreamExt;
///
/// let resolver = FixedResolver::new([Instance::new("10.0.0.1:80".parse()?)]);
/// let mut updates = resolver.watch(&"payments".parse()?)?;
/// let mut set = Snapshot::default();
/// while let Some(update) = updates.next().await {
///     set = set.after(&update);
///     if !set.is_empty() {
///         break;
///     }
/// }
/// assert_eq!(set.len(), 1);
/// # Ok(())
/// # }
/// ```
pub struct UpdateStream(BoxStream<'static, Update>);

impl Change {
    /// Creates a change that sets `upserts` and removes `removes`; no id may be in both.
    pub fn new(upserts: Vec<Arc<Instance>>, removes: Vec<InstanceId>) -> Self {
        Self { upserts: upserts.into(), removes: removes.into(), step: None }
    }

    /// Returns the same change with the places of the sets before and after it.
    pub(crate) fn between(self, former: Place, next: Place) -> Self {
        Self { step: Some(Arc::new(Step { former, next })), ..self }
    }

    /// Returns the place of the next set, if `former` is the very set from which this change was
    /// made.
    pub(crate) fn next_of(&self, former: &Snapshot) -> Option<&OnceLock<Snapshot>> {
        let step = self.step.as_ref()?;
        step.former.get().is_some_and(|known| known.is_same(former)).then_some(&*step.next)
    }

    /// Returns the instances that are new or different.
    pub fn upserts(&self) -> &[Arc<Instance>] {
        &self.upserts
    }

    /// Returns the ids of the instances that are gone.
    pub fn removes(&self) -> &[InstanceId] {
        &self.removes
    }

    /// Returns whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty()
    }
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        (&self.upserts, &self.removes) == (&other.upserts, &other.removes)
    }
}

impl Eq for Change {}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change").field("upserts", &self.upserts).field("removes", &self.removes).finish()
    }
}

impl UpdateStream {
    /// Wraps a stream that keeps the laws of [`Update`].
    pub fn new(stream: impl Stream<Item = Update> + Send + 'static) -> Self {
        Self(stream.boxed())
    }
}

impl Stream for UpdateStream {
    type Item = Update;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> task::Poll<Option<Update>> {
        self.0.poll_next_unpin(context)
    }
}

impl fmt::Debug for UpdateStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateStream").finish_non_exhaustive()
    }
}
