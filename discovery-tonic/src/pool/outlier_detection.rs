use std::time::Duration;

use discovery_core::{Error, ErrorKind};
use tonic::Code;

use crate::{connection::settings::FAR, endpoint::tally::Codes, wakeups::SWEEP};

/// When an endpoint is ejected, and for how long (gRFC A50).
///
/// An endpoint is compared with the rest of the set: what all of them do ejects nobody. At most
/// half of the connected endpoints are ejected at a time, and where less than half are left, all
/// are used. When its time is over an ejected endpoint gets one request at a time until one is
/// answered. Each setting that takes an `Option` is turned off by `None`.
///
/// - **It hangs.** Requests wait there while the others answer. A new connection shows whether the
///   process is alive; if it is, a few single requests decide. Where all endpoints are slow, or
///   there is no other, nothing is ejected. A call that its caller gives up is no failure, but the
///   time that it waited counts. Calls that are meant to be slow can be marked
///   ([`ExpectSlow`](crate::ExpectSlow)).
/// - **It fails.** Its connections break, it answers `UNAVAILABLE` several times in a row, or most
///   of its calls in an interval end with one of the failing codes. A failed call counts as load
///   for some seconds, so that an endpoint that fails at once attracts no calls.
///
/// It does not compare how fast endpoints answer, as long as they do: that is the policy's part.
/// Nor does it look at single connections of an endpoint that has several: while one of them is
/// answered the endpoint is not silent.
///
/// The names are those of gRFC A50, the defaults those of other breakers: linkerd2 ejects after 7
/// failures, for 1 s to 60 s; Finagle and Envoy after 5.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// # use discovery_core::FixedResolver;
/// use std::time::Duration;
/// use discovery_tonic::{BalancedChannel, OutlierDetection};
///
/// // A service that is often silent for a while, and whose codes say nothing of the server.
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
    /// Ejects after this many calls in a row that were lost with their connection, or answered with
    /// `UNAVAILABLE` while that is a failing code, if most calls of the others succeed meanwhile;
    /// by default 5. At least 1.
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        self.consecutive_failures = failures.into();
        self
    }

    /// How long requests may wait without any answer before an endpoint is suspected to hang of
    /// which no other is known to be faster; by default 1 s. While the others answer, a fifth of
    /// it; where answers of this service are seen to take longer, twice as long as they take. At
    /// least 100 ms.
    pub fn silence(mut self, silence: impl Into<Option<Duration>>) -> Self {
        self.silence = silence.into();
        self
    }

    /// The codes that count as failures of the server; by default `UNAVAILABLE`, `INTERNAL`,
    /// `UNKNOWN` and `DATA_LOSS`.
    pub fn failing_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.failing_codes = Codes::from_iter(codes);
        self
    }

    /// Ejects an endpoint if this many of a hundred calls in an interval failed, and at least twice
    /// the share of the others; by default 85, as in gRFC A50. From 1 to 100.
    pub fn failure_percentage(mut self, percentage: impl Into<Option<u32>>) -> Self {
        self.failure_percentage = percentage.into();
        self
    }

    /// How many calls an interval has at least: it goes on until then. By default 20, at least 1.
    pub fn request_volume(mut self, calls: u32) -> Self {
        self.request_volume = calls;
        self
    }

    /// How long an interval lasts at least; by default 10 s, as in gRFC A50. At least 100 ms.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// How long an ejection lasts the first time; by default 1 s. It doubles each time that the
    /// endpoint fails its probe, except while nothing but its handshake is waited for. At least
    /// 1 ms.
    pub fn base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time;
        self
    }

    /// How long an ejection lasts at most; by default 60 s. At least the base ejection time.
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// Ejects no endpoint.
    pub(crate) fn off() -> Self {
        Self::default().consecutive_failures(None).silence(None).failure_percentage(None)
    }

    /// Whether endpoints that do not answer are to be found.
    pub(crate) fn finds_hung(&self) -> bool {
        self.silence.is_some()
    }

    pub(crate) fn codes(&self) -> Codes {
        self.failing_codes
    }

    /// Checks the settings, and caps what no clock can add up.
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
            return Err(invalid("failing codes: OK is not allowed among them"));
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
    fn settings_out_of_bounds_are_refused_with_what_is_allowed() {
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
    fn settings_may_be_off_or_without_end() {
        let off = OutlierDetection::default().consecutive_failures(None).silence(None).failure_percentage(None);
        assert!(off.failing_codes([]).validated().is_ok());
        let endless = OutlierDetection::default().silence(Some(Duration::MAX)).interval(Duration::MAX);
        let endless = endless.max_ejection_time(Duration::MAX).base_ejection_time(Duration::MAX).validated().unwrap();
        assert_eq!(endless.base_ejection_time, FAR);
    }
}
