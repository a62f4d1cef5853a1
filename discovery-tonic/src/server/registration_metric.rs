//! Whether the registration of a server is confirmed, for the recorder of the `metrics` crate;
//! nothing without the feature.

#[cfg(feature = "metrics")]
use std::sync::atomic::{AtomicBool, Ordering};

use discovery_core::ServiceName;

/// The part of one registration in the gauge of its service. Dropping it subtracts the part.
#[derive(Debug)]
pub(super) struct RegistrationMetric {
    #[cfg(feature = "metrics")]
    gauge: ::metrics::Gauge,
    #[cfg(feature = "metrics")]
    is_up: AtomicBool,
}

#[cfg(feature = "metrics")]
impl RegistrationMetric {
    /// A registration that is not confirmed yet.
    pub(super) fn new(service: &ServiceName) -> Self {
        let (name, what) = UP;
        ::metrics::describe_gauge!(name, ::metrics::Unit::Count, what);
        let gauge = ::metrics::gauge!(name, "service" => service.to_string());
        Self { gauge, is_up: AtomicBool::new(false) }
    }

    /// Sets whether the registration is confirmed.
    pub(super) fn set(&self, is_up: bool) {
        if self.is_up.swap(is_up, Ordering::AcqRel) != is_up {
            if is_up {
                self.gauge.increment(1.0);
            } else {
                self.gauge.decrement(1.0);
            }
        }
    }
}

#[cfg(feature = "metrics")]
impl Drop for RegistrationMetric {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(not(feature = "metrics"))]
impl RegistrationMetric {
    pub(super) fn new(_: &ServiceName) -> Self {
        Self {}
    }

    pub(super) fn set(&self, _: bool) {}
}

#[cfg(feature = "metrics")]
const UP: (&str, &str) = ("discovery_registration_up", "registrations of servers that are confirmed");
