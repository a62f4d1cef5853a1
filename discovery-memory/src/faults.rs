use std::sync::Arc;

use discovery_core::{Error, ErrorKind, Instance, ServiceName, Status};

use crate::{
    MemoryBackend,
    lease::keep,
    state::{Event, Owner, key},
};

/// Faults on demand. Except for [`crash`](Self::crash), they concern the registry, and so all handles on it.
impl MemoryBackend {
    /// Makes the registry unreachable: watches end, calls fail with [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// Nobody can renew a lease, so that after the TTL the entries are gone and registrations report
    /// [`Lost`](Status::Lost).
    pub fn interrupt(&self) {
        self.interrupt_with(Error::new(ErrorKind::Unavailable, "the registry is interrupted"));
    }

    /// Makes the registry answer everything with an error, such as a refusal.
    pub fn interrupt_with(&self, error: Error) {
        let mut state = self.store.lock();
        state.end_watches(&error, |_| true);
        state.outage = Some(error);
        state.stop_renewing(|_| true);
        drop(state);
        keep(&self.store);
    }

    /// Makes the registry reachable again: watches resume, registrations heal.
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

    /// Ends the lease of an instance, as if its process had been frozen for too long. Its registration heals.
    ///
    /// Returns whether there was such an entry.
    pub fn expire(&self, service: &ServiceName, id: &str) -> bool {
        self.lose(service, id, "the lease ended")
    }

    /// Removes an entry by hand, as an operator might. Its registration heals.
    ///
    /// Returns whether there was such an entry.
    pub fn remove(&self, service: &ServiceName, id: &str) -> bool {
        self.lose(service, id, "somebody removed the entry")
    }

    /// Sets the registry back to empty and to revision 0: watches see a reset, registrations heal.
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

    /// Puts an instance by hand, which nobody renews and no lease ends. A registration whose entry
    /// this overwrites heals, as with etcd.
    pub fn put(&self, service: &ServiceName, instance: Instance) {
        self.store.lock().put(service, Arc::new(instance), None);
        keep(&self.store);
    }

    /// Puts an entry that cannot be read. The entry of an instance has the key `<service>/<id>`;
    /// keys of deeper paths are no service's entries. A registration whose entry this overwrites
    /// heals, as with etcd.
    pub fn put_unreadable(&self, key: &str) {
        self.store.lock().write(key.to_owned(), None, None);
        keep(&self.store);
    }

    /// Holds back what watches would be told, while lists are answered from the newest state.
    pub fn pause_watches(&self) {
        self.store.lock().hold(true);
    }

    /// Lets watches be told what was held back, in its order.
    pub fn resume_watches(&self) {
        self.store.lock().hold(false);
    }

    /// Makes the upstream watches of a service panic.
    pub fn panic_watches(&self, service: &ServiceName) {
        self.store.lock().publish(service, &Event::Panic);
    }

    /// Ends this handle and its clones as if their process had been killed.
    ///
    /// Nothing is deregistered: the entries go with their leases, a TTL from now. Registrations report
    /// [`Lost`](Status::Lost), and every further call fails with [`Closed`](ErrorKind::Closed).
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
