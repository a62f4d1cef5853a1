use std::{collections::BTreeMap, sync::Arc, time::Duration};

use discovery_core::{Change, Error, Instance, InstanceId, Snapshot, Update, Updates};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    board::{Board, Outlook},
    connector::BoxError,
    endpoint::{Endpoint, Phase, Plan, drive},
    health::Health,
    hold::Hold,
    member::Member,
    metrics::Event,
    outlier::{Ejection, Observation, Outlier, Verdict, may_eject},
    ramp::{self, Ramp},
    signals::SWEEP,
};

/// The control task of a channel: it follows the updates, drives the endpoints and publishes what calls read, with or without
/// traffic.
pub(crate) struct Pool {
    board: Arc<Board>,
    config: Config,
    members: BTreeMap<InstanceId, Member>,
    /// Removed endpoints whose requests, or attempts to connect, are ending. The last of an id may be taken back.
    leaving: BTreeMap<InstanceId, Vec<Member>>,
    drivers: FuturesUnordered<BoxFuture<'static, Arc<Endpoint>>>,
    hold: Hold,
    /// The set as the registry has it, which is without the held ones; `None` before the first.
    set: Option<Snapshot>,
    lost: Option<(Instant, Error)>,
    next_sweep: Instant,
    failing_since: Option<Instant>,
    empty_since: Option<Instant>,
    /// When the first update came that is not published yet.
    updated: Option<Instant>,
}

/// What a pool is built from.
pub(crate) struct Config {
    pub(crate) plan: Plan,
    pub(crate) hold: Option<Duration>,
    pub(crate) ejection: Ejection,
    pub(crate) slow_start: Duration,
}

impl Pool {
    pub(crate) fn new(board: Arc<Board>, config: Config) -> Self {
        Self {
            board,
            config,
            members: BTreeMap::new(),
            leaving: BTreeMap::new(),
            drivers: FuturesUnordered::new(),
            hold: Hold::default(),
            set: None,
            lost: None,
            next_sweep: Instant::now(),
            failing_since: None,
            empty_since: None,
            updated: None,
        }
    }

    /// Runs until it is dropped with its channel.
    pub(crate) async fn run(mut self, updates: Updates) {
        // A stream that ends breaks its law; the set stands then.
        let mut updates = updates.fuse();
        let mut stale = false;
        // Updates in a row, so that those that come without end do not keep the last ones from being published.
        let mut row = 0;
        loop {
            let sweeping = self.board.signals.is_sweeping();
            tokio::select! {
                biased;
                Some(update) = updates.next(), if row < MOST_IN_A_ROW => {
                    self.apply(update);
                    (stale, row) = (true, row + 1);
                }
                Some(endpoint) = self.drivers.next(), if !self.drivers.is_empty() => {
                    self.forget(&endpoint);
                }
                () = self.board.signals.dirty.notified() => {
                    self.judge();
                    stale = true;
                }
                () = sleep_until(self.next_sweep), if sweeping => stale |= self.sweep(),
                // Last, so that all that has happened is published at once.
                () = std::future::ready(()), if stale => {
                    self.publish();
                    (stale, row) = (false, 0);
                }
            }
        }
    }

    fn apply(&mut self, update: Update) {
        self.updated.get_or_insert_with(Instant::now);
        let change = match update {
            Update::Lost(error) => {
                debug!(error = %error.report(), "registry lost");
                let size = self.set.as_ref().map_or(0, Snapshot::len);
                self.hold.lose(Instant::now(), self.config.hold.unwrap_or_default(), size);
                let since = self.lost.take().map_or_else(Instant::now, |(since, _)| since);
                self.lost = Some((since, error));
                return;
            }
            Update::Change(change) => change,
            Update::Reset(set) => self.set.clone().unwrap_or_default().diff(&set),
        };
        self.lost = None;
        self.hold.regain(Instant::now());
        self.change(&change);
    }

    fn change(&mut self, change: &Change) {
        let set = self.set.take().unwrap_or_default();
        for instance in change.upserts() {
            self.hold.forget(instance.id());
            self.upsert(instance);
        }
        let now = Instant::now();
        let held = match self.config.hold {
            Some(limit) => self.hold.step(now, limit, set.len(), change.removes()),
            None => Vec::new(),
        };
        for id in change.removes().iter().filter(|id| !held.contains(id)) {
            self.remove(id);
        }
        self.keep(held, now);
        self.set = Some(set.with(change));
    }

