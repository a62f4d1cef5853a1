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
    /// How it failed last, and when, since it was first asked.
    failed: Option<(Instant, Failure)>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It failed last, and is left alone until then.
    Resting(Instant),
    /// It failed last, its rest is over, and one caller finds out since then whether it is well
    /// again.
    Trying(Instant),
    /// Nothing is known against it.
    Well,
}

impl Health {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { delays: RetryDelays::new(backoff), state: State::Well, failed: None }
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
        self.health[place].state = State::Trying(now);
        Some(place)
    }

    /// Since when somebody finds out whether a member is well again.
    pub(super) fn trial(&self, place: usize) -> Option<Instant> {
        match self.health[place].state {
            State::Trying(since) => Some(since),
            State::Resting(_) | State::Well => None,
        }
    }

    /// A member to ask in any case: one that is [available](Self::available), else the one whose
    /// rest ends first; `None` once all were tried.
    pub(super) fn any(&mut self, now: Instant, tried: &[usize]) -> Option<usize> {
        self.available(now, tried).or_else(|| {
            let untried = self.places().filter(|place| !tried.contains(place));
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

    /// When the next member may be tried; `None` while one is well.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.places().map(|place| self.rest(place)).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether no member is well.
    pub(super) fn is_down(&self) -> bool {
        self.health.iter().all(|health| health.state != State::Well)
    }

    /// Whether a member that was not tried may yet answer otherwise than by a final error.
    pub(super) fn may_others_answer(&self, tried: &[usize]) -> bool {
        let is_final = |place: usize| match &self.health[place].failed {
            Some((_, failure)) => !self.is_well(place) && !failure.error.is_retryable(),
            None => false,
        };
        self.places().any(|place| !tried.contains(&place) && !is_final(place))
    }

    /// Records that a member failed in what was begun then; a stream may have begun at any time.
    /// Returns whether that is news: what was begun before a failure that is known is part of that.
    pub(super) fn failed(&mut self, place: usize, failure: &Failure, begun: Option<Instant>, now: Instant) -> bool {
        let health = &mut self.health[place];
        let is_known = match (begun, &health.failed) {
            (Some(begun), Some((at, _))) => begun <= *at,
            (Some(_), None) => false,
            (None, _) => health.state != State::Well,
        };
        if is_known {
            return false;
        }
        health.failed = Some((now, failure.clone()));
        let rest = match failure.reason {
            // It answers at once, and a password is not checked more often for it.
            Reason::Credentials | Reason::Token => Duration::ZERO,
            // The jitter may be next to nothing; a member that has just failed is not the first
            // choice again.
            _ => health.delays.after(failure).max(LEAST_REST),
        };
        health.state = State::Resting(now + rest);
        self.leave(place);
        true
    }

    /// Records that a trial that began then ended without an outcome.
    pub(super) fn abandoned(&mut self, place: usize, since: Instant, now: Instant) {
        if self.trial(place) == Some(since) {
            self.health[place].state = State::Resting(now);
        }
    }

    /// Records that a member answered. It becomes the current one where that is not well. Returns
    /// whether it had failed before.
    pub(super) fn succeeded(&mut self, place: usize) -> bool {
        if !self.is_well(self.current) {
            self.current = place;
        }
        let health = &mut self.health[place];
        if health.state == State::Well {
            return false;
        }
        health.delays.reset();
        health.state = State::Well;
        true
    }

    /// Makes a member that answered the current one.
    pub(super) fn settle(&mut self, place: usize) {
        self.current = place;
    }

    /// A member at random, of those that are well and those whose rest is over: where calls and
    /// streams may move to.
    pub(super) fn candidate(&mut self, now: Instant) -> Option<usize> {
        let is_eligible = |place: &usize| self.rest(*place).is_none_or(|until| until <= now);
        let place = at_random(self.places().filter(is_eligible))?;
        if !self.is_well(place) {
            self.health[place].state = State::Trying(now);
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

    /// When a member may be tried, or tried by another caller; `None` for one that is well.
    fn rest(&self, place: usize) -> Option<Instant> {
        match self.health[place].state {
            State::Resting(until) => Some(until),
            State::Trying(since) => Some(since + TRIAL),
            State::Well => None,
        }
    }
}

fn at_random(places: impl Iterator<Item = usize>) -> Option<usize> {
    fastrand::choice(places.collect::<Vec<_>>())
}

const LEAST_REST: Duration = Duration::from_millis(50);
/// How long one caller finds out for all. It may ask for something that takes long by itself.
const TRIAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
