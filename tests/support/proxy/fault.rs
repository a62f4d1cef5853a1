use std::{collections::BTreeMap, time::Duration};

/// What the network does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "tests name them")]
pub enum Fault {
    /// Connections are taken and stay open, and nothing goes through. What is sent meanwhile arrives when that ends.
    BlackHole,
    /// Requests arrive; answers are held back as by [`BlackHole`](Self::BlackHole).
    BlackHoleAnswers,
    /// Requests are held back as by [`BlackHole`](Self::BlackHole); what the server says by itself arrives.
    BlackHoleRequests,
    /// All goes through in its order, each way this much later, give or take up to the jitter.
    Delay {
        /// Half of what is added to a round trip, on average.
        delay: Duration,
        /// At most the delay.
        jitter: Duration,
    },
    /// The end of the server, or that there is none, stays unknown: its side is gone, the client's stays open and silent.
    HalfOpen,
    /// Requests arrive, answers do not, and the connection is cut soon after: who asked cannot know what was done. One on which
    /// nobody asks, but which lost something, is cut when that ends.
    LoseAnswers,
    /// All goes through.
    None,
    /// Connections are cut, and new ones refused.
    Refuse,
    /// Connections are cut by RST, new ones as soon as they are taken.
    Reset,
    /// A connection is cut by RST once it has carried this many bytes since its start, both ways together.
    ResetAfter(u64),
    /// Each connection carries at most so many bytes per second each way.
    Throttle(u64),
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Answers,
    Requests,
}

/// What is between the clients and the server at present.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) target: String,
    pub(super) of_all: Fault,
    /// By what the header of a client's requests says.
    pub(super) of_one: BTreeMap<String, Fault>,
    /// The connections up to this number are black holes.
    pub(super) silent: usize,
}

impl Fault {
    /// Whether nothing goes through this way for now.
    pub(super) fn holds_back(self, way: Way) -> bool {
        match self {
            Self::BlackHole => true,
            Self::BlackHoleAnswers => way == Way::Answers,
            Self::BlackHoleRequests => way == Way::Requests,
            _ => false,
        }
    }

    /// How long what is sent now is under way.
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
