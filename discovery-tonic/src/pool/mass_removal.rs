use std::{collections::HashSet, time::Duration};

use discovery_core::InstanceId;
use tokio::time::Instant;

/// Notices that most of a set vanishes, as it does when a registry comes back having expired
/// everybody (B6).
///
/// More than half of at least three instances in one step are a mass. Around an outage of the
/// registry all steps count as one, because it revokes expired leases one after the other. Without
/// an outage they do not: a scale-down in single steps is meant.
#[derive(Debug, Default)]
pub(crate) struct MassRemoval(Option<Outage>);

#[derive(Debug)]
struct Outage {
    /// The size of the set when contact was lost.
    before: usize,
    /// When contact came back.
    over: Option<Instant>,
    vanished: HashSet<InstanceId>,
}

impl MassRemoval {
    /// Contact was lost while the set had `size` instances.
    pub(crate) fn lose(&mut self, now: Instant, limit: Duration, size: usize) {
        self.expire(now, limit);
        let outage = self.0.get_or_insert_with(|| Outage { before: 0, over: None, vanished: HashSet::new() });
        outage.before = outage.before.max(size);
        outage.over = None;
    }

    /// Contact came back.
    pub(crate) fn regain(&mut self, now: Instant) {
        if let Some(outage) = &mut self.0 {
            outage.over.get_or_insert(now);
        }
    }

    /// Takes one step: the set had `size` instances and loses `removed`. An outage counts for
    /// `limit` after its end.
    ///
    /// Returns the instances to hold, among them such as vanished in earlier steps; empty where
    /// this is no mass.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        limit: Duration,
        size: usize,
        removed: &[InstanceId],
    ) -> Vec<InstanceId> {
        self.expire(now, limit);
        let (before, vanished) = match &mut self.0 {
            Some(outage) => {
                outage.vanished.extend(removed.iter().cloned());
                (outage.before.max(size), outage.vanished.iter().cloned().collect())
            }
            None => (size, removed.to_vec()),
        };
        if before >= FEWEST && vanished.len() * 2 > before { vanished } else { Vec::new() }
    }

    fn expire(&mut self, now: Instant, limit: Duration) {
        self.0.take_if(|outage| outage.over.is_some_and(|over| now - over > limit));
    }

    /// Takes note that an instance is back.
    pub(crate) fn forget(&mut self, id: &InstanceId) {
        if let Some(outage) = &mut self.0 {
            outage.vanished.remove(id);
        }
    }
}

/// Below this there is no mass.
const FEWEST: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    fn ids(names: &[&str]) -> Vec<InstanceId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn sorted(mut ids: Vec<InstanceId>) -> Vec<InstanceId> {
        ids.sort();
        ids
    }

    #[test]
    fn more_than_half_of_at_least_three_in_one_step_is_a_mass() {
        let now = Instant::now();
        for (size, removed, held) in [
            (2, &["a", "b"][..], 0),
            (3, &["a"][..], 0),
            (3, &["a", "b"][..], 2),
            (4, &["a", "b"][..], 0),
            (4, &["a", "b", "c"][..], 3),
            (8, &["a", "b", "c", "d", "e", "f"][..], 6),
            (4, &[][..], 0),
        ] {
            assert_eq!(
                MassRemoval::default().step(now, LIMIT, size, &ids(removed)).len(),
                held,
                "{removed:?} of {size}"
            );
        }
    }

    #[test]
    fn single_steps_add_up_around_an_outage_only() {
        let now = Instant::now();
        let mut hold = MassRemoval::default();
        for (size, name) in [(4, "a"), (3, "b"), (2, "c"), (1, "d")] {
            assert_eq!(hold.step(now, LIMIT, size, &ids(&[name])), []);
        }

        hold.lose(now, LIMIT, 4);
        hold.regain(now);
        assert_eq!(hold.step(now, LIMIT, 4, &ids(&["a"])), []);
        assert_eq!(hold.step(now, LIMIT, 3, &ids(&["b"])), []);
        assert_eq!(sorted(hold.step(now, LIMIT, 2, &ids(&["c"]))), ids(&["a", "b", "c"]));

        let later = now + LIMIT * 2;
        assert_eq!(hold.step(later, LIMIT, 2, &ids(&["d"])), [], "the outage is long over");

        let mut hold = MassRemoval::default();
        hold.lose(now, LIMIT, 8);
        hold.regain(now);
        hold.step(now, LIMIT, 8, &ids(&["a", "b", "c", "d"]));
        hold.lose(later, LIMIT, 4);
        assert_eq!(hold.step(later, LIMIT, 4, &ids(&["e"])), [], "the next outage counts for itself");
    }

    #[test]
    fn what_is_back_did_not_vanish() {
        let (mut hold, now) = (MassRemoval::default(), Instant::now());
        hold.lose(now, LIMIT, 4);
        hold.step(now, LIMIT, 4, &ids(&["a", "b"]));
        hold.forget(&"a".parse().unwrap());
        assert_eq!(hold.step(now, LIMIT, 3, &ids(&["c"])), []);
    }
}
