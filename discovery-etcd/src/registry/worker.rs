use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::{
    entry::{Command, Entry, Next},
    sentry::Order,
    workers::Workers,
};
use crate::{client::Failure, cluster::Cluster, lease::LeaseState};

/// The one task that touches one entry, (service, id), for one handle: whatever a handle does to an entry is in order.
///
/// It does what the [`Entry`] decides, and ends when nothing is left to do.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) entry: Entry,
    pub(super) workers: Arc<Workers>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) lease: watch::Receiver<LeaseState>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// For the sentry, to tell what happens to the entry.
    pub(super) own: mpsc::UnboundedSender<Command>,
    pub(super) sentry: mpsc::UnboundedSender<Order>,
}

impl Worker {
    pub(super) async fn run(mut self) {
        let key = self.entry.place.key.clone();
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
                self.workers.doubt(&key, is_in_doubt);
            }
            match next {
                Next::Exit => {
                    self.unwatch();
                    if self.workers.retire(&key, &mut self.commands) {
                        return;
                    }
                }
                Next::Read => {
                    let read = self.cluster.run(|member| {
                        let key = key.clone().into_bytes();
                        async move { member.read(key).await }
                    });
                    let read = read.await;
                    self.entry.read(read);
                }
                Next::Remove { lease, revision } => {
                    self.unwatch();
                    let removed = self.cluster.run(|member| {
                        let key = key.clone().into_bytes();
                        async move { member.delete(key, lease, revision).await }
                    });
                    let removed = removed.await;
                    let is_renewed = matches!(&*self.lease.borrow(), LeaseState::Held { id } if *id == lease);
                    self.entry.removed(removed, is_renewed);
                }
                Next::Watch(from) => {
                    // The sentry lives as long as any worker.
                    let _ = self.sentry.send(Order::Leave { key: key.clone() });
                    let _ = self.sentry.send(Order::Watch { key: key.clone(), from, tell: self.own.clone() });
                }
                Next::Write { value, lease, revision } => {
                    // Also of an attempt before the one whose answer it is.
                    let may_be_done = AtomicBool::new(false);
                    let put = self.cluster.run(|member| {
                        let (key, value, may_be_done) = (key.clone().into_bytes(), value.clone(), &may_be_done);
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
                Next::Wait(until) => {
                    let timer = async {
                        match until {
                            Some(until) => sleep_until(until).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        Some(command) = self.commands.recv() => self.entry.take(command),
                        Ok(()) = self.lease.changed() => self.entry.resume(),
                        () = timer => {}
                    }
                }
            }
        }
    }

    fn unwatch(&mut self) {
        if self.entry.leave() {
            let _ = self.sentry.send(Order::Leave { key: self.entry.place.key.clone() });
        }
    }
}
