//! The one lease of a backend handle: granted with the first registration, renewed by one task on one stream, revoked with the
//! last.

mod clock;

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use discovery_core::{Backoff, Error, ErrorKind};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use crate::{
    client::{Failure, Reason, Renewals},
    failover::{Chosen, Cluster},
    pause::Pauses,
};
use clock::{Due, LeaseClock, Link};

/// What those under the lease see of it.
#[derive(Debug)]
pub(crate) struct Lease {
    state: watch::Sender<LeaseState>,
    book: Mutex<Book>,
    /// Wakes the task when somebody comes or the last one goes, when the lease is found gone, and at the end.
    wake: Notify,
}

/// How the lease stands.
#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// etcd keeps it, as far as can be known.
    Held { id: i64 },
    /// Nobody needs one.
    Idle,
    /// There is none, and why; another is being granted.
    Lost { error: Error },
}

#[derive(Debug, Default)]
struct Book {
    tenants: usize,
    /// The last lease ids of this handle, the newest last: entries under them are its own.
    ids: VecDeque<i64>,
    clock: Option<LeaseClock>,
    /// A lease that was found gone by somebody's write.
    gone: Option<i64>,
    /// The handle is gone; the task ends with the last tenant.
    orphaned: bool,
    /// The task has ended, and no lease is left that it could end.
    over: bool,
}

/// A registration's claim on the lease; the lease is kept while there is one.
#[derive(Debug)]
pub(crate) struct Tenancy(Arc<Lease>);

impl Lease {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(LeaseState::Idle), book: Mutex::default(), wake: Notify::new() })
    }

    /// Moves in. The state read afterwards is one that will be kept.
    pub(crate) fn enter(self: &Arc<Self>) -> Tenancy {
        self.book().tenants += 1;
        self.wake.notify_one();
        Tenancy(Arc::clone(self))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.subscribe()
    }

    /// Whether an entry under this lease was written by this handle.
    pub(crate) fn is_own(&self, id: i64) -> bool {
        self.book().ids.contains(&id)
    }

    /// Tells that etcd does not know this lease any more. Of a former one that is no news, and may come late.
    pub(crate) fn report_gone(&self, id: i64) {
        let mut book = self.book();
        if book.ids.back() == Some(&id) {
            book.gone = Some(id);
            self.wake.notify_one();
        }
    }

    /// The time that etcd granted.
    pub(crate) fn granted(&self) -> Option<Duration> {
        self.book().clock.map(|clock| clock.granted())
    }

    /// In how much time the lease will have ended if it is not renewed, and whether others have it renewed.
    pub(crate) fn remaining(&self) -> (Duration, bool) {
        let book = self.book();
        let ends = book.clock.map(|clock| clock.ends().saturating_duration_since(Instant::now()));
        // etcd counts from when it got the renewal and looks for ended leases twice a second.
        (ends.unwrap_or_default() + Duration::from_secs(1), book.tenants > 0)
    }

    /// Ends the task once the last tenant is gone.
    pub(crate) fn orphan(&self) {
        self.book().orphaned = true;
        self.wake.notify_one();
    }

    /// Whether the task has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.book().over
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the lease as idle, unless somebody moved in.
    fn vacate(&self) -> bool {
        let book = self.book();
        if book.tenants > 0 {
            return false;
        }
        // Under the lock, so that who moves in after this sees it.
        self.state.send_replace(LeaseState::Idle);
        true
    }

    pub(crate) fn new_id(&self) -> i64 {
        // Of the system's randomness, since leases are what tells owners apart.
        let id = (RandomState::new().hash_one(Instant::now()) >> 1).max(1).cast_signed();
        let mut book = self.book();
        if book.ids.len() == REMEMBERED {
            book.ids.pop_front();
        }
        book.ids.push_back(id);
        id
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let mut book = self.0.book();
        book.tenants -= 1;
        if book.tenants == 0 {
            self.0.wake.notify_one();
        }
    }
}

/// The task that keeps the lease.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) lease: Arc<Lease>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) ttl: Duration,
    pub(crate) backoff: Backoff,
}

