use std::fmt;

/// Where an endpoint's connections stand: the best of them, where there are several.
///
/// It does not say whether the endpoint is ejected;
/// [`EndpointStatus::ejected_until`](crate::EndpointStatus::ejected_until) does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum EndpointState {
    /// The last attempt failed; the next one follows after a wait.
    BackingOff,
    /// An attempt is being made.
    Connecting,
    /// No attempt has been made.
    Idle,
    /// Connected, but the peer's health is not SERVING, or not known yet.
    NotServing,
    /// Connected, the peer's SETTINGS seen.
    Ready,
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackingOff => "backing off",
            Self::Connecting => "connecting",
            Self::Idle => "idle",
            Self::NotServing => "not serving",
            Self::Ready => "ready",
        })
    }
}
