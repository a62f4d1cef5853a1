use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use discovery_core::{Change, Instance, InstanceId, Snapshot, Update, UpdateStream};
use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::eventually;

/// Folds a stream as a client would and records the course of it. When dropped, it fails the test
/// if the stream broke a law of streams.
#[derive(Debug)]
pub struct Follower {
    record: Arc<Mutex<Record>>,
    task: JoinHandle<()>,
}

/// One update and its result.
#[derive(Clone, Debug)]
pub struct Told {
    /// When it arrived.
    pub at: Instant,
    /// The update.
    pub update: Update,
    /// The set after it.
    pub set: Snapshot,
}

#[derive(Debug, Default)]
struct Record {
    set: Snapshot,
    told: Vec<Told>,
    removed: Vec<InstanceId>,
    broken: Vec<String>,
}

impl Follower {
    /// Starts to follow a stream.
    pub fn of(mut updates: UpdateStream) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let task = tokio::spawn({
            let record = Arc::clone(&record);
            async move {
                while let Some(update) = updates.next().await {
                    lock(&record).take(update);
                }
                lock(&record).broken.push("the stream ended".to_owned());
            }
        });
        Self { record, task }
    }

    /// Returns the current set.
    pub fn set(&self) -> Snapshot {
        lock(&self.record).set.clone()
    }

    /// Returns all updates so far.
    pub fn told(&self) -> Vec<Told> {
        lock(&self.record).told.clone()
    }

    /// Returns the instances removed so far, by a change or a reset; once for each removal.
    pub fn removed(&self) -> Vec<InstanceId> {
        lock(&self.record).removed.clone()
    }

    /// Returns how many losses of contact were reported so far.
    pub fn losses(&self) -> usize {
        lock(&self.record).told.iter().filter(|told| matches!(told.update, Update::Lost(_))).count()
    }

    /// Returns how many whole sets arrived so far.
    pub fn resets(&self) -> usize {
        lock(&self.record).told.iter().filter(|told| matches!(told.update, Update::Reset(_))).count()
    }

    /// Returns whether contact is lost now.
    pub fn is_lost(&self) -> bool {
        matches!(lock(&self.record).told.last(), Some(Told { update: Update::Lost(_), .. }))
    }

    /// Waits until the set is as wanted while in contact with the registry.
    pub async fn until(&self, what: &str, bound: Duration, wanted: impl Fn(&Snapshot) -> bool) -> Duration {
        eventually(what, bound, async || !self.is_lost() && wanted(&self.set())).await
    }

    /// Waits until contact is lost.
    pub async fn until_lost(&self, bound: Duration) -> Duration {
        eventually("the loss is reported", bound, async || self.is_lost()).await
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
        let record = lock(&self.record);
        if !std::thread::panicking() {
            assert!(record.broken.is_empty(), "{:#?} in {:#?}", record.broken, record.told);
        }
    }
}

impl Record {
    fn take(&mut self, update: Update) {
        let next = self.set.after(&update);
        let former = self.told.last().map(|told| &told.update);
        let broken = match (&update, former) {
            (Update::Change(_), None | Some(Update::Lost(_))) => Some("a change that follows no set"),
            (Update::Change(change), _) if change.is_empty() => Some("an empty change"),
            (Update::Change(change), _) if size(change) != size(&self.set.diff(&next)) => {
                Some("a change that contains unchanged instances")
            }
            (Update::Lost(error), Some(Update::Lost(former))) if error.kind() == former.kind() => {
                Some("one loss reported twice")
            }
            (Update::Reset(set), _) if set.iter().any(|one| self.moves(one)) => {
                Some("an equal instance in another `Arc`")
            }
            _ => None,
        };
        self.broken.extend(broken.map(|what| format!("{what}: {update:?}")));
        self.removed.extend(self.set.diff(&next).removes().iter().cloned());
        self.set = next.clone();
        self.told.push(Told { at: Instant::now(), update, set: next });
    }

    fn moves(&self, one: &Arc<Instance>) -> bool {
        self.set.get(one.id().as_str()).is_some_and(|former| former == one && !Arc::ptr_eq(former, one))
    }
}

fn size(change: &Change) -> usize {
    change.upserts().len() + change.removes().len()
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
