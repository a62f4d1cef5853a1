use std::{cmp::Ordering, fmt, ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Cache};
use discovery_core::Weight;

use super::{Candidates, Load, Policy, Rng, alias::Alias, load::Share};

/// Publishes a set of candidates, and creates pickers over it.
///
/// The channel publishes its ready endpoints here. A simulation can publish anything else and
/// measures the same code.
///
/// ```
/// use std::sync::Arc;
/// use discovery_core::Weight;
/// use discovery_tonic::balance::{PowerOfTwo, internal::{Balancer, Candidate, Load}};
///
/// let balancer = Balancer::new(PowerOfTwo::default());
/// let mut picker = balancer.handle();
/// assert!(picker.pick(true).is_none());
///
/// let candidates = ["a", "b"]
///     .map(|name| Candidate::new(name, Weight::default(), Arc::new(Load::default())));
/// balancer.publish(candidates);
/// let first = picker.pick(true).unwrap();
/// let second = picker.pick(true).unwrap();
/// assert_ne!(*first, *second, "the one without a request in flight");
/// ```
pub struct Balancer<T> {
    policy: Arc<dyn Policy>,
    set: Arc<ArcSwap<Set<T>>>,
}

/// Picks candidates. Each clone of a channel has one of its own, because it caches the set.
pub struct BalancerHandle<T> {
    set: Cache<Arc<ArcSwap<Set<T>>>, Arc<Set<T>>>,
    draw: Rng,
}

/// Something that can take requests.
#[derive(Debug)]
pub struct Candidate<T> {
    item: T,
    weight: Weight,
    load: Arc<Load>,
}

/// A candidate that was picked. Until this is dropped, the request counts as in flight there.
#[derive(Debug)]
pub struct Picked<T> {
    candidate: Arc<Candidate<T>>,
    share: Share,
}

struct Set<T> {
    /// A copy, so that cloning a picker touches fewer reference counts.
    policy: Arc<dyn Policy>,
    candidates: Box<[Arc<Candidate<T>>]>,
    /// The candidates' loads and weights, separate from what policies do not see.
    loads: Box<[Arc<Load>]>,
    weights: Box<[Weight]>,
    alias: Option<Alias>,
}

/// How candidates compare in the search for the least loaded one.
struct Rank {
    avoided: bool,
    in_flight: u64,
    weight: u64,
}

impl<T> Balancer<T> {
    /// Creates an empty set with a policy.
    pub fn new(policy: impl Policy) -> Self {
        Self::of(Arc::new(policy))
    }

    pub(crate) fn of(policy: Arc<dyn Policy>) -> Self {
        let empty = Set::new(Arc::clone(&policy), Vec::new());
        Self { policy, set: Arc::new(ArcSwap::from_pointee(empty)) }
    }

    /// Creates a picker over what is published here, now and later.
    pub fn handle(&self) -> BalancerHandle<T> {
        BalancerHandle { set: Cache::new(Arc::clone(&self.set)), draw: Rng::default() }
    }

    /// Publishes the set for every pick that begins after this. Candidates of weight 0 are left
    /// out, unless all have weight 0.
    pub fn publish(&self, candidates: impl IntoIterator<Item = Candidate<T>>) {
        self.publish_shared(candidates.into_iter().map(Arc::new).collect());
    }

    /// Like [`publish`](Self::publish), with candidates that may have been published before.
    pub(crate) fn publish_shared(&self, mut candidates: Vec<Arc<Candidate<T>>>) {
        if candidates.iter().any(|one| one.weight.value() > 0) {
            candidates.retain(|one| one.weight.value() > 0);
        }
        self.set.store(Arc::new(Set::new(Arc::clone(&self.policy), candidates)));
    }

    /// How many more requests the published candidates could take now.
    pub(crate) fn places(&self) -> usize {
        let set = self.set.load();
        set.loads.iter().map(|load| load.places() as usize).fold(0, usize::saturating_add)
    }
}

