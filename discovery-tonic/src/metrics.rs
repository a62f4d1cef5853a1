//! What a channel counts, for the recorder of the `metrics` crate; without the feature nothing is.

use std::time::Duration;

use discovery_core::ServiceName;

/// A channel's metrics, found once and then only counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    handles: Handles,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Connect,
    ConnectFailure,
    Ejection,
    Failure,
    Pick,
    Repeat,
    Retry,
}

#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Handles {
    events: [::metrics::Counter; 7],
    endpoints: ::metrics::Gauge,
    ready: ::metrics::Gauge,
    stale: ::metrics::Gauge,
    lag: ::metrics::Histogram,
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(crate) fn of(service: &ServiceName) -> Self {
        let service = service.to_string();
        let counter = |name: &'static str| ::metrics::counter!(name, "service" => service.clone());
        let gauge = |name: &'static str| ::metrics::gauge!(name, "service" => service.clone());
        Self {
            handles: Handles {
                // In the order of `Event`.
                events: [
                    counter("discovery_channel_connects_total"),
                    counter("discovery_channel_connect_failures_total"),
                    counter("discovery_channel_ejections_total"),
                    counter("discovery_channel_failures_total"),
                    counter("discovery_channel_picks_total"),
                    counter("discovery_channel_repeats_total"),
                    counter("discovery_channel_retries_total"),
                ],
                endpoints: gauge("discovery_channel_endpoints"),
                ready: gauge("discovery_channel_endpoints_ready"),
                stale: gauge("discovery_channel_stale"),
                lag: ::metrics::histogram!("discovery_channel_publish_seconds", "service" => service.clone()),
            },
        }
    }

    #[inline]
    pub(crate) fn count(&self, event: Event) {
        self.handles.events[event as usize].increment(1);
    }

    pub(crate) fn set(&self, endpoints: usize, ready: usize, is_stale: bool) {
        // Sets are far below 2⁵².
        self.handles.endpoints.set(endpoints as f64);
        self.handles.ready.set(ready as f64);
        self.handles.stale.set(f64::from(u8::from(is_stale)));
    }

    pub(crate) fn published(&self, lag: Duration) {
        self.handles.lag.record(lag.as_secs_f64());
    }
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    pub(crate) fn of(_: &ServiceName) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn count(&self, _: Event) {}

    pub(crate) fn set(&self, _: usize, _: usize, _: bool) {}

    pub(crate) fn published(&self, _: Duration) {}
}
