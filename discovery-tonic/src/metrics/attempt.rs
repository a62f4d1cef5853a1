//! The time that an attempt takes; nothing without the feature `metrics`.

#[cfg(feature = "metrics")]
use tokio::time::Instant;

use super::{Metrics, Outcome, endpoint::EndpointMetrics};

/// Measures an attempt from its start until its first outcome, and counts it for its endpoint.
/// Without the feature it has no size and reads no clock.
#[derive(Debug)]
pub(crate) struct Timer {
    /// `None` once the outcome is recorded.
    #[cfg(feature = "metrics")]
    begun: Option<Instant>,
}

#[cfg(feature = "metrics")]
impl Timer {
    /// Begins to measure an attempt at this endpoint. The attempt must be
    /// [ended](EndpointMetrics::ended) there.
    pub(crate) fn start(endpoint: &EndpointMetrics) -> Self {
        endpoint.begun();
        Self { begun: Some(Instant::now()) }
    }

    /// Records the outcome, unless one is recorded.
    pub(crate) fn stop(&mut self, metrics: &Metrics, endpoint: &EndpointMetrics, outcome: Outcome) {
        if let Some(begun) = self.begun.take() {
            metrics.handles.attempts[outcome as usize].record(begun.elapsed().as_secs_f64());
            if outcome == Outcome::Failed {
                endpoint.failed();
            }
        }
    }
}

#[cfg(not(feature = "metrics"))]
impl Timer {
    #[inline]
    pub(crate) fn start(_: &EndpointMetrics) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn stop(&mut self, _: &Metrics, _: &EndpointMetrics, _: Outcome) {}
}

/// Calls must not get larger without the feature.
#[cfg(not(feature = "metrics"))]
const _: () = assert!(size_of::<Timer>() == 0 && size_of::<EndpointMetrics>() == 0);
