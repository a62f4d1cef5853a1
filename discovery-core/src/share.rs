//! One upstream watch per service, shared by all streams of the service (W6, W8).

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, coop::consume_budget},
};

use crate::{
    Error, ErrorKind, Instance, InstanceId, ServiceName, Update,
    backend::Entry,
    fold::{Fold, TooMany},
    outage::{Outage, log_lost, log_regained},
    queue::{Position, Queue, Taken},
    reject::Rejects,
    source::Sink,
};

/// The running watches, one per service (W8).
pub(crate) type Watches = Mutex<HashMap<ServiceName, Weak<Shared>>>;

/// A running watch of one service. Its streams hold it; dropping the last one ends the task.
#[derive(Debug)]
pub(crate) struct Shared {
    service: ServiceName,
    /// Publishing, joining, taking and leaving happen under this lock, so that no stream misses or
    /// repeats an update.
    state: Mutex<State>,
    /// The end of the queue, by which a stream sees without the lock whether there is an update.
    end: AtomicU64,
    /// Notified after each update.
    news: Notify,
    task: OnceLock<AbortHandle>,
    /// Set once the runtime that ran the task has shut down.
    orphaned: AtomicBool,
    watches: Weak<Watches>,
}

/// What a watch knows of its service, and another one can continue from.
#[derive(Debug, Default)]
pub(crate) struct Known {
    fold: Fold,
    outage: Outage,
}

#[derive(Debug)]
struct State {
    fold: Fold,
    outage: Outage,
    queue: Queue<Update>,
    /// The number of the current attempt, by which calls of earlier attempts are ignored.
    attempt: u64,
}

impl Shared {
    /// Creates a watch that continues from what an earlier one knew, with a queue of `queue`
    /// updates.
    pub(crate) fn new(service: ServiceName, known: Known, queue: usize, watches: &Arc<Watches>) -> Arc<Self> {
        let Known { fold, outage } = known;
        let state = State { fold, outage, queue: Queue::new(queue), attempt: 0 };
        Arc::new(Self {
            service,
            state: Mutex::new(state),
            end: AtomicU64::new(0),
            news: Notify::new(),
            task: OnceLock::new(),
            orphaned: AtomicBool::new(false),
            watches: Arc::downgrade(watches),
        })
    }

    /// Sets the task that feeds this watch.
    pub(crate) fn own(&self, task: AbortHandle) {
        self.task.set(task).expect("a watch is started once");
    }

    pub(crate) fn service(&self) -> &ServiceName {
        &self.service
    }

    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Ordering::Acquire)
    }

    pub(crate) fn known(&self) -> Known {
        let state = self.lock();
        Known { fold: state.fold.clone(), outage: state.outage }
    }

    /// Begins an attempt; from here on, whatever earlier ones send is ignored.
    pub(crate) fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.attempt += 1;
        state.attempt
    }

    /// Ends the attempt with this error, and logs it if an outage begins with it.
    pub(crate) fn lose(&self, error: Error) {
        let is_first = self.change(|state| {
            state.attempt += 1;
            let update = state.fold.lose(error.clone());
            state.publish(update);
            state.outage.begin()
        });
        if is_first {
            log_lost(&self.service, &error);
        }
    }

    /// Changes the state, then wakes the streams if there is an update.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let end = state.queue.end();
        let is_news = self.end.swap(end, Ordering::SeqCst) != end;
        drop(state);
        if is_news {
            self.news.notify_waiters();
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
        if let Some(watches) = self.watches.upgrade() {
            let mut watches = watches.lock().unwrap_or_else(PoisonError::into_inner);
            // A newer watch of the service may have taken the place already.
            if watches.get(&self.service).is_some_and(|other| other.strong_count() == 0) {
                watches.remove(&self.service);
            }
        }
    }
}

impl State {
    fn publish(&mut self, update: Option<Update>) {
        if let Some(update) = update {
            self.queue.push(update);
        }
    }
}

/// Held by a watch's task; marks the watch as orphaned if the task ends before its streams do.
#[derive(Debug)]
pub(crate) struct Orphanage(pub(crate) Weak<Shared>);

impl Drop for Orphanage {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.orphaned.store(true, Ordering::Release);
            let error =
                Error::new(ErrorKind::Internal, "the runtime that ran the watch was shut down").with_operation("watch");
            shared.change(|state| {
                state.attempt += 1;
                // Published even if it is no news, because it wakes the streams. It is not logged:
                // most runtimes shut down because their program ends.
                let update = state.fold.lose(error.clone()).unwrap_or(Update::Lost(error));
                state.publish(Some(update));
            });
        }
    }
}

/// The position of one stream in a watch.
#[derive(Debug)]
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    missed: VecDeque<Update>,
    position: Position,
}

