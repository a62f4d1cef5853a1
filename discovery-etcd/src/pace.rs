//! How fast a handle notices that it is cut off.

use std::time::Duration;

/// The times from a freeze of etcd until watchers know of it, at most the sum of the three.
///
/// That sum is no more than two thirds of the ttl: a lease that is renewed every third has at least
/// so much left. So watchers know of an outage before etcd can come back from it with leases ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From the answer to one sign of life to the question for the next.
    pub(crate) interval: Duration,
    /// How long such a question may stay unanswered.
    pub(crate) deadline: Duration,
    /// How long each page of a list may take that makes good for a broken watch.
    pub(crate) relist: Duration,
}

impl Pace {
    /// Of the time that there is, most is the answers': a slow network is no outage.
    pub(crate) fn of(ttl: Duration) -> Self {
        let quarter = (ttl / 4).min(SLOWEST);
        Self { interval: (ttl / 6).min(SLOWEST), deadline: quarter, relist: quarter }
    }

    /// By when a frozen member is noticed.
    pub(crate) fn patience(&self) -> Duration {
        self.interval + self.deadline
    }
}

/// What the default ttl makes of a quarter; with a longer one, there is no reason to look less
/// often.
const SLOWEST: Duration = Duration::from_millis(3750);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_known_before_a_lease_that_was_renewed_in_time_can_end() {
        for seconds in 1..=24 * 3600 {
            let ttl = Duration::from_secs(seconds);
            let pace = Pace::of(ttl);
            assert!(pace.patience() + pace.relist <= ttl * 2 / 3, "{ttl:?} {pace:?}");
            assert!(pace.deadline >= (ttl / 4).min(SLOWEST), "round trips of so much are no outage");
        }
    }
}
