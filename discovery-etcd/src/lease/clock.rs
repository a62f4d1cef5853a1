//! When to renew a lease, when to change the member, and when to treat it as lost: the decision
//! without the I/O.

use std::time::Duration;

use tokio::time::Instant;

/// The lifetime of a lease, counted from when the last answered renewal was sent. etcd received the
/// renewal later than that, so the lease lives at least this long.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseClock {
    granted: Duration,
    confirmed: Instant,
    /// When the latest renewal was sent, whether it was answered or not.
    asked: Instant,
}

/// The state of the renewal stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// A renewal was sent at this time and has not been answered.
    Asked(Instant),
    /// There is no stream.
    Closed,
    /// The stream is open and no renewal is outstanding.
    Quiet,
}

/// What to do next about a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    /// Open a stream, by this time at the latest.
    Open(Instant),
    /// It may have ended: treat it as lost.
    Lost,
    /// Send a renewal.
    Renew,
    /// The stream does not answer: open a stream on another member.
    Switch,
    /// Do nothing until this time.
    Wait(Instant),
}

impl LeaseClock {
    /// A lease that was granted for this long, by the answer to a request sent at `sent`.
    pub(super) fn new(granted: Duration, sent: Instant) -> Self {
        Self { granted, confirmed: sent, asked: sent }
    }

    /// Records the answer to a renewal that was sent at `sent`.
    pub(super) fn confirm(&mut self, granted: Duration, sent: Instant) {
        self.granted = granted;
        self.confirmed = self.confirmed.max(sent);
        self.ask(sent);
    }

    /// Records that a renewal was sent, which etcd may receive without its answer arriving.
    pub(super) fn ask(&mut self, sent: Instant) {
        self.asked = self.asked.max(sent);
    }

    pub(super) fn granted(&self) -> Duration {
        self.granted
    }

    /// The earliest time at which etcd may end the lease.
    pub(super) fn ends(&self) -> Instant {
        self.confirmed + self.granted
    }

    /// The latest time at which etcd ends the lease if it is not renewed again and etcd is up, but
    /// for the time that the last renewal took to arrive.
    pub(super) fn ends_latest(&self) -> Instant {
        self.asked + self.granted
    }

    pub(super) fn due(&self, link: Link, now: Instant) -> Due {
        let renew = self.confirmed + self.granted / 3;
        let switch = self.confirmed + self.granted * 2 / 3;
        if now >= self.ends() {
            // Checked first: a process that was paused must notice the loss before it acts on a
            // state from before the pause.
            return Due::Lost;
        }
        match link {
            // A third of the remaining time, because a slow network is not an outage. After a
            // switch at least a sixth of the TTL, which leaves time for two members.
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
    async fn a_lease_is_renewed_after_a_third_switched_after_two_and_then_lost() {
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
    async fn time_is_counted_from_the_request_not_from_the_answer() {
        let start = Instant::now();
        let mut clock = LeaseClock::new(TTL, start);
        let sent = start + Duration::from_secs(5);
        tokio::time::advance(Duration::from_secs(9)).await;
        clock.confirm(TTL, sent);
        assert_eq!(clock.ends(), sent + TTL);
        clock.confirm(TTL, start);
        assert_eq!(clock.ends(), sent + TTL, "an earlier request never shortens the lease");
    }

    proptest! {
        /// A server answers after any delay or not at all. The lease is known as lost no later than
        /// etcd can end it, and every wait is finite and ends in the future.
        #[test]
        fn a_lease_is_known_as_lost_before_the_server_ends_it(
            ttl in 2u64..60,
            delays in proptest::collection::vec(proptest::option::of(0u64..90_000), 1..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let ttl = Duration::from_secs(ttl);
                let mut now = Instant::now();
                let mut clock = LeaseClock::new(ttl, now);
                // When the server ends the lease, counted from when it received a request: never
                // before that was sent.
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
