//! The retry policy of a channel, as users set it, and the rule that applies it: what each call has
//! used of it, and the budget of all calls.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use discovery_core::{Backoff, Delays, Error, ErrorKind};
use http::{Extensions, HeaderName};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Sets when calls that may have been processed are repeated; off unless set with
/// [`ChannelBuilder::retry`](crate::ChannelBuilder::retry).
///
/// What happens to a call after an attempt:
///
/// | The attempt | Without a policy | With a policy |
/// |---|---|---|
/// | found no endpoint | fails: `UNAVAILABLE` | the same; see [`WaitForReady`](crate::WaitForReady) |
/// | was never sent, because its connection ended first | sent again at once | the same |
/// | was not processed according to the peer: `REFUSED_STREAM`, or excluded by its GOAWAY | sent again at once, up to 3 times | the same, then treated as `UNAVAILABLE` |
/// | lost its connection before the response began | fails with `UNAVAILABLE` | **repeated** if the policy has that code |
/// | was answered with a status alone | fails with it | **repeated** if the policy has its code |
/// | was answered by a proxy without a gRPC status: HTTP 429, 502, 503, 504 | fails with `UNAVAILABLE` | **repeated** if the policy has that code |
/// | took longer than [`attempt_timeout`](Self::attempt_timeout) | there is no such limit | cancelled and **repeated** |
/// | had a response that began, and then broke off or failed | fails | fails |
/// | was still running at the call's deadline, or when its caller dropped it | ends | ends |
///
/// A response begins with its headers. A handler that fails usually sends its status alone. A
/// handler that streams its answers sends headers before the first of them, and what fails after
/// that is never repeated.
///
/// Only a call with a single request message of up to 256 KiB, within the 32 MiB of the channel, is
/// repeated; its response may be a stream. A call that streams its requests is sent a second time
/// only in the first two rows, and only while it has sent no more than that. Those two rows count
/// neither as attempts nor against the budget.
///
/// A repeated attempt
///
/// - starts after a wait with full jitter, longer each time ([`backoff`](Self::backoff)), or after
///   the wait that the server requests in `grpc-retry-pushback-ms`, up to a minute; a negative
///   value there prevents it,
/// - goes to an instance that the call was not sent to yet, if one has room,
/// - is made only within the number of attempts, the channel's [`budget`](Self::budget) and the
///   call's deadline; if the wait would outlast the deadline, the call fails at once with the last
///   error,
/// - states in `grpc-previous-rpc-attempts` how many attempts came before, and in `grpc-timeout`
///   how much time is left.
///
/// These headers are defined by gRFC A6. A single call overrides the policy with [`Retry`].
/// [`ServedBy`](crate::ServedBy) and [`Tried`](crate::Tried) list the instances that were tried.
///
/// ```
/// use discovery_tonic::RetryPolicy;
/// use std::time::Duration;
/// use tonic::Code;
///
/// let policy = RetryPolicy::new(3)?
///     .codes([Code::Unavailable, Code::Aborted])
///     .attempt_timeout(Duration::from_millis(500));
/// # Ok::<(), discovery_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    attempts: u32,
    codes: Vec<Code>,
    attempt_timeout: Option<Duration>,
    backoff: Backoff,
    budget: u32,
    if_marked: bool,
}

/// Overrides for one call whether the channel's [`RetryPolicy`] applies: an extension of the
/// request.
///
/// ```
/// use discovery_tonic::Retry;
///
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(Retry::Off);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a mark that users write")]
pub enum Retry {
    /// The call is not repeated.
    Off,
    /// The call may be repeated, even if the policy is for [marked calls
    /// only](RetryPolicy::only_marked).
    On,
}

impl RetryPolicy {
    /// Returns a policy with this many attempts in all, from 2 to 5 as in gRFC A6.
    ///
    /// The other settings start with their defaults: calls that failed with `UNAVAILABLE`; no limit
    /// for a single attempt; waits of 25 ms to 250 ms with full jitter (as in Envoy); a budget of
    /// 20 % (as in linkerd and Finagle).
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for another number of attempts.
    pub fn new(attempts: u32) -> Result<Self, Error> {
        if !(2..=5).contains(&attempts) {
            let message = format!("invalid number of attempts {attempts}: allowed are 2 to 5");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let backoff = Backoff::new(Duration::from_millis(25), Duration::from_millis(250));
        Ok(Self {
            attempts,
            codes: vec![Code::Unavailable],
            attempt_timeout: None,
            backoff: backoff.expect("25 ms to 250 ms is a valid backoff"),
            budget: 20,
            if_marked: false,
        })
    }

    /// Sets the codes after which a call is repeated; default `UNAVAILABLE` alone.
    #[must_use]
    pub fn codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes = codes.into_iter().collect();
        self
    }

