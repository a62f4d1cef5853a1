use std::time::Duration;

use tokio::time::Instant;

use super::failure_rate::{FailureRate, FailureRateLimits};
use crate::endpoint::tally::Totals;

/// When an endpoint is taken out, and for how long.
///
/// At most half of the endpoints that are connected are out for this, and where less than half are
/// left all are used: then something else is wrong than they. When its time is over an endpoint
/// gets one request at a time, its probe, until one is answered. A server that says that it does
/// not serve ([`Builder::health`](crate::Builder::health)) is another matter, and so is one that
/// cannot be connected.
///
/// Answers that are slow do not count, as long as they come, nor how an endpoint compares with the
/// others.
///
/// The numbers of consecutive-failure breakers in the field: linkerd2 7 failures and 1 s to 60 s,
/// Finagle and Envoy 5.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), discovery_core::Error> {
/// # use discovery_core::FixedResolver;
/// use std::time::Duration;
/// use discovery_tonic::{BalancedChannel, Ejection};
///
/// // A service whose calls may take half a minute each, and fail for reasons of their own.
/// let mut ejection = Ejection::default();
/// ejection.silence = Duration::from_secs(30);
/// ejection.percent = 0;
/// # let resolver = FixedResolver::new([]);
/// let channel = BalancedChannel::builder(resolver, "reports".parse()?).ejection(ejection).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ejection {
    /// So many requests in a row without an answer: connection lost, deadline passed, or
    /// `UNAVAILABLE`; by default 5. A connection that has never answered anything gets no more than
    /// 2. With 0 this does not count.
    pub failures: u32,
    /// So long without any answer while requests wait for one, one after the other or at the same
    /// time: by default 1 s. Where all calls of a service take longer, so should this; an endpoint
    /// that answers is back at once. At least 100 ms.
    pub silence: Duration,
    /// So many of a hundred calls that failed in an interval: by default 85, as in gRFC A50. With
    /// 0, or above 100, this does not count. An endpoint that is out for this comes back by its
    /// probe alone.
    pub percent: u32,
    /// How many calls an interval must have had for that: by default 50.
    pub volume: u32,
    /// How long such an interval is: by default 10 s.
    pub interval: Duration,
    /// How long it stays out the first time: by default 1 s, doubled each time that its probe
    /// fails.
    pub shortest: Duration,
    /// How long it stays out at most: by default 60 s.
    pub longest: Duration,
}

/// What a sweep sees of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    /// Requests in a row without an answer.
    pub(crate) failures: u32,
    /// Requests that wait for an answer.
    pub(crate) unanswered: u32,
    /// Answers so far; only whether it grows matters.
    pub(crate) answers: u32,
    /// Whether its connection has answered anything.
    pub(crate) proven: bool,
    pub(crate) totals: Totals,
}

/// What the sweeps know of one endpoint. It stays with the instance, whatever becomes of its
/// connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlier {
    state: State,
    /// Ejections in a row.
    streak: u32,
    answers: u32,
    /// How long requests have waited since the last answer.
    silence: Silence,
    /// The requests that hung when it was last probed, which say nothing of the probe.
    hanging: u32,
    failure_rate: FailureRate,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    In,
    /// `strict`: only its probe brings it back.
    Out {
        until: Instant,
        strict: bool,
    },
    /// One request at a time, until one is answered.
    Probing,
}

/// What a sweep does with an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Nothing changes.
    Stay,
    /// It shall get no requests until then; a silent one may be frozen, which a new connection
    /// shows.
    Eject { until: Instant, silent: bool },
    /// It shall get one request at a time, until it answers.
    Probe,
    /// It answered: it is like any other again.
    Restore,
}

impl Outlier {
    pub(crate) fn new() -> Self {
        Self {
            state: State::In,
            streak: 0,
            answers: 0,
            silence: Silence::default(),
            hanging: 0,
            failure_rate: FailureRate::default(),
        }
    }

    /// What holds for another endpoint of the same instance: that it is out, or to be probed.
    /// Nothing where it is not.
    pub(crate) fn for_successor(&self) -> Option<Self> {
        let state = match self.state {
            State::In => return None,
            State::Out { until, .. } => State::Out { until, strict: false },
            State::Probing => State::Out { until: Instant::now(), strict: false },
        };
        Some(Self { state, streak: self.streak, ..Self::new() })
    }

    /// Until when it gets no requests.
    pub(crate) fn out_until(&self) -> Option<Instant> {
        match self.state {
            State::Out { until, .. } => Some(until),
            State::In | State::Probing => None,
        }
    }

