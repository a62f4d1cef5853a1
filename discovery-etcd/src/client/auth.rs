//! When a password is sent, and what follows where nobody asks for one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use discovery_core::{Address, Backoff, Delays, Error};
use etcd_client::Client;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{Failure, Reason};
use crate::config::Credentials;

/// Gets tokens for all members of a handle.
///
/// etcd's way to check a password is slow by design, so a handle asks for it at most once a second, over all members
/// together, and after refusals at growing intervals up to the longest backoff.
pub(super) struct Authenticator {
    credentials: Option<Credentials>,
    /// Authentication was off when last asked. Calls go without a token then, until one is refused for that.
    is_disabled: AtomicBool,
    /// Held during an attempt.
    pace: Mutex<Pace>,
}

/// When the next attempt may be made.
struct Pace {
    next: Option<Instant>,
    delays: Delays,
}

/// The right to one attempt.
pub(super) struct Turn<'a>(MutexGuard<'a, Pace>);

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
        self.pace.try_lock().is_ok_and(|pace| pace.next.is_none_or(|next| next <= Instant::now()))
    }

    /// Waits until an attempt may be made. Cancel safe.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let pace = self.pace.lock().await;
        if let Some(next) = pace.next {
            sleep_until(next).await;
        }
        Turn(pace)
    }

    /// Gets a token, and sets it on the client and its clones. Returns whether they send one.
    pub(super) async fn authenticate(
        &self,
        mut turn: Turn<'_>,
        client: &mut Client,
        member: &Address,
        limit: Duration,
    ) -> Result<bool, Failure> {
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
        turn.ended(result.is_ok());
        result
    }
}

impl Turn<'_> {
    fn ended(&mut self, well: bool) {
        let pace = &mut *self.0;
        if well {
            pace.delays.reset();
        }
        let wait = if well { SPACING } else { pace.delays.next_delay().max(SPACING) };
        pace.next = Some(Instant::now() + wait);
    }
}

/// Takes the token from a client and its clones.
pub(super) async fn forget(client: &mut Client) {
    // Without a user nothing is asked, so nothing fails.
    let _ = client.update_user(None).await;
}

/// The least time from one attempt to the next.
const SPACING: Duration = Duration::from_secs(1);
