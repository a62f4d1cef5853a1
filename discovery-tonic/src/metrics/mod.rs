//! The metrics of a channel, for the recorder of the `metrics` crate; nothing without the feature.
//!
//! [`Metrics`] is what a channel reports as a whole. An [`attempt`] is timed, and an [`endpoint`]
//! has series of its own on request.

pub(crate) mod attempt;
pub(crate) mod endpoint;

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

/// How an attempt ended, as far as its latency is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Its caller gave it up.
    Cancelled,
    /// It was lost, refused, not answered in time, or answered with an error.
    Failed,
    /// Its response began.
    Ok,
}

#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Handles {
    /// By outcome.
    attempts: [::metrics::Histogram; OUTCOMES.len()],
    events: [::metrics::Counter; EVENTS.len()],
    gauges: [::metrics::Gauge; GAUGES.len()],
    /// What this channel has added to the gauges, which other channels add to as well; `None` once
    /// it has been subtracted again.
    part: Mutex<Option<[f64; GAUGES.len()]>>,
    /// Written by the channels that have lost contact, so the latest value counts.
    since_contact: ::metrics::Gauge,
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
        let (name, what) = ATTEMPT;
        ::metrics::describe_histogram!(name, Unit::Seconds, what);
        let attempts =
            OUTCOMES.map(|outcome| ::metrics::histogram!(name, "service" => service.clone(), "outcome" => outcome));
        let (name, what) = SINCE_CONTACT;
        ::metrics::describe_gauge!(name, Unit::Seconds, what);
        let since_contact = ::metrics::gauge!(name, "service" => service.clone());
        let part = Mutex::new(Some([0.0; GAUGES.len()]));
        let events = EVENTS.map(counter);
        let gauges = GAUGES.map(gauge);
        Self { handles: Handles { attempts, events, gauges, part, since_contact, lag } }
    }

    #[inline]
    pub(crate) fn count(&self, event: Event) {
        self.handles.events[event as usize].increment(1);
    }

    /// Sets the gauges; `lost_for` is how long contact with the registry has been lost.
    pub(crate) fn set(&self, endpoints: usize, ready: usize, lost_for: Option<Duration>) {
        if let Some(part) = &mut *self.handles.lock() {
            let was_stale = part[STALE] > 0.0;
            let is_stale = f64::from(u8::from(lost_for.is_some()));
            // A set is far smaller than 2⁵², so the conversion is exact.
            self.handles.shift(part, [endpoints as f64, ready as f64, is_stale]);
            self.handles.set_since_contact(was_stale, lost_for);
        }
    }

    /// Sets how long contact with the registry has been lost.
    pub(crate) fn lost_for(&self, duration: Duration) {
        if self.handles.lock().is_some() {
            self.handles.set_since_contact(true, Some(duration));
        }
    }

    pub(crate) fn published(&self, lag: Duration) {
        self.handles.lag.record(lag.as_secs_f64());
    }

    /// Subtracts what the channel added to the gauges, for good.
    pub(crate) fn end(&self) {
        if let Some(mut part) = self.handles.lock().take() {
            self.handles.set_since_contact(part[STALE] > 0.0, None);
            self.handles.shift(&mut part, [0.0; GAUGES.len()]);
        }
    }
}

#[cfg(feature = "metrics")]
impl Handles {
    fn lock(&self) -> MutexGuard<'_, Option<[f64; GAUGES.len()]>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel that is in contact writes nothing: others may have lost it.
    fn set_since_contact(&self, was_lost: bool, lost_for: Option<Duration>) {
        if was_lost || lost_for.is_some() {
            self.since_contact.set(lost_for.unwrap_or_default().as_secs_f64());
        }
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

    pub(crate) fn set(&self, _: usize, _: usize, _: Option<Duration>) {}

    pub(crate) fn lost_for(&self, _: Duration) {}

    pub(crate) fn published(&self, _: Duration) {}

    pub(crate) fn end(&self) {}
}

/// How often the time since contact is reported while contact is lost; `None` if nobody records it.
pub(crate) const REPORT: Option<Duration> = if cfg!(feature = "metrics") { Some(Duration::from_secs(1)) } else { None };

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
/// The place of the last of them.
#[cfg(feature = "metrics")]
const STALE: usize = 2;
#[cfg(feature = "metrics")]
const SINCE_CONTACT: (&str, &str) =
    ("discovery_channel_seconds_since_contact", "time since contact with the registry was lost; 0 while there is");
/// In the order of [`Outcome`].
#[cfg(feature = "metrics")]
const OUTCOMES: [&str; 3] = ["cancelled", "failed", "ok"];
#[cfg(feature = "metrics")]
const ATTEMPT: (&str, &str) = (
    "discovery_channel_attempt_seconds",
    "time from sending an attempt of a call until its response headers, or until it failed",
);
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

    fn metrics(gauges: [Gauge; GAUGES.len()], since_contact: Gauge) -> Metrics {
        let handles = Handles {
            attempts: OUTCOMES.map(|_| Histogram::noop()),
            events: EVENTS.map(|_| Counter::noop()),
            gauges,
            part: Mutex::new(Some([0.0; GAUGES.len()])),
            since_contact,
            lag: Histogram::noop(),
        };
        Metrics { handles }
    }

    fn read(level: &AtomicU64) -> f64 {
        f64::from_bits(level.load(Ordering::Relaxed))
    }

    #[test]
    fn a_channel_that_has_ended_adds_nothing_to_the_gauges() {
        let level = Arc::new(AtomicU64::new(7f64.to_bits()));
        let gauges = [Gauge::from_arc(Arc::clone(&level)), Gauge::noop(), Gauge::noop()];
        let metrics = metrics(gauges, Gauge::noop());
        let mut levels = Vec::new();
        let steps: [fn(&Metrics); 4] =
            [|one| one.set(3, 0, None), |one| one.set(2, 0, None), Metrics::end, |one| one.set(4, 0, None)];
        for step in steps {
            step(&metrics);
            levels.push(read(&level));
        }
        assert_eq!(levels, [10.0, 9.0, 7.0, 7.0]);
    }

    /// A channel in contact must not hide that another one of the service has lost it.
    #[test]
    fn only_a_channel_that_lost_contact_writes_for_how_long() {
        let level = Arc::new(AtomicU64::new(7f64.to_bits()));
        let metrics = metrics([(); GAUGES.len()].map(|()| Gauge::noop()), Gauge::from_arc(Arc::clone(&level)));
        let lost = |seconds| Some(Duration::from_secs(seconds));
        metrics.set(1, 1, None);
        assert_eq!(read(&level), 7.0);
        metrics.set(1, 1, lost(0));
        assert_eq!(read(&level), 0.0);
        metrics.lost_for(Duration::from_secs(3));
        assert_eq!(read(&level), 3.0);
        metrics.set(2, 1, None);
        assert_eq!(read(&level), 0.0);
        level.store(7f64.to_bits(), Ordering::Relaxed);
        metrics.set(1, 1, None);
        assert_eq!(read(&level), 7.0);
        metrics.set(1, 1, lost(5));
        metrics.end();
        assert_eq!(read(&level), 0.0);
        metrics.lost_for(Duration::from_secs(9));
        assert_eq!(read(&level), 0.0);
    }
}