    /// Whether it gets one request at a time.
    pub(crate) fn is_probing(&self) -> bool {
        self.state == State::Probing
    }

    /// Whether sweeps must go on although nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        !matches!(self.state, State::Out { .. })
    }

    /// Whether a step would change nothing: nothing waits, and nothing has happened since the last
    /// one.
    pub(crate) fn is_quiet(&self, seen: &Observation) -> bool {
        self.state == State::In
            && (seen.failures, seen.unanswered) == (0, 0)
            && seen.answers == self.answers
            && self.silence.since.is_none()
    }

    /// One step; `may_eject` says whether enough others are left.
    pub(crate) fn step(&mut self, settings: &Ejection, seen: Observation, may_eject: bool) -> Verdict {
        let answered = std::mem::replace(&mut self.answers, seen.answers) != seen.answers;
        self.hanging = self.hanging.min(seen.unanswered);
        if answered {
            self.silence = Silence::default();
        }
        let silent = self.silence.step(seen.now, seen.unanswered > self.hanging) >= settings.silence.max(LEAST_SILENCE);
        let limits =
            FailureRateLimits { interval: settings.interval, percent: settings.percent, volume: settings.volume };
        let failing = self.failure_rate.step(seen.now, seen.totals, limits);
        let most = if seen.proven { settings.failures } else { settings.failures.min(UNPROVEN) };
        let in_a_row = most > 0 && seen.failures >= most;
        match self.state {
            State::In if (in_a_row || silent || failing) && may_eject => {
                self.eject(settings, seen.now, silent, !in_a_row && !silent)
            }
            State::In => {
                if answered && seen.failures == 0 {
                    self.streak = 0;
                }
                Verdict::Stay
            }
            // A late answer is as good as a probe's.
            State::Out { strict: false, .. } | State::Probing if answered && seen.failures == 0 => {
                self.state = State::In;
                self.hanging = 0;
                Verdict::Restore
            }
            State::Out { until, .. } if seen.now >= until => {
                self.state = State::Probing;
                (self.silence, self.hanging) = (Silence::default(), seen.unanswered);
                Verdict::Probe
            }
            State::Out { .. } => Verdict::Stay,
            State::Probing if seen.failures > 0 || silent => self.eject(settings, seen.now, silent, false),
            State::Probing => Verdict::Stay,
        }
    }

    fn eject(&mut self, settings: &Ejection, now: Instant, silent: bool, strict: bool) -> Verdict {
        let factor = 1u32.checked_shl(self.streak).unwrap_or(u32::MAX);
        let until = now + settings.shortest.saturating_mul(factor).min(settings.longest);
        self.streak = self.streak.saturating_add(1);
        self.silence = Silence::default();
        self.failure_rate.reset();
        self.state = State::Out { until, strict };
        Verdict::Eject { until, silent }
    }
}

/// A time in which requests wait, with its interruptions: where one caller after the other gives
/// up, nobody waits long.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    before: Duration,
    since: Option<Instant>,
}

impl Silence {
    /// All of it up to now.
    fn step(&mut self, now: Instant, waiting: bool) -> Duration {
        let present = self.since.map_or(Duration::ZERO, |since| now - since);
        if waiting {
            self.since.get_or_insert(now);
        } else {
            self.before += present;
            self.since = None;
            return self.before;
        }
        self.before + present
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            failures: 5,
            silence: Duration::from_secs(1),
            percent: 85,
            volume: 50,
            interval: Duration::from_secs(10),
            shortest: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        }
    }
}

/// Whether one more of `total` endpoints may be taken out when `out` are: at most half of them.
pub(crate) fn may_eject(out: usize, total: usize) -> bool {
    (out + 1) * 2 <= total
}

