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

/// What the sweeps know of one endpoint, and the rule that decides what becomes of it. It stays
/// with the instance, whatever becomes of its connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outlier {
    state: State,
    /// Ejections in a row.
    streak: u32,
    /// When the next check may begin, and whether the last one found the peer alive.
    checked: Option<(Instant, bool)>,
    /// Checks that failed since the endpoint was ejected.
    failed_checks: u32,
    /// How many sweeps the present check has lasted, and whether its connection has answered.
    check_sweeps: u32,
    check_answered: bool,
    /// As of the last look.
    totals: Totals,
    own: Counts,
    recent: Recent,
    /// It has answered, or failed, since the look before.
    answered: bool,
    failed: bool,
    /// Requests were given up since the last sweep.
    gave_up: bool,
    /// How many sweeps requests have waited since the last answer, whether one or several.
    silence: u32,
    /// What the others had done after the sweep in which the silence began, or the present row of
    /// failures: what they do later is compared.
    before_silence: Option<Counts>,
    before_row: Option<Counts>,
    /// When the present interval of the failure percentage began, with what it and the others had
    /// done.
    interval: Option<(Instant, Counts, Counts)>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    In,
    /// The others answer, it does not: requests go there one by one, if at all.
    Suspect(Trial),
    Ejected {
        until: Instant,
        cause: Cause,
    },
    /// One request at a time, until one is answered.
    Probing(Trial),
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cause {
    Failing,
    Silent,
    /// The peer did not shake hands.
    Unreachable,
}

/// Requests that are sent one by one to see whether they are answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Trial {
    /// Those that were not.
    unanswered: u32,
    /// The silence when the present one was sent, if one was allowed.
    from: Option<u32>,
    /// The failures when it began.
    failed: u64,
}

/// What a look finds at an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observation {
    pub(crate) now: Instant,
    /// It belongs to a sweep, of which each counts as much waiting.
    pub(crate) is_sweep: bool,
    /// Requests that wait for an answer.
    pub(crate) waiting: u32,
    /// Calls in a row that were lost, or answered with `UNAVAILABLE`.
    pub(crate) failures: u32,
    pub(crate) totals: Totals,
    /// How many requests it gets before its first answer; `None` where there is no limit, or once
    /// it has answered.
    pub(crate) cold: Option<u32>,
    pub(crate) tickets: Tickets,
    pub(crate) check: Checked,
}

/// What has become of the requests that an endpoint is allowed before it answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tickets {
    Unlimited,
    /// There are some left.
    Left,
    /// There are none left, and requests wait for their answers.
    Taken,
    /// There are none left, and nothing waits.
    Gone,
}

/// What the pool does with an endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Orders {
    pub(crate) access: Option<Access>,
    pub(crate) check: Option<CheckOrder>,
    pub(crate) news: Option<News>,
}

/// How an endpoint takes requests from now on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    Open,
    /// This many on its newest connection, none on others, until one is answered.
    Tickets(u32),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CheckOrder {
    Begin,
    /// The connections stay as they were before.
    End,
    /// The new connection takes the place of the others, which keep their requests.
    Replace,
}

/// What calls and people shall see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum News {
    Ejected { until: Instant, cause: Cause, again: bool },
    Probed,
    Restored,
}

/// How many sweeps of silence lead to what.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// An endpoint is suspected while the others answer.
    suspect: u32,
    /// A single request is not answered.
    trial: u32,
    /// An endpoint is checked although nothing says that others are better.
    alone: u32,
    /// The former connections are given up for the new one, or the new one for them.
    check: u32,
}

impl Outlier {
    /// What holds for another endpoint of the same instance: that it is ejected, or to be probed.
    /// Nothing where it is not.
    pub(crate) fn for_successor(&self) -> Option<Self> {
        let until = match self.state {
            State::In | State::Suspect(_) => return None,
            State::Ejected { until, .. } => until,
            State::Probing(_) => Instant::now(),
        };
        let state = State::Ejected { until, cause: Cause::Silent };
        Some(Self { state, streak: self.streak, ..Self::default() })
    }

