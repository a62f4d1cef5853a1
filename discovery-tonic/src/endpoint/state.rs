use std::fmt;

/// The connection state of an endpoint: that of its best connection, if it has several.
///
/// It does not include ejection: see
/// [`EndpointStatus::ejected_until`](crate::EndpointStatus::ejected_until).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum EndpointState {
    /// The last connection attempt failed; the next one follows after the backoff.
    BackingOff,
    /// A connection attempt is under way.
    Connecting,
    /// No connection attempt has been made yet.
    Idle,
    /// Connected, but the peer's health is not `SERVING`, or not known yet.
    NotServing,
    /// Connected, and the peer's SETTINGS have arrived.
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