/// A sweep or two.
const LEAST_SILENCE: Duration = Duration::from_millis(100);
/// Failures that a connection gets which has never answered.
const UNPROVEN: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(now: Instant, failures: u32, unanswered: u32, answers: u32) -> Observation {
        Observation { now, failures, unanswered, answers, proven: true, totals: Totals::default() }
    }

    #[test]
    fn one_that_never_answered_gets_less_patience() {
        let (settings, now) = (Ejection::default(), Instant::now());
        let fresh = |failures| Observation { proven: false, ..seen(now, failures, 0, 0) };
        assert_eq!(Outlier::new().step(&settings, fresh(1), true), Verdict::Stay);
        assert!(matches!(Outlier::new().step(&settings, fresh(2), true), Verdict::Eject { .. }));
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answered_probe_brings_back() {
        let settings = Ejection::default();
        let (mut outlier, start) = (Outlier::new(), Instant::now());
        assert_eq!(outlier.step(&settings, seen(start, 4, 0, 7), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, seen(start, 5, 0, 7), false), Verdict::Stay, "too many are out");
        let until = start + settings.shortest;
        assert_eq!(outlier.step(&settings, seen(start, 5, 0, 7), true), Verdict::Eject { until, silent: false });
        assert_eq!(outlier.step(&settings, seen(start, 5, 0, 7), true), Verdict::Stay);
        // The pool sets the failures back when it starts to probe.
        assert_eq!(outlier.step(&settings, seen(until, 5, 0, 7), true), Verdict::Probe);
        assert_eq!(outlier.step(&settings, seen(until, 0, 1, 7), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, seen(until, 0, 0, 8), true), Verdict::Restore);
        assert!(outlier.is_idle());
    }

    #[test]
    fn a_failed_probe_doubles_the_time_up_to_the_longest() {
        let settings = Ejection::default();
        let (mut outlier, mut now) = (Outlier::new(), Instant::now());
        let mut times = Vec::new();
        for failures in [5, 1, 1, 1, 1, 1, 1, 1] {
            let Verdict::Eject { until, .. } = outlier.step(&settings, seen(now, failures, 0, 0), true) else {
                panic!("not ejected")
            };
            times.push((until - now).as_secs());
            now = until;
            assert_eq!(outlier.step(&settings, seen(now, 0, 0, 0), true), Verdict::Probe);
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn silence_ejects_where_requests_wait_without_an_answer() {
        let settings = Ejection::default();
        let (mut outlier, start) = (Outlier::new(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(outlier.step(&settings, seen(at(0), 0, 3, 0), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, seen(at(900), 0, 3, 1), true), Verdict::Stay, "one was answered");
        assert_eq!(outlier.step(&settings, seen(at(1000), 0, 2, 1), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, seen(at(1500), 0, 0, 1), true), Verdict::Stay, "nobody waits");
        assert_eq!(outlier.step(&settings, seen(at(9000), 0, 1, 1), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, seen(at(9300), 0, 1, 1), true), Verdict::Stay, "900 ms so far");
        let verdict = outlier.step(&settings, seen(at(9400), 0, 1, 1), true);
        assert!(matches!(verdict, Verdict::Eject { silent: true, .. }), "{verdict:?}");
    }

    #[test]
    fn what_hangs_from_before_does_not_fail_the_probe() {
        let settings = Ejection::default();
        let (mut outlier, start) = (Outlier::new(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        outlier.step(&settings, seen(at(0), 0, 3, 0), true);
        assert!(matches!(outlier.step(&settings, seen(at(1000), 0, 3, 0), true), Verdict::Eject { .. }));
        assert_eq!(outlier.step(&settings, seen(at(2000), 0, 3, 0), true), Verdict::Probe);
        assert_eq!(outlier.step(&settings, seen(at(9000), 0, 3, 0), true), Verdict::Stay, "nobody has probed");
        assert_eq!(outlier.step(&settings, seen(at(9100), 0, 4, 0), true), Verdict::Stay);
        assert!(matches!(outlier.step(&settings, seen(at(10_100), 0, 4, 0), true), Verdict::Eject { .. }));
    }

    #[test]
    fn most_calls_failing_ejects_though_never_many_in_a_row() {
        let (settings, start) = (Ejection::default(), Instant::now());
        let at = |seconds, ended, failed| Observation {
            totals: Totals { ended, failed },
            ..seen(start + Duration::from_secs(seconds), 1, 0, ended)
        };
        let mut outlier = Outlier::new();
        assert_eq!(outlier.step(&settings, at(0, 0, 0), true), Verdict::Stay);
        assert_eq!(outlier.step(&settings, at(10, 100, 80), true), Verdict::Stay, "not that many");
        assert_eq!(outlier.step(&settings, at(20, 200, 170), false), Verdict::Stay, "too many are out");
        assert!(matches!(outlier.step(&settings, at(30, 300, 260), true), Verdict::Eject { .. }));
    }

    #[test]
    fn at_most_half_are_out() {
        let most = |total| (0..).take_while(|out| may_eject(*out, total)).count();
        assert_eq!([1, 2, 3, 4, 5, 10].map(most), [0, 1, 1, 2, 2, 5]);
    }
}
