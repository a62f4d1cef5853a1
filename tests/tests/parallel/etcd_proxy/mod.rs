//! etcd's own gRPC proxy as a member: handles that know only its address, or its address and
//! another.
//!
//! The laws of every backend are tested through the proxy in `etcd_conformance.rs`, beside those of
//! etcd itself.

mod authentication;
mod facts;
mod members;
mod outages;
mod timed;
mod watches;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use discovery_core::{Registration, Status, Update};
use discovery_etcd::EtcdBackend;
use support::{Etcd, Follower, GrpcProxy, Told, eventually, scene::connect_to};
use tokio::task::JoinHandle;

/// A cluster of one member behind a proxy.
async fn start() -> (Etcd, GrpcProxy) {
    let etcd = Etcd::start().await;
    let proxy = GrpcProxy::before(&etcd).await;
    (etcd, proxy)
}

/// Returns a handle that knows only the proxy.
fn through(proxy: &GrpcProxy) -> EtcdBackend {
    connect_to([proxy.address()])
}

/// Lists the updates of a follower without the sets.
fn told(follower: &Follower) -> Vec<String> {
    let brief = |told: Told| match told.update {
        Update::Change(_) => "change".to_owned(),
        Update::Lost(error) => format!("lost: {}", error.report()),
        Update::Reset(set) => format!("reset of {}", set.len()),
    };
    follower.told().into_iter().map(brief).collect()
}

/// Records the statuses of a registration from now on, as words.
struct StatusReceiver {
    words: Arc<Mutex<Vec<&'static str>>>,
    task: JoinHandle<()>,
}

impl StatusReceiver {
    fn of(registration: &Registration) -> Self {
        let words = Arc::new(Mutex::new(Vec::new()));
        let mut statuses = registration.statuses();
        let task = tokio::spawn({
            let words = Arc::clone(&words);
            async move {
                while let Some(status) = statuses.changed().await {
                    let word = match status {
                        Status::Registered { .. } => "registered",
                        Status::Lost { .. } => "lost",
                        Status::Superseded { .. } => "superseded",
                        _ => "other",
                    };
                    words.lock().unwrap_or_else(PoisonError::into_inner).push(word);
                }
            }
        });
        Self { words, task }
    }

    fn words(&self) -> Vec<&'static str> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until these statuses have arrived, and no others.
    async fn until(&self, wanted: &[&str], bound: Duration) {
        let what = format!("the statuses {wanted:?}");
        eventually(&what, bound, async || self.words().len() >= wanted.len()).await;
        assert_eq!(self.words(), wanted);
    }
}

impl Drop for StatusReceiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}
