//! Why a call finds no endpoint, and whether it should wait for one.

use std::{error::Error as StdError, fmt, time::Duration};

use discovery_core::{Error, ServiceName, SkippedEntries};
use tokio::time::Instant;

use crate::error::{BoxError, SharedError};

/// What a call that finds no endpoint can expect.
#[derive(Clone, Debug)]
pub(crate) enum Availability {
    /// An endpoint makes its first attempt to connect.
    Connecting,
    /// The service has no instances.
    Empty { since: Instant },
    /// No endpoint can be reached, or none takes calls.
    Failing { since: Instant, endpoints: usize, error: Option<SharedError> },
    /// The control task has ended, for this reason.
    Gone { reason: &'static str },
    /// The registry has been unreachable from the start.
    Lost { since: Instant, error: Error },
    /// There are endpoints, although all of them may be full.
    Serving,
    /// The first item of the watch has not arrived.
    Waiting,
}

/// Why no endpoint is connected, as the error of a call carries it. Its source is the error of the
/// last attempt to connect.
#[derive(Debug)]
struct NotConnected(SharedError);

/// Why an entry is skipped, as the error of a call carries it.
#[derive(Debug)]
struct UnreadableEntry(Error);

impl Availability {
    /// Whether an endpoint may become available soon.
    pub(crate) fn is_worth_waiting(&self) -> bool {
        match self {
            Self::Connecting | Self::Serving | Self::Waiting => true,
            Self::Empty { .. } | Self::Failing { .. } | Self::Gone { .. } | Self::Lost { .. } => false,
        }
    }

    /// Whether there may ever be an endpoint again.
    pub(crate) fn may_change(&self) -> bool {
        !matches!(self, Self::Gone { .. })
    }

    /// Returns why a call fails, as a message with the service, the reason and since when, and as
    /// an error if there is one. `skipped` is read if the service has no instances.
    pub(crate) fn explain(
        &self,
        service: &ServiceName,
        waited: Option<Duration>,
        skipped: impl FnOnce() -> SkippedEntries,
    ) -> (String, Option<BoxError>) {
        let (reason, cause) = match self {
            Self::Connecting => ("its endpoints are still connecting".to_owned(), None),
            Self::Empty { since } => {
                let skipped = skipped();
                let reason = lasting(since, "it has no instances", "it has had no instances");
                let reason = match skipped_count(skipped.count()) {
                    Some(skipped) => format!("{reason}; {skipped}"),
                    None => reason,
                };
                (reason, skipped.reason().cloned().map(|error| UnreadableEntry(error).into()))
            }
            Self::Failing { since, endpoints, error } => {
                let (now, past, why) = match error {
                    Some(_) => ("is reachable", "has been reachable", ""),
                    None => (
                        "takes calls",
                        "has taken calls",
                        ": they report NOT_SERVING, are ejected, or are reconnecting",
                    ),
                };
                let none = format!("none of its {endpoints} endpoints");
                let reason = format!("{}{why}", lasting(since, &format!("{none} {now}"), &format!("{none} {past}")));
                (reason, error.clone().map(|error| NotConnected(error).into()))
            }
            Self::Gone { reason } => ((*reason).to_owned(), None),
            Self::Lost { since, error } => {
                let reason = lasting(since, "the registry is unreachable", "the registry has been unreachable");
                (reason, Some(error.clone().into()))
            }
            Self::Serving => ("all its endpoints are busy".to_owned(), None),
            Self::Waiting => ("the registry has not answered yet".to_owned(), None),
        };
        let waited = waited.filter(|waited| !waited.is_zero());
        let waited = waited.map(|waited| format!(" within {}", humanly(waited))).unwrap_or_default();
        (format!("no endpoint of {service}{waited}: {reason}"), cause)
    }
}

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the last attempt to connect failed")
    }
}

impl StdError for NotConnected {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl fmt::Display for UnreadableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry cannot be read")
    }
}

impl StdError for UnreadableEntry {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

/// Returns how many entries of the service are skipped, and why the newest one is; `None` if none
/// is.
pub(super) fn skipped_note(skipped: &SkippedEntries) -> Option<String> {
    let count = skipped_count(skipped.count())?;
    Some(match skipped.reason() {
        Some(error) => format!("{count}; the newest one cannot be read: {}", error.report()),
        None => count,
    })
}

fn skipped_count(count: usize) -> Option<String> {
    match count {
        0 => None,
        1 => Some("1 entry is skipped".to_owned()),
        count => Some(format!("{count} entries are skipped")),
    }
}

/// Words a state that began at `since`: with how long it has lasted, unless it has just begun.
fn lasting(since: &Instant, now: &str, past: &str) -> String {
    match since.elapsed() {
        lasted if lasted < LASTING => now.to_owned(),
        lasted => format!("{past} for {}", humanly(lasted)),
    }
}

/// Formats a duration to the millisecond, and one that is shorter as it is.
pub(super) fn humanly(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) {
        0 => format!("{duration:?}"),
        millis => format!("{:?}", Duration::from_millis(millis)),
    }
}

/// How long a state must last for its length to be worth a mention.
const LASTING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use discovery_core::ErrorKind;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reason_states_how_long_it_has_lasted_once_that_is_a_second() {
        let service: ServiceName = "payments".parse().unwrap();
        let since = Instant::now();
        let refused: SharedError = std::sync::Arc::new(std::io::Error::other("connection refused"));
        let why = "they report NOT_SERVING, are ejected, or are reconnecting";
        let cases = [
            (
                Availability::Empty { since },
                "it has no instances".to_owned(),
                "it has had no instances for 2.5s".to_owned(),
            ),
            (
                Availability::Failing { since, endpoints: 3, error: Some(refused) },
                "none of its 3 endpoints is reachable".to_owned(),
                "none of its 3 endpoints has been reachable for 2.5s".to_owned(),
            ),
            (
                Availability::Failing { since, endpoints: 3, error: None },
                format!("none of its 3 endpoints takes calls: {why}"),
                format!("none of its 3 endpoints has taken calls for 2.5s: {why}"),
            ),
            (
                Availability::Lost { since, error: Error::new(ErrorKind::Unavailable, "no member answers") },
                "the registry is unreachable".to_owned(),
                "the registry has been unreachable for 2.5s".to_owned(),
            ),
        ];
        let explain = |one: &Availability, waited| one.explain(&service, waited, SkippedEntries::default).0;
        for (availability, now, _) in &cases {
            assert_eq!(explain(availability, None), format!("no endpoint of payments: {now}"));
        }
        advance(Duration::from_micros(2_500_900)).await;
        for (availability, _, past) in &cases {
            assert_eq!(explain(availability, None), format!("no endpoint of payments: {past}"));
        }
        let waited = |waited| explain(&Availability::Connecting, Some(waited));
        let reason = "its endpoints are still connecting";
        assert_eq!(waited(Duration::ZERO), format!("no endpoint of payments: {reason}"));
        assert_eq!(waited(Duration::from_micros(300)), format!("no endpoint of payments within 300µs: {reason}"));
        assert_eq!(waited(Duration::from_micros(1_300)), format!("no endpoint of payments within 1ms: {reason}"));
    }
}
