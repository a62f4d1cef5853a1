//! How long to wait after a failure.

use std::time::Duration;

use discovery_core::{Backoff, Delays};

use crate::client::Failure;

/// The waits between attempts: for a member that failed, and for a registration or a lease that
/// could not be written.
///
/// A cluster that refuses, is overloaded, or does not answer in time is asked again after the full
/// backoff. One that cannot be reached is tried at least once a second, so that registrations are
/// restored soon after it returns. Refused connections cost little, and the jitter spreads the
/// returning clients over that second.
#[derive(Clone, Debug)]
pub(crate) struct RetryDelays {
    unreached: Delays,
    full: Delays,
}

impl RetryDelays {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { unreached: backoff.at_most(REACH).delays(), full: backoff.delays() }
    }

    /// The wait before the first attempt, which spreads what all clients do at the same moment.
    pub(crate) fn first(&mut self) -> Duration {
        self.unreached.next_delay()
    }

    /// The wait after a failure.
    pub(crate) fn after(&mut self, failure: &Failure) -> Duration {
        if failure.is_member() && !failure.reason.is_load() {
            self.unreached.next_delay()
        } else {
            self.full.next_delay()
        }
    }

    /// Starts again from the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.unreached.reset();
        self.full.reset();
    }
}

/// How long the return of a cluster may go unnoticed.
const REACH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use discovery_core::{Error, ErrorKind};

    use super::*;
    use crate::client::Reason;

    #[test]
    fn only_a_cluster_out_of_reach_is_tried_within_a_second() {
        let failure =
            |reason| Failure::new(reason, Error::new(ErrorKind::Unavailable, "not now").with_operation("grant"));
        let longest = |reason| {
            let mut delays = RetryDelays::new(Backoff::default());
            (0..200).map(|_| delays.after(&failure(reason))).max().unwrap()
        };
        for reason in [Reason::Member, Reason::Strange, Reason::Token] {
            let wait = longest(reason);
            assert!(wait > REACH / 2 && wait <= REACH, "{reason:?}: {wait:?}");
        }
        for reason in [Reason::Refused, Reason::Overloaded, Reason::TimedOut] {
            assert!(longest(reason) > REACH * 5, "{reason:?}");
        }
    }

    /// 200 registrars lose an etcd that is away for 15 s at the same moment. Measures when the
    /// first attempt of each comes after the return.
    #[test]
    fn returning_clients_are_spread_over_a_second() {
        let unreached = Failure::new(Reason::Member, Error::new(ErrorKind::Unavailable, "not now"));
        let away = Duration::from_secs(15);
        let mut bins = [0; 10];
        for _ in 0..200 {
            let mut delays = RetryDelays::new(Backoff::default());
            let mut at = delays.first();
            while at < away {
                at += delays.after(&unreached);
            }
            bins[(at - away).as_millis() as usize / 100] += 1;
        }
        let peak = bins.iter().max().unwrap();
        assert!(*peak <= 3 * 200 / 10, "at most three times the mean of a tenth of that second: {bins:?}");
    }
}
