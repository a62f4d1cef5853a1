//! The metrics of a channel, for the recorder of the `metrics` crate; nothing without the feature.

#[cfg(feature = "metrics")]
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(feature = "metrics")]
use ::metrics::Unit;
use discovery_core::ServiceName;

/// The metrics of a channel. Their handles are looked up once, when the channel is built.
#[derive(Debug)]
pub(crate) struct Metrics {
    #[cfg(feature = "metrics")]
    handles: Handles,
}

/// What the channel counts.
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
    events: [::metrics::Counter; EVENTS.len()],
    gauges: [::metrics::Gauge; GAUGES.len()],
    /// What this channel has added to the gauges, which other channels add to as well; `None` once
    /// it has been subtracted again.
    part: Mutex<Option<[f64; GAUGES.len()]>>,
    lag: ::metrics::Histogram,
}

#[cfg(feature = "metrics")]
impl Metrics {
    pub(crate) fn new(service: &ServiceName) -> Self {
        let service = service.to_string();
        let counter = |(name, what): (&'static str, &'static str)| {
            ::metrics::describe_counter!(name, Unit::Count, what);
            ::metrics::counter!(name, "service" => service.clone())
        };
        let gauge = |(name, what): (&'static str, &'static str)| {
            ::metrics::describe_gauge!(name, Unit::Count, what);
            ::metrics::gauge!(name, "service" => service.clone())
        };
        let (name, what) = LAG;
        ::metrics::describe_histogram!(name, Unit::Seconds, what);
        let lag = ::metrics::histogram!(name, "service" => service.clone());
        let part = Mutex::new(Some([0.0; GAUGES.len()]));
        Self { handles: Handles { events: EVENTS.map(counter), gauges: GAUGES.map(gauge), part, lag } }
    }

    #[inline]
    pub(crate) fn count(&self, event: Event) {
        self.handles.events[event as usize].increment(1);
    }

    pub(crate) fn set(&self, endpoints: usize, ready: usize, is_stale: bool) {
        if let Some(part) = &mut *self.handles.lock() {
            // A set is far smaller than 2⁵², so the conversion is exact.
            self.handles.shift(part, [endpoints as f64, ready as f64, f64::from(u8::from(is_stale))]);
        }
    }

    pub(crate) fn published(&self, lag: Duration) {
        self.handles.lag.record(lag.as_secs_f64());
    }

    /// Subtracts what the channel added to the gauges, for good.
    pub(crate) fn end(&self) {
        if let Some(mut part) = self.handles.lock().take() {
            self.handles.shift(&mut part, [0.0; GAUGES.len()]);
        }
    }
}

#[cfg(feature = "metrics")]
impl Handles {
    fn lock(&self) -> MutexGuard<'_, Option<[f64; GAUGES.len()]>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shift(&self, part: &mut [f64; GAUGES.len()], wanted: [f64; GAUGES.len()]) {
        for ((gauge, part), wanted) in self.gauges.iter().zip(part).zip(wanted) {
            let before = std::mem::replace(part, wanted);
            if wanted > before {
                gauge.increment(wanted - before);
            } else if wanted < before {
                gauge.decrement(before - wanted);
            }
        }
    }
}

#[cfg(not(feature = "metrics"))]
impl Metrics {
    pub(crate) fn new(_: &ServiceName) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn count(&self, _: Event) {}

    pub(crate) fn set(&self, _: usize, _: usize, _: bool) {}

    pub(crate) fn published(&self, _: Duration) {}

    pub(crate) fn end(&self) {}
}

/// In the order of [`Event`].
#[cfg(feature = "metrics")]
const EVENTS: [(&str, &str); 7] = [
    ("discovery_channel_connects_total", "connections made"),
    ("discovery_channel_connect_failures_total", "failed attempts to connect"),
    ("discovery_channel_ejections_total", "endpoints ejected"),
    ("discovery_channel_failures_total", "calls that failed before a response began, or with its headers"),
    ("discovery_channel_picks_total", "attempts of calls, each at one endpoint"),
    ("discovery_channel_repeats_total", "attempts repeated by the retry policy"),
    ("discovery_channel_retries_total", "attempts repeated because the request was not processed"),
];
/// In the order of [`Metrics::set`].
#[cfg(feature = "metrics")]
const GAUGES: [(&str, &str); 3] = [
    ("discovery_channel_endpoints", "endpoints of the set"),
    ("discovery_channel_endpoints_ready", "endpoints that take calls"),
    ("discovery_channel_stale", "channels whose registry is unreachable, so that the set stays as last known"),
];
#[cfg(feature = "metrics")]
const LAG: (&str, &str) =
    ("discovery_channel_publish_seconds", "time from an update of the set until calls can use it");

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use ::metrics::{Counter, Gauge, Histogram};

    use super::*;

    #[test]
    fn a_channel_that_has_ended_adds_nothing_to_the_gauges() {
        let level = Arc::new(AtomicU64::new(7f64.to_bits()));
        let gauges = [Gauge::from_arc(Arc::clone(&level)), Gauge::noop(), Gauge::noop()];
        let events = EVENTS.map(|_| Counter::noop());
        let part = Mutex::new(Some([0.0; GAUGES.len()]));
        let metrics = Metrics { handles: Handles { events, gauges, part, lag: Histogram::noop() } };
        let mut levels = Vec::new();
        let steps: [fn(&Metrics); 4] =
            [|one| one.set(3, 0, false), |one| one.set(2, 0, false), Metrics::end, |one| one.set(4, 0, false)];
        for step in steps {
            step(&metrics);
            levels.push(f64::from_bits(level.load(Ordering::Relaxed)));
        }
        assert_eq!(levels, [10.0, 9.0, 7.0, 7.0]);
    }
}