impl Subscription {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let mut state = shared.lock();
        let missed = state.fold.catch_up().collect();
        let position = state.queue.join();
        drop(state);
        Self { shared, missed, position }
    }

    /// Returns whether every update that was published so far has been taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.missed.is_empty() && !self.has_news()
    }

    /// Joins for a stream that has followed the former watch. While contact is still lost, the
    /// stream already has the set and the loss.
    pub(crate) fn resumed(shared: Arc<Shared>) -> Self {
        let mut joined = Self::new(shared);
        if matches!(joined.missed.back(), Some(Update::Lost(_))) {
            joined.missed.clear();
        }
        joined
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Returns the next update. A stream that fell behind the queue gets the current set instead of
    /// what it missed (W6). Cancel safe.
    pub(crate) async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.missed.pop_front() {
                return update;
            }
            if !self.has_news() {
                self.wait().await;
                continue;
            }
            // A consumer in a loop lets other tasks of its thread run now and then.
            consume_budget().await;
            let taken = self.shared.lock().queue.take(&mut self.position);
            match taken {
                Taken::Behind => *self = Self::new(Arc::clone(&self.shared)),
                Taken::Item(update) => return update,
                Taken::Nothing => {}
            }
        }
    }

    /// Waits until there is something to take. Cancel safe.
    async fn wait(&self) {
        // Made before looking again, so that no update is missed in between.
        let news = self.shared.news.notified();
        if !self.has_news() {
            news.await;
        }
    }

    fn has_news(&self) -> bool {
        !self.position.is_at(self.shared.end.load(Ordering::SeqCst))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.lock().queue.leave(&self.position);
    }
}

/// Where one attempt of a shared watch delivers what it reads.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) shared: Weak<Shared>,
    pub(crate) number: u64,
    pub(crate) rejects: Arc<Rejects>,
    /// How many entries are accepted at most.
    pub(crate) limit: usize,
    pub(crate) progress: tokio::sync::watch::Sender<Progress>,
}

/// How far an attempt has got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    /// Before the first set.
    Opening,
    /// The set follows the registry.
    Live,
    /// There are too many entries; whatever else the attempt sends is ignored.
    Full,
}

impl Attempt {
    /// Applies a whole state.
    fn state(&self, entries: Vec<Entry>, take: impl FnOnce(&mut Fold, Vec<Instance>) -> Option<Update>) {
        self.step(|state, service| {
            if entries.len() > self.limit {
                return Progress::Full;
            }
            let update = take(&mut state.fold, self.rejects.of_state(service, entries));
            state.publish(update);
            Progress::Live
        });
    }

    fn step(&self, step: impl FnOnce(&mut State, &ServiceName) -> Progress) {
        let Some(shared) = self.shared.upgrade() else { return };
        let ended = shared.change(|state| {
            if state.attempt != self.number {
                return None;
            }
            let progress = step(state, &shared.service);
            if progress == Progress::Full {
                // The next step would be applied over a gap, so no more of this attempt is
                // accepted.
                state.attempt += 1;
            }
            self.progress.send_if_modified(|former| std::mem::replace(former, progress) != progress);
            if state.fold.is_lost() { None } else { state.outage.end() }
        });
        if let Some(outage) = ended {
            log_regained(&shared.service, outage);
        }
    }
}

impl Sink for Attempt {
    fn limit(&self) -> usize {
        self.limit
    }

    fn reset(&self, entries: Vec<Entry>) {
        self.state(entries, |fold, instances| Some(fold.reset(instances)));
    }

    fn replace(&self, entries: Vec<Entry>) {
        self.state(entries, Fold::replace);
    }

    fn compare(&self, entries: Vec<Entry>) -> bool {
        let mut is_equal = true;
        self.state(entries, |fold, instances| {
            let update = fold.compare(instances);
            is_equal = update.is_none();
            update
        });
        is_equal
    }

    fn forget_bad(&self, keys: Vec<String>) {
        self.step(|_, service| {
            self.rejects.forget(service, &keys);
            Progress::Live
        });
    }

    fn change(&self, upserts: Vec<Entry>, removes: Vec<InstanceId>) {
        self.step(|state, service| {
            let (upserts, removes) = self.rejects.of_step(service, upserts, removes);
            let Some(limit) = self.limit.checked_sub(self.rejects.standing(service)) else { return Progress::Full };
            match state.fold.change(upserts, removes, limit) {
                Ok(update) => state.publish(update),
                Err(TooMany) => return Progress::Full,
            }
            Progress::Live
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_kept_for_a_stream_that_was_dropped() {
        let watches = Arc::default();
        let shared = Shared::new("payments".parse().unwrap(), Known::default(), 8, &watches);
        let mut stays = Subscription::new(Arc::clone(&shared));
        let leaves = Subscription::new(Arc::clone(&shared));
        shared.lose(Error::new(ErrorKind::Unavailable, "not now"));
        assert!(matches!(stays.next().await, Update::Lost(_)));
        assert_eq!(shared.lock().queue.kept(), 1);
        drop(leaves);
        assert_eq!(shared.lock().queue.kept(), 0);
    }
}
