//! What other libraries do with each change of a set: copy the set, or compare it with the former
//! one.

use std::{collections::HashMap, sync::Arc};

use discovery_core::Instance;

use crate::cpu;

/// Returns the microseconds of processor time per change if the set, sorted by id, is copied each
/// time, which is the cheapest way to copy.
#[must_use]
pub fn copy(set: &[Arc<Instance>]) -> f64 {
    let mut sorted = set.to_vec();
    sorted.sort_by(|one, other| one.id().cmp(other.id()));
    let mut published = Arc::new(sorted);
    let start = cpu::process();
    for n in 0..COPIES {
        let mut next = (*published).clone();
        // One instance is replaced.
        let one = next.remove(n * STRIDE % next.len());
        let place = next.binary_search_by(|other| other.id().cmp(one.id())).unwrap_or_else(|place| place);
        next.insert(place, Arc::new((*one).clone()));
        published = Arc::new(next);
    }
    (cpu::process() - start).as_secs_f64() * 1e6 / COPIES as f64
}

/// Returns the microseconds of processor time per change if the whole set is listed each time and
/// compared with the former one.
#[must_use]
pub fn comparison(set: &[Arc<Instance>]) -> f64 {
    let by_id = |set: &[Arc<Instance>]| -> HashMap<String, Arc<Instance>> {
        set.iter().map(|one| (one.id().to_string(), Arc::clone(one))).collect()
    };
    let mut former = by_id(set);
    let mut changed = 0;
    let start = cpu::process();
    for n in 0..COMPARISONS {
        let mut listed = set.to_vec();
        let one = listed.remove(n * STRIDE % listed.len());
        listed.push(Arc::new((*one).clone()));
        let next = by_id(&listed);
        changed += next.iter().filter(|(id, one)| former.get(*id) != Some(one)).count();
        changed += former.keys().filter(|id| !next.contains_key(*id)).count();
        former = next;
    }
    std::hint::black_box(changed);
    (cpu::process() - start).as_secs_f64() * 1e6 / COMPARISONS as f64
}

const COPIES: usize = 1_000;
const COMPARISONS: usize = 100;
/// Reaches all parts of the set.
const STRIDE: usize = 7_919;
