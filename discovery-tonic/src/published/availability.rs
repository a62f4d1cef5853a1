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
        let ago = |since: &Instant| humanly(since.elapsed());
        let (reason, cause) = match self {
            Self::Connecting => ("its endpoints are still connecting".to_owned(), None),
            Self::Empty { since } => {
                let skipped = skipped();
                let reason = format!("it has had no instances for {}{}", ago(since), but_skipped(skipped.count()));
                (reason, skipped.reason().cloned().map(|error| UnreadableEntry(error).into()))
            }
            Self::Failing { since, endpoints, error } => {
                let what = if error.is_some() { "been reachable" } else { "taken calls" };
                let why =
                    if error.is_some() { "" } else { ": they report NOT_SERVING, are ejected, or are reconnecting" };
                let reason = format!("none of its {endpoints} endpoints has {what} for {}{why}", ago(since));
                (reason, error.clone().map(|error| NotConnected(error).into()))
            }
            Self::Gone { reason } => ((*reason).to_owned(), None),
            Self::Lost { since, error } => {
                let reason = format!("the registry has been unreachable for {}", ago(since));
                (reason, Some(error.clone().into()))
            }
            Self::Serving => ("all its endpoints are busy".to_owned(), None),
            Self::Waiting => ("the registry has not answered yet".to_owned(), None),
        };
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

/// The part of a message about entries that are no instances.
fn but_skipped(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => "; 1 entry is skipped".to_owned(),
        count => format!("; {count} entries are skipped"),
    }
}

/// Formats a duration to the millisecond.
fn humanly(duration: Duration) -> String {
    format!("{:?}", Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX)))
}
