//! Which member to ask: the decision without the I/O.

use std::time::Duration;

use discovery_core::Backoff;
use tokio::time::Instant;

use crate::{
    client::{Failure, Reason},
    retry_delays::RetryDelays,
};

/// What is known of the members, by their places.
#[derive(Debug)]
pub(super) struct Failover {
    /// The member that calls and streams stay with while it is well.
    current: usize,
    health: Vec<Health>,
}

#[derive(Clone, Debug)]
pub(super) struct Health {
    delays: RetryDelays,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It failed last, and is left alone until then.
    Resting(Instant),
    /// It failed last, its rest is over, and one caller finds out whether it is well again.
    Trying,
    /// Nothing is known against it.
    Well,
}

impl Health {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { delays: RetryDelays::new(backoff), state: State::Well }
    }
}

impl Failover {
    pub(super) fn new(health: Vec<Health>, current: usize) -> Self {
        Self { current, health }
    }

    /// What is known of a member.
    pub(super) fn health(&self, place: usize) -> Health {
        self.health[place].clone()
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn is_well(&self, place: usize) -> bool {
        self.health[place].state == State::Well
    }

    /// A member that may answer: the current one, else one at random of those that are well, else
    /// one at random of those whose rest is over, which nobody else is given until it is known how
    /// that ends.
    pub(super) fn available(&mut self, now: Instant, tried: &[usize]) -> Option<usize> {
        let is_well = |place: &usize| !tried.contains(place) && self.is_well(*place);
        if is_well(&self.current) {
            return Some(self.current);
        }
        if let Some(place) = at_random(self.places().filter(is_well)) {
            return Some(place);
        }
        let is_rested = |place: &usize| !tried.contains(place) && self.rest(*place).is_some_and(|until| until <= now);
        let place = at_random(self.places().filter(is_rested))?;
        self.health[place].state = State::Trying;
        Some(place)
    }

    /// A member to ask in any case: one that is [available](Self::available), else the one whose
    /// rest ends first; `None` once all were tried.
    pub(super) fn any(&mut self, now: Instant, tried: &[usize]) -> Option<usize> {
        self.available(now, tried).or_else(|| {
            let untried = self.places().filter(|place| !tried.contains(place));
            // A trial that is under way has no end of its rest, and comes first.
            untried.min_by_key(|place| self.rest(*place))
        })
    }

    /// The member for a stream, whatever is known against it. It is not kept from others meanwhile.
    pub(super) fn preferred(&self, now: Instant) -> usize {
        if self.is_well(self.current) {
            return self.current;
        }
        let is_rested = |place: &usize| self.rest(*place).is_some_and(|until| until <= now);
        let well = at_random(self.places().filter(|place| self.is_well(*place)));
        let rested = || at_random(self.places().filter(is_rested));
        let earliest = || self.places().min_by_key(|place| self.rest(*place));
        well.or_else(rested).or_else(earliest).unwrap_or(self.current)
    }

    /// When the next rest ends; `None` while a member is well, or being tried.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        let rests = self.health.iter().map(|health| match health.state {
            State::Resting(until) => Some(until),
            State::Trying | State::Well => None,
        });
        rests.collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether no member is well.
    pub(super) fn is_down(&self) -> bool {
        self.health.iter().all(|health| health.state != State::Well)
    }

    /// Records that a member failed.
    pub(super) fn failed(&mut self, place: usize, failure: &Failure, now: Instant) {
        let health = &mut self.health[place];
        let rest = match failure.reason {
            // It answers at once, and a password is not checked more often for it.
            Reason::Credentials | Reason::Token => Duration::ZERO,
            // The jitter may be next to nothing; a member that has just failed is not the first
            // choice again.
            _ => health.delays.after(failure).max(LEAST_REST),
        };
        health.state = State::Resting(now + rest);
        self.leave(place);
    }

    /// Records that a trial ended without an outcome.
    pub(super) fn abandoned(&mut self, place: usize, now: Instant) {
        if self.health[place].state == State::Trying {
            self.health[place].state = State::Resting(now);
        }
    }

    /// Records that a member answered. Returns whether it had failed before.
    pub(super) fn succeeded(&mut self, place: usize) -> bool {
        self.current = place;
        let health = &mut self.health[place];
        if health.state == State::Well {
            return false;
        }
        health.delays.reset();
        health.state = State::Well;
        true
    }

    /// A member at random, of those that are well and those whose rest is over: where calls and
    /// streams may move to.
    pub(super) fn candidate(&mut self, now: Instant) -> Option<usize> {
        let is_eligible = |place: &usize| match self.health[*place].state {
            State::Resting(until) => until <= now,
            State::Trying => false,
            State::Well => true,
        };
        let place = at_random(self.places().filter(is_eligible))?;
        if self.health[place].state != State::Well {
            self.health[place].state = State::Trying;
        }
        Some(place)
    }

    /// Makes another member the current one, at random of those that are well, if there is one.
    fn leave(&mut self, place: usize) {
        if self.current == place {
            self.current = at_random(self.places().filter(|place| self.is_well(*place))).unwrap_or(place);
        }
    }

    fn places(&self) -> std::ops::Range<usize> {
        0..self.health.len()
    }

    fn rest(&self, place: usize) -> Option<Instant> {
        match self.health[place].state {
            State::Resting(until) => Some(until),
            State::Trying | State::Well => None,
        }
    }
}

