//! The state of a channel as programs see it.

use std::{fmt, time::Instant};

use discovery_core::Error;

use super::availability::humanly;

/// The state of a channel for programs, such as a health check or an exporter of your own.
/// [`BalancedChannel::status`](crate::BalancedChannel::status) returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChannelStatus {
    /// Where the channel stands with the registry.
    pub registry: RegistryState,
    /// The number of endpoints of the set, including held ones.
    pub endpoints: usize,
    /// How many of them take calls: they are connected and serving, have a weight above 0, and are
    /// not ejected (unless most are).
    pub ready: usize,
}

/// Where a channel stands with the registry. Its `Display` is for people.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistryState {
    /// The set follows the registry.
    InContact,
    /// Contact is lost. The set stays as last known, and the channel keeps trying.
    Lost {
        /// When it was lost.
        since: Instant,
        /// Why, as reported last.
        error: Error,
    },
    /// Nothing follows the registry any more, and all calls fail. Final.
    Stopped {
        /// Why, for people.
        reason: &'static str,
    },
    /// The registry has not answered yet: there is no first set.
    Waiting,
}

impl RegistryState {
    /// Returns whether the set follows the registry.
    pub fn is_in_contact(&self) -> bool {
        matches!(self, Self::InContact)
    }
}

impl fmt::Display for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InContact => f.write_str("in contact"),
            Self::Lost { since, error } => {
                let now = tokio::time::Instant::now().into_std();
                let since = humanly(now.saturating_duration_since(*since));
                write!(f, "lost {since} ago: {}", error.report())
            }
            Self::Stopped { reason } => write!(f, "not followed any more: {reason}"),
            Self::Waiting => f.write_str("has not answered yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use discovery_core::ErrorKind;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_state_of_the_registry_is_printed_for_people() {
        let error = Error::new(ErrorKind::Unavailable, "no member answers")
            .with_source(Error::new(ErrorKind::Unavailable, "connection refused"));
        let lost = RegistryState::Lost { since: tokio::time::Instant::now().into_std(), error };
        advance(Duration::from_micros(12_345_678)).await;
        assert_eq!(lost.to_string(), "lost 12.345s ago: no member answers: connection refused");
        assert_eq!(RegistryState::InContact.to_string(), "in contact");
        assert_eq!(RegistryState::Waiting.to_string(), "has not answered yet");
        let stopped = RegistryState::Stopped { reason: "its control task panicked" };
        assert_eq!(stopped.to_string(), "not followed any more: its control task panicked");
        assert!(RegistryState::InContact.is_in_contact() && !lost.is_in_contact());
    }
}
