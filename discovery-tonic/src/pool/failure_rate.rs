use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::tally::Totals;

/// Watches the share of an endpoint's calls that fail, over one interval after the other (gRFC A50,
/// failure percentage).
///
/// It finds what rows of failures do not: an endpoint that fails most calls, but never so many in a
/// row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FailureRate {
    since: Option<Instant>,
    start: Totals,
}

/// When the share is too large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureRateLimits {
    pub(crate) interval: Duration,
    pub(crate) percent: u32,
    pub(crate) volume: u32,
}

impl FailureRate {
    /// One step; whether the interval that ends now had too many failures.
    pub(crate) fn step(&mut self, now: Instant, totals: Totals, limits: FailureRateLimits) -> bool {
        let Some(since) = self.since else {
            *self = Self { since: Some(now), start: totals };
            return false;
        };
        if now - since < limits.interval {
            return false;
        }
        let ended = totals.ended.wrapping_sub(self.start.ended);
        let failed = totals.failed.wrapping_sub(self.start.failed);
        *self = Self { since: Some(now), start: totals };
        let counts = (1..=100).contains(&limits.percent) && ended >= limits.volume.max(1);
        counts && u64::from(failed) * 100 >= u64::from(ended) * u64::from(limits.percent)
    }

    /// Begins anew: what was before an ejection is atoned for.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FailureRateLimits = FailureRateLimits { interval: Duration::from_secs(10), percent: 85, volume: 50 };

    /// What an interval says in which `ended` calls ended, `failed` of them badly, after totals of
    /// `before`.
    fn says(before: Totals, ended: u32, failed: u32) -> bool {
        let (mut failure_rate, start) = (FailureRate::default(), Instant::now());
        assert!(!failure_rate.step(start, before, LIMITS));
        let after = Totals { ended: before.ended.wrapping_add(ended), failed: before.failed.wrapping_add(failed) };
        assert!(!failure_rate.step(start + LIMITS.interval / 2, after, LIMITS), "not before its end");
        failure_rate.step(start + LIMITS.interval, after, LIMITS)
    }

    #[test]
    fn many_failures_of_many_calls_are_too_many() {
        for (ended, failed, wanted) in
            [(50, 43, true), (50, 42, false), (49, 49, false), (0, 0, false), (1000, 850, true), (1000, 849, false)]
        {
            assert_eq!(says(Totals::default(), ended, failed), wanted, "{failed} of {ended}");
            let close = Totals { ended: u32::MAX - 10, failed: u32::MAX - 20 };
            assert_eq!(says(close, ended, failed), wanted, "{failed} of {ended}, where the totals wrap around");
        }
    }

    #[test]
    fn each_interval_counts_for_itself() {
        let (mut failure_rate, start) = (FailureRate::default(), Instant::now());
        let mut step = |seconds, ended, failed| {
            failure_rate.step(start + Duration::from_secs(seconds), Totals { ended, failed }, LIMITS)
        };
        assert!(!step(0, 0, 0));
        assert!(step(10, 100, 100));
        assert!(!step(20, 200, 110), "what was before is over");
        assert!(step(31, 300, 200));
    }
}
