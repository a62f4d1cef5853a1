//! The metrics of a single endpoint, on request; nothing without the feature `metrics`.

#[cfg(feature = "metrics")]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(feature = "metrics")]
use ::metrics::{Counter, Gauge, Unit};
use discovery_core::{InstanceId, ServiceName};

/// The metrics of one endpoint. They cost nothing unless they are asked for.
///
/// The gauges add up over the channels of a process. Both are back at what they were once the
/// endpoint has left and its requests have ended.
#[derive(Debug, Default)]
pub(crate) struct EndpointMetrics {
    #[cfg(feature = "metrics")]
    handles: Option<Box<Handles>>,
}

#[cfg(feature = "metrics")]
#[derive(Debug)]
struct Handles {
    attempts: Counter,
    failures: Counter,
    in_flight: Gauge,
    ready: Gauge,
    is_ready: AtomicBool,
}

#[cfg(feature = "metrics")]
impl EndpointMetrics {
    /// Looks up the series of an endpoint.
    pub(crate) fn new(service: &ServiceName, instance: &InstanceId) -> Self {
        let labels = [("service", service.to_string()), ("instance_id", instance.to_string())];
        let counter = |(name, what): (&'static str, &'static str)| {
            ::metrics::describe_counter!(name, Unit::Count, what);
            ::metrics::counter!(name, &labels)
        };
        let gauge = |(name, what): (&'static str, &'static str)| {
            ::metrics::describe_gauge!(name, Unit::Count, what);
            ::metrics::gauge!(name, &labels)
        };
        Self {
            handles: Some(Box::new(Handles {
                attempts: counter(ATTEMPTS),
                failures: counter(FAILURES),
                in_flight: gauge(IN_FLIGHT),
                ready: gauge(READY),
                is_ready: AtomicBool::new(false),
            })),
        }
    }

    /// Counts an attempt that begins.
    pub(super) fn begun(&self) {
        if let Some(handles) = &self.handles {
            handles.attempts.increment(1);
            handles.in_flight.increment(1.0);
        }
    }

    /// Counts the failure of an attempt.
    pub(super) fn failed(&self) {
        if let Some(handles) = &self.handles {
            handles.failures.increment(1);
        }
    }

    /// Counts the end of an attempt, with that of its response.
    pub(crate) fn ended(&self) {
        if let Some(handles) = &self.handles {
            handles.in_flight.decrement(1.0);
        }
    }

    /// Sets whether the endpoint takes calls.
    pub(crate) fn set_ready(&self, is_ready: bool) {
        let Some(handles) = &self.handles else { return };
        if handles.is_ready.swap(is_ready, Ordering::AcqRel) != is_ready {
            if is_ready {
                handles.ready.increment(1.0);
            } else {
                handles.ready.decrement(1.0);
            }
        }
    }
}

#[cfg(feature = "metrics")]
impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        self.set_ready(false);
    }
}

#[cfg(not(feature = "metrics"))]
impl EndpointMetrics {
    pub(crate) fn new(_: &ServiceName, _: &InstanceId) -> Self {
        Self {}
    }

    #[inline]
    pub(crate) fn ended(&self) {}

    pub(crate) fn set_ready(&self, _: bool) {}
}

#[cfg(feature = "metrics")]
const ATTEMPTS: (&str, &str) = ("discovery_endpoint_attempts_total", "attempts of calls at the endpoint");
#[cfg(feature = "metrics")]
const FAILURES: (&str, &str) = ("discovery_endpoint_failures_total", "attempts that failed at the endpoint");
#[cfg(feature = "metrics")]
const IN_FLIGHT: (&str, &str) =
    ("discovery_endpoint_in_flight", "attempts at the endpoint whose responses have not ended");
#[cfg(feature = "metrics")]
const READY: (&str, &str) = ("discovery_endpoint_ready", "channels in which the endpoint takes calls");
