//! When a password is sent, and what happens if authentication is off.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use discovery_core::{Address, Delays, Error};
use etcd_client::Client;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{Failure, Reason};
use crate::config::{Credentials, Settings};

/// Gets tokens for all members of a handle.
///
/// etcd checks passwords slowly by design. So a handle sends its password at most once a second
/// over all members together, and after refusals at growing intervals up to the longest backoff.
pub(super) struct Authenticator {
    credentials: Option<Credentials>,
    /// Authentication was off at the last attempt. Calls go without a token until one is refused
    /// for the lack of it.
    is_disabled: AtomicBool,
    /// A warning that it is off was logged, and no token was obtained since.
    is_reported: AtomicBool,
    /// An attempt was made, and no call was accepted since.
    is_unproven: AtomicBool,
    /// How long calls wait for another token before they fail with the error of the last one.
    patience: Duration,
    pace: Mutex<Pace>,
}

/// When the next attempt may be made.
struct Pace {
    /// At a member without an attempt since a call was last accepted.
    next: Option<Instant>,
    /// At a member with such an attempt.
    again: Option<Instant>,
    delays: Delays,
    /// The failures of such members: calls fail with them until the member may be asked again.
    asked: HashMap<Address, Failure>,
}

impl Authenticator {
    /// Reads the password once, so that an unreadable file is reported at once.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        if let Some(credentials) = &settings.credentials {
            credentials.read_password()?;
        }
        Ok(Self {
            credentials: settings.credentials.clone(),
            is_disabled: AtomicBool::new(false),
            is_reported: AtomicBool::new(false),
            is_unproven: AtomicBool::new(false),
            // Below the request timeout: a call that waits until its timeout would count as a
            // silent member.
            patience: (settings.request_timeout / 2).min(SPACING),
            pace: Mutex::new(Pace {
                next: None,
                again: None,
                delays: settings.backoff.delays(),
                asked: HashMap::new(),
            }),
        })
    }

    /// Whether connections get a token before they are used.
    pub(super) fn is_wanted(&self) -> bool {
        self.credentials.is_some() && !self.is_disabled.load(Ordering::Acquire)
    }

    /// Records that authentication is on: a call was refused for the lack of a token.
    pub(super) fn is_required(&self) {
        self.is_disabled.store(false, Ordering::Release);
    }

    /// Records that a call was authorized, with a token or without one, so attempts succeed.
    pub(super) fn accepted(&self) {
        if self.is_unproven.load(Ordering::Relaxed) && self.is_unproven.swap(false, Ordering::AcqRel) {
            let mut pace = self.pace();
            pace.again = None;
            pace.delays.reset();
            pace.asked.clear();
        }
    }

    /// Records that a call failed, perhaps because of the last token of the member.
    pub(super) fn failed(&self, member: &Address, failure: &Failure) {
        if failure.reason == Reason::Token
            && let Some(asked) = self.pace().asked.get_mut(member).filter(|asked| asked.reason == Reason::Token)
        {
            *asked = failure.clone().withheld();
        }
    }

    /// Waits until an attempt at a member may start, and starts it. If an earlier attempt there
    /// failed, or if the wait would be longer than `patience`, fails instead of waiting.
    ///
    /// Only the starts of attempts are spaced, so a member that does not answer blocks no other
    /// one. Cancel safe.
    async fn turn(&self, member: &Address) -> Result<(), Failure> {
        loop {
            let next = {
                let mut pace = self.pace();
                let now = Instant::now();
                let asked = pace.asked.get(member);
                let next = if asked.is_some() { pace.next.max(pace.again) } else { pace.next };
                match (next.filter(|next| *next > now), asked) {
                    // Wait in this case: if users and roles change all the time, a token may be
                    // outdated before it is used.
                    (Some(next), Some(failure)) if failure.reason != Reason::Token || next > now + self.patience => {
                        return Err(failure.clone());
                    }
                    (Some(next), _) => next,
                    (None, _) => {
                        pace.next = Some(now + SPACING);
                        return Ok(());
                    }
                }
            };
            sleep_until(next).await;
        }
    }

    /// Records how an attempt ended. The next one at this member waits longer until a call is
    /// accepted, because a token may be refused like a password.
    fn ended(&self, member: &Address, failure: Option<Failure>) {
        let mut pace = self.pace();
        let next = Instant::now() + pace.delays.next_delay();
        pace.again = pace.again.max(Some(next));
        let failure = failure.unwrap_or_else(|| Failure::token_in_vain(member));
        pace.asked.insert(member.clone(), failure.withheld());
        self.is_unproven.store(true, Ordering::Release);
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a token once an attempt may start, and sets it on the client and its clones. Returns
    /// whether they send one.
    pub(super) async fn authenticate(
        &self,
        client: &mut Client,
        member: &Address,
        limit: Duration,
    ) -> Result<bool, Failure> {
        self.turn(member).await?;
        // Another member may have reported in the meantime that authentication is off.
        let Some(credentials) = self.credentials.as_ref().filter(|_| self.is_wanted()) else {
            forget(client).await;
            return Ok(false);
        };
        let result = match send(credentials, client, member, limit).await {
            Ok(()) => {
                if self.is_reported.swap(false, Ordering::AcqRel) {
                    info!("etcd requires authentication now, the credentials are used");
                }
                Ok(true)
            }
            Err(failure) if failure.reason == Reason::AuthDisabled => {
                self.is_disabled.store(true, Ordering::Release);
                if !self.is_reported.swap(true, Ordering::AcqRel) {
                    warn!(%member, "authentication is not enabled in etcd, the credentials are not used");
                }
                // etcd refuses an unknown token even if it does not require one.
                forget(client).await;
                Ok(false)
            }
            // A member that gives this answer to a password does not accept it.
            Err(failure) if failure.reason == Reason::Token => Err(failure.with_reason(Reason::Credentials)),
            Err(failure) => Err(failure),
        };
        self.ended(member, result.as_ref().err().cloned());
        result
    }
}

