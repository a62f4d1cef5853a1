//! How fast a handle notices that it is cut off from etcd.

use std::time::Duration;

/// The parts of the time between a freeze of etcd and the moment when watchers know of it.
///
/// Their sum is at most two thirds of the ttl. A lease that is renewed every third of the ttl has
/// at least that much time left, so watchers know of an outage before etcd can return from it with
/// expired leases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From the answer to one sign of life to the request for the next.
    pub(crate) interval: Duration,
    /// How long a sign of life may stay unanswered.
    pub(crate) deadline: Duration,
    /// How long each page of the list that replaces a broken watch may take.
    pub(crate) relist: Duration,
}

impl Pace {
    /// Leaves most of the available time to the answers, because a slow network is not an outage.
    pub(crate) fn of(ttl: Duration) -> Self {
        let quarter = (ttl / 4).min(SLOWEST);
        Self { interval: (ttl / 6).min(SLOWEST), deadline: quarter, relist: quarter }
    }

    /// How long it takes at most to notice a frozen member.
    pub(crate) fn patience(&self) -> Duration {
        self.interval + self.deadline
    }
}

/// A quarter of the default ttl. A longer ttl is no reason to check less often.
const SLOWEST: Duration = Duration::from_millis(3750);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_known_before_a_lease_renewed_in_time_can_end() {
        for seconds in 1..=24 * 3600 {
            let ttl = Duration::from_secs(seconds);
            let pace = Pace::of(ttl);
            assert!(pace.patience() + pace.relist <= ttl * 2 / 3, "{ttl:?} {pace:?}");
            assert!(pace.deadline >= (ttl / 4).min(SLOWEST), "a round trip of this length is not an outage");
        }
    }
}
