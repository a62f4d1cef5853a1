use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{Change, Instance, InstanceId, Update};

/// The set of a service's instances at one moment, in the order of their ids.
///
/// One reference count: cloning is cheap and a snapshot never changes. Two snapshots that follow one another share the
/// instances that did not change (the same [`Arc`]), so that [`Arc::ptr_eq`] tells what moved.
///
/// ```
/// use discovery_core::{Instance, Snapshot};
///
/// let set = Snapshot::from_iter([Instance::new("10.0.0.1:80".parse()?), Instance::new("10.0.0.2:80".parse()?)]);
/// assert_eq!(set.len(), 2);
/// assert!(set.get("10.0.0.1:80").is_some());
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Snapshot(Arc<[Arc<Instance>]>);

impl Snapshot {
    /// The instances, in the order of their ids.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Instance>> {
        self.0.iter()
    }

    /// The instance with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<Instance>> {
        let place = self.0.binary_search_by(|instance| instance.id().as_str().cmp(id)).ok()?;
        self.0.get(place)
    }

    /// The number of instances.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no instances.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set after an update: what a consumer of updates holds.
    #[must_use]
    pub fn apply(&self, update: &Update) -> Self {
        match update {
            Update::Change(change) => self.with(change),
            Update::Lost(_) => self.clone(),
            Update::Reset(snapshot) => snapshot.clone(),
        }
    }

    /// The set after a change.
    #[must_use]
    pub fn with(&self, change: &Change) -> Self {
        if let Some(next) = change.next_of(self) {
            return next.clone();
        }
        let mut next: BTreeMap<&InstanceId, &Arc<Instance>> = self.iter().map(|one| (one.id(), one)).collect();
        for id in change.removes() {
            next.remove(id);
        }
        next.extend(change.upserts().iter().map(|one| (one.id(), one)));
        Self(next.into_values().cloned().collect())
    }

    /// What leads from this set to `next`; an empty change where they are equal.
    pub fn diff(&self, next: &Self) -> Change {
        let upserts = next.iter().filter(|one| self.get(one.id().as_str()) != Some(one)).cloned();
        let removes = self.iter().map(|one| one.id()).filter(|id| next.get(id.as_str()).is_none()).cloned();
        Change::new(upserts.collect(), removes.collect())
    }

    /// Whether both are one allocation.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The same set, in which every instance equal to one of `former` is that very one; an equal set is `former` itself.
    pub(crate) fn sharing(self, former: &Self) -> Self {
        if self == *former {
            return former.clone();
        }
        let shared =
            |one: &Arc<Instance>| former.get(one.id().as_str()).filter(|old| *old == one).unwrap_or(one).clone();
        Self(self.iter().map(shared).collect())
    }
}

impl<T: Into<Arc<Instance>>> FromIterator<T> for Snapshot {
    /// Collects a set; of several instances with one id, the last one stays.
    fn from_iter<I: IntoIterator<Item = T>>(instances: I) -> Self {
        let instances = instances.into_iter().map(Into::into);
        let by_id: BTreeMap<InstanceId, Arc<Instance>> = instances.map(|one| (one.id().clone(), one)).collect();
        Self(by_id.into_values().collect())
    }
}

impl<'a> IntoIterator for &'a Snapshot {
    type Item = &'a Arc<Instance>;
    type IntoIter = std::slice::Iter<'a, Arc<Instance>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Weight;

    /// Small sets over few ids, so that changes, removals and equal instances all occur.
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
            prop_assert_eq!(&a.with(&a.diff(&b)), &b);
            prop_assert!(a.diff(&a).is_empty());
        }

        #[test]
        fn what_did_not_change_stays_the_same_allocation(a in any_snapshot(), b in any_snapshot()) {
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
