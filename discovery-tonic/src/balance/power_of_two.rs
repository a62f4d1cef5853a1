use super::{Candidates, Policy, Rng};

/// Picks the less loaded of two random candidates, by requests in flight for their weight; the
/// default policy. A stream counts as one request in flight until it ends.
///
/// Source: Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, IEEE TPDS 12
/// (2001). The candidates are sampled by weight: with equal weights they always differ, otherwise a
/// candidate drawn twice is replaced once. A tie keeps the first, so that shares follow the weights
/// even with little load.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    #[inline]
    fn pick(&self, candidates: &Candidates<'_>, draw: &mut Rng) -> usize {
        let len = candidates.len();
        if len == 1 {
            return 0;
        }
        if candidates.is_uniform() {
            let (first, step) = draw.pair_below(len, len - 1);
            // One of the other candidates, each equally likely.
            let second = first + 1 + step;
            let second = if second < len { second } else { second - len };
            return if candidates.in_flight(second) < candidates.in_flight(first) { second } else { first };
        }
        by_weight(candidates, draw)
    }
}

/// A function of its own, so that the code for equal weights, the usual case, stays small.
#[inline(never)]
fn by_weight(candidates: &Candidates<'_>, draw: &mut Rng) -> usize {
    let first = candidates.sample(draw);
    let mut second = candidates.sample(draw);
    if second == first {
        second = candidates.sample(draw);
    }
    // Compare the load including this request, so that a candidate of low weight does not win
    // whenever it has nothing in flight.
    let cost = |in_flight: u32, other: usize| u64::from(in_flight) * u64::from(candidates.weight(other).value());
    let one = candidates.in_flight(first);
    let other = candidates.in_flight(second);
    if cost(other.saturating_add(1), first) <= cost(one, second) { second } else { first }
}
