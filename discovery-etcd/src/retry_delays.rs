//! How long registrations wait after a failure.

use std::time::Duration;

use discovery_core::{Backoff, Delays};

use crate::client::Failure;

/// The waits between attempts to write, remove or lease something.
///
/// A cluster that refuses is asked again by the configured backoff. One that cannot be reached is asked at least once a second, so
/// that registrations are back soon after it is; refused connections cost nobody much, and the jitter spreads those who come back
/// over that second.
#[derive(Debug)]
pub(crate) struct RetryDelays {
    unreached: Delays,
    refused: Delays,
}

impl RetryDelays {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { unreached: backoff.at_most(REACH).delays(), refused: backoff.delays() }
    }

    /// The wait before anything is tried: what everybody does at once is spread by it.
    pub(crate) fn first(&mut self) -> Duration {
        self.unreached.next_delay()
    }

    /// The wait after a failure.
    pub(crate) fn after(&mut self, failure: &Failure) -> Duration {
        if failure.is_member() { self.unreached.next_delay() } else { self.refused.next_delay() }
    }

    /// Starts again from the shortest wait.
    pub(crate) fn reset(&mut self) {
        self.unreached.reset();
        self.refused.reset();
    }
}

/// How long the return of a cluster may stay unnoticed.
const REACH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use discovery_core::{Error, ErrorKind};

    use super::*;
    use crate::client::Reason;

    #[test]
    fn only_who_refuses_is_left_alone_for_long() {
        let failure = |reason| Failure::new(reason, Error::new(ErrorKind::Unavailable, "not now").during("grant"));
        let longest = |reason| {
            let mut pauses = RetryDelays::new(Backoff::default());
            (0..200).map(|_| pauses.after(&failure(reason))).max().unwrap()
        };
        let unreached = longest(Reason::Member);
        assert!(unreached > REACH / 2 && unreached <= REACH, "{unreached:?}");
        assert!(longest(Reason::Refused) > REACH * 5);
    }

    /// 200 registrars whose etcd is away for 15 s, all lost at one moment: when each one's first attempt after its return is.
    #[test]
    fn a_crowd_comes_back_spread_over_a_second() {
        let unreached = Failure::new(Reason::Member, Error::new(ErrorKind::Unavailable, "not now"));
        let away = Duration::from_secs(15);
        let mut bins = [0; 10];
        for _ in 0..200 {
            let mut pauses = RetryDelays::new(Backoff::default());
            let mut at = pauses.first();
            while at < away {
                at += pauses.after(&unreached);
            }
            bins[(at - away).as_millis() as usize / 100] += 1;
        }
        let peak = bins.iter().max().unwrap();
        assert!(*peak <= 3 * 200 / 10, "at most three times the mean of a tenth of that second: {bins:?}");
    }
}