    fn upsert(&mut self, instance: &Arc<Instance>) {
        if let Some(member) = self.members.get_mut(instance.id()) {
            if member.endpoint.address == *instance.address() {
                // The connection and its statistics stay.
                member.describe(instance);
                member.held_until = None;
                return;
            }
            self.remove(instance.id());
        }
        let mut member = self.take_back(instance).unwrap_or_else(|| self.connect(instance));
        member.describe(instance);
        self.members.insert(instance.id().clone(), member);
    }

    fn connect(&self, instance: &Arc<Instance>) -> Member {
        let endpoint = Endpoint::new(Arc::clone(instance), Arc::clone(&self.board.signals));
        let (driven, plan) = (Arc::clone(&endpoint), self.config.plan.clone());
        self.drivers.push(async move { drive(Arc::clone(&driven), plan).map(|()| driven).await }.boxed());
        Member {
            instance: Arc::clone(instance),
            endpoint,
            outlier: Outlier::new(),
            held_until: None,
            ramp: Ramp::default(),
        }
    }

    /// Takes a leaving endpoint back as it is, connected or on its way: an entry that flapped, or one to hold.
    fn take_back(&mut self, instance: &Instance) -> Option<Member> {
        let leaving = self.leaving.get_mut(instance.id())?;
        let of_address = |member: &Member| member.endpoint.address == *instance.address();
        let member = leaving.swap_remove(leaving.iter().rposition(|member| of_address(member) && member.is_driven())?);
        if leaving.is_empty() {
            self.leaving.remove(instance.id());
        }
        member.endpoint.drain(false);
        Some(member)
    }

    /// Forgets an endpoint whose driver has ended.
    fn forget(&mut self, endpoint: &Arc<Endpoint>) {
        let id = endpoint.instance().id().clone();
        if let Some(leaving) = self.leaving.get_mut(&id) {
            leaving.retain(|member| !Arc::ptr_eq(&member.endpoint, endpoint));
            if leaving.is_empty() {
                self.leaving.remove(&id);
            }
        }
    }

    fn remove(&mut self, id: &InstanceId) {
        if let Some(mut member) = self.members.remove(id) {
            member.held_until = None;
            member.endpoint.drain(true);
            self.leaving.entry(id.clone()).or_default().push(member);
        }
    }

    /// Holds the instances of a mass removal that are connected, for as long as the set may take to refill.
    fn keep(&mut self, ids: Vec<InstanceId>, now: Instant) {
        let Some(limit) = self.config.hold else { return };
        let mut count = 0;
        for id in ids {
            if !self.members.contains_key(&id) {
                let left = self.leaving.get(&id).and_then(|leaving| leaving.last());
                let Some(instance) = left.map(|member| Arc::clone(&member.instance)) else { continue };
                let Some(member) = self.take_back(&instance) else { continue };
                self.members.insert(id.clone(), member);
            }
            match self.members.get_mut(&id) {
                Some(member) if member.endpoint.link().is_some() => {
                    member.held_until.get_or_insert(now + limit);
                    count += 1;
                }
                _ => self.remove(&id),
            }
        }
        if count > 0 {
            warn!(endpoints = count, "most instances vanished at once, held while they answer");
            self.board.signals.sweep();
        }
    }

    /// Looks at all endpoints a moment later; returns whether anything changed that calls shall see.
    fn sweep(&mut self) -> bool {
        let now = Instant::now();
        self.next_sweep = now + SWEEP;
        self.board.signals.count_sweep();
        let over =
            |member: &Member| member.held_until.is_some_and(|until| now >= until || member.endpoint.link().is_none());
        let over: Vec<_> = self.members.iter().filter(|(_, member)| over(member)).map(|(id, _)| id.clone()).collect();
        for id in &over {
            info!(instance = %id, "held endpoint let go");
            self.remove(id);
        }
        // First rest, then look: a call that begins in between wakes the pool again.
        self.board.signals.rest();
        let wanted = self.board.signals.room.is_wanted();
        let mut busy = wanted || !self.leaving.is_empty();
        for member in self.members.values() {
            if member.endpoint.link().is_some_and(|link| wanted || link.load.in_flight() > 0) {
                member.endpoint.look();
                busy = true;
            }
            busy |= member.held_until.is_some() || !member.outlier.is_idle();
        }
        let ramping = self.members.values().any(|member| !member.ramp.is_over(now, self.config.slow_start));
        let judged = self.judge();
        if busy || ramping {
            self.board.signals.go_on();
        }
        judged || ramping || !over.is_empty()
    }

