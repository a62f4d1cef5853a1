//! When a password is sent, and what follows where nobody asks for one.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use discovery_core::{Address, Backoff, Delays, Error};
use etcd_client::Client;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{Failure, Reason};
use crate::config::Credentials;

/// Gets tokens for all members of a handle.
///
/// etcd's way to check a password is slow by design, so a handle asks for it at most once a second,
/// over all members together, and after refusals at growing intervals up to the longest backoff.
pub(super) struct Authenticator {
    credentials: Option<Credentials>,
    /// Authentication was off when last asked. Calls go without a token then, until one is refused
    /// for that.
    is_disabled: AtomicBool,
    pace: Mutex<Pace>,
}

/// When the next attempt may be made.
struct Pace {
    next: Option<Instant>,
    delays: Delays,
}

impl Authenticator {
    /// Reads the password once, so that a file that cannot be read is known at once.
    pub(super) fn new(credentials: Option<Credentials>, backoff: Backoff) -> Result<Self, Error> {
        if let Some(credentials) = &credentials {
            credentials.read_password()?;
        }
        let pace = Mutex::new(Pace { next: None, delays: backoff.delays() });
        Ok(Self { credentials, is_disabled: AtomicBool::new(false), pace })
    }

    /// Whether connections get a token before they are used.
    pub(super) fn is_wanted(&self) -> bool {
        self.credentials.is_some() && !self.is_disabled.load(Ordering::Acquire)
    }

    /// Takes back that authentication is off, since a call was refused for the lack of a token.
    pub(super) fn is_required(&self) {
        if self.credentials.is_some() && self.is_disabled.swap(false, Ordering::AcqRel) {
            info!("etcd requires authentication now, the credentials are used");
        }
    }

    /// Whether an attempt may be made now.
    pub(super) fn is_due(&self) -> bool {
        self.pace().next.is_none_or(|next| next <= Instant::now())
    }

    /// Waits until an attempt may be made, and takes the turn. It is over with its beginning, so
    /// that a member that does not answer keeps no other one waiting. Cancel safe.
    async fn turn(&self) {
        loop {
            let next = {
                let mut pace = self.pace();
                let now = Instant::now();
                match pace.next.filter(|next| *next > now) {
                    Some(next) => next,
                    None => {
                        pace.next = Some(now + SPACING);
                        return;
                    }
                }
            };
            sleep_until(next).await;
        }
    }

    /// Records how an attempt ended.
    fn ended(&self, well: bool) {
        let mut pace = self.pace();
        if well {
            pace.delays.reset();
        } else {
            let next = Instant::now() + pace.delays.next_delay();
            pace.next = pace.next.max(Some(next));
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a token once it is time for that, and sets it on the client and its clones. Returns
    /// whether they send one.
    pub(super) async fn authenticate(
        &self,
        client: &mut Client,
        member: &Address,
        limit: Duration,
    ) -> Result<bool, Failure> {
        self.turn().await;
        // Another member may have told meanwhile that authentication is off.
        let Some(credentials) = self.credentials.as_ref().filter(|_| self.is_wanted()) else {
            forget(client).await;
            return Ok(false);
        };
        let password = credentials.read_password().map_err(|error| Failure::new(Reason::Credentials, error))?;
        let user = credentials.user().to_owned();
        let asked = timeout(limit, client.update_user(Some((user, password.reveal().to_owned())))).await;
        let result = match asked {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => Err(Failure::from_client(error, "authenticate", member)),
            Err(_) => Err(Failure::silent("authenticate", member, limit)),
        };
        let result = match result {
            Err(failure) if failure.reason == Reason::AuthDisabled => {
                if !self.is_disabled.swap(true, Ordering::AcqRel) {
                    warn!(%member, "authentication is not enabled in etcd, the credentials are not used");
                }
                // etcd refuses a token that it does not know, also where it asks for none.
                forget(client).await;
                Ok(false)
            }
            // A member that answers so to a password accepts none.
            Err(failure) if failure.reason == Reason::Token => Err(failure.with_reason(Reason::Credentials)),
            other => other,
        };
        self.ended(result.is_ok());
        result
    }
}

/// Takes the token from a client and its clones.
pub(super) async fn forget(client: &mut Client) {
    // Without a user nothing is asked, so nothing fails.
    let _ = client.update_user(None).await;
}

/// The least time from one attempt to the next.
const SPACING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator() -> Authenticator {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5)).unwrap();
        Authenticator::new(None, backoff).unwrap()
    }

    /// How many attempts come in a minute in which everybody asks, and each ends so.
    async fn attempts(well: bool) -> usize {
        let (authenticator, start) = (authenticator(), Instant::now());
        let mut attempts = 0;
        while start.elapsed() < Duration::from_secs(60) {
            authenticator.turn().await;
            assert!(!authenticator.is_due());
            authenticator.ended(well);
            attempts += 1;
        }
        attempts
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_is_sent_once_a_second_and_less_often_after_refusals() {
        assert!((59..=61).contains(&attempts(true).await));
        let refused = attempts(false).await;
        assert!((14..45).contains(&refused), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_keeps_no_other_one_waiting() {
        let authenticator = authenticator();
        authenticator.turn().await;
        let start = Instant::now();
        authenticator.turn().await;
        assert_eq!(start.elapsed(), SPACING);
    }
}