impl<T> BalancerHandle<T> {
    /// Picks a candidate and counts the request as in flight; `None` if all are full, or if there
    /// is none.
    ///
    /// A `patient` caller skips candidates that must answer something first.
    #[inline]
    pub fn pick(&mut self, patient: bool) -> Option<Picked<T>> {
        let set = &**self.set.load();
        if set.candidates.is_empty() {
            return None;
        }
        let n = set.policy.pick(&set.view(), &mut self.draw);
        match set.candidates.get(n) {
            Some(one) => match one.load.enter(patient) {
                Ok(share) => Some(Picked { candidate: Arc::clone(one), share }),
                Err(_) => set.any_with_room(patient, &mut self.draw, |_| false),
            },
            None => set.any_with_room(patient, &mut self.draw, |_| false),
        }
    }

    /// Picks a candidate other than those to avoid, if there is one with room.
    pub(crate) fn pick_other(&mut self, patient: bool, avoid: impl Fn(&T) -> bool) -> Option<Picked<T>> {
        let set = &**self.set.load();
        if set.candidates.is_empty() { None } else { set.any_with_room(patient, &mut self.draw, avoid) }
    }

    /// Whether a candidate has room for a request.
    pub(crate) fn has_room(&mut self, patient: bool) -> bool {
        self.set.load().loads.iter().any(|load| load.has_room(patient))
    }
}

impl<T> Set<T> {
    fn new(policy: Arc<dyn Policy>, candidates: Vec<Arc<Candidate<T>>>) -> Self {
        let loads = candidates.iter().map(|one| Arc::clone(&one.load)).collect();
        let weights: Box<[Weight]> = candidates.iter().map(|one| one.weight).collect();
        let alias = Alias::new(&weights.iter().map(|weight| weight.value().into()).collect::<Vec<u64>>());
        Self { policy, candidates: candidates.into(), loads, weights, alias }
    }

    #[inline]
    fn view(&self) -> Candidates<'_> {
        Candidates { loads: &self.loads, weights: &self.weights, alias: self.alias.as_ref() }
    }

    /// A candidate with room: one of the policy's next choices, or else the least loaded one. One
    /// to avoid is used only if there is no other.
    #[cold]
    fn any_with_room(&self, patient: bool, draw: &mut Rng, avoid: impl Fn(&T) -> bool) -> Option<Picked<T>> {
        let view = self.view();
        for _ in 0..DRAWS {
            let chosen = self.candidates.get(self.policy.pick(&view, draw)).filter(|one| !avoid(&one.item));
            if let Some(picked) = chosen.and_then(|one| Candidate::enter(one, patient)) {
                return Some(picked);
            }
        }
        let least = self.least_loaded(patient, draw, &avoid)?;
        // Others may have filled it since. Then take the first one that has room.
        Candidate::enter(least, patient).or_else(|| {
            let (before, after) = self.candidates.split_at(draw.below(self.candidates.len()));
            let mut ways = [false, true].into_iter();
            ways.find_map(|avoided| {
                let mut some = after.iter().chain(before).filter(|one| avoid(&one.item) == avoided);
                some.find_map(|one| Candidate::enter(one, patient))
            })
        })
    }

    /// The candidate with room that has the fewest requests in flight for its weight. Among equals
    /// it is chosen at random, in proportion to the weights. One to avoid is used only if there is
    /// no other.
    fn least_loaded(&self, patient: bool, draw: &mut Rng, avoid: impl Fn(&T) -> bool) -> Option<&Arc<Candidate<T>>> {
        let mut least: Option<(&Arc<Candidate<T>>, Rank)> = None;
        // The total weight of the equals so far.
        let mut equals = 0;
        for (n, load) in self.loads.iter().enumerate().filter(|(_, load)| load.has_room(patient)) {
            let one = &self.candidates[n];
            // If all have weight 0 they are equal.
            let weight = u64::from(one.weight.value().max(1));
            let rank = Rank { avoided: avoid(&one.item), in_flight: load.cost().into(), weight };
            match least.as_ref().map_or(Ordering::Less, |(_, least)| rank.compare(least)) {
                Ordering::Less => equals = weight,
                Ordering::Equal => {
                    equals += weight;
                    // Reservoir sampling of one item, since the number of equals is not known.
                    if u128::from(draw.bits()) * u128::from(equals) >= u128::from(weight) << 32 {
                        continue;
                    }
                }
                Ordering::Greater => continue,
            }
            least = Some((one, rank));
        }
        least.map(|(one, _)| one)
    }
}

impl Rank {
    fn compare(&self, other: &Self) -> Ordering {
        let loads = || (self.in_flight * other.weight).cmp(&(other.in_flight * self.weight));
        self.avoided.cmp(&other.avoided).then_with(loads)
    }
}

