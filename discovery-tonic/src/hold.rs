use std::{collections::HashSet, time::Duration};

use discovery_core::InstanceId;
use tokio::time::Instant;

/// Notices that most of a set vanishes at once, as it does when a registry comes back having expired everybody (B6).
///
/// *At once* is within a second, because expired leases are revoked one after the other: each is a step of its own, a few
/// milliseconds apart.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    since: Option<Instant>,
    /// The size of the set when the window began.
    before: usize,
    vanished: HashSet<InstanceId>,
}

impl Hold {
    /// Takes one step: the set had `size` instances and loses `removed`.
    ///
    /// Returns the instances to hold, among them such as vanished a moment before; empty where this is no mass removal.
    pub(crate) fn step(&mut self, now: Instant, size: usize, removed: &[InstanceId]) -> Vec<InstanceId> {
        if removed.is_empty() {
            return Vec::new();
        }
        if self.since.is_none_or(|since| now - since > WINDOW) {
            *self = Self { since: Some(now), before: size, vanished: HashSet::new() };
        }
        self.vanished.extend(removed.iter().cloned());
        if self.before >= FEWEST && self.vanished.len() * 2 > self.before {
            self.vanished.iter().cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// Takes note that an instance is back.
    pub(crate) fn forget(&mut self, id: &InstanceId) {
        self.vanished.remove(id);
    }
}

/// How long a removed endpoint's connection is kept at least, since it may be held after all.
pub(crate) const WINDOW: Duration = Duration::from_secs(1);
/// Below this there is no mass.
const FEWEST: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<InstanceId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn sorted(mut ids: Vec<InstanceId>) -> Vec<InstanceId> {
        ids.sort();
        ids
    }

    #[test]
    fn more_than_half_of_at_least_three_is_a_mass() {
        let now = Instant::now();
        for (size, removed, held) in [
            (2, &["a", "b"][..], 0),
            (3, &["a"][..], 0),
            (3, &["a", "b"][..], 2),
            (4, &["a", "b"][..], 0),
            (4, &["a", "b", "c"][..], 3),
            (8, &["a", "b", "c", "d", "e", "f"][..], 6),
        ] {
            assert_eq!(Hold::default().step(now, size, &ids(removed)).len(), held, "{removed:?} of {size}");
        }
    }

    #[test]
    fn removals_within_a_second_add_up() {
        let (mut hold, start) = (Hold::default(), Instant::now());
        assert_eq!(hold.step(start, 4, &ids(&["a"])), []);
        assert_eq!(hold.step(start, 3, &ids(&["b"])), []);
        assert_eq!(sorted(hold.step(start, 2, &ids(&["c"]))), ids(&["a", "b", "c"]));

        let mut hold = Hold::default();
        assert_eq!(hold.step(start, 4, &ids(&["a"])), []);
        assert_eq!(hold.step(start, 3, &ids(&["b"])), []);
        assert_eq!(hold.step(start + WINDOW * 2, 2, &ids(&["c"])), [], "a scale-down takes its time");
    }

    #[test]
    fn what_is_back_did_not_vanish() {
        let (mut hold, now) = (Hold::default(), Instant::now());
        hold.step(now, 4, &ids(&["a", "b"]));
        hold.forget(&"a".parse().unwrap());
        assert_eq!(hold.step(now, 3, &ids(&["c"])), []);
    }
}