    /// Sets how long one attempt may take until its response headers arrive; default no limit.
    /// After that the attempt is cancelled and the call repeated, whatever the codes.
    ///
    /// The limit does not apply to an attempt that could not be followed by another: the last one,
    /// that of a call that streams its requests, and any attempt while the budget is used up.
    #[must_use]
    pub fn attempt_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.attempt_timeout = timeout.into();
        self
    }

    /// Sets the waits before repeated attempts; default 25 ms to 250 ms with full jitter.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets the retry budget: retries as a percentage of the channel's calls, which bounds the
    /// extra load on a failing service. Default 20, at most 100.
    ///
    /// A channel starts with ten retries, and saves up to a thousand for the moment in which a
    /// server with many calls dies.
    #[must_use]
    pub fn budget(mut self, percent: u32) -> Self {
        self.budget = percent.min(100);
        self
    }

    /// Repeats only calls that carry [`Retry::On`], such as the idempotent calls of a service that
    /// also has others.
    #[must_use]
    pub fn only_marked(mut self) -> Self {
        self.if_marked = true;
        self
    }
}

/// A channel's policy, and what its calls have left of the budget.
#[derive(Debug)]
pub(crate) struct Retries {
    policy: RetryPolicy,
    budget: Budget,
}

/// What one call has used of the policy.
#[derive(Debug)]
pub(crate) struct Repeats {
    done: u32,
    delays: Delays,
}

/// Why an attempt failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Failure<'a> {
    Status(&'a Status),
    /// It took longer than the attempt timeout.
    Slow,
}

impl Retries {
    pub(crate) fn new(policy: RetryPolicy) -> Self {
        let budget = Budget::new(policy.budget);
        Self { policy, budget }
    }

    /// Counts a call that begins; `None` if the policy does not apply to it.
    pub(crate) fn begin(&self, extensions: &Extensions) -> Option<Repeats> {
        let on = match extensions.get::<Retry>() {
            Some(Retry::Off) => false,
            Some(Retry::On) => true,
            None => !self.policy.if_marked,
        };
        if !on {
            return None;
        }
        self.budget.deposit();
        Some(Repeats { done: 0, delays: self.policy.backoff.delays() })
    }

    /// Returns when an attempt that starts now will have taken too long.
    pub(crate) fn attempt_end(&self, repeats: &Repeats) -> Option<Instant> {
        if repeats.done + 1 >= self.policy.attempts || !self.budget.has_one() {
            return None;
        }
        self.policy.attempt_timeout.and_then(|timeout| Instant::now().checked_add(timeout))
    }

    /// Returns how long to wait before the call is repeated; `None` if it is not.
    pub(crate) fn next(
        &self,
        repeats: &mut Repeats,
        failure: Failure<'_>,
        deadline: Option<Instant>,
    ) -> Option<Duration> {
        if repeats.done + 1 >= self.policy.attempts {
            return None;
        }
        let pushback = match failure {
            Failure::Slow => Pushback::None,
            Failure::Status(status) if self.policy.codes.contains(&status.code()) => Pushback::of(status),
            Failure::Status(_) => return None,
        };
        let wait = match pushback {
            Pushback::None => repeats.delays.next_delay(),
            Pushback::Stop => return None,
            Pushback::Wait(wait) => wait,
        };
        // A call that would only wait for its deadline fails now, with the last error.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left <= wait) || !self.budget.withdraw() {
            return None;
        }
        repeats.done += 1;
        Some(wait)
    }
}

impl Repeats {
    pub(crate) fn done(&self) -> u32 {
        self.done
    }
}

/// What a server requests about repeated attempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pushback {
    None,
    Stop,
    Wait(Duration),
}

impl Pushback {
    /// By gRFC A6, a negative or malformed value asks for no further attempt.
    fn of(status: &Status) -> Self {
        let Some(value) = status.metadata().get(PUSHBACK) else { return Self::None };
        let digits = value.to_str().ok().filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
        let millis = digits.and_then(|value| value.parse().ok());
        millis.map_or(Self::Stop, |millis: u32| Self::Wait(Duration::from_millis(millis.into()).min(LONGEST)))
    }
}

/// A bucket that counts hundredths of a retry: each call adds its percentage, each retry takes a
/// whole one.
#[derive(Debug)]
struct Budget {
    percent: u32,
    left: AtomicU32,
}

impl Budget {
    fn new(percent: u32) -> Self {
        Self { percent, left: AtomicU32::new(FIRST) }
    }

