//! The task that grants, renews and revokes the lease of a handle.

use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Error, ErrorKind};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::{
    Lease, LeaseState,
    clock::{Due, LeaseClock, Link},
};
use crate::{
    client::{Failure, Member, Reason, Renewals},
    cluster::{Asking, Cluster},
    retry_delays::RetryDelays,
};

/// The task that keeps the lease.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    pub(crate) lease: Arc<Lease>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) ttl: Duration,
    pub(crate) backoff: Backoff,
}

/// The renewal stream on one member, and its state.
struct Stream {
    renewals: Renewals,
    member: Arc<Member>,
    link: Link,
}

/// Why a lease is no longer kept.
enum Over {
    Lost(Error),
    Vacant,
}

impl LeaseKeeper {
    pub(crate) async fn run(self) {
        let mut delays = RetryDelays::new(self.backoff);
        while self.wanted().await {
            let Some((id, clock)) = self.grant(&mut delays).await else { continue };
            let since = Instant::now();
            debug!(lease = format_args!("{id:x}"), granted = ?clock.granted(), "lease granted");
            if clock.granted() != self.ttl {
                debug!(asked = ?self.ttl, granted = ?clock.granted(), "etcd granted a different TTL than requested");
            }
            self.lease.state.send_replace(LeaseState::Held { id });
            let over = self.keep(id, clock).await;
            // Leases that etcd loses at once must not be granted over and over without a backoff,
            // so only one that lasted resets it.
            if since.elapsed() >= clock.granted() {
                delays.reset();
            }
            match over {
                Over::Vacant => {
                    if self.revoke(id).await {
                        self.lease.inner().clock = None;
                    }
                }
                Over::Lost(error) => {
                    let registrations = self.lease.inner().users;
                    debug!(registrations, error = %error.report(), "lease lost");
                    self.lease.state.send_replace(LeaseState::Lost { error });
                }
            }
        }
        self.lease.inner().over = true;
        self.lease.state.send_replace(LeaseState::Idle);
    }

    /// Waits until a lease is needed; `false` once the handle is closed and has no users.
    async fn wanted(&self) -> bool {
        loop {
            let (users, closed) = {
                let inner = self.lease.inner();
                (inner.users, inner.closed)
            };
            match (users, closed) {
                (1.., _) => return true,
                (0, true) => return false,
                (0, false) => self.lease.wake.notified().await,
            }
        }
    }

