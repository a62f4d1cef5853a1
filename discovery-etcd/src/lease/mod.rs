//! A lease of a backend handle, for all its registrations or for one. It is granted for the first
//! registration, renewed by one task on one stream, and revoked after the last one has ended.
//!
//! Registrations share a [`Lease`]; [`keeper`] is the task, and [`clock`] decides for it. Its
//! [`end`] is what a caller learns whose entry could not be removed.

mod clock;
mod end;
mod keeper;

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use discovery_core::Error;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use clock::LeaseClock;
use end::LeaseEnd;
pub(crate) use keeper::LeaseKeeper;

/// The lease as registrations see it.
#[derive(Debug)]
pub(crate) struct Lease {
    state: watch::Sender<LeaseState>,
    inner: Mutex<LeaseInner>,
    /// Wakes the task when a user arrives, when the last one leaves, when the lease is reported
    /// gone, and when the handle closes.
    wake: Notify,
}

/// The state of the lease.
#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// It is granted, as far as is known.
    Held { id: i64 },
    /// It is not needed.
    Idle,
    /// It was lost or could not be granted, for this reason; another one is being granted.
    Lost { error: Error },
}

#[derive(Debug, Default)]
struct LeaseInner {
    users: usize,
    /// The latest lease ids of this handle, the newest last. Entries under them are its own.
    ids: VecDeque<i64>,
    /// That of the current lease or, while there is none, of the one before, unless etcd has
    /// confirmed its end.
    clock: Option<LeaseClock>,
    /// A lease that etcd did not know when an entry was written under it.
    gone: Option<i64>,
    /// The handle is closed; the task ends with the last user.
    closed: bool,
    /// The task has ended, and with it every lease that it could revoke.
    over: bool,
}

/// A user of the lease, which is kept while there is one.
#[derive(Debug)]
pub(crate) struct LeaseUser(Arc<Lease>);

impl Lease {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(LeaseState::Idle), inner: Mutex::default(), wake: Notify::new() })
    }

    /// Adds a user. A lease that is read from the state afterwards is kept while the user lives.
    pub(crate) fn enter(self: &Arc<Self>) -> LeaseUser {
        self.inner().users += 1;
        self.wake.notify_one();
        LeaseUser(Arc::clone(self))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Whether this is a lease of this handle, so that entries under it are its own.
    pub(crate) fn is_own(&self, id: i64) -> bool {
        self.inner().ids.contains(&id)
    }

    /// Reports that etcd does not know this lease any more. A report about a former lease may
    /// arrive late and is ignored.
    pub(crate) fn report_gone(&self, id: i64) {
        let mut inner = self.inner();
        if inner.ids.back() == Some(&id) {
            inner.gone = Some(id);
            self.wake.notify_one();
        }
    }

    /// The TTL that etcd granted.
    pub(crate) fn granted(&self) -> Option<Duration> {
        self.inner().clock.map(|clock| clock.granted())
    }

    /// Returns when etcd ends the entries of a user that has left.
    pub(crate) fn end(&self) -> LeaseEnd {
        let inner = self.inner();
        match inner.clock {
            Some(_) if inner.users > 0 && matches!(*self.state.borrow(), LeaseState::Held { .. }) => LeaseEnd::Renewed,
            Some(clock) => LeaseEnd::of(&clock, Instant::now()),
            None => LeaseEnd::NoLease,
        }
    }

    /// Ends the task once the last user has left.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.wake.notify_one();
    }

    /// Whether the task has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.inner().over
    }

    fn inner(&self) -> MutexGuard<'_, LeaseInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the lease as idle if it has no user.
    fn release_if_unused(&self) -> bool {
        let inner = self.inner();
        if inner.users > 0 {
            return false;
        }
        // Set under the lock, so that a user who enters afterwards does not read the former lease.
        self.state.send_replace(LeaseState::Idle);
        true
    }

    pub(crate) fn new_id(&self) -> i64 {
        // Taken from the system's randomness, because owners are distinguished by their leases.
        let id = (RandomState::new().hash_one(Instant::now()) >> 1).max(1).cast_signed();
        let mut inner = self.inner();
        if inner.ids.len() == REMEMBERED {
            inner.ids.pop_front();
        }
        inner.ids.push_back(id);
        id
    }
}

impl Drop for LeaseUser {
    fn drop(&mut self) {
        let mut inner = self.0.inner();
        inner.users -= 1;
        if inner.users == 0 {
            self.0.wake.notify_one();
        }
    }
}

/// How many of its own leases a handle remembers. Entries under older ones have expired long ago.
const REMEMBERED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_report_about_a_former_lease_hides_no_report_about_the_current_one() {
        let lease = Lease::new();
        let former = lease.new_id();
        let present = lease.new_id();
        lease.report_gone(former);
        assert_eq!(lease.inner().gone, None);
        lease.report_gone(present);
        lease.report_gone(former);
        assert_eq!(lease.inner().gone, Some(present));
    }
}
