use std::{collections::BTreeMap, time::Duration};

/// A fault of the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Fault {
    /// Connections are accepted and stay open, but nothing gets through. What was sent meanwhile
    /// arrives when the fault ends.
    BlackHole,
    /// Requests arrive; answers are held back as in [`BlackHole`](Self::BlackHole).
    BlackHoleAnswers,
    /// Requests are held back as in [`BlackHole`](Self::BlackHole); what the server sends
    /// unprompted arrives.
    BlackHoleRequests,
    /// Everything arrives in its order, delayed each way by `delay` ± `jitter`.
    Delay {
        /// Half of what is added to a round trip, on average.
        delay: Duration,
        /// At most the delay.
        jitter: Duration,
    },
    /// The client does not learn that the server has gone or never was there: the server's side is
    /// closed, the client's stays open and silent.
    HalfOpen,
    /// Requests arrive and answers do not. The connection is cut soon after a request, so the
    /// client cannot know whether it was executed. A connection without further requests that lost
    /// an answer is cut when the fault ends.
    LoseAnswers,
    /// Everything gets through.
    None,
    /// Connections are cut and new ones refused.
    Refuse,
    /// Connections are cut by RST, new ones as soon as they are accepted.
    Reset,
    /// A connection is cut by RST once it has carried this many bytes since its start, counting
    /// both directions.
    ResetAfter(u64),
    /// Each connection carries at most this many bytes per second in each direction.
    Throttle(u64),
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Answers,
    Requests,
}

/// The current state of the network between the clients and the server.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) target: String,
    pub(super) of_all: Fault,
    /// Keyed by the value of the header in a client's requests.
    pub(super) of_one: BTreeMap<String, Fault>,
    /// Connections up to this number are black holes.
    pub(super) silent: usize,
}

impl Fault {
    /// Returns whether nothing gets through in this direction for now.
    pub(super) fn holds_back(self, way: Way) -> bool {
        match self {
            Self::BlackHole => true,
            Self::BlackHoleAnswers => way == Way::Answers,
            Self::BlackHoleRequests => way == Way::Requests,
            _ => false,
        }
    }

    /// Returns how long a chunk that is sent now takes to arrive.
    pub(super) fn delay(self) -> Duration {
        match self {
            Self::Delay { delay, jitter } => delay.saturating_sub(jitter) + (jitter * 2).mul_f64(fastrand::f64()),
            _ => Duration::ZERO,
        }
    }
}

impl Network {
    pub(super) fn to(target: String) -> Self {
        Self { target, of_all: Fault::None, of_one: BTreeMap::new(), silent: 0 }
    }

    pub(super) fn fault_of(&self, connection: usize, client: Option<&str>) -> Fault {
        if connection <= self.silent {
            return Fault::BlackHole;
        }
        client.and_then(|client| self.of_one.get(client)).copied().unwrap_or(self.of_all)
    }
}