/// Why a lease is kept no longer.
enum Over {
    Lost(Error),
    Vacant,
}

impl Keeper {
    pub(crate) async fn run(self) {
        let mut pauses = Pauses::new(self.backoff);
        while self.wanted().await {
            let Some((id, clock)) = self.grant(&mut pauses).await else { continue };
            let since = Instant::now();
            debug!(lease = format_args!("{id:x}"), granted = ?clock.granted(), "lease granted");
            if clock.granted() != self.ttl {
                debug!(asked = ?self.ttl, granted = ?clock.granted(), "etcd granted another ttl than asked for");
            }
            self.lease.state.send_replace(LeaseState::Held { id });
            let over = self.keep(id, clock).await;
            // One lease after the other that etcd does not keep is no reason to ask ever on.
            if since.elapsed() >= clock.granted() {
                pauses.reset();
            }
            match over {
                Over::Vacant => self.revoke(id).await,
                Over::Lost(error) => {
                    let registrations = self.lease.book().tenants;
                    debug!(registrations, error = %error.report(), "lease lost");
                    self.lease.state.send_replace(LeaseState::Lost { error });
                }
            }
        }
        self.lease.book().over = true;
        self.lease.state.send_replace(LeaseState::Idle);
    }

    /// Waits until a lease is wanted; `false` at the end.
    async fn wanted(&self) -> bool {
        loop {
            let (tenants, orphaned) = {
                let book = self.lease.book();
                (book.tenants, book.orphaned)
            };
            match (tenants, orphaned) {
                (1.., _) => return true,
                (0, true) => return false,
                (0, false) => self.lease.wake.notified().await,
            }
        }
    }

    /// Grants a lease, however long that takes; `None` once nobody wants it any more.
    ///
    /// The attempts of one lease share an id, so that one whose answer was lost is not left behind.
    async fn grant(&self, pauses: &mut Pauses) -> Option<(i64, LeaseClock)> {
        let (id, first) = (self.lease.new_id(), Instant::now());
        // After an outage everybody comes at once, unless they wait first.
        if matches!(*self.lease.state.borrow(), LeaseState::Lost { .. }) {
            self.pause(pauses.first()).await;
        }
        loop {
            if self.lease.vacate() {
                self.revoke(id).await;
                return None;
            }
            let sent = Instant::now();
            let granted = self.cluster.run(|member| async move { member.grant(id, self.ttl).await }).await;
            let (granted, sent) = match granted {
                // An attempt before this one was done; its time counts from then.
                Err(failure) if failure.reason == Reason::LeaseExists => {
                    (self.cluster.run(|member| async move { member.granted(id).await }).await, first)
                }
                other => (other, sent),
            };
            match granted {
                Ok(granted) if !granted.is_zero() => {
                    let clock = LeaseClock::new(granted, sent);
                    self.lease.book().clock = Some(clock);
                    return Some((id, clock));
                }
                // It came and ended before its answer did.
                Ok(_) => self.pause(pauses.first()).await,
                Err(failure) => {
                    let wait = pauses.after(&failure);
                    self.lease.state.send_replace(LeaseState::Lost { error: failure.error });
                    self.pause(wait).await;
                }
            }
        }
    }

