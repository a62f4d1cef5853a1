//! How often a handle checks from scratch what it believes.

use std::time::Duration;
use tokio::time::Instant;

/// The time between two audits of the same thing, plus or minus a fifth, so that many audits do not
/// coincide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditInterval(Duration);

impl AuditInterval {
    pub(crate) fn new(interval: Duration) -> Self {
        Self(interval)
    }

    /// When the next audit is due of something that was audited now.
    pub(crate) fn next(self) -> Instant {
        Instant::now() + self.0.mul_f64(0.8 + 0.4 * fastrand::f64())
    }

    /// The interval divided by `parts`, for what is checked more often.
    pub(crate) fn part(self, parts: u32) -> Duration {
        self.0 / parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_audit_is_due_within_a_fifth_of_the_interval() {
        let interval = AuditInterval::new(Duration::from_secs(100));
        for _ in 0..1000 {
            let wait = interval.next() - Instant::now();
            assert!((Duration::from_secs(80)..=Duration::from_secs(120)).contains(&wait), "{wait:?}");
        }
    }
}
