use std::time::Duration;

use discovery_core::Weight;
use tokio::time::Instant;

/// The slow start of an endpoint: its share grows linearly from a tenth to the whole, as Envoy's
/// does with an aggression of 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlowStart {
    since: Option<Instant>,
}

impl SlowStart {
    /// Begins, unless it has begun before.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Resets it; the next [`begin`](Self::begin) starts over.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// The share of its weight that the endpoint gets, in thousandths and in steps; the whole if it
    /// has not begun.
    pub(crate) fn share(self, now: Instant, window: Duration) -> u32 {
        match self.since {
            Some(since) if now - since < window => {
                let steps = (now - since).as_nanos() * STEPS / window.as_nanos();
                (steps as u32 * (WHOLE / STEPS as u32)).max(LEAST)
            }
            _ => WHOLE,
        }
    }
}

/// What the weights of an endpoint's connections are computed from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightShare {
    pub(crate) weight: Weight,
    pub(crate) slow_start: SlowStart,
    /// The number of connections that share the weight.
    pub(crate) parts: usize,
}

/// Computes the weight of each endpoint's connections, in the same order. Weight 0 stays 0.
///
/// If the shares or the numbers of connections differ, all are first scaled up by the same factor,
/// so that a part of a small weight does not round to 0.
pub(crate) fn weights(all: &[WeightShare], now: Instant, window: Duration) -> Vec<Weight> {
    let parts = all.first().map_or(0, |share| share.parts);
    if all.iter().all(|share| share.parts == parts && share.slow_start.share(now, window) == WHOLE) {
        return all.iter().map(|share| share.weight).collect();
    }
    let greatest = all.iter().map(|share| share.weight.value()).max().unwrap_or_default().max(1);
    let scale = u64::from(Weight::MAX.value() / greatest);
    let shared = |share: &WeightShare| {
        let weight = u64::from(share.weight.value()) * scale;
        let whole = u64::from(WHOLE) * share.parts.max(1) as u64;
        let part = (weight * u64::from(share.slow_start.share(now, window)) / whole).max(weight.min(1));
        Weight::new(part.try_into().unwrap_or(u16::MAX)).unwrap_or(Weight::MAX)
    };
    all.iter().map(shared).collect()
}

/// A whole share, in thousandths.
pub(crate) const WHOLE: u32 = 1000;
const LEAST: u32 = 100;
/// The number of steps. Each step publishes a set, so there must not be too many.
const STEPS: u128 = 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn slow_start(start: Instant) -> SlowStart {
        SlowStart { since: Some(start) }
    }

    fn share(weight: u16, slow_start: SlowStart, parts: usize) -> WeightShare {
        WeightShare { weight: Weight::new(weight).unwrap(), slow_start, parts }
    }

    fn at(weights: &[u16], slow_starts: &[SlowStart], now: Instant) -> Vec<u16> {
        let all: Vec<_> =
            weights.iter().zip(slow_starts).map(|(weight, slow_start)| share(*weight, *slow_start, 1)).collect();
        super::weights(&all, now, WINDOW).into_iter().map(Weight::value).collect()
    }

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let start = Instant::now();
        let old = SlowStart::default();
        let new = slow_start(start);
        for (seconds, share) in [(0, 1000), (1, 1000), (5, 5000), (9, 9000)] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(at(&[100, 100], &[old, new], now), [10_000, share], "after {seconds} s");
        }
        assert_eq!(at(&[100, 100], &[old, new], start + WINDOW), [100, 100], "weights as registered");
    }

    #[test]
    fn small_weights_ramp_too_and_weight_zero_stays_zero() {
        let start = Instant::now();
        let weights = at(&[1, 1, 0], &[SlowStart::default(), slow_start(start), slow_start(start)], start);
        assert_eq!(weights, [10_000, 1000, 0]);
    }

    #[test]
    fn a_weight_is_divided_among_unequal_numbers_of_connections() {
        let start = Instant::now();
        let each = |parts: [usize; 3]| {
            let all =
                [100, 100, 50].into_iter().zip(parts).map(|(weight, parts)| share(weight, SlowStart::default(), parts));
            let weights = weights(&all.collect::<Vec<_>>(), start, WINDOW);
            weights.into_iter().map(Weight::value).collect::<Vec<_>>()
        };
        assert_eq!(each([4, 4, 4]), [100, 100, 50]);
        assert_eq!(each([4, 1, 2]), [2500, 10_000, 2500]);
        assert_eq!(each([3, 0, 1]), [3333, 10_000, 5000], "an endpoint without a connection is not published");
    }

    #[test]
    fn a_share_never_exceeds_the_line() {
        let start = Instant::now();
        for millis in 1000..10_000 {
            let share = slow_start(start).share(start + Duration::from_millis(millis), WINDOW);
            assert!(
                u64::from(share) * 10 <= millis && u64::from(share + 50) * 10 > millis,
                "{share} after {millis} ms"
            );
        }
    }

    proptest! {
        #[test]
        fn no_positive_weight_becomes_zero_and_zero_stays_zero(
            weights in proptest::collection::vec(0u16..=10_000, 1..20),
            age in 0u64..12_000,
        ) {
            let start = Instant::now();
            let slow_starts: Vec<_> =
                (0..weights.len()).map(|n| if n % 2 == 0 { slow_start(start) } else { SlowStart::default() }).collect();
            let ramped = at(&weights, &slow_starts, start + Duration::from_millis(age));
            for (before, after) in weights.iter().zip(&ramped) {
                prop_assert_eq!(*before == 0, *after == 0);
            }
        }
    }
}
