//! How the pool examines its endpoints: the changed ones at once, all of them on each sweep.

use std::sync::{Arc, Weak};

use discovery_core::InstanceId;
use tokio::time::Instant;
use tracing::{debug, info};

use super::{
    Pool,
    fleet::Census,
    member::Member,
    outlier::{
        observation::Observation,
        orders::{CheckOrder, News},
    },
    publish::is_taker,
};
use crate::{endpoint::check::Checked, metrics::Event, published::availability::Availability, wakeups::SWEEP};

impl Pool {
    /// Examines the endpoints that have changed; returns whether anything changed that calls must
    /// see.
    pub(super) fn look(&mut self) -> bool {
        let now = Instant::now();
        // While no endpoint serves, the reason that calls report may have changed.
        let mut changed = !matches!(**self.published.availability.load(), Availability::Serving);
        let mut active = Vec::new();
        for endpoint in self.published.wakeups.take_dirty().iter().filter_map(Weak::upgrade) {
            endpoint.clear_dirty();
            let member = self.members.get_mut(&endpoint.id);
            if let Some(member) = member.filter(|member| Arc::ptr_eq(&member.endpoint, &endpoint)) {
                changed |= member.refresh(now);
                let seen = member.observation(now, false);
                member.outlier.observe(&seen, &mut self.fleet);
                active.push((endpoint.id.clone(), seen));
            }
        }
        changed |= self.let_go_where_refilled();
        self.judge(&active, now) || changed
    }

    /// Examines all endpoints, once per [`SWEEP`]; returns whether anything changed that calls must
    /// see.
    pub(super) fn sweep(&mut self) -> bool {
        let now = Instant::now();
        self.next_sweep = now + SWEEP;
        self.published.wakeups.count_sweep();
        // Clear the flag before looking: a call that begins in between sets it again and wakes the
        // pool.
        self.published.wakeups.pause_sweeping();
        self.departed.expire(now);
        self.published.wakeups.waiters.sweep();
        let has_deadlines = self.published.overdue.sweep(now);
        let wanted = self.published.wakeups.waiters.is_waiting();
        let mut busy = wanted || has_deadlines || !self.leaving.is_empty();
        let all_zero = self.is_all_zero();
        let mean = self.fleet.mean_where_most_fail();
        let begins = self.published.wakeups.is_penalizing();
        self.published.wakeups.set_penalizing(mean.is_none());
        let mut census = Census::default();
        let mut over = Vec::new();
        let mut active = Vec::new();
        let mut changed = false;
        for (id, member) in &mut self.members {
            let is_over = |until| now >= until && self.lost.is_none();
            if member.held_until().is_some_and(|until| is_over(until) || !member.is_connected()) {
                over.push(id.clone());
            }
            // hyper reports neither a GOAWAY nor a new stream limit while streams are open.
            if member.is_connected() && (wanted || member.in_flight() > 0) {
                member.endpoint.recheck();
                busy = true;
            }
            changed |= member.advance(now, self.config.slow_start);
            busy |= !member.has_warmed_up() || member.held_until().is_some() || member.outlier.needs_sweeps();
            match mean {
                Some(mean) => member.level(mean, begins),
                None => busy |= member.fade(),
            }
            let seen = member.observation(now, true);
            member.outlier.observe(&seen, &mut self.fleet);
            busy |= seen.check != Checked::None;
            if is_taker(member, all_zero) && member.is_connected() {
                member.outlier.count_in(&mut census, &self.fleet);
            }
            if !member.outlier.is_quiet(&self.config.outlier_detection, &seen) {
                active.push((id.clone(), seen));
            }
        }
        self.fleet.take(census);
        changed |= self.let_go(&over) | self.let_go_where_refilled();
        changed |= self.judge(&active, now);
        if busy {
            self.published.wakeups.keep_sweeping();
        }
        changed
    }

    /// Releases the held endpoints once as many others get calls as the set had before: it was
    /// replaced, or is back.
    pub(super) fn let_go_where_refilled(&mut self) -> bool {
        let Some(wanted) = self.refilled_at else { return false };
        let all_zero = self.is_all_zero();
        let (held, others): (Vec<_>, Vec<_>) = self.members.iter().partition(|(_, one)| one.held_until().is_some());
        let gets_calls =
            |one: &Member| is_taker(one, all_zero) && one.lanes() > 0 && one.outlier.ejected_until().is_none();
        if !held.is_empty() && others.iter().filter(|(_, one)| gets_calls(one)).count() < wanted {
            return false;
        }
        let held: Vec<InstanceId> = held.into_iter().map(|(id, _)| id.clone()).collect();
        self.refilled_at = None;
        self.mass_removal.settle();
        self.let_go(&held)
    }

    fn let_go(&mut self, held: &[InstanceId]) -> bool {
        held.iter().for_each(|id| self.remove(id));
        for id in held {
            info!(instance = %id, "held endpoint released");
        }
        !held.is_empty()
    }

    /// Ejects, probes and restores endpoints; returns whether it did so to any.
    fn judge(&mut self, observed: &[(InstanceId, Observation)], now: Instant) -> bool {
        let mut changed = false;
        for (id, seen) in observed {
            let Some(member) = self.members.get_mut(id) else { continue };
            let orders = member.outlier.judge(&self.config.outlier_detection, seen, &self.fleet);
            // First, so that `begin_check` finds the connections limited already.
            if let Some(access) = orders.access {
                member.admit(access);
            }
            match orders.check {
                Some(CheckOrder::Begin) => {
                    member.endpoint.begin_check();
                    self.published.wakeups.sweep();
                }
                Some(CheckOrder::End) => member.endpoint.end_check(),
                Some(CheckOrder::Replace) => member.endpoint.replace_with_check(),
                None => {}
            }
            match orders.news {
                None => continue,
                Some(News::Ejected { until, cause, again }) => {
                    let failures = seen.failures;
                    let waiting = seen.waiting;
                    let ejected_for = until - now;
                    if again {
                        debug!(instance = %id, ?cause, ?ejected_for, "endpoint ejected again");
                    } else {
                        self.fleet.eject();
                        self.published.wakeups.metrics.count(Event::Ejection);
                        info!(instance = %id, ?cause, failures, waiting, ?ejected_for, "endpoint ejected");
                    }
                    self.published.wakeups.sweep();
                }
                Some(News::Probed) => {}
                Some(News::Restored) => {
                    member.warm_up(now);
                    info!(instance = %id, "endpoint restored");
                }
            }
            member.forget_published();
            changed = true;
        }
        changed
    }
}
