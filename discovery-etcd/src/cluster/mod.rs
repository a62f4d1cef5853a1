//! Which member to ask.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery_core::{Address, Backoff, Delays, Error};
use tokio::time::Instant;
use tracing::debug;

use crate::{
    client::{Dial, Failure, Member, Reason},
    config::Settings,
};

/// The members of a cluster, asked one at a time.
#[derive(Debug)]
pub(crate) struct Cluster {
    members: Vec<Arc<Member>>,
    failover: Mutex<Failover>,
}

/// A member to open a stream on, and its place in the list.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) member: Arc<Member>,
    place: usize,
}

impl Cluster {
    /// Reads the files that TLS needs; connects to nobody yet.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let dial = Arc::new(Dial::new(settings)?);
        let member =
            |address: &Address| Arc::new(Member::new(address.clone(), Arc::clone(&dial), settings.request_timeout));
        let members: Vec<_> = settings.members.iter().map(member).collect();
        // Handles spread over the members.
        let first = fastrand::usize(..members.len());
        let failover = Mutex::new(Failover::new(members.len(), first, settings.backoff));
        Ok(Self { members, failover })
    }

    /// Runs a call on one member, and on the next ones where the member fails.
    ///
    /// Only for calls that may be done twice: a member may have done what it did not answer.
    pub(crate) async fn run<T, F>(&self, mut call: impl FnMut(Arc<Member>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (mut tried, mut authenticated) = (Vec::new(), false);
        loop {
            let chosen = self.choose(&tried);
            let started = Instant::now();
            match call(Arc::clone(&chosen.member)).await {
                Err(failure) if failure.is_member() => {
                    self.failed(&chosen);
                    tried.push(chosen.place);
                    // With one member, a connection that had died unnoticed is the usual reason.
                    let is_quick = failure.reason == Reason::Member && started.elapsed() < QUICK;
                    let once_more = self.members.len() == 1 && tried.len() == 1 && is_quick;
                    if tried.len() >= self.members.len() && !once_more {
                        return Err(failure);
                    }
                }
                // The next call on the member authenticates anew.
                Err(failure) if failure.reason == Reason::Token && !authenticated => authenticated = true,
                other => {
                    self.succeeded(&chosen);
                    return other;
                }
            }
        }
    }

    /// The member to ask now, if possible none of those at the places `tried`.
    pub(crate) fn choose(&self, tried: &[usize]) -> Chosen {
        let place = self.lock().choose(Instant::now(), tried);
        Chosen { member: Arc::clone(&self.members[place]), place }
    }

    /// Notes that a member failed, so that others are asked for a while.
    pub(crate) fn failed(&self, chosen: &Chosen) {
        debug!(member = ?chosen.member, "member failed");
        self.lock().failed(chosen.place, Instant::now());
    }

    /// Notes that a member answered.
    pub(crate) fn succeeded(&self, chosen: &Chosen) {
        self.lock().succeeded(chosen.place);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Failover> {
        self.failover.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of the members: the decision without the I/O.
#[derive(Debug)]
struct Failover {
    /// The member asked last with success; streams and calls stay together there.
    current: usize,
    health: Vec<Health>,
}

#[derive(Debug)]
struct Health {
    delays: Delays,
    /// Others are asked first until then.
    avoid_until: Option<Instant>,
}

impl Failover {
    fn new(members: usize, current: usize, backoff: Backoff) -> Self {
        let health = (0..members).map(|_| Health { delays: backoff.delays(), avoid_until: None }).collect();
        Self { current, health }
    }

    /// The first member from the current one on that is neither tried nor avoided, else the one that is avoided least long.
    fn choose(&self, now: Instant, tried: &[usize]) -> usize {
        let count = self.health.len();
        let ring = (0..count).map(|step| (self.current + step) % count);
        let avoided = |place: usize| self.health[place].avoid_until.filter(|until| *until > now);
        ring.filter(|place| !tried.contains(place))
            .min_by_key(|place| avoided(*place))
            // Everyone was tried.
            .unwrap_or(self.current)
    }

    fn failed(&mut self, place: usize, now: Instant) {
        let health = &mut self.health[place];
        // The jitter may be next to nothing; what has just failed is not the first choice again.
        let wait = health.delays.next_delay().max(LEAST_AVOIDANCE);
        health.avoid_until = Some(now + wait);
        if self.current == place {
            self.current = self.choose(now, &[place]);
        }
    }

    fn succeeded(&mut self, place: usize) {
        let health = &mut self.health[place];
        if health.avoid_until.take().is_some() {
            health.delays.reset();
        }
        self.current = place;
    }
}

/// A failure that came faster than this cost little; asking again does as well.
const QUICK: Duration = Duration::from_millis(500);
const LEAST_AVOIDANCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_stay_with_a_member_until_it_fails() {
        let mut failover = Failover::new(3, 0, Backoff::default());
        let now = Instant::now();
        assert_eq!(failover.choose(now, &[]), 0);
        assert_eq!(failover.choose(now, &[0]), 1);
        failover.failed(0, now);
        assert_eq!(failover.choose(now, &[]), 1, "the next one");
        failover.failed(1, now);
        assert_eq!(failover.choose(now, &[]), 2);
        failover.succeeded(2);
        let later = now + Duration::from_secs(3600);
        assert_eq!(failover.choose(later, &[]), 2, "and it stays there");
        assert_eq!(failover.choose(later, &[2]), 0, "where the others have had their rest");
        assert_eq!(failover.choose(later, &[0, 1, 2]), 2, "there is always one");
    }

    proptest! {
        #[test]
        fn every_member_is_tried_before_an_operation_fails(
            members in 1usize..8,
            failures in proptest::collection::vec(0usize..8, 0..30),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut failover = Failover::new(members, 0, Backoff::default());
                for place in failures {
                    failover.failed(place % members, Instant::now());
                }
                let mut tried = Vec::new();
                while tried.len() < members {
                    let place = failover.choose(Instant::now(), &tried);
                    assert!(!tried.contains(&place));
                    tried.push(place);
                }
            });
        }
    }
}
