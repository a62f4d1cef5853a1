//! An in-process etcd that misbehaves on demand.
//!
//! `store` keeps the data, `service` and `members` serve etcd's protocol on it, and `script` holds
//! what the tests change about the answers.

mod members;
mod script;
mod service;
mod store;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::proto::{
    PbKvServer, PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbLeaseServer, PbLeaseTimeToLiveResponse,
    PbMaintenanceServer, PbRangeRequest, PbRangeResponse, PbTxnRequest, PbTxnResponse, PbWatchResponse, PbWatchServer,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Status, transport::Server};

use members::Auth;
use script::Scripts;
pub use script::{Before, Method};
use service::Services;
use store::Store;

/// A server of etcd's protocol over real sockets: one member that keeps its data in memory.
///
/// Without scripts it is honest. Entries, revisions, history, leases, transactions, watches with
/// fragments and compaction behave as in etcd, as far as clients that register and resolve need
/// them. Anything else is refused as unimplemented, and progress requests are never answered.
/// Scripts make it misbehave: [`before`](Self::before) delays or fails calls; the others change the
/// honest answers. A later script replaces the earlier one of its kind.
///
/// It records the time of every call, so that tests can count attempts.
///
/// ```no_run
/// # async fn example() {
/// use support::{Fake, Method};
///
/// let fake = Fake::start().await;
/// fake.edit_watches(|mut message| {
///     message.header = None;
///     vec![Ok(message)]
/// });
/// // ... the code under test watches `fake.address()` ...
/// assert!(fake.asked(Method::Watch).len() < 10);
/// fake.be_honest();
/// # }
/// ```
pub struct Fake {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

/// The state shared by the handle and the services.
struct Shared {
    store: Mutex<Store>,
    /// The revision, on which watches wait.
    changed: watch::Sender<i64>,
    scripts: Mutex<Scripts>,
    log: Mutex<Vec<(Method, Instant)>>,
    watches: AtomicUsize,
}

impl Fake {
    /// Starts a server on a free port.
    pub async fn start() -> Self {
        Self::start_limited(None).await
    }

    /// Like [`start`](Self::start), with at most this many concurrent streams per connection.
    pub async fn start_with_stream_limit(streams: u32) -> Self {
        Self::start_limited(Some(streams)).await
    }

