use std::time::Duration;

use discovery_core::Weight;
use tokio::time::Instant;

/// How far an endpoint is in its slow start: its share grows from a tenth to the whole in a straight line, as Envoy's does with an
/// aggression of 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ramp {
    since: Option<Instant>,
}

impl Ramp {
    /// Takes requests from now on, if it did not before.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Begins anew with the next request.
    pub(crate) fn reset(&mut self) {
        self.since = None;
    }

    /// The share of its weight that the endpoint gets, in thousandths; all of it where it has not begun.
    fn share(self, now: Instant, window: Duration) -> u64 {
        match self.since {
            Some(since) if now - since < window => {
                let done = (now - since).as_nanos() * WHOLE / window.as_nanos();
                (done as u64).max(LEAST)
            }
            _ => WHOLE as u64,
        }
    }

    pub(crate) fn is_over(self, now: Instant, window: Duration) -> bool {
        self.share(now, window) == WHOLE as u64
    }
}

/// The weights of endpoints in slow start, in the same order; those of weight 0 keep that.
///
/// All are first scaled up alike, so that a tenth of a small weight is something.
pub(crate) fn weights(all: &[(Weight, Ramp)], now: Instant, window: Duration) -> Vec<Weight> {
    if all.iter().all(|(_, ramp)| ramp.is_over(now, window)) {
        return all.iter().map(|(weight, _)| *weight).collect();
    }
    let greatest = all.iter().map(|(weight, _)| weight.value()).max().unwrap_or_default().max(1);
    let scale = u64::from(Weight::MAX.value() / greatest);
    let ramped = |(weight, ramp): &(Weight, Ramp)| {
        let weight = u64::from(weight.value()) * scale;
        let share = (weight * ramp.share(now, window) / WHOLE as u64).max(weight.min(1));
        Weight::new(share.try_into().unwrap_or(u16::MAX)).unwrap_or(Weight::MAX)
    };
    all.iter().map(ramped).collect()
}

const WHOLE: u128 = 1000;
const LEAST: u64 = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn ramp(start: Instant) -> Ramp {
        Ramp { since: Some(start) }
    }

    fn at(weights: &[u16], ramps: &[Ramp], now: Instant) -> Vec<u16> {
        let all: Vec<_> =
            weights.iter().zip(ramps).map(|(weight, ramp)| (Weight::new(*weight).unwrap(), *ramp)).collect();
        super::weights(&all, now, WINDOW).into_iter().map(Weight::value).collect()
    }

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let start = Instant::now();
        let (old, new) = (Ramp::default(), ramp(start));
        for (seconds, share) in [(0, 1000), (1, 1000), (5, 5000), (9, 9000)] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(at(&[100, 100], &[old, new], now), [10_000, share], "after {seconds} s");
        }
        assert_eq!(at(&[100, 100], &[old, new], start + WINDOW), [100, 100], "then all is as registered");
    }

    #[test]
    fn small_weights_ramp_too_and_none_stays_none() {
        let start = Instant::now();
        let weights = at(&[1, 1, 0], &[Ramp::default(), ramp(start), ramp(start)], start);
        assert_eq!(weights, [10_000, 1000, 0]);
    }

    proptest! {
        #[test]
        fn no_weight_is_lost_and_none_grows_beyond_the_others(
            weights in proptest::collection::vec(0u16..=10_000, 1..20),
            age in 0u64..12_000,
        ) {
            let start = Instant::now();
            let ramps: Vec<_> =
                (0..weights.len()).map(|n| if n % 2 == 0 { ramp(start) } else { Ramp::default() }).collect();
            let ramped = at(&weights, &ramps, start + Duration::from_millis(age));
            for (before, after) in weights.iter().zip(&ramped) {
                prop_assert_eq!(*before == 0, *after == 0);
            }
        }
    }
}
