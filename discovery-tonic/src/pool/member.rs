use std::{sync::Arc, time::Duration};

use discovery_core::{Instance, Weight};
use tokio::time::Instant;

use super::{
    outlier::{
        Outlier,
        observation::{Observation, Tickets},
        orders::Access,
    },
    slow_start::{self, SlowStart, WeightShare},
};
use crate::{
    balance::Candidate,
    connection::link::{Health, Link},
    endpoint::{Endpoint, config::COLD, state::EndpointState},
    published::{endpoints::EndpointRow, target::Target},
};

/// An instance managed by the pool: its endpoint, and the state that outlives its connections.
///
/// It caches what it last published, so that publishing a set costs little if little has changed.
pub(crate) struct Member {
    instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) outlier: Outlier,
    held_until: Option<Instant>,
    /// How many times its driver panicked.
    pub(crate) panics: u32,
    slow_start: SlowStart,
    /// The share of its slow start when it was last read, in thousandths.
    step: u32,
    /// The connections, as of the last refresh.
    links: Vec<Link>,
    candidates: Vec<Arc<Candidate<Target>>>,
    row: Option<Arc<EndpointRow>>,
}

impl Member {
    pub(crate) fn new(instance: &Arc<Instance>, endpoint: Arc<Endpoint>) -> Self {
        Self {
            instance: Arc::clone(instance),
            endpoint,
            outlier: Outlier::default(),
            held_until: None,
            panics: 0,
            slow_start: SlowStart::default(),
            step: slow_start::WHOLE,
            links: Vec::new(),
            candidates: Vec::new(),
            row: None,
        }
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Sets another weight or other metadata.
    pub(crate) fn set_instance(&mut self, instance: &Arc<Instance>) {
        self.instance = Arc::clone(instance);
        self.endpoint.set_instance(instance);
        self.forget_published();
    }

    pub(crate) fn hold(&mut self, until: Option<Instant>) {
        self.held_until = until;
        self.row = None;
    }

    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    /// Reads the connections again; returns whether they changed.
    ///
    /// The slow start begins with the first connection, and with the first one after a failed
    /// attempt.
    pub(crate) fn refresh(&mut self, now: Instant) -> bool {
        let links = self.endpoint.links();
        if !links.is_empty() {
            self.slow_start.begin(now);
        } else if self.endpoint.state().0 == EndpointState::BackingOff {
            self.slow_start.reset();
        }
        let same = |(one, other): (&Link, &Link)| Arc::ptr_eq(&one.load, &other.load) && one.health == other.health;
        if links.len() == self.links.len() && links.iter().zip(&self.links).all(same) {
            return false;
        }
        // On probation a new connection must not take requests beyond the tickets that were
        // granted.
        if self.outlier.is_limited() {
            let is_new = |link: &&Link| !self.links.iter().any(|known| Arc::ptr_eq(&known.load, &link.load));
            let check = self.endpoint.check_link();
            let is_former = |link: &&Link| check.as_ref().is_none_or(|check| !Arc::ptr_eq(&check.load, &link.load));
            links.iter().filter(is_new).filter(is_former).for_each(|link| link.load.set_tickets(0));
        }
        self.links = links;
        self.candidates.clear();
        true
    }

    /// Whether it has a connection, as of the last refresh.
    pub(crate) fn is_connected(&self) -> bool {
        !self.links.is_empty()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.links.iter().map(|link| link.load.in_flight()).sum()
    }

    /// What outlier detection judges it by.
    pub(crate) fn observation(&self, now: Instant, is_sweep: bool) -> Observation {
        let tally = &self.endpoint.tally;
        let tickets = self.tickets();
        let is_cold = tickets != Tickets::Unlimited && !tally.has_answered();
        Observation {
            now,
            is_sweep,
            is_connected: self.is_connected(),
            waiting: self.links.iter().map(|link| link.load.unanswered()).sum(),
            failures: tally.failures(),
            totals: tally.totals(),
            cold: is_cold.then(|| self.endpoint.lanes().max(COLD).try_into().unwrap_or(u32::MAX)),
            tickets,
            check: self.endpoint.checked(),
        }
    }

    fn tickets(&self) -> Tickets {
        // The usual case, checked on each sweep.
        if self.links.iter().all(|link| !link.load.is_limited()) {
            return Tickets::Unlimited;
        }
        let check = self.endpoint.check_link();
        let links = check.as_ref().map_or(&*self.links, std::slice::from_ref);
        if links.iter().all(|link| !link.load.is_limited()) {
            Tickets::Unlimited
        } else if links.iter().any(|link| !link.load.is_out_of_tickets()) {
            Tickets::Left
        } else if links.iter().any(|link| link.load.unanswered() > 0) {
            Tickets::Taken
        } else {
            Tickets::Gone
        }
    }

    /// Sets how the endpoint takes requests. A limited number goes to the connection of a check, if
    /// there is one.
    pub(crate) fn admit(&self, access: Access) {
        let former = self.endpoint.former_links();
        match access {
            Access::Open => former.iter().filter(|link| link.load.is_limited()).for_each(|link| link.load.watch()),
            Access::Check => self.endpoint.check_link().iter().for_each(|link| link.load.set_tickets(1)),
            Access::Tickets(count) => {
                former.iter().for_each(|link| link.load.set_tickets(0));
                let check = self.endpoint.check_link();
                let serves = |link: &&Link| link.health == Health::Serving;
                let newest = check.as_ref().or_else(|| former.iter().find(serves));
                if let Some(link) = newest.filter(|_| count > 0) {
                    link.load.set_tickets(count);
                }
            }
        }
    }

    /// Reduces the penalty for recent failures; returns whether any is left.
    pub(crate) fn fade(&self) -> bool {
        // Not `any`, which would stop at the first.
        self.links.iter().filter(|link| link.load.fade()).count() > 0
    }

    /// Evens out the calls while most endpoints fail: one whose calls mostly fail gets about the
    /// mean number of calls. All endpoints are used then, and none may attract calls by failing
    /// fast.
    pub(crate) fn level(&self, mean: f32, begins: bool) {
        let recent = self.outlier.recent();
        for link in &self.links {
            let penalty = link.load.penalty();
            link.load.set_penalty(match recent.mostly_fails() && recent.ended() > mean * 1.5 {
                _ if begins => 0,
                true => penalty.saturating_add(1),
                false => penalty.saturating_sub(1),
            });
        }
    }

    /// Restarts its slow start.
    pub(crate) fn warm_up(&mut self, now: Instant) {
        self.slow_start.reset();
        if self.is_connected() {
            self.slow_start.begin(now);
        }
    }

    /// Advances its slow start; returns whether it reached another step.
    pub(crate) fn advance(&mut self, now: Instant, window: Duration) -> bool {
        let step = self.slow_start.share(now, window);
        std::mem::replace(&mut self.step, step) != step
    }

    pub(crate) fn has_warmed_up(&self) -> bool {
        self.step == slow_start::WHOLE
    }

    /// How many of its connections get requests.
    pub(crate) fn lanes(&self) -> usize {
        self.links.iter().filter(|link| link.health == Health::Serving).count()
    }

    /// What its weight is computed from.
    pub(crate) fn share(&self) -> WeightShare {
        WeightShare { weight: self.instance.weight(), slow_start: self.slow_start, parts: self.lanes() }
    }

    /// Its serving connections as they are published, each with this weight.
    pub(crate) fn candidates(&mut self, weight: Weight) -> &[Arc<Candidate<Target>>] {
        if self.candidates.first().is_none_or(|one| one.weight() != weight) {
            let serving = self.links.iter().filter(|link| link.health == Health::Serving);
            self.candidates = serving.map(|link| Arc::new(self.candidate(link, weight))).collect();
        }
        &self.candidates
    }

    fn candidate(&self, link: &Link, weight: Weight) -> Candidate<Target> {
        let target = Target {
            instance: Arc::clone(&self.instance),
            endpoint: Arc::clone(&self.endpoint),
            origin: link.origin.clone(),
            sender: link.sender.clone(),
        };
        Candidate::new(target, weight, Arc::clone(&link.load))
    }

    /// Its row in the table of endpoints.
    pub(crate) fn row(&mut self) -> &Arc<EndpointRow> {
        self.row.get_or_insert_with(|| {
            Arc::new(EndpointRow {
                instance: Arc::clone(&self.instance),
                endpoint: Arc::clone(&self.endpoint),
                ejected_until: self.outlier.ejected_until(),
                held_until: self.held_until,
            })
        })
    }

    /// Discards what was published, so that it is built again.
    pub(crate) fn forget_published(&mut self) {
        self.candidates.clear();
        self.row = None;
    }
}
