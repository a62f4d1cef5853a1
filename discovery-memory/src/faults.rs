use std::sync::Arc;

use discovery_core::{Error, ErrorKind, Instance, ServiceName, Status};

use crate::{
    MemoryBackend,
    lease::keep,
    state::{Event, Owner, key},
};

/// Faults on demand. Except for [`crash`](Self::crash), they affect the registry, and so all
/// handles on it.
impl MemoryBackend {
    /// Makes the registry unreachable: watches end, and calls fail with
    /// [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// No lease can be renewed, so after the TTL the entries are gone and the registrations report
    /// [`Lost`](Status::Lost).
    pub fn interrupt(&self) {
        self.interrupt_with(Error::new(ErrorKind::Unavailable, "the registry is interrupted"));
    }

    /// Makes the registry answer everything with this error, such as a refusal.
    pub fn interrupt_with(&self, error: Error) {
        let mut state = self.store.lock();
        state.end_watches(&error, |_| true);
        state.outage = Some(error);
        state.stop_renewing(|_| true);
        drop(state);
        keep(&self.store);
    }

    /// Makes the registry reachable again: watches resume, and lost instances register again.
    pub fn restore(&self) {
        keep(&self.store);
        let mut state = self.store.lock();
        let Some(outage) = state.outage.take() else { return };
        let owners: Vec<u64> = state.owners.keys().copied().collect();
        for number in owners {
            let has_entry = state.entries.values().any(|stored| stored.owner == Some(number));
            if has_entry { state.heal(number) } else { state.schedule(number, &outage) }
        }
        drop(state);
        keep(&self.store);
    }

    /// Ends the lease of an instance, as if its process had been frozen for too long. Its owner
    /// registers it again.
    ///
    /// Returns whether there was such an entry.
    pub fn expire(&self, service: &ServiceName, id: &str) -> bool {
        self.lose(service, id, "the lease ended")
    }

    /// Removes an entry by hand, as an operator might. Its owner registers it again.
    ///
    /// Returns whether there was such an entry.
    pub fn remove(&self, service: &ServiceName, id: &str) -> bool {
        self.lose(service, id, "somebody removed the entry")
    }

    /// Resets the registry to an empty one at revision 0. Watches see a reset, and instances
    /// register again.
    pub fn wipe(&self) {
        let mut state = self.store.lock();
        state.entries.clear();
        state.revision = 0;
        state.publish_all(&Event::Reset(Vec::new()));
        let error = Error::new(ErrorKind::Unavailable, "the registry was wiped");
        let owners: Vec<u64> = state.owners.keys().copied().collect();
        owners.into_iter().for_each(|number| state.schedule(number, &error));
        drop(state);
        keep(&self.store);
    }

    /// Puts an instance by hand; nobody renews it, and no lease ends it. An owner whose entry this
    /// overwrites repairs it, as with etcd.
    pub fn put(&self, service: &ServiceName, instance: Instance) {
        self.store.lock().put(service, Arc::new(instance), None);
        keep(&self.store);
    }

    /// Puts an entry that cannot be read. The entry of an instance has the key `<service>/<id>`;
    /// keys of deeper paths are not entries of any service. An owner whose entry this overwrites
    /// repairs it, as with etcd.
    pub fn put_unreadable(&self, key: &str) {
        self.store.lock().write(key.to_owned(), None, None);
        keep(&self.store);
    }

    /// Holds back the events of all watches, while lists show the current state.
    pub fn pause_watches(&self) {
        self.store.lock().hold(true);
    }

    /// Releases the events that were held back, in their order.
    pub fn resume_watches(&self) {
        self.store.lock().hold(false);
    }

    /// Makes the upstream watches of a service panic.
    pub fn panic_watches(&self, service: &ServiceName) {
        self.store.lock().publish(service, &Event::Panic);
    }

    /// Ends this handle and its clones as if their process had been killed.
    ///
    /// Nothing is deregistered: the entries end with their leases, one TTL from now. Registrations
    /// report [`Lost`](Status::Lost), and every further call fails with
    /// [`Closed`](ErrorKind::Closed).
    pub fn crash(&self) {
        let mut state = self.store.lock();
        state.crashed.insert(self.process);
        let closed = Error::new(ErrorKind::Closed, "this handle was crashed");
        state.end_watches(&closed, |process| process == self.process);
        let mine = |(number, owner): (&u64, &Owner)| (owner.process == self.process).then_some(*number);
        let mine: Vec<u64> = state.owners.iter().filter_map(mine).collect();
        state.stop_renewing(|number| mine.contains(&number));
        for number in mine {
            let owner = state.owners.remove(&number).expect("it was found under the same lock");
            owner.status.set(Status::lost(closed.clone()));
        }
        drop(state);
        keep(&self.store);
    }

    fn lose(&self, service: &ServiceName, id: &str, reason: &'static str) -> bool {
        let lost = self.store.lock().lose([key(service, id)], &Error::new(ErrorKind::Unavailable, reason));
        keep(&self.store);
        lost
    }
}
