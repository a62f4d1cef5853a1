use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Candidates, Policy, Rng};

/// One candidate after the other, from a random start; weights are ignored, except that weight 0 gets nothing.
///
/// Slow start works by weight, and so has no effect here; and where endpoints have several connections, each connection has its turn, so
/// that an endpoint which lacks some gets fewer requests. All clones of a channel share the counter, which every pick writes.
#[derive(Debug)]
pub struct RoundRobin(AtomicUsize);

impl RoundRobin {
    /// Starts anywhere, so that many clients do not begin with the same endpoint.
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
