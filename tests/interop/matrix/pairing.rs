//! Who serves and who calls.

use std::fmt;

/// A language.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    Go,
    Rust,
}

/// A kind of client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    /// A `BalancedChannel`.
    Rust,
    /// A channel of grpc-go with the policy `pick_first`, its default.
    PickFirst,
    /// A channel of grpc-go with the policy `round_robin`.
    RoundRobin,
}

/// The servers and the client of a scene.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pairing {
    pub(crate) server: Side,
    pub(crate) client: Caller,
}

impl Caller {
    /// Returns whether it calls all servers, rather than one while that is there.
    pub(crate) fn spreads(self) -> bool {
        self != Self::PickFirst
    }

    /// Returns how many of this many servers it calls.
    pub(crate) fn calls_of(self, servers: usize) -> usize {
        if self.spreads() { servers } else { 1 }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Go => "Go",
            Self::Rust => "Rust",
        })
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PickFirst => "Go pick_first",
            Self::RoundRobin => "Go round_robin",
            Self::Rust => "Rust",
        })
    }
}

impl fmt::Display for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.server, self.client)
    }
}

pub(crate) const GO_TO_RUST: Pairing = Pairing { server: Side::Go, client: Caller::Rust };
pub(crate) const RUST_TO_PICK_FIRST: Pairing = Pairing { server: Side::Rust, client: Caller::PickFirst };
pub(crate) const RUST_TO_ROUND_ROBIN: Pairing = Pairing { server: Side::Rust, client: Caller::RoundRobin };
