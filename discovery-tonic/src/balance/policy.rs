use std::{fmt, sync::Arc};

use discovery_core::Weight;

use super::{Load, Rng, alias::Alias};

/// Decides which candidate gets a request.
///
/// It is called for every request, so it should take no lock and read no clock. The result is a
/// preference: if that candidate is full, or was tried by the same call, the policy is asked up to
/// four more times. Then the candidate with room that has the fewest requests in flight for its
/// weight is used.
///
/// ```
/// use discovery_tonic::balance::{Candidates, Rng, Policy};
///
/// /// Always picks the candidate with the fewest requests in flight.
/// #[derive(Debug)]
/// struct LeastLoaded;
///
/// impl Policy for LeastLoaded {
///     fn pick(&self, candidates: &Candidates<'_>, _: &mut Rng) -> usize {
///         let all = 0..candidates.len();
///         all.min_by_key(|n| candidates.in_flight(*n)).expect("there is at least one candidate")
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// Returns the index of the candidate that is to get the request. There is at least one
    /// candidate.
    fn pick(&self, candidates: &Candidates<'_>, draw: &mut Rng) -> usize;
}

/// The candidates that a [`Policy`] chooses from: one for each connection of an endpoint that takes
/// requests. The endpoint's weight is divided among its connections.
///
/// Endpoints of weight 0 are not included, unless all have weight 0.
pub struct Candidates<'a> {
    /// Not empty.
    pub(super) loads: &'a [Arc<Load>],
    /// Has the length of `loads`.
    pub(super) weights: &'a [Weight],
    /// `None` if all weights are equal.
    pub(super) alias: Option<&'a Alias>,
}

impl Candidates<'_> {
    /// Returns the number of candidates, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.loads.len()
    }

    /// Returns the number of requests in flight at a candidate, plus those that recently failed
    /// there. Failures count for some seconds, so that failing at once does not look like being
    /// fast.
    #[inline]
    pub fn in_flight(&self, n: usize) -> u32 {
        self.loads[n].cost()
    }

    /// Returns the weight of a candidate.
    #[inline]
    pub fn weight(&self, n: usize) -> Weight {
        self.weights[n]
    }

    /// Returns a random candidate, with a probability proportional to its weight.
    #[inline]
    pub fn sample(&self, draw: &mut Rng) -> usize {
        match self.alias {
            Some(alias) => alias.sample(draw),
            None => draw.below(self.len()),
        }
    }

    /// Returns whether all candidates have the same weight.
    #[inline]
    pub fn is_uniform(&self) -> bool {
        self.alias.is_none()
    }
}

impl fmt::Debug for Candidates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidates").field("len", &self.len()).finish_non_exhaustive()
    }
}
