//! The state machine that decides which endpoint is checked, ejected, probed or restored.
//!
//! It does no I/O. All endpoints are first observed ([`observation`]), then judged, because each is
//! compared with what the others do; the results are [`orders`].
//!
//! - An endpoint is *in* at first. If it is silent while the others answer it becomes *suspect*,
//!   and a check begins: a second connection that shows whether the peer is alive. A suspect
//!   returns when it answers.
//! - It is *ejected* if single requests are not answered, if it cannot be reached, or if its calls
//!   fail while those of the others succeed.
//! - When its time is over it is *probed* by a single request; if it was silent, a check must
//!   succeed first. An answer restores it, anything else ejects it again.

pub(crate) mod observation;
pub(crate) mod orders;

use std::{mem, time::Duration};

use tokio::time::Instant;

use super::{
    fleet::{Census, Counts, Fleet, Recent},
    outlier_detection::OutlierDetection,
};
use crate::{
    endpoint::{check::Checked, tally::Totals},
    wakeups::SWEEP,
};
use observation::{Observation, Tickets};
use orders::{Access, Cause, CheckOrder, News, Orders};

/// What is known of one endpoint, and the rules that decide about it. It belongs to the instance
/// and outlives its connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outlier {
    state: State,
    /// Consecutive ejections, not counting those of an unreachable peer.
    streak: u32,
    /// When the next check may begin.
    next_check: Option<Instant>,
    /// Failed checks since the endpoint was ejected.
    failed_checks: u32,
    /// The check as of the last observation, and how many sweeps it has lasted.
    check: Checked,
    check_sweeps: u32,
    /// The totals as of the last observation.
    totals: Totals,
    own: Counts,
    recent: Recent,
    /// It has answered, or failed, since the previous observation.
    answered: bool,
    failed: bool,
    /// Callers have given up since the last sweep.
    gave_up: bool,
    /// The number of sweeps in which requests waited since the last answer. Accumulated, because
    /// impatient callers may each wait only briefly.
    silence: u32,
    /// What the others had done by the sweep in which the silence, or the series of failures,
    /// began. What they have done since is compared.
    before_silence: Option<Counts>,
    before_row: Option<Counts>,
    /// When the current interval of the failure percentage began, and what this endpoint and the
    /// others had done by then.
    interval: Option<(Instant, Counts, Counts)>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    In,
    /// It is silent while the others answer: it gets one request at a time, if any.
    Suspect(Trial),
    Ejected {
        until: Instant,
        cause: Cause,
    },
    /// It gets one request at a time, until one is answered.
    Probing(Trial),
}

/// Requests that are sent one at a time to see whether they are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Trial {
    /// How many were not answered.
    unanswered: u32,
    /// The silence when the current one was sent; `None` if none has been allowed yet.
    from: Option<u32>,
    /// The total of requests given up by then.
    given_up: u32,
    /// The total of failures when the trial began.
    failed: u64,
}

/// After how many sweeps of silence something is done.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Suspect the endpoint, if the others answer.
    suspect: u32,
    /// Count a single request as unanswered.
    trial: u32,
    /// Check the endpoint, even if the others are not known to be better.
    alone: u32,
    /// End a check, and give up either the former connections or the new one.
    check: u32,
}

impl Outlier {
    /// The state that another endpoint of the same instance inherits: an ejection, which is over at
    /// once if this endpoint is being probed. `None` if it is neither.
    pub(crate) fn for_successor(&self) -> Option<Self> {
        let until = match self.state {
            State::In | State::Suspect(_) => return None,
            State::Ejected { until, .. } => until,
            State::Probing(_) => Instant::now(),
        };
        let state = State::Ejected { until, cause: Cause::Silent };
        Some(Self { state, streak: self.streak, ..Self::default() })
    }

    /// The state of the same endpoint once all of its connections are replaced. Its totals go on.
    pub(crate) fn with_new_connections(&self) -> Self {
        let successor = self.for_successor().unwrap_or_default();
        Self { next_check: self.next_check, totals: self.totals, own: self.own, ..successor }
    }