/// Sends the password, and sets the token that it returns.
async fn send(
    credentials: &Credentials,
    client: &mut Client,
    member: &Address,
    limit: Duration,
) -> Result<(), Failure> {
    let password = credentials.read_password().map_err(Failure::no_password)?;
    let user = (credentials.user().to_owned(), password.reveal().to_owned());
    match timeout(limit, client.update_user(Some(user))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::from_client(error, "authenticate", member)),
        Err(_) => Err(Failure::silent("authenticate", member, limit)),
    }
}

/// Removes the token from a client and its clones.
pub(super) async fn forget(client: &mut Client) {
    // Without a user no request is sent, so this cannot fail.
    let _ = client.update_user(None).await;
}

/// The shortest time between two attempts.
const SPACING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use discovery_core::ErrorKind;

    use super::*;
    use crate::config::EtcdConfig;

    fn authenticator() -> Authenticator {
        let config = EtcdConfig::new(["127.0.0.1:2379"]);
        Authenticator::new(&Settings::check(&config).unwrap()).unwrap()
    }

    fn refused() -> Failure {
        Failure::new(Reason::Credentials, Error::new(ErrorKind::Unauthenticated, "refused"))
    }

    fn member(number: u16) -> Address {
        format!("127.0.0.1:{}", 2379 + number).parse().unwrap()
    }

    /// How many attempts are made in a minute in which callers keep asking for a member, each
    /// attempt ends with `failure`, and calls are accepted afterwards or not.
    async fn attempts(failure: Option<Failure>, is_accepted: bool) -> usize {
        let authenticator = authenticator();
        let start = Instant::now();
        let mut attempts = 0;
        while start.elapsed() < Duration::from_secs(60) {
            if authenticator.turn(&member(0)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            authenticator.ended(&member(0), failure.clone());
            if is_accepted {
                authenticator.accepted();
            }
            attempts += 1;
        }
        attempts
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_is_sent_once_a_second_and_less_often_if_it_does_not_help() {
        assert!((59..=61).contains(&attempts(None, true).await));
        for failure in [Some(refused()), None] {
            let in_vain = attempts(failure, false).await;
            assert!((14..45).contains(&in_vain), "{in_vain}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_does_not_block_the_next_one() {
        let authenticator = authenticator();
        authenticator.turn(&member(0)).await.unwrap();
        let start = Instant::now();
        authenticator.turn(&member(0)).await.unwrap();
        assert_eq!(start.elapsed(), SPACING);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_fail_instead_of_waiting_long_for_a_turn() {
        let of_token = Failure::new(Reason::Token, Error::new(ErrorKind::Unauthenticated, "invalid token"));
        for (failure, then, reported, reason, kind) in [
            (Some(refused()), None, "refused", Reason::Credentials, ErrorKind::Unauthenticated),
            (None, None, "answered no call", Reason::Token, ErrorKind::Unavailable),
            (None, Some(of_token), "invalid token", Reason::Token, ErrorKind::Unauthenticated),
        ] {
            let authenticator = authenticator();
            let start = Instant::now();
            let failure = loop {
                match authenticator.turn(&member(0)).await {
                    Ok(()) => {
                        authenticator.ended(&member(0), failure.clone());
                        then.iter().for_each(|failure| authenticator.failed(&member(0), failure));
                    }
                    Err(failure) => break failure,
                }
            };
            assert!(start.elapsed() < Duration::from_secs(60));
            assert!(failure.is_unsent() && !failure.is_of_connection());
            assert_eq!((failure.reason, failure.error.kind()), (reason, kind));
            assert!(failure.error.report().to_string().contains(reported), "{}", failure.error.report());
            let start = Instant::now();
            assert!(authenticator.turn(&member(0)).await.is_err());
            assert_eq!(start.elapsed(), Duration::ZERO);

            // Another member may accept the password, so it is asked once.
            authenticator.turn(&member(1)).await.unwrap();
            assert!(start.elapsed() <= SPACING);
            authenticator.ended(&member(1), Some(refused()));
            assert!(authenticator.turn(&member(1)).await.is_err());

            // An accepted call ends the wait for all members.
            authenticator.accepted();
            authenticator.turn(&member(0)).await.unwrap();
            assert!(start.elapsed() <= 2 * SPACING);
        }
    }
}
