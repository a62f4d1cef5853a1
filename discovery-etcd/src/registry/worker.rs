use std::sync::Arc;

use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::{
    Ledger,
    entry::{Command, Entry, Next},
    sentry::Order,
};
use crate::{failover::Cluster, lease::LeaseState};

/// The one task that touches one entry, (service, id), for one handle: whatever a handle does to an entry is in order.
///
/// It does what the [`Entry`] decides, and ends when nothing is left to do.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) entry: Entry,
    pub(super) ledger: Arc<Ledger>,
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
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.entry.take(command);
            }
            let lease = self.lease.borrow_and_update().clone();
            match self.entry.next(&lease) {
                Next::Exit => {
                    self.unwatch();
                    if self.ledger.retire(&key, &mut self.commands) {
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
                    let mut attempts = 0;
                    let put = self.cluster.run(|member| {
                        attempts += 1;
                        let (key, value) = (key.clone().into_bytes(), value.clone());
                        async move { member.put(key, value, lease, revision).await }
                    });
                    let put = put.await;
                    if attempts > 1 {
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
