use std::time::Duration;

use tokio::time::Instant;

/// What is known of a lease's time, counted from the moment that the last answered renewal was sent: etcd got it later, so the
/// lease lives at least that long.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseClock {
    granted: Duration,
    confirmed: Instant,
}

/// The state of the stream of renewals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// A renewal was sent at this moment and is not answered.
    Asked(Instant),
    /// There is no stream.
    Closed,
    /// Nothing is outstanding.
    Quiet,
}

/// What to do now about a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    /// Open a stream; that must take no longer than until then.
    Open(Instant),
    /// It may have ended: treat it as lost.
    Lost,
    /// Ask for a renewal.
    Renew,
    /// The stream does not answer: open another one on another member.
    Switch,
    /// Nothing until then.
    Wait(Instant),
}

impl LeaseClock {
    /// A lease that was granted for so long by an answer to what was sent at `sent`.
    pub(super) fn new(granted: Duration, sent: Instant) -> Self {
        Self { granted, confirmed: sent }
    }

    /// Takes an answer to the renewal that was sent at `sent`.
    pub(super) fn confirm(&mut self, granted: Duration, sent: Instant) {
        self.granted = granted;
        self.confirmed = self.confirmed.max(sent);
    }

    pub(super) fn granted(&self) -> Duration {
        self.granted
    }

    /// When etcd may end the lease at the earliest.
    pub(super) fn ends(&self) -> Instant {
        self.confirmed + self.granted
    }

    pub(super) fn due(&self, link: Link, now: Instant) -> Due {
        let renew = self.confirmed + self.granted / 3;
        let switch = self.confirmed + self.granted * 2 / 3;
        if now >= self.ends() {
            // First, so that a process that was paused knows it before it says anything else.
            return Due::Lost;
        }
        match link {
            // A third of what is left, since a slow network is no outage. After the switch it is a
            // sixth of the ttl, so that two members have their chance.
            Link::Closed => {
                let left = self.ends() - now;
                Due::Open(now + (left / 3).max(self.granted / 6).min(left))
            }
            Link::Quiet if now >= renew => Due::Renew,
            Link::Quiet => Due::Wait(renew),
            Link::Asked(_) if now >= switch => Due::Switch,
            Link::Asked(_) => Due::Wait(switch),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_renewed_switched_and_lost_in_thirds() {
        let start = Instant::now();
        let clock = LeaseClock::new(TTL, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        let asked = Link::Asked(at(5));
        for (link, now, due) in [
            (Link::Closed, 0, Due::Open(at(5))),
            (Link::Closed, 3, Due::Open(at(7))),
            (Link::Closed, 10, Due::Open(at(12) + TTL / 30)),
            (Link::Quiet, 0, Due::Wait(at(5))),
            (Link::Quiet, 5, Due::Renew),
            (asked, 5, Due::Wait(at(10))),
            (asked, 10, Due::Switch),
            (Link::Closed, 14, Due::Open(at(15))),
            (Link::Closed, 15, Due::Lost),
            (Link::Quiet, 15, Due::Lost),
            (asked, 60, Due::Lost),
        ] {
            assert_eq!(clock.due(link, at(now)), due, "{link:?} at {now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_from_the_question_not_from_the_answer() {
        let start = Instant::now();
        let mut clock = LeaseClock::new(TTL, start);
        let sent = start + Duration::from_secs(5);
        tokio::time::advance(Duration::from_secs(9)).await;
        clock.confirm(TTL, sent);
        assert_eq!(clock.ends(), sent + TTL);
        clock.confirm(TTL, start);
        assert_eq!(clock.ends(), sent + TTL, "an earlier question never takes time away");
    }

    proptest! {
        /// Against a server that answers after any delay or not at all: the lease is known to be lost no later than etcd
        /// could end it, and no wait is endless or in the past.
        #[test]
        fn the_clock_is_never_behind_the_server(
            ttl in 2u64..60,
            delays in proptest::collection::vec(proptest::option::of(0u64..90_000), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let ttl = Duration::from_secs(ttl);
                let mut now = Instant::now();
                let mut clock = LeaseClock::new(ttl, now);
                // When the server, that gets each question at the moment it is sent at the earliest, ends the lease.
                let mut server_ends = now + ttl;
                let mut link = Link::Quiet;
                let mut delays = delays.into_iter();
                loop {
                    assert!(clock.ends() <= server_ends);
                    match clock.due(link, now) {
                        Due::Lost => { assert!(now >= clock.ends()); break; }
                        Due::Wait(until) => { assert!(until > now); now = until; }
                        Due::Switch => link = Link::Closed,
                        Due::Renew | Due::Open(_) => {
                            let Some(delay) = delays.next() else { break };
                            let sent = now;
                            match delay.map(Duration::from_millis) {
                                Some(delay) if sent + delay < clock.ends() => {
                                    now = sent + delay;
                                    server_ends = now + ttl;
                                    clock.confirm(ttl, sent);
                                    link = Link::Quiet;
                                }
                                _ => { link = Link::Asked(sent); now += Duration::from_millis(1); }
                            }
                        }
                    }
                }
            });
        }
    }
}
