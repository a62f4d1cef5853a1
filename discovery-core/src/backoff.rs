use std::time::Duration;

use crate::{Error, ErrorKind};

/// The delays between attempts: exponential up to a maximum, with full jitter.
///
/// The delay before attempt *n* is uniform between 0 and `min(max, min × 2ⁿ)`. This is the "full
/// jitter" of Brooker, *Exponential Backoff and Jitter*, AWS Architecture Blog 2015. The default is
/// 100 ms to 10 s.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

/// The delays of one series of failures.
#[derive(Clone, Debug)]
pub struct Delays {
    backoff: Backoff,
    attempt: u32,
}

impl Backoff {
    /// Creates a backoff whose first delay is at most `min`, and every delay at most `max`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] unless `1 ms ≤ min ≤ max ≤ 1 h`.
    pub fn new(min: Duration, max: Duration) -> Result<Self, Error> {
        if min < Duration::from_millis(1) || min > max || max > Duration::from_secs(3600) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("invalid backoff of {min:?} to {max:?}: allowed are 1 ms to 1 h, the shorter first"),
            ));
        }
        Ok(Self { min, max })
    }

    /// Lowers the maximum to `max`, but not below [`min`](Self::min).
    #[must_use]
    pub fn at_most(self, max: Duration) -> Self {
        Self { min: self.min, max: self.max.min(max).max(self.min) }
    }

    /// Returns the upper bound of the first delay.
    pub fn min(self) -> Duration {
        self.min
    }

    /// Returns the upper bound of all delays.
    pub fn max(self) -> Duration {
        self.max
    }

    /// Returns the delays of a new series of failures.
    pub fn delays(self) -> Delays {
        Delays { backoff: self, attempt: 0 }
    }

    /// The upper bound of the delay that follows `attempt` earlier failures.
    fn bound(self, attempt: u32) -> Duration {
        let factor = 1u32.checked_shl(attempt).unwrap_or(u32::MAX);
        self.min.saturating_mul(factor).min(self.max)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

impl Delays {
    /// Returns the delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.backoff.bound(self.attempt);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(fastrand::f64())
    }

    /// Starts over at the shortest delay, for use after a success that lasted.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_double_up_to_the_maximum() {
        let backoff = Backoff::default();
        let bounds: Vec<_> = (0..9).map(|attempt| backoff.bound(attempt).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.bound(u32::MAX), Duration::from_secs(10));
    }

    #[test]
    fn a_lower_maximum_keeps_the_first_delay() {
        let second = Duration::from_secs(1);
        let bounds = |backoff: Backoff| [0, 9].map(|attempt| backoff.bound(attempt).as_millis());
        assert_eq!(bounds(Backoff::default().at_most(second)), [100, 1000]);
        assert_eq!(bounds(Backoff::default().at_most(second * 60)), [100, 10_000]);
        assert_eq!(bounds(Backoff::new(second * 2, second * 4).unwrap().at_most(second)), [2000, 2000]);
    }

    #[test]
    fn invalid_bounds_are_refused() {
        for (min, max) in [(0, 1), (2, 1), (1, 3_600_001)] {
            let error = Backoff::new(Duration::from_millis(min), Duration::from_millis(max)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_its_bound(failures in 0u32..80) {
            let mut delays = Backoff::default().delays();
            for attempt in 0..failures {
                prop_assert!(delays.next_delay() <= Backoff::default().bound(attempt));
            }
            delays.reset();
            prop_assert!(delays.next_delay() <= Duration::from_millis(100));
        }
    }
}
