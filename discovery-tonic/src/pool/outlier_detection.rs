use std::time::Duration;

use discovery_core::{Error, ErrorKind};
use tonic::Code;

use crate::{connection::settings::FAR, endpoint::tally::Codes, wakeups::SWEEP};

/// The settings of outlier detection: when an endpoint is ejected, and for how long (gRFC A50).
///
/// An endpoint is compared with the rest of the set, so what all of them do ejects none. At most
/// half of the connected endpoints are ejected at a time. If fewer than half remain available,
/// ejections are ignored and all are used, since the cause is then unlikely to be the endpoints.
/// When its time is over, an ejected endpoint gets one request at a time until one is answered.
/// `None` turns off a setting that takes an `Option`.
///
/// [`ChannelBuilder::build`](crate::ChannelBuilder::build) reports values that are not allowed.
///
/// - **It hangs.** Requests wait there while the other endpoints answer. A new connection then
///   shows whether the process is alive; if it is, a few single requests decide. If all endpoints
///   are slow, or there is no other, none is ejected. A call that its caller gives up is not a
///   failure, but the time it waited counts. Calls that are expected to be slow can be marked with
///   [`ExpectSlow`](crate::ExpectSlow).
/// - **It fails.** Its connections break, it answers `UNAVAILABLE` several times in a row, or most
///   of its calls in an interval end with a failing code. A failed call also counts as load for
///   some seconds, so that an endpoint that fails quickly does not attract calls.
///
/// It does not compare how fast endpoints answer: that is up to the policy. Nor does it judge the
/// single connections of an endpoint that has several: as long as one of them is answered, the
/// endpoint is not silent.
///
/// The names follow gRFC A50; the defaults follow other circuit breakers: linkerd2 ejects after 7
/// failures, for 1 s to 60 s; Finagle and Envoy after 5.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// # use discovery_core::FixedResolver;
/// use std::time::Duration;
/// use discovery_tonic::{BalancedChannel, OutlierDetection};
///
/// // Its instances may be silent for a while, and its status codes do not reflect their health.
/// let detection = OutlierDetection::default()
///     .silence(Duration::from_secs(30))
///     .failure_percentage(None);
/// # let resolver = FixedResolver::new([]);
/// let channel = BalancedChannel::builder(resolver, "reports".parse()?)
///     .outlier_detection(detection)
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct OutlierDetection {
    pub(super) consecutive_failures: Option<u32>,
    pub(super) silence: Option<Duration>,
    failing_codes: Codes,
    pub(super) failure_percentage: Option<u32>,
    pub(super) request_volume: u32,
    pub(super) interval: Duration,
    pub(super) base_ejection_time: Duration,
    pub(super) max_ejection_time: Duration,
}

impl OutlierDetection {
    /// Sets how many consecutive failures eject an endpoint; default 5, at least 1.
    ///
    /// A failure is a call that was lost with its connection, or one answered with `UNAVAILABLE` if
    /// that is a failing code. They eject only while most calls of the other endpoints succeed.
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// Sets how long requests may wait without any answer before the endpoint is suspected to hang;
    /// default 1 s, at least 100 ms.
    ///
    /// A fifth of this is enough while the other endpoints answer. If answers of this service have
    /// recently taken longer, the limit is twice as long as they took.
    pub fn silence(mut self, silence: impl Into<Option<Duration>>) -> Self {
        self.silence = silence.into();
        self
    }

