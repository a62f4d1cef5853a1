//! The task of one entry.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    entry::{Command, Entry, Next},
    in_flight::Permit,
    workers::Workers,
};
use crate::{
    client::{Event, Failure, Reading},
    cluster::{Asking, Cluster},
    lease::LeaseState,
    watcher::{Keys, News, Start, Watch, Watcher},
};

/// The only task of a handle that reads and writes one entry, (service, id), so that the handle's
/// requests for an entry never overlap.
///
/// It does what the [`Entry`] decides, and ends when nothing is left to do.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) entry: Entry,
    pub(super) workers: Arc<Workers>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) lease: watch::Receiver<LeaseState>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) watcher: Watcher,
    /// The watch of the entry.
    pub(super) watch: Option<Watch>,
}

impl Worker {
    pub(super) async fn run(mut self) {
        let mut is_in_doubt = false;
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.entry.take(command);
            }
            let lease = self.lease.borrow_and_update().clone();
            let next = self.entry.next(&lease);
            let stays_in_doubt = self.entry.is_in_doubt() && !matches!(next, Next::Exit);
            if is_in_doubt != stays_in_doubt {
                is_in_doubt = stays_in_doubt;
                self.workers.doubt(&self.entry.place.key, is_in_doubt);
            }
            let gives_up = self.entry.gives_up(&lease);
            match next {
                Next::Exit => {
                    self.unwatch();
                    if self.workers.retire(&self.entry.place.key, &mut self.commands) {
                        return;
                    }
                }
                Next::Wait(until) => self.wait(until, gives_up).await,
                Next::Watch(from) => {
                    let key = self.entry.place.key.clone().into_bytes();
                    self.watch = Some(self.watcher.watch(Keys::One(key), from, Start::Level));
                }
                Next::Read | Next::Remove { .. } | Next::Write { .. } => self.ask(next, gives_up).await,
            }
        }
    }

    /// Waits for a command, for news from the watch or of the lease, or until a time.
    async fn wait(&mut self, until: Option<Instant>, gives_up: Option<Instant>) {
        // Commands come first: they may change what is to be done.
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => self.entry.take(command),
            news = news_of(&mut self.watch) => self.hear(news),
            Ok(()) = self.lease.changed() => self.entry.resume(),
            () = at(gives_up) => self.entry.give_removal_up(),
            () = at(until) => {}
        }
    }

    /// Sends a request to etcd once it is this worker's turn. News that arrives before that returns
    /// instead, because it may change what is to be done.
    async fn ask(&mut self, next: Next, gives_up: Option<Instant>) {
        let workers = Arc::clone(&self.workers);
        let cluster = Arc::clone(&self.cluster);
        let urgency = self.entry.urgency();
        let turn = async {
            // The permit before the member: once a member can be reached again, a worker that has
            // waited for it proceeds without waiting for a permit.
            let permit = workers.in_flight.enter(urgency).await;
            (permit, cluster.reachable().await)
        };
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => self.entry.take(command),
            news = news_of(&mut self.watch) => self.hear(news),
            Ok(()) = self.lease.changed() => self.entry.resume(),
            // Boxed: the future of a call is large, and calls are rare.
            turn = turn => Box::pin(self.act(next, turn)).await,
            () = at(gives_up) => self.entry.give_removal_up(),
        }
    }

    async fn act(&mut self, next: Next, (_permit, member): (Permit<'_>, Asking<'_>)) {
        let key = self.entry.place.key.clone().into_bytes();
        match next {
            Next::Read => {
                let read = self.cluster.run_on(member, |member| {
                    let key = key.clone();
                    async move { member.read(key).await }
                });
                self.entry.read(read.await);
                self.know();
            }
            Next::Remove { lease, revision } => {
                self.unwatch();
                let removed = self.cluster.run_on(member, |member| {
                    let key = key.clone();
                    async move { member.delete(key, lease, revision).await }
                });
                let removed = removed.await;
                self.entry.removed(removed);
            }
            Next::Write { value, lease, revision } => {
                // Set by any attempt: `put` may hold the answer to a later attempt than the one
                // that was not answered.
                let may_be_done = AtomicBool::new(false);
                let put = self.cluster.run_on(member, |member| {
                    let key = key.clone();
                    let value = value.clone();
                    let may_be_done = &may_be_done;
                    async move {
                        let put = member.put(key, value, lease, revision).await;
                        if put.as_ref().is_err_and(Failure::may_be_done) {
                            may_be_done.store(true, Ordering::Relaxed);
                        }
                        put
                    }
                });
                let put = put.await;
                if may_be_done.into_inner() {
                    self.entry.doubt(lease);
                }
                self.entry.written(lease, put);
            }
            Next::Exit | Next::Wait(_) | Next::Watch(_) => unreachable!("etcd is not asked for that"),
        }
    }

    /// Handles news from the watch of the entry.
    fn hear(&mut self, news: News) {
        match news {
            News::Message(message) => {
                for event in message.events {
                    match event {
                        Event::Put { row, .. } => self.entry.changed(row.revision, Some(row)),
                        Event::Delete { revision, .. } => self.entry.changed(revision, None),
                        // The change is unknown, so the entry must be read.
                        Event::Unknown => self.entry.unwatched(),
                    }
                }
                self.know();
            }
            News::Moved { .. } => {}
            News::Audited(audited) => {
                if let Reading::Key(reading) = audited.reading {
                    self.entry.audited(audited.asked, audited.known, reading);
                    self.know();
                }
            }
            News::Ended(_) => {
                self.watch = None;
                self.entry.unwatched();
            }
        }
    }

    /// Sets the revision from which the watch resumes if it moves to another stream. It then needs
    /// no older history, which may be compacted.
    fn know(&self) {
        if let Some(watch) = &self.watch {
            watch.know(self.entry.known());
        }
    }

    fn unwatch(&mut self) {
        self.entry.leave();
        self.watch = None;
    }
}

/// Returns the next news from the watch; never, if there is none. Cancel safe.
async fn news_of(watch: &mut Option<Watch>) -> News {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until a time; forever, if there is none.
async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}