    /// Until when it is ejected.
    pub(crate) fn ejected_until(&self) -> Option<Instant> {
        match self.state {
            State::Ejected { until, .. } => Some(until),
            State::In | State::Suspect(_) | State::Probing(_) => None,
        }
    }

    /// Whether it gets one request at a time, if any.
    pub(crate) fn is_limited(&self) -> bool {
        matches!(self.state, State::Suspect(_) | State::Probing(_))
    }

    /// Whether sweeps must continue even if nothing is in flight.
    pub(crate) fn needs_sweeps(&self) -> bool {
        self.ejected_until().is_some()
    }

    pub(crate) fn recent(&self) -> Recent {
        self.recent
    }

    /// Counts this endpoint in the census of a sweep.
    pub(crate) fn count_in(&self, census: &mut Census, fleet: &Fleet) {
        // An endpoint that is being probed is not restored yet.
        let is_ejected = matches!(self.state, State::Ejected { .. } | State::Probing(_));
        // A usual wait does not count as silence.
        census.add(is_ejected, self.silence >= fleet.longest_gap().saturating_add(1).max(2), self.recent);
    }

    /// Records what has happened since the last observation, here and in the fleet.
    pub(crate) fn observe(&mut self, seen: &Observation, fleet: &mut Fleet) {
        let news = seen.totals.since(&mem::replace(&mut self.totals, seen.totals));
        self.own.add(&news);
        fleet.add(&news);
        self.recent.add(&news, seen.is_sweep);
        self.answered = news.answers > 0;
        self.failed = news.failed > 0;
        self.gave_up |= news.given_up > 0;
        if self.answered {
            // The waits of an ejected or stuck endpoint do not count as usual.
            let is_stuck = matches!(seen.check, Checked::Open { former: false, .. });
            if matches!(self.state, State::In | State::Suspect(_)) && !is_stuck {
                fleet.note_gap(self.silence);
            }
            self.silence = 0;
            self.before_silence = None;
            self.gave_up = false;
        } else if !seen.is_connected {
            // Its calls are lost. The next connection begins without silence.
            self.silence = 0;
            self.before_silence = None;
        } else if seen.is_sweep {
            self.silence = self.silence.saturating_add(u32::from(mem::take(&mut self.gave_up) || seen.waiting > 0));
        }
        if seen.failures == 0 {
            self.before_row = None;
            if self.answered && self.state == State::In {
                self.streak = 0;
            }
        }
    }

    /// Whether there is nothing to decide, so that the endpoint need not be judged.
    pub(crate) fn is_quiet(&self, rule: &OutlierDetection, seen: &Observation) -> bool {
        self.state == State::In
            && seen.check == Checked::None
            && (self.silence, seen.failures) == (0, 0)
            && (seen.tickets == Tickets::Unlimited || (seen.cold.is_some() && seen.tickets != Tickets::Gone))
            && self.interval.is_some_and(|(since, ..)| seen.now - since < rule.interval)
    }

