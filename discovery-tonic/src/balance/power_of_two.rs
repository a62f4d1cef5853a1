use super::{Candidates, Draw, Policy};

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
    fn pick(&self, candidates: &Candidates<'_>, draw: &mut Draw) -> usize {
        let len = candidates.len();
        if len == 1 {
            return 0;
        }
        let first = candidates.sample(draw);
        if candidates.is_even() {
            // One of the others, each equally likely.
            let step = 1 + draw.below(len - 1);
            let second = if first + step < len { first + step } else { first + step - len };
            return if candidates.in_flight(second) < candidates.in_flight(first) { second } else { first };
        }
        let mut second = candidates.sample(draw);
        if second == first {
            second = candidates.sample(draw);
        }
        let cost =
            |n: usize, other: usize| u64::from(candidates.in_flight(n)) * u64::from(candidates.weight(other).value());
        if cost(second, first) < cost(first, second) { second } else { first }
    }
}
