//! Leases and re-registrations: what is due when, and the timer that does it.

use std::sync::{Arc, Weak};

use discovery_core::{Backoff, Error, ErrorKind, Status};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep_until},
};

use crate::state::{State, Store, Timer, key};

/// Does what is due now, and ensures that what is due later happens then.
///
/// The timer is a task that ends with its last deadline. Without a runtime there is no timer, and
/// the next call does what has become due.
pub(crate) fn keep(store: &Arc<Store>) {
    let mut state = store.lock();
    let Some(due) = state.tick(Instant::now()) else { return };
    // A timer whose runtime is gone counts as finished too.
    let runs = |timer: &Timer| timer.due <= due && !timer.task.is_finished();
    let Ok(runtime) = Handle::try_current() else { return };
    if state.timer.as_ref().is_some_and(runs) {
        return;
    }
    let number = state.number();
    let task = runtime.spawn(run(Arc::downgrade(store), number, due)).abort_handle();
    if let Some(former) = state.timer.replace(Timer { number, due, task }) {
        former.task.abort();
    }
}

async fn run(store: Weak<Store>, number: u64, mut due: Instant) {
    loop {
        sleep_until(due).await;
        let Some(store) = store.upgrade() else { return };
        let mut state = store.lock();
        let next = state.tick(Instant::now());
        // Under the lock, so that no caller relies on a timer that is about to end.
        let Some(timer) = state.timer.as_mut().filter(|timer| timer.number == number) else { return };
        let Some(next) = next else {
            state.timer = None;
            return;
        };
        timer.due = next;
        due = next;
    }
}

impl State {
    /// Ends the leases and heals the registrations that are due. Returns when something is due
    /// next.
    fn tick(&mut self, now: Instant) -> Option<Instant> {
        // Most calls have nothing to do, and searching a large registry takes long.
        if self.due.is_none_or(|due| due > now) {
            return self.due;
        }
        let ended = self.entries.iter().filter(|(_, stored)| stored.ends.is_some_and(|ends| ends <= now));
        let ended: Vec<String> = ended.map(|(key, _)| key.clone()).collect();
        let reason = self.outage.clone();
        self.lose(ended, &reason.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, "the lease ended")));
        if self.outage.is_none() {
            let due = self.owners.iter().filter(|(_, owner)| owner.heals.is_some_and(|heals| heals <= now));
            let due: Vec<u64> = due.map(|(number, _)| *number).collect();
            due.into_iter().for_each(|number| self.heal(number));
        }
        let ends = self.entries.values().filter_map(|stored| stored.ends);
        self.due = ends.chain(self.owners.values().filter_map(|owner| owner.heals)).min();
        self.due
    }

    /// Records that something is due at this time.
    fn owe(&mut self, at: Instant) {
        self.due = self.due.into_iter().chain([at]).min();
    }

    /// Removes entries as if by a fault. Their owners are lost and scheduled to heal.
    pub(crate) fn lose(&mut self, keys: impl IntoIterator<Item = String>, error: &Error) -> bool {
        let lost = self.remove(keys);
        for number in lost.iter().filter_map(|stored| stored.owner) {
            self.schedule(number, error);
        }
        !lost.is_empty()
    }

    /// Reports a loss, and schedules the healing with full jitter unless there is an outage.
    pub(crate) fn schedule(&mut self, number: u64, error: &Error) {
        let reachable = self.outage.is_none();
        if let Some(owner) = self.owners.get_mut(&number) {
            owner.status.set(Status::lost(error.clone()));
            owner.heals = reachable.then(|| Instant::now() + Backoff::default().delays().next_delay());
            if let Some(heals) = owner.heals {
                self.owe(heals);
            }
        }
    }

    /// Writes a registration's entry if there is none, or if it is its own or was put by hand. An
    /// entry of another owner stays and supersedes the registration.
    pub(crate) fn heal(&mut self, number: u64) {
        let Some(owner) = self.owners.get_mut(&number) else { return };
        owner.heals = None;
        let service = owner.service.clone();
        let instance = Arc::clone(&owner.instance);
        match self.entries.get_mut(&key(&service, instance.id().as_str())) {
            Some(stored) if stored.owner.is_some_and(|owner| owner != number) => return self.supersede(number),
            Some(stored) if stored.owner == Some(number) && stored.instance.as_ref() == Some(&instance) => {
                stored.ends = None;
            }
            _ => self.put(&service, instance, Some(number)),
        }
        if let Some(owner) = self.owners.get(&number)
            && !owner.status.current().is_registered()
        {
            owner.status.set(Status::registered());
        }
    }

    /// Stops renewing the entries of some registrations: their leases end a TTL from now.
    pub(crate) fn stop_renewing(&mut self, concerns: impl Fn(u64) -> bool) {
        let ends = Instant::now() + self.ttl;
        for stored in self.entries.values_mut() {
            if stored.owner.is_some_and(&concerns) {
                stored.ends.get_or_insert(ends);
            }
        }
        self.owe(ends);
    }
}
