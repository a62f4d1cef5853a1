pub(crate) mod connect_limit;
pub(crate) mod driver;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use discovery_core::{Address, Instance, InstanceId};
use http::uri::{Authority, Scheme};
use tokio::sync::Notify;

use crate::{
    balance::Load,
    connection::{Sender, health_check::Health},
    error::SharedError,
    pool::failure_rate::Totals,
    published::endpoints::EndpointState,
    signals::Signals,
};

/// An instance as the channel sees it: its connections, and what calls report of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: InstanceId,
    pub(crate) address: Address,
    instance: Mutex<Arc<Instance>>,
    pub(crate) signals: Arc<Signals>,
    /// Requests in a row without an answer.
    failures: AtomicU32,
    /// Answers so far.
    answers: AtomicU32,
    /// Requests so far that failed, and those of them that never had an answer.
    failed: AtomicU32,
    lost: AtomicU32,
    /// The sweep in which it was last put on trial.
    trial: AtomicU32,
    lanes: Box<[Lane]>,
    draining: AtomicBool,
    /// It was silent, so that it may be frozen, until it shakes hands again.
    suspect: AtomicBool,
    /// The pool has been told to look at it, and has not yet.
    touched: AtomicBool,
    /// What the pool is told.
    me: Weak<Self>,
}

/// The place of one connection, which its driver fills anew when it is lost.
#[derive(Debug)]
pub(crate) struct Lane {
    phase: Mutex<Phase>,
    /// The endpoint was drained and is not any more.
    returned: AtomicBool,
    /// Makes the driver look again: at the connection, and at whether it shall drain.
    look: Notify,
}

/// Where a lane stands.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    BackingOff {
        error: SharedError,
    },
    /// `first`: nothing has failed since the endpoint was new, or since its last good connection.
    Connecting {
        first: bool,
    },
    /// It will not connect again.
    Ended,
    Idle,
    Ready(Link),
}

/// A connection that takes requests.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Where the requests say that they go.
    pub(crate) origin: (Scheme, Authority),
    pub(crate) sender: Sender,
    pub(crate) load: Arc<Load>,
    pub(crate) health: Health,
}

