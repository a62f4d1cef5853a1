//! An instance as the channel sees it, from its first connection attempt to the end of its last
//! call.
//!
//! - [`Endpoint`] is shared by calls, the pool and the drivers: it has the lanes and the tally.
//! - A [`lane`] is the slot of one connection. Its [`driver`] connects (see [`connect`]) within the
//!   [`connect_limit`], serves, reconnects and drains. [`retired`] keeps the connections whose
//!   calls have not ended yet. [`config`] is the configuration of all drivers, and [`reachability`]
//!   is what is logged while attempts fail.
//! - A [`check`] is a second connection to a silent peer; [`checking`] is how the pool and the
//!   driver use it.
//! - The [`tally`] counts what calls report; the [`state`] is the public view.

pub(crate) mod check;
mod checking;
pub(crate) mod config;
mod connect;
pub(crate) mod connect_limit;
pub(crate) mod driver;
pub(crate) mod lane;
mod reachability;
mod retired;
pub(crate) mod state;
pub(crate) mod tally;

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};

use discovery_core::{Address, Instance, InstanceId};
use tonic::Code;
use tracing::{debug, info, warn};

use crate::{
    balance::Load,
    connection::{
        end::End,
        link::{Health, Link},
    },
    error::{BoxError, SharedError, printable, report},
    metrics::endpoint::EndpointMetrics,
};
use check::Check;
use lane::{Lane, Phase};
use reachability::Reachability;
use state::EndpointState;
use tally::Tally;

/// The wake-ups between the calls, the endpoints and the pool of a channel.
pub(crate) type Wakeups = crate::wakeups::Wakeups<Weak<Endpoint>>;

/// An instance as the channel sees it: its connections, and what calls report about it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: InstanceId,
    pub(crate) address: Address,
    instance: Mutex<Arc<Instance>>,
    pub(crate) wakeups: Arc<Wakeups>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) metrics: EndpointMetrics,
    lanes: Box<[Lane]>,
    check: Mutex<Check>,
    draining: AtomicBool,
    /// How many times the peer ended a connection with ENHANCE_YOUR_CALM. Connections that end
    /// together count once.
    complaints: AtomicU32,
    /// How many connection attempts failed. If the address is a name, the next attempt begins at
    /// another of its IP addresses.
    failed_attempts: AtomicUsize,
    reachability: Reachability,
    /// Why the last connection ended, if there was a reason; kept until another one ends for a
    /// reason.
    disconnect: Mutex<Option<SharedError>>,
    /// The pool has been asked to look at it, and has not done so yet.
    is_dirty: AtomicBool,
    /// What is handed to the pool when it is asked to look.
    me: Weak<Self>,
}

