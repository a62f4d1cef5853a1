//! The state of the registry, and its events for watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use discovery_core::{
    Error, ErrorKind, Instance, InstanceId, ServiceName, Status,
    backend::{BadEntry, Entry, StatusWriter},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::AbortHandle,
    time::Instant,
};

/// The registry behind all handles: plain state under one lock, which is never held across an
/// await.
#[derive(Debug)]
pub(crate) struct Store(Mutex<State>);

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ttl: Duration,
    pub(crate) revision: u64,
    /// Why the registry cannot be reached; `None` while it can.
    pub(crate) outage: Option<Error>,
    /// The entries by key, `<service>/<id>`. Other keys belong to no service.
    pub(crate) entries: BTreeMap<String, Stored>,
    /// The live registrations, by number.
    pub(crate) owners: BTreeMap<u64, Owner>,
    /// The handles that were crashed.
    pub(crate) crashed: BTreeSet<u64>,
    pub(crate) timer: Option<Timer>,
    /// Before this time no lease ends and no registration heals.
    pub(crate) due: Option<Instant>,
    holding: bool,
    watchers: Vec<Watcher>,
    numbers: u64,
}

/// The task that does what is due later.
#[derive(Debug)]
pub(crate) struct Timer {
    pub(crate) number: u64,
    pub(crate) due: Instant,
    pub(crate) task: AbortHandle,
}

/// One entry of the registry.
#[derive(Debug)]
pub(crate) struct Stored {
    /// `None` if it cannot be read.
    pub(crate) instance: Option<Arc<Instance>>,
    /// The registration that wrote it; `None` if it was put by hand.
    pub(crate) owner: Option<u64>,
    /// When its lease ends; `None` while the lease is renewed, and if there is no lease.
    pub(crate) ends: Option<Instant>,
    revision: u64,
}

/// A live registration.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) process: u64,
    pub(crate) service: ServiceName,
    pub(crate) instance: Arc<Instance>,
    pub(crate) status: StatusWriter,
    /// When it will try to write its lost entry again.
    pub(crate) heals: Option<Instant>,
}

/// An event for upstream watches.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Change(Vec<Entry>, Vec<InstanceId>),
    End(Error),
    Panic,
    Reset(Vec<Entry>),
}

#[derive(Debug)]
struct Watcher {
    number: u64,
    process: u64,
    service: ServiceName,
    sender: UnboundedSender<Event>,
    held: Vec<Event>,
}

