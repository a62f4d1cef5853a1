//! The set of a service's instances at one moment.

use std::{fmt, sync::Arc};

use rpds::{RedBlackTreeMapSync, map::red_black_tree_map::IterValues};

use crate::{Change, Instance, InstanceId, Update};

/// The set of a service's instances at one moment, ordered by id.
///
/// Cloning is cheap, and a snapshot never changes. It is a persistent tree: the set after a change
/// shares all but the path to what changed, so a change costs little even in a large set.
/// Consecutive snapshots share the instances that did not change (the same [`Arc`]), so
/// [`Arc::ptr_eq`] shows which ones did.
///
/// ```
/// use discovery_core::{Instance, Snapshot};
///
/// let set = Snapshot::from_iter([
///     Instance::new("10.0.0.1:80".parse()?),
///     Instance::new("10.0.0.2:80".parse()?),
/// ]);
/// assert_eq!(set.len(), 2);
/// assert!(set.get("10.0.0.1:80").is_some());
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Snapshot(Tree);

/// An iterator over the instances of a [`Snapshot`], ordered by id.
pub struct Iter<'a>(IterValues<'a, InstanceId, Arc<Instance>, archery::ArcTK>);

type Tree = RedBlackTreeMapSync<InstanceId, Arc<Instance>>;

impl Snapshot {
    /// Returns the instances, ordered by id.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.values())
    }

    /// Returns the instance with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Instance>> {
        self.0.get(id)
    }

    /// Returns the number of instances.
    pub fn len(&self) -> usize {
        self.0.size()
    }

    /// Returns whether there are no instances.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the set after an update, which is how a consumer folds its stream.
    #[must_use]
    pub fn after(&self, update: &Update) -> Self {
        match update {
            Update::Change(change) => self.after_change(change),
            Update::Lost(_) => self.clone(),
            Update::Reset(snapshot) => snapshot.clone(),
        }
    }

    /// Returns the set after a change.
    #[must_use]
    pub fn after_change(&self, change: &Change) -> Self {
        let after = || {
            let mut next = self.clone();
            next.change(change);
            next
        };
        change.next_of(self).map_or_else(after, |next| next.get_or_init(after).clone())
    }

    /// Changes the set in place, copying only what other snapshots share.
    pub(crate) fn change(&mut self, change: &Change) {
        for id in change.removes() {
            self.0.remove_mut(id);
        }
        for one in change.upserts() {
            self.0.insert_mut(one.id().clone(), Arc::clone(one));
        }
    }

    /// Returns the change that leads from this set to `next`; it is empty if they are equal.
    pub fn diff(&self, next: &Self) -> Change {
        let mut upserts = Vec::new();
        let mut removes = Vec::new();
        let mut former = self.iter().peekable();
        for instance in next {
            while let Some(gone) = former.next_if(|old| old.id() < instance.id()) {
                removes.push(gone.id().clone());
            }
            if former.next_if(|old| old.id() == instance.id()) != Some(instance) {
                upserts.push(Arc::clone(instance));
            }
        }
        removes.extend(former.map(|gone| gone.id().clone()));
        Change::new(upserts, removes)
    }

    /// Returns whether both are the same allocation.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }

    /// Returns the same set with the instances of `former` wherever they are equal; if the sets are
    /// equal, returns `former` itself.
    pub(crate) fn sharing(self, former: &Self) -> Self {
        former.after_change(&former.diff(&self))
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self(Tree::new_sync())
    }
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.iter().eq(other)
    }
}

impl Eq for Snapshot {}

impl<T: Into<Arc<Instance>>> FromIterator<T> for Snapshot {
    /// Collects a set. If several instances have the same id, the last one wins.
    fn from_iter<I: IntoIterator<Item = T>>(instances: I) -> Self {
        let instances = instances.into_iter().map(Into::into);
        Self(instances.fold(Tree::new_sync(), |mut tree, one: Arc<Instance>| {
            tree.insert_mut(one.id().clone(), one);
            tree
        }))
    }
}

impl<'a> IntoIterator for &'a Snapshot {
    type Item = &'a Arc<Instance>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Instance>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("left", &self.len()).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Weight;

    /// Small sets over a few ids, so that changes, removals and equal instances all occur.
    pub(crate) fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        proptest::collection::vec((1u8..8, 0u16..3), 0..8).prop_map(|entries| {
            let instance = |(host, weight)| {
                let address = format!("10.0.0.{host}:80").parse().unwrap();
                Instance::new(address).with_weight(Weight::new(weight).unwrap())
            };
            entries.into_iter().map(instance).collect()
        })
    }

    proptest! {
        #[test]
        fn a_diff_leads_from_one_set_to_the_other(a in any_snapshot(), b in any_snapshot()) {
            prop_assert_eq!(&a.after_change(&a.diff(&b)), &b);
            prop_assert!(a.diff(&a).is_empty());
        }

        #[test]
        fn unchanged_instances_keep_their_allocation(a in any_snapshot(), b in any_snapshot()) {
            let b = b.sharing(&a);
            for instance in &b {
                match a.get(instance.id().as_str()) {
                    Some(old) => prop_assert_eq!(old == instance, Arc::ptr_eq(old, instance)),
                    None => prop_assert!(a.diff(&b).upserts().contains(instance)),
                }
            }
        }

        #[test]
        fn a_set_is_ordered_and_found_by_id(a in any_snapshot()) {
            prop_assert!(a.iter().map(|one| one.id()).is_sorted());
            for one in &a {
                prop_assert_eq!(a.get(one.id().as_str()), Some(one));
            }
        }
    }
}
