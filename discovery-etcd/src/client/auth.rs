//! When a password is sent, and what follows where nobody asks for one.

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
/// etcd's way to check a password is slow by design, so a handle asks for it at most once a second,
/// over all members together, and after refusals at growing intervals up to the longest backoff.
pub(super) struct Authenticator {
    credentials: Option<Credentials>,
    /// Authentication was off when last asked. Calls go without a token then, until one is refused
    /// for that.
    is_disabled: AtomicBool,
    /// That it is off was reported, and no token was got since.
    is_reported: AtomicBool,
    /// An attempt was made, and no call was accepted since.
    is_unproven: AtomicBool,
    /// How long calls wait for another token, before they fail like those with the last one.
    patience: Duration,
    pace: Mutex<Pace>,
}

/// When the next attempt may be made.
struct Pace {
    /// At a member that was not asked since a call was accepted.
    next: Option<Instant>,
    /// At a member that was.
    again: Option<Instant>,
    delays: Delays,
    /// What calls fail with until their member may be asked again.
    asked: HashMap<Address, Failure>,
}

impl Authenticator {
    /// Reads the password once, so that a file that cannot be read is known at once.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        if let Some(credentials) = &settings.credentials {
            credentials.read_password()?;
        }
        Ok(Self {
            credentials: settings.credentials.clone(),
            is_disabled: AtomicBool::new(false),
            is_reported: AtomicBool::new(false),
            is_unproven: AtomicBool::new(false),
            // A call that waits until its time is up would be taken for a member that is silent.
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

    /// Takes back that authentication is off, since a call was refused for the lack of a token.
    pub(super) fn is_required(&self) {
        self.is_disabled.store(false, Ordering::Release);
    }

    /// Records that a call was authorized, with a token or without: attempts are not in vain.
    pub(super) fn accepted(&self) {
        if self.is_unproven.load(Ordering::Relaxed) && self.is_unproven.swap(false, Ordering::AcqRel) {
            let mut pace = self.pace();
            pace.again = None;
            pace.delays.reset();
            pace.asked.clear();
        }
    }

    /// Records that a call failed, which may be for the last token of the member.
    pub(super) fn failed(&self, member: &Address, failure: &Failure) {
        if failure.reason == Reason::Token
            && let Some(asked) = self.pace().asked.get_mut(member).filter(|asked| asked.reason == Reason::Token)
        {
            *asked = failure.clone().withheld();
        }
    }

    /// Waits until a member may be asked, and takes the turn; fails where that is not soon, or the
    /// last attempt there failed. A turn is over with its beginning, so that a member that does not
    /// answer keeps no other one waiting. Cancel safe.
    async fn turn(&self, member: &Address) -> Result<(), Failure> {
        loop {
            let next = {
                let mut pace = self.pace();
                let now = Instant::now();
                let asked = pace.asked.get(member);
                let next = if asked.is_some() { pace.next.max(pace.again) } else { pace.next };
                match (next.filter(|next| *next > now), asked) {
                    // A token may be out of date before it is used, where users and roles change
                    // all the time.
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

    /// Records how an attempt ended. The next one at this member waits for longer, until a call is
    /// accepted: a token may be refused like a password.
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

    /// Gets a token once it is time for that, and sets it on the client and its clones. Returns
    /// whether they send one.
    pub(super) async fn authenticate(
        &self,
        client: &mut Client,
        member: &Address,
        limit: Duration,
    ) -> Result<bool, Failure> {
        self.turn(member).await?;
        // Another member may have told meanwhile that authentication is off.
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
                // etcd refuses a token that it does not know, also where it asks for none.
                forget(client).await;
                Ok(false)
            }
            // A member that answers so to a password accepts none.
            Err(failure) if failure.reason == Reason::Token => Err(failure.with_reason(Reason::Credentials)),
            Err(failure) => Err(failure),
        };
        self.ended(member, result.as_ref().err().cloned());
        result
    }
}

/// Sends the password, and sets the token that comes for it.
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

/// Takes the token from a client and its clones.
pub(super) async fn forget(client: &mut Client) {
    // Without a user nothing is asked, so nothing fails.
    let _ = client.update_user(None).await;
}

/// The least time from one attempt to the next.
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

    /// How many attempts come in a minute in which everybody asks a member, each ends so, and calls
    /// are then accepted or not.
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
    async fn a_password_is_sent_once_a_second_and_less_often_in_vain() {
        assert!((59..=61).contains(&attempts(None, true).await));
        for failure in [Some(refused()), None] {
            let in_vain = attempts(failure, false).await;
            assert!((14..45).contains(&in_vain), "{in_vain}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_hangs_keeps_no_other_one_waiting() {
        let authenticator = authenticator();
        authenticator.turn(&member(0)).await.unwrap();
        let start = Instant::now();
        authenticator.turn(&member(0)).await.unwrap();
        assert_eq!(start.elapsed(), SPACING);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_turn_that_is_not_soon() {
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

            // Another member may do better, so it is asked once.
            authenticator.turn(&member(1)).await.unwrap();
            assert!(start.elapsed() <= SPACING);
            authenticator.ended(&member(1), Some(refused()));
            assert!(authenticator.turn(&member(1)).await.is_err());

            // A call that is accepted ends the wait for all.
            authenticator.accepted();
            authenticator.turn(&member(0)).await.unwrap();
            assert!(start.elapsed() <= 2 * SPACING);
        }
    }
}
