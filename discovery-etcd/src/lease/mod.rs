//! The one lease of a backend handle: granted with the first registration, renewed by one task on one stream, revoked with the
//! last.

mod clock;
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
pub(crate) use keeper::LeaseKeeper;

/// What those under the lease see of it.
#[derive(Debug)]
pub(crate) struct Lease {
    state: watch::Sender<LeaseState>,
    inner: Mutex<LeaseInner>,
    /// Wakes the task when somebody comes or the last one goes, when the lease is found gone, and at the end.
    wake: Notify,
}

/// How the lease stands.
#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// etcd keeps it, as far as can be known.
    RegistrationBackend { id: i64 },
    /// Nobody needs one.
    Idle,
    /// There is none, and why; another is being granted.
    Lost { error: Error },
}

#[derive(Debug, Default)]
struct LeaseInner {
    users: usize,
    /// The last lease ids of this handle, the newest last: entries under them are its own.
    ids: VecDeque<i64>,
    clock: Option<LeaseClock>,
    /// A lease that was found gone by somebody's write.
    gone: Option<i64>,
    /// The handle is gone; the task ends with the last tenant.
    closed: bool,
    /// The task has ended, and no lease is left that it could end.
    over: bool,
}

/// A registration's claim on the lease; the lease is kept while there is one.
#[derive(Debug)]
pub(crate) struct LeaseUser(Arc<Lease>);

impl Lease {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(LeaseState::Idle), inner: Mutex::default(), wake: Notify::new() })
    }

    /// Moves in. The state read afterwards is one that will be kept.
    pub(crate) fn enter(self: &Arc<Self>) -> LeaseUser {
        self.inner().users += 1;
        self.wake.notify_one();
        LeaseUser(Arc::clone(self))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Whether an entry under this lease was written by this handle.
    pub(crate) fn is_own(&self, id: i64) -> bool {
        self.inner().ids.contains(&id)
    }

    /// Tells that etcd does not know this lease any more. Of a former one that is no news, and may come late.
    pub(crate) fn report_gone(&self, id: i64) {
        let mut inner = self.inner();
        if inner.ids.back() == Some(&id) {
            inner.gone = Some(id);
            self.wake.notify_one();
        }
    }

    /// The time that etcd granted.
    pub(crate) fn granted(&self) -> Option<Duration> {
        self.inner().clock.map(|clock| clock.granted())
    }

    /// In how much time the lease will have ended if it is not renewed, and whether others have it renewed.
    pub(crate) fn remaining(&self) -> (Duration, bool) {
        let inner = self.inner();
        let ends = inner.clock.map(|clock| clock.ends().saturating_duration_since(Instant::now()));
        // etcd counts from when it got the renewal and looks for ended leases twice a second.
        (ends.unwrap_or_default() + Duration::from_secs(1), inner.users > 0)
    }

    /// Ends the task once the last tenant is gone.
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

    /// Marks the lease as idle, unless somebody moved in.
    fn release_if_unused(&self) -> bool {
        let inner = self.inner();
        if inner.users > 0 {
            return false;
        }
        // Under the lock, so that who moves in after this sees it.
        self.state.send_replace(LeaseState::Idle);
        true
    }

    pub(crate) fn new_id(&self) -> i64 {
        // Of the system's randomness, since leases are what tells owners apart.
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

/// How many of its own leases a handle knows; entries under older ones ended long ago.
const REMEMBERED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_report_about_a_former_lease_hides_none_about_the_present_one() {
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