    fn deposit(&self) {
        // Concurrent deposits may exceed the maximum slightly.
        if self.left.load(Ordering::Relaxed) < MOST {
            self.left.fetch_add(self.percent, Ordering::Relaxed);
        }
    }

    fn has_one(&self) -> bool {
        self.left.load(Ordering::Relaxed) >= WHOLE
    }

    fn withdraw(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(WHOLE)).is_ok()
    }
}

/// The header with the number of previous attempts.
pub(crate) const PREVIOUS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const PUSHBACK: &str = "grpc-retry-pushback-ms";
const WHOLE: u32 = 100;
/// The retries that a channel starts with.
const FIRST: u32 = 10 * WHOLE;
/// The retries that a channel saves at most.
const MOST: u32 = 1000 * WHOLE;
/// The longest wait that a server may request.
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(attempts: u32) -> Retries {
        Retries::new(RetryPolicy::new(attempts).unwrap())
    }

    fn begin(retries: &Retries) -> Repeats {
        retries.begin(&Extensions::new()).unwrap()
    }

    #[test]
    fn two_to_five_attempts_are_allowed() {
        for attempts in 0..8 {
            let allowed = RetryPolicy::new(attempts);
            assert_eq!(allowed.is_ok(), (2..=5).contains(&attempts), "{attempts}");
        }
    }

    #[test]
    fn a_call_is_repeated_for_its_codes_up_to_the_number_of_attempts() {
        let retries = retries(3);
        let mut repeats = begin(&retries);
        let unavailable = Status::unavailable("");
        let aborted = Status::aborted("");
        assert_eq!(retries.next(&mut repeats, Failure::Status(&aborted), None), None);
        for done in 1..3 {
            let wait = retries.next(&mut repeats, Failure::Status(&unavailable), None).unwrap();
            assert!(wait <= Duration::from_millis(250));
            assert_eq!(repeats.done(), done);
        }
        assert_eq!(retries.next(&mut repeats, Failure::Slow, None), None);
    }

    #[test]
    fn the_server_may_set_the_wait_or_prevent_a_retry() {
        let retries = retries(2);
        for (value, wanted) in [
            ("0", Some(0)),
            ("70", Some(70)),
            ("60000", Some(60_000)),
            ("60001", Some(60_000)),
            ("4294967295", Some(60_000)),
            ("99999999999", None),
            ("-1", None),
            ("", None),
            ("soon", None),
        ] {
            let mut status = Status::unavailable("");
            status.metadata_mut().insert(PUSHBACK, value.parse().unwrap());
            let wait = retries.next(&mut begin(&retries), Failure::Status(&status), None);
            assert_eq!(wait, wanted.map(Duration::from_millis), "{value}");
        }
    }

    #[test]
    fn a_call_is_not_repeated_if_the_wait_would_outlast_its_deadline() {
        let retries = retries(2);
        let mut status = Status::unavailable("");
        status.metadata_mut().insert(PUSHBACK, "1000".parse().unwrap());
        let now = Instant::now();
        let next = |left| {
            retries.next(&mut begin(&retries), Failure::Status(&status), Some(now + Duration::from_millis(left)))
        };
        assert_eq!(next(900), None);
        assert!(next(9000).is_some());
    }

    #[test]
    fn a_mark_on_the_call_overrides_the_policy() {
        let marked = |mark: Option<Retry>| {
            let mut extensions = Extensions::new();
            mark.map(|mark| extensions.insert(mark));
            extensions
        };
        let all = retries(2);
        let some = Retries::new(RetryPolicy::new(2).unwrap().only_marked());
        for (mark, for_all, for_some) in
            [(None, true, false), (Some(Retry::Off), false, false), (Some(Retry::On), true, true)]
        {
            assert_eq!(all.begin(&marked(mark)).is_some(), for_all);
            assert_eq!(some.begin(&marked(mark)).is_some(), for_some);
        }
    }

    #[test]
    fn the_budget_is_a_fifth_of_the_calls_plus_a_reserve() {
        let retries = retries(2);
        let mut repeated = 0;
        for _ in 0..1000 {
            repeated += u32::from(retries.next(&mut begin(&retries), Failure::Slow, None).is_some());
        }
        assert!((200..=210).contains(&repeated), "{repeated}");
        // Successful calls refill the budget.
        (0..1000).for_each(|_| {
            begin(&retries);
        });
        let burst = (0..1000).take_while(|_| retries.budget.withdraw()).count();
        assert!((200..=210).contains(&burst), "{burst}");
        (0..100_000).for_each(|_| {
            begin(&retries);
        });
        assert!(retries.budget.left.load(Ordering::Relaxed) < MOST + WHOLE, "the reserve is limited");
    }
}
