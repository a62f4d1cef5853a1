//! How the pool publishes: the candidates, the availability and the overview.

use std::{
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Pool;
use super::{member::Member, outlier::orders::Access, slow_start};
use crate::{
    connection::link::Health,
    endpoint::lane::Phase,
    published::{availability::Availability, overview::Overview, status::RegistryState},
};

impl Pool {
    pub(super) fn publish(&mut self) {
        let now = Instant::now();
        self.next_publish = now + PAUSE * u32::try_from(self.members.len() / 1000).unwrap_or(u32::MAX);
        let all_zero = self.is_all_zero();
        let takers = self.members.values_mut().filter(|member| is_taker(member, all_zero) && member.lanes() > 0);
        let (out, mut takers): (Vec<_>, Vec<_>) = takers.partition(|member| member.outlier.ejected_until().is_some());
        // Panic mode: if more are ejected than left, use all, since the endpoints are unlikely to
        // be the cause.
        let is_panicking = takers.len() < out.len();
        if is_panicking {
            out.iter().for_each(|member| member.admit(Access::Open));
            takers.extend(out);
        }
        // Record the step that is published here, so that a later sweep publishes only if it has
        // changed.
        let window = self.config.slow_start;
        for member in &mut takers {
            member.advance(now, window);
        }
        let shares: Vec<_> = takers.iter().map(|member| member.share()).collect();
        let weights = slow_start::weights(&shares, now, window);
        let ready = takers.len();
        let mut candidates = Vec::with_capacity(takers.len());
        for (member, weight) in takers.into_iter().zip(weights) {
            candidates.extend_from_slice(member.candidates(weight));
        }
        let availability = Arc::new(self.availability(ready > 0));
        let rows = self.members.values_mut().map(|member| Arc::clone(member.row())).collect();
        // The order matters: once the rows no longer show an endpoint, no pick may find it (B4).
        self.published.balancer.publish_shared(candidates);
        self.published.availability.store(Arc::clone(&availability));
        let overview = Overview { rows, ready, registry: self.registry(), availability };
        self.published.overview.store(Arc::new(overview));
        self.published.wakeups.published.notify_waiters();
        self.call_waiters();
        let metrics = &self.published.wakeups.metrics;
        metrics.set(self.members.len(), ready, self.lost.as_ref().map(|(since, _)| since.elapsed()));
        if self.config.endpoint_metrics {
            for member in self.members.values() {
                let is_out = !is_panicking && member.outlier.ejected_until().is_some();
                let is_ready = is_taker(member, all_zero) && member.lanes() > 0 && !is_out;
                member.endpoint.metrics.set_ready(is_ready);
            }
        }
        if let Some(since) = self.updated.take() {
            metrics.published(since.elapsed());
        }
    }

    /// Calls the waiters, now that the set may have changed.
    fn call_waiters(&self) {
        // A waiter that is not seen here joined after the fence, so it sees what was published.
        fence(Ordering::SeqCst);
        let waiters = &self.published.wakeups.waiters;
        if waiters.is_waiting() {
            waiters.free(self.published.balancer.places());
        }
    }

    /// Whether all weights are zero. They count as equal then.
    pub(super) fn is_all_zero(&self) -> bool {
        self.members.values().all(|member| member.instance().weight().value() == 0)
    }

    fn registry(&self) -> RegistryState {
        match (&self.lost, self.size) {
            (Some((since, error)), _) => RegistryState::Lost { since: since.into_std(), error: error.clone() },
            (None, Some(_)) => RegistryState::InContact,
            (None, None) => RegistryState::Waiting,
        }
    }

    fn availability(&mut self, serving: bool) -> Availability {
        let now = Instant::now();
        let Some(_) = self.size else {
            return match &self.lost {
                Some((since, error)) => Availability::Lost { since: *since, error: error.clone() },
                None => Availability::Waiting,
            };
        };
        if self.members.is_empty() {
            return Availability::Empty { since: *self.empty_since.get_or_insert(now) };
        }
        self.empty_since = None;
        if serving {
            self.failing_since = None;
            return Availability::Serving;
        }
        let mut last = None;
        for member in self.members.values() {
            match member.endpoint.phase() {
                Phase::Connecting { failed: None } | Phase::Idle => return Availability::Connecting,
                // The connection was just lost, and the driver is about to connect again.
                Phase::Ready(link) if link.load.is_closed() => return Availability::Connecting,
                Phase::Ready(link) if link.health == Health::Unknown => return Availability::Connecting,
                Phase::BackingOff { error } | Phase::Connecting { failed: Some(error) } => last = Some(error),
                Phase::Ended | Phase::Ready(_) => {}
            }
        }
        let since = *self.failing_since.get_or_insert(now);
        Availability::Failing { since, endpoints: self.members.len(), error: last }
    }
}

/// Whether a member gets requests. One of weight 0 does so only if all have weight 0.
pub(super) fn is_taker(member: &Member, all_zero: bool) -> bool {
    all_zero || member.instance().weight().value() > 0
}

/// The minimum time between two publications for each thousand endpoints, so that about a twentieth
/// of the time is spent on publishing.
const PAUSE: Duration = Duration::from_millis(2);