    /// Sets the status codes that count as failures of the endpoint; default `UNAVAILABLE`,
    /// `INTERNAL`, `UNKNOWN` and `DATA_LOSS`. `OK` is not allowed.
    pub fn failing_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.failing_codes = Codes::from_iter(codes);
        self
    }

    /// Sets the percentage of failed calls in an interval that ejects an endpoint; default 85, as
    /// in gRFC A50, from 1 to 100.
    ///
    /// It ejects only if the other endpoints failed at most half as large a share of their calls.
    pub fn failure_percentage(mut self, percentage: impl Into<Option<u32>>) -> Self {
        self.failure_percentage = percentage.into();
        self
    }

    /// Sets the minimum number of calls in an interval; default 20, at least 1. An interval lasts
    /// until it has this many.
    pub fn request_volume(mut self, calls: u32) -> Self {
        self.request_volume = calls;
        self
    }

    /// Sets the minimum length of an interval; default 10 s, as in gRFC A50, at least 100 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how long the first ejection lasts; default 1 s, at least 1 ms.
    ///
    /// The time doubles with each probe that fails. It does not grow while the endpoint cannot
    /// complete a handshake.
    pub fn base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time;
        self
    }

    /// Sets how long an ejection lasts at most; default 60 s, at least the base ejection time.
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// Settings that eject no endpoint.
    pub(crate) fn off() -> Self {
        Self::default().consecutive_failures(None).silence(None).failure_percentage(None)
    }

    /// Whether endpoints that do not answer are detected.
    pub(crate) fn finds_hung(&self) -> bool {
        self.silence.is_some()
    }

    pub(crate) fn codes(&self) -> Codes {
        self.failing_codes
    }

    /// Checks the settings, and caps durations that would overflow when added to an instant.
    pub(crate) fn validated(mut self) -> Result<Self, Error> {
        let at_least = |name: &str, value: Duration, least: Duration| {
            if value < least {
                return Err(invalid(&format!("{name} {value:?}: allowed is at least {least:?}")));
            }
            Ok(value.min(FAR))
        };
        if self.consecutive_failures == Some(0) {
            return Err(invalid("consecutive failures 0: allowed is at least 1, or None"));
        }
        if self.failure_percentage.is_some_and(|percentage| !(1..=100).contains(&percentage)) {
            return Err(invalid("failure percentage: allowed are 1 to 100, or None"));
        }
        if self.request_volume == 0 {
            return Err(invalid("request volume 0: allowed is at least 1"));
        }
        if self.failing_codes.contains(Code::Ok) {
            return Err(invalid("failing codes: OK is not allowed"));
        }
        if let Some(silence) = self.silence {
            self.silence = Some(at_least("silence", silence, SWEEP)?);
        }
        self.interval = at_least("interval", self.interval, SWEEP)?;
        self.base_ejection_time = at_least("base ejection time", self.base_ejection_time, Duration::from_millis(1))?;
        self.max_ejection_time = at_least("max ejection time", self.max_ejection_time, self.base_ejection_time)?;
        Ok(self)
    }
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            silence: Some(Duration::from_secs(1)),
            failing_codes: Codes::from_iter([Code::Unavailable, Code::Internal, Code::Unknown, Code::DataLoss]),
            failure_percentage: Some(85),
            request_volume: 20,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(1),
            max_ejection_time: Duration::from_secs(60),
        }
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("invalid outlier detection: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_bounds_are_rejected_with_the_allowed_range() {
        let usual = OutlierDetection::default;
        let short = Duration::from_micros(10);
        for (detection, allowed) in [
            (usual().consecutive_failures(Some(0)), "at least 1"),
            (usual().silence(Some(Duration::from_millis(99))), "at least 100ms"),
            (usual().failing_codes([Code::Internal, Code::Ok]), "OK is not allowed"),
            (usual().failure_percentage(Some(0)), "1 to 100"),
            (usual().failure_percentage(Some(101)), "1 to 100"),
            (usual().request_volume(0), "at least 1"),
            (usual().interval(short), "at least 100ms"),
            (usual().base_ejection_time(short), "at least 1ms"),
            (usual().max_ejection_time(Duration::from_millis(999)), "at least 1s"),
        ] {
            let error = detection.validated().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(allowed), "{error}");
        }
    }

    #[test]
    fn settings_may_be_off_or_unlimited() {
        let off = OutlierDetection::default().consecutive_failures(None).silence(None).failure_percentage(None);
        assert!(off.failing_codes([]).validated().is_ok());
        let endless = OutlierDetection::default().silence(Some(Duration::MAX)).interval(Duration::MAX);
        let endless = endless.max_ejection_time(Duration::MAX).base_ejection_time(Duration::MAX).validated().unwrap();
        assert_eq!(endless.base_ejection_time, FAR);
    }
}
