use std::{fmt, sync::Arc};

use discovery_core::Weight;

use super::{Load, Rng, alias::Alias};

/// Decides which of the candidates gets a request.
///
/// Called for every request, so it should take no lock and read no clock. What it returns is a wish: where that candidate is full, or
/// was tried by the same call, the policy is asked a few times more, and then the candidate with room that has the least in flight for
/// its weight takes its place.
///
/// ```
/// use discovery_tonic::balance::{Candidates, Rng, Policy};
///
/// /// Always the candidate with the fewest requests in flight.
/// #[derive(Debug)]
/// struct LeastLoaded;
///
/// impl Policy for LeastLoaded {
///     fn pick(&self, candidates: &Candidates<'_>, _: &mut Rng) -> usize {
///         (0..candidates.len()).min_by_key(|n| candidates.in_flight(*n)).expect("there is at least one candidate")
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// The index of the candidate that shall get the request; there is at least one.
    fn pick(&self, candidates: &Candidates<'_>, draw: &mut Rng) -> usize;
}

/// The endpoints that can take a request now, as a [`Policy`] sees them: one candidate for each connection, among which the endpoint's
/// weight is divided.
///
/// Endpoints of weight 0 are not among them, unless all have weight 0.
pub struct Candidates<'a> {
    /// Not empty.
    pub(super) loads: &'a [Arc<Load>],
    /// As many as the loads.
    pub(super) weights: &'a [Weight],
    pub(super) alias: Option<&'a Alias>,
}

impl Candidates<'_> {
    /// How many there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.loads.len()
    }

    /// The requests in flight at a candidate, and those that failed there in the last seconds, so
    /// that failing at once does not look like being fast.
    #[inline]
    pub fn in_flight(&self, n: usize) -> u32 {
        self.loads[n].cost()
    }

    /// A candidate's weight.
    #[inline]
    pub fn weight(&self, n: usize) -> Weight {
        self.weights[n]
    }

    /// A random candidate, each in proportion to its weight.
    #[inline]
    pub fn sample(&self, draw: &mut Rng) -> usize {
        match self.alias {
            Some(alias) => alias.sample(draw),
            None => draw.below(self.len()),
        }
    }

    /// Whether all candidates have the same weight.
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