fn at_random(places: impl Iterator<Item = usize>) -> Option<usize> {
    fastrand::choice(places.collect::<Vec<_>>())
}

const LEAST_REST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use discovery_core::{Error, ErrorKind};
    use proptest::prelude::*;

    use super::*;

    fn failover(members: usize) -> Failover {
        Failover::new(vec![Health::new(Backoff::default()); members], 0)
    }

    fn failure(reason: Reason) -> Failure {
        Failure::new(reason, Error::new(ErrorKind::Unavailable, "not now"))
    }

    fn unreached() -> Failure {
        failure(Reason::Member)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_stay_with_a_member_until_it_fails() {
        let mut failover = failover(3);
        let now = Instant::now();
        assert_eq!(failover.available(now, &[]), Some(0));
        assert!(failover.available(now, &[0]).is_some_and(|place| place != 0));
        failover.failed(0, &unreached(), now);
        let second = failover.available(now, &[]).unwrap();
        assert!(second != 0 && failover.available(now, &[]) == Some(second));
        failover.failed(second, &unreached(), now);
        let third = failover.available(now, &[]).unwrap();
        assert!(![0, second].contains(&third), "the one that is left");
        failover.succeeded(third);
        let later = now + Duration::from_secs(3600);
        assert_eq!(failover.available(later, &[]), Some(third), "and it stays there");
        failover.failed(third, &unreached(), now);
        assert!(failover.is_down() && failover.available(now, &[]).is_none());
        assert_eq!(failover.any(now, &[0, second]), Some(third), "whatever is known against it");
        assert_eq!(failover.any(now, &[0, 1, 2]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_at_a_time_tries_a_member_that_failed() {
        let mut failover = failover(1);
        let now = Instant::now();
        failover.failed(0, &unreached(), now);
        let rested = failover.next_trial().expect("it rests");
        assert!(rested > now && rested <= now + Duration::from_secs(1));
        assert_eq!(failover.available(now, &[]), None);
        assert_eq!(failover.available(rested, &[]), Some(0));
        assert_eq!(failover.available(rested, &[]), None, "somebody tries it");
        assert_eq!(failover.next_trial(), None);
        failover.abandoned(0, rested);
        assert_eq!(failover.available(rested, &[]), Some(0), "another one's turn");
        failover.failed(0, &unreached(), rested);
        assert!(failover.next_trial().is_some_and(|next| next > rested));
        assert!(failover.succeeded(0) && !failover.is_down());
        assert!(!failover.succeeded(0), "that is no news");
        failover.abandoned(0, rested);
        assert!(!failover.is_down());
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_member_rests_for_longer_than_one_out_of_reach() {
        let now = Instant::now();
        let longest = |reason| {
            let rests = (0..200).map(|_| {
                let mut failover = failover(1);
                (0..12).for_each(|_| failover.failed(0, &failure(reason), now));
                failover.next_trial().unwrap() - now
            });
            rests.max().unwrap()
        };
        assert!(longest(Reason::Member) <= Duration::from_secs(1));
        for reason in [Reason::Overloaded, Reason::TimedOut] {
            assert!(longest(reason) > Duration::from_secs(5), "{reason:?}");
        }
    }

    /// A restart of one member after the other leaves all handles on two of three; choosing once
    /// more spreads them.
    #[tokio::test(start_paused = true)]
    async fn handles_spread_over_the_members_that_are_well() {
        let mut handles: Vec<Failover> = (0..3000).map(|_| failover(3)).collect();
        let count = |handles: &[Failover]| {
            [0, 1, 2].map(|member| handles.iter().filter(|handle| handle.current() == member).count())
        };
        let mut now = Instant::now();
        for member in 0..3 {
            for handle in handles.iter_mut().filter(|handle| handle.current() == member) {
                handle.failed(member, &unreached(), now);
                let place = handle.available(now, &[member]).unwrap();
                handle.succeeded(place);
            }
            now += Duration::from_secs(10);
            if member == 0 {
                assert!(count(&handles)[1..].iter().all(|handles| (1350..1650).contains(handles)), "at random");
            }
        }
        assert_eq!(count(&handles)[2], 0, "the last one that was restarted has none");
        for handle in &mut handles {
            let place = handle.candidate(now).expect("all have had their rest");
            handle.succeeded(place);
        }
        let spread = count(&handles);
        assert!(spread.iter().all(|handles| (900..1100).contains(handles)), "{spread:?}");
    }

    proptest! {
        #[test]
        fn every_member_is_asked_before_an_operation_that_must_not_wait_fails(
            members in 1usize..8,
            failures in proptest::collection::vec(0usize..8, 0..30),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut failover = failover(members);
                for place in failures {
                    failover.failed(place % members, &unreached(), Instant::now());
                }
                let mut tried = Vec::new();
                while tried.len() < members {
                    let place = failover.any(Instant::now(), &tried).unwrap();
                    assert!(!tried.contains(&place));
                    tried.push(place);
                }
            });
        }
    }
}