    /// Decides what to do, after all endpoints were observed.
    pub(crate) fn judge(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> Orders {
        let mut orders = Orders::default();
        let limits = Limits::new(rule.silence.unwrap_or(SILENCE), fleet.longest_gap());
        let is_compared = self.is_compared(fleet);
        let is_unreachable = self.follow_check(seen, limits, &mut orders);
        let fails = self.fails(rule, seen, fleet);
        match self.state {
            State::In | State::Suspect(_) if fails && fleet.may_eject() => {
                self.eject(rule, seen, Cause::Failing, &mut orders);
            }
            State::In | State::Suspect(_)
                if is_unreachable && self.silence > 0 && !fleet.mostly_silent() && fleet.may_eject() =>
            {
                self.eject(rule, seen, Cause::Unreachable, &mut orders);
            }
            State::In => self.suspect(rule, seen, limits, is_compared, &mut orders),
            State::Suspect(_) if self.answered || !is_compared => {
                self.state = State::In;
                self.open(&mut orders);
            }
            State::Suspect(trial) => match (seen.check, self.next_check) {
                (Checked::Pending | Checked::Failed, _) => {}
                (Checked::None, next) if next.is_none_or(|next| seen.now >= next) => {
                    self.begin_check(seen, &mut orders);
                }
                (Checked::None | Checked::Open { .. }, _) => {
                    self.follow_trial(rule, seen, limits, trial, fleet.may_eject(), &mut orders);
                }
            },
            // With all endpoints ejected there is none to compare with.
            State::Ejected { .. } | State::Probing(_) if fleet.all_ejected() => self.restore(&mut orders),
            // A late answer is as good as the answer to a probe.
            State::Ejected { cause: Cause::Silent | Cause::Unreachable, .. } if self.answered => {
                self.restore(&mut orders);
            }
            State::Ejected { until, .. } if seen.now < until => {}
            State::Ejected { cause, .. } => match (cause, seen.check) {
                (Cause::Failing, _) | (_, Checked::Open { .. }) => self.probe(&mut orders),
                (_, Checked::Pending) => {}
                (_, Checked::None) => {
                    self.next_check = None;
                    self.begin_check(seen, &mut orders);
                }
                (_, Checked::Failed) => {
                    self.failed_checks += 1;
                    // The peer may refuse new connections and still answer on one that it has.
                    if self.failed_checks.is_multiple_of(MOST_FAILED_CHECKS) {
                        self.probe(&mut orders);
                    } else {
                        self.eject(rule, seen, Cause::Unreachable, &mut orders);
                    }
                }
            },
            State::Probing(trial) if self.own.failed > trial.failed => {
                self.eject(rule, seen, Cause::Failing, &mut orders);
            }
            State::Probing(_) if self.answered => self.restore(&mut orders),
            State::Probing(trial) => self.follow_trial(rule, seen, limits, trial, true, &mut orders),
        }
        self.begin_comparison(seen, fleet);
        orders
    }

    /// What all other endpoints have done so far.
    fn others(&self, fleet: &Fleet) -> Counts {
        fleet.counts().since(&self.own)
    }

    /// Whether the others have answered since this one fell silent, and are mostly not silent
    /// themselves.
    fn is_compared(&self, fleet: &Fleet) -> bool {
        let have_answered = |before: Counts| self.others(fleet).since(&before).answers > 0;
        self.before_silence.is_some_and(have_answered) && !fleet.mostly_silent()
    }

    /// Records what the others have done by now, if this endpoint is silent or fails, so that what
    /// they do later can be compared.
    fn begin_comparison(&mut self, seen: &Observation, fleet: &Fleet) {
        let others = self.others(fleet);
        if seen.is_sweep && self.silence > 0 {
            self.before_silence.get_or_insert(others);
        }
        if seen.is_sweep && seen.failures > 0 {
            self.before_row.get_or_insert(others);
        }
    }

    /// Whether it fails while the others do not: several calls in a row, or most calls of an
    /// interval.
    fn fails(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> bool {
        let others = self.others(fleet);
        // Only if it failed just now: otherwise it may have recovered like the others.
        let in_row = self.failed
            && rule.consecutive_failures.is_some_and(|most| seen.failures >= most)
            && self.before_row.is_some_and(|before| others.since(&before).mostly_succeed());
        let begin = (seen.now, self.own, others);
        let (since, own, before) = *self.interval.get_or_insert(begin);
        let own = self.own.since(&own);
        if seen.now - since < rule.interval || own.ended < rule.request_volume.into() {
            return in_row;
        }
        self.interval = Some(begin);
        let stands_out = |most| own.fails(most) && own.stands_out(&others.since(&before));
        in_row || rule.failure_percentage.is_some_and(stands_out)
    }

    /// Suspects a silent endpoint, checks one that cannot be compared, or opens one that need not
    /// prove itself.
    fn suspect(
        &mut self,
        rule: &OutlierDetection,
        seen: &Observation,
        limits: Limits,
        is_compared: bool,
        orders: &mut Orders,
    ) {
        let finds_hung = rule.silence.is_some() && !self.is_check_answered();
        let is_used_up = seen.cold.is_some() && seen.tickets == Tickets::Gone;
        if finds_hung && is_compared && (self.silence >= limits.suspect || is_used_up) {
            // Requests that wait at an endpoint that never answered count as single requests.
            let unanswered = seen.cold.unwrap_or(MOST_UNANSWERED - TRIALS).min(MOST_UNANSWERED - 1);
            self.state = State::Suspect(Trial { unanswered, from: None, given_up: 0, failed: 0 });
            orders.access = Some(Access::Tickets(0));
            self.begin_check(seen, orders);
        } else if seen.check == Checked::None {
            orders.access = match (seen.cold, seen.tickets) {
                (_, Tickets::Unlimited) | (Some(_), Tickets::Left) => None,
                // The requests ended and prove nothing: allow as many again.
                (Some(cold), Tickets::Gone) if self.silence == 0 => Some(Access::Tickets(cold)),
                // Keep the limit, because the others may be better, or are.
                (Some(_), _) if self.before_silence.is_none() || is_compared => None,
                (Some(_), _) | (None, _) => Some(Access::Open),
            };
        } else if orders.check.is_none() && seen.tickets == Tickets::Gone {
            orders.access = Some(Access::Check);
        }
        if finds_hung && self.silence >= limits.alone {
            self.begin_check(seen, orders);
        }
    }

    /// Sends single requests until one is answered, or until enough are not.
    fn follow_trial(
        &mut self,
        rule: &OutlierDetection,
        seen: &Observation,
        limits: Limits,
        mut trial: Trial,
        may_eject: bool,
        orders: &mut Orders,
    ) {
        let waited = trial.from.map_or(0, |from| self.silence.saturating_sub(from));
        let is_unanswered = match seen.tickets {
            Tickets::Gone => seen.totals.given_up != trial.given_up && trial.from.is_some(),
            Tickets::Taken => waited >= limits.trial,
            Tickets::Left | Tickets::Unlimited => false,
        };
        let may_send = is_unanswered || trial.from.is_none() || seen.tickets == Tickets::Gone;
        trial.unanswered += u32::from(is_unanswered);
        let is_probe = matches!(self.state, State::Probing(_));
        if is_unanswered && may_eject && (is_probe || trial.unanswered >= MOST_UNANSWERED) {
            return self.eject(rule, seen, Cause::Silent, orders);
        }
        if may_send {
            orders.access = Some(Access::Tickets(1));
        }
        if may_send || seen.tickets == Tickets::Left {
            trial.from = Some(self.silence);
            trial.given_up = seen.totals.given_up;
        }
        self.state = if is_probe { State::Probing(trial) } else { State::Suspect(trial) };
    }

    /// Ends a check once it has failed, or once it is clear which connection is better; returns
    /// whether it has failed.
    fn follow_check(&mut self, seen: &Observation, limits: Limits, orders: &mut Orders) -> bool {
        let before = mem::replace(&mut self.check, seen.check);
        self.check_sweeps = self.check_sweeps.saturating_add(u32::from(seen.is_sweep));
        let is_over = self.check_sweeps >= limits.check;
        if matches!(seen.check, Checked::Open { .. }) {
            self.next_check = Some(seen.now + CHECK_INTERVAL);
        }
        match seen.check {
            Checked::None if !matches!(before, Checked::Open { .. }) => {}
            // The connection of the check has ended.
            Checked::None => self.leave_check(orders),
            Checked::Pending if !is_over => {}
            Checked::Failed | Checked::Pending => {
                self.next_check = Some(seen.now + SILENCE);
                orders.check = Some(CheckOrder::End);
                self.leave_check(orders);
                return true;
            }
            Checked::Open { former: false, answered } if !is_over => {
                if answered && !matches!(before, Checked::Open { answered: true, .. }) {
                    // From now on no request goes to the silent connections.
                    orders.access = Some(Access::Tickets(0));
                }
            }
            Checked::Open { former, answered } => {
                let replaces = answered && !former;
                orders.check = Some(if replaces { CheckOrder::Replace } else { CheckOrder::End });
                self.leave_check(orders);
                if replaces {
                    orders.access = None;
                }
            }
        }
        false
    }

    /// Continues without a check.
    fn leave_check(&mut self, orders: &mut Orders) {
        self.check = Checked::None;
        if let State::Suspect(trial) | State::Probing(trial) = &mut self.state {
            // The next request goes to another connection, so its wait starts over.
            trial.from = None;
        }
        self.open(orders);
    }

    fn is_check_answered(&self) -> bool {
        matches!(self.check, Checked::Open { answered: true, .. })
    }

    fn begin_check(&mut self, seen: &Observation, orders: &mut Orders) {
        if self.next_check.is_none_or(|next| seen.now >= next) && seen.check == Checked::None {
            self.check_sweeps = 0;
            orders.check = Some(CheckOrder::Begin);
        }
    }

    /// Opens an endpoint that is in, unless the connection of its check has answered.
    fn open(&self, orders: &mut Orders) {
        if self.state == State::In && !self.is_check_answered() {
            orders.access = Some(Access::Open);
        }
    }

    fn probe(&mut self, orders: &mut Orders) {
        self.silence = 0;
        let given_up = self.totals.given_up;
        let failed = self.own.failed;
        self.state = State::Probing(Trial { unanswered: 0, from: Some(0), given_up, failed });
        orders.access = Some(Access::Tickets(1));
        orders.news = Some(News::Probed);
    }

    fn restore(&mut self, orders: &mut Orders) {
        self.state = State::In;
        self.failed_checks = 0;
        // It is no longer known to be alive but slow, so the next check need not wait.
        self.next_check = None;
        self.open(orders);
        orders.news = Some(News::Restored);
    }

    fn eject(&mut self, rule: &OutlierDetection, seen: &Observation, cause: Cause, orders: &mut Orders) {
        let mut factor = 1;
        // An unreachable endpoint gets no requests, so its ejections need not grow longer.
        if cause != Cause::Unreachable {
            factor = 1u32.checked_shl(self.streak).unwrap_or(u32::MAX);
            self.streak = self.streak.saturating_add(1);
        }
        let until = seen.now + rule.base_ejection_time.saturating_mul(factor).min(rule.max_ejection_time);
        let again = matches!(self.state, State::Ejected { .. } | State::Probing(_));
        self.state = State::Ejected { until, cause };
        self.silence = 0;
        self.before_silence = None;
        self.before_row = None;
        self.interval = None;
        self.check = Checked::None;
        if seen.check != Checked::None {
            orders.check = Some(CheckOrder::End);
        }
        orders.news = Some(News::Ejected { until, cause, again });
    }
}

impl Limits {
    fn new(silence: Duration, longest_gap: u32) -> Self {
        let alone = silence.as_millis().div_ceil(SWEEP.as_millis()).try_into().unwrap_or(u32::MAX);
        // Twice the usual wait, plus the sweep in which it began.
        let usual = longest_gap.saturating_mul(2).saturating_add(1);
        let limit = |sweeps: u32| sweeps.max(2).max(usual);
        Self {
            suspect: limit(alone.div_ceil(5)),
            trial: limit(alone.div_ceil(2)),
            alone: limit(alone),
            check: limit(alone).saturating_mul(10),
        }
    }
}

/// How many unanswered requests eject an endpoint that is alive, while the others answer.
const MOST_UNANSWERED: u32 = 5;
/// How many of them are sent one at a time, if the endpoint has answered before.
const TRIALS: u32 = 3;
/// After this many failed checks a request is sent nevertheless.
const MOST_FAILED_CHECKS: u32 = 10;
/// The minimum time between two checks of an endpoint that is alive but slow.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The wait after a failed check, and the limit for probes if silence is not detected.
const SILENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
