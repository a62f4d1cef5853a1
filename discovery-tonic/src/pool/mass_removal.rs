use std::{collections::HashSet, time::Duration};

use discovery_core::InstanceId;
use tokio::time::Instant;

/// Detects mass removals, such as when a registry comes back with all leases expired (B6).
///
/// A mass removal is one step that removes more than half of at least three instances. Around an
/// outage of the registry all steps count as one, because the registry revokes expired leases one
/// after the other. Otherwise they do not: a scale-down in single steps is intended. A step that
/// adds as many instances as it removes is a replacement, and no mass removal.
#[derive(Debug, Default)]
pub(crate) struct MassRemoval(Option<Outage>);

#[derive(Debug)]
struct Outage {
    /// The size of the set when contact was lost.
    before: usize,
    /// When contact was regained.
    over: Option<Instant>,
    vanished: HashSet<InstanceId>,
}

/// The instances that a mass removal took away.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Mass {
    /// How many instances the set had before.
    pub(crate) before: usize,
    pub(crate) vanished: Vec<InstanceId>,
}

impl MassRemoval {
    /// Records that contact was lost while the set had `size` instances.
    pub(crate) fn lose(&mut self, now: Instant, limit: Duration, size: usize) {
        self.expire(now, limit);
        let outage = self.0.get_or_insert_with(|| Outage { before: 0, over: None, vanished: HashSet::new() });
        outage.before = outage.before.max(size);
        outage.over = None;
    }

    /// Records that contact was regained.
    pub(crate) fn regain(&mut self, now: Instant) {
        if let Some(outage) = &mut self.0 {
            outage.over.get_or_insert(now);
        }
    }

    /// Applies one step: the set had `size` instances, gains `added` and loses `removed`. An outage
    /// counts for `limit` after its end. If the set is then as large as before, its instances were
    /// replaced.
    ///
    /// Returns the instances to hold, including those that vanished in earlier steps of the same
    /// outage; `None` if this is not a mass removal.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        limit: Duration,
        size: usize,
        added: usize,
        removed: &[InstanceId],
    ) -> Option<Mass> {
        self.expire(now, limit);
        let after = (size + added).saturating_sub(removed.len());
        let (before, vanished) = match &mut self.0 {
            Some(outage) => {
                outage.vanished.extend(removed.iter().cloned());
                (outage.before, outage.vanished.iter().cloned().collect())
            }
            None => (size, removed.to_vec()),
        };
        if after >= before {
            self.settle();
            return None;
        }
        (before >= FEWEST && vanished.len() * 2 > before).then_some(Mass { before, vanished })
    }

    fn expire(&mut self, now: Instant, limit: Duration) {
        self.0.take_if(|outage| outage.over.is_some_and(|over| now - over > limit));
    }

    /// Records that the set is whole again: what vanished was replaced.
    pub(crate) fn settle(&mut self) {
        if let Some(outage) = &mut self.0 {
            outage.vanished.clear();
        }
    }

    /// Records that an instance is back.
    pub(crate) fn forget(&mut self, id: &InstanceId) {
        if let Some(outage) = &mut self.0 {
            outage.vanished.remove(id);
        }
    }
}

/// A smaller set has no mass removals.
const FEWEST: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn ids(names: &[&str]) -> Vec<InstanceId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    /// The instances held after a step that adds none.
    fn held(hold: &mut MassRemoval, now: Instant, size: usize, removed: &[InstanceId]) -> Vec<InstanceId> {
        let mut held = hold.step(now, LIMIT, size, 0, removed).map(|mass| mass.vanished).unwrap_or_default();
        held.sort();
        held
    }

    #[test]
    fn more_than_half_of_at_least_three_in_one_step_is_a_mass_removal() {
        let now = Instant::now();
        for (size, removed, count) in [
            (2, &["a", "b"][..], 0),
            (3, &["a"][..], 0),
            (3, &["a", "b"][..], 2),
            (4, &["a", "b"][..], 0),
            (4, &["a", "b", "c"][..], 3),
            (8, &["a", "b", "c", "d", "e", "f"][..], 6),
            (4, &[][..], 0),
        ] {
            let held = held(&mut MassRemoval::default(), now, size, &ids(removed));
            assert_eq!(held.len(), count, "{removed:?} of {size}");
        }
    }

    #[test]
    fn a_step_that_adds_as_many_as_it_removes_is_a_replacement() {
        let now = Instant::now();
        let all = ids(&["a", "b", "c", "d"]);
        for (added, is_mass) in [(0, true), (3, true), (4, false), (9, false)] {
            assert_eq!(MassRemoval::default().step(now, LIMIT, 4, added, &all).is_some(), is_mass, "{added}");
        }
        let mut hold = MassRemoval::default();
        hold.lose(now, LIMIT, 4);
        hold.regain(now);
        assert_eq!(hold.step(now, LIMIT, 4, 2, &ids(&["a", "b"])), None);
        assert_eq!(held(&mut hold, now, 4, &ids(&["c"])), [], "replaced instances did not vanish");

        let mut hold = MassRemoval::default();
        hold.lose(now, LIMIT, 4);
        hold.regain(now);
        assert_eq!(hold.step(now, LIMIT, 4, 4, &[]), None, "four others are added");
        for (size, name) in [(8, "a"), (7, "b"), (6, "c"), (5, "d")] {
            assert_eq!(held(&mut hold, now, size, &ids(&[name])), [], "the former ones leave one by one: {name}");
        }
    }

    #[test]
    fn single_steps_add_up_only_around_an_outage() {
        let now = Instant::now();
        let mut hold = MassRemoval::default();
        for (size, name) in [(4, "a"), (3, "b"), (2, "c"), (1, "d")] {
            assert_eq!(held(&mut hold, now, size, &ids(&[name])), []);
        }

        hold.lose(now, LIMIT, 4);
        hold.regain(now);
        assert_eq!(held(&mut hold, now, 4, &ids(&["a"])), []);
        assert_eq!(held(&mut hold, now, 3, &ids(&["b"])), []);
        assert_eq!(held(&mut hold, now, 2, &ids(&["c"])), ids(&["a", "b", "c"]));

        let later = now + LIMIT * 2;
        assert_eq!(held(&mut hold, later, 2, &ids(&["d"])), [], "the outage is long over");

        let mut hold = MassRemoval::default();
        hold.lose(now, LIMIT, 8);
        hold.regain(now);
        held(&mut hold, now, 8, &ids(&["a", "b", "c", "d"]));
        hold.lose(later, LIMIT, 4);
        assert_eq!(held(&mut hold, later, 4, &ids(&["e"])), [], "the next outage is counted separately");
    }

    #[test]
    fn an_instance_that_is_back_did_not_vanish() {
        let mut hold = MassRemoval::default();
        let now = Instant::now();
        hold.lose(now, LIMIT, 4);
        held(&mut hold, now, 4, &ids(&["a", "b"]));
        hold.forget(&"a".parse().unwrap());
        assert_eq!(held(&mut hold, now, 3, &ids(&["c"])), []);
    }
}