    /// The same endpoint with other connections.
    pub(crate) fn with_new_connections(&self) -> Self {
        let successor = self.for_successor().unwrap_or_default();
        Self { checked: self.checked, totals: self.totals, own: self.own, ..successor }
    }

    /// Until when it gets no requests.
    pub(crate) fn out_until(&self) -> Option<Instant> {
        match self.state {
            State::Ejected { until, .. } => Some(until),
            State::In | State::Suspect(_) | State::Probing(_) => None,
        }
    }

    /// Whether it gets requests one by one, if at all.
    pub(crate) fn is_limited(&self) -> bool {
        matches!(self.state, State::Suspect(_) | State::Probing(_))
    }

    /// Whether sweeps must go on although nothing is in flight.
    pub(crate) fn needs_sweeps(&self) -> bool {
        self.out_until().is_some()
    }

    pub(crate) fn recent(&self) -> Recent {
        self.recent
    }

    /// Counts this endpoint among those of a sweep.
    pub(crate) fn count_in(&self, census: &mut Census) {
        // One that is probed is not back yet.
        let is_ejected = matches!(self.state, State::Ejected { .. } | State::Probing(_));
        census.add(is_ejected, self.silence, self.recent);
    }

    /// Takes what has happened since the last look, for itself and for the fleet.
    pub(crate) fn observe(&mut self, seen: &Observation, fleet: &mut Fleet) {
        let news = seen.totals.since(&mem::replace(&mut self.totals, seen.totals));
        self.own.add(&news);
        fleet.add(&news);
        self.recent.add(&news, seen.is_sweep);
        self.answered = news.answers > 0;
        self.failed = news.failed > 0;
        self.gave_up |= news.given_up > 0;
        if self.answered {
            // An ejected one is not what others are measured by.
            if matches!(self.state, State::In | State::Suspect(_)) {
                fleet.note_gap(self.silence);
            }
            self.silence = 0;
            self.before_silence = None;
            self.gave_up = false;
        } else if seen.is_sweep && (seen.waiting > 0 || mem::take(&mut self.gave_up)) {
            self.silence = self.silence.saturating_add(1);
        }
        if seen.failures == 0 {
            self.before_row = None;
            if self.answered && self.state == State::In {
                self.streak = 0;
            }
        }
    }

    /// Whether there is nothing to decide.
    pub(crate) fn is_quiet(&self, rule: &OutlierDetection, seen: &Observation) -> bool {
        self.state == State::In
            && seen.check == Checked::None
            && (self.silence, seen.failures) == (0, 0)
            && (seen.tickets == Tickets::Unlimited || (seen.cold.is_some() && seen.tickets != Tickets::Gone))
            && self.interval.is_some_and(|(since, ..)| seen.now - since < rule.interval)
    }

