use super::{Candidates, Policy, Rng};

/// Power of two choices: of two random candidates, the one with fewer requests in flight for its weight; the default.
///
/// Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, IEEE TPDS 12 (2001). The candidates are sampled by
/// weight, two different ones where there are two, and a tie keeps the first, so that shares follow the weights also where
/// little is under way.
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
            // One of the others, each equally likely.
            let second = first + 1 + step;
            let second = if second < len { second } else { second - len };
            return if candidates.in_flight(second) < candidates.in_flight(first) { second } else { first };
        }
        by_weight(candidates, draw)
    }
}

/// Apart, so that the even case, which most sets are, stays small.
#[inline(never)]
fn by_weight(candidates: &Candidates<'_>, draw: &mut Rng) -> usize {
    let first = candidates.sample(draw);
    let mut second = candidates.sample(draw);
    if second == first {
        second = candidates.sample(draw);
    }
    // As it would be with this request, so that a light candidate does not win whenever nothing is in flight.
    let cost = |in_flight: u32, other: usize| u64::from(in_flight) * u64::from(candidates.weight(other).value());
    let one = candidates.in_flight(first);
    let other = candidates.in_flight(second);
    if cost(other.saturating_add(1), first) <= cost(one, second) { second } else { first }
}
