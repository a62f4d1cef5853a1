//! The state of a watch and what each event makes of it: laws W3 and W5, without any I/O.

use std::{mem, sync::Arc};

use crate::{Change, Error, Instance, InstanceId, Snapshot, Update, update::Place};

/// What one watch knows of its service. Each event changes it and returns the update for watchers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fold {
    /// `None` until the first set.
    set: Option<Set>,
    /// `Some` while contact is lost.
    lost: Option<Error>,
}

/// A set that is changed in place until somebody asks for a snapshot of it.
#[derive(Clone, Debug, Default)]
struct Set {
    snapshot: Snapshot,
    /// Where consumers find the snapshot of the current set, once one of them has asked for it.
    place: Place,
}

/// The set would have more instances than allowed.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Fold {
    /// Replaces the whole set. Always returns an update, even if the set is equal: changes could
    /// have been missed, and watchers must know.
    pub(crate) fn reset(&mut self, instances: Vec<Instance>) -> Update {
        let next = Snapshot::from_iter(instances).sharing(&self.set.take().unwrap_or_default().shared());
        self.lost = None;
        self.set = Some(Set::of(next.clone()));
        Update::Reset(next)
    }

    /// Replaces the set with the registry's next state. Returns an update if they differ.
    pub(crate) fn replace(&mut self, instances: Vec<Instance>) -> Option<Update> {
        let set = self.set.get_or_insert_default();
        set.step(set.snapshot.diff(&Snapshot::from_iter(instances)))
    }

    /// Compares the set with a state that it should be equal to. If they differ, changes were
    /// missed and the update is a `Reset`.
    pub(crate) fn compare(&mut self, instances: Vec<Instance>) -> Option<Update> {
        let known = &self.set.get_or_insert_default().snapshot;
        let is_equal = known.diff(&Snapshot::from_iter(instances.iter().cloned())).is_empty();
        (!is_equal).then(|| self.reset(instances))
    }

    /// Applies one step, without the parts that change nothing. Fails if the set would then exceed
    /// `limit`.
    pub(crate) fn change(
        &mut self,
        upserts: Vec<Instance>,
        removes: Vec<InstanceId>,
        limit: usize,
    ) -> Result<Option<Update>, TooMany> {
        let set = self.set.get_or_insert_default();
        let former = &set.snapshot;
        let mut more = 0;
        let is_new = |one: &Instance| match former.get(one.id().as_str()) {
            Some(old) => **old != *one,
            None => {
                more += 1;
                true
            }
        };
        let upserts = upserts.into_iter().filter(is_new).map(Arc::new).collect();
        let removes = removes.into_iter().filter(|id| former.get(id.as_str()).is_some()).collect();
        let change = Change::new(upserts, removes);
        if (former.len() + more).saturating_sub(change.removes().len()) > limit {
            return Err(TooMany);
        }
        Ok(set.step(change))
    }

    /// Records a loss of contact. Returns an update for the first loss and whenever the kind
    /// changes.
    pub(crate) fn lose(&mut self, error: Error) -> Option<Update> {
        let is_news = self.lost.as_ref().is_none_or(|former| former.kind() != error.kind());
        self.lost = Some(error.clone());
        is_news.then_some(Update::Lost(error))
    }

    /// Returns whether contact is lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Returns the updates with which a new watcher starts (W1).
    pub(crate) fn catch_up(&self) -> impl Iterator<Item = Update> + use<> {
        let set = self.set.as_ref().map(|set| Update::Reset(set.shared()));
        set.into_iter().chain(self.lost.clone().map(Update::Lost))
    }
}

impl Set {
    fn of(snapshot: Snapshot) -> Self {
        Self { place: Arc::new(snapshot.clone().into()), snapshot }
    }

    /// Returns the snapshot of the current set that all consumers share.
    fn shared(&self) -> Snapshot {
        self.place.get_or_init(|| self.snapshot.clone()).clone()
    }

    fn step(&mut self, change: Change) -> Option<Update> {
        if change.is_empty() {
            return None;
        }
        self.snapshot.change(&change);
        let former = mem::take(&mut self.place);
        Some(Update::Change(change.between(former, Arc::clone(&self.place))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ErrorKind, snapshot::tests::any_snapshot};

    #[derive(Clone, Debug)]
    enum Event {
        Change(Snapshot, Snapshot),
        Compare(Snapshot),
        Lose(ErrorKind),
        Replace(Snapshot),
        Reset(Snapshot),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (any_snapshot(), any_snapshot()).prop_map(|(a, b)| Event::Change(a, b)),
            Just(Event::Lose(ErrorKind::Unavailable)),
            Just(Event::Lose(ErrorKind::PermissionDenied)),
            any_snapshot().prop_map(Event::Compare),
            any_snapshot().prop_map(Event::Replace),
            any_snapshot().prop_map(Event::Reset),
        ]
    }

    fn owned(set: &Snapshot) -> Vec<Instance> {
        set.iter().map(|one| (**one).clone()).collect()
    }

    proptest! {
        #[test]
        fn consumers_hold_what_the_watch_holds(events in proptest::collection::vec(any_event(), 0..20)) {
            let mut fold = Fold::default();
            let mut held = Snapshot::default();
            let mut last_lost = None;
            for event in events {
                let update = match event {
                    Event::Reset(set) => Some(fold.reset(owned(&set))),
                    // A source changes the set only after a reset.
                    _ if fold.set.is_none() => continue,
                    Event::Lose(kind) => fold.lose(Error::new(kind, "lost")),
                    _ if fold.lost.is_some() => continue,
                    Event::Compare(set) => fold.compare(owned(&set)),
                    Event::Replace(set) => fold.replace(owned(&set)),
                    Event::Change(upserts, removes) => {
                        let removes = removes.iter().map(|one| one.id().clone());
                        let removes = removes.filter(|id| upserts.get(id.as_str()).is_none()).collect();
                        fold.change(owned(&upserts), removes, usize::MAX).unwrap()
                    }
                };
                let Some(update) = update else { continue };
                let next = held.after(&update);
                match &update {
                    Update::Change(change) => {
                        let copied = Change::new(change.upserts().to_vec(), change.removes().to_vec());
                        prop_assert_eq!(&held.after_change(&copied), &next, "folding by hand gives the same set");
                        prop_assert!(!change.is_empty());
                        prop_assert_eq!(&held.diff(&next), change, "a change is exactly what changed");
                        last_lost = None;
                    }
                    Update::Lost(error) => {
                        prop_assert_ne!(last_lost, Some(error.kind()), "a loss is reported once");
                        last_lost = Some(error.kind());
                    }
                    Update::Reset(set) => {
                        let kept = |one: &&Arc<Instance>| held.get(one.id().as_str()).is_some_and(|old| old == *one);
                        for one in set.iter().filter(kept) {
                            prop_assert!(Arc::ptr_eq(one, held.get(one.id().as_str()).unwrap()));
                        }
                        last_lost = None;
                    }
                }
                held = next;
                let joined = fold.catch_up().fold(Snapshot::default(), |set, update| set.after(&update));
                prop_assert_eq!(&held, &joined, "a late joiner folds to the same set");
                prop_assert!(held.is_same(&joined), "all share one allocation");
            }
        }
    }
}
