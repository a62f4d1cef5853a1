//! Which member to ask, without the I/O.

use std::time::Duration;

use discovery_core::Backoff;
use tokio::time::Instant;

use crate::{
    client::{Failure, Reason},
    retry_delays::RetryDelays,
};

/// What is known of the members, by their index.
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
    /// When it last failed, and how.
    failed: Option<(Instant, Failure)>,
    /// When it was last chosen for a stream while no member was well.
    chosen: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It failed last, and is left alone until this time.
    Resting(Instant),
    /// It failed last, and its rest is over. Since this time, one caller has been checking whether
    /// it is well again.
    Trying(Instant),
    /// Nothing is known against it.
    Well,
}

impl Health {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { delays: RetryDelays::new(backoff), state: State::Well, failed: None, chosen: None }
    }

    /// When it last failed or was chosen for a stream, whichever was later.
    fn used(&self) -> Option<Instant> {
        self.chosen.max(self.failed.as_ref().map(|(at, _)| *at))
    }
}

impl Failover {
    pub(super) fn new(health: Vec<Health>, current: usize) -> Self {
        Self { current, health }
    }

    /// The health of one member.
    pub(super) fn health(&self, place: usize) -> Health {
        self.health[place].clone()
    }

    pub(super) fn current(&self) -> usize {
        self.current
    }

    pub(super) fn is_well(&self, place: usize) -> bool {
        self.health[place].state == State::Well
    }

    /// A member that may answer: the current one, or a random one of those that are well, or a
    /// random one of those whose rest is over. The last kind is given to nobody else until the
    /// result of the trial is known, or [`TRIAL`] has passed.
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

    /// Since when a caller has been checking whether a member is well again.
    pub(super) fn trial(&self, place: usize) -> Option<Instant> {
        match self.health[place].state {
            State::Trying(since) => Some(since),
            State::Resting(_) | State::Well => None,
        }
    }

    /// A member to ask in any case: one that is [available](Self::available), or the one whose rest
    /// ends first; `None` once all were tried.
    pub(super) fn any(&mut self, now: Instant, tried: &[usize]) -> Option<usize> {
        self.available(now, tried).or_else(|| {
            let untried = self.places().filter(|place| !tried.contains(place));
            untried.min_by_key(|place| self.rest(*place))
        })
    }

    /// The member for a stream, even if none is well. Other callers may use it meanwhile.
    ///
    /// Of those whose rest is over, the one that was left alone the longest: a lease must be
    /// renewed in time, and a random choice may take the same silent member again and again.
    pub(super) fn preferred(&mut self, now: Instant) -> usize {
        if self.is_well(self.current) {
            return self.current;
        }
        if let Some(place) = at_random(self.places().filter(|place| self.is_well(*place))) {
            return place;
        }
        let is_rested = |place: &usize| self.rest(*place).is_some_and(|until| until <= now);
        let rested = self.places().filter(is_rested).min_by_key(|place| self.health[*place].used());
        let earliest = || self.places().min_by_key(|place| self.rest(*place));
        let place = rested.or_else(earliest).unwrap_or(self.current);
        self.health[place].chosen = Some(now);
        place
    }

    /// When the next member may be tried; `None` while one is well.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        self.places().map(|place| self.rest(place)).collect::<Option<Vec<_>>>()?.into_iter().min()
    }

    /// Whether no member is well.
    pub(super) fn is_down(&self) -> bool {
        self.health.iter().all(|health| health.state != State::Well)
    }

    /// Whether a member that was not tried may answer with something other than a final error.
    pub(super) fn may_others_answer(&self, tried: &[usize]) -> bool {
        let is_final = |place: usize| match &self.health[place].failed {
            Some((_, failure)) => !self.is_well(place) && !failure.error.is_retryable(),
            None => false,
        };
        self.places().any(|place| !tried.contains(&place) && !is_final(place))
    }

    /// Records that a call or stream on a member failed. `begun` is when the call began, and `None`
    /// for a stream. Returns whether this is news: a call that began before a known failure is part
    /// of that failure, and so is a stream that breaks while the member is not well.
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
            // The member answers at once, and trying again soon does not make it check more
            // passwords.
            Reason::Credentials | Reason::Token => Duration::ZERO,
            // Jitter can make the delay tiny; a member that just failed must not be the first
            // choice again.
            _ => health.delays.after(failure).max(LEAST_REST),
        };
        health.state = State::Resting(now + rest);
        self.leave(place);
        true
    }

    /// Records that a trial that began at `since` ended without a result.
    pub(super) fn abandoned(&mut self, place: usize, since: Instant, now: Instant) {
        if self.trial(place) == Some(since) {
            self.health[place].state = State::Resting(now);
        }
    }

    /// Records that a member answered. It becomes the current one if that is not well. Returns
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

    /// A random member that is well or whose rest is over, for calls and streams to move to.
    pub(super) fn candidate(&mut self, now: Instant) -> Option<usize> {
        let is_eligible = |place: &usize| self.rest(*place).is_none_or(|until| until <= now);
        let place = at_random(self.places().filter(is_eligible))?;
        if !self.is_well(place) {
            self.health[place].state = State::Trying(now);
        }
        Some(place)
    }

    /// Makes a random member that is well the current one, if there is one.
    fn leave(&mut self, place: usize) {
        if self.current == place {
            self.current = at_random(self.places().filter(|place| self.is_well(*place))).unwrap_or(place);
        }
    }

    fn places(&self) -> std::ops::Range<usize> {
        0..self.health.len()
    }

    /// When a member may be tried, or tried by another caller; `None` if it is well.
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
/// How long one caller may check for all. Its call may take long by itself.
const TRIAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