    /// Decides, after everybody was observed.
    pub(crate) fn judge(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> Orders {
        let mut orders = Orders::default();
        let limits = Limits::new(rule.silence.unwrap_or(SILENCE), fleet.longest_gap());
        let is_compared = self.is_compared(fleet);
        let is_unreachable = self.follow_check(rule, seen, limits, &mut orders);
        let fails = self.fails(rule, seen, fleet);
        match self.state {
            State::In | State::Suspect(_) if fails && fleet.may_eject() => {
                self.eject(rule, seen, Cause::Failing, &mut orders);
            }
            State::In | State::Suspect(_)
                if is_unreachable && self.silence > 0 && !fleet.is_silent() && fleet.may_eject() =>
            {
                self.eject(rule, seen, Cause::Unreachable, &mut orders);
            }
            State::In => self.suspect(rule, seen, limits, is_compared, &mut orders),
            State::Suspect(_) if self.answered || !is_compared => {
                self.state = State::In;
                self.open(&mut orders);
            }
            State::Suspect(trial) => match (seen.check, self.checked) {
                (Checked::Pending | Checked::Failed, _) => {}
                (Checked::None, Some((next, true))) if seen.now < next => {
                    self.follow_trial(rule, seen, limits, trial, fleet.may_eject(), &mut orders);
                }
                (Checked::None, _) => self.begin_check(seen, &mut orders),
                (Checked::Open { .. }, _) => {
                    self.follow_trial(rule, seen, limits, trial, fleet.may_eject(), &mut orders);
                }
            },
            State::Ejected { .. } | State::Probing(_) if fleet.is_ejected() => self.restore(&mut orders),
            // A late answer is as good as a probe's.
            State::Ejected { cause: Cause::Silent | Cause::Unreachable, .. } if self.answered => {
                self.restore(&mut orders);
            }
            State::Ejected { until, .. } if seen.now < until => {}
            State::Ejected { cause, .. } => match (cause, seen.check) {
                (Cause::Failing, _) | (_, Checked::Open { .. }) => self.probe(&mut orders),
                (_, Checked::Pending) => {}
                (_, Checked::None) => {
                    self.checked = None;
                    self.begin_check(seen, &mut orders);
                }
                (_, Checked::Failed) => {
                    self.failed_checks += 1;
                    // It may take no more connections, and still answer.
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

    /// Whether the others have answered since this one is silent, and are not silent themselves.
    fn is_compared(&self, fleet: &Fleet) -> bool {
        let have_answered = |before: Counts| self.others(fleet).since(&before).answers > 0;
        self.before_silence.is_some_and(have_answered) && !fleet.is_silent()
    }

    /// From the next sweep on the others are compared with this endpoint, if it is silent or fails.
    fn begin_comparison(&mut self, seen: &Observation, fleet: &Fleet) {
        let others = self.others(fleet);
        if seen.is_sweep && self.silence > 0 {
            self.before_silence.get_or_insert(others);
        }
        if seen.is_sweep && seen.failures > 0 {
            self.before_row.get_or_insert(others);
        }
    }

    /// Whether it fails while the others do not: in a row, or most calls of an interval.
    fn fails(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> bool {
        let others = self.others(fleet);
        // One that has not failed just now may be as well as the others by now.
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

    /// Begins to suspect a silent endpoint, or to check one that nothing is compared with; opens
    /// one that need not prove itself.
    fn suspect(
        &mut self,
        rule: &OutlierDetection,
        seen: &Observation,
        limits: Limits,
        is_compared: bool,
        orders: &mut Orders,
    ) {
        let finds_hung = rule.silence.is_some() && !self.check_answered;
        let is_used_up = seen.cold.is_some() && seen.tickets == Tickets::Gone;
        if finds_hung && is_compared && (self.silence >= limits.suspect || is_used_up) {
            // What waited at one that never answered says as much as single requests would.
            let unanswered = seen.cold.unwrap_or(MOST_UNANSWERED - TRIALS).min(MOST_UNANSWERED - 1);
            self.state = State::Suspect(Trial { unanswered, from: None, failed: 0 });
            orders.access = Some(Access::Tickets(0));
            self.begin_check(seen, orders);
        } else if seen.check == Checked::None {
            orders.access = match (seen.cold, seen.tickets) {
                (_, Tickets::Unlimited) | (Some(_), Tickets::Left) => None,
                // They ended without a word on either side.
                (Some(cold), Tickets::Gone) if self.silence == 0 => Some(Access::Tickets(cold)),
                // The others may be better, or are.
                (Some(_), _) if self.before_silence.is_none() || is_compared => None,
                (Some(_), _) | (None, _) => Some(Access::Open),
            };
        }
        if finds_hung && self.silence >= limits.alone {
            self.begin_check(seen, orders);
        }
    }

    /// Sends single requests to an endpoint until one is answered, or enough are not.
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
            // Shorter than a sweep, it says nothing.
            Tickets::Gone => waited > 0,
            Tickets::Taken => waited >= limits.trial,
            Tickets::Left | Tickets::Unlimited => false,
        };
        let may_send =
            is_unanswered || trial.from.is_none() || matches!(seen.tickets, Tickets::Gone | Tickets::Unlimited);
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
        }
        self.state = if is_probe { State::Probing(trial) } else { State::Suspect(trial) };
    }

    /// Ends a check that has failed, or once it is clear which connection is better; returns
    /// whether it has failed.
    fn follow_check(
        &mut self,
        rule: &OutlierDetection,
        seen: &Observation,
        limits: Limits,
        orders: &mut Orders,
    ) -> bool {
        self.check_sweeps += u32::from(seen.is_sweep);
        let is_over = self.check_sweeps >= limits.check;
        match seen.check {
            Checked::None => {
                // Its connection has ended.
                if mem::take(&mut self.check_answered) {
                    self.open(orders);
                }
                return false;
            }
            Checked::Failed => {
                self.checked = Some((seen.now + rule.base_ejection_time.max(SILENCE), false));
                orders.check = Some(CheckOrder::End);
                return true;
            }
            Checked::Pending if !is_over => return false,
            Checked::Open { former: false, answered } if !is_over => {
                self.checked = Some((seen.now + CHECK_INTERVAL, true));
                if answered && !mem::replace(&mut self.check_answered, true) {
                    // From now on no request goes to the silent ones.
                    orders.access = Some(Access::Tickets(0));
                }
                return false;
            }
            Checked::Open { former: false, answered: true } => orders.check = Some(CheckOrder::Replace),
            Checked::Pending | Checked::Open { .. } => orders.check = Some(CheckOrder::End),
        }
        self.check_answered = false;
        if orders.check == Some(CheckOrder::End) {
            self.open(orders);
        }
        false
    }

    fn begin_check(&mut self, seen: &Observation, orders: &mut Orders) {
        let is_due = self.checked.is_none_or(|(next, _)| seen.now >= next);
        if is_due && seen.check == Checked::None {
            self.check_sweeps = 0;
            self.check_answered = false;
            orders.check = Some(CheckOrder::Begin);
        }
    }

    /// Opens an endpoint that is in, as far as no check of it says otherwise.
    fn open(&self, orders: &mut Orders) {
        if self.state == State::In && !self.check_answered {
            orders.access = Some(Access::Open);
        }
    }

    fn probe(&mut self, orders: &mut Orders) {
        self.silence = 0;
        self.state = State::Probing(Trial { unanswered: 0, from: Some(0), failed: self.own.failed });
        orders.access = Some(Access::Tickets(1));
        orders.news = Some(News::Probed);
    }

    fn restore(&mut self, orders: &mut Orders) {
        self.state = State::In;
        self.failed_checks = 0;
        // It does not stay slow and alive.
        self.checked = None;
        self.open(orders);
        orders.news = Some(News::Restored);
    }

    fn eject(&mut self, rule: &OutlierDetection, seen: &Observation, cause: Cause, orders: &mut Orders) {
        let mut factor = 1;
        // Until it shakes hands no request is at stake.
        if cause != Cause::Unreachable {
            factor = 1u32.checked_shl(self.streak).unwrap_or(u32::MAX);
            self.streak = self.streak.saturating_add(1);
        }
        let until = seen.now + rule.base_ejection_time.saturating_mul(factor).min(rule.max_ejection_time);
        let again = matches!(self.state, State::Ejected { .. } | State::Probing(_));
        self.state = State::Ejected { until, cause };
        self.silence = 0;
        self.before_silence = None;
        self.interval = None;
        self.check_answered = false;
        if seen.check != Checked::None {
            orders.check = Some(CheckOrder::End);
        }
        // In case that so many are ejected that all are used.
        orders.access = Some(Access::Open);
        orders.news = Some(News::Ejected { until, cause, again });
    }
}

impl Limits {
    fn new(silence: Duration, longest_gap: u32) -> Self {
        let alone = silence.as_millis().div_ceil(SWEEP.as_millis()).try_into().unwrap_or(u32::MAX);
        // Twice what was usual, and a sweep for where it began.
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

/// So many requests that are not answered, by an endpoint that is alive while the others answer,
/// are enough.
const MOST_UNANSWERED: u32 = 5;
/// How many of them are sent one by one, to an endpoint that answered before.
const TRIALS: u32 = 3;
/// After so many checks that failed a request is sent all the same.
const MOST_FAILED_CHECKS: u32 = 10;
/// The time between two checks of an endpoint that is alive and slow.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a probe waits where silence is not looked for.
const SILENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