    /// Takes endpoints out and brings them back; returns whether it did.
    fn judge(&mut self) -> bool {
        let now = Instant::now();
        let takers: Vec<&Member> = self.takers().collect();
        let connected = takers.iter().filter(|member| member.endpoint.link().is_some()).count();
        let is_out = |member: &&&Member| member.endpoint.link().is_some() && member.outlier.out_until().is_some();
        let mut out = takers.iter().filter(is_out).count();
        let mut changed = false;
        for (id, member) in &mut self.members {
            let link = member.endpoint.link();
            let unanswered = link.as_ref().map_or(0, |link| link.load.unanswered());
            let proven = link.is_none_or(|link| link.load.is_proven());
            let (failures, answers) = (member.endpoint.failures(), member.endpoint.answers());
            let totals = member.endpoint.totals();
            let seen = Observation { now, failures, unanswered, answers, proven, totals };
            let verdict = member.outlier.step(&self.config.ejection, seen, may_eject(out, connected));
            match verdict {
                Verdict::Stay => continue,
                Verdict::Eject { until, silent } => {
                    out += 1;
                    self.board.signals.metrics.count(Event::Ejection);
                    let out_for = until - now;
                    info!(instance = %id, failures, unanswered, ?out_for, "endpoint ejected");
                    self.board.signals.sweep();
                    if silent {
                        member.endpoint.replace();
                    }
                }
                Verdict::Probe => member.endpoint.put_on_trial(),
                Verdict::Restore => {
                    member.ramp.reset();
                    info!(instance = %id, "endpoint restored");
                }
            }
            changed = true;
        }
        changed
    }

    fn publish(&mut self) {
        let now = Instant::now();
        if !self.config.slow_start.is_zero() {
            self.members.values_mut().for_each(|member| member.ramp_up(now));
        }
        let connected = self.takers().filter(|member| member.endpoint.serving().is_some());
        let (out, rest): (Vec<_>, Vec<_>) = connected.partition(|member| member.outlier.out_until().is_some());
        // Where less than half are left, something else is wrong than they: all are used.
        let back = if rest.len() < out.len() { out } else { Vec::new() };
        let takers: Vec<_> = rest.into_iter().chain(back).collect();
        let weights: Vec<_> = takers.iter().map(|member| (member.instance.weight(), member.ramp)).collect();
        let weights = ramp::weights(&weights, now, self.config.slow_start);
        let candidates = takers.into_iter().zip(weights).filter_map(|(member, weight)| member.candidate(weight));
        let candidates: Vec<_> = candidates.collect();
        let outlook = self.outlook(!candidates.is_empty());
        let (endpoints, ready) = (self.members.len(), candidates.len());
        let rows = self.members.values().map(Member::row).collect();
        // In this order: once the rows are without an endpoint, no pick finds it.
        self.board.pickers.publish(candidates);
        self.board.outlook.store(Arc::new(outlook));
        self.board.rows.store(Arc::new(rows));
        self.board.signals.published.notify_waiters();
        let metrics = &self.board.signals.metrics;
        metrics.set(endpoints, ready, self.lost.is_some());
        if let Some(since) = self.updated.take() {
            metrics.published(since.elapsed());
        }
    }

    /// The members that shall get requests. An all-zero set counts as equal, but one of weight 0 does not step in for others that
    /// are away.
    fn takers(&self) -> impl Iterator<Item = &Member> {
        let weight = |member: &Member| member.instance.weight().value();
        let all_zero = self.members.values().all(|member| weight(member) == 0);
        self.members.values().filter(move |member| all_zero || weight(member) > 0)
    }

    fn outlook(&mut self, serving: bool) -> Outlook {
        let now = Instant::now();
        let Some(_) = &self.set else {
            return match &self.lost {
                Some((since, error)) => Outlook::Lost { since: *since, error: error.clone() },
                None => Outlook::Waiting,
            };
        };
        if self.members.is_empty() {
            return Outlook::Empty { since: *self.empty_since.get_or_insert(now) };
        }
        self.empty_since = None;
        if serving {
            self.failing_since = None;
            return Outlook::Serving;
        }
        let mut last = None;
        for member in self.members.values() {
            match member.endpoint.phase() {
                Phase::Connecting { first: true } | Phase::Idle => return Outlook::Connecting,
                // It was lost a moment ago, and its driver is about to connect again.
                Phase::Ready(link) if link.load.is_closed() => return Outlook::Connecting,
                Phase::Ready(link) if link.health == Health::Unknown => return Outlook::Connecting,
                Phase::BackingOff { error, .. } => last = Some(error),
                Phase::Connecting { first: false } | Phase::Ended | Phase::Ready(_) => {}
            }
        }
        let since = *self.failing_since.get_or_insert(now);
        let error = last.unwrap_or_else(|| {
            BoxError::from("they say that they do not serve, are taken out, or connect again").into()
        });
        Outlook::Failing { since, endpoints: self.members.len(), error }
    }
}

const MOST_IN_A_ROW: u32 = 64;