impl Store {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self(Mutex::new(State {
            ttl,
            revision: 0,
            outage: None,
            entries: BTreeMap::new(),
            owners: BTreeMap::new(),
            crashed: BTreeSet::new(),
            timer: None,
            due: None,
            holding: false,
            watchers: Vec::new(),
            numbers: 0,
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns an unused number, for a handle, a registration or a watch.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Returns the error of any call on a handle that cannot act now.
    pub(crate) fn reach(&self, process: u64) -> Result<(), Error> {
        if self.crashed.contains(&process) {
            return Err(Error::new(ErrorKind::Closed, "this handle was crashed"));
        }
        self.outage.clone().map_or(Ok(()), Err)
    }

    /// Returns the entries of a service.
    pub(crate) fn read(&self, service: &ServiceName) -> Vec<Entry> {
        let prefix = key(service, "");
        let below = self.entries.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        below.filter(|(key, _)| parse(key).is_some()).map(|(key, stored)| stored.entry(key)).collect()
    }

    /// Writes an instance; see [`write`](Self::write).
    pub(crate) fn put(&mut self, service: &ServiceName, instance: Arc<Instance>, owner: Option<u64>) {
        let key = key(service, instance.id().as_str());
        self.write(key, Some(instance), owner);
    }

    /// Writes an entry, readable or not. A new owner supersedes the former one. A value put by hand
    /// has no owner, so the former owner repairs it; otherwise nobody would ever remove it.
    pub(crate) fn write(&mut self, key: String, instance: Option<Arc<Instance>>, owner: Option<u64>) {
        self.revision += 1;
        let stored = Stored { instance, owner, ends: None, revision: self.revision };
        let entry = stored.entry(&key);
        let former = self.entries.insert(key.clone(), stored).and_then(|former| former.owner);
        match former.filter(|former| Some(*former) != owner) {
            Some(former) if owner.is_some() => self.supersede(former),
            Some(former) => {
                self.schedule(former, &Error::new(ErrorKind::Unavailable, "somebody overwrote the entry"));
            }
            None => {}
        }
        if let Some((service, _)) = parse(&key) {
            self.publish(&service, &Event::Change(vec![entry], Vec::new()));
        }
    }

    /// Ends a registration whose id now has another owner.
    pub(crate) fn supersede(&mut self, owner: u64) {
        if let Some(owner) = self.owners.remove(&owner) {
            owner.status.set(Status::superseded());
        }
    }

    /// Removes entries in one step, and returns those that existed.
    pub(crate) fn remove(&mut self, keys: impl IntoIterator<Item = String>) -> Vec<Stored> {
        let mut removed = Vec::new();
        let mut steps: BTreeMap<ServiceName, Vec<InstanceId>> = BTreeMap::new();
        for key in keys {
            let Some(stored) = self.entries.remove(&key) else { continue };
            removed.push(stored);
            if let Some((service, id)) = parse(&key) {
                steps.entry(service).or_default().push(id);
            }
        }
        self.revision += u64::from(!removed.is_empty());
        for (service, ids) in steps {
            self.publish(&service, &Event::Change(Vec::new(), ids));
        }
        removed
    }

    /// Sends an event to the watches of one service.
    pub(crate) fn publish(&mut self, service: &ServiceName, event: &Event) {
        let holding = self.holding;
        for watcher in self.watchers.iter_mut().filter(|watcher| watcher.service == *service) {
            watcher.tell(event.clone(), holding);
        }
    }

    /// Sends an event to every watch.
    pub(crate) fn publish_all(&mut self, event: &Event) {
        let holding = self.holding;
        self.watchers.iter_mut().for_each(|watcher| watcher.tell(event.clone(), holding));
    }

    /// Ends the watches of some handles with an error, before any event that is held back.
    pub(crate) fn end_watches(&mut self, error: &Error, concerns: impl Fn(u64) -> bool) {
        for watcher in self.watchers.iter_mut().filter(|watcher| concerns(watcher.process)) {
            watcher.tell(Event::End(error.clone()), false);
        }
    }

    /// Holds back the events of all watches, or releases them.
    pub(crate) fn hold(&mut self, holding: bool) {
        self.holding = holding;
        if !holding {
            for watcher in &mut self.watchers {
                let held = std::mem::take(&mut watcher.held);
                held.into_iter().for_each(|event| watcher.tell(event, false));
            }
        }
    }

    /// Opens a handle's watch of a service.
    pub(crate) fn open(&mut self, process: u64, service: &ServiceName) -> (u64, UnboundedReceiver<Event>) {
        let (sender, receiver) = unbounded_channel();
        let number = self.number();
        self.watchers.push(Watcher { number, process, service: service.clone(), sender, held: Vec::new() });
        (number, receiver)
    }

    /// Closes a watch.
    pub(crate) fn close(&mut self, number: u64) {
        self.watchers.retain(|watcher| watcher.number != number);
    }

    /// Returns how many watches of a service are open.
    pub(crate) fn watches(&self, service: &ServiceName) -> usize {
        self.watchers.iter().filter(|watcher| watcher.service == *service).count()
    }
}

impl Stored {
    fn entry(&self, key: &str) -> Entry {
        match &self.instance {
            Some(instance) => Entry::Valid((**instance).clone()),
            None => Entry::Bad(BadEntry {
                key: key.to_owned(),
                id: parse(key).map(|(_, id)| id),
                revision: self.revision,
                error: Error::new(ErrorKind::InvalidInput, "the entry cannot be read"),
            }),
        }
    }
}

impl Watcher {
    fn tell(&mut self, event: Event, holding: bool) {
        if holding {
            self.held.push(event);
        } else {
            // The watch may be ending at this moment.
            let _ = self.sender.send(event);
        }
    }
}

/// Returns the key of an instance.
pub(crate) fn key(service: &ServiceName, id: &str) -> String {
    format!("{service}/{id}")
}

/// Returns the service and the id of a key; `None` for deeper paths and for invalid names.
pub(crate) fn parse(key: &str) -> Option<(ServiceName, InstanceId)> {
    let (service, id) = key.split_once('/')?;
    Some((service.parse().ok()?, id.parse().ok()?))
}