    /// Renews the lease until it is lost or nobody needs it.
    async fn keep(&self, id: i64, mut clock: LeaseClock) -> Over {
        let mut delays = Backoff::new(Duration::from_millis(50), Duration::from_millis(500))
            .expect("50 to 500 ms lies within the bounds")
            .delays();
        let mut stream: Option<(Renewals, Chosen)> = None;
        let mut link = Link::Closed;
        let mut last = Error::new(ErrorKind::DeadlineExceeded, "etcd did not renew the lease in time");
        loop {
            if self.lease.vacate() {
                return Over::Vacant;
            }
            if self.lease.book().gone == Some(id) {
                return Over::Lost(gone());
            }
            let failure = match clock.due(link, Instant::now()) {
                Due::Lost => return Over::Lost(last),
                Due::Switch => {
                    if let Some((renewals, chosen)) = stream.take() {
                        renewals.silent();
                        self.cluster.failed(&chosen);
                    }
                    link = Link::Closed;
                    continue;
                }
                Due::Open(until) => {
                    let (chosen, sent) = (self.cluster.choose(&[]), Instant::now());
                    // The member is told its time: who ended this from outside would be given a dead connection again.
                    match chosen.member.renew(id, until.saturating_duration_since(sent)).await {
                        Ok(renewals) => {
                            let granted = clock.granted();
                            self.confirm(&mut clock, granted, sent);
                            self.cluster.succeeded(&chosen);
                            (stream, link) = (Some((renewals, chosen)), Link::Quiet);
                            continue;
                        }
                        Err(failure) if failure.reason == Reason::LeaseGone => return Over::Lost(gone()),
                        Err(failure) => {
                            self.blame(&chosen, &failure);
                            failure
                        }
                    }
                }
                Due::Renew => {
                    let Some((renewals, _)) = &mut stream else { unreachable!("a link is quiet only with a stream") };
                    let sent = Instant::now();
                    match renewals.ask().await {
                        Ok(()) => {
                            link = Link::Asked(sent);
                            continue;
                        }
                        Err(failure) => failure,
                    }
                }
                Due::Wait(until) => {
                    let Some((renewals, chosen)) = &mut stream else { unreachable!("without a stream one is opened") };
                    let failure = tokio::select! {
                        answer = renewals.answer() => match (answer, link) {
                            (Ok(granted), _) if granted.is_zero() => return Over::Lost(gone()),
                            (Ok(granted), Link::Asked(sent)) => {
                                self.confirm(&mut clock, granted, sent);
                                delays.reset();
                                link = Link::Quiet;
                                continue;
                            }
                            // It might be taken for the answer to the next question.
                            (Ok(_), _) => renewals.strange("a renewal was answered that was not asked for"),
                            (Err(failure), _) => failure,
                        },
                        () = sleep_until(until) => continue,
                        () = self.lease.wake.notified() => continue,
                    };
                    self.blame(chosen, &failure);
                    failure
                }
            };
            // Also after a stream that opened and then broke, or one that breaks at once would be opened ever on.
            (stream, link) = (None, Link::Closed);
            last = failure.error;
            let wait = (Instant::now() + delays.next_delay()).min(clock.ends());
            self.pause(wait.saturating_duration_since(Instant::now())).await;
        }
    }

    /// What the cluster refuses, such as for a permission that is missing, any other member would refuse too.
    fn blame(&self, chosen: &Chosen, failure: &Failure) {
        if failure.is_member() {
            self.cluster.failed(chosen);
        }
    }

    fn confirm(&self, clock: &mut LeaseClock, granted: Duration, sent: Instant) {
        clock.confirm(granted, sent);
        self.lease.book().clock = Some(*clock);
    }

    /// Ends a lease that nobody needs. Where that fails, it ends by itself.
    async fn revoke(&self, id: i64) {
        if let Err(failure) = self.cluster.run(|member| async move { member.revoke(id).await }).await {
            debug!(error = %failure.error.report(), "lease left to end by itself");
        }
        self.lease.book().clock = None;
    }

    /// Waits, but not longer than anybody waits for the lease.
    async fn pause(&self, wait: Duration) {
        let vacant = async {
            loop {
                self.lease.wake.notified().await;
                if self.lease.book().tenants == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = vacant => {}
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "etcd ended the lease")
}

/// How many of its own leases a handle knows; entries under older ones ended long ago.
const REMEMBERED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_report_about_a_former_lease_hides_none_about_the_present_one() {
        let lease = Lease::new();
        let (former, present) = (lease.new_id(), lease.new_id());
        lease.report_gone(former);
        assert_eq!(lease.book().gone, None);
        lease.report_gone(present);
        lease.report_gone(former);
        assert_eq!(lease.book().gone, Some(present));
    }
}
