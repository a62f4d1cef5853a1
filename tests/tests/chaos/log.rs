//! The record of a run, and the journal through which all parts of the harness write it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use discovery_core::{Instance, ServiceName, Snapshot, Update};

use crate::history::{Revision, Step, Stored};

/// The record of a run: everything that the oracle reads.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The registry's own history.
    pub(crate) steps: Vec<Step>,
    /// Indexed by number.
    pub(crate) lives: Vec<Life>,
    pub(crate) recordings: Vec<Recording>,
    pub(crate) listings: Vec<Listing>,
    pub(crate) by_hand: Vec<ByHand>,
    pub(crate) disturbances: Vec<Disturbance>,
    /// What was done, for human readers.
    pub(crate) acts: Vec<(Duration, String)>,
    pub(crate) end: End,
    /// What the harness failed to do. The run then proves nothing.
    pub(crate) failures: Vec<String>,
}

/// One registration, from the call to its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    pub(crate) number: usize,
    /// The process, and the number of its run.
    pub(crate) process: (usize, u32),
    pub(crate) key: String,
    pub(crate) began: Duration,
    /// When `register` returned `Ok`.
    pub(crate) registered: Option<Duration>,
    pub(crate) updates: Vec<Updated>,
    /// When its owner let go of it: `register` failed or was dropped, `deregister` or the drop
    /// began, or the process crashed.
    pub(crate) released: Option<Duration>,
    /// When `deregister` returned `Ok`.
    pub(crate) gone: Option<Duration>,
    /// Updates that were requested and are not done.
    pub(crate) pending: usize,
    pub(crate) statuses: Vec<(Duration, Word)>,
    /// The instance as the registration reports it.
    pub(crate) instance: Option<Arc<Instance>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Updated {
    pub(crate) version: u64,
    /// When it returned `Ok`.
    pub(crate) done: Option<Duration>,
}

/// A registration's status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Word {
    Lost,
    Registered,
    Superseded,
}

/// One update stream as its consumer received it.
#[derive(Debug)]
pub(crate) struct Recording {
    pub(crate) name: String,
    pub(crate) process: usize,
    pub(crate) service: ServiceName,
    pub(crate) opened: Duration,
    pub(crate) items: Vec<(Duration, Update)>,
    /// Whether the stream ended by itself.
    pub(crate) ended: bool,
    pub(crate) closed: Option<Duration>,
}

/// A `list` that succeeded.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) service: ServiceName,
    pub(crate) began: Duration,
    pub(crate) ended: Duration,
    pub(crate) set: Snapshot,
}

/// A change that the harness made behind everybody's back.
#[derive(Debug)]
pub(crate) struct ByHand {
    pub(crate) target: Target,
    pub(crate) began: Duration,
    /// `None` if the answer was lost.
    pub(crate) revision: Option<Revision>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    Key(String),
    Lease(i64),
}

/// A fault with a duration, and the processes it affects.
#[derive(Clone, Debug)]
pub(crate) struct Disturbance {
    pub(crate) whom: Whom,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Whom {
    Everybody,
    Process(usize),
}

/// The state after the last fault.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// When the last fault ended.
    pub(crate) healed: Duration,
    /// How long it took until every open stream had the set that etcd lists.
    pub(crate) converged: Option<Duration>,
    /// How long it took until every registration was healed.
    pub(crate) registered: Option<Duration>,
    /// The last registrations that were not healed, and when.
    pub(crate) unhealed: Vec<(Duration, usize)>,
    /// When the harness began to give up everything.
    pub(crate) closing: Duration,
    /// The entries in etcd at that time.
    pub(crate) entries: BTreeMap<String, Stored>,
    /// What was left after everything had been given up.
    pub(crate) left: Left,
}

#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) keys: Vec<String>,
    pub(crate) leases: usize,
    pub(crate) watches: usize,
}

/// The log of a run in progress, with its clock.
#[derive(Clone)]
pub(crate) struct Journal {
    start: Instant,
    log: Arc<Mutex<Log>>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), log: Arc::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn open(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, act: impl fmt::Display) {
        let entry = (self.now(), act.to_string());
        self.open().acts.push(entry);
    }

    /// Changes a life; the change is given the current time.
    pub(crate) fn life(&self, number: usize, change: impl FnOnce(&mut Life, Duration)) {
        let mut log = self.open();
        let now = self.now();
        change(&mut log.lives[number], now);
    }

    /// Records a disturbance that ends now.
    pub(crate) fn disturbed(&self, whom: Whom, start: Duration) {
        let end = self.now();
        self.open().disturbances.push(Disturbance { whom, start, end });
    }

    pub(crate) fn take(&self) -> Log {
        std::mem::take(&mut self.open())
    }
}

impl Recording {
    /// Returns the set that its consumer holds and whether contact is lost.
    pub(crate) fn held(&self) -> (Snapshot, bool) {
        let set = self.items.iter().fold(Snapshot::default(), |set, (_, update)| set.after(update));
        (set, !matches!(self.items.last(), Some((_, Update::Change(_) | Update::Reset(_)))))
    }
}

impl Life {
    /// Returns whether it was registered and not yet released at this time.
    pub(crate) fn is_alive(&self, at: Duration) -> bool {
        self.registered.is_some_and(|since| since <= at) && self.released.is_none_or(|end| end > at)
    }
}