impl Endpoint {
    /// Creates an endpoint with this many connections, at least one.
    pub(crate) fn new(
        instance: Arc<Instance>,
        connections: usize,
        tally: Arc<Tally>,
        metrics: EndpointMetrics,
        wakeups: Arc<Wakeups>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id: instance.id().clone(),
            address: instance.address().clone(),
            instance: Mutex::new(instance),
            tally,
            metrics,
            lanes: (0..connections).map(|_| Lane::new()).collect(),
            check: Mutex::default(),
            draining: AtomicBool::new(false),
            complaints: AtomicU32::new(0),
            failed_attempts: AtomicUsize::new(0),
            reachability: Reachability::default(),
            disconnect: Mutex::default(),
            is_dirty: AtomicBool::new(false),
            me: Weak::clone(me),
            wakeups,
        })
    }

    /// The instance, as it is registered.
    pub(crate) fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets another weight or other metadata.
    pub(crate) fn set_instance(&self, instance: &Arc<Instance>) {
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(instance);
    }

    /// Counts a call that was lost without an answer on the connection of this load.
    #[cold]
    pub(crate) fn lost(&self, load: &Load) {
        self.tally.lost();
        self.penalize(load);
    }

    /// Counts a call that was answered with a failing code on the connection of this load.
    #[cold]
    pub(crate) fn failed(&self, code: Code, load: &Load) {
        self.tally.failed(code);
        self.penalize(load);
        // A failed call does not wake the pool, unless the pool waits for it.
        if load.is_limited() {
            self.mark_dirty();
        }
    }

    /// Counts a call whose caller gave up after waiting for an answer for some time.
    #[cold]
    pub(crate) fn given_up(&self, load: &Load) {
        self.tally.given_up();
        self.penalize(load);
    }

    fn penalize(&self, load: &Load) {
        if self.wakeups.is_penalizing() {
            load.penalize();
        }
    }

    /// The public state of the endpoint, and the number of its requests in flight.
    pub(crate) fn state(&self) -> (EndpointState, u32) {
        let in_flight = |lane: &Lane| match &*lane.lock() {
            Phase::Ready(link) => link.load.in_flight(),
            _ => 0,
        };
        let rank = |state: &EndpointState| match state {
            EndpointState::Ready => 0,
            EndpointState::NotServing => 1,
            EndpointState::Connecting => 2,
            EndpointState::BackingOff | EndpointState::Idle => 3,
        };
        let best = self.lanes.iter().map(|lane| lane.lock().state()).min_by_key(rank);
        let checking = self.check_link().map_or(0, |link| link.load.in_flight());
        (best.unwrap_or(EndpointState::Idle), self.lanes.iter().map(in_flight).sum::<u32>() + checking)
    }

    /// Records that a connection takes no more requests, and why.
    ///
    /// `complaints` is their number when the connection was opened: if several connections of the
    /// endpoint end with ENHANCE_YOUR_CALM at once, they count once.
    pub(crate) fn disconnected(&self, end: &End, complaints: u32) {
        if end.is_enhance_your_calm() {
            self.complaints.fetch_max(complaints + 1, Ordering::Relaxed);
        }
        let former = end.reason().map(|reason| {
            let mut last = self.disconnect.lock().unwrap_or_else(PoisonError::into_inner);
            last.replace(Arc::clone(reason))
        });
        // Before logging, since a subscriber may panic.
        self.recheck();
        if let (Some(reason), Some(former)) = (end.reason(), former) {
            let text = report(&**reason);
            let error = shown(&text);
            let is_news = former.is_none_or(|former| report(&*former) != text);
            if end.is_go_away() && is_news {
                warn!(instance = %self.id, error, "peer ended the connection");
            } else {
                debug!(instance = %self.id, error, "connection lost");
            }
        }
    }

    /// How many times the peer ended a connection with ENHANCE_YOUR_CALM. Connections that end
    /// together count once.
    pub(crate) fn complaints(&self) -> u32 {
        self.complaints.load(Ordering::Relaxed)
    }

    /// Records a connection attempt that succeeded.
    pub(crate) fn attempt_succeeded(&self) {
        if self.reachability.succeeded() {
            info!(instance = %self.id, "endpoint reachable again");
        }
        debug!(instance = %self.id, "endpoint connected");
    }

    /// Records a failed connection attempt.
    pub(crate) fn attempt_failed(&self, error: &BoxError) {
        self.failed_attempts.fetch_add(1, Ordering::Relaxed);
        let error = shown(&report(&**error));
        let is_connected = !self.links().is_empty();
        // One that leaves may have stopped listening.
        if !self.is_draining() && self.reachability.failed(&error, is_connected) {
            if is_connected {
                info!(instance = %self.id, error, "no further connection to the endpoint");
            } else {
                info!(instance = %self.id, error, "endpoint unreachable");
            }
        }
        debug!(instance = %self.id, error, "connection attempt failed");
    }

    /// How many connection attempts failed.
    pub(crate) fn failed_attempts(&self) -> usize {
        self.failed_attempts.load(Ordering::Relaxed)
    }

    /// Why the last connection ended, if there was a reason; kept until another one ends for a
    /// reason.
    pub(crate) fn disconnect(&self) -> Option<SharedError> {
        self.disconnect.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why the last connection attempt of its first lane failed, until one succeeds; while it is
    /// connected, why another connection could not be made.
    pub(crate) fn error(&self) -> Option<SharedError> {
        match &*self.lanes[0].lock() {
            Phase::BackingOff { error } => Some(Arc::clone(error)),
            Phase::Connecting { failed } => failed.clone(),
            Phase::Ready(_) => self.reachability.error().map(|reason| Arc::from(BoxError::from(reason))),
            Phase::Ended | Phase::Idle => None,
        }
    }

    /// The phase that describes the endpoint: that of its best connection, or else of a lane in its
    /// first attempt, or else of its first lane.
    pub(crate) fn phase(&self) -> Phase {
        if let Some(best) = self.links().into_iter().max_by_key(|link| link.health == Health::Serving) {
            return Phase::Ready(best);
        }
        let coming = |phase: &Phase| matches!(phase, Phase::Connecting { failed: None });
        self.lanes.iter().map(Lane::phase).find(coming).unwrap_or_else(|| self.lanes[0].phase())
    }

    /// The connections that take requests; that of a check is last.
    pub(crate) fn links(&self) -> Vec<Link> {
        let mut links = self.former_links();
        links.extend(self.check_link());
        links
    }

    /// The connections that take requests, without that of a check.
    pub(crate) fn former_links(&self) -> Vec<Link> {
        let open = |lane: &Lane| match &*lane.lock() {
            Phase::Ready(link) if !link.load.is_closed() => Some(link.clone()),
            _ => None,
        };
        self.lanes.iter().filter_map(open).collect()
    }

    /// Whether all of its drivers go on if draining is taken back.
    pub(crate) fn is_driven(&self) -> bool {
        self.lanes.iter().all(|lane| match &*lane.lock() {
            Phase::Ended => false,
            Phase::Ready(link) => !link.load.is_closed(),
            Phase::BackingOff { .. } | Phase::Connecting { .. } | Phase::Idle => true,
        })
    }

    /// Whether no connection attempt has been made.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| matches!(*lane.lock(), Phase::Idle))
    }

    /// Makes the drivers end their connections once their requests have ended, or takes that back.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
        self.lanes.iter().for_each(|lane| lane.set_returned(!draining));
        self.recheck();
    }

    /// Makes the drivers look at their connections: hyper does not report a GOAWAY while streams
    /// are open.
    pub(crate) fn recheck(&self) {
        self.lanes.iter().for_each(Lane::recheck);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// The number of its lanes, which is the maximum number of its connections.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(crate) fn lane(&self, number: usize) -> &Lane {
        &self.lanes[number]
    }

    /// Sets the phase of a lane. The pool is asked to look, unless a new endpoint begins to connect
    /// or a lane ends, which the pool knows.
    pub(crate) fn enter(&self, number: usize, phase: Phase) {
        let is_news = {
            let mut former = self.lanes[number].lock();
            let is_first = matches!((&*former, &phase), (Phase::Idle, Phase::Connecting { failed: None }));
            let is_last = matches!(phase, Phase::Ended);
            *former = phase;
            !is_first && !is_last
        };
        if number == 0 {
            // The other lanes follow the first.
            self.lanes[1..].iter().for_each(Lane::recheck);
        }
        if is_news {
            self.mark_dirty();
        }
    }

    /// Records the health that the peer reports. Such a report is an answer, too. Only a change to
    /// SERVING ends a series of failures: each new connection repeats what is known.
    pub(crate) fn tell(&self, number: usize, health: Health) {
        let former = match &mut *self.lanes[number].lock() {
            Phase::Ready(link) => std::mem::replace(&mut link.health, health),
            _ => health,
        };
        if health == Health::Serving {
            if former != Health::Serving {
                self.tally.succeeded();
            }
            self.tally.answered();
        }
        self.mark_dirty();
    }

    /// Asks the pool to look, once until it has done so.
    fn mark_dirty(&self) {
        if !self.is_dirty.swap(true, Ordering::AcqRel) {
            self.wakeups.mark_dirty(Weak::clone(&self.me));
        }
    }

    /// Called when the pool is about to look: it sees everything that calls reported before this.
    pub(crate) fn clear_dirty(&self) {
        self.is_dirty.swap(false, Ordering::AcqRel);
    }
}

/// What is logged of a peer's reason.
fn shown(text: &str) -> String {
    printable(text).chars().take(MAX_LOGGED).collect()
}

/// How much of a peer's reason is logged, in characters.
const MAX_LOGGED: usize = 500;
