use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Cache};
use discovery_core::Weight;

use super::{Candidates, Draw, Load, Policy, alias::Alias, load::Share};

/// Where a set of candidates is published, and pickers over it are made.
///
/// The channel publishes its ready endpoints here; a simulation may publish anything else and measures the same code.
///
/// ```
/// use std::sync::Arc;
/// use discovery_core::Weight;
/// use discovery_tonic::balance::{Candidate, Load, Pickers, PowerOfTwo};
///
/// let pickers = Pickers::new(PowerOfTwo::default());
/// let mut picker = pickers.picker();
/// assert!(picker.pick(true).is_none());
///
/// let candidates = ["a", "b"].map(|name| Candidate::new(name, Weight::default(), Arc::new(Load::default())));
/// pickers.publish(candidates);
/// let first = picker.pick(true).unwrap();
/// let second = picker.pick(true).unwrap();
/// assert_ne!(*first, *second, "the one without a request in flight");
/// ```
pub struct Pickers<T> {
    policy: Arc<dyn Policy>,
    set: Arc<ArcSwap<Set<T>>>,
}

/// Picks candidates; one for each clone of a channel, because it caches the set.
pub struct Picker<T> {
    set: Cache<Arc<ArcSwap<Set<T>>>, Arc<Set<T>>>,
    draw: Draw,
}

/// Something that can take requests.
#[derive(Debug)]
pub struct Candidate<T> {
    item: T,
    weight: Weight,
    load: Arc<Load>,
}

/// A candidate that was picked; until its drop the request counts as in flight there.
#[derive(Debug)]
pub struct Picked<T> {
    candidate: Arc<Candidate<T>>,
    share: Share,
}

struct Set<T> {
    /// Here too, so that a picker is cloned with fewer reference counts.
    policy: Arc<dyn Policy>,
    candidates: Box<[Arc<Candidate<T>>]>,
    /// The candidates' loads and weights, apart from what the policies need not know.
    loads: Box<[Arc<Load>]>,
    weights: Box<[Weight]>,
    alias: Option<Alias>,
}

impl<T> Pickers<T> {
    /// An empty set under a policy.
    pub fn new(policy: impl Policy) -> Self {
        Self::of(Arc::new(policy))
    }

    pub(crate) fn of(policy: Arc<dyn Policy>) -> Self {
        let empty = Set::new(Arc::clone(&policy), Vec::new());
        Self { policy, set: Arc::new(ArcSwap::from_pointee(empty)) }
    }

    /// A picker over what is published here, now and later.
    pub fn picker(&self) -> Picker<T> {
        Picker { set: Cache::new(Arc::clone(&self.set)), draw: Draw::default() }
    }

    /// Publishes the set that every pick begun after this uses. Candidates of weight 0 are left out, unless all have weight 0.
    pub fn publish(&self, candidates: impl IntoIterator<Item = Candidate<T>>) {
        let mut candidates: Vec<_> = candidates.into_iter().map(Arc::new).collect();
        if candidates.iter().any(|one| one.weight.value() > 0) {
            candidates.retain(|one| one.weight.value() > 0);
        }
        self.set.store(Arc::new(Set::new(Arc::clone(&self.policy), candidates)));
    }
}

impl<T> Picker<T> {
    /// Picks a candidate and counts the request in; `None` where all are full, or there is none.
    ///
    /// `patient` callers leave room to candidates on trial.
    #[inline]
    pub fn pick(&mut self, patient: bool) -> Option<Picked<T>> {
        let set = &**self.set.load();
        if set.candidates.is_empty() {
            return None;
        }
        let candidates = Candidates { loads: &set.loads, weights: &set.weights, alias: set.alias.as_ref() };
        let n = set.policy.pick(&candidates, &mut self.draw);
        match set.candidates.get(n) {
            Some(one) => match one.load.enter(patient) {
                Ok(share) => Some(Picked { candidate: Arc::clone(one), share }),
                Err(_) => set.any_with_room(patient, |_| false),
            },
            None => set.any_with_room(patient, |_| false),
        }
    }
}

impl<T> Picker<T> {
    /// Picks a candidate other than those to avoid, if there is one with room.
    pub(crate) fn pick_other(&mut self, patient: bool, avoid: impl Fn(&T) -> bool) -> Option<Picked<T>> {
        let set = &**self.set.load();
        if set.candidates.is_empty() { None } else { set.any_with_room(patient, avoid) }
    }
}

impl<T> Set<T> {
    fn new(policy: Arc<dyn Policy>, candidates: Vec<Arc<Candidate<T>>>) -> Self {
        let loads = candidates.iter().map(|one| Arc::clone(&one.load)).collect();
        let weights: Box<[Weight]> = candidates.iter().map(|one| one.weight).collect();
        let alias = Alias::new(&weights.iter().map(|weight| weight.value().into()).collect::<Vec<u64>>());
        Self { policy, candidates: candidates.into(), loads, weights, alias }
    }

    /// The least loaded candidate that has room; one to avoid only where there is no other.
    #[cold]
    fn any_with_room(&self, patient: bool, avoid: impl Fn(&T) -> bool) -> Option<Picked<T>> {
        let start = fastrand::usize(..self.candidates.len());
        let mut order: Vec<_> = self.candidates[start..].iter().chain(&self.candidates[..start]).collect();
        order.sort_by_cached_key(|one| (avoid(&one.item), one.load.in_flight()));
        let enter = |one: &Arc<Candidate<T>>| {
            let share = one.load.enter(patient).ok()?;
            Some(Picked { candidate: Arc::clone(one), share })
        };
        order.into_iter().find_map(enter)
    }
}

impl<T> Candidate<T> {
    /// A candidate of a weight, whose requests are counted in `load`.
    pub fn new(item: T, weight: Weight, load: Arc<Load>) -> Self {
        Self { item, weight, load }
    }
}

impl<T> Picked<T> {
    /// Counts the request as handed over.
    #[inline]
    pub(crate) fn sent(&mut self) {
        self.candidate.load.sent(&mut self.share);
    }

    /// Where the request is counted.
    pub fn load(&self) -> &Arc<Load> {
        &self.candidate.load
    }

    /// Counts the request as answered, once; it stays in flight.
    #[inline]
    pub fn answer(&mut self) {
        self.candidate.load.answer(&mut self.share);
    }

    /// Whether the request was answered.
    pub fn is_answered(&self) -> bool {
        self.share.is_answered()
    }
}

impl<T> Deref for Picked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.candidate.item
    }
}

impl<T> Drop for Picked<T> {
    #[inline]
    fn drop(&mut self) {
        self.candidate.load.leave(&self.share);
    }
}

impl<T> Clone for Pickers<T> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy), set: Arc::clone(&self.set) }
    }
}

impl<T> Clone for Picker<T> {
    fn clone(&self) -> Self {
        Self { set: self.set.clone(), draw: Draw::default() }
    }
}

impl<T> fmt::Debug for Pickers<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pickers").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Picker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picker").finish_non_exhaustive()
    }
}