    async fn start_limited(streams: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            changed: watch::Sender::new(1),
            scripts: Mutex::default(),
            log: Mutex::default(),
            watches: AtomicUsize::default(),
        });
        let services = Services(Arc::clone(&shared));
        let server = Server::builder()
            .max_concurrent_streams(streams)
            .add_service(PbKvServer::new(services.clone()).max_decoding_message_size(LARGE))
            .add_service(PbLeaseServer::new(services.clone()))
            .add_service(PbWatchServer::new(services.clone()))
            .add_service(PbMaintenanceServer::new(services))
            .add_service(Auth(Arc::clone(&shared)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.expect("it serves until it is dropped") });
        let expiring = Arc::clone(&shared);
        let expiry = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                expiring.write(Store::expire);
            }
        });
        Self { address, shared, tasks: [server, expiry] }
    }

    /// Returns the address it listens on, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Puts entries, or deletes them if the value is `None`, all in one revision and without a
    /// lease.
    pub fn write<K: Into<Vec<u8>>>(&self, entries: impl IntoIterator<Item = (K, Option<Vec<u8>>)>) {
        let entries = entries.into_iter().map(|(key, value)| (key.into(), value)).collect();
        self.shared.write(|store| store.write(entries, 0));
    }

    /// Discards all history up to now.
    pub fn compact(&self) {
        self.shared.write(|store| store.compact(i64::MAX));
    }

    /// Returns the revision of the store.
    pub fn revision(&self) -> i64 {
        self.shared.store().revision()
    }

    /// Returns all keys.
    pub fn keys(&self) -> Vec<String> {
        self.shared.store().keys()
    }

    /// Returns all leases.
    pub fn leases(&self) -> Vec<i64> {
        self.shared.store().leases()
    }

    /// Returns when this method was called so far.
    pub fn asked(&self, method: Method) -> Vec<Instant> {
        let log = self.shared.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|(asked, _)| *asked == method).map(|(_, at)| *at).collect()
    }

    /// Returns how many watch streams are open.
    pub fn open_watches(&self) -> usize {
        self.shared.watches.load(Ordering::Relaxed)
    }

    /// Reports this version instead of 3.5.16.
    pub fn report_version(&self, version: &str) {
        self.shared.scripts().version = version.to_owned();
    }

    /// Removes the script for renewals.
    pub fn be_honest_about_renewals(&self) {
        self.shared.scripts().renewal = None;
    }

    /// Removes all scripts. Calls that a script blocked stay blocked.
    pub fn be_honest(&self) {
        *self.shared.scripts() = Scripts::default();
    }

    /// Decides the fate of each call before it is executed. Opening a stream is a call too.
    pub fn before(&self, script: impl FnMut(Method) -> Before + Send + 'static) {
        self.shared.scripts().before = Some(Box::new(script));
    }

    /// Changes the answers to range reads, including those that only count.
    pub fn edit_ranges(
        &self,
        script: impl FnMut(&PbRangeRequest, PbRangeResponse) -> Result<PbRangeResponse, Status> + Send + 'static,
    ) {
        self.shared.scripts().range = Some(Box::new(script));
    }

    /// Changes the answers to transactions; the transactions are executed.
    pub fn edit_txns(
        &self,
        script: impl FnMut(&PbTxnRequest, PbTxnResponse) -> Result<PbTxnResponse, Status> + Send + 'static,
    ) {
        self.shared.scripts().txn = Some(Box::new(script));
    }

    /// Changes the answers to lease grants; the leases are granted.
    pub fn edit_grants(
        &self,
        mut script: impl FnMut(PbLeaseGrantResponse) -> Result<PbLeaseGrantResponse, Status> + Send + 'static,
    ) {
        self.shared.scripts().grant = Some(Box::new(move |(), answer| script(answer)));
    }

    /// Changes the answers to time-to-live requests for a lease.
    pub fn edit_times(
        &self,
        mut script: impl FnMut(PbLeaseTimeToLiveResponse) -> Result<PbLeaseTimeToLiveResponse, Status> + Send + 'static,
    ) {
        self.shared.scripts().time_to_live = Some(Box::new(move |(), answer| script(answer)));
    }

    /// Turns each answer on a renewal stream into none, one or many. An error ends the stream.
    pub fn edit_renewals(
        &self,
        script: impl FnMut(PbLeaseKeepAliveResponse) -> Vec<Result<PbLeaseKeepAliveResponse, Status>> + Send + 'static,
    ) {
        self.shared.scripts().renewal = Some(Box::new(script));
    }

    /// Turns each answer on a watch stream into none, one or many. An error ends the stream.
    ///
    /// The first answer to a new watch has `created` set.
    pub fn edit_watches(
        &self,
        script: impl FnMut(PbWatchResponse) -> Vec<Result<PbWatchResponse, Status>> + Send + 'static,
    ) {
        self.shared.scripts().watch = Some(Box::new(script));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scripts(&self) -> MutexGuard<'_, Scripts> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the store and wakes the watches if that created a revision.
    fn write<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let result = change(&mut store);
        let revision = store.revision();
        self.changed.send_if_modified(|last| std::mem::replace(last, revision) != revision);
        result
    }

    /// Records a call and applies the script to it.
    async fn begin(&self, method: Method) -> Result<(), Status> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push((method, Instant::now()));
        let before = self.scripts().before.as_mut().map_or(Before::Serve, |script| script(method));
        match before {
            Before::Fail(status) => Err(status),
            Before::Never => std::future::pending().await,
            Before::Serve => Ok(()),
            Before::Wait(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }
}

/// No request is larger.
const LARGE: usize = 64 << 20;
