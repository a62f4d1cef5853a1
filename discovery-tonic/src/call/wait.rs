//! How a call waits for an endpoint if none is ready.

use std::{future::poll_fn, time::Duration};

use discovery_core::InstanceId;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, sleep_until},
};

use super::shared::Shared;
use crate::{
    balance::{BalancerHandle, Picked},
    error::BoxError,
    metrics::Event,
    published::target::Target,
};

impl Shared {
    /// Waits until `limit` at most for an endpoint, preferably one that was not tried. Fails at
    /// once if waiting is pointless, unless `wait` asks to wait anyway.
    ///
    /// For the first 200 ms the call skips endpoints that must answer an earlier request first. A
    /// call with a deadline does so for at most half its remaining time, because those may be the
    /// only endpoints left.
    pub(super) async fn wait_for_endpoint(
        &self,
        wait: bool,
        limit: Option<Instant>,
        deadline: Option<Instant>,
        tried: &[InstanceId],
    ) -> Result<Picked<Target>, (String, Option<BoxError>)> {
        // Without this, a caller that repeats calls which fail at once would never yield, and its
        // thread would run no other task, not even the one that might find an endpoint.
        consume_budget().await;
        let mut picker = self.published.balancer.handle();
        let start = Instant::now();
        let half = deadline.map(|deadline| deadline.saturating_duration_since(start) / 2);
        let patience = start + half.map_or(PATIENCE, |half| half.min(PATIENCE));
        let mut waiter = self.published.wakeups.waiters.join();
        let mut patient = true;
        loop {
            // Subscribe before looking, so that nothing published afterwards is missed.
            let mut published = Box::pin(self.published.wakeups.published.notified());
            published.as_mut().enable();
            let was_patient = std::mem::replace(&mut patient, Instant::now() < patience);
            // When its patience ends, the call looks without having been called, but only if all
            // places left are out of tickets: other calls were called for the rest.
            if waiter.take_call() || (was_patient != patient && !picker.has_room(true)) {
                if let Some(picked) = pick(&mut picker, patient, tried) {
                    // Leave the queue before checking for more places, so that calls that join now
                    // are seen.
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
                return Err(self.published.explain(&availability, waited.then_some(self.wait)));
            }
            // The sweeps recheck connections, whose peers may allow more streams by now.
            self.published.wakeups.sweep();
            let end = async {
                match limit {
                    Some(limit) => sleep_until(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // This branch goes first: it reports that the runtime has shut down, whose timers
                // must not be polled any more.
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
        // Try again if there is room after all: another call took the place and left it.
        if found.is_some() || !picker.has_room(patient) {
            return found;
        }
    }
}

/// How long a call skips endpoints that must answer an earlier request first.
const PATIENCE: Duration = Duration::from_millis(200);