impl<T> Candidate<T> {
    /// Creates a candidate whose requests are counted in `load`.
    pub fn new(item: T, weight: Weight, load: Arc<Load>) -> Self {
        Self { item, weight, load }
    }

    fn enter(this: &Arc<Self>, patient: bool) -> Option<Picked<T>> {
        let share = this.load.enter(patient).ok()?;
        Some(Picked { candidate: Arc::clone(this), share })
    }

    pub(crate) fn weight(&self) -> Weight {
        self.weight
    }
}

impl<T> Picked<T> {
    /// Counts the request as handed over.
    #[inline]
    pub(crate) fn sent(&mut self) {
        self.candidate.load.sent(&mut self.share);
    }

    /// Returns the load that counts the request.
    pub fn load(&self) -> &Arc<Load> {
        &self.candidate.load
    }

    /// Counts the request as answered, once. It stays in flight.
    #[inline]
    pub fn answer(&mut self) {
        self.candidate.load.answer(&mut self.share);
    }

    /// Counts the request as answered, once, without taking that as a sign of life of the
    /// candidate.
    pub(crate) fn take_answer(&mut self) {
        self.candidate.load.take_answer(&mut self.share);
    }

    /// Returns whether the request was answered.
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

impl<T> Clone for Balancer<T> {
    fn clone(&self) -> Self {
        Self { policy: Arc::clone(&self.policy), set: Arc::clone(&self.set) }
    }
}

impl<T> Clone for BalancerHandle<T> {
    fn clone(&self) -> Self {
        Self { set: self.set.clone(), draw: Rng::default() }
    }
}

impl<T> fmt::Debug for Balancer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for BalancerHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancerHandle").finish_non_exhaustive()
    }
}

