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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outlier {
    state: State,
    check: Check,
    /// When a check last found the peer alive.
    alive: Option<Instant>,
    /// Ejections in a row.
    streak: u32,
    /// As of the last look.
    totals: Totals,
    own: Counts,
    recent: Recent,
    /// It has answered since the look before.
    answered: bool,
    /// It has failed since the look before.
    failed: bool,
    /// How many sweeps requests have waited since the last answer, whether one or several.
    silence: u32,
    /// Requests were given up since the last sweep.
    gave_up: bool,
    /// What the others had done when the silence began, and when the present row of failures did.
    before_silence: Counts,
    before_row: Counts,
    /// The present interval of the failure percentage.
    interval: Option<Interval>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    In,
    /// The others answer, it does not: requests go there one by one, if at all.
    Suspect(Trying),
    Ejected {
        until: Instant,
        cause: Cause,
    },
    /// One request at a time, until one is answered.
    Probing {
        trying: Trying,
        /// The failures when it began.
        failed: u64,
    },
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
struct Trying {
    /// Those that were not.
    unanswered: u32,
    /// The silence when the present one was allowed, if one was.
    from: Option<u32>,
}

/// A new connection to a silent peer, up to its SETTINGS: a process that is frozen sends none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Check {
    None,
    Pending {
        sweeps: u32,
    },
    /// The peer is alive, and the new connection takes requests.
    Open {
        sweeps: u32,
        answered: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Interval {
    since: Instant,
    own: Counts,
    others: Counts,
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
    /// How many requests it gets before its first answer; `None` where there is no limit, or once it
    /// has answered.
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

/// How a check that was pending came out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Alive,
    Failed,
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
    pub(crate) fn new() -> Self {
        Self {
            state: State::In,
            check: Check::None,
            alive: None,
            streak: 0,
            totals: Totals::default(),
            own: Counts::default(),
            recent: Recent::default(),
            answered: false,
            failed: false,
            silence: 0,
            gave_up: false,
            before_silence: Counts::default(),
            before_row: Counts::default(),
            interval: None,
        }
    }

    /// What holds for another endpoint of the same instance: that it is ejected, or to be probed.
    /// Nothing where it is not.
    pub(crate) fn for_successor(&self) -> Option<Self> {
        let until = match self.state {
            State::In | State::Suspect(_) => return None,
            State::Ejected { until, .. } => until,
            State::Probing { .. } => Instant::now(),
        };
        Some(Self { state: State::Ejected { until, cause: Cause::Silent }, streak: self.streak, ..Self::new() })
    }

    /// The same endpoint with other connections.
    pub(crate) fn with_new_connections(&self) -> Self {
        let successor = self.for_successor().unwrap_or_else(Self::new);
        Self { alive: self.alive, totals: self.totals, own: self.own, ..successor }
    }

    /// Until when it gets no requests.
    pub(crate) fn out_until(&self) -> Option<Instant> {
        match self.state {
            State::Ejected { until, .. } => Some(until),
            State::In | State::Suspect(_) | State::Probing { .. } => None,
        }
    }

    /// Whether it gets one request at a time.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    /// Whether sweeps must go on although nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.check == Check::None && !matches!(self.state, State::Ejected { .. })
    }

    /// Counts this endpoint among those of a sweep.
    pub(crate) fn count_in(&self, census: &mut Census) {
        // One that is probed is not back yet.
        let is_ejected = matches!(self.state, State::Ejected { .. } | State::Probing { .. });
        census.add(is_ejected, self.silence, self.recent);
    }

    /// Takes what has happened since the last look, for itself and for the fleet.
    pub(crate) fn observe(&mut self, seen: &Observation, fleet: &mut Fleet) {
        let news = seen.totals.since(&mem::replace(&mut self.totals, seen.totals));
        self.own.add(&news);
        fleet.add(&news);
        if seen.is_sweep {
            self.recent.step(&news);
        }
        self.answered = news.answers > 0;
        self.failed = news.failed > 0;
        self.gave_up |= news.given_up > 0;
        if seen.failures == 0 {
            self.before_row = self.others(fleet);
        }
        if self.answered {
            // An ejected one is not what others are measured by.
            if matches!(self.state, State::In | State::Suspect(_)) {
                fleet.note_gap(self.silence);
            }
            self.silence = 0;
            if self.state == State::In && seen.failures == 0 {
                self.streak = 0;
            }
        } else if seen.is_sweep && (seen.waiting > 0 || self.gave_up) {
            self.silence = self.silence.saturating_add(1);
        }
        if self.silence == 0 {
            self.before_silence = self.others(fleet);
        }
        if seen.is_sweep || self.answered {
            self.gave_up = false;
        }
    }

    /// Decides, after everybody was observed.
    pub(crate) fn judge(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> Orders {
        let mut orders = Orders::default();
        let answered = self.answered;
        let limits = rule.silence.map(|silence| Limits::new(silence, fleet.longest_gap()));
        let outcome = limits.and_then(|limits| self.follow_check(seen, limits, &mut orders));
        let fails = self.fails(rule, seen, fleet) && fleet.may_eject();
        match self.state {
            State::In | State::Suspect(_) if fails => self.eject(rule, seen, Cause::Failing, &mut orders),
            State::In | State::Suspect(_)
                if outcome == Some(Outcome::Failed) && self.silence > 0 && fleet.may_eject() =>
            {
                self.eject(rule, seen, Cause::Unreachable, &mut orders);
            }
            State::In => {
                if let Some(limits) = limits {
                    self.suspect(seen, limits, self.is_compared(fleet), &mut orders);
                }
            }
            State::Suspect(_) if answered || !self.is_compared(fleet) => {
                self.state = State::In;
                self.open(&mut orders);
            }
            State::Suspect(trying) => {
                // Whoever suspects has limits.
                if let Some(limits) = limits {
                    self.try_requests(rule, seen, limits, outcome, trying, fleet.may_eject(), &mut orders);
                }
            }
            // A late answer is as good as a probe's.
            State::Ejected { cause: Cause::Silent | Cause::Unreachable, .. } if answered => self.restore(&mut orders),
            State::Ejected { until, cause } if seen.now >= until => match (cause, outcome, self.check) {
                (Cause::Unreachable, Some(Outcome::Failed), _) => self.eject(rule, seen, cause, &mut orders),
                (Cause::Unreachable, None, Check::None) => self.begin_check(&mut orders),
                (Cause::Unreachable, None, Check::Pending { .. }) => {}
                _ => self.probe(&mut orders),
            },
            State::Ejected { .. } => {}
            State::Probing { failed, .. } if self.own.failed > failed => {
                self.eject(rule, seen, Cause::Failing, &mut orders);
            }
            State::Probing { .. } if answered => self.restore(&mut orders),
            State::Probing { trying, failed } => match trying.outcome(seen.tickets, self.silence, limits) {
                Some(true) => self.eject(rule, seen, Cause::Silent, &mut orders),
                Some(false) => {
                    orders.access = Some(Access::Tickets(1));
                    self.state = State::Probing { trying: trying.again(self.silence), failed };
                }
                None => {}
            },
        }
        orders
    }

    /// Whether there is nothing to decide.
    pub(crate) fn is_quiet(&self, rule: &OutlierDetection, seen: &Observation) -> bool {
        let is_due = |interval: Interval| seen.now - interval.since >= rule.interval;
        self.state == State::In
            && self.check == Check::None
            && (self.silence, seen.failures) == (0, 0)
            && (seen.tickets == Tickets::Unlimited || (seen.cold.is_some() && seen.tickets != Tickets::Gone))
            && self.interval.is_some_and(|interval| !is_due(interval))
    }

    /// Whether the others have answered since this one is silent, and are not silent themselves.
    fn is_compared(&self, fleet: &Fleet) -> bool {
        self.silence > 0 && self.others(fleet).since(&self.before_silence).answers > 0 && !fleet.is_silent()
    }

    /// What all other endpoints have done so far.
    fn others(&self, fleet: &Fleet) -> Counts {
        fleet.counts().since(&self.own)
    }

    /// Whether it fails while the others do not: in a row, or most calls of an interval.
    fn fails(&mut self, rule: &OutlierDetection, seen: &Observation, fleet: &Fleet) -> bool {
        // One that has not failed just now may be as well as the others by now.
        let in_row = self.failed
            && rule.consecutive_failures.is_some_and(|most| seen.failures >= most)
            && self.others(fleet).since(&self.before_row).mostly_succeed();
        let begin = Interval { since: seen.now, own: self.own, others: self.others(fleet) };
        let interval = *self.interval.get_or_insert(begin);
        let own = self.own.since(&interval.own);
        if seen.now - interval.since < rule.interval || own.ended < rule.request_volume.into() {
            return in_row;
        }
        self.interval = Some(begin);
        let others = self.others(fleet).since(&interval.others);
        in_row || rule.failure_percentage.is_some_and(|most| own.fails(most) && own.stands_out(&others))
    }

    /// Begins to suspect a silent endpoint, or to check one that nothing is compared with.
    fn suspect(&mut self, seen: &Observation, limits: Limits, is_compared: bool, orders: &mut Orders) {
        if matches!(self.check, Check::Open { answered: true, .. }) {
            return;
        }
        let is_used_up = seen.cold.is_some() && seen.tickets == Tickets::Gone;
        let is_silent = self.silence >= limits.suspect || (is_used_up && self.silence > 0);
        if is_silent && is_compared {
            // What waited at one that never answered says as much as single requests would.
            let unanswered = seen.cold.unwrap_or(MOST_UNANSWERED - TRIALS).min(MOST_UNANSWERED - 1);
            self.state = State::Suspect(Trying { unanswered, from: None });
            orders.access = Some(Access::Tickets(0));
            if self.check == Check::None && !self.is_known_alive(seen.now) {
                self.begin_check(orders);
            }
        } else if is_used_up && self.silence == 0 {
            // They ended without a word on either side.
            orders.access = seen.cold.map(Access::Tickets);
        } else if self.check == Check::None && seen.tickets != Tickets::Unlimited && (is_silent || seen.cold.is_none())
        {
            // The others are no better, or it has answered meanwhile.
            orders.access = Some(Access::Open);
        }
        if self.silence >= limits.alone && self.check == Check::None && !self.is_known_alive(seen.now) {
            self.begin_check(orders);
        }
    }

    /// Sends single requests to a suspect that is alive, until enough were not answered.
    #[expect(clippy::too_many_arguments, reason = "one step of one machine")]
    fn try_requests(
        &mut self,
        rule: &OutlierDetection,
        seen: &Observation,
        limits: Limits,
        outcome: Option<Outcome>,
        mut trying: Trying,
        may_eject: bool,
        orders: &mut Orders,
    ) {
        match self.check {
            Check::Pending { .. } => return,
            Check::None if !self.is_known_alive(seen.now) => return self.begin_check(orders),
            Check::None | Check::Open { .. } => {}
        }
        match trying.outcome(seen.tickets, self.silence, Some(limits)) {
            // The new connection is there for it.
            _ if outcome.is_some() || trying.from.is_none() => {}
            Some(true) => trying.unanswered = trying.unanswered.saturating_add(1),
            Some(false) => {}
            None => return,
        }
        if trying.unanswered >= MOST_UNANSWERED && may_eject {
            return self.eject(rule, seen, Cause::Silent, orders);
        }
        orders.access = Some(Access::Tickets(1));
        self.state = State::Suspect(trying.again(self.silence));
    }

    /// Takes note of what becomes of a check, and ends it once it is clear which connection is
    /// better.
    fn follow_check(&mut self, seen: &Observation, limits: Limits, orders: &mut Orders) -> Option<Outcome> {
        let tick = u32::from(seen.is_sweep);
        match (self.check, seen.check) {
            (Check::None, _) => return None,
            (Check::Pending { .. }, Checked::Failed) => {
                self.check = Check::None;
                return Some(Outcome::Failed);
            }
            (Check::Pending { .. }, Checked::Open { .. }) => {
                self.check = Check::Open { sweeps: 0, answered: false };
                self.alive = Some(seen.now);
                return Some(Outcome::Alive);
            }
            (Check::Pending { sweeps }, Checked::Pending) if sweeps < limits.check => {
                self.check = Check::Pending { sweeps: sweeps + tick };
            }
            (Check::Open { .. }, Checked::Open { former: true, .. }) => {
                self.end_check(CheckOrder::End, orders);
                self.open(orders);
            }
            (Check::Open { sweeps, answered }, Checked::Open { answered: answers, .. }) => {
                if sweeps >= limits.check {
                    self.end_check(if answers { CheckOrder::Replace } else { CheckOrder::End }, orders);
                    self.open(orders);
                } else {
                    self.check = Check::Open { sweeps: sweeps + tick, answered: answers };
                    if answers && !answered {
                        // From now on no request goes to the silent ones.
                        orders.access = Some(Access::Tickets(0));
                    }
                }
            }
            // It took too long, or its connection has ended.
            (Check::Pending { .. } | Check::Open { .. }, _) => {
                self.end_check(CheckOrder::End, orders);
                self.open(orders);
            }
        }
        None
    }

    fn begin_check(&mut self, orders: &mut Orders) {
        self.check = Check::Pending { sweeps: 0 };
        orders.check = Some(CheckOrder::Begin);
    }

    fn end_check(&mut self, order: CheckOrder, orders: &mut Orders) {
        self.check = Check::None;
        orders.check = Some(order);
    }

    /// Opens an endpoint that is in, as far as no check of it says otherwise.
    fn open(&self, orders: &mut Orders) {
        if self.state == State::In && !matches!(self.check, Check::Open { answered: true, .. }) {
            orders.access = Some(Access::Open);
        }
    }

    /// Whether a check found it alive a short time ago, so that another one would be a nuisance.
    fn is_known_alive(&self, now: Instant) -> bool {
        self.alive.is_some_and(|alive| now - alive < CHECK_INTERVAL)
    }

    fn probe(&mut self, orders: &mut Orders) {
        let trying = Trying { unanswered: 0, from: Some(0) };
        self.silence = 0;
        self.state = State::Probing { trying, failed: self.own.failed };
        orders.access = Some(Access::Tickets(1));
        orders.news = Some(News::Probed);
    }

    fn restore(&mut self, orders: &mut Orders) {
        self.state = State::In;
        // It does not stay slow and alive.
        self.alive = None;
        self.open(orders);
        orders.news = Some(News::Restored);
    }

    fn eject(&mut self, rule: &OutlierDetection, seen: &Observation, cause: Cause, orders: &mut Orders) {
        let factor = match cause {
            // No request is at stake until it shakes hands.
            Cause::Unreachable => 1,
            Cause::Failing | Cause::Silent => {
                let factor = 1u32.checked_shl(self.streak).unwrap_or(u32::MAX);
                self.streak = self.streak.saturating_add(1);
                factor
            }
        };
        let until = seen.now + rule.base_ejection_time.saturating_mul(factor).min(rule.max_ejection_time);
        let again = matches!(self.state, State::Ejected { .. } | State::Probing { .. });
        self.state = State::Ejected { until, cause };
        self.silence = 0;
        self.interval = None;
        if self.check != Check::None {
            self.end_check(CheckOrder::End, orders);
        }
        // In case that so many are ejected that all are used.
        orders.access = Some(Access::Open);
        orders.news = Some(News::Ejected { until, cause, again });
    }
}

impl Trying {
    /// Whether the present request has failed to be answered; `None` while that is open, and
    /// `false` where it ended without having waited.
    fn outcome(&self, tickets: Tickets, silence: u32, limits: Option<Limits>) -> Option<bool> {
        let waited = silence - self.from.unwrap_or(silence).min(silence);
        match tickets {
            Tickets::Gone => Some(waited > 0),
            Tickets::Taken if limits.is_some_and(|limits| waited >= limits.trial) => Some(true),
            Tickets::Taken | Tickets::Left | Tickets::Unlimited => None,
        }
    }

    /// Another request is allowed.
    fn again(self, silence: u32) -> Self {
        Self { from: Some(silence), ..self }
    }
}

impl Limits {
    fn new(silence: Duration, longest_gap: u32) -> Self {
        let alone = silence.as_millis().div_ceil(SWEEP.as_millis()).try_into().unwrap_or(u32::MAX);
        // Twice what was usual, and a sweep for where it began.
        let usual = longest_gap.saturating_mul(2).saturating_add(1);
        let limits = |sweeps: u32| sweeps.max(2).max(usual);
        Self {
            suspect: limits(alone.div_ceil(5)),
            trial: limits(alone.div_ceil(2)),
            alone: limits(alone),
            check: limits(alone).saturating_mul(10),
        }
    }
}

/// So many requests that are not answered, by an endpoint that is alive while the others answer,
/// are enough.
const MOST_UNANSWERED: u32 = 5;
/// How many of them are sent one by one, to an endpoint that answered before.
const TRIALS: u32 = 3;
/// The time between two checks of an endpoint that is alive and slow.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
