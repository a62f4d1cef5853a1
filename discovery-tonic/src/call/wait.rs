use std::{future::poll_fn, time::Duration};

use discovery_core::InstanceId;
use tokio::time::{Instant, sleep_until};

use super::shared::Shared;
use crate::{
    balance::{BalancerHandle, Picked},
    error::BoxError,
    metrics::Event,
    published::target::Target,
};

impl Shared {
    /// Waits for an endpoint, preferably one that was not tried, at most until `limit`; fails at
    /// once where waiting leads nowhere, unless `wait` says to wait all the same. A call with a
    /// deadline spares endpoints that have to answer first for at most half of its time; otherwise,
    /// with nothing else there, it would never be sent.
    pub(super) async fn wait_for_endpoint(
        &self,
        wait: bool,
        limit: Option<Instant>,
        deadline: Option<Instant>,
        tried: &[InstanceId],
    ) -> Result<Picked<Target>, (String, Option<BoxError>)> {
        let mut picker = self.published.balancer.handle();
        let start = Instant::now();
        let half = deadline.map(|deadline| deadline.saturating_duration_since(start) / 2);
        let patience = start + half.map_or(PATIENCE, |half| half.min(PATIENCE));
        let mut waiter = self.published.wakeups.waiters.join();
        let mut patient = true;
        loop {
            // Before the look, so that nothing that is published after it is missed.
            let mut published = Box::pin(self.published.wakeups.published.notified());
            published.as_mut().enable();
            let was_patient = std::mem::replace(&mut patient, Instant::now() < patience);
            // At the end of its patience it looks for a place without a ticket alone: others were
            // called for the rest.
            if waiter.take_call() || (was_patient != patient && !picker.has_room(true)) {
                if let Some(picked) = pick(&mut picker, patient, tried) {
                    // Before the look whether there is more, so that those who join now are seen.
                    drop(waiter);
                    if picker.has_room(true) {
                        self.published.wakeups.waiters.free(1);
                    }
                    self.published.wakeups.sweep();
                    self.published.wakeups.metrics.count(Event::Pick);
                    return Ok(picked);
                }
                if patient && picker.has_room(false) {
                    waiter.step_aside();
                }
            }
            let availability = self.published.availability.load_full();
            let waited = limit.is_some_and(|limit| Instant::now() >= limit);
            if waited || !(availability.may_change() && wait || availability.is_worth_waiting()) {
                return Err(availability.explain(&self.published.service, waited.then_some(self.wait)));
            }
            // The sweeps look at connections whose peers may allow more by now.
            self.published.wakeups.sweep();
            let end = async {
                match limit {
                    Some(limit) => sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // First, since it tells that the runtime is gone whose timers must not be polled
                // then.
                biased;
                () = published => {}
                () = poll_fn(|context| waiter.poll_called(context)) => {}
                () = sleep_until(patience), if patient => {}
                () = end => {}
            }
        }
    }
}

/// Picks an endpoint, preferably one that was not tried.
fn pick(picker: &mut BalancerHandle<Target>, patient: bool, tried: &[InstanceId]) -> Option<Picked<Target>> {
    loop {
        let found = match tried {
            [] => picker.pick(patient),
            _ => picker.pick_other(patient, |target| tried.contains(target.instance.id())),
        };
        // A place that others left again in the same moment is still a place.
        if found.is_some() || !picker.has_room(patient) {
            return found;
        }
    }
}

/// The longest that a call spares endpoints that have to answer first.
const PATIENCE: Duration = Duration::from_millis(200);
