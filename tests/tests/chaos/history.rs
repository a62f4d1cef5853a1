//! The registry's own history: every revision of etcd, recorded by a watch that no fault affects.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery_core::{Instance, InstanceId, ServiceName, Snapshot};
use discovery_etcd::{EtcdNaming, Layout};
use etcd_client::{Client, ConnectOptions, EventType, WatchOptions, WatchResponse};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    hand::{PASSWORD, USER},
    log::Journal,
};

/// A state of the store. Each wipe starts a new epoch, so that later states are always greater.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Revision {
    pub(crate) epoch: u32,
    pub(crate) number: i64,
}

/// The changes of one revision.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) revision: Revision,
    /// When the recorder received it, which is after etcd applied it.
    pub(crate) at: Duration,
    pub(crate) changes: Vec<(String, Option<Stored>)>,
}

/// A key's value and lease; the lease is 0 if it has none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Stored {
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
}

/// The valid instances of a service from one revision until the next state.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) since: Revision,
    pub(crate) at: Duration,
    pub(crate) set: Snapshot,
}

/// Records all of etcd's revisions from every member at once, because any of them may be down or
/// cut off.
pub(crate) struct Recorder {
    members: Vec<String>,
    journal: Journal,
    steps: Arc<Mutex<Vec<Step>>>,
    epoch: u32,
    reached: watch::Receiver<i64>,
    tasks: JoinSet<()>,
}

impl Recorder {
    pub(crate) fn start(members: Vec<String>, journal: Journal) -> Self {
        let steps = Arc::default();
        let (reached, tasks) = follow(members.clone(), journal.clone(), Arc::clone(&steps), 0);
        Self { members, journal, steps, epoch: 0, reached, tasks }
    }

    /// Returns the last recorded revision.
    pub(crate) fn reached(&self) -> Revision {
        Revision { epoch: self.epoch, number: *self.reached.borrow() }
    }

    /// Waits until this revision of the current epoch is recorded.
    pub(crate) async fn catch_up(&mut self, number: i64) {
        let reached = timeout(Duration::from_secs(20), self.reached.wait_for(|reached| *reached >= number)).await;
        if !matches!(reached, Ok(Ok(_))) {
            self.journal.open().failures.push(format!("the recorder never reached revision {number}"));
        }
    }