impl Endpoint {
    /// An endpoint of so many connections, at least one.
    pub(crate) fn new(instance: Arc<Instance>, connections: usize, signals: Arc<Signals>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            id: instance.id().clone(),
            address: instance.address().clone(),
            instance: Mutex::new(instance),
            failures: AtomicU32::new(0),
            answers: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            trial: AtomicU32::new(signals.tick()),
            lanes: (0..connections).map(|_| Lane::new()).collect(),
            draining: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            me: Weak::clone(me),
            signals,
        })
    }

    /// The instance, as it is registered now.
    pub(crate) fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of another weight or other metadata.
    pub(crate) fn describe(&self, instance: &Arc<Instance>) {
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(instance);
    }

    /// Counts an answer, whatever it says: the peer is there.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends a row of failures.
    pub(crate) fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed without an answer, and that `load` counts; sent during the sweep `tick`.
    pub(crate) fn lost(&self, tick: u32, load: &Load) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        // Ticks wrap around.
        if tick.wrapping_sub(self.trial.load(Ordering::Relaxed)) > u32::MAX / 2 {
            // It says nothing of the trial, which began later.
            load.shrink_trial();
            self.failed.fetch_add(1, Ordering::Relaxed);
        } else {
            load.doubt();
            self.failed();
        }
    }

    /// Counts a failure; the pool decides what follows from it.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// What has become of all requests so far.
    pub(crate) fn totals(&self) -> Totals {
        let ended = self.answers().wrapping_add(self.lost.load(Ordering::Relaxed));
        Totals { ended, failed: self.failed.load(Ordering::Relaxed) }
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn answers(&self) -> u32 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Starts counting failures anew, and takes one request at a time until one is answered.
    pub(crate) fn put_on_trial(&self) {
        self.trial.store(self.signals.tick(), Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.links().iter().for_each(|link| link.load.set_trial(1));
    }

    /// Makes the drivers connect anew, because the peer is silent: one that is frozen does not shake hands, so that no call has to
    /// find out. What is in flight goes on where it is.
    pub(crate) fn replace(&self) {
        self.suspect.store(true, Ordering::Release);
        self.links().iter().for_each(|link| link.load.close());
        self.look();
    }

    /// Whether it was silent and has not shaken hands since.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// The peer shook hands.
    pub(crate) fn met(&self) {
        self.suspect.store(false, Ordering::Release);
    }

    /// Where the endpoint stands, and how many requests are in flight, as it is shown.
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
        (best.unwrap_or(EndpointState::Idle), self.lanes.iter().map(in_flight).sum())
    }

    /// Why it is not connected, as far as its first lane found out.
    pub(crate) fn error(&self) -> Option<SharedError> {
        match &*self.lanes[0].lock() {
            Phase::BackingOff { error } => Some(Arc::clone(error)),
            _ => None,
        }
    }

    /// Where the endpoint stands: at its best connection, or where one is about to be, or else where its first lane does.
    pub(crate) fn phase(&self) -> Phase {
        if let Some(best) = self.links().into_iter().max_by_key(|link| link.health == Health::Serving) {
            return Phase::Ready(best);
        }
        let coming = |phase: &Phase| matches!(phase, Phase::Connecting { first: true });
        self.lanes.iter().map(Lane::phase).find(coming).unwrap_or_else(|| self.lanes[0].phase())
    }

    /// The connections that take requests.
    pub(crate) fn links(&self) -> Vec<Link> {
        let open = |lane: &Lane| match &*lane.lock() {
            Phase::Ready(link) if !link.load.is_closed() => Some(link.clone()),
            _ => None,
        };
        self.lanes.iter().filter_map(open).collect()
    }

    /// Whether its drivers will go on where the endpoint is not drained after all.
    pub(crate) fn is_driven(&self) -> bool {
        self.lanes.iter().all(|lane| match &*lane.lock() {
            Phase::Ended => false,
            Phase::Ready(link) => !link.load.is_closed(),
            Phase::BackingOff { .. } | Phase::Connecting { .. } | Phase::Idle => true,
        })
    }

    /// Whether no attempt to connect has been made.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| matches!(*lane.lock(), Phase::Idle))
    }

    /// Lets the drivers end their connections once the requests have ended, or takes that back.
    pub(crate) fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
        self.lanes.iter().for_each(|lane| lane.returned.store(!draining, Ordering::Release));
        self.look();
    }

    /// Makes the drivers look at their connections: hyper does not tell of a GOAWAY while streams live.
    pub(crate) fn look(&self) {
        self.lanes.iter().for_each(|lane| lane.look.notify_one());
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// How many connections it has at most.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(crate) fn lane(&self, number: usize) -> &Lane {
        &self.lanes[number]
    }

    /// Moves a lane on; the pool looks, except where a new endpoint begins to connect, or an old one ends, which it knows.
    pub(crate) fn enter(&self, number: usize, phase: Phase) {
        let is_news = {
            let mut former = self.lanes[number].lock();
            let is_first = matches!((&*former, &phase), (Phase::Idle, Phase::Connecting { first: true }));
            let is_last = matches!(phase, Phase::Ended);
            *former = phase;
            !is_first && !is_last
        };
        if number == 0 {
            // The others go by the first.
            self.lanes[1..].iter().for_each(|lane| lane.look.notify_one());
        }
        if is_news {
            self.touch();
        }
    }

    /// Takes note of what the peer says of its health, which is an answer too.
    pub(crate) fn tell(&self, number: usize, health: Health) {
        if let Phase::Ready(link) = &mut *self.lanes[number].lock() {
            link.health = health;
        }
        if health == Health::Serving {
            self.succeeded();
            self.answered();
        }
        self.touch();
    }

    /// Asks the pool to look, once until it has.
    fn touch(&self) {
        if !self.touched.swap(true, Ordering::AcqRel) {
            self.signals.touch(Weak::clone(&self.me));
        }
    }

    /// The pool is about to look: what calls told before this it sees.
    pub(crate) fn seen(&self) {
        self.touched.swap(false, Ordering::AcqRel);
    }
}

impl Phase {
    fn state(&self) -> EndpointState {
        match self {
            Self::BackingOff { .. } => EndpointState::BackingOff,
            Self::Connecting { .. } => EndpointState::Connecting,
            Self::Ended | Self::Idle => EndpointState::Idle,
            Self::Ready(link) if link.health != Health::Serving => EndpointState::NotServing,
            Self::Ready(_) => EndpointState::Ready,
        }
    }
}

impl Lane {
    fn new() -> Self {
        Self { phase: Mutex::new(Phase::Idle), returned: AtomicBool::new(false), look: Notify::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(*self.lock(), Phase::Ready(_))
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(*self.lock(), Phase::Ended)
    }

    /// Waits until it shall look again.
    pub(crate) async fn looked(&self) {
        self.look.notified().await;
    }

    /// Forgets that the endpoint was taken back, as of earlier than now.
    pub(crate) fn stay(&self) {
        self.returned.store(false, Ordering::Release);
    }

    /// Whether the endpoint was taken back after it was drained; says so once.
    pub(crate) fn has_returned(&self) -> bool {
        self.returned.swap(false, Ordering::AcqRel)
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