    /// Grants a lease, however long that takes; `None` once nobody needs it any more.
    ///
    /// All attempts use the same id, so that an attempt whose answer was lost leaves no second
    /// lease.
    async fn grant(&self, delays: &mut RetryDelays) -> Option<(i64, LeaseClock)> {
        let id = self.lease.new_id();
        let first = Instant::now();
        // After an outage all handles would ask at once, so each waits for a random time first.
        if matches!(*self.lease.state.borrow(), LeaseState::Lost { .. }) {
            self.pause(delays.first()).await;
        }
        loop {
            if self.lease.release_if_unused() {
                self.revoke(id).await;
                return None;
            }
            let sent = Instant::now();
            let granted = self.cluster.run(|member| async move { member.grant(id, self.ttl).await }).await;
            let (granted, sent) = match granted {
                // An earlier attempt was applied. Its time counts at least from the first one.
                Err(failure) if failure.reason == Reason::LeaseExists => {
                    (self.cluster.run(|member| async move { member.granted(id).await }).await, first)
                }
                other => (other, sent),
            };
            match granted {
                Ok(granted) if !granted.is_zero() => {
                    let clock = LeaseClock::new(granted, sent);
                    self.lease.inner().clock = Some(clock);
                    return Some((id, clock));
                }
                // It was granted and expired before its answer arrived.
                Ok(_) => self.pause(delays.first()).await,
                Err(failure) => {
                    let wait = delays.after(&failure);
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
        let mut stream: Option<Stream> = None;
        let mut last = Error::new(ErrorKind::DeadlineExceeded, "etcd did not renew the lease in time");
        loop {
            if self.lease.release_if_unused() {
                return Over::Vacant;
            }
            if self.lease.inner().gone == Some(id) {
                return Over::Lost(gone());
            }
            let link = stream.as_ref().map_or(Link::Closed, |stream| stream.link);
            let outcome = match (clock.due(link, Instant::now()), &mut stream) {
                (Due::Lost, _) => return Over::Lost(last),
                (Due::Open(until), _) => match self.open(id, self.cluster.choose(), until, &mut clock).await {
                    Ok(opened) => {
                        stream = Some(opened);
                        Ok(())
                    }
                    Err(failure) => Err(failure),
                },
                (Due::Renew, Some(current)) => match self.moved(id, current, &mut clock).await {
                    Some(moved) => {
                        stream = Some(moved);
                        Ok(())
                    }
                    None => {
                        self.asks(&mut clock, Instant::now());
                        current.ask().await
                    }
                },
                (Due::Switch, Some(_)) => Err(self.switch(&mut stream)),
                (Due::Wait(until), Some(current)) => tokio::select! {
                    answer = current.answer() => match answer {
                        Ok((granted, sent)) => {
                            if granted.is_zero() {
                                return Over::Lost(gone());
                            }
                            self.confirm(&mut clock, granted, sent);
                            delays.reset();
                            Ok(())
                        }
                        Err(failure) => Err(self.cluster.blame(&current.member, failure)),
                    },
                    () = sleep_until(until) => Ok(()),
                    () = self.lease.wake.notified() => Ok(()),
                },
                (_, None) => unreachable!("without a stream, one is opened"),
            };
            let Err(failure) = outcome else { continue };
            if failure.reason == Reason::LeaseGone {
                return Over::Lost(gone());
            }
            // Wait after a stream that opened and then broke, too. Otherwise a stream that always
            // breaks at once would be opened again without any pause.
            stream = None;
            last = failure.error;
            let wait = (Instant::now() + delays.next_delay()).min(clock.ends());
            self.pause(wait.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Opens a stream on a member, which also renews the lease.
    async fn open(
        &self,
        id: i64,
        asking: Asking<'_>,
        until: Instant,
        clock: &mut LeaseClock,
    ) -> Result<Stream, Failure> {
        let sent = Instant::now();
        self.asks(clock, sent);
        // The limit is passed on: if the call were cancelled from outside, it could not report that
        // its connection is dead.
        let renewals = asking.member().renew(id, until.saturating_duration_since(sent)).await;
        let member = asking.ended(&renewals);
        let renewals = renewals.map_err(|failure| self.cluster.of_all(&[Arc::clone(&member)], failure))?;
        let granted = clock.granted();
        self.confirm(clock, granted, sent);
        Ok(Stream { renewals, member, link: Link::Quiet })
    }

    /// Opens a stream on another member if the handle moves there. If that fails, the current
    /// stream is kept.
    async fn moved(&self, id: i64, current: &Stream, clock: &mut LeaseClock) -> Option<Stream> {
        let asking = self.cluster.another(&current.member)?;
        let limit = Instant::now() + clock.granted() / 6;
        let moved = self.open(id, asking, limit, clock).await;
        moved.inspect_err(|failure| debug!(error = %failure.error.report(), "renewals not moved")).ok()
    }

    /// Drops a stream that does not answer, and reports that to its member.
    fn switch(&self, stream: &mut Option<Stream>) -> Failure {
        let error = Error::new(ErrorKind::DeadlineExceeded, "etcd did not answer a renewal").with_operation("renew");
        let failure = Failure::new(Reason::TimedOut, error);
        let Some(silent) = stream.take() else { return failure };
        silent.renewals.silent();
        self.cluster.blame(&silent.member, failure)
    }

    fn confirm(&self, clock: &mut LeaseClock, granted: Duration, sent: Instant) {
        clock.confirm(granted, sent);
        self.lease.inner().clock = Some(*clock);
    }

    fn asks(&self, clock: &mut LeaseClock, sent: Instant) {
        clock.ask(sent);
        self.lease.inner().clock = Some(*clock);
    }

    /// Revokes a lease that nobody needs, and returns whether etcd confirmed it. If not, the lease
    /// expires by itself.
    async fn revoke(&self, id: i64) -> bool {
        let revoked = self.cluster.run(|member| async move { member.revoke(id).await }).await;
        revoked
            .inspect_err(|failure| debug!(error = %failure.error.report(), "lease not revoked, it will expire"))
            .is_ok()
    }

    /// Waits, or returns early once the lease has no user.
    async fn pause(&self, wait: Duration) {
        let vacant = async {
            loop {
                self.lease.wake.notified().await;
                if self.lease.inner().users == 0 {
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

impl Stream {
    /// Sends a renewal.
    async fn ask(&mut self) -> Result<(), Failure> {
        let sent = Instant::now();
        self.renewals.ask().await?;
        self.link = Link::Asked(sent);
        Ok(())
    }

    /// Returns the next answer and when its renewal was sent. Cancel safe.
    async fn answer(&mut self) -> Result<(Duration, Instant), Failure> {
        let granted = self.renewals.answer().await?;
        match std::mem::replace(&mut self.link, Link::Quiet) {
            Link::Asked(sent) => Ok((granted, sent)),
            // etcd may report unasked that the lease is gone.
            Link::Closed | Link::Quiet if granted.is_zero() => Ok((granted, Instant::now())),
            // Otherwise it could be taken for the answer to the next renewal.
            Link::Closed | Link::Quiet => Err(self.renewals.strange("it answered a renewal that was not requested")),
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "etcd ended the lease")
}
