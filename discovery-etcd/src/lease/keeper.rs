use std::{sync::Arc, time::Duration};

use discovery_core::{Backoff, Error, ErrorKind};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::{
    Lease, LeaseState,
    clock::{Due, LeaseClock, Link},
};
use crate::{
    client::{Failure, Reason, Renewals},
    cluster::{Chosen, Cluster},
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

/// Why a lease is kept no longer.
enum Over {
    Lost(Error),
    Vacant,
}

impl LeaseKeeper {
    pub(crate) async fn run(self) {
        let mut pauses = RetryDelays::new(self.backoff);
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
                    let registrations = self.lease.book().users;
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
            let (users, closed) = {
                let book = self.lease.book();
                (book.users, book.closed)
            };
            match (users, closed) {
                (1.., _) => return true,
                (0, true) => return false,
                (0, false) => self.lease.wake.notified().await,
            }
        }
    }

    /// Grants a lease, however long that takes; `None` once nobody wants it any more.
    ///
    /// The attempts of one lease share an id, so that one whose answer was lost is not left behind.
    async fn grant(&self, pauses: &mut RetryDelays) -> Option<(i64, LeaseClock)> {
        let (id, first) = (self.lease.new_id(), Instant::now());
        // After an outage everybody comes at once, unless they wait first.
        if matches!(*self.lease.state.borrow(), LeaseState::Lost { .. }) {
            self.pause(pauses.first()).await;
        }
        loop {
            if self.lease.release_if_unused() {
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
            if self.lease.release_if_unused() {
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
                if self.lease.book().users == 0 {
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