    /// Continues with a store that starts again from its first revision.
    pub(crate) fn begin_epoch(&mut self) {
        self.epoch += 1;
        let step =
            Step { revision: Revision { epoch: self.epoch, number: 1 }, at: self.journal.now(), changes: Vec::new() };
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        (self.reached, self.tasks) =
            follow(self.members.clone(), self.journal.clone(), Arc::clone(&self.steps), self.epoch);
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn follow(
    members: Vec<String>,
    journal: Journal,
    steps: Arc<Mutex<Vec<Step>>>,
    epoch: u32,
) -> (watch::Receiver<i64>, JoinSet<()>) {
    // An empty store has revision 1.
    let (sender, reached) = watch::channel(1);
    let mut tasks = JoinSet::new();
    for member in members {
        let journal = journal.clone();
        let steps = Arc::clone(&steps);
        let sender = sender.clone();
        tasks.spawn(async move {
            loop {
                let _ = record(&member, &journal, &steps, epoch, &sender).await;
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
    (reached, tasks)
}

/// Records from one member until that fails.
async fn record(
    member: &str,
    journal: &Journal,
    steps: &Mutex<Vec<Step>>,
    epoch: u32,
    reached: &watch::Sender<i64>,
) -> Result<(), etcd_client::Error> {
    let mut client = connect(member).await?;
    let next = *reached.borrow() + 1;
    let options = WatchOptions::new().with_all_keys().with_start_revision(next);
    let Ok(opened) = timeout(Duration::from_secs(2), client.watch("", Some(options))).await else { return Ok(()) };
    let mut stream = opened?;
    while let Some(message) = stream.message().await? {
        if message.canceled() {
            // If another member delivered the compacted revisions in time, the next attempt starts
            // after them.
            if message.compact_revision() > *reached.borrow() + 1 {
                journal.open().failures.push(format!("history was compacted before the recorder had {next}"));
            }
            return Ok(());
        }
        for step in steps_of(&message, epoch, journal.now()) {
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            let number = step.revision.number;
            let former = *reached.borrow();
            // Another member delivered it before, or this one repeats itself, as some releases do.
            if number <= former {
                continue;
            }
            if number != former + 1 {
                journal.open().failures.push(format!("the recorder got revision {number} after {former}"));
            }
            steps.push(step);
            reached.send_replace(number);
        }
    }
    Ok(())
}

fn steps_of(message: &WatchResponse, epoch: u32, at: Duration) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for event in message.events() {
        let Some(entry) = event.kv() else { continue };
        let revision = Revision { epoch, number: entry.mod_revision() };
        let stored = Stored { value: entry.value().to_vec(), lease: entry.lease() };
        let stored = (event.event_type() == EventType::Put).then_some(stored);
        let change = (String::from_utf8_lossy(entry.key()).into_owned(), stored);
        match steps.last_mut() {
            Some(step) if step.revision == revision => step.changes.push(change),
            _ => steps.push(Step { revision, at, changes: vec![change] }),
        }
    }
    steps
}

/// Connects to one member, with keep-alive so that a freeze is noticed. The client may do
/// everything, whether or not authentication is enabled.
pub(crate) async fn connect(member: &str) -> Result<Client, etcd_client::Error> {
    let options = ConnectOptions::default()
        .with_connect_timeout(Duration::from_millis(500))
        .with_keep_alive(Duration::from_secs(1), Duration::from_secs(1));
    match Client::connect([member], Some(options.clone().with_user(USER, PASSWORD))).await {
        Err(etcd_client::Error::GRpcStatus(status)) if status.message().contains("authentication is not enabled") => {
            Client::connect([member], Some(options)).await
        }
        connected => connected,
    }
}

/// Returns the successive states of a service. The first is empty.
pub(crate) fn states(steps: &[Step], service: &ServiceName) -> Vec<State> {
    let mut states = vec![State { since: Revision::default(), at: Duration::ZERO, set: Snapshot::default() }];
    let mut epoch = 0;
    for step in steps {
        let last = &states[states.len() - 1].set;
        let mut set = if step.revision.epoch == epoch { last.clone() } else { Snapshot::default() };
        epoch = step.revision.epoch;
        for (key, stored) in &step.changes {
            let Some(id) = id_of(service, key) else { continue };
            let instance = stored.as_ref().and_then(|stored| instance_of(&id, stored));
            let others = set.iter().filter(|one| *one.id() != id).cloned();
            set = others.chain(instance.map(Into::into)).collect();
        }
        if set != states[states.len() - 1].set {
            states.push(State { since: step.revision, at: step.at, set });
        }
    }
    states
}

/// Returns the instance id of a key, if it is a key of the service.
pub(crate) fn id_of(service: &ServiceName, key: &str) -> Option<InstanceId> {
    let naming = EtcdNaming::default();
    let tail = key.strip_prefix(PREFIX)?.strip_prefix(&naming.range(service))?;
    naming.classify(tail).into_ids().pop()
}

pub(crate) fn instance_of(id: &InstanceId, stored: &Stored) -> Option<Instance> {
    support::entry::decode(id, &stored.value).ok()
}

/// Returns the registration that wrote this instance, and the version.
pub(crate) fn owner_of(instance: &Instance) -> Option<(usize, u64)> {
    let number = |key| -> Option<u64> { instance.metadata().get(key)?.parse().ok() };
    Some((usize::try_from(number(OWNER)?).ok()?, number(VERSION)?))
}

/// Returns the registration that wrote this value, and the version.
pub(crate) fn owner_in(stored: &Stored) -> Option<(usize, u64)> {
    let any = "any".parse().expect("a plain word is an id");
    owner_of(&instance_of(&any, stored)?)
}

pub(crate) const PREFIX: &str = "chaos/";
pub(crate) const OWNER: &str = "owner";
pub(crate) const VERSION: &str = "version";