/// How many times the policy is asked again if its choice is full or to be avoided, before all
/// candidates are examined.
const DRAWS: usize = 4;

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        thread,
    };

    use proptest::prelude::{any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::balance::{PowerOfTwo, RoundRobin};

    fn candidate(n: usize, weight: u16, limit: u32) -> Candidate<usize> {
        Candidate::new(n, Weight::new(weight).unwrap(), Arc::new(Load::new(limit, u32::MAX)))
    }

    fn picker(policy: impl Policy, candidates: impl IntoIterator<Item = Candidate<usize>>) -> BalancerHandle<usize> {
        let balancer = Balancer::new(policy);
        balancer.publish(candidates);
        let mut picker = balancer.handle();
        picker.draw = Rng::seeded(7);
        picker
    }

    /// The share of each candidate in consecutive picks.
    fn shares(picks: usize, mut pick: impl FnMut() -> usize) -> HashMap<usize, f64> {
        let mut shares = HashMap::new();
        for _ in 0..picks {
            *shares.entry(pick()).or_default() += 1.0 / picks as f64;
        }
        shares
    }

    proptest! {
        #[test]
        fn a_pick_fails_only_if_no_candidate_has_room(
            limits in proptest::collection::vec(0u32..4, 1..30),
            even in any::<bool>(),
            in_turn in any::<bool>(),
        ) {
            let candidates = limits.iter().enumerate().map(|(n, limit)| {
                candidate(n, if even { 100 } else { 1 + 997 * (n as u16 % 4) }, *limit)
            });
            let mut picker =
                if in_turn { picker(RoundRobin::new(), candidates) } else { picker(PowerOfTwo, candidates) };
            let mut held: Vec<_> = std::iter::from_fn(|| picker.pick(true)).collect();
            prop_assert_eq!(held.len() as u32, limits.iter().sum::<u32>());
            for n in 0..held.len() {
                let freed = *held.swap_remove(n);
                held.push(picker.pick(true).unwrap());
                prop_assert_eq!(**held.last().unwrap(), freed, "the only one with room");
            }
        }

        #[test]
        fn candidates_to_avoid_are_avoided_while_others_have_room(
            all in proptest::collection::vec((0u32..4, any::<bool>()), 1..30),
            patient in any::<bool>(),
        ) {
            let mut picker = picker(PowerOfTwo, all.iter().enumerate().map(|(n, (limit, _))| candidate(n, 100, *limit)));
            let room = |avoided: bool| all.iter().filter(|one| one.1 == avoided).map(|one| one.0).sum::<u32>();
            let held: Vec<_> = std::iter::from_fn(|| picker.pick_other(patient, |n| all[*n].1)).collect();
            let (wanted, rest) = held.split_at(room(false) as usize);
            prop_assert!(wanted.iter().all(|one| !all[**one].1), "{wanted:?}");
            prop_assert_eq!(rest.len() as u32, room(true));
        }

        #[test]
        fn shares_follow_the_weights_if_some_are_avoided(
            weights in proptest::collection::vec(prop_oneof![1u16..=10, 1_000u16..=10_000], 2..8),
            avoided in 0usize..8,
        ) {
            let avoided = avoided % weights.len();
            let mut picker = picker(PowerOfTwo, weights.iter().enumerate().map(|(n, weight)| candidate(n, *weight, u32::MAX)));
            let shares = shares(20_000, || *picker.pick_other(true, |n| *n == avoided).unwrap());
            let total: u32 = weights.iter().enumerate().filter(|(n, _)| *n != avoided).map(|(_, one)| u32::from(*one)).sum();
            for (n, weight) in weights.iter().enumerate().filter(|(n, _)| *n != avoided) {
                let share = shares.get(&n).copied().unwrap_or_default();
                let wanted = f64::from(*weight) / f64::from(total);
                prop_assert!((share - wanted).abs() < 0.02, "{n}: {share} instead of {wanted}: {shares:?}");
            }
        }
    }

    /// Picks these one after the other, then the last one forever.
    #[derive(Debug)]
    struct Those(&'static [usize], AtomicUsize);

    impl Policy for Those {
        fn pick(&self, _: &Candidates<'_>, _: &mut Rng) -> usize {
            self.0[self.1.fetch_add(1, Relaxed).min(self.0.len() - 1)]
        }
    }

    fn those(wishes: &'static [usize]) -> Those {
        Those(wishes, AtomicUsize::new(0))
    }

    #[test]
    fn the_policy_is_asked_again_if_its_choice_is_full() {
        let mut picker =
            picker(those(&[0, 0, 2]), [0, 9, 9].into_iter().enumerate().map(|(n, limit)| candidate(n, 100, limit)));
        let held: Vec<_> = (0..3).map(|_| picker.pick(true).unwrap()).collect();
        assert!(held.iter().all(|one| **one == 2), "although 1 has fewer in flight: {held:?}");
    }

    #[test]
    fn the_least_loaded_candidate_for_its_weight_takes_what_the_policy_cannot_place() {
        let sizes = [(100, 0), (300, 200), (100, 200)];
        let candidates = sizes.into_iter().enumerate().map(|(n, (weight, limit))| candidate(n, weight, limit));
        let mut picker = picker(those(&[0]), candidates);
        let held: Vec<_> = (0..200).map(|_| picker.pick(true).unwrap()).collect();
        assert_eq!(held.iter().filter(|one| ***one == 1).count(), 150, "three quarters");
    }

    #[test]
    fn a_pick_finds_another_place_if_one_is_taken_in_between() {
        let candidates = [1, 1, 9].into_iter().enumerate().map(|(n, limit)| candidate(n, 100, limit));
        let candidates: Vec<_> = candidates.collect();
        let last = Arc::clone(&candidates[1].load);
        let busy = Arc::clone(&candidates[2].load);
        busy.enter(true).unwrap();
        let mut picker = picker(those(&[0]), candidates);
        // Another caller fills the least loaded one while the others are examined.
        let avoid = |n: &usize| {
            if *n == 2 {
                let _ = last.enter(true);
            }
            *n == 0
        };
        assert_eq!(picker.pick_other(true, avoid).as_deref(), Some(&2));
    }

    #[test]
    fn concurrent_picks_fill_the_last_place() {
        for _ in 0..200 {
            let balancer = Balancer::new(PowerOfTwo);
            balancer.publish((0..16).map(|n| candidate(n, 100, 4)));
            thread::scope(|scope| {
                for _ in 0..4 {
                    let mut picker = balancer.handle();
                    scope.spawn(move || {
                        for _ in 0..16 {
                            std::mem::forget(picker.pick(true).expect("there is room for all"));
                        }
                    });
                }
            });
            assert!(balancer.handle().pick(true).is_none());
        }
    }
}
