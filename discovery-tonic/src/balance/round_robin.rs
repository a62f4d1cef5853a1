use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Candidates, Policy, Rng};

/// Picks one candidate after the other, from a random start. Weights are ignored, except that
/// weight 0 gets no requests.
///
/// Slow start works through weights, so it has no effect here. If endpoints have several
/// connections, each connection takes its turn, so that an endpoint with fewer connections gets
/// fewer requests. All clones of a channel share one counter, which every pick writes.
#[derive(Debug)]
pub struct RoundRobin(AtomicUsize);

impl RoundRobin {
    /// Creates a policy with a random start, so that many clients do not begin with the same
    /// endpoint.
    pub fn new() -> Self {
        Self(AtomicUsize::new(fastrand::usize(..)))
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>, _: &mut Rng) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed) % candidates.len()
    }
}
