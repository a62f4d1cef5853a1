use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    task,
};

use futures::{Stream, StreamExt, stream::BoxStream};

use crate::{Error, Instance, InstanceId, Snapshot};

/// One item of a service's address-event stream.
///
/// The laws of such a stream, whatever the backend; the conformance suite has one test for each:
///
/// - **W1** The first item is `Reset`, perhaps of an empty set, or `Lost` where the registry cannot be reached yet. One who
///   joins late starts with the set as its watch has it, then `Lost` if contact is lost.
/// - **W2** After each item the fold ([`Snapshot::apply`]) is the valid entries of one state that the registry really had, in
///   the registry's order. A registry that itself went back (restored, wiped) is a `Reset`.
/// - **W3** There is no gap: where changes could have been missed, a `Reset` follows. `Change` never carries an instance that
///   did not change, and `Reset` keeps unchanged instances identical (the same [`Arc`]).
/// - **W4** A stream never ends; dropping it stops it. Errors are items.
/// - **W5** An outage is one `Lost`, and one more when the error's kind changes; the set stands as last known; the first item
///   after `Lost` is `Reset`, even an equal one.
/// - **W6** A slow consumer falls behind a bounded queue, then gets one `Reset`; it never delays others or the backend.
/// - **W7** A bad entry is skipped, counted, and logged once per revision, but not more often than once a minute; the rest is
///   served. A bad value over a good one counts as its removal.
/// - **W8** Many watchers of one service share one upstream watch; the last one to drop closes it at once.
/// - **W9** `order` never sees `order-history`; keys of deeper paths are not entries, and no bad ones either.
/// - **W10** An unknown service is an empty set, not an error.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "folding must be total: who ignores an unknown update is wrong")]
pub enum Update {
    /// One atomic step of the registry.
    Change(Change),
    /// Contact with the registry is lost, and why; the set stands as last known, and the watch goes on trying.
    Lost(Error),
    /// The whole set: at the start, after an outage, and wherever changes could have been missed.
    Reset(Snapshot),
}

/// What one step of the registry changed.
///
/// Consumers that fold the changes of one watch with [`Snapshot::apply`] hold the same allocation after each, however many they
/// are.
#[derive(Clone, Default)]
pub struct Change {
    upserts: Arc<[Arc<Instance>]>,
    removes: Arc<[InstanceId]>,
    /// The step from set to set, where a watch made it.
    step: Option<Arc<Step>>,
}

/// The sets before and after a change. Who holds the one gets the other, which the first one to ask makes for all; where nobody asks
/// there is none.
#[derive(Debug)]
pub(crate) struct Step {
    former: Place,
    next: Place,
}

/// Where the set of one moment stands, once somebody has asked for it.
pub(crate) type Place = Arc<OnceLock<Snapshot>>;

/// A service's address-event stream: owned, endless, stopped by its drop.
///
/// See [`Update`] for its laws.
pub struct UpdateStream(BoxStream<'static, Update>);

impl Change {
    /// A change that sets `upserts` and removes `removes`; no id may stand in both.
    pub fn new(upserts: Vec<Arc<Instance>>, removes: Vec<InstanceId>) -> Self {
        Self { upserts: upserts.into(), removes: removes.into(), step: None }
    }

    /// The same change as the step between two sets.
    pub(crate) fn between(self, former: Place, next: Place) -> Self {
        Self { step: Some(Arc::new(Step { former, next })), ..self }
    }

    /// Where the set stands that follows, if `former` is the very set that this change was made from.
    pub(crate) fn next_of(&self, former: &Snapshot) -> Option<&OnceLock<Snapshot>> {
        let step = self.step.as_ref()?;
        step.former.get().is_some_and(|known| known.is_same(former)).then_some(&*step.next)
    }

    /// The instances that are new or different.
    pub fn upserts(&self) -> &[Arc<Instance>] {
        &self.upserts
    }

    /// The instances that are gone.
    pub fn removes(&self) -> &[InstanceId] {
        &self.removes
    }

    /// Whether nothing changed.
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
